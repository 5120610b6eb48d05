// SPDX-License-Identifier: GPL-2.0

//! DMA fences.
//!
//! A fence tells when work on a buffer, done by hardware as a rule, is over. It goes from "not
//! signalled" to "signalled" once and never back, with success or with an error.
//!
//! The two sides of a fence are two types:
//!
//! * [`DriverFence`] is the side of the driver that does the work. There is exactly one for a
//!   fence, and nothing else in Rust can signal it. It is made from a [`FenceContext`], which
//!   stands for a queue whose work completes in order, and a [`DriverFenceAllocation`].
//! * [`Fence`] is the side of everybody else. It may be any fence in the kernel, can be waited for
//!   or observed with a [`FenceCallbackRegistration`], and is shared by reference counting.
//!
//! Drivers that make fences have to keep to the cross-driver contract in
//! [`Documentation/driver-api/dma-buf.rst`]. Rust does not check it: in particular, every fence
//! that others can see must signal in reasonable time, and code that has to run before it signals
//! must neither allocate memory with anything but `GFP_ATOMIC` nor take a lock under which somebody
//! waits for a fence.
//!
//! # No driver data in a fence
//!
//! A fence holds no data of the driver, and has no operation that calls into the driver. The last
//! reference to a fence may go in any context and long after the driver is gone, so that such data
//! would have to be dropped in hard interrupt context by code that may not be there any more. A
//! driver keeps what belongs to a fence next to its [`DriverFence`] instead.
//!
//! C header: [`include/linux/dma-fence.h`](srctree/include/linux/dma-fence.h)
//!
//! [`Documentation/driver-api/dma-buf.rst`]: srctree/Documentation/driver-api/dma-buf.rst
//!
//! # Examples
//!
//! ```
//! use kernel::{
//!     dma_buf::dma_fence::{
//!         DriverFenceAllocation,
//!         FenceContext, //
//!     },
//!     prelude::*, //
//! };
//!
//! let queue = FenceContext::new(c"my_driver", c"my_queue")?;
//!
//! // Whatever can fail is done before the work is handed to the hardware.
//! let alloc = DriverFenceAllocation::new(GFP_KERNEL)?;
//!
//! let work = queue.new_fence(alloc);
//! let fence = work.fence();
//! assert!(!fence.is_signaled());
//!
//! // In the interrupt handler, when the hardware reports that it is done.
//! work.signal(Ok(()));
//!
//! fence.wait()?;
//! assert_eq!(fence.status(), Some(Ok(())));
//! # Ok::<(), Error>(())
//! ```

use super::ModuleRef;

use crate::{
    bindings,
    container_of,
    error::to_result,
    prelude::*,
    processor::cpu_relax,
    str::CString,
    sync::{
        aref::{
            ARef,
            AlwaysRefCounted, //
        },
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        barrier::{
            smp_mb,
            Read, //
        },
        rcu,
        Refcount, //
    },
    task::MAX_SCHEDULE_TIMEOUT,
    time::Jiffies,
    types::Opaque,
    warn_on, //
};

use core::{
    mem::MaybeUninit,
    ptr::{
        self,
        NonNull, //
    },
};

/// A fence of any driver, as seen by those who wait for it.
///
/// References to a fence may be taken and given back in any context, including hard interrupt
/// context.
///
/// Wraps the kernel's [`struct dma_fence`].
///
/// # Invariants
///
/// The fence is initialised, and all instances are reference counted by their `refcount` field.
///
/// [`struct dma_fence`]: srctree/include/linux/dma-fence.h
#[repr(transparent)]
pub struct Fence(Opaque<bindings::dma_fence>);

// SAFETY: Fences belong to no thread; the last reference may be given back on any.
unsafe impl Send for Fence {}

// SAFETY: All that can be done with a shared reference is synchronised by the C side, or a read of
// a field that does not change after initialisation.
unsafe impl Sync for Fence {}

// SAFETY: By the type invariant a fence is reference counted, and `dma_fence_get()` and
// `dma_fence_put()` work on that count.
unsafe impl AlwaysRefCounted for Fence {
    #[inline]
    fn inc_ref(&self) {
        // SAFETY: The existence of a shared reference means that the count is not zero.
        unsafe { bindings::dma_fence_get(self.as_raw()) };
    }

    // The last reference may go in any context: `dma_fence_release()` calls either the `release`
    // operation of the fence, which "can be called from irq context" by its contract, or
    // `dma_fence_free()`, which is `kfree_rcu()`. It takes the spinlock of the fence only if that
    // has not signalled and has callbacks nevertheless, which it reports as the bug that it is.
    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The safety requirements guarantee that the caller owns a reference, which is
        // given back here. `Fence` is a transparent wrapper.
        unsafe { bindings::dma_fence_put(obj.cast().as_ptr()) };
    }
}

