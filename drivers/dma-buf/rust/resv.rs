// SPDX-License-Identifier: GPL-2.0

//! What the core needs of reservation objects and drivers do not.
//!
//! C header: [`include/linux/dma-resv.h`](srctree/include/linux/dma-resv.h)

use crate::buffer::Locked;

use kernel::{
    bindings,
    dma_buf::{
        Fence,
        Resv,
        Usage, //
    },
    sync::aref::ARef, //
};

use core::ptr::NonNull;

/// Lets lockdep check that the current context holds the lock.
pub(crate) fn assert_held(resv: &Resv) {
    // SAFETY: The object is initialised.
    unsafe { bindings::dma_resv_assert_held(resv.as_raw()) };
}

/// Tells lockdep that the caller may take this lock.
pub(crate) fn might_lock(resv: &Resv) {
    // SAFETY: The object is initialised.
    unsafe { bindings::dma_buf_shim_might_lock(resv.as_raw()) };
}

impl<'a> Locked<'a> {
    /// The fences of `usage`, each with a reference of its own.
    ///
    /// # Safety
    ///
    /// No room for fences must be made while the iterator is in use: that frees what it walks.
    pub(crate) unsafe fn fences(self, usage: Usage) -> Fences<'a> {
        let mut cursor: bindings::dma_resv_iter = pin_init::zeroed();

        cursor.obj = self.resv().as_raw();
        cursor.usage = usage as u32;
        // INVARIANT: Set up the way `dma_resv_iter_begin()` does it.
        Fences {
            cursor,
            started: false,
            _locked: self,
        }
    }

    /// Writes the state of each fence into a seq file.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn describe(self, m: &crate::seq::Seq<'_>) {
        // SAFETY: The lock is held by the type invariant, and `m` is valid for this call.
        unsafe { bindings::dma_resv_describe(self.resv().as_raw(), m.as_raw()) };
    }
}

/// Iterator over the fences of a locked reservation object.
///
/// # Invariants
///
/// The cursor is one for the reservation object whose lock is held, and has been started if
/// `started` is set. The list it walks is the current one.
pub(crate) struct Fences<'a> {
    cursor: bindings::dma_resv_iter,
    started: bool,
    _locked: Locked<'a>,
}

impl Iterator for Fences<'_> {
    type Item = ARef<Fence>;

    fn next(&mut self) -> Option<ARef<Fence>> {
        // SAFETY: The lock is held for as long as `self` lives, and the cursor is what the
        // functions want by the type invariants.
        let fence = unsafe {
            if self.started {
                bindings::dma_resv_iter_next(&mut self.cursor)
            } else {
                bindings::dma_resv_iter_first(&mut self.cursor)
            }
        };

        self.started = true;
        // SAFETY: A fence that is returned is held by the reservation object, which is locked.
        NonNull::new(fence).map(|fence| unsafe { Fence::from_raw(fence.as_ptr()) }.into())
    }
}
