// SPDX-License-Identifier: GPL-2.0

//! Buffers of frames: videobuf2.
//!
//! C headers: [`include/media/videobuf2-core.h`](srctree/include/media/videobuf2-core.h),
//! [`include/media/videobuf2-v4l2.h`](srctree/include/media/videobuf2-v4l2.h)

mod memory;
mod queue;

pub use self::{
    memory::{
        Frame,
        MemOps,
        Pages,
        PagesAttachment,
        PagesMapping,
        Plane, //
    },
    queue::Buffer,
};

pub(super) use self::{
    memory::{
        mem_ops,
        QueueHost, //
    },
    queue::{
        init_queue,
        prepare,
        queue_setup,
        Queue, //
        QueueInit,
        RawBuffer,
    },
};