impl Fence {
    /// Creates a reference to a fence from a raw pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to an initialised fence, and somebody must hold a reference to it for all
    /// of `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::dma_fence) -> &'a Self {
        // SAFETY: The pointer is valid for `'a` by the safety requirements. `Fence` is a
        // transparent wrapper.
        //
        // INVARIANT: The fence is initialised by the safety requirements.
        unsafe { &*ptr.cast() }
    }

    /// Returns a raw pointer to the C object.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::dma_fence {
        self.0.get()
    }

    /// Returns a fence that has signalled already, without an error.
    #[inline]
    pub fn stub() -> ARef<Self> {
        // SAFETY: There are no requirements. The result is a static object that was initialised at
        // boot, so it is not NULL.
        let fence = unsafe { NonNull::new_unchecked(bindings::dma_fence_get_stub()) };

        // SAFETY: The call has taken a reference to the fence, which passes to the result. `Fence`
        // is a transparent wrapper.
        unsafe { ARef::from_raw(fence.cast()) }
    }

    /// Returns the number of the context that the fence belongs to.
    ///
    /// Fences of one context signal in the order of their [`seqno`](Self::seqno).
    #[inline]
    pub fn context(&self) -> u64 {
        // SAFETY: The fence is initialised by the type invariant; the field never changes then.
        unsafe { (*self.as_raw()).context }
    }

    /// Returns the number of the fence inside its context.
    ///
    /// Fences of C drivers may use the lower 32 bits only and wrap around.
    #[inline]
    pub fn seqno(&self) -> u64 {
        // SAFETY: The fence is initialised by the type invariant; the field never changes then.
        unsafe { (*self.as_raw()).seqno }
    }

    /// Returns whether the fence has signalled.
    ///
    /// This does not make the fence's driver work towards the signal: with the fence of a driver
    /// that is told on demand only, it may stay `false` forever unless somebody waits or registers
    /// a callback.
    ///
    /// # Context
    ///
    /// Any in which a spinlock can be taken, also a callback of the same fence. The driver of the
    /// fence may take the opportunity to signal the fence, which then runs its callbacks; those may
    /// not have returned yet when this returns `true`.
    #[inline]
    pub fn is_signaled(&self) -> bool {
        // SAFETY: The fence is initialised by the type invariant, and the shared reference means
        // that it is referenced.
        unsafe { bindings::dma_fence_is_signaled(self.as_raw()) }
    }

    /// Returns how the fence has signalled, or [`None`] if it has not yet.
    ///
    /// # Context
    ///
    /// As for [`is_signaled`](Self::is_signaled).
    #[inline]
    pub fn status(&self) -> Option<Result> {
        if !self.is_signaled() {
            return None;
        }
        // Pairs with the barrier in the signalling, which comes after the error was written. The C
        // function is not called, because it takes a lock, which may be one of the driver that is
        // gone when the fence has signalled.
        smp_mb(Read);
        // SAFETY: The fence is initialised by the type invariant, and the shared reference means
        // that it is referenced. The field does not change after the fence has signalled.
        let error = unsafe { (&raw const (*self.as_raw()).error).read_volatile() };

        Some(to_result(error))
    }

    /// Waits until the fence has signalled.
    ///
    /// It does not matter for the result whether the fence signalled with an error; see
    /// [`status`](Self::status) for that.
    ///
    /// # Errors
    ///
    /// `ERESTARTSYS` if a signal arrives first; fences with their own way to wait may have others.
    ///
    /// # Context
    ///
    /// Process context; sleeps. The caller must not hold a lock that is needed to signal the fence.
    /// Locks of reservation objects are never needed for that.
    #[inline]
    pub fn wait(&self) -> Result {
        self.wait_jiffies(MAX_SCHEDULE_TIMEOUT).map(|_| ())
    }

    /// Waits until the fence has signalled, but for no longer than `timeout`.
    ///
    /// A `timeout` of zero does not wait at all. One of [`MAX_SCHEDULE_TIMEOUT`] or more waits for
    /// as long as it takes, as [`wait`](Self::wait) does.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait), and `ETIMEDOUT` if the time ran out.
    ///
    /// # Context
    ///
    /// As for [`wait`](Self::wait), also with a `timeout` of zero.
    #[inline]
    pub fn wait_timeout(&self, timeout: Jiffies) -> Result {
        match self.wait_jiffies(timeout.try_into().unwrap_or(MAX_SCHEDULE_TIMEOUT))? {
            0 => Err(ETIMEDOUT),
            _ => Ok(()),
        }
    }

    /// Waits interruptibly; returns what is left of `timeout`, but one at least, or zero if the
    /// fence has not signalled.
    fn wait_jiffies(&self, timeout: c_long) -> Result<c_long> {
        // Without a look at the lock of the driver, which may be gone.
        if self.is_signaled() {
            return Ok(timeout.max(1));
        }
        // SAFETY: The fence is initialised by the type invariant, and the shared reference means
        // that it stays referenced. `timeout` is not negative: it is a constant, or comes from an
        // unsigned number.
        let left = unsafe { bindings::dma_fence_wait_timeout(self.as_raw(), true, timeout) };

        if left < 0 {
            // CAST: A negative result is an error number.
            return Err(Error::from_errno(left as c_int));
        }
        Ok(left)
    }

    /// Returns the plain fences that this one is made of.
    ///
    /// For a chain or an array these are the fences inside, except that a chain may leave out those
    /// that have signalled. For any other fence, it is the fence itself.
    ///
    /// # Context
    ///
    /// Does not sleep. The drivers of the fences in a chain may signal them, as with
    /// [`is_signaled`](Self::is_signaled).
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::dma_buf::dma_fence::Fence;
    ///
    /// let fence = Fence::stub();
    ///
    /// assert_eq!(fence.unwrapped().count(), 1);
    /// ```
    #[inline]
    pub fn unwrapped(&self) -> impl Iterator<Item = ARef<Fence>> + '_ {
        // INVARIANT: A zeroed cursor has a `chain` of NULL.
        Unwrapped {
            cursor: pin_init::zeroed(),
            state: UnwrapState::Start(self),
        }
    }

    /// Returns the name of the driver of the fence, for debug output.
    ///
    /// Once the fence has signalled, its driver may be gone, and the result is a fixed string.
    #[inline]
    pub fn driver_name<'a>(&'a self, _rcu: &'a rcu::Guard) -> &'a CStr {
        // SAFETY: The fence is initialised by the type invariant, and the guard is for an RCU read
        // side critical section. In there, the call returns a string that the driver must keep
        // until the fence has signalled and a grace period has passed, which is not before the end
        // of the section.
        unsafe { CStr::from_char_ptr(bindings::dma_fence_driver_name(self.as_raw())) }
    }

    /// Returns the name of the timeline of the fence, for debug output.
    ///
    /// Once the fence has signalled, its driver may be gone, and the result is a fixed string.
    #[inline]
    pub fn timeline_name<'a>(&'a self, _rcu: &'a rcu::Guard) -> &'a CStr {
        // SAFETY: As in `driver_name`.
        unsafe { CStr::from_char_ptr(bindings::dma_fence_timeline_name(self.as_raw())) }
    }
}

