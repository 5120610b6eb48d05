// SPDX-License-Identifier: GPL-2.0

//! Kernel threads.
//!
//! C header: [`include/linux/kthread.h`](srctree/include/linux/kthread.h)

use crate::{
    bindings,
    error::from_err_ptr,
    module::ModuleRef,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Full, //
        },
    },
    task::Task,
    time::Delta,
    types::NotThreadSafe, //
};

use core::{
    marker::PhantomData,
    ptr::{
        null_mut,
        NonNull, //
    },
};

/// What a kernel thread does.
///
/// The module that this is compiled into stays loaded for as long as the thread runs.
///
/// # Examples
///
/// ```
/// use kernel::{
///     kthread::{self, Current, Thread},
///     sync::{Arc, Completion},
///     time::Delta,
/// };
///
/// struct Ticker(Arc<Completion>);
///
/// #[vtable]
/// impl Thread for Ticker {
///     fn run(self: KBox<Self>, current: &Current) {
///         self.0.complete_all();
///         while !current.should_stop() {
///             current.sleep(Delta::from_millis(10));
///         }
///     }
/// }
///
/// # // The example is not a module.
/// # struct LocalModule;
/// # impl kernel::ModuleMetadata for LocalModule {
/// #     const NAME: &'static CStr = c"example";
/// #     const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(core::ptr::null_mut()) };
/// # }
/// let started = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
/// let ticker = KBox::new(Ticker(started.clone()), GFP_KERNEL)?;
/// let handle = kthread::spawn(c"ticker", ticker)?;
///
/// started.wait_for_completion();
/// drop(handle);
/// # Ok::<(), Error>(())
/// ```
#[vtable]
pub trait Thread: Send + Sized + 'static {
    /// Runs in the thread, in process context. The thread ends when this returns.
    ///
    /// Once it is told to stop, interruptible waits do not wait, as if there was a signal.
    fn run(self: KBox<Self>, current: &Current);
}

/// The kernel thread that is running, for what only the thread itself can do.
pub struct Current(NotThreadSafe);

impl Current {
    /// Whether somebody waits for this thread to end.
    #[inline]
    pub fn should_stop(&self) -> bool {
        // SAFETY: By construction the current task is a kernel thread.
        unsafe { bindings::kthread_should_stop() }
    }

    /// Sleeps for `time`, or less if the thread is to end.
    pub fn sleep(&self, time: Delta) {
        let mut expires = time.as_nanos();

        // The state comes first, so that a request to stop that comes after the test wakes.
        //
        // SAFETY: The current task may sleep; a thread of the kernel is in process context.
        unsafe { bindings::set_current_state(bindings::TASK_INTERRUPTIBLE) };
        if expires <= 0 || self.should_stop() {
            // SAFETY: As above.
            unsafe { bindings::set_current_state(bindings::TASK_RUNNING) };
            return;
        }
        // SAFETY: The time is valid for the call.
        unsafe {
            bindings::schedule_hrtimeout(&mut expires, bindings::hrtimer_mode_HRTIMER_MODE_REL)
        };
    }
}

/// What the thread starts from. It owns `data`, a [`KBox`] of the type that the functions are for.
struct Start {
    data: NonNull<c_void>,
    run: unsafe fn(NonNull<c_void>),
    discard: unsafe fn(NonNull<c_void>),
    _module: ModuleRef,
}

/// Where the thread finds its [`Start`], and takes it away: whoever does owns it. What a thread
/// returns does not tell whether it ran, since one that dies returns anything.
///
/// # Invariants
///
/// NULL, or from [`KBox::into_raw`] of a [`Start`] that this owns.
struct Slot(Atomic<*mut Start>);

impl Slot {
    fn take(&self) -> Option<KBox<Start>> {
        let start = self.0.xchg(null_mut(), Full);

        // INVARIANT: There is none any more.
        // SAFETY: By the type invariants it was owned, and it is taken once.
        (!start.is_null()).then(|| unsafe { KBox::from_raw(start) })
    }

