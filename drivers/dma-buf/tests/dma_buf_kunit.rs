// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the dma-buf core, whichever is built: the C ABI of `include/linux/dma-buf.h`, as
//! drivers in C use it.
//!
//! The exporter, the importers and the pollers are mocks, in `mock.rs`. They note what the core
//! calls and in which order, and check the locking convention of `drivers/dma-buf/dma-buf.c` in
//! each call. What only a process can see is in `tools/testing/selftests/dma-buf`.
//!
//! A test of what one core does better than the other says so with a `cfg` on
//! `CONFIG_DMA_SHARED_BUFFER_RUST`.

// Testing an ABI is unsafe throughout: each test hands the core what a driver in C would, and the
// mocks keep it valid, so there is nothing to say at each call that is not said there.
#![allow(clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc)]

mod attach;
mod cpu;
mod export;
mod file;
#[cfg(CONFIG_DMA_SHARED_BUFFER_RUST)]
mod misuse;
mod mock;
mod poll;

const __LOG_PREFIX: &[u8] = b"dma_buf_kunit\0";
