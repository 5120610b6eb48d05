// SPDX-License-Identifier: GPL-2.0

//! Memory-to-memory devices: they read buffers of one queue, and fill those of another.
//!
//! C header: [`include/media/v4l2-mem2mem.h`](srctree/include/media/v4l2-mem2mem.h)

use super::{
    v4l2::{
        self,
        Controls,
        Direction,
        Host,
        IoctlOps,
        Node,
        Sealed,
        Unregistered,
        VideoNode, //
    },
    vb2::{
        self,
        Frame,
        MemOps,
        QueueHost,
        QueueInit,
        RawBuffer, //
    },
};

use crate::{
    bindings,
    dma_buf::cpu,
    error::{
        from_err_ptr,
        from_result, //
    },
    media::lock_name,
    prelude::*,
    static_lock_class,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow,
        CondVar,
        Mutex,
        SpinLock, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    },
};

use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    pin::Pin,
    ptr::{
        self,
        NonNull, //
    },
};

/// The driver of a mem2mem device; the value is the data of one device.
///
/// Each open file has a context of its own, with its formats and controls. See
/// `samples/rust/rust_vim2m.rs`.
#[vtable]
pub trait Driver: Send + Sync + Sized + 'static {
    /// What the buffers are made of.
    type Memory: MemOps;

    /// The data of one context, which also answers the ioctls of its file.
    type Context: IoctlOps;

    /// A file is opened. May sleep. The device may not be bound any more.
    fn open(device: &Device<Self>) -> impl PinInit<Self::Context, Error>;

    /// There is a job to do: one buffer of each queue of a context. One at a time is given out to a
    /// device; the next comes when this one is finished.
    ///
    /// Process context, maybe with the lock of the context's queues held. To wait for a job, or to
    /// close or stop the context, takes as long as the job does; so it is to be done by a thread.
    /// The last reference to the device must not be dropped here.
    fn device_run(job: Job<Self>);

    /// A queue of a context starts. Called with the lock of the queues held. May sleep. If this
    /// fails, the buffers go back to the queue.
    fn start_streaming(_ctx: &Context<Self>, _queue: Direction) -> Result {
        Ok(())
    }

    /// A queue of a context has stopped: there is no job now, and there are no more until it is
    /// started again. Called with the lock of the queues held. May sleep.
    fn stop_streaming(_ctx: &Context<Self>, _queue: Direction) {}
}

/// A mem2mem device with the data of its driver.
///
/// # Invariants
///
/// `m2m` is from `v4l2_m2m_init()`. `contexts` are those of the files that are open.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub struct Device<T: Driver> {
    // First, as all that begins with a node.
    #[pin]
    node: Node,
    m2m: NonNull<bindings::v4l2_m2m_dev>,
    #[pin]
    contexts: Mutex<KVec<NonNull<Context<T>>>>,
    #[pin]
    data: T,
}

// SAFETY: A mem2mem device and its contexts belong to no task.
unsafe impl<T: Driver> Send for Device<T> {}

// SAFETY: The C side locks what it changes, and the other fields may be shared.
unsafe impl<T: Driver> Sync for Device<T> {}

impl<T: Driver> Deref for Device<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T: Driver> Device<T> {
    const FOPS: bindings::v4l2_file_operations = bindings::v4l2_file_operations {
        open: Some(Self::open),
        release: Some(Self::release),
        poll: Some(bindings::v4l2_m2m_fop_poll),
        mmap: Some(bindings::v4l2_m2m_fop_mmap),
        unlocked_ioctl: Some(bindings::video_ioctl2),
        ..pin_init::zeroed()
    };

    const M2M_OPS: bindings::v4l2_m2m_ops = bindings::v4l2_m2m_ops {
        device_run: Some(Self::device_run),
        ..pin_init::zeroed()
    };

    const CAPS: u32 = bindings::V4L2_CAP_VIDEO_M2M | bindings::V4L2_CAP_STREAMING;