/// Where an [`Unwrapped`] is.
enum UnwrapState<'a> {
    /// Before the first fence inside of this one.
    Start(&'a Fence),
    /// After some fence.
    Inside,
    /// After the last fence.
    End,
}

/// Iterator over the plain fences inside a fence; see [`Fence::unwrapped`].
///
/// # Invariants
///
/// `cursor.chain` is NULL or a fence of which the cursor owns a reference. If `state` is `Inside`,
/// the cursor is at a fence that `dma_fence_unwrap_first()` or `_next()` has returned.
struct Unwrapped<'a> {
    cursor: bindings::dma_fence_unwrap,
    state: UnwrapState<'a>,
}

impl Iterator for Unwrapped<'_> {
    type Item = ARef<Fence>;

    fn next(&mut self) -> Option<ARef<Fence>> {
        let fence = match self.state {
            // SAFETY: The fence is initialised and referenced. The call overwrites the cursor,
            // which owns nothing before the start, and takes a reference of its own to the fence.
            UnwrapState::Start(head) => unsafe {
                bindings::dma_fence_unwrap_first(head.as_raw(), &mut self.cursor)
            },
            // SAFETY: The cursor is at a fence by the type invariant.
            UnwrapState::Inside => unsafe { bindings::dma_fence_unwrap_next(&mut self.cursor) },
            UnwrapState::End => return None,
        };

        // INVARIANT: The calls keep the reference in `chain`, or move it on. An empty array ends
        // the walk without them having given back the reference, so that `drop` has to do so.
        let Some(fence) = NonNull::new(fence) else {
            self.state = UnwrapState::End;
            return None;
        };
        self.state = UnwrapState::Inside;

        // SAFETY: The cursor holds a reference to the container of the fence, or the fence itself,
        // until it is moved on.
        Some(unsafe { Fence::from_raw(fence.as_ptr()) }.into())
    }
}

impl Drop for Unwrapped<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the pointer is NULL, which `dma_fence_put()` ignores, or
        // comes with a reference that is owned.
        unsafe { bindings::dma_fence_put(self.cursor.chain) };
    }
}

/// A timeline on which a driver makes fences.
///
/// There should be one for each queue of which the work completes in order: users of fences rely on
/// it that of two fences of a context, the one with the higher number does not signal first.
///
/// A context may be dropped while its fences exist. Each [`DriverFence`] holds a reference to it
/// until the fence has signalled, after which nothing needs it any more.
///
/// References to a context may be taken and given back in any context of execution, including hard
/// interrupt context.
///
/// # Invariants
///
/// All instances are in an allocation of their own made by [`KBox`], and are reference counted by
/// `refs`. Once that is zero the memory is freed after an RCU grace period.
pub struct FenceContext {
    refs: Refcount,
    number: u64,
    /// The number of the latest fence.
    seqno: Atomic<u64>,
    // Copies, as the originals may be in a module that is unloaded while the C side reads a name.
    driver: CString,
    timeline: CString,
    rcu: Opaque<bindings::callback_head>,
}

// SAFETY: Contexts belong to no thread; the last reference may be given back on any.
unsafe impl Send for FenceContext {}

// SAFETY: `rcu` is used by whoever gives back the last reference only. The other fields do not
// change or are atomic.
unsafe impl Sync for FenceContext {}

// SAFETY: By the type invariant all instances are reference counted, and live until the count is
// zero.
unsafe impl AlwaysRefCounted for FenceContext {
    #[inline]
    fn inc_ref(&self) {
        self.refs.inc();
    }

    // `call_rcu()` may be called in any context but NMIs.
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller owns a reference, so the object is valid.
        if !unsafe { &(*obj.as_ptr()).refs }.dec_and_test() {
            return;
        }

        // SAFETY: The memory is valid until `free` runs. This only computes an address.
        let rcu = unsafe { &raw const (*obj.as_ptr()).rcu };

