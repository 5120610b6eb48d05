// SPDX-License-Identifier: GPL-2.0

//! The reservation object of a buffer and the fences in it.
//!
//! C header: [`include/linux/dma-resv.h`](srctree/include/linux/dma-resv.h)

use crate::buffer::Locked;

use kernel::{
    bindings,
    error::{
        to_result,
        Result, //
    },
    types::Opaque, //
};

use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};

/// Which fences to wait for, and as what to add one.
///
/// Corresponds to `enum dma_resv_usage`. The values nest: a wait for [`Usage::Write`] includes
/// [`Usage::Kernel`], one for [`Usage::Read`] includes both.
#[derive(Copy, Clone)]
#[repr(u32)]
pub(crate) enum Usage {
    Kernel = bindings::dma_resv_usage_DMA_RESV_USAGE_KERNEL,
    Write = bindings::dma_resv_usage_DMA_RESV_USAGE_WRITE,
    Read = bindings::dma_resv_usage_DMA_RESV_USAGE_READ,
}

impl Usage {
    /// What somebody who is about to write, or only to read, has to wait for.
    ///
    /// The same as `dma_resv_usage_rw()`.
    pub(crate) fn to_wait_for(write: bool) -> Self {
        if write {
            Self::Read
        } else {
            Self::Write
        }
    }
}

/// A reservation object (`struct dma_resv`).
///
/// # Invariants
///
/// The object is initialised.
#[repr(transparent)]
pub(crate) struct Resv(Opaque<bindings::dma_resv>);

impl Resv {
    /// # Safety
    ///
    /// `ptr` must point to an initialised reservation object that outlives `'a`.
    pub(crate) unsafe fn from_raw<'a>(ptr: *mut bindings::dma_resv) -> &'a Self {
        // SAFETY: By the safety requirements; `Resv` is a transparent wrapper.
        unsafe { &*ptr.cast() }
    }

    pub(crate) fn as_raw(&self) -> *mut bindings::dma_resv {
        self.0.get()
    }

    /// Takes the lock. Sleeps; cannot be interrupted.
    ///
    /// For [`Buffer::lock`](crate::buffer::Buffer::lock), whose guard gives it back.
    pub(crate) fn acquire(&self) {
        // SAFETY: The object is initialised by the type invariant. Without an acquire context the
        // call cannot fail: there is no other lock to back off for.
        unsafe { bindings::dma_resv_lock(self.as_raw(), core::ptr::null_mut()) };
    }

    /// Takes the lock, or fails with `EINTR` when a signal arrives first.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn acquire_interruptible(&self) -> Result {
        // SAFETY: The object is initialised by the type invariant.
        to_result(unsafe {
            bindings::dma_resv_lock_interruptible(self.as_raw(), core::ptr::null_mut())
        })
    }

    /// Gives the lock back.
    ///
    /// # Safety
    ///
    /// The caller must own the lock.
    pub(crate) unsafe fn release(&self) {
        // SAFETY: By the safety requirements.
        unsafe { bindings::dma_resv_unlock(self.as_raw()) };
    }

    /// Lets lockdep check that the current context holds the lock.
    pub(crate) fn assert_held(&self) {
        // SAFETY: The object is initialised by the type invariant.
        unsafe { bindings::dma_resv_assert_held(self.as_raw()) };
    }

    /// Tells lockdep that the caller may take this lock.
    pub(crate) fn might_lock(&self) {
        // SAFETY: The object is initialised by the type invariant.
        unsafe { bindings::dma_buf_shim_might_lock(self.as_raw()) };
    }

    /// Waits, interruptibly and without a time limit, until all fences of `usage` have signalled.
    ///
    /// The lock may be held or not.
    pub(crate) fn wait(&self, usage: Usage) -> Result {
        const MAX_SCHEDULE_TIMEOUT: usize = isize::MAX as usize;

        // SAFETY: The object is initialised by the type invariant.
        let ret = unsafe {
            bindings::dma_resv_wait_timeout(self.as_raw(), usage as u32, true, MAX_SCHEDULE_TIMEOUT)
        };
        // CAST: A negative result is an error number and fits; others are no error.
        to_result(ret.min(0) as i32)
    }

    /// One fence that signals when all fences of `usage` have, or `None` where there is none.
    #[cfg(CONFIG_SYNC_FILE)]
    pub(crate) fn singleton(&self, usage: Usage) -> Result<Option<Fence>> {
        let mut fence = core::ptr::null_mut();

        // SAFETY: The object is initialised by the type invariant, and `fence` is valid for a
        // write.
        to_result(unsafe {
            bindings::dma_resv_get_singleton(self.as_raw(), usage as u32, &mut fence)
        })?;
        // SAFETY: On success the call stores NULL or a fence with a reference that is ours.
        Ok(NonNull::new(fence).map(|fence| unsafe { Fence::from_raw(fence) }))
    }
}

/// What the lock guards.
impl<'a> Locked<'a> {
    /// The fences of `usage`, each with a reference of its own.
    pub(crate) fn fences(self, usage: Usage) -> Fences<'a> {
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