    /// Makes a mem2mem device that is called `name`, with the data of its driver. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the name is empty or longer than 63 bytes; [`ENOMEM`]; those of `data`.
    pub fn new<E>(
        device: Arc<v4l2::Device>,
        name: &CStr,
        data: impl PinInit<T, E>,
    ) -> Result<Unregistered<Self>>
    where
        Error: From<E>,
    {
        let fops = const { &Self::FOPS };
        let m2m_ops = const { &Self::M2M_OPS };

        Ok(Unregistered::new(Arc::pin_init::<Error>(
            try_pin_init!(Self {
                data <- data,
                contexts <- Mutex::new(
                    KVec::new(),
                    lock_name::M2M_CONTEXTS,
                    static_lock_class!(),
                ),
                // SAFETY: This is the first field, and files are contexts.
                node <- unsafe { Node::new::<Self>(device, name, fops, Self::CAPS) },
                // Last, as nothing frees it should another fail.
                //
                // SAFETY: The operations are static.
                m2m: NonNull::new(from_err_ptr(unsafe { bindings::v4l2_m2m_init(m2m_ops) })?)
                    .ok_or(ENOMEM)?,
            }? Error),
            GFP_KERNEL,
        )?))
    }

    /// # Safety
    ///
    /// `file` must be a new file of such a device.
    unsafe extern "C" fn open(file: *mut bindings::file) -> c_int {
        // SAFETY: The video device is registered, which has a reference, and is the first field.
        let device = unsafe { ArcBorrow::from_raw(bindings::video_devdata(file).cast::<Self>()) };

        from_result(|| {
            let ctx = Context::new(device.into())?;
            let ptr = NonNull::from(&*ctx);
            let fh = ctx.fh.get();

            // SAFETY: The context is set up, but for this.
            let m2m_ctx = from_err_ptr(unsafe {
                bindings::v4l2_m2m_ctx_init(
                    device.m2m.as_ptr(),
                    ptr.as_ptr().cast(),
                    Some(Context::<T>::queue_init),
                )
            })?;

            // SAFETY: Nobody else has the context yet.
            unsafe { (*fh).m2m_ctx = m2m_ctx };
            device
                .contexts
                .lock()
                .push(ptr, GFP_KERNEL)
                .inspect_err(|_| {
                    // SAFETY: It was made above, and is not used any more.
                    unsafe { bindings::v4l2_m2m_ctx_release(m2m_ctx) }
                })?;
            // SAFETY: The handle is initialised. From now on the file has the reference.
            unsafe { bindings::v4l2_fh_add(fh, file) };
            let _ = ctx.into_foreign();
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `file` must be an open file of such a device, that is released.
    unsafe extern "C" fn release(file: *mut bindings::file) -> c_int {
        // SAFETY: The file has had the context since `open`. The handle is its first field.
        let ctx = unsafe { Pin::<KBox<Context<T>>>::from_foreign((*file).private_data) };
        let ptr = NonNull::from(&*ctx);
        let fh = ctx.fh.get();
        // If the device is bound, it stays so until imports have ended. If it is not, they have.
        let _bound = ctx.device.node.device().enter();

        ctx.device.contexts.lock().retain(|other| *other != ptr);
        // SAFETY: The handle was added in `open`. No ioctl runs for a file that is released, and
        // what ends the jobs is called from here; then nobody uses the mem2mem context.
        unsafe {
            bindings::v4l2_fh_del(fh, file);
            bindings::mutex_lock(ctx.lock.get());
            bindings::v4l2_m2m_ctx_release((*fh).m2m_ctx);
            bindings::mutex_unlock(ctx.lock.get());
        }
        0
    }

    /// # Safety
    ///
    /// `ctx` must be a `Context<T>` that is open, and whose job is to run.
    unsafe extern "C" fn device_run(ctx: *mut c_void) {
        let Some(ctx) = NonNull::new(ctx.cast::<Context<T>>()) else {
            return;
        };

        // SAFETY: There is a job to run for it, and it was not taken yet.
        if let Some(job) = unsafe { Job::new(ctx) } {
            T::device_run(job);
        }
    }
}

#[pinned_drop]
impl<T: Driver> PinnedDrop for Device<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants. There are no contexts, which have references.
        unsafe { bindings::v4l2_m2m_release(self.m2m.as_ptr()) };
    }
}

// SAFETY: The ioctls of a file are for its context, whose handle is its first field. It is set in
// `open` and remains until the file is released.
unsafe impl<T: Driver> Host for Device<T> {
    type Ops = T::Context;

