// SPDX-License-Identifier: GPL-2.0

//! Queues of buffers.

use super::{
    memory,
    Frame,
    MemOps, //
};

use crate::{
    bindings,
    dma_buf::cpu,
    error::to_result,
    media::v4l2::{
        Direction,
        PixFormat, //
    },
    new_condvar,
    new_spinlock,
    prelude::*,
    sync::{
        CondVar,
        SpinLock, //
    },
    time::{
        Instant,
        Monotonic, //
    },
    types::Opaque, //
};

use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};

/// As many buffers as a queue can have, see `vb2_core_queue_init()`.
const MAX_BUFFERS: usize = bindings::VB2_MAX_FRAME as usize;

/// A buffer that a driver has.
///
/// # Invariants
///
/// It is in the state `VB2_BUF_STATE_ACTIVE`, and this is the only one for it. Its queue has
/// memory `M`.
pub(in crate::media) struct RawBuffer<M> {
    vb: NonNull<bindings::vb2_v4l2_buffer>,
    _memory: PhantomData<M>,
}

// SAFETY: A buffer belongs to no task.
unsafe impl<M> Send for RawBuffer<M> {}

// SAFETY: All that is done with a shared reference is to read what does not change.
unsafe impl<M> Sync for RawBuffer<M> {}

impl<M: MemOps> RawBuffer<M> {
    /// # Safety
    ///
    /// The type invariants must hold.
    pub(in crate::media) unsafe fn new(vb: NonNull<bindings::vb2_v4l2_buffer>) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            vb,
            _memory: PhantomData,
        }
    }

    pub(in crate::media) fn as_raw(&self) -> *mut bindings::vb2_v4l2_buffer {
        self.vb.as_ptr()
    }

    pub(in crate::media) fn access<A: cpu::Access>(&self) -> Result<Frame<'_, A>> {
        // SAFETY: The driver has the buffer by the type invariants, and while `self` is borrowed it
        // is not done.
        unsafe { memory::access::<M, A>(&raw mut (*self.vb.as_ptr()).vb2_buf) }
    }

    /// Sets what user space learns about the frame.
    pub(in crate::media) fn set_sequence(&self, sequence: u32) {
        // SAFETY: The driver has the buffer by the type invariants.
        unsafe {
            (*self.vb.as_ptr()).sequence = sequence;
            (*self.vb.as_ptr()).field = bindings::v4l2_field_V4L2_FIELD_NONE;
        }
    }

    pub(in crate::media) fn set_timestamp(&self, timestamp: Instant<Monotonic>) {
        // This clock starts at zero.
        let timestamp = timestamp.as_nanos().unsigned_abs();

        // SAFETY: The driver has the buffer by the type invariants.
        unsafe { (*self.vb.as_ptr()).vb2_buf.timestamp = timestamp };
    }

    /// Gives the buffer back.
    pub(in crate::media) fn done(self, state: bindings::vb2_buffer_state) {
        // SAFETY: The driver has the buffer by the type invariants, and with `self` all that could
        // touch it is gone.
        unsafe { bindings::vb2_buffer_done(&raw mut (*self.vb.as_ptr()).vb2_buf, state) };
    }
}

/// The buffers that user space has queued, in this order, and the driver has not taken yet.
struct Ready {
    buffers: [Option<NonNull<bindings::vb2_v4l2_buffer>>; MAX_BUFFERS],
    first: usize,
    len: usize,
    /// Whether the driver may take some.
    streaming: bool,
    /// How many it has.
    taken: usize,
}

// SAFETY: Buffers belong to no task.
unsafe impl Send for Ready {}

impl Ready {
    fn push(&mut self, vb: NonNull<bindings::vb2_v4l2_buffer>) -> Result {
        if self.len == MAX_BUFFERS {
            return Err(ENOSPC);
        }
        self.buffers[(self.first + self.len) % MAX_BUFFERS] = Some(vb);
        self.len += 1;
        Ok(())
    }

    fn pop(&mut self) -> Option<NonNull<bindings::vb2_v4l2_buffer>> {
        if self.len == 0 {
            return None;
        }

        let vb = self.buffers[self.first].take();

        self.first = (self.first + 1) % MAX_BUFFERS;
        self.len -= 1;
        vb
    }
}

