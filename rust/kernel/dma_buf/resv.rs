// SPDX-License-Identifier: GPL-2.0

//! Reservation objects: the lock of a buffer and the fences of the work on it.
//!
//! C header: [`include/linux/dma-resv.h`](srctree/include/linux/dma-resv.h)

use super::Fence;

use crate::{
    bindings,
    error::to_result,
    prelude::*,
    sync::aref::ARef,
    task::MAX_SCHEDULE_TIMEOUT,
    time::Jiffies,
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

use core::{
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    },
};

/// What a fence in a reservation object is for, and which fences to look at.
///
/// Corresponds to the C [`enum dma_resv_usage`]. The values nest: to look at one of them is to look
/// at all before it as well.
///
/// [`enum dma_resv_usage`]: srctree/include/linux/dma-resv.h
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Usage {
    /// Memory management of the kernel, like moving the buffer. Everybody waits for these.
    Kernel = bindings::dma_resv_usage_DMA_RESV_USAGE_KERNEL,
    /// Implicitly synchronised writes.
    Write = bindings::dma_resv_usage_DMA_RESV_USAGE_WRITE,
    /// Implicitly synchronised reads.
    Read = bindings::dma_resv_usage_DMA_RESV_USAGE_READ,
    /// Work that takes no part in implicit synchronisation. Only memory management looks at it.
    Bookkeep = bindings::dma_resv_usage_DMA_RESV_USAGE_BOOKKEEP,
}

impl Usage {
    /// What somebody who is about to write (`true`), or only to read, has to wait for.
    ///
    /// The same as `dma_resv_usage_rw()`: a writer waits for all readers and writers, a reader for
    /// writers.
    #[inline]
    pub const fn rw(write: bool) -> Self {
        if write {
            Self::Read
        } else {
            Self::Write
        }
    }
}

/// A reservation object (`struct dma_resv`).
///
/// Found through what owns it, for instance [`DmaBuf::resv`](super::DmaBuf::resv), and borrowed
/// from it: it cannot outlive the last reference.
///
/// # Invariants
///
/// The object is initialised.
///
/// # Examples
///
/// ```
/// use kernel::dma_buf::{DmaBuf, Fence, Usage};
///
/// fn add_write(buf: &DmaBuf, fence: &Fence) -> Result {
///     let locked = buf.resv().lock_interruptible()?;
///
///     locked.reserve_fences(1)?;
///     // ... start the work that `fence` stands for ...
///     locked.add_fence(fence, Usage::Write)
/// }
/// # let _: fn(&DmaBuf, &Fence) -> Result = add_write;
/// ```
#[repr(transparent)]
pub struct Resv(Opaque<bindings::dma_resv>);

// SAFETY: A reservation object belongs to no task; its lock does, which is what `ResvGuard` is for.
unsafe impl Send for Resv {}

// SAFETY: All methods that take a shared reference may run concurrently.
unsafe impl Sync for Resv {}

