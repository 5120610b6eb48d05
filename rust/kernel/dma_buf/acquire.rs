// SPDX-License-Identifier: GPL-2.0

//! The locks of several reservation objects at a time, as a submission to a GPU needs them.
//!
//! C headers: [`include/linux/dma-resv.h`](srctree/include/linux/dma-resv.h),
//! [`include/linux/ww_mutex.h`](srctree/include/linux/ww_mutex.h)

use super::{
    LockedResv,
    Resv, //
};

use crate::{
    bindings,
    error::to_result,
    prelude::*,
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

/// The locks of several reservation objects. Given back when dropped.
///
/// They are taken in any order: who would deadlock with somebody who takes several as well gives
/// back what it has, waits for the other one, and begins again. The older one goes first.
///
/// # Invariants
///
/// `ctx` is initialised, and the current task has the locks of `locked` with it, each once.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma_buf::{DmaBuf, Fence, ResvSet, Usage},
///     sync::aref::ARef,
/// };
///
/// fn submit(bufs: &[ARef<DmaBuf>], start: impl FnOnce() -> ARef<Fence>) -> Result {
///     let set = ResvSet::lock_interruptible(bufs.iter().map(|buf| buf.resv()))?;
///
///     for locked in set.iter() {
///         locked.reserve_fences(1)?;
///     }
///
///     let fence = start();
///
///     for locked in set.iter() {
///         locked.add_fence(&fence, Usage::Write)?;
///     }
///     Ok(())
/// }
/// # let _: fn(&[ARef<DmaBuf>], fn() -> ARef<Fence>) -> Result = submit;
/// ```
#[must_use = "the locks are given back at once when the set is not used"]
pub struct ResvSet<'a> {
    // In memory of its own, as locks have pointers to it.
    ctx: KBox<Opaque<bindings::ww_acquire_ctx>>,
    locked: KVec<&'a Resv>,
    _not_send: NotThreadSafe,
}

impl<'a> ResvSet<'a> {
    /// Takes the locks. One that comes twice is taken once.
    ///
    /// May sleep. The current task must have no lock of a reservation object.
    ///
    /// # Errors
    ///
    /// [`EINTR`] when a signal arrives first, [`ENOMEM`].
    pub fn lock_interruptible(resvs: impl IntoIterator<Item = &'a Resv>) -> Result<Self> {
        let mut all = KVec::new();

        for resv in resvs {
            all.push(resv, GFP_KERNEL)?;
        }

        let locked = KVec::with_capacity(all.len(), GFP_KERNEL)?;
        let ctx = KBox::new(Opaque::uninit(), GFP_KERNEL)?;

        // SAFETY: The memory is valid, and stays so, at its place, until `ww_acquire_fini()`.
        unsafe { bindings::ww_acquire_init(ctx.get(), &raw mut bindings::reservation_ww_class) };

        // INVARIANT: It was initialised just now, and there are no locks.
        let mut this = Self {
            ctx,
            locked,
            _not_send: NotThreadSafe,
        };
        let mut contended = None;

        while let Some(resv) = this.try_all(&all, contended)? {
            this.unlock();
            contended = Some(resv);
        }
        // SAFETY: The context is initialised. No lock is taken with it from here on.
        unsafe { bindings::ww_acquire_done(this.ctx.get()) };
        Ok(this)
    }

    /// Takes all locks, `first` first, for which the others were given back. If that has to be done
    /// again, returns for which.
    fn try_all(&mut self, all: &[&'a Resv], first: Option<&'a Resv>) -> Result<Option<&'a Resv>> {
        if let Some(resv) = first {
            // SAFETY: The object is initialised, and none is locked with the context.
            to_result(unsafe {
                bindings::dma_resv_lock_slow_interruptible(resv.as_raw(), self.ctx.get())
            })?;
            self.push(resv)?;
        }
        for resv in all {
            // SAFETY: The object and the context are initialised.
            let result = to_result(unsafe {
                bindings::dma_resv_lock_interruptible(resv.as_raw(), self.ctx.get())
            });

            match result {
                Ok(()) => self.push(resv)?,
                // It is in the set already.
                Err(EALREADY) => (),
                Err(EDEADLK) => return Ok(Some(resv)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Notes a lock that was taken just now. There is room for all.
    fn push(&mut self, resv: &'a Resv) -> Result {
        // INVARIANT: The caller has taken it.
        self.locked.push(resv, GFP_KERNEL).inspect_err(|_| {
            // SAFETY: The lock was taken just now.
            unsafe { bindings::dma_resv_unlock(resv.as_raw()) };
        })?;
        Ok(())
    }

    fn unlock(&mut self) {
        while let Some(resv) = self.locked.pop() {
            // SAFETY: The lock is ours by the type invariants, and is not in the set any more.
            unsafe { bindings::dma_resv_unlock(resv.as_raw()) };
        }
    }

    /// All of the locks, as proofs that they are held.
    pub fn iter(&self) -> impl Iterator<Item = &LockedResv> {
        self.locked.iter().map(|resv| {
            // SAFETY: The lock is held by the type invariants, at least for as long as `self` is
            // borrowed.
            unsafe { LockedResv::from_raw(resv.as_raw()) }
        })
    }

    /// The proof that the lock of `resv` is held, if it is one of them.
    pub fn get(&self, resv: &Resv) -> Option<&LockedResv> {
        self.iter().find(|locked| locked.is_of(resv))
    }
}

impl Drop for ResvSet<'_> {
    fn drop(&mut self) {
        self.unlock();
        // SAFETY: The context is initialised by the type invariants, and no lock is held with it.
        unsafe { bindings::ww_acquire_fini(self.ctx.get()) };
    }
}