        // SAFETY: The last reference is gone, so nobody else uses `rcu`, which is in memory that
        // `free` gives back and nobody before that. `free` is part of the kernel image.
        unsafe { bindings::call_rcu(Opaque::cast_into(rcu), Some(Self::free)) };
    }
}

impl FenceContext {
    /// Creates a timeline.
    ///
    /// The names are copied, and are for debug output.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// Process context; may sleep.
    pub fn new(driver: &CStr, timeline: &CStr) -> Result<ARef<Self>> {
        let ctx = KBox::new(
            Self {
                refs: Refcount::new(1),
                // SAFETY: There are no requirements.
                number: unsafe { bindings::dma_fence_context_alloc(1) },
                seqno: Atomic::new(0),
                driver: driver.to_cstring()?,
                timeline: timeline.to_cstring()?,
                rcu: Opaque::uninit(),
            },
            GFP_KERNEL,
        )?;

        // INVARIANT: The object is in an allocation of its own.
        //
        // SAFETY: The count starts at one, and that reference passes to the result.
        Ok(unsafe { ARef::from_raw(NonNull::from(KBox::leak(ctx))) })
    }

    /// Returns the number of the context, which is that of its fences as well.
    #[inline]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Creates a fence that has not signalled, with the next number of this timeline.
    ///
    /// The first fence has the number one. Where several threads make fences on one timeline, it is
    /// up to them to hand the work to the hardware in the order of the numbers.
    ///
    /// This cannot fail, so that it can be done after the last thing that can.
    ///
    /// # Context
    ///
    /// Any but NMIs; does not sleep and takes no locks.
    pub fn new_fence(&self, alloc: DriverFenceAllocation) -> DriverFence {
        let seqno = self.seqno.fetch_add(1, Relaxed).wrapping_add(1);
        let data = KBox::leak(alloc.0).write(FenceData {
            inner: Fence(Opaque::uninit()),
            ctx: self.into(),
        });

        // SAFETY: The memory is valid, and the operations are never freed. The name operations may
        // be called from here on already: `ctx` is set, and is referenced by the caller for now. No
        // lock means that the fence has its own.
        unsafe {
            bindings::dma_fence_init64(
                data.inner.as_raw(),
                &raw const FENCE_OPS,
                ptr::null_mut(),
                self.number,
                seqno,
            )
        };

        // INVARIANT: The fence is initialised, not signalled, and of this context.
        DriverFence {
            result: Err(ECANCELED),
            // SAFETY: The count of the fence starts at one, and that reference passes to the
            // result. The cast is to the first field of `FenceData`, which is `repr(C)`.
            fence: unsafe { ARef::from_raw(NonNull::from(data).cast()) },
            _ctx: self.into(),
        }
    }

    /// Frees a context after the grace period.
    ///
    /// # Safety
    ///
    /// For `call_rcu()` only, with the `rcu` field of a context to which there is no reference.
    unsafe extern "C" fn free(rcu: *mut bindings::callback_head) {
        // SAFETY: `rcu` is a field of a context by the safety requirements.
        let ctx = unsafe { container_of!(Opaque::cast_from(rcu), Self, rcu) };

        // SAFETY: By the type invariant the object is in an allocation made by `KBox`. There are no
        // references to it, and the grace period is over, so that no name operation is under way.
        drop(unsafe { KBox::from_raw(ctx.cast_mut()) });
    }
}

/// What is allocated for a fence of a Rust driver.
///
/// Nothing here is dropped: `dma_fence_free()` gives the memory back with `kfree_rcu()`.
///
/// # Invariants
///
/// `ctx` is valid until `inner` has signalled and an RCU grace period has passed since.
#[repr(C)]
struct FenceData {
    /// Has to be first: `kfree_rcu()` takes the address of the fence for that of the allocation.
    inner: Fence,
    ctx: NonNull<FenceContext>,
}

/// The operations of all fences of Rust drivers.
///
/// They are part of the kernel image, and never call into a driver. As there is no `wait` and no
/// `release`, the C side drops the pointer to them when the fence signals.
static FENCE_OPS: bindings::dma_fence_ops = bindings::dma_fence_ops {
    get_driver_name: Some(FenceData::driver_name),
    get_timeline_name: Some(FenceData::timeline_name),
    ..pin_init::zeroed()
};

impl FenceData {
    /// # Safety
    ///
    /// For `FENCE_OPS` only: `fence` must be the `inner` of a [`FenceData`], seen not to have
    /// signalled in the same RCU read side critical section as this call, or be in the hands of
    /// the caller who makes or signals it. The result may be used until the end of that.
    unsafe extern "C" fn driver_name(fence: *mut bindings::dma_fence) -> *const c_char {
        // SAFETY: `fence` is the first field of a `FenceData` by the safety requirements, and they
        // imply that `ctx` is valid by the type invariant. The reference is to the name only.
        unsafe { &(*(*fence.cast::<Self>()).ctx.as_ptr()).driver }.as_char_ptr()
    }

    /// # Safety
    ///
    /// As for [`FenceData::driver_name`].
    unsafe extern "C" fn timeline_name(fence: *mut bindings::dma_fence) -> *const c_char {
        // SAFETY: As in `driver_name`.
        unsafe { &(*(*fence.cast::<Self>()).ctx.as_ptr()).timeline }.as_char_ptr()
    }
}