    const M2M: bool = true;

    unsafe fn ops<'a>(file: *mut bindings::file) -> &'a T::Context {
        // SAFETY: By the safety requirements.
        unsafe { &(*(*file).private_data.cast::<Context<T>>()).data }
    }

    unsafe fn queue(file: *mut bindings::file, queue: Direction) -> *mut bindings::vb2_queue {
        // SAFETY: By the safety requirements.
        unsafe { &raw mut (*(*(*file).private_data.cast::<Context<T>>()).queue_ctx(queue)).q }
    }
}

// SAFETY: The node is the first field, and the type is `repr(C)`.
unsafe impl<T: Driver> Sealed for Device<T> {
    fn node(&self) -> &Node {
        &self.node
    }

    unsafe fn unregister(&self) {
        // SAFETY: The video device is registered by the safety requirements.
        unsafe { bindings::video_unregister_device(self.node.as_raw()) };
        for ctx in self.contexts.lock().iter() {
            // SAFETY: What is on the list is open, for as long as that is locked.
            unsafe { ctx.as_ref().end() };
        }
    }
}

impl<T: Driver> VideoNode for Device<T> {}

/// What belongs to one open file of a mem2mem device.
///
/// # Invariants
///
/// `fh` is initialised. While the file is open, it has a mem2mem context, whose private data is the
/// address of this.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub struct Context<T: Driver> {
    // First, so that a pointer to it is one to all.
    #[pin]
    fh: Opaque<bindings::v4l2_fh>,
    /// The lock of both queues.
    #[pin]
    lock: Opaque<bindings::mutex>,
    /// How many jobs there are. They keep the context: it waits for them before it ends. A
    /// spinlock, because the context may be gone as soon as this is released.
    #[pin]
    jobs: SpinLock<usize>,
    #[pin]
    finished: CondVar,
    sequences: Sequences,
    #[pin]
    controls: Controls<T::Context>,
    #[pin]
    data: T::Context,
    // Last, as the handle belongs to its video device.
    device: Arc<Device<T>>,
}

// SAFETY: A context belongs to no task.
unsafe impl<T: Driver> Send for Context<T> {}

// SAFETY: The C side locks what it changes, and the other fields may be shared.
unsafe impl<T: Driver> Sync for Context<T> {}

/// The number of the next frame of each queue.
struct Sequences {
    output: Atomic<u32>,
    capture: Atomic<u32>,
}

impl Sequences {
    fn of(&self, queue: Direction) -> &Atomic<u32> {
        match queue {
            Direction::Output => &self.output,
            Direction::Capture => &self.capture,
        }
    }
}

impl<T: Driver> Deref for Context<T> {
    type Target = T::Context;

    #[inline]
    fn deref(&self) -> &T::Context {
        &self.data
    }
}

