// SPDX-License-Identifier: GPL-2.0

//! Polling for the implicit fences of a buffer.
//!
//! `EPOLLIN` is reported when all writers are done, `EPOLLOUT` when everybody is. There is one slot
//! per direction in `struct dma_buf`; who finds it free claims it and leaves it, together with a
//! reference to the buffer, to a callback of the first fence that is pending. Who finds it busy is
//! woken by that callback, and looks again.

use crate::buffer::{
    Buffer,
    Locked, //
};

use kernel::{
    bindings,
    dma_buf::{
        Fence,
        Usage, //
    },
    sync::{
        aref::ARef,
        lock::{
            spinlock::SpinLockIrqBackend,
            Lock, //
        }, //
    }, //
};

use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};

/// What somebody polls for.
#[derive(Copy, Clone)]
enum Want {
    In,
    Out,
}

impl Want {
    fn mask(self) -> u32 {
        match self {
            Self::In => bindings::EPOLLIN,
            Self::Out => bindings::EPOLLOUT,
        }
    }

    fn usage(self) -> Usage {
        match self {
            Self::In => Usage::rw(false),
            Self::Out => Usage::rw(true),
        }
    }

    /// # Safety
    ///
    /// `buf` must point to a buffer.
    unsafe fn slot(self, buf: *mut bindings::dma_buf) -> *mut Slot {
        // SAFETY: The fields are inside a buffer; only their address is taken.
        unsafe {
            match self {
                Self::In => &raw mut (*buf).cb_in,
                Self::Out => &raw mut (*buf).cb_out,
            }
        }
    }
}

type Slot = bindings::dma_buf_dma_buf_poll_cb_t;

/// The lock of the wait queue; it guards `active` of both slots.
///
/// # Safety
///
/// `buf` must point to a buffer that is not released before the end of `'a`.
unsafe fn queue_lock<'a>(buf: *mut bindings::dma_buf) -> &'a Lock<(), SpinLockIrqBackend> {
    // SAFETY: The wait queue was initialised with the buffer and lives as long.
    unsafe { Lock::from_raw(&raw mut (*buf).poll.lock) }
}

/// Whether a callback is still to come. Such a callback holds a reference, so after the last one is
/// gone the answer is no.
///
/// # Safety
///
/// `buf` must point to a buffer that is not released meanwhile. Its file may be gone.
pub(crate) unsafe fn is_pending(buf: *mut bindings::dma_buf) -> bool {
    // SAFETY: By the safety requirements; `active` is read with the lock held.
    unsafe {
        let _guard = queue_lock(buf).lock();

        (*Want::In.slot(buf)).active != 0 || (*Want::Out.slot(buf)).active != 0
    }
}

/// A claimed slot.
///
/// Dropping it gives the slot back and wakes the pollers, then drops the reference to the buffer.
/// That is allowed in any context.
///
/// # Invariants
///
/// `active` of the slot is set, on behalf of this value alone.
struct Claim {
    buf: ARef<Buffer>,
    want: Want,
}

impl Claim {
    /// Claims a slot, unless it is busy.
    fn new(buf: &Buffer, want: Want) -> Option<Self> {
        let raw = buf.as_raw();

        // SAFETY: The buffer is valid, and `active` is used with the lock held.
        unsafe {
            let _guard = queue_lock(raw).lock();
            let slot = want.slot(raw);

            if (*slot).active != 0 {
                return None;
            }
            (*slot).active = want.mask();
            // INVARIANT: Just set.
            Some(Self {
                buf: buf.into(),
                want,
            })
        }
    }