impl Resv {
    /// Makes a reference from a pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to an initialised `struct dma_resv` that lives for at least `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::dma_resv) -> &'a Self {
        // CAST: `Resv` is a transparent wrapper of `struct dma_resv`.
        // SAFETY: By the safety requirements.
        unsafe { &*ptr.cast() }
    }

    /// Returns the C object.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::dma_resv {
        self.0.get()
    }

    /// Takes the lock, uninterruptibly.
    ///
    /// No lock of another reservation object may be held: to take several there is
    /// [`ResvSet`](super::ResvSet).
    #[inline]
    pub fn lock(&self) -> ResvGuard<'_> {
        // SAFETY: The object is initialised by the type invariants. Without an acquire context
        // there is no other lock to back off for, so the call cannot fail.
        unsafe { bindings::dma_resv_lock(self.as_raw(), ptr::null_mut()) };
        // INVARIANT: The lock has just been taken.
        ResvGuard {
            resv: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Takes the lock, or fails with [`EINTR`] when a signal arrives first.
    #[inline]
    pub fn lock_interruptible(&self) -> Result<ResvGuard<'_>> {
        // SAFETY: The object is initialised by the type invariants.
        to_result(unsafe {
            bindings::dma_resv_lock_interruptible(self.as_raw(), ptr::null_mut())
        })?;
        // INVARIANT: The lock has just been taken: the call succeeded.
        Ok(ResvGuard {
            resv: self,
            _not_send: NotThreadSafe,
        })
    }

    /// Takes the lock if nobody has it. Does not sleep, but is for tasks, not for interrupts.
    #[inline]
    pub fn try_lock(&self) -> Option<ResvGuard<'_>> {
        // SAFETY: The object is initialised by the type invariants.
        if !unsafe { bindings::dma_resv_trylock(self.as_raw()) } {
            return None;
        }
        // INVARIANT: The lock has just been taken: the call says so.
        Some(ResvGuard {
            resv: self,
            _not_send: NotThreadSafe,
        })
    }

    /// Whether all fences of `usage` have signalled. Does not sleep; the lock may be held or not.
    #[inline]
    pub fn is_signaled(&self, usage: Usage) -> bool {
        // SAFETY: The object is initialised by the type invariants.
        unsafe { bindings::dma_resv_test_signaled(self.as_raw(), usage as u32) }
    }

    /// Waits until all fences of `usage` have signalled. The lock may be held or not.
    ///
    /// # Errors
    ///
    /// [`ERESTARTSYS`] when a signal arrives first.
    #[inline]
    pub fn wait(&self, usage: Usage) -> Result {
        // CAST: The largest time there is, which stands for "without limit", is not negative.
        self.wait_timeout(usage, MAX_SCHEDULE_TIMEOUT as Jiffies)
    }

    /// Waits, at most for `timeout`, until all fences of `usage` have signalled. The lock may be
    /// held or not. May sleep also with a `timeout` of zero.
    ///
    /// # Errors
    ///
    /// [`ETIMEDOUT`] when the time is over first, [`ERESTARTSYS`] when a signal arrives first.
    pub fn wait_timeout(&self, usage: Usage, timeout: Jiffies) -> Result {
        // CAST: Not more than the largest signed number.
        let timeout = timeout.min(MAX_SCHEDULE_TIMEOUT as Jiffies);
        // SAFETY: The object is initialised by the type invariants.
        let ret =
            unsafe { bindings::dma_resv_wait_timeout(self.as_raw(), usage as u32, true, timeout) };

        match ret {
            0 => Err(ETIMEDOUT),
            // CAST: Negative results are error numbers, which fit.
            ..0 => Err(Error::from_errno(ret as i32)),
            _ => Ok(()),
        }
    }

    /// The fences of `usage` that have not signalled, as they are now. The lock may be held or not.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub fn fences(&self, usage: Usage) -> Result<Fences> {
        let mut len = 0;
        let mut array = ptr::null_mut();

        // SAFETY: The object is initialised by the type invariants, and the two places are valid
        // for writing.
        to_result(unsafe {
            bindings::dma_resv_get_fences(self.as_raw(), usage as u32, &mut len, &mut array)
        })?;
        // INVARIANT: This is what `dma_resv_get_fences()` gives: an array from `kmalloc()`, or a
        // null pointer for none, and a reference to each fence in it.
        Ok(Fences {
            array,
            // CAST: `usize` has at least 32 bits.
            len: len as usize,
            next: 0,
        })
    }

    /// One fence that signals when all fences of `usage` have, or `None` if there is nothing to
    /// wait for. The lock may be held or not.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub fn singleton(&self, usage: Usage) -> Result<Option<ARef<Fence>>> {
        let mut fence = ptr::null_mut();

        // SAFETY: The object is initialised by the type invariants, and `fence` is valid for
        // writing.
        to_result(unsafe {
            bindings::dma_resv_get_singleton(self.as_raw(), usage as u32, &mut fence)
        })?;
        // SAFETY: The call stores null or a fence with one reference, which passes to the result.
        Ok(NonNull::new(fence).map(|fence| unsafe { ARef::from_raw(fence.cast()) }))
    }
}

/// A reservation object of one's own: what an exporter gives to several buffers, or to none.
///
/// See [`Exporter::resv`](super::Exporter::resv).
///
/// # Invariants
///
/// The object is initialised.
#[pin_data(PinnedDrop)]
pub struct OwnedResv {
    // Others have its address.
    #[pin]
    inner: Opaque<bindings::dma_resv>,
}

// SAFETY: As for `Resv`.
unsafe impl Send for OwnedResv {}

// SAFETY: As for `Resv`.
unsafe impl Sync for OwnedResv {}

impl OwnedResv {
    /// A reservation object without fences.
    pub fn new() -> impl PinInit<Self> {
        // INVARIANT: It is initialised here.
        pin_init!(Self {
            inner <- Opaque::ffi_init(|inner| {
                // SAFETY: The memory is valid for writes.
                unsafe { bindings::dma_resv_init(inner) }
            }),
        })
    }
}

impl Deref for OwnedResv {
    type Target = Resv;

    #[inline]
    fn deref(&self) -> &Resv {
        // SAFETY: By the type invariants.
        unsafe { Resv::from_raw(self.inner.get()) }
    }
}

#[pinned_drop]
impl PinnedDrop for OwnedResv {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: It is initialised by the type invariants. Who has the lock has a reference.
        unsafe { bindings::dma_resv_fini(self.inner.get()) };
    }
}

/// The lock of a reservation object; given back when dropped.
///
/// Dereferences to [`LockedResv`], which is what functions ask for that need the lock.
///
/// # Invariants
///
/// The current task has the lock of `resv`, and this is what gives it back.
#[must_use = "the lock is given back at once when the guard is not used"]
pub struct ResvGuard<'a> {
    resv: &'a Resv,
    _not_send: NotThreadSafe,
}