impl<T: Driver> Context<T> {
    fn new(device: Arc<Device<T>>) -> Result<Pin<KBox<Self>>> {
        let vdev = device.node.as_raw();
        let owned = device.clone();
        let data = T::open(&device);
        let this = KBox::pin_init::<Error>(
            try_pin_init!(&this in Self {
                data <- data,
                // SAFETY: The data is there until the controls are dropped.
                controls <- unsafe { Controls::new(&raw const (*this.as_ptr()).data) },
                sequences: Sequences {
                    output: Atomic::new(0),
                    capture: Atomic::new(0),
                },
                jobs <- SpinLock::new(0, lock_name::M2M_JOBS, static_lock_class!()),
                finished <- CondVar::new(lock_name::M2M_FINISHED, static_lock_class!()),
                lock <- Opaque::ffi_init(|lock: *mut bindings::mutex| {
                    // SAFETY: The mutex is valid for writes, the name and the class are static.
                    unsafe {
                        bindings::__mutex_init(
                            lock,
                            lock_name::M2M_QUEUES.as_char_ptr(),
                            static_lock_class!().as_ptr(),
                        )
                    }
                }),
                fh <- Opaque::ffi_init(|fh: *mut bindings::v4l2_fh| {
                    // SAFETY: The handle is to be zeroed before, the video device is registered,
                    // and the controls are initialised.
                    unsafe {
                        fh.write_bytes(0, 1);
                        bindings::v4l2_fh_init(fh, vdev);
                        (*fh).ctrl_handler = (*this.as_ptr()).controls.as_raw();
                    }
                }),
                device: owned,
            }? Error),
            GFP_KERNEL,
        )?;

        // SAFETY: The data is there.
        unsafe { this.controls.setup() }?;
        Ok(this)
    }

    /// The device that this is a context of.
    #[inline]
    pub fn device(&self) -> &Device<T> {
        &self.device
    }

    fn m2m_ctx(&self) -> *mut bindings::v4l2_m2m_ctx {
        // SAFETY: By the type invariants; it does not change while anything can call this.
        unsafe { (*self.fh.get()).m2m_ctx }
    }

    /// # Safety
    ///
    /// The file must be open.
    unsafe fn queue_ctx(&self, queue: Direction) -> *mut bindings::v4l2_m2m_queue_ctx {
        let ctx = self.m2m_ctx();

        // SAFETY: By the safety requirements there is a mem2mem context.
        unsafe {
            match queue {
                Direction::Output => &raw mut (*ctx).out_q_ctx,
                Direction::Capture => &raw mut (*ctx).cap_q_ctx,
            }
        }
    }

    /// Ends streaming, and with that who waits for a buffer, and gives the buffers up, as
    /// `vb2_video_unregister_device()` does for a device with one queue. Ioctls that got past the
    /// test whether the device is registered are over then, for they have the lock.
    ///
    /// # Safety
    ///
    /// The file must be open, and the device not registered any more.
    unsafe fn end(&self) {
        // SAFETY: By the safety requirements there is a mem2mem context. This is the order in which
        // the C side does it, with the lock that it has.
        unsafe {
            bindings::mutex_lock(self.lock.get());
            for queue in [Direction::Output, Direction::Capture] {
                let vq = &raw mut (*self.queue_ctx(queue)).q;

                bindings::v4l2_m2m_streamoff(ptr::null_mut(), self.m2m_ctx(), queue.as_raw());
                bindings::vb2_queue_release(vq);
            }
            bindings::mutex_unlock(self.lock.get());
        }
    }

    /// # Safety
    ///
    /// The file must be open, and the mem2mem core must not use what is taken.
    unsafe fn next(&self, queue: Direction) -> Option<RawBuffer<T::Memory>> {
        // SAFETY: By the safety requirements.
        let vb = unsafe { bindings::v4l2_m2m_buf_remove(self.queue_ctx(queue)) };

        // SAFETY: What is on the list is active, and it was removed from it.
        NonNull::new(vb.cast()).map(|vb| unsafe { RawBuffer::new(vb) })
    }

    /// Gives all buffers of a queue back that no job has.
    ///
    /// # Safety
    ///
    /// As for [`Self::next`].
    unsafe fn give_back(&self, queue: Direction, state: bindings::vb2_buffer_state) {
        // SAFETY: By the safety requirements.
        while let Some(buffer) = unsafe { self.next(queue) } {
            buffer.done(state);
        }
    }

