/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the dma-buf core in Rust and its C shim call of each other.
 */
#ifndef _DMA_BUF_RUST_SHIM_H
#define _DMA_BUF_RUST_SHIM_H

#include <linux/types.h>

struct dma_resv;
struct inode;
struct kmem_cache;
struct super_block;

/* In Rust, called by the shim. */
int dma_buf_rust_init(void);
void dma_buf_rust_exit(void);

/* In the shim, called by Rust: macros and inline functions of C. */
void dma_buf_shim_might_lock(struct dma_resv *resv);
struct kmem_cache *dma_buf_shim_create_inode_cache(unsigned int size,
						   void (*ctor)(void *));
struct inode *dma_buf_shim_alloc_inode(struct super_block *sb,
				       struct kmem_cache *cache);
void dma_buf_shim_debug_unaligned(dma_addr_t addr, unsigned int len);

#endif /* _DMA_BUF_RUST_SHIM_H */