/// Memory for a fence.
///
/// It is separate from [`FenceContext::new_fence`] so that it can be allocated where that may sleep
/// and fail, while the fence is made where neither is possible.
pub struct DriverFenceAllocation(KBox<MaybeUninit<FenceData>>);

// SAFETY: This is memory without contents.
unsafe impl Send for DriverFenceAllocation {}

// SAFETY: This is memory without contents.
unsafe impl Sync for DriverFenceAllocation {}

impl DriverFenceAllocation {
    /// Allocates memory for one fence.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// Any that `flags` allow. With `GFP_KERNEL` this must not be done in code that has to run
    /// before some fence signals, as memory reclaim may wait for fences.
    #[inline]
    pub fn new(flags: crate::alloc::Flags) -> Result<Self> {
        Ok(Self(KBox::new_uninit(flags)?))
    }
}

/// The side of a fence that signals it.
///
/// If it is dropped without a call of [`signal`](Self::signal), the fence signals with `ECANCELED`,
/// so that an early return in a driver leaves nobody waiting. Leaking it means that the fence never
/// signals. That breaks the contract for fences, and whoever waits does so forever, but it is not a
/// memory safety issue: what the fence needs is leaked as well.
///
/// # Context
///
/// [`signal`](Self::signal) and dropping are possible in any context in which a `spinlock_t` can be
/// taken, such as interrupt handlers. They take the spinlock of the fence with interrupts disabled,
/// and run the callbacks of the fence under it.
///
/// They should not be done in a [`FenceCallback`]: for lockdep, the spinlocks of all fences are the
/// same.
///
/// # Invariants
///
/// The fence was made by [`FenceContext::new_fence`] with the context `_ctx`, and has not signalled
/// before this is dropped.
#[must_use = "the fence signals with ECANCELED when this is dropped"]
pub struct DriverFence {
    /// How the fence signals when this is dropped.
    result: Result,
    fence: ARef<Fence>,
    /// Keeps [`FenceData::ctx`] valid. Has to be dropped after the fence has signalled.
    _ctx: ARef<FenceContext>,
}

impl DriverFence {
    /// Signals the fence.
    ///
    /// Waiters are woken, and callbacks called.
    ///
    /// An error is for those who ask for the [`status`](Fence::status) of the fence. The C side
    /// recommends `ENODATA` if this piece of work produced nothing, `ECANCELED` if all work of the
    /// context was cancelled, and `ETIME` if the work took too long.
    #[inline]
    pub fn signal(mut self, result: Result) {
        self.result = result;
    }

    /// Returns a new reference to the side of the fence that waits.
    #[inline]
    pub fn fence(&self) -> ARef<Fence> {
        self.fence.clone()
    }
}

impl AsRef<Fence> for DriverFence {
    #[inline]
    fn as_ref(&self) -> &Fence {
        &self.fence
    }
}

impl Drop for DriverFence {
    fn drop(&mut self) {
        if let Err(error) = self.result {
            // SAFETY: The fence is initialised. It has not signalled by the type invariant, so that
            // nobody looks at the field this writes; that no one else writes it is because there is
            // only one `DriverFence`, of which there is a mutable reference here. An `Error` is in
            // the range that the function wants.
            unsafe { bindings::dma_fence_set_error(self.fence.as_raw(), error.to_errno()) };
        }

        // SAFETY: The fence is initialised and referenced, and its context still is, too.
        //
        // INVARIANT: The reference to the context is given back only after this, and the memory of
        // the context after a grace period from then, as `FenceData` needs it.
        unsafe { bindings::dma_fence_signal(self.fence.as_raw()) };
    }
}

/// What to do when a fence signals.
///
/// # Context
///
/// The method is called by whoever signals the fence, in whatever context that is: it may be hard
/// interrupt context, and the spinlock of the fence is held, with interrupts disabled. Therefore it
///
/// * must not sleep,
/// * must not drop a [`FenceCallbackRegistration`],
/// * should leave other fences alone, and neither signal nor drop them: they may share a spinlock
///   with this one, and for lockdep many do,
/// * should take little time, and hand everything else to a work item.
///
/// It borrows the object, and nothing is dropped after it.
#[vtable]
pub trait FenceCallback: Send + Sync + 'static {
    /// Called once, when the fence has signalled.
    fn on_signal(&self);
}