    /// Drops the data of a thread that does not run, if it is still there.
    fn discard(&self) {
        if let Some(start) = self.take() {
            // SAFETY: The data is that of the function, and `run` will not get it.
            unsafe { (start.discard)(start.data) };
        }
    }
}

/// A kernel thread. Dropping this tells it to stop and waits until it has ended.
///
/// So it must not be dropped by the thread itself, or while holding what the thread waits for.
/// A thread whose handle is leaked runs until it ends by itself.
///
/// # Invariants
///
/// `task` is a kernel thread that runs `main` with `slot`, unless it is told to stop before it has
/// run.
#[must_use = "the thread is stopped when this is dropped"]
pub struct JoinHandle<T: Thread> {
    task: ARef<Task>,
    slot: KBox<Slot>,
    _type: PhantomData<KBox<T>>,
}

// SAFETY: A thread may be stopped from any other, and the data can be sent.
unsafe impl<T: Thread> Send for JoinHandle<T> {}

// SAFETY: There are no methods that take a shared reference.
unsafe impl<T: Thread> Sync for JoinHandle<T> {}

/// # Safety
///
/// `data` must be from [`KBox::into_raw`] of a `KBox<T>`, and is consumed.
unsafe fn run<T: Thread>(data: NonNull<c_void>) {
    // SAFETY: By the safety requirements.
    let data = unsafe { KBox::<T>::from_raw(data.as_ptr().cast()) };

    T::run(data, &Current(NotThreadSafe));
}

/// # Safety
///
/// `data` must be from [`KBox::into_raw`] of a `KBox<T>`, and is consumed.
unsafe fn discard<T: Thread>(data: NonNull<c_void>) {
    // SAFETY: By the safety requirements.
    drop(unsafe { KBox::<T>::from_raw(data.as_ptr().cast()) });
}

/// The function of all threads. It is not generic, so that it is in this crate, and not in the
/// module: the reference to the module ends here, with no code of the module left to run.
///
/// # Safety
///
/// `slot` must point to a [`Slot`] that is not dropped before this ends.
#[inline(never)]
unsafe extern "C" fn main(slot: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements.
    let start = unsafe { &*slot.cast::<Slot>() }.take();

    if let Some(start) = start {
        // SAFETY: The data is that of the function, and was taken with it.
        unsafe { (start.run)(start.data) };
    }
    0
}

/// Starts a thread. May sleep.
///
/// C source: `kthread_create_on_node()`.
///
/// # Errors
///
/// [`ENOMEM`]; [`EINTR`] if the current task is killed; [`ENOENT`] if the module is being unloaded.
pub fn spawn<T: Thread>(name: &CStr, thread: KBox<T>) -> Result<JoinHandle<T>> {
    let module = ModuleRef::of(run::<T> as *const ())?;
    let start = KBox::new_uninit(GFP_KERNEL)?;
    let slot = KBox::new_uninit(GFP_KERNEL)?;
    // SAFETY: The pointer of a box is not null.
    let data = unsafe { NonNull::new_unchecked(KBox::into_raw(thread)) }.cast();
    let start = KBox::write(
        start,
        Start {
            data,
            run: run::<T>,
            discard: discard::<T>,
            _module: module,
        },
    );
    // INVARIANT: This is from `KBox::into_raw()`, and owned here.
    let slot = KBox::write(slot, Slot(Atomic::new(KBox::into_raw(start))));

    // SAFETY: The function may be called with the slot: it is dropped after the thread has ended,
    // or never if the handle is leaked. The name is copied.
    let task = from_err_ptr(unsafe {
        bindings::kthread_create_on_node(
            Some(main),
            (&raw const *slot).cast_mut().cast(),
            bindings::NUMA_NO_NODE,
            c"%s".as_char_ptr(),
            name.as_char_ptr(),
        )
    })
    .inspect_err(|_| slot.discard())?;

    // SAFETY: The thread was created just now and has not run. A task is transparent.
    let task: ARef<Task> = unsafe { &*task.cast::<Task>() }.into();

    task.wake_up();
    // INVARIANT: The thread was created for it.
    Ok(JoinHandle {
        task,
        slot,
        _type: PhantomData,
    })
}

