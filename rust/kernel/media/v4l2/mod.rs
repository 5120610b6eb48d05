// SPDX-License-Identifier: GPL-2.0

//! V4L2 devices: what all kinds have in common.
//!
//! C headers: [`include/media/v4l2-device.h`](srctree/include/media/v4l2-device.h),
//! [`include/media/v4l2-dev.h`](srctree/include/media/v4l2-dev.h),
//! [`include/media/v4l2-ioctl.h`](srctree/include/media/v4l2-ioctl.h),
//! [`include/media/v4l2-ctrls.h`](srctree/include/media/v4l2-ctrls.h)

mod ctrl;
mod device;
mod format;
mod ioctl;
mod video;

pub use self::{
    ctrl::{
        id,
        Control, //
    },
    device::{
        BoundGuard,
        Device, //
    },
    format::{
        fourcc,
        Colorimetry,
        FourCc,
        Fraction,
        FrameInterval,
        FrameSize,
        PixFormat, //
    },
    ioctl::{
        Direction,
        IoctlOps, //
    },
    video::{
        Unregistered,
        VideoNode, //
    },
};

pub(super) use self::{
    ctrl::Controls,
    ioctl::Host,
    video::{
        Node,
        Sealed, //
    },
};