    /// Called by `v4l2_m2m_ctx_init()`.
    ///
    /// # Safety
    ///
    /// `ctx` must be a `Context<T>`, and the queues valid for writes.
    unsafe extern "C" fn queue_init(
        ctx: *mut c_void,
        src: *mut bindings::vb2_queue,
        dst: *mut bindings::vb2_queue,
    ) -> c_int {
        // SAFETY: By the safety requirements.
        let this = unsafe { &*ctx.cast::<Self>() };

        from_result(|| {
            for (queue, direction) in [(src, Direction::Output), (dst, Direction::Capture)] {
                let init = QueueInit {
                    direction,
                    ops: Ops::<T>::table(),
                    mem_ops: vb2::mem_ops::<T::Memory, Self>(),
                    drv_priv: ctx,
                    lock: this.lock.get(),
                    dev: this.device.node.device().parent().as_raw(),
                    buf_struct_size: size_of::<bindings::v4l2_m2m_buffer>(),
                    timestamp_flags: bindings::V4L2_BUF_FLAG_TIMESTAMP_COPY,
                    io_modes: bindings::vb2_io_modes_VB2_MMAP | bindings::vb2_io_modes_VB2_DMABUF,
                    min_reqbufs: 1,
                };

                // SAFETY: The operations are those for this type, which outlives the queues.
                unsafe { vb2::init_queue(queue, &init) }?;
            }
            Ok(0)
        })
    }
}

#[pinned_drop]
impl<T: Driver> PinnedDrop for Context<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Both are initialised by the type invariants and not used any more, and the video
        // device lives as long as `device`.
        unsafe {
            bindings::v4l2_fh_exit(self.fh.get());
            bindings::mutex_destroy(self.lock.get());
        }
    }
}

// SAFETY: The private data of these queues is the address of the context.
unsafe impl<T: Driver> QueueHost for Context<T> {
    unsafe fn device<'a>(queue: *mut bindings::vb2_queue) -> &'a Arc<v4l2::Device> {
        // SAFETY: By the safety requirements.
        unsafe { (*(*queue).drv_priv.cast::<Self>()).device.node.device() }
    }
}

/// A job: one buffer to read, and one to fill. Dropped, both complete with an error.
///
/// To stop or to close its context waits until the job is finished; so it must not be kept, and not
/// be finished by what waits for that.
///
/// # Invariants
///
/// It is counted in `jobs` of `ctx`, which therefore is valid, and is the job that
/// `v4l2_m2m_job_finish()` is to be called for. Both buffers belong to this.
pub struct Job<T: Driver> {
    src: RawBuffer<T::Memory>,
    dst: RawBuffer<T::Memory>,
    ctx: NonNull<Context<T>>,
}

// SAFETY: A job belongs to no task.
unsafe impl<T: Driver> Send for Job<T> {}

// SAFETY: What can be done with a shared reference can be done by several tasks.
unsafe impl<T: Driver> Sync for Job<T> {}

impl<T: Driver> Job<T> {
    /// If there is nothing to do after all, the job is finished.
    ///
    /// # Safety
    ///
    /// The mem2mem core must have called `device_run()` for it, just now.
    unsafe fn new(ptr: NonNull<Context<T>>) -> Option<Self> {
        // SAFETY: While a job runs, its context exists. The reference is not used when it does not.
        let ctx = unsafe { ptr.as_ref() };

        *ctx.jobs.lock() += 1;

        // SAFETY: While a job runs, the core leaves the buffers alone.
        let buffers = unsafe { (ctx.next(Direction::Output), ctx.next(Direction::Capture)) };

        if let (Some(mut src), Some(mut dst)) = buffers {
            src.set_sequence(ctx.sequences.of(Direction::Output).fetch_add(1, Relaxed));
            dst.set_sequence(ctx.sequences.of(Direction::Capture).fetch_add(1, Relaxed));
            // INVARIANT: It was counted above.
            return Some(Self { src, dst, ctx: ptr });
        }

        // The core looks for both before it runs a job, and they remain while it does.
        for buffer in [buffers.0, buffers.1].into_iter().flatten() {
            buffer.done(bindings::vb2_buffer_state_VB2_BUF_STATE_ERROR);
        }
        // SAFETY: The job was to run, was counted, and is over.
        unsafe { Self::end(ptr) };
        None
    }