/// A callback that is registered with a fence.
///
/// When this is dropped, the callback is taken back if it has not been called, and a call that is
/// under way is waited for. So the callback is not called, nor running, any more when drop returns,
/// and the [`FenceCallback`] object is dropped where the registration is.
///
/// The registration also keeps the fence alive, and the module that the callback is compiled into
/// loaded: it has to be dropped before that module can be unloaded, also if the callback has been
/// called.
///
/// # Context
///
/// A registration may be made and dropped in any context where a spinlock can be taken and the `T`
/// can be dropped, but not in a [`FenceCallback`].
///
/// # Invariants
///
/// `cb` was added to `fence` by `dma_fence_add_callback()`, with the function `Self::call`, and
/// has not been removed.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma_buf::dma_fence::{
///         DriverFenceAllocation,
///         FenceCallback,
///         FenceCallbackRegistration,
///         FenceContext, //
///     },
///     prelude::*,
///     sync::{
///         Arc,
///         Completion, //
///     }, //
/// };
///
/// struct Notify(Arc<Completion>);
///
/// #[vtable]
/// impl FenceCallback for Notify {
///     fn on_signal(&self) {
///         self.0.complete_all();
///     }
/// }
///
/// let work = FenceContext::new(c"my_driver", c"my_queue")?
///     .new_fence(DriverFenceAllocation::new(GFP_KERNEL)?);
///
/// let done = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
/// let registration = KBox::pin_init(
///     FenceCallbackRegistration::new(work.fence(), Notify(done.clone())),
///     GFP_KERNEL,
/// )?;
///
/// work.signal(Ok(()));
/// done.wait_for_completion();
/// drop(registration);
/// # Ok::<(), Error>(())
/// ```
#[pin_data(PinnedDrop)]
pub struct FenceCallbackRegistration<T: FenceCallback> {
    // Pinned, as it is part of a list while the fence has not signalled.
    #[pin]
    cb: Opaque<bindings::dma_fence_cb>,
    callback: T,
    fence: ARef<Fence>,
    /// The callback has been called, and has returned.
    done: Atomic<bool>,
    // The fields are dropped in this order. This one has to be last, as the drop code of `T` is in
    // the module, too. So is the code that drops this object, and it runs on for a few instructions
    // after that. As with any `module_put(THIS_MODULE)`, what makes that safe cannot be this
    // reference; it has to be what lets the code run in the first place, such as an open file, or a
    // work item that is flushed when the module exits.
    _module: ModuleRef,
}

// SAFETY: `cb` is only used under the spinlock of the fence, from whatever thread, and `T` is
// `Send`.
unsafe impl<T: FenceCallback> Send for FenceCallbackRegistration<T> {}

// SAFETY: A shared reference gives access to `T`, which is `Sync`, and to the fence.
unsafe impl<T: FenceCallback> Sync for FenceCallbackRegistration<T> {}

impl<T: FenceCallback> FenceCallbackRegistration<T> {
    /// Registers `callback` with `fence`.
    ///
    /// It may be called before the initialiser returns.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the fence has signalled already. The callback is not called then, but dropped.
    /// `ENODEV` if the module that the callback is compiled into is being unloaded.
    pub fn new(fence: ARef<Fence>, callback: T) -> impl PinInit<Self, Error> {
        try_pin_init!(&this in Self {
            // The error must not look like that of a fence that has signalled.
            _module: ModuleRef::of(Self::call as *const ()).map_err(|_| ENODEV)?,
            fence,
            callback,
            done: Atomic::new(false),
            cb: Opaque::uninit(),
            _: {
                // SAFETY: This only computes an address in memory that is valid.
                let cb = unsafe { &raw const (*this.as_ptr()).cb };

                // INVARIANT: If this succeeds, the callback has been added. If it fails, it has
                // not, and there is no instance of the type.
                //
                // SAFETY:
                // - The fence is initialised and referenced, for as long as this object lives.
                // - `cb` is pinned, and removed before its memory becomes invalid.
                // - All fields are initialised, so the callback may be called at once.
                // - The code of the function is there for as long as `_module` is.
                to_result(unsafe {
                    bindings::dma_fence_add_callback(
                        (*this.as_ptr()).fence.as_raw(),
                        Opaque::cast_into(cb),
                        Some(Self::call),
                    )
                })?;
            },
        })
    }

    /// Returns the callback object.
    #[inline]
    pub fn callback(&self) -> &T {
        &self.callback
    }

    /// Returns the fence.
    #[inline]
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// # Safety
    ///
    /// For `dma_fence_add_callback()` only: `cb` must be the field of a registration that is
    /// initialised, and the spinlock of the fence must be held.
    unsafe extern "C" fn call(_fence: *mut bindings::dma_fence, cb: *mut bindings::dma_fence_cb) {
        // SAFETY: `cb` is a field of a registration by the safety requirements.
        let this = unsafe { container_of!(Opaque::cast_from(cb), Self, cb) };

        // SAFETY: The registration is initialised. It stays so until `done` is set: before that,
        // dropping it takes the spinlock that is held here, before it drops any field; where there
        // are no spinlocks, see `callback_depth`.
        let this = unsafe { &*this };

        callback_depth::enter();
        this.callback.on_signal();
        callback_depth::leave();
        // Nothing of the registration is touched after this, by the C side neither.
        this.done.store(true, Release);
    }
}

#[pinned_drop]
impl<T: FenceCallback> PinnedDrop for FenceCallbackRegistration<T> {
    fn drop(self: Pin<&mut Self>) {
        callback_depth::assert_zero();

        // The spinlock may be one of the fence's driver, which may free it when the fence has
        // signalled, and a grace period has passed. The one who signals is a reader, too: so as
        // long as the callback has not returned, no grace period passes here.
        let _rcu = rcu::read_lock();

        if self.done.load(Acquire) {
            return;
        }

        // Whoever signals a fence runs all its callbacks under the spinlock of the fence, and
        // unlinks each one right before calling it. As this call takes the same spinlock, it
        // - either comes first and finds the callback in the list, from which it takes it, so that
        //   it will not be called,
        // - or comes after all callbacks, this one included, have returned, and does nothing.
        //
        // Because of the latter it is needed even if the fence is known to have signalled: it waits
        // for a callback that is running on another CPU.
        //
        // SAFETY: The fence is referenced, and the callback was added to it by the type invariant.
        // The spinlock is there, as shown above.
        unsafe { bindings::dma_fence_remove_callback(self.fence.as_raw(), self.cb.get()) };
    }
}

