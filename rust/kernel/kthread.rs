// SPDX-License-Identifier: GPL-2.0

//! Kernel threads.
//!
//! C header: [`include/linux/kthread.h`](srctree/include/linux/kthread.h)

use crate::{
    bindings,
    error::from_err_ptr,
    module::ModuleRef,
    prelude::*,
    sync::aref::ARef,
    task::Task,
    time::Delta,
    types::NotThreadSafe, //
};

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// What a kernel thread does.
///
/// The module that implements this stays loaded for as long as the thread runs; but not a module
/// whose initialisation fails, which must have dropped its handles by then.
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

/// A kernel thread. Dropping this tells it to stop and waits until it has ended.
///
/// So it must not be dropped by the thread itself, or while holding what the thread waits for.
/// A thread whose handle is leaked runs until it ends by itself.
///
/// # Invariants
///
/// `task` is a kernel thread that runs `main` with `start`, which it owns unless it is told to
/// stop before it has run.
#[must_use = "the thread is stopped when this is dropped"]
pub struct JoinHandle<T: Thread> {
    task: ARef<Task>,
    start: NonNull<Start>,
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
/// `start` must be from [`KBox::into_raw`] of a [`Start`], and is consumed.
#[inline(never)]
unsafe extern "C" fn main(start: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements.
    let start = unsafe { KBox::<Start>::from_raw(start.cast()) };

    // SAFETY: The data is that of the function.
    unsafe { (start.run)(start.data) };
    drop(start);
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
    let module = ModuleRef::get::<T::OwnerModule>()?;
    let start = KBox::new_uninit(GFP_KERNEL)?;
    // SAFETY: The pointer of a box is not null.
    let data = unsafe { NonNull::new_unchecked(KBox::into_raw(thread)) }.cast();
    let start = NonNull::from(KBox::leak(KBox::write(
        start,
        Start {
            data,
            run: run::<T>,
            discard: discard::<T>,
            _module: module,
        },
    )));

    // SAFETY: The function may be called with the data, once. The name is copied.
    let task = from_err_ptr(unsafe {
        bindings::kthread_create_on_node(
            Some(main),
            start.as_ptr().cast(),
            bindings::NUMA_NO_NODE,
            c"%s".as_char_ptr(),
            name.as_char_ptr(),
        )
    })
    .inspect_err(|_| {
        // SAFETY: There is no thread, so it is still ours, and `data` is of this type.
        unsafe {
            let start = KBox::from_raw(start.as_ptr());

            (start.discard)(start.data);
        }
    })?;

    // SAFETY: The thread was created just now and has not run. A task is transparent.
    let task: ARef<Task> = unsafe { &*task.cast::<Task>() }.into();

    task.wake_up();
    // INVARIANT: The thread was created for it.
    Ok(JoinHandle {
        task,
        start,
        _type: PhantomData,
    })
}

impl<T: Thread> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        // SAFETY: The task is a kernel thread by the type invariants, and the reference keeps it.
        let ret = unsafe { bindings::kthread_stop(self.task.as_ptr()) };

        // `main` returns zero; any other value means that it was not called.
        if ret != 0 {
            // SAFETY: So the thread did not take it, and `data` is of this type.
            unsafe {
                let start = KBox::from_raw(self.start.as_ptr());

                (start.discard)(start.data);
            }
        }
    }
}
