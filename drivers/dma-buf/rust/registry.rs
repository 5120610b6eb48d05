// SPDX-License-Identifier: GPL-2.0

//! The live buffers.
//!
//! The list is C's, so that post-mortem tools find it by the symbol `dmabuf_list` and walk
//! `struct dma_buf` by `list_node`. Its lock is held for a few instructions at a time: who iterates
//! takes a reference to each buffer in turn, and the lock only to step.

use crate::{
    buffer::Buffer,
    pseudo_fs::Shared, //
};

use kernel::{
    bindings,
    prelude::*,
    sync::aref::ARef, //
};

use core::ptr::null_mut;

/// The head of the list, guarded by [`LIST`]. Post-mortem tools know the name.
#[no_mangle]
static dmabuf_list: Shared<bindings::list_head> = Shared::new(bindings::list_head {
    next: null_mut(),
    prev: null_mut(),
});

/// Access to [`dmabuf_list`].
///
/// # Invariants
///
/// The only one is inside [`LIST`], so a reference to it shows that the lock is held.
struct List(());

kernel::sync::global_lock! {
    // SAFETY: `init()` is called before anything can be exported.
    unsafe(uninit) static LIST: SpinLock<List> = List(());
}

impl List {
    /// Adds a buffer in front.
    fn add(&mut self, buf: &Buffer) {
        // SAFETY: The lock is held by the type invariant. The buffer is new, and on no list.
        unsafe {
            bindings::list_add(
                &raw mut (*buf.as_raw()).list_node,
                dmabuf_list.0.get(),
            )
        };
    }

    /// Removes a buffer.
    ///
    /// # Safety
    ///
    /// The buffer must be on the list.
    unsafe fn remove(&mut self, buf: &Buffer) {
        // SAFETY: The lock is held by the type invariant; the rest by the safety requirements.
        unsafe { bindings::list_del(&raw mut (*buf.as_raw()).list_node) };
    }

    /// The next buffer, or the first, that is not about to be released.
    fn next(&mut self, after: Option<&Buffer>) -> Option<ARef<Buffer>> {
        let mut node = match after {
            // SAFETY: A referenced buffer is on the list.
            Some(buf) => unsafe { &raw mut (*buf.as_raw()).list_node },
            None => dmabuf_list.0.get(),
        };

        loop {
            // SAFETY: The node is on the list, which does not change while the lock is held.
            node = unsafe { (*node).next };
            if core::ptr::eq(node, dmabuf_list.0.get()) {
                return None;
            }
            // SAFETY: All nodes but the head are in buffers. One on the list is valid even when its
            // last reference is gone: it is removed before it is released, under this lock.
            let buf = unsafe {
                Buffer::from_raw(kernel::container_of!(node, bindings::dma_buf, list_node))
            };
            if let Some(buf) = buf.try_get() {
                return Some(buf);
            }
        }
    }
}

/// Makes the list usable.
///
/// # Safety
///
/// Must be called once, before anything can be exported.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirements.
    unsafe {
        bindings::INIT_LIST_HEAD(dmabuf_list.0.get());
        LIST.init();
    }
}

/// Adds a buffer that was just made.
pub(crate) fn add(buf: &Buffer) {
    LIST.lock().add(buf);
}

/// Removes a buffer whose last reference is gone.
///
/// # Safety
///
/// The buffer must have been added, and not been removed.
pub(crate) unsafe fn remove(buf: &Buffer) {
    // SAFETY: By the safety requirements.
    unsafe { LIST.lock().remove(buf) };
}

/// The newest live buffer.
pub(crate) fn first() -> Option<ARef<Buffer>> {
    LIST.lock().next(None)
}

/// The next older live buffer.
pub(crate) fn after(buf: ARef<Buffer>) -> Option<ARef<Buffer>> {
    // The guard goes before the argument, so the old reference is dropped without the lock.
    LIST.lock().next(Some(&buf))
}