    /// Makes room for `count` more fences.
    #[cfg(CONFIG_SYNC_FILE)]
    pub(crate) fn reserve_fences(self, count: u32) -> Result {
        // SAFETY: The lock is held by the type invariant.
        to_result(unsafe { bindings::dma_resv_reserve_fences(self.resv().as_raw(), count) })
    }

    /// Adds a fence.
    ///
    /// # Safety
    ///
    /// Room for it must have been made by [`Self::reserve_fences`] since the lock was taken.
    #[cfg(CONFIG_SYNC_FILE)]
    pub(crate) unsafe fn add_fence(self, fence: &Fence, usage: Usage) {
        // SAFETY: The lock is held by the type invariant, and there is room by the safety
        // requirements. The callee takes a reference of its own.
        unsafe { bindings::dma_resv_add_fence(self.resv().as_raw(), fence.as_raw(), usage as u32) };
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
/// `started` is set.
pub(crate) struct Fences<'a> {
    cursor: bindings::dma_resv_iter,
    started: bool,
    _locked: Locked<'a>,
}

impl Iterator for Fences<'_> {
    type Item = Fence;

    fn next(&mut self) -> Option<Fence> {
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
        NonNull::new(fence).map(|fence| unsafe { Fence::get(fence) })
    }
}

/// A reference to a fence (`struct dma_fence`).
///
/// Dropping it is allowed in any context in which `dma_fence_put()` is: also in interrupts.
///
/// # Invariants
///
/// Owns one reference.
pub(crate) struct Fence(NonNull<bindings::dma_fence>);

impl Fence {
    /// Takes over a reference.
    ///
    /// # Safety
    ///
    /// `fence` must be valid, and one reference to it must pass to the result.
    pub(crate) unsafe fn from_raw(fence: NonNull<bindings::dma_fence>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(fence)
    }

    /// Takes a new reference.
    ///
    /// # Safety
    ///
    /// `fence` must be valid, with a reference held by somebody for the time of the call.
    pub(crate) unsafe fn get(fence: NonNull<bindings::dma_fence>) -> Self {
        // SAFETY: The fence is valid and referenced by the safety requirements.
        unsafe { bindings::dma_fence_get(fence.as_ptr()) };
        // INVARIANT: The reference was just taken.
        Self(fence)
    }

    /// Gives the reference away.
    pub(crate) fn into_raw(self) -> *mut bindings::dma_fence {
        ManuallyDrop::new(self).0.as_ptr()
    }

    pub(crate) fn as_raw(&self) -> *mut bindings::dma_fence {
        self.0.as_ptr()
    }

    /// A fence that has signalled already.
    #[cfg(CONFIG_SYNC_FILE)]
    pub(crate) fn stub() -> Self {
        // SAFETY: No requirements. The result is a static object, so not NULL, and comes with a
        // reference that is ours.
        unsafe { Self::from_raw(NonNull::new_unchecked(bindings::dma_fence_get_stub())) }
    }

    /// The plain fences inside this one: of a chain or an array its parts, else the fence itself.
    #[cfg(CONFIG_SYNC_FILE)]
    pub(crate) fn unwrapped(&self) -> Unwrapped<'_> {
        Unwrapped {
            cursor: pin_init::zeroed(),
            head: self,
            started: false,
        }
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        // SAFETY: The reference is ours by the type invariant.
        unsafe { bindings::dma_fence_put(self.0.as_ptr()) };
    }
}

/// Iterator over the plain fences inside a fence; see [`Fence::unwrapped`].
///
/// # Invariants
///
/// The cursor is zeroed until `started` is set; then `cursor.chain` is NULL or a reference that is
/// owned.
#[cfg(CONFIG_SYNC_FILE)]
pub(crate) struct Unwrapped<'a> {
    cursor: bindings::dma_fence_unwrap,
    head: &'a Fence,
    started: bool,
}

#[cfg(CONFIG_SYNC_FILE)]
impl Iterator for Unwrapped<'_> {
    type Item = Fence;

    fn next(&mut self) -> Option<Fence> {
        if self.started && self.cursor.chain.is_null() {
            return None;
        }
        // SAFETY: `head` is referenced for as long as `self` lives, and the cursor is only ever
        // touched by these two functions, in this order.
        let fence = unsafe {
            if self.started {
                bindings::dma_fence_unwrap_next(&mut self.cursor)
            } else {
                bindings::dma_fence_unwrap_first(self.head.as_raw(), &mut self.cursor)
            }
        };

        self.started = true;
        // SAFETY: The cursor keeps a returned fence alive until the next step.
        NonNull::new(fence).map(|fence| unsafe { Fence::get(fence) })
    }
}

#[cfg(CONFIG_SYNC_FILE)]
impl Drop for Unwrapped<'_> {
    fn drop(&mut self) {
        // SAFETY: The cursor holds one reference to the container it stands in, or NULL at the
        // end and before the start; `dma_fence_put()` takes both.
        unsafe { bindings::dma_fence_put(self.cursor.chain) };
    }
}