/// Keeps a callback from dropping registrations on kernels without spinlocks.
///
/// To drop a registration in a callback of the same fence is a deadlock, as it needs the spinlock
/// under which the callback runs. But on a uniprocessor kernel that spinlock does not exist: the
/// drop would go on to free the object of the callback that is running, or the one that the C side
/// will go on to next. As safe code must not be able to do that, it has to hang there as well.
mod callback_depth {
    use super::*;

    /// Whether spinlocks do nothing but disable preemption.
    const NO_SPINLOCKS: bool = cfg!(not(any(CONFIG_SMP, CONFIG_PREEMPT_RT)));

    /// How many callbacks are being called.
    ///
    /// If this is not zero, the current code was called by a callback, or has interrupted one: as
    /// there is just one CPU and callbacks are called with interrupts disabled, no other code runs.
    static DEPTH: Atomic<i32> = Atomic::new(0);

    #[inline]
    pub(super) fn enter() {
        if NO_SPINLOCKS {
            DEPTH.add(1, Relaxed);
        }
    }

    #[inline]
    pub(super) fn leave() {
        if NO_SPINLOCKS {
            DEPTH.add(-1, Relaxed);
        }
    }

    /// Does not return if called in a callback.
    #[inline]
    pub(super) fn assert_zero() {
        if NO_SPINLOCKS && warn_on!(DEPTH.load(Relaxed) != 0) {
            loop {
                cpu_relax();
            }
        }
    }
}

#[cfg(CONFIG_RUST_DMA_BUF_KUNIT_TEST)]
#[kunit_tests(rust_dma_fence)]
mod tests {
    use super::*;
    use crate::{
        sync::{
            Arc,
            Completion, //
        },
        workqueue, //
    };

    fn new_context() -> Result<ARef<FenceContext>> {
        FenceContext::new(c"rust_kunit", c"rust_kunit_timeline")
    }

    fn new_fence(ctx: &FenceContext) -> Result<DriverFence> {
        Ok(ctx.new_fence(DriverFenceAllocation::new(GFP_KERNEL)?))
    }

    /// Counts its calls, in a place that outlives it.
    struct Count(Arc<Atomic<u32>>);

