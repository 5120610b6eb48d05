// SPDX-License-Identifier: GPL-2.0

//! Capture devices: a video device with one queue, whose buffers the driver fills.

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
        Buffer,
        MemOps,
        Queue,
        QueueHost,
        QueueInit, //
    },
};

use crate::{
    bindings,
    error::from_result,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
};

use core::{
    marker::PhantomData,
    ops::Deref,
    pin::Pin, //
};

/// The driver of a capture device; the value is the data of one device.
///
/// # Examples
///
/// A device that has one frame to show, and no thread to do it. See `samples/rust/rust_vivid.rs`
/// for one that has.
///
/// ```
/// use kernel::{
///     device::{Core, Device},
///     dma_buf::cpu,
///     media::{
///         capture::{self, Capture},
///         v4l2::{self, fourcc, Colorimetry, Direction, FourCc, IoctlOps, PixFormat},
///         vb2::Pages,
///     },
///     sync::{Arc, ArcBorrow},
///     time::Instant,
/// };
///
/// struct Still(PixFormat);
///
/// #[vtable]
/// impl IoctlOps for Still {
///     const DRIVER: &'static CStr = c"still";
///     const CARD: &'static CStr = c"A still picture";
///
///     fn formats(&self, _queue: Direction) -> &[FourCc] {
///         &[fourcc::GREY]
///     }
///
///     fn g_fmt(&self, _queue: Direction) -> PixFormat {
///         self.0
///     }
///
///     fn try_fmt(&self, _queue: Direction, _format: &PixFormat) -> Result<PixFormat> {
///         Ok(self.0)
///     }
///
///     fn s_fmt(&self, _queue: Direction, _format: &PixFormat) -> Result {
///         Ok(())
///     }
/// }
///
/// #[vtable]
/// impl capture::Driver for Still {
///     type Memory = Pages;
///
///     fn start_streaming(this: ArcBorrow<'_, Capture<Self>>) -> Result {
///         if let Some(mut buffer) = this.next_buffer() {
///             let frame = buffer.access::<cpu::Write>()?;
///
///             frame.copy_from_slice(0, &[128; 16 * 16])?;
///             frame.finish()?;
///             buffer.done(0, Instant::now());
///         }
///         Ok(())
///     }
///
///     fn stop_streaming(_this: &Capture<Self>) {}
/// }
///
/// fn probe(dev: &Device<Core<'_>>) -> Result<Arc<Capture<Still>>> {
///     let device = v4l2::Device::new(dev, c"still")?;
///     let format = PixFormat::new(fourcc::GREY, 16, 16, Colorimetry::SRGB)?;
///
///     Capture::new(device, c"still", Still(format))?.register()
/// }
/// ```
#[vtable]
pub trait Driver: IoctlOps {
    /// What the buffers are made of.
    type Memory: MemOps;

    /// Starts to fill buffers, which come from [`Capture::next_buffer`].
    ///
    /// Called with the lock of the device held. May sleep. The device may not be bound any more. If
    /// this fails, the buffers go back to the queue, also those that are done already; then those
    /// that the driver has must be given back, which is waited for.
    fn start_streaming(this: ArcBorrow<'_, Capture<Self>>) -> Result;

    /// Stops to fill buffers. Those that the driver has must be given back, here or elsewhere; this
    /// is waited for. Those that it has not taken are given back then.
    ///
    /// Called with the lock of the device held. May sleep.
    fn stop_streaming(this: &Capture<Self>);
}

/// A capture device with the data of its driver.
///
/// # Invariants
///
/// `queue` has the memory of the driver, and the address of this as its private data.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub struct Capture<T: Driver> {
    // First, as all that begins with a node.
    #[pin]
    node: Node,
    #[pin]
    queue: Queue,
    #[pin]
    controls: Controls<T>,
    #[pin]
    data: T,
}