    /// Leaves the claim to a callback of `fence`, or gives it back if that has signalled.
    fn wait_for(self, fence: ARef<Fence>) -> Result<(), Self> {
        let this = ManuallyDrop::new(self);

        // SAFETY: The callback structure is in the slot that is ours, so not in use. It stays valid
        // because the callback owns the reference to the buffer that `this` does not drop.
        let ret = unsafe {
            bindings::dma_fence_add_callback(
                fence.as_raw(),
                &raw mut (*this.want.slot(this.buf.as_raw())).cb,
                Some(fence_signaled),
            )
        };
        if ret == 0 {
            // The callback owns the fence as well.
            let _ = ARef::into_raw(fence);
            Ok(())
        } else {
            Err(ManuallyDrop::into_inner(this))
        }
    }

    /// The fence and the claim that [`Self::wait_for`] left to the callback.
    ///
    /// # Safety
    ///
    /// Must be called once, by the callback, with its arguments.
    unsafe fn from_callback(
        fence: *mut bindings::dma_fence,
        cb: *mut bindings::dma_fence_cb,
    ) -> (ARef<Fence>, Self) {
        let slot: *mut Slot = cb.cast();

        // INVARIANT: The slot was claimed by the value that `wait_for()` left.
        // SAFETY: The callback structure is the first field of a slot, which points to the queue in
        // its buffer. `wait_for()` left a reference to the buffer, and one to the fence.
        unsafe {
            let buf = kernel::container_of!((*slot).poll, bindings::dma_buf, poll);
            let want = if core::ptr::eq(slot, Want::In.slot(buf)) {
                Want::In
            } else {
                Want::Out
            };

            (
                ARef::from_raw(NonNull::new_unchecked(fence.cast())),
                Self {
                    buf: ARef::from_raw(NonNull::new_unchecked(buf.cast())),
                    want,
                },
            )
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let raw = self.buf.as_raw();

        // SAFETY: The buffer is referenced. The lock of the queue is held, which the call wants,
        // and the slot is ours.
        unsafe {
            let _guard = queue_lock(raw).lock();

            bindings::__wake_up_locked_key(
                &raw mut (*raw).poll,
                bindings::TASK_NORMAL,
                self.want.mask() as usize as *mut core::ffi::c_void,
            );
            (*self.want.slot(raw)).active = 0;
        }
    }
}

/// Runs with interrupts off and the lock of the fence held, wherever the fence signals.
///
/// # Safety
///
/// Called once, by the fence that [`Claim::wait_for`] gave it to.
unsafe extern "C" fn fence_signaled(
    fence: *mut bindings::dma_fence,
    cb: *mut bindings::dma_fence_cb,
) {
    // The fence goes first, the reference to the buffer last.
    // SAFETY: The arguments are those of this callback.
    drop(unsafe { Claim::from_callback(fence, cb) });
}

/// Whether nothing is in the way of `want`; else a wake-up is to come.
fn is_ready(locked: Locked<'_>, want: Want) -> bool {
    let Some(mut claim) = Claim::new(locked.buffer(), want) else {
        return false;
    };

    // SAFETY: No room for fences is made here.
    for fence in unsafe { locked.fences(want.usage()) } {
        match claim.wait_for(fence) {
            Ok(()) => return false,
            Err(back) => claim = back,
        }
    }
    // Dropping the claim wakes whoever found the slot busy meanwhile.
    true
}

/// The poll operation: which of `EPOLLIN` and `EPOLLOUT` hold.
///
/// # Safety
///
/// `file` must be the file of `buf`, which is referenced, and `table` what the poll operation was
/// called with.
pub(crate) unsafe fn poll(
    buf: &Buffer,
    file: *mut bindings::file,
    table: *mut bindings::poll_table_struct,
) -> u32 {
    // SAFETY: By the safety requirements. The queue lives as long as the file.
    let requested = unsafe {
        bindings::poll_wait(file, &raw mut (*buf.as_raw()).poll, table);
        bindings::poll_requested_events(table)
    };
    let mut events = requested & (Want::In.mask() | Want::Out.mask());
    if events == 0 {
        return 0;
    }

    let guard = buf.lock();
    for want in [Want::Out, Want::In] {
        if events & want.mask() != 0 && !is_ready(guard.held(), want) {
            events &= !want.mask();
        }
    }
    events
}