/// A queue whose buffers the driver takes one by one.
///
/// # Invariants
///
/// `queue` is initialised. What is in `ready` is in the state `VB2_BUF_STATE_ACTIVE`, and there is
/// no other pointer to it of ours.
#[pin_data]
#[repr(C)]
pub(in crate::media) struct Queue {
    #[pin]
    queue: Opaque<bindings::vb2_queue>,
    #[pin]
    ready: SpinLock<Ready>,
    #[pin]
    given_back: CondVar,
}

// SAFETY: A queue belongs to no task.
unsafe impl Send for Queue {}

// SAFETY: The C side locks what it changes.
unsafe impl Sync for Queue {}

/// What a queue needs.
pub(in crate::media) struct QueueInit {
    pub(in crate::media) direction: Direction,
    pub(in crate::media) ops: &'static bindings::vb2_ops,
    pub(in crate::media) mem_ops: &'static bindings::vb2_mem_ops,
    pub(in crate::media) drv_priv: *mut c_void,
    pub(in crate::media) lock: *mut bindings::mutex,
    pub(in crate::media) dev: *mut bindings::device,
    pub(in crate::media) buf_struct_size: usize,
    pub(in crate::media) timestamp_flags: u32,
    pub(in crate::media) io_modes: u32,
}

/// Initialises a queue.
///
/// # Safety
///
/// `queue` must be valid for writes, and all that `init` has must fit it: the operations must be for
/// the private data, and all of it must be valid as long as the queue is.
pub(in crate::media) unsafe fn init_queue(
    queue: *mut bindings::vb2_queue,
    init: &QueueInit,
) -> Result {
    // SAFETY: By the safety requirements; all of it may be zero.
    let q = unsafe {
        queue.write_bytes(0, 1);
        &mut *queue
    };

    q.type_ = init.direction.as_raw();
    q.io_modes = init.io_modes;
    q.ops = init.ops;
    q.mem_ops = init.mem_ops;
    q.drv_priv = init.drv_priv;
    q.lock = init.lock;
    q.dev = init.dev;
    q.buf_struct_size = init.buf_struct_size.try_into()?;
    q.timestamp_flags = init.timestamp_flags;
    // As the mapping is, see `map_dmabuf()`.
    q.set_bidirectional(1);
    // SAFETY: It is set up as far as that is to be done before.
    to_result(unsafe { bindings::vb2_queue_init(queue) })
}

/// `queue_setup()` for frames of one plane in this format.
///
/// # Safety
///
/// The pointers must be those that the C side calls with.
pub(in crate::media) unsafe fn queue_setup(
    format: &PixFormat,
    num_planes: *mut c_uint,
    sizes: *mut c_uint,
) -> Result {
    // SAFETY: By the safety requirements. There is room for as many sizes as there can be planes.
    let (num_planes, size) = unsafe { (&mut *num_planes, &mut *sizes) };

    // User space may ask for more room, in which there is one plane all the same.
    match *num_planes {
        0 => {
            *num_planes = 1;
            *size = format.sizeimage();
            Ok(())
        }
        1 if *size >= format.sizeimage() => Ok(()),
        _ => Err(EINVAL),
    }
}

/// `buf_prepare()` for frames of one plane in this format.
///
/// # Safety
///
/// `vb` must be the pointer that the C side calls with.
pub(in crate::media) unsafe fn prepare(
    vb: *mut bindings::vb2_buffer,
    format: &PixFormat,
) -> Result {
    // SAFETY: By the safety requirements.
    let vb = unsafe { &mut *vb };

    if vb.planes[0].length < format.sizeimage() {
        return Err(EINVAL);
    }
    vb.planes[0].bytesused = format.sizeimage();
    Ok(())
}

