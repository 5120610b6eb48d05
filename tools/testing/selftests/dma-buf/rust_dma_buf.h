/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The ioctls of samples/rust/rust_dma_buf.rs, which is a sample and has no header, and those of
 * drivers/dma-buf/tests/dma_buf_test.rs, which is for tests alone.
 */

#ifndef _SELFTESTS_RUST_DMA_BUF_H
#define _SELFTESTS_RUST_DMA_BUF_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Allocates as many bytes, and returns the descriptor of a buffer. */
#define RUST_DMA_BUF_ALLOC	_IOW('|', 0x90, __u64)
/* Replaces the descriptor of a buffer by the sum of its bytes. */
#define RUST_DMA_BUF_SUM	_IOWR('|', 0x91, __u64)
/* Fills a buffer: its descriptor, a byte. */
#define RUST_DMA_BUF_FILL	_IOW('|', 0x92, __u64[2])

#define DMA_BUF_TEST		"/dev/dma-buf-test"

/* Holds the reservation lock of a buffer: its descriptor, for how many milliseconds (10000). */
#define DMA_BUF_TEST_HOLD	_IOW('|', 0x93, __u64[2])
/* Returns the descriptor of a buffer whose exporter is defined in the kernel, not in the module. */
#define DMA_BUF_TEST_REGION	_IO('|', 0x94)

#endif