    /// # Safety
    ///
    /// The context must have a running job, which is counted, and not be used after this.
    unsafe fn end(ctx: NonNull<Context<T>>) {
        // SAFETY: A context exists as long as jobs of it are counted.
        let ctx = unsafe { ctx.as_ref() };

        // SAFETY: By the safety requirements.
        unsafe { bindings::v4l2_m2m_job_finish(ctx.device.m2m.as_ptr(), ctx.m2m_ctx()) };

        // That has woken up who may free the mem2mem context, and has used it after that. This is
        // what is waited for then.
        let mut jobs = ctx.jobs.lock();

        *jobs -= 1;
        if *jobs == 0 {
            ctx.finished.notify_all();
        }
    }

    /// The context that the job is for.
    #[inline]
    pub fn context(&self) -> &Context<T> {
        // SAFETY: By the type invariants.
        unsafe { self.ctx.as_ref() }
    }

    /// Begins to read the frame that is to be processed. Process context, may sleep.
    ///
    /// # Errors
    ///
    /// Those of [`DmaBuf::cpu_access`](crate::dma_buf::DmaBuf::cpu_access).
    pub fn read_src(&self) -> Result<Frame<'_, cpu::Read>> {
        self.src.access()
    }

    /// Begins to write the result. Process context, may sleep.
    ///
    /// # Errors
    ///
    /// Those of [`DmaBuf::cpu_access`](crate::dma_buf::DmaBuf::cpu_access).
    pub fn write_dst(&self) -> Result<Frame<'_, cpu::Write>> {
        self.dst.access()
    }

    /// Gives both buffers back to user space, with the result, and lets the next job run. The
    /// result has the timestamp of the source.
    ///
    /// Process context.
    pub fn finish(self) {
        // What is left would finish it again.
        let this = ManuallyDrop::new(self);

        this.finish_as(bindings::vb2_buffer_state_VB2_BUF_STATE_DONE);
    }

    /// Must be called once, last.
    fn finish_as(&self, state: bindings::vb2_buffer_state) {
        let (src, dst) = (self.src.as_raw(), self.dst.as_raw());

        // SAFETY: Both buffers belong to this, which is not used again, and the job is running.
        unsafe {
            bindings::v4l2_m2m_buf_copy_metadata(src, dst);
            bindings::vb2_buffer_done(&raw mut (*src).vb2_buf, state);
            bindings::vb2_buffer_done(&raw mut (*dst).vb2_buf, state);
            Self::end(self.ctx);
        }
    }
}

impl<T: Driver> Drop for Job<T> {
    fn drop(&mut self) {
        self.finish_as(bindings::vb2_buffer_state_VB2_BUF_STATE_ERROR);
    }
}

/// The operations of the queues, all called by the C side with pointers to a queue of a [`Context`]
/// whose file is open, or to a buffer of it.
struct Ops<T>(PhantomData<T>);

impl<T: Driver> Ops<T> {
    const TABLE: bindings::vb2_ops = bindings::vb2_ops {
        queue_setup: Some(Self::queue_setup),
        buf_out_validate: Some(Self::buf_out_validate),
        buf_prepare: Some(Self::buf_prepare),
        buf_queue: Some(Self::buf_queue),
        start_streaming: Some(Self::start_streaming),
        stop_streaming: Some(Self::stop_streaming),
        ..pin_init::zeroed()
    };

