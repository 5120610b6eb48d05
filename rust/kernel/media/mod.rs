// SPDX-License-Identifier: GPL-2.0

//! V4L2 drivers.
//!
//! - [`v4l2`]: what all have in common: the device, its ioctls, formats and controls.
//! - [`capture`]: a video device with one queue, that fills buffers.
//! - [`m2m`]: a video device that processes buffers, with a context for each open file.
//! - [`vb2`]: buffers, and the memory that they are made of, which is shared with other devices by
//!   [`dma_buf`](crate::dma_buf).
//!
//! This is the part of V4L2 that a device with one node and frames in one piece needs. There are no
//! media controller and sub-devices, no multi-planar formats, no requests, and no `USERPTR`. It is
//! the CPU that reads and writes frames: hardware cannot be given their addresses yet.
//!
//! # Who owns what
//!
//! A driver makes a [`v4l2::Device`] in its probe, then a [`capture::Capture`] or an
//! [`m2m::Device`], which has all the driver's data, and registers it. What was registered is
//! unregistered when the device is unbound, and is freed when the last file is closed and the
//! driver's own references are dropped: files may be open long after the device is gone. Ioctls
//! that run at that time are not waited for, so callbacks have no bound device. Where they need
//! one, they ask for it: [`v4l2::Device::enter`] keeps the device bound until it is dropped, or
//! says that it is gone.
//!
//! Callbacks of one device run at the same time, in several tasks. So they have `&self`, and what
//! changes is behind a lock, or atomic.
//!
//! # Buffers
//!
//! A buffer that is queued belongs to the driver until it is done. It has it as a value that its
//! completion consumes, [`vb2::Buffer`] or [`m2m::Job`]: there is nothing left to touch a buffer
//! with that belongs to user space again. Dropped, it completes with an error. Streaming does not
//! end before all have been given back.
//!
//! Frames are written and read by copies, in process context, and between the begin and the end of
//! an access by the CPU, that other devices see: user space, and other devices, may access the same
//! memory at any time.
//!
//! See also `Documentation/driver-api/media/v4l2-rust.rst`.

use crate::prelude::*;

/// The names of locks that generic functions make. Lockdep compares the addresses of names, and a
/// literal has another in each module that such a function is compiled into.
mod lock_name {
    use super::*;

    pub(super) static CONTROLS: &CStr = c"v4l2::Controls";
    pub(super) static NODE: &CStr = c"v4l2::Node::lock";
    pub(super) static M2M_CONTEXTS: &CStr = c"m2m::Device::contexts";
    pub(super) static M2M_QUEUES: &CStr = c"m2m::Context::lock";
    pub(super) static M2M_JOBS: &CStr = c"m2m::Context::jobs";
    pub(super) static M2M_FINISHED: &CStr = c"m2m::Context::finished";
}

pub mod capture;
pub mod m2m;
pub mod v4l2;
pub mod vb2;