impl Queue {
    /// # Safety
    ///
    /// As for [`init_queue`]. The operations must call this for what it is for.
    pub(in crate::media) unsafe fn new(init: QueueInit) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            queue <- Opaque::try_ffi_init(move |queue: *mut bindings::vb2_queue| {
                // SAFETY: By the safety requirements.
                unsafe { init_queue(queue, &init) }
            }),
            ready <- new_spinlock!(Ready {
                buffers: [None; MAX_BUFFERS],
                first: 0,
                len: 0,
                streaming: false,
                taken: 0,
            }),
            given_back <- new_condvar!(),
        })
    }

    pub(in crate::media) fn as_raw(&self) -> *mut bindings::vb2_queue {
        self.queue.get()
    }

    /// `buf_queue()`.
    ///
    /// # Safety
    ///
    /// `vb` must be the pointer that the C side calls with, for a buffer of this queue.
    pub(in crate::media) unsafe fn push(&self, vb: *mut bindings::vb2_buffer) {
        // The buffer of V4L2 begins with this.
        let Some(buffer) = NonNull::new(vb.cast()) else {
            return;
        };

        if self.ready.lock().push(buffer).is_err() {
            // There cannot be that many.
            //
            // SAFETY: The buffer is the driver's.
            unsafe {
                bindings::vb2_buffer_done(vb, bindings::vb2_buffer_state_VB2_BUF_STATE_ERROR)
            };
        }
    }

    /// `start_streaming()`, before the driver.
    pub(in crate::media) fn start(&self) {
        self.ready.lock().streaming = true;
    }

    /// `stop_streaming()`, after the driver; or when it could not start, with another state for the
    /// buffers. Waits until those that the driver took are given back.
    pub(in crate::media) fn stop(&self, state: bindings::vb2_buffer_state) {
        let mut ready = self.ready.lock();

        ready.streaming = false;
        while ready.taken != 0 {
            self.given_back.wait(&mut ready);
        }
        while let Some(vb) = ready.pop() {
            drop(ready);
            // SAFETY: The buffer is the driver's by the type invariants, and nobody else has a
            // pointer to it now.
            unsafe { bindings::vb2_buffer_done(&raw mut (*vb.as_ptr()).vb2_buf, state) };
            ready = self.ready.lock();
        }
    }

    /// # Safety
    ///
    /// The memory of the queue must be `M`.
    pub(in crate::media) unsafe fn take<M: MemOps>(&self) -> Option<Buffer<'_, M>> {
        let mut ready = self.ready.lock();

        if !ready.streaming {
            return None;
        }

        let vb = ready.pop()?;

        ready.taken += 1;
        // INVARIANT: It is counted.
        Some(Buffer {
            // SAFETY: By the type invariants it is active, and the only pointer was taken here.
            raw: ManuallyDrop::new(unsafe { RawBuffer::new(vb) }),
            queue: self,
        })
    }
}

/// A buffer that a capture device fills. Dropped, it is given back to user space with an error.
///
/// Streaming does not end before it is given back, and so it must not be kept.
///
/// # Invariants
///
/// It is counted in `taken` of its queue.
pub struct Buffer<'q, M: MemOps> {
    raw: ManuallyDrop<RawBuffer<M>>,
    queue: &'q Queue,
}

impl<M: MemOps> Buffer<'_, M> {
    /// Begins an access by the CPU. Process context, may sleep.
    ///
    /// # Errors
    ///
    /// Those of [`DmaBuf::cpu_access`](crate::dma_buf::DmaBuf::cpu_access).
    pub fn access<A: cpu::Access>(&mut self) -> Result<Frame<'_, A>> {
        self.raw.access()
    }

    /// Gives the buffer back to user space, with a frame in it. Process context.
    ///
    /// `sequence` is the number of the frame since streaming started, with a gap for those that were
    /// lost. `timestamp` is the time of the frame.
    pub fn done(self, sequence: u32, timestamp: Instant<Monotonic>) {
        self.raw.set_sequence(sequence);
        self.raw.set_timestamp(timestamp);
        self.give_back(bindings::vb2_buffer_state_VB2_BUF_STATE_DONE);
    }

    fn give_back(self, state: bindings::vb2_buffer_state) {
        let mut this = ManuallyDrop::new(self);

        this.give_back_once(state);
    }

    /// Must be called once.
    fn give_back_once(&mut self, state: bindings::vb2_buffer_state) {
        // SAFETY: It is not used again: this is only called when `self` is not used any more.
        unsafe { ManuallyDrop::take(&mut self.raw) }.done(state);

        let mut ready = self.queue.ready.lock();

        ready.taken -= 1;
        if ready.taken == 0 {
            // With the lock held, as the queue may be gone when it is not.
            self.queue.given_back.notify_all();
        }
    }
}

impl<M: MemOps> Drop for Buffer<'_, M> {
    fn drop(&mut self) {
        self.give_back_once(bindings::vb2_buffer_state_VB2_BUF_STATE_ERROR);
    }
}