    #[vtable]
    impl FenceCallback for Count {
        fn on_signal(&self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    impl Drop for Count {
        fn drop(&mut self) {
            self.0.fetch_add(100, Relaxed);
        }
    }

    fn new_count() -> Result<Arc<Atomic<u32>>> {
        Ok(Arc::new(Atomic::new(0), GFP_KERNEL)?)
    }

    fn register(
        fence: ARef<Fence>,
        count: &Arc<Atomic<u32>>,
    ) -> Result<Pin<KBox<FenceCallbackRegistration<Count>>>> {
        KBox::pin_init(
            FenceCallbackRegistration::new(fence, Count(count.clone())),
            GFP_KERNEL,
        )
    }

    #[test]
    fn signal_ok() -> Result {
        let driver = new_fence(&*new_context()?)?;
        let fence = driver.fence();

        assert!(!fence.is_signaled());
        assert!(fence.status().is_none());
        driver.signal(Ok(()));
        assert!(fence.is_signaled());
        assert_eq!(fence.status(), Some(Ok(())));
        fence.wait()
    }

    #[test]
    fn signal_error() -> Result {
        let driver = new_fence(&*new_context()?)?;
        let fence = driver.fence();

        driver.signal(Err(EIO));
        assert!(fence.is_signaled());
        assert_eq!(fence.status(), Some(Err(EIO)));
        // An error of the fence is none of the wait.
        fence.wait()
    }

    #[test]
    fn drop_cancels() -> Result {
        let driver = new_fence(&*new_context()?)?;
        let fence = driver.fence();

        drop(driver);
        assert_eq!(fence.status(), Some(Err(ECANCELED)));
        Ok(())
    }

    #[test]
    fn wait_timeout() -> Result {
        let driver = new_fence(&*new_context()?)?;
        let fence = driver.fence();

        assert_eq!(fence.wait_timeout(0), Err(ETIMEDOUT));
        assert_eq!(fence.wait_timeout(2), Err(ETIMEDOUT));
        driver.signal(Ok(()));
        assert_eq!(fence.wait_timeout(0), Ok(()));
        assert_eq!(fence.wait_timeout(2), Ok(()));
        assert_eq!(fence.wait_timeout(Jiffies::MAX), Ok(()));
        Ok(())
    }

    #[test]
    fn signal_on_another_thread() -> Result {
        let driver = new_fence(&*new_context()?)?;
        let fence = driver.fence();

        workqueue::system_unbound().try_spawn(GFP_KERNEL, move || driver.signal(Err(ENODATA)))?;
        fence.wait()?;
        assert_eq!(fence.status(), Some(Err(ENODATA)));
        Ok(())
    }

    #[test]
    fn numbers() -> Result {
        let (one, two) = (new_context()?, new_context()?);

        assert!(one.number() != two.number());
        for n in 1..=3 {
            for ctx in [&one, &two] {
                let driver = new_fence(ctx)?;
                let fence: &Fence = driver.as_ref();

                assert_eq!(fence.context(), ctx.number());
                assert_eq!(fence.seqno(), n);
            }
        }
        Ok(())
    }

    #[test]
    fn unused_allocation() -> Result {
        drop(DriverFenceAllocation::new(GFP_KERNEL)?);
        Ok(())
    }

    #[test]
    fn names() -> Result {
        let driver = new_fence(&*new_context()?)?;
        let fence = driver.fence();

        {
            let guard = rcu::read_lock();

            assert!(fence.driver_name(&guard) == c"rust_kunit");
            assert!(fence.timeline_name(&guard) == c"rust_kunit_timeline");
        }
        driver.signal(Ok(()));
        {
            let guard = rcu::read_lock();

            assert!(fence.driver_name(&guard) != c"rust_kunit");
            assert!(fence.timeline_name(&guard) != c"rust_kunit_timeline");
        }
        Ok(())
    }

    #[test]
    fn fence_outlives_its_makers() -> Result {
        let ctx = new_context()?;
        let number = ctx.number();
        let driver = new_fence(&ctx)?;
        let fence = driver.fence();

        drop(ctx);
        driver.signal(Ok(()));
        rcu::rcu_barrier();

        assert_eq!(fence.context(), number);
        assert_eq!(fence.seqno(), 1);
        assert_eq!(fence.status(), Some(Ok(())));
        assert!(!fence.driver_name(&rcu::read_lock()).is_empty());
        Ok(())
    }

    #[test]
    fn stub() -> Result {
        let fence = Fence::stub();

        assert!(fence.is_signaled());
        assert_eq!(fence.status(), Some(Ok(())));
        fence.wait()
    }

    #[test]
    fn unwrapped_plain_fence() -> Result {
        let driver = new_fence(&*new_context()?)?;
        let fence = driver.fence();
        let mut unwrapped = fence.unwrapped();

        assert!(unwrapped
            .next()
            .is_some_and(|inner| inner.as_raw() == fence.as_raw()));
        assert!(unwrapped.next().is_none());
        assert!(unwrapped.next().is_none());
        drop(unwrapped);

        // Not started, and stopped in the middle.
        drop(fence.unwrapped());
        assert!(fence.unwrapped().next().is_some());
        Ok(())
    }

    #[test]
    fn callback_runs_once() -> Result {
        let driver = new_fence(&*new_context()?)?;
        let count = new_count()?;
        let registration = register(driver.fence(), &count)?;

        assert_eq!(count.load(Relaxed), 0);
        driver.signal(Ok(()));
        assert_eq!(count.load(Relaxed), 1);
        assert_eq!(registration.callback().0.load(Relaxed), 1);
        assert!(registration.fence().is_signaled());

        // Dropped together with the registration, and not earlier.
        drop(registration);
        assert_eq!(count.load(Relaxed), 101);
        Ok(())
    }

    #[test]
    fn several_callbacks() -> Result {
        let driver = new_fence(&*new_context()?)?;
        let count = new_count()?;
        let first = register(driver.fence(), &count)?;
        let second = register(driver.fence(), &count)?;
        let third = register(driver.fence(), &count)?;

        drop(second);
        assert_eq!(count.load(Relaxed), 100);
        drop(driver);
        assert_eq!(count.load(Relaxed), 102);
        drop(first);
        drop(third);
        assert_eq!(count.load(Relaxed), 302);
        Ok(())
    }

    #[test]
    fn callback_not_called_after_drop() -> Result {
        let driver = new_fence(&*new_context()?)?;
        let count = new_count()?;

        drop(register(driver.fence(), &count)?);
        assert_eq!(count.load(Relaxed), 100);
        driver.signal(Ok(()));
        assert_eq!(count.load(Relaxed), 100);
        Ok(())
    }

    #[test]
    fn callback_too_late() -> Result {
        let count = new_count()?;

        assert_eq!(register(Fence::stub(), &count).err(), Some(ENOENT));
        // It was dropped, but not called.
        assert_eq!(count.load(Relaxed), 100);
        Ok(())
    }

    #[test]
    fn callback_keeps_fence() -> Result {
        let driver = new_fence(&*new_context()?)?;
        let count = new_count()?;
        let registration = register(driver.fence(), &count)?;

        drop(driver);
        assert_eq!(registration.fence().status(), Some(Err(ECANCELED)));
        assert_eq!(count.load(Relaxed), 1);
        Ok(())
    }

    struct Notify(Arc<Completion>);

    #[vtable]
    impl FenceCallback for Notify {
        fn on_signal(&self) {
            self.0.complete_all();
        }
    }

    #[test]
    fn callback_on_another_thread() -> Result {
        let driver = new_fence(&*new_context()?)?;
        let done = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
        let registration = KBox::pin_init(
            FenceCallbackRegistration::new(driver.fence(), Notify(done.clone())),
            GFP_KERNEL,
        )?;

        workqueue::system_unbound().try_spawn(GFP_KERNEL, move || driver.signal(Ok(())))?;
        done.wait_for_completion();
        // The callback may still be on its way out, which dropping has to wait for.
        drop(registration);
        Ok(())
    }
}