impl<T: Driver> Deref for Capture<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T: Driver> Capture<T> {
    const FOPS: bindings::v4l2_file_operations = bindings::v4l2_file_operations {
        open: Some(bindings::v4l2_fh_open),
        release: Some(bindings::vb2_fop_release),
        read: Some(bindings::vb2_fop_read),
        poll: Some(bindings::vb2_fop_poll),
        mmap: Some(bindings::vb2_fop_mmap),
        unlocked_ioctl: Some(bindings::video_ioctl2),
        ..pin_init::zeroed()
    };

    const CAPS: u32 = bindings::V4L2_CAP_VIDEO_CAPTURE
        | bindings::V4L2_CAP_STREAMING
        | bindings::V4L2_CAP_READWRITE;

    /// Makes a capture device that is called `name`, with the data of its driver. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the name is empty or longer than 63 bytes, or a control is not valid;
    /// [`ENOMEM`]; those of `data`, and of [`IoctlOps::s_ctrl`].
    pub fn new<E>(
        device: Arc<v4l2::Device>,
        name: &CStr,
        data: impl PinInit<T, E>,
    ) -> Result<Unregistered<Self>>
    where
        Error: From<E>,
    {
        let fops = const { &Self::FOPS };
        let this = Arc::pin_init::<Error>(
            try_pin_init!(&this in Self {
                data <- data,
                // SAFETY: This is the first field, and files are those of one queue.
                node <- unsafe { Node::new::<Self>(device, name, fops, Self::CAPS) },
                // SAFETY: The data is there until the controls are dropped.
                controls <- unsafe { Controls::new(&raw const (*this.as_ptr()).data) },
                // SAFETY: The operations are those for this type. The queue ends when this is
                // dropped.
                queue <- unsafe {
                    Queue::new(QueueInit {
                        direction: Direction::Capture,
                        ops: Ops::<T>::table(),
                        mem_ops: vb2::mem_ops::<T::Memory, Self>(),
                        drv_priv: this.as_ptr().cast(),
                        lock: (*this.as_ptr()).node.lock(),
                        dev: (*this.as_ptr()).node.device().parent().as_raw(),
                        buf_struct_size: size_of::<bindings::vb2_v4l2_buffer>(),
                        timestamp_flags: bindings::V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC,
                        io_modes: bindings::vb2_io_modes_VB2_MMAP
                            | bindings::vb2_io_modes_VB2_DMABUF
                            | bindings::vb2_io_modes_VB2_READ,
                        // So that read() has one to be filled while it copies the other.
                        min_reqbufs: 2,
                    })
                },
            }? Error),
            GFP_KERNEL,
        )?;

        // SAFETY: It is not registered yet, and both are fields like the node.
        unsafe {
            this.node.set_controls(&this.controls);
            this.node.set_queue(this.queue.as_raw());
        }
        // SAFETY: The data is there.
        unsafe { this.controls.setup() }?;
        Ok(Unregistered::new(this))
    }

    /// The buffer to be filled next, if user space has queued one and streaming was started.
    ///
    /// Process context.
    pub fn next_buffer(&self) -> Option<Buffer<'_, T::Memory>> {
        // SAFETY: By the type invariants.
        unsafe { self.queue.take() }
    }
}

#[pinned_drop]
impl<T: Driver> PinnedDrop for Capture<T> {
    fn drop(self: Pin<&mut Self>) {
        // If it was streaming when it was unregistered, it is not any more. But a call to read()
        // may have been on its way.
        //
        // SAFETY: The queue and the lock are initialised, and no file is open.
        unsafe {
            bindings::mutex_lock(self.node.lock());
            bindings::vb2_queue_release(self.queue.as_raw());
            bindings::mutex_unlock(self.node.lock());
        }
    }
}

// SAFETY: All capture devices have the address of this as the private data of their queue.
unsafe impl<T: Driver> QueueHost for Capture<T> {
    unsafe fn device<'a>(queue: *mut bindings::vb2_queue) -> &'a Arc<v4l2::Device> {
        // SAFETY: By the type invariants.
        unsafe { (*(*queue).drv_priv.cast::<Self>()).node.device() }
    }
}