    fn table() -> &'static bindings::vb2_ops {
        const { &Self::TABLE }
    }

    /// # Safety
    ///
    /// `queue` must be a queue of a `Context<T>`.
    unsafe fn host<'a>(queue: *mut bindings::vb2_queue) -> (&'a Context<T>, Direction) {
        // SAFETY: By the safety requirements, and as the queues were initialised.
        unsafe {
            let direction = match Direction::from_raw((*queue).type_) {
                Ok(direction) => direction,
                // There are no others.
                Err(_) => Direction::Capture,
            };

            (&*(*queue).drv_priv.cast::<Context<T>>(), direction)
        }
    }

    /// # Safety
    ///
    /// See [`Ops`].
    unsafe extern "C" fn queue_setup(
        queue: *mut bindings::vb2_queue,
        _num_buffers: *mut c_uint,
        num_planes: *mut c_uint,
        sizes: *mut c_uint,
        _alloc_devs: *mut *mut bindings::device,
    ) -> c_int {
        // SAFETY: See [`Ops`].
        let (this, direction) = unsafe { Self::host(queue) };
        let format = this.data.g_fmt(direction);

        // SAFETY: These are the pointers of the C side.
        from_result(|| unsafe { vb2::queue_setup(&format, num_planes, sizes) }.map(|()| 0))
    }

    /// # Safety
    ///
    /// See [`Ops`].
    unsafe extern "C" fn buf_out_validate(vb: *mut bindings::vb2_buffer) -> c_int {
        // SAFETY: A buffer of V4L2 begins with this one, and nobody else changes this now.
        let field = unsafe { &mut (*vb.cast::<bindings::vb2_v4l2_buffer>()).field };

        match *field {
            bindings::v4l2_field_V4L2_FIELD_ANY => {
                *field = bindings::v4l2_field_V4L2_FIELD_NONE;
                0
            }
            bindings::v4l2_field_V4L2_FIELD_NONE => 0,
            _ => EINVAL.to_errno(),
        }
    }

    /// # Safety
    ///
    /// See [`Ops`].
    unsafe extern "C" fn buf_prepare(vb: *mut bindings::vb2_buffer) -> c_int {
        // SAFETY: See [`Ops`].
        let (this, direction) = unsafe { Self::host((*vb).vb2_queue) };
        let format = this.data.g_fmt(direction);

        // SAFETY: This is the pointer of the C side.
        from_result(|| unsafe { vb2::prepare(vb, &format) }.map(|()| 0))
    }

    /// # Safety
    ///
    /// See [`Ops`].
    unsafe extern "C" fn buf_queue(vb: *mut bindings::vb2_buffer) {
        // SAFETY: See [`Ops`]. A buffer of V4L2 begins with this one.
        unsafe {
            let (this, _) = Self::host((*vb).vb2_queue);

            bindings::v4l2_m2m_buf_queue(this.m2m_ctx(), vb.cast());
        }
    }

    /// # Safety
    ///
    /// See [`Ops`].
    unsafe extern "C" fn start_streaming(queue: *mut bindings::vb2_queue, _count: c_uint) -> c_int {
        // SAFETY: See [`Ops`].
        let (this, direction) = unsafe { Self::host(queue) };

        from_result(|| {
            this.sequences.of(direction).store(0, Relaxed);
            T::start_streaming(this, direction).inspect_err(|_| {
                // SAFETY: There are no jobs before it has started.
                unsafe {
                    this.give_back(direction, bindings::vb2_buffer_state_VB2_BUF_STATE_QUEUED)
                }
            })?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// See [`Ops`].
    unsafe extern "C" fn stop_streaming(queue: *mut bindings::vb2_queue) {
        // SAFETY: See [`Ops`].
        let (this, direction) = unsafe { Self::host(queue) };
        let mut jobs = this.jobs.lock();

        // The core has waited for the job, but not for what finished it.
        while *jobs != 0 {
            this.finished.wait(&mut jobs);
        }
        drop(jobs);
        T::stop_streaming(this, direction);
        // SAFETY: There are no jobs any more.
        unsafe { this.give_back(direction, bindings::vb2_buffer_state_VB2_BUF_STATE_ERROR) };
    }
}
