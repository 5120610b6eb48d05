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
    pub(in crate::media) fn set_sequence(&mut self, sequence: u32) {
        // SAFETY: The driver has the buffer by the type invariants.
        unsafe {
            (*self.vb.as_ptr()).sequence = sequence;
            (*self.vb.as_ptr()).field = bindings::v4l2_field_V4L2_FIELD_NONE;
        }
    }

    pub(in crate::media) fn set_timestamp(&mut self, timestamp: Instant<Monotonic>) {
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

/// Some buffers of a queue, in an order.
struct Ring {
    buffers: [Option<(
        NonNull<bindings::vb2_v4l2_buffer>,
        bindings::vb2_buffer_state,
    )>; MAX_BUFFERS],
    first: usize,
    len: usize,
}

// SAFETY: Buffers belong to no task.
unsafe impl Send for Ring {}

impl Ring {
    const fn new() -> Self {
        Self {
            buffers: [None; MAX_BUFFERS],
            first: 0,
            len: 0,
        }
    }

    /// There is room for all buffers that a queue can have.
    fn push(
        &mut self,
        vb: NonNull<bindings::vb2_v4l2_buffer>,
        state: bindings::vb2_buffer_state,
    ) -> Result {
        if self.len == MAX_BUFFERS {
            return Err(ENOSPC);
        }
        self.buffers[(self.first + self.len) % MAX_BUFFERS] = Some((vb, state));
        self.len += 1;
        Ok(())
    }

    fn pop(
        &mut self,
    ) -> Option<(
        NonNull<bindings::vb2_v4l2_buffer>,
        bindings::vb2_buffer_state,
    )> {
        if self.len == 0 {
            return None;
        }

        let next = self.buffers[self.first].take();

        self.first = (self.first + 1) % MAX_BUFFERS;
        self.len -= 1;
        next
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// The driver must not take buffers.
    Stopped,
    /// It may, but they are not given back before it is known whether it could start: the core
    /// wants all of them as they were if not.
    Starting,
    /// It may.
    Streaming,
}

/// What is known of the buffers that are queued.
struct State {
    phase: Phase,
    /// What the driver has not taken yet.
    ready: Ring,
    /// How many it has.
    taken: usize,
    /// What it was done with before it had started, with the state to give it back in.
    early: Ring,
}

/// A queue whose buffers the driver takes one by one.
///
/// # Invariants
///
/// `queue` is initialised. What is in `ready` and in `early` is in the state
/// `VB2_BUF_STATE_ACTIVE`, and there is no other pointer to it of ours.
#[pin_data]
#[repr(C)]
pub(in crate::media) struct Queue {
    #[pin]
    queue: Opaque<bindings::vb2_queue>,
    #[pin]
    state: SpinLock<State>,
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
    pub(in crate::media) min_reqbufs: u32,
}

/// Initialises a queue.
///
/// # Safety
///
/// `queue` must be valid for writes, and all that `init` has must fit it: the operations must be
/// for the private data, and all of it must be valid as long as the queue is.
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
    q.min_reqbufs_allocation = init.min_reqbufs;
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

    if format.sizeimage() == 0 {
        return Err(EINVAL);
    }
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
    // SAFETY: By the safety requirements; nobody else changes this now. Others may read what is
    // beside it.
    unsafe {
        if (*vb).planes[0].length < format.sizeimage() {
            return Err(EINVAL);
        }
        (*vb).planes[0].bytesused = format.sizeimage();
    }
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
            state <- new_spinlock!(State {
                phase: Phase::Stopped,
                ready: Ring::new(),
                taken: 0,
                early: Ring::new(),
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

        let active = bindings::vb2_buffer_state_VB2_BUF_STATE_ACTIVE;

        if self.state.lock().ready.push(buffer, active).is_err() {
            // There cannot be that many.
            //
            // SAFETY: The buffer is the driver's.
            unsafe {
                bindings::vb2_buffer_done(vb, bindings::vb2_buffer_state_VB2_BUF_STATE_ERROR)
            };
        }
    }

    /// `start_streaming()`: lets the driver start.
    pub(in crate::media) fn start(&self, start: impl FnOnce() -> Result) -> Result {
        self.state.lock().phase = Phase::Starting;

        let result = start();

        match result {
            Ok(()) => {
                let mut state = self.state.lock();

                state.phase = Phase::Streaming;
                while let Some((vb, with)) = state.early.pop() {
                    // SAFETY: By the type invariants.
                    unsafe { Self::done(vb, with) };
                }
            }
            Err(_) => self.end(bindings::vb2_buffer_state_VB2_BUF_STATE_QUEUED),
        }
        result
    }

    /// `stop_streaming()`, after the driver.
    pub(in crate::media) fn stop(&self) {
        self.end(bindings::vb2_buffer_state_VB2_BUF_STATE_ERROR);
    }

    /// Waits until the driver has given its buffers back, and gives back all others.
    fn end(&self, with: bindings::vb2_buffer_state) {
        let mut state = self.state.lock();

        if state.phase == Phase::Streaming {
            state.phase = Phase::Stopped;
        }
        while state.taken != 0 {
            self.given_back.wait(&mut state);
        }
        state.phase = Phase::Stopped;
        while let Some((vb, _)) = state.early.pop().or_else(|| state.ready.pop()) {
            // SAFETY: By the type invariants.
            unsafe { Self::done(vb, with) };
        }
    }

    /// With the lock held, so that frames do not overtake each other.
    ///
    /// # Safety
    ///
    /// The buffer must be in the state `VB2_BUF_STATE_ACTIVE`, and not be used again.
    unsafe fn done(vb: NonNull<bindings::vb2_v4l2_buffer>, with: bindings::vb2_buffer_state) {
        // SAFETY: By the safety requirements.
        unsafe { bindings::vb2_buffer_done(&raw mut (*vb.as_ptr()).vb2_buf, with) };
    }

    /// # Safety
    ///
    /// The memory of the queue must be `M`.
    pub(in crate::media) unsafe fn take<M: MemOps>(&self) -> Option<Buffer<'_, M>> {
        let mut state = self.state.lock();

        if state.phase == Phase::Stopped {
            return None;
        }

        let (vb, _) = state.ready.pop()?;

        state.taken += 1;
        // INVARIANT: It is counted.
        Some(Buffer {
            // SAFETY: By the type invariants it is active, and the only pointer was taken here.
            raw: unsafe { RawBuffer::new(vb) },
            queue: self,
        })
    }

    /// Takes a buffer back.
    fn give_back(&self, vb: NonNull<bindings::vb2_v4l2_buffer>, with: bindings::vb2_buffer_state) {
        let mut state = self.state.lock();

        // There is room for all.
        if state.phase != Phase::Starting || state.early.push(vb, with).is_err() {
            // SAFETY: It is counted among those that the driver has, and not used again.
            unsafe { Self::done(vb, with) };
        }
        state.taken -= 1;
        if state.taken == 0 {
            self.given_back.notify_all();
        }
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
    raw: RawBuffer<M>,
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
    /// `sequence` is the number of the frame since streaming started, with a gap for those that
    /// were lost. `timestamp` is the time of the frame.
    pub fn done(self, sequence: u32, timestamp: Instant<Monotonic>) {
        self.give_back(
            sequence,
            timestamp,
            bindings::vb2_buffer_state_VB2_BUF_STATE_DONE,
        );
    }

    /// Gives the buffer back to user space, with an error in place of the frame. Dropping it does
    /// so, too, but says nothing of the frame.
    pub fn error(self, sequence: u32, timestamp: Instant<Monotonic>) {
        self.give_back(
            sequence,
            timestamp,
            bindings::vb2_buffer_state_VB2_BUF_STATE_ERROR,
        );
    }

    fn give_back(
        mut self,
        sequence: u32,
        timestamp: Instant<Monotonic>,
        state: bindings::vb2_buffer_state,
    ) {
        self.raw.set_sequence(sequence);
        self.raw.set_timestamp(timestamp);
        // What is left would give it back again.
        let this = ManuallyDrop::new(self);

        this.queue.give_back(this.raw.vb, state);
    }
}

impl<M: MemOps> Drop for Buffer<'_, M> {
    fn drop(&mut self) {
        self.queue
            .give_back(self.raw.vb, bindings::vb2_buffer_state_VB2_BUF_STATE_ERROR);
    }
}