impl Deref for ResvGuard<'_> {
    type Target = LockedResv;

    #[inline]
    fn deref(&self) -> &LockedResv {
        // SAFETY: The current task has the lock by the type invariants, at least for as long as
        // the guard is borrowed.
        unsafe { LockedResv::from_raw(self.resv.as_raw()) }
    }
}

impl Drop for ResvGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The lock is ours to give back, by the type invariants.
        unsafe { bindings::dma_resv_unlock(self.resv.as_raw()) };
    }
}

/// A reservation object whose lock is held by the current task.
///
/// A reference to it is the proof of that. It comes from a [`ResvGuard`] or a
/// [`ResvSet`](super::ResvSet), or is an argument of a callback that runs under the lock; the
/// latter cannot give the lock back.
///
/// # Invariants
///
/// While a reference to this exists, the task that has the reference holds the lock.
#[repr(transparent)]
pub struct LockedResv {
    resv: Resv,
    _not_sync: NotThreadSafe,
}

impl LockedResv {
    /// Makes a reference from a pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to an initialised `struct dma_resv` that lives for at least `'a`, and the
    /// current task must hold its lock for as long.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::dma_resv) -> &'a Self {
        // CAST: `LockedResv` is a transparent wrapper of `Resv`, and that of `struct dma_resv`.
        // INVARIANT: By the safety requirements; the reference cannot change tasks, because the
        // type is not `Sync`.
        // SAFETY: By the safety requirements.
        unsafe { &*ptr.cast() }
    }

    /// The reservation object.
    #[inline]
    pub fn resv(&self) -> &Resv {
        &self.resv
    }

    /// Whether this is the lock of `resv`.
    #[inline]
    pub fn is_of(&self, resv: &Resv) -> bool {
        ptr::eq(self.resv.as_raw(), resv.as_raw())
    }

    /// [`EINVAL`] unless this is the lock of `resv`.
    #[inline]
    pub(super) fn expect(&self, resv: &Resv) -> Result {
        if !self.is_of(resv) {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// Makes room for `count` more fences, so that as many [`add_fence`](Self::add_fence) that
    /// follow, under the same lock, cannot fail. A fence made of others counts as all of these: see
    /// [`Fence::unwrapped`].
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub fn reserve_fences(&self, count: u32) -> Result {
        // The C side wants at least one, does not expect its sums to overflow, and warns when it
        // cannot have what is too much to ask for.
        const MAX: u32 = 1 << 18;

        if count == 0 {
            return Ok(());
        }
        if count > MAX {
            return Err(ENOMEM);
        }
        // SAFETY: The lock is held by the type invariants.
        to_result(unsafe { bindings::dma_resv_reserve_fences(self.resv.as_raw(), count) })
    }

    /// Adds a fence.
    ///
    /// A fence made of others (an array, a chain) is added in its parts. Does not sleep as long as
    /// there is room, see [`reserve_fences`](Self::reserve_fences).
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if no room was made, or if what was made is used up: by parts, or by others that
    /// were called under the same lock. Then nothing is added.
    pub fn add_fence(&self, fence: &Fence, usage: Usage) -> Result {
        // Room may have been used by whatever ran under this lock since. A second call is cheap
        // when it has not, and without room `dma_resv_add_fence()` is a crash.
        let count = fence.unwrapped().count();

        self.reserve_fences(count.try_into()?)?;
        // A chain may be shorter by now, but not longer.
        for part in fence.unwrapped().take(count) {
            // SAFETY: The lock is held by the type invariants, and there is room. The callee takes
            // a reference of its own.
            unsafe {
                bindings::dma_resv_add_fence(self.resv.as_raw(), part.as_raw(), usage as u32)
            };
        }
        Ok(())
    }
}

/// The fences of a reservation object as they were at one moment; see [`Resv::fences`].
///
/// # Invariants
///
/// `array` is an array of `len` fences, from `kmalloc()`, or null if `len` is zero. A reference to
/// each of the fences from `next` on is owned.
pub struct Fences {
    array: *mut *mut bindings::dma_fence,
    len: usize,
    next: usize,
}

// SAFETY: References to fences may be sent to another task.
unsafe impl Send for Fences {}

// SAFETY: The methods that take a shared reference only read numbers.
unsafe impl Sync for Fences {}

impl Iterator for Fences {
    type Item = ARef<Fence>;

    fn next(&mut self) -> Option<ARef<Fence>> {
        if self.next == self.len {
            return None;
        }
        // SAFETY: The index is within the array by the type invariants.
        let fence = unsafe { *self.array.add(self.next) };
        // INVARIANT: The reference of this one passes on.
        self.next += 1;
        // SAFETY: The reference is owned by the type invariants, and passes to the result.
        NonNull::new(fence).map(|fence| unsafe { ARef::from_raw(fence.cast()) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.len - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Fences {}

impl Drop for Fences {
    fn drop(&mut self) {
        for fence in self.by_ref() {
            drop(fence);
        }
        // SAFETY: The array is from `kmalloc()`, or null, by the type invariants.
        unsafe { bindings::kfree(self.array.cast()) };
    }
}
