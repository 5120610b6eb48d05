// SPDX-License-Identifier: GPL-2.0

//! Sharing of buffers between devices: dma-buf, its reservation object, its fences.
//!
//! C headers: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h),
//! [`include/linux/dma-resv.h`](srctree/include/linux/dma-resv.h),
//! [`include/linux/dma-fence.h`](srctree/include/linux/dma-fence.h),
//! [`include/linux/sync_file.h`](srctree/include/linux/sync_file.h)
//!
//! The page to read first is [`samples/rust/rust_dma_buf.rs`], the chapter for driver authors
//! [`Documentation/driver-api/dma-buf-rust-drivers.rst`].
//!
//! [`samples/rust/rust_dma_buf.rs`]: srctree/samples/rust/rust_dma_buf.rs
//! [`Documentation/driver-api/dma-buf-rust-drivers.rst`]:
//!     srctree/Documentation/driver-api/dma-buf-rust-drivers.rst
//!
//! A driver that has memory is an *exporter*: it implements [`Exporter`], or [`MemoryExporter`]
//! when ordinary kernel memory will do, and calls [`export()`] or [`export_memory`]. A driver that
//! wants its device to access a buffer is an *importer*: it gets a [`DmaBuf`] from a file
//! descriptor and walks the chain
//!
//! ```text
//! DmaBuf --attach()--> Attachment --map()--> Mapping --table()--> &SGTable
//! ```
//!
//! in which each link owns the one before it, and undoes its own step when it is dropped. An
//! importer that can follow a buffer which moves is a [`DynamicImporter`].
//!
//! # Locking
//!
//! The rules of `Documentation/driver-api/dma-buf.rst`, section "Locking Convention", are types
//! here. What needs the reservation lock takes a [`&LockedResv`](LockedResv), which only a
//! [`ResvGuard`], a [`ResvSet`] or a callback that runs under the lock can give. What must not hold
//! it takes none, and deadlocks if the lock is held all the same; lockdep tells.
//!
//! # Contexts
//!
//! Everything here may sleep, unless it says that it does not. A reference to a [`DmaBuf`] or a
//! [`Fence`] may be dropped in any context.
//!
//! # Modules
//!
//! A module that calls these functions imports their namespace: `imports_ns: ["DMA_BUF"]` in
//! [`module!`](macros::module). The modules that have the code of an [`Exporter`], a
//! [`DynamicImporter`] or a [`FenceCallback`] stay loaded for as long as the C side can call it:
//! those in which it was compiled, which for generic code need not be those in which it is written,
//! and whether or not their initialisation succeeds in the end.

pub mod acquire;
pub mod attachment;
pub mod buf;
pub mod cpu;
pub mod dma_fence;
pub mod dynamic;
pub mod exporter;
pub mod memory;
pub mod resv;
#[cfg(CONFIG_SYNC_FILE)]
pub mod sync_file;

#[cfg(CONFIG_RUST_DMA_BUF_KUNIT_TEST)]
mod leak_tests;
#[cfg(CONFIG_RUST_DMA_BUF_KUNIT_TEST)]
#[doc(hidden)]
pub mod tests;

pub use self::{
    acquire::ResvSet,
    attachment::{
        Attachment,
        DevresAttachment,
        DevresMapping,
        Mapping, //
    },
    buf::DmaBuf,
    cpu::CpuAccess,
    dma_fence::{
        DriverFence,
        Fence,
        FenceCallback,
        FenceContext, //
    },
    dynamic::{
        DevresDynamicAttachment,
        DevresLockedPin,
        DevresPinned,
        DynamicAttachment,
        DynamicImporter, //
    },
    exporter::{
        export,
        Exporter, //
    },
    memory::{
        export_memory,
        Memory,
        MemoryExporter, //
    },
    resv::{
        LockedResv,
        OwnedResv,
        Resv,
        ResvGuard,
        Usage, //
    },
};

use crate::{
    bindings,
    module::ModuleRef, //
};

/// Whether the current task has file descriptors. It has none any more when it has exited so far
/// that the last of its files are released.
fn has_files() -> bool {
    // SAFETY: The current task is valid, and only itself takes its files away.
    unsafe { !(*bindings::get_current()).files.is_null() }
}