impl<T: Thread> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        // SAFETY: The task is a kernel thread by the type invariants, and the reference keeps it.
        unsafe { bindings::kthread_stop(self.task.as_ptr()) };
        self.slot.discard();
    }
}

#[cfg(CONFIG_RUST_KTHREAD_KUNIT_TEST)]
#[kunit_tests(rust_kthread)]
mod tests {
    use super::*;

    use crate::sync::{
        atomic::Relaxed,
        Arc,
        Completion, //
    };

    #[pin_data]
    struct Shared {
        #[pin]
        started: Completion,
        runs: Atomic<u32>,
        drops: Atomic<u32>,
    }

    impl Shared {
        fn new() -> Result<Arc<Self>> {
            Arc::pin_init(
                pin_init!(Self {
                    started <- Completion::new(),
                    runs: Atomic::new(0),
                    drops: Atomic::new(0),
                }),
                GFP_KERNEL,
            )
        }

        fn counts(&self) -> (u32, u32) {
            (self.runs.load(Relaxed), self.drops.load(Relaxed))
        }
    }

    #[derive(Clone, Copy)]
    enum How {
        Returns,
        /// Ends as one that oopses does: in the middle, with some number.
        #[cfg(not(CONFIG_DEBUG_KMEMLEAK))]
        Dies {
            with_data: bool,
        },
    }

    struct Tester(Arc<Shared>, How);

    impl Drop for Tester {
        fn drop(&mut self) {
            self.0.drops.fetch_add(1, Relaxed);
        }
    }

    #[vtable]
    impl Thread for Tester {
        fn run(self: KBox<Self>, current: &Current) {
            let how = self.1;

            self.0.runs.fetch_add(1, Relaxed);
            self.0.started.complete_all();
            while !current.should_stop() {
                current.sleep(Delta::from_millis(10));
            }
            match how {
                How::Returns => (),
                #[cfg(not(CONFIG_DEBUG_KMEMLEAK))]
                How::Dies { with_data } => {
                    if !with_data {
                        drop(self);
                    }
                    // SAFETY: The stack is not used again. What it has is leaked.
                    unsafe { bindings::kthread_complete_and_exit(null_mut(), 11) };
                }
            }
        }
    }

    fn run_and_stop(how: How) -> Result<(u32, u32)> {
        let shared = Shared::new()?;
        let handle = spawn(
            c"kunit",
            KBox::new(Tester(shared.clone(), how), GFP_KERNEL)?,
        )?;

        shared.started.wait_for_completion();
        drop(handle);
        Ok(shared.counts())
    }

    #[test]
    fn data_is_dropped_by_the_thread() -> Result {
        assert_eq!(run_and_stop(How::Returns)?, (1, 1));
        Ok(())
    }

    /// The number that a dead thread returns says nothing about who has the data. What was on its
    /// stack has leaked.
    #[test]
    #[cfg(not(CONFIG_DEBUG_KMEMLEAK))]
    fn data_of_a_thread_that_dies_is_not_dropped_again() -> Result {
        assert_eq!(run_and_stop(How::Dies { with_data: false })?, (1, 1));
        assert_eq!(run_and_stop(How::Dies { with_data: true })?, (1, 0));
        Ok(())
    }

    /// A thread that is stopped at once may not have come as far as to run. Either way the data is
    /// dropped once.
    #[test]
    fn data_of_a_thread_that_does_not_run_is_dropped() -> Result {
        let mut idle = 0;

        for _ in 0..100 {
            let shared = Shared::new()?;
            let data = KBox::new(Tester(shared.clone(), How::Returns), GFP_KERNEL)?;

            drop(spawn(c"kunit", data)?);
            let (runs, drops) = shared.counts();
            assert!(runs <= 1);
            assert_eq!(drops, 1);
            idle += 1 - runs;
        }
        pr_info!("{idle} of 100 threads did not run\n");
        // One processor is busy with stopping the thread before that can run.
        assert!(idle > 0 || cfg!(CONFIG_SMP));
        Ok(())
    }
}