// SAFETY: The video device of an open file is registered, or it was and has references. It is the
// first field of this.
unsafe impl<T: Driver> Host for Capture<T> {
    type Ops = T;

    const M2M: bool = false;

    unsafe fn ops<'a>(file: *mut bindings::file) -> &'a T {
        // SAFETY: By the safety requirements.
        unsafe { &(*bindings::video_devdata(file).cast::<Self>()).data }
    }

    unsafe fn queue(file: *mut bindings::file, _queue: Direction) -> *mut bindings::vb2_queue {
        // SAFETY: By the safety requirements.
        unsafe { (*bindings::video_devdata(file)).queue }
    }
}

// SAFETY: The node is the first field, and the type is `repr(C)`.
unsafe impl<T: Driver> Sealed for Capture<T> {
    fn node(&self) -> &Node {
        &self.node
    }

    unsafe fn unregister(&self) {
        // SAFETY: The video device is registered by the safety requirements. This ends streaming,
        // with the lock of the queue.
        unsafe { bindings::vb2_video_unregister_device(self.node.as_raw()) };
    }
}

impl<T: Driver> VideoNode for Capture<T> {}

/// The operations of the queue, all called by the C side with pointers to the queue of a
/// [`Capture`] or to a buffer of it.
struct Ops<T>(PhantomData<T>);

impl<T: Driver> Ops<T> {
    const TABLE: bindings::vb2_ops = bindings::vb2_ops {
        queue_setup: Some(Self::queue_setup),
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
    /// `queue` must be the queue of a `Capture<T>`.
    unsafe fn host<'a>(queue: *mut bindings::vb2_queue) -> &'a Capture<T> {
        // SAFETY: By the safety requirements, and the invariants of that type.
        unsafe { &*(*queue).drv_priv.cast::<Capture<T>>() }
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
        let this = unsafe { Self::host(queue) };
        let format = this.data.g_fmt(Direction::Capture);

        // SAFETY: These are the pointers of the C side.
        from_result(|| unsafe { vb2::queue_setup(&format, num_planes, sizes) }.map(|()| 0))
    }

    /// # Safety
    ///
    /// See [`Ops`].
    unsafe extern "C" fn buf_prepare(vb: *mut bindings::vb2_buffer) -> c_int {
        // SAFETY: See [`Ops`].
        let this = unsafe { Self::host((*vb).vb2_queue) };
        let format = this.data.g_fmt(Direction::Capture);

        // SAFETY: This is the pointer of the C side.
        from_result(|| unsafe { vb2::prepare(vb, &format) }.map(|()| 0))
    }

    /// # Safety
    ///
    /// See [`Ops`].
    unsafe extern "C" fn buf_queue(vb: *mut bindings::vb2_buffer) {
        // SAFETY: See [`Ops`].
        unsafe { Self::host((*vb).vb2_queue).queue.push(vb) };
    }

    /// # Safety
    ///
    /// See [`Ops`].
    unsafe extern "C" fn start_streaming(queue: *mut bindings::vb2_queue, _count: c_uint) -> c_int {
        // A `Capture` is always in an `Arc`. Files have references, by the video device.
        //
        // SAFETY: See [`Ops`]. This is called for a file.
        let this = unsafe { ArcBorrow::from_raw((*queue).drv_priv.cast::<Capture<T>>()) };

        from_result(|| this.queue.start(|| T::start_streaming(this)).map(|()| 0))
    }

    /// Also called when the last reference is dropped; so the driver has no `Arc`.
    ///
    /// # Safety
    ///
    /// See [`Ops`].
    unsafe extern "C" fn stop_streaming(queue: *mut bindings::vb2_queue) {
        // SAFETY: See [`Ops`].
        let this = unsafe { Self::host(queue) };

        T::stop_streaming(this);
        this.queue.stop();
    }
}
