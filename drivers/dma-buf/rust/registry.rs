// SPDX-License-Identifier: GPL-2.0

//! The live buffers.
//!
//! The list is C's, so that post-mortem tools find it by the symbol `dmabuf_list` and walk
//! `struct dma_buf` by `list_node`. Who iterates holds a reference to one buffer at a time, and
//! takes the lock only to step to the next. It is a mutex, because a step passes over buffers that
//! lost their last reference and wait to be released, of which there may be many.

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

/// The head of the list, guarded by [`LIST`](static@LIST). Post-mortem tools know the name.
#[no_mangle]
static dmabuf_list: Shared<bindings::list_head> =
    // SAFETY: Only `List` uses it, with the lock held.
    unsafe {
        Shared::new(bindings::list_head {
            next: null_mut(),
            prev: null_mut(),
        })
    };

/// Access to [`dmabuf_list`].
///
/// # Invariants
///
/// The only one is inside [`LIST`](static@LIST), so a reference to it shows that the lock is held.
struct List(());

kernel::sync::global_lock! {
    // SAFETY: `init()` is called before anything can be exported.
    unsafe(uninit) static LIST: Mutex<List> = List(());
}

impl List {
    /// Adds a buffer in front.
    ///
    /// # Safety
    ///
    /// The buffer must be on no list, and be removed before it is released.
    unsafe fn add(&mut self, buf: &Buffer) {
        // SAFETY: The lock is held by the type invariant; the rest by the safety requirements.
        unsafe { bindings::list_add(&raw mut (*buf.as_raw()).list_node, dmabuf_list.as_ptr()) };
    }

    /// Removes a buffer.
    ///
    /// # Safety
    ///
    /// The buffer must be on the list.
    unsafe fn remove(&mut self, buf: *mut bindings::dma_buf) {
        // SAFETY: The lock is held by the type invariant; the rest by the safety requirements. The
        // pointer is what `has()` looks at.
        unsafe {
            bindings::list_del(&raw mut (*buf).list_node);
            (&raw mut (*buf).list_node.next).write_volatile(null_mut());
        }
    }

    /// The next buffer, or the first, that is not about to be released.
    fn next(&mut self, after: Option<&Buffer>) -> Option<ARef<Buffer>> {
        let mut node = match after {
            // SAFETY: The field is inside a valid buffer; only its address is taken.
            Some(buf) => unsafe { &raw mut (*buf.as_raw()).list_node },
            None => dmabuf_list.as_ptr(),
        };

        loop {
            // SAFETY: The node is the head or that of a referenced buffer, which is on the list.
            // The list does not change while the lock is held.
            node = unsafe { (*node).next };
            if core::ptr::eq(node, dmabuf_list.as_ptr()) {
                return None;
            }
            // SAFETY: All nodes but the head are in buffers. The file of one on the list has not
            // been freed, even when its last reference is gone: it is removed before, with this
            // lock.
            let next = unsafe {
                Buffer::try_get(kernel::container_of!(node, bindings::dma_buf, list_node))
            };
            if next.is_some() {
                return next;
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
        bindings::INIT_LIST_HEAD(dmabuf_list.as_ptr());
        LIST.init();
    }
}

/// Adds a buffer.
///
/// # Safety
///
/// The buffer must be new, and be removed when its file is released.
pub(crate) unsafe fn add(buf: &Buffer) {
    // SAFETY: By the safety requirements.
    unsafe { LIST.lock().add(buf) };
}

/// Removes a buffer whose last reference is gone.
///
/// # Safety
///
/// The buffer must have been added, and not been removed.
pub(crate) unsafe fn remove(buf: *mut bindings::dma_buf) {
    // SAFETY: By the safety requirements.
    unsafe { LIST.lock().remove(buf) };
}

/// Whether a buffer is registered. It is from its export until its file is released, and all that
/// time the file is its own.
///
/// # Safety
///
/// `buf` must point to what is, or was, a buffer, and has not been freed.
pub(crate) unsafe fn has(buf: *mut bindings::dma_buf) -> bool {
    // Others may write the pointer at the same time, but not between NULL and something else while
    // the caller has a reference.
    //
    // SAFETY: By the safety requirements.
    !unsafe { (&raw const (*buf).list_node.next).read_volatile() }.is_null()
}

/// The newest live buffer.
pub(crate) fn first() -> Option<ARef<Buffer>> {
    LIST.lock().next(None)
}

/// The next older live buffer than one that [`first`] or this function returned.
pub(crate) fn after(buf: ARef<Buffer>) -> Option<ARef<Buffer>> {
    // The guard goes before the argument, so the old reference is dropped without the lock.
    LIST.lock().next(Some(&buf))
}
