// SPDX-License-Identifier: GPL-2.0

//! The ioctls of a video device.

use super::{
    device::copy_name,
    FourCc,
    Fraction,
    FrameInterval,
    FrameSize,
    PixFormat, //
};

use crate::{
    bindings,
    error::{
        from_result,
        VTABLE_DEFAULT_ERROR, //
    },
    prelude::*, //
};

use core::marker::PhantomData;

/// Which way the frames of a queue go, seen from user space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The device fills the buffers. `V4L2_BUF_TYPE_VIDEO_CAPTURE`.
    Capture,
    /// The device reads the buffers. `V4L2_BUF_TYPE_VIDEO_OUTPUT`.
    Output,
}

impl Direction {
    pub(in crate::media) fn from_raw(buf_type: u32) -> Result<Self> {
        match buf_type {
            bindings::v4l2_buf_type_V4L2_BUF_TYPE_VIDEO_CAPTURE => Ok(Self::Capture),
            bindings::v4l2_buf_type_V4L2_BUF_TYPE_VIDEO_OUTPUT => Ok(Self::Output),
            _ => Err(EINVAL),
        }
    }

    pub(in crate::media) fn as_raw(self) -> u32 {
        match self {
            Self::Capture => bindings::v4l2_buf_type_V4L2_BUF_TYPE_VIDEO_CAPTURE,
            Self::Output => bindings::v4l2_buf_type_V4L2_BUF_TYPE_VIDEO_OUTPUT,
        }
    }
}

/// The ioctls that a driver answers.
///
/// Those of one device run at the same time in several tasks, also while frames are processed, and
/// may still run when the device is not bound any more. All run in process context, and may sleep.
/// The core has looked at types and numbers of what user space gave, and no further.
///
/// C source: `struct v4l2_ioctl_ops`.
#[vtable]
pub trait IoctlOps: Send + Sync + Sized + 'static {
    /// The name of the driver, up to 15 bytes.
    const DRIVER: &'static CStr;

    /// The name of the device for people, up to 31 bytes.
    const CARD: &'static CStr;

    /// The name of the only input of a capture device, up to 31 bytes.
    const INPUT: &'static CStr = c"Camera";

    /// The controls, whose values [`s_ctrl`](Self::s_ctrl) is told.
    const CONTROLS: &'static [super::Control] = &[];

    /// The pixel formats that a queue can have. `VIDIOC_ENUM_FMT`.
    fn formats(&self, queue: Direction) -> &[FourCc];

    /// The format of a queue. `VIDIOC_G_FMT`.
    ///
    /// Its size is that of the buffers. It may only change by [`s_fmt`](Self::s_fmt).
    fn g_fmt(&self, queue: Direction) -> PixFormat;

    /// The format of a queue that is nearest to `format`. `VIDIOC_TRY_FMT`.
    fn try_fmt(&self, queue: Direction, format: &PixFormat) -> Result<PixFormat>;

    /// Sets the format of a queue. `VIDIOC_S_FMT`.
    ///
    /// `format` is what [`try_fmt`](Self::try_fmt) returned. The queue has no buffers.
    fn s_fmt(&self, queue: Direction, format: &PixFormat) -> Result;

    /// The size number `index` that frames can have. `VIDIOC_ENUM_FRAMESIZES`.
    fn enum_framesizes(&self, _index: u32, _format: FourCc) -> Option<FrameSize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The interval number `index` that frames of this width and height can have.
    /// `VIDIOC_ENUM_FRAMEINTERVALS`.
    fn enum_frameintervals(
        &self,
        _index: u32,
        _format: FourCc,
        _size: (u32, u32),
    ) -> Option<FrameInterval> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The time from one frame to the next, in seconds. `VIDIOC_G_PARM`.
    fn g_parm(&self) -> Fraction {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Sets the time from one frame to the next to the nearest, and returns it. `VIDIOC_S_PARM`.
    ///
    /// A denominator or numerator of zero asks for the default.
    fn s_parm(&self, _interval: Fraction) -> Result<Fraction> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// A control has a new value, which is valid for it. `VIDIOC_S_CTRL` and others.
    ///
    /// Called for each control before the device can be used.
    fn s_ctrl(&self, _id: u32, _value: i32) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// What the ioctls of a file are for.
///
/// # Safety
///
/// What the functions return must belong to `file`, an open file of a video device whose ioctls
/// are [`ioctl_ops`] of the implementing type, and be valid for as long as it is open.
pub(in crate::media) unsafe trait Host {
    /// Who answers.
    type Ops: IoctlOps;

    /// Whether frames go in and come out of the same device.
    const M2M: bool;

    /// # Safety
    ///
    /// `file` must be open, of such a device.
    unsafe fn ops<'a>(file: *mut bindings::file) -> &'a Self::Ops;

    /// # Safety
    ///
    /// `file` must be open, of such a device.
    unsafe fn queue(file: *mut bindings::file, queue: Direction) -> *mut bindings::vb2_queue;
}

/// The ioctls of a kind of device.
pub(in crate::media) fn ioctl_ops<H: Host>() -> &'static bindings::v4l2_ioctl_ops {
    const { &Table::<H>::OPS }
}

/// The C side calls all these functions with a file that is open, whose device has this table, and
/// with an argument that is a copy of what user space gave, in memory of the kernel, for this call
/// alone.
struct Table<H>(PhantomData<H>);

impl<H: Host> Table<H> {
    const OPS: bindings::v4l2_ioctl_ops = {
        let mut ops: bindings::v4l2_ioctl_ops = pin_init::zeroed();

        ops.vidioc_querycap = Some(Self::querycap);
        ops.vidioc_enum_fmt_vid_cap = Some(Self::enum_fmt);
        ops.vidioc_g_fmt_vid_cap = Some(Self::g_fmt);
        ops.vidioc_try_fmt_vid_cap = Some(Self::try_fmt);
        ops.vidioc_s_fmt_vid_cap = Some(Self::s_fmt);
        if H::Ops::HAS_ENUM_FRAMESIZES {
            ops.vidioc_enum_framesizes = Some(Self::enum_framesizes);
        }
        if H::Ops::HAS_ENUM_FRAMEINTERVALS {
            ops.vidioc_enum_frameintervals = Some(Self::enum_frameintervals);
        }
        if H::Ops::HAS_G_PARM {
            ops.vidioc_g_parm = Some(Self::g_parm);
        }
        if H::Ops::HAS_S_PARM {
            ops.vidioc_s_parm = Some(Self::s_parm);
        }
        ops.vidioc_log_status = Some(bindings::v4l2_ctrl_log_status);
        ops.vidioc_subscribe_event = Some(bindings::v4l2_ctrl_subscribe_event);
        ops.vidioc_unsubscribe_event = Some(bindings::v4l2_event_unsubscribe);

        if H::M2M {
            ops.vidioc_enum_fmt_vid_out = Some(Self::enum_fmt);
            ops.vidioc_g_fmt_vid_out = Some(Self::g_fmt);
            ops.vidioc_try_fmt_vid_out = Some(Self::try_fmt);
            ops.vidioc_s_fmt_vid_out = Some(Self::s_fmt);
            ops.vidioc_reqbufs = Some(bindings::v4l2_m2m_ioctl_reqbufs);
            ops.vidioc_create_bufs = Some(bindings::v4l2_m2m_ioctl_create_bufs);
            ops.vidioc_remove_bufs = Some(bindings::v4l2_m2m_ioctl_remove_bufs);
            ops.vidioc_prepare_buf = Some(bindings::v4l2_m2m_ioctl_prepare_buf);
            ops.vidioc_querybuf = Some(bindings::v4l2_m2m_ioctl_querybuf);
            ops.vidioc_qbuf = Some(bindings::v4l2_m2m_ioctl_qbuf);
            ops.vidioc_dqbuf = Some(bindings::v4l2_m2m_ioctl_dqbuf);
            ops.vidioc_expbuf = Some(bindings::v4l2_m2m_ioctl_expbuf);
            ops.vidioc_streamon = Some(bindings::v4l2_m2m_ioctl_streamon);
            ops.vidioc_streamoff = Some(bindings::v4l2_m2m_ioctl_streamoff);
        } else {
            ops.vidioc_enum_input = Some(Self::enum_input);
            ops.vidioc_g_input = Some(Self::g_input);
            ops.vidioc_s_input = Some(Self::s_input);
            ops.vidioc_reqbufs = Some(bindings::vb2_ioctl_reqbufs);
            ops.vidioc_create_bufs = Some(bindings::vb2_ioctl_create_bufs);
            ops.vidioc_remove_bufs = Some(bindings::vb2_ioctl_remove_bufs);
            ops.vidioc_prepare_buf = Some(bindings::vb2_ioctl_prepare_buf);
            ops.vidioc_querybuf = Some(bindings::vb2_ioctl_querybuf);
            ops.vidioc_qbuf = Some(bindings::vb2_ioctl_qbuf);
            ops.vidioc_dqbuf = Some(bindings::vb2_ioctl_dqbuf);
            ops.vidioc_expbuf = Some(bindings::vb2_ioctl_expbuf);
            ops.vidioc_streamon = Some(bindings::vb2_ioctl_streamon);
            ops.vidioc_streamoff = Some(bindings::vb2_ioctl_streamoff);
        }
        ops
    };

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn querycap(
        _file: *mut bindings::file,
        _priv: *mut c_void,
        cap: *mut bindings::v4l2_capability,
    ) -> c_int {
        // SAFETY: See [`Table`].
        let cap = unsafe { &mut *cap };

        from_result(|| {
            copy_name(H::Ops::DRIVER, &mut cap.driver)?;
            copy_name(H::Ops::CARD, &mut cap.card)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn enum_fmt(
        file: *mut bindings::file,
        _priv: *mut c_void,
        desc: *mut bindings::v4l2_fmtdesc,
    ) -> c_int {
        // SAFETY: See [`Table`].
        let (ops, desc) = unsafe { (H::ops(file), &mut *desc) };

        from_result(|| {
            let formats = ops.formats(Direction::from_raw(desc.type_)?);
            let format = formats.get(usize::try_from(desc.index)?).ok_or(EINVAL)?;

            desc.pixelformat = format.as_u32();
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn g_fmt(
        file: *mut bindings::file,
        _priv: *mut c_void,
        format: *mut bindings::v4l2_format,
    ) -> c_int {
        // SAFETY: See [`Table`].
        let (ops, format) = unsafe { (H::ops(file), &mut *format) };

        from_result(|| {
            format.fmt.pix = ops.g_fmt(Direction::from_raw(format.type_)?).into_raw();
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn try_fmt(
        file: *mut bindings::file,
        _priv: *mut c_void,
        format: *mut bindings::v4l2_format,
    ) -> c_int {
        // SAFETY: See [`Table`].
        let (ops, format) = unsafe { (H::ops(file), &mut *format) };

        from_result(|| {
            let queue = Direction::from_raw(format.type_)?;
            // SAFETY: For these types of buffers, this is the variant of the union.
            let wanted = PixFormat::from_raw(unsafe { format.fmt.pix });

            format.fmt.pix = ops.try_fmt(queue, &wanted)?.into_raw();
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn s_fmt(
        file: *mut bindings::file,
        _priv: *mut c_void,
        format: *mut bindings::v4l2_format,
    ) -> c_int {
        // SAFETY: See [`Table`].
        let (ops, format) = unsafe { (H::ops(file), &mut *format) };

        from_result(|| {
            let queue = Direction::from_raw(format.type_)?;
            // SAFETY: For these types of buffers, this is the variant of the union.
            let wanted = PixFormat::from_raw(unsafe { format.fmt.pix });
            let found = ops.try_fmt(queue, &wanted)?;
            // SAFETY: The file is open.
            let vq = unsafe { H::queue(file, queue) };

            // The core has the lock of the device for this ioctl. For a mem2mem device that is not
            // the lock of the queues, under which buffers come and go.
            //
            // SAFETY: The queue is valid, and its lock does not change.
            let lock = H::M2M.then(|| unsafe { (*vq).lock });

            if let Some(lock) = lock {
                // SAFETY: The lock is valid.
                unsafe { bindings::mutex_lock(lock) };
            }
            // SAFETY: The queue is valid.
            let result = if unsafe { bindings::vb2_is_busy(vq) } {
                Err(EBUSY)
            } else {
                ops.s_fmt(queue, &found)
            };

            if let Some(lock) = lock {
                // SAFETY: It was locked above.
                unsafe { bindings::mutex_unlock(lock) };
            }
            format.fmt.pix = found.into_raw();
            result.map(|()| 0)
        })
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn enum_framesizes(
        file: *mut bindings::file,
        _priv: *mut c_void,
        sizes: *mut bindings::v4l2_frmsizeenum,
    ) -> c_int {
        // SAFETY: See [`Table`].
        let (ops, sizes) = unsafe { (H::ops(file), &mut *sizes) };

        from_result(|| {
            let format = FourCc::from_u32(sizes.pixel_format);

            match ops.enum_framesizes(sizes.index, format).ok_or(EINVAL)? {
                FrameSize::Discrete((width, height)) => {
                    sizes.type_ = bindings::v4l2_frmsizetypes_V4L2_FRMSIZE_TYPE_DISCRETE;
                    sizes.__bindgen_anon_1.discrete =
                        bindings::v4l2_frmsize_discrete { width, height };
                }
                FrameSize::Stepwise { min, max, step } => {
                    sizes.type_ = bindings::v4l2_frmsizetypes_V4L2_FRMSIZE_TYPE_STEPWISE;
                    sizes.__bindgen_anon_1.stepwise = bindings::v4l2_frmsize_stepwise {
                        min_width: min.0,
                        max_width: max.0,
                        step_width: step.0,
                        min_height: min.1,
                        max_height: max.1,
                        step_height: step.1,
                    };
                }
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn enum_frameintervals(
        file: *mut bindings::file,
        _priv: *mut c_void,
        ivals: *mut bindings::v4l2_frmivalenum,
    ) -> c_int {
        // SAFETY: See [`Table`].
        let (ops, ivals) = unsafe { (H::ops(file), &mut *ivals) };

        from_result(|| {
            let format = FourCc::from_u32(ivals.pixel_format);
            let size = (ivals.width, ivals.height);

            match ops
                .enum_frameintervals(ivals.index, format, size)
                .ok_or(EINVAL)?
            {
                FrameInterval::Discrete(interval) => {
                    ivals.type_ = bindings::v4l2_frmivaltypes_V4L2_FRMIVAL_TYPE_DISCRETE;
                    ivals.__bindgen_anon_1.discrete = interval.into();
                }
                FrameInterval::Continuous { min, max } => {
                    ivals.type_ = bindings::v4l2_frmivaltypes_V4L2_FRMIVAL_TYPE_CONTINUOUS;
                    ivals.__bindgen_anon_1.stepwise = bindings::v4l2_frmival_stepwise {
                        min: min.into(),
                        max: max.into(),
                        // What the documentation wants of it.
                        step: Fraction {
                            numerator: 1,
                            denominator: 1,
                        }
                        .into(),
                    };
                }
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn g_parm(
        file: *mut bindings::file,
        _priv: *mut c_void,
        parm: *mut bindings::v4l2_streamparm,
    ) -> c_int {
        // SAFETY: See [`Table`].
        let (ops, parm) = unsafe { (H::ops(file), &mut *parm) };

        from_result(|| {
            Self::check_parm(parm)?;
            Self::put_parm(parm, ops.g_parm())
        })
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn s_parm(
        file: *mut bindings::file,
        _priv: *mut c_void,
        parm: *mut bindings::v4l2_streamparm,
    ) -> c_int {
        // SAFETY: See [`Table`].
        let (ops, parm) = unsafe { (H::ops(file), &mut *parm) };

        from_result(|| {
            Self::check_parm(parm)?;

            // SAFETY: For this type of buffers, this is the variant of the union.
            let wanted = unsafe { parm.parm.capture.timeperframe };
            let interval = ops.s_parm(wanted.into())?;

            Self::put_parm(parm, interval)
        })
    }

    fn check_parm(parm: &bindings::v4l2_streamparm) -> Result {
        if parm.type_ != Direction::Capture.as_raw() {
            return Err(EINVAL);
        }
        Ok(())
    }

    fn put_parm(parm: &mut bindings::v4l2_streamparm, interval: Fraction) -> Result<c_int> {
        parm.parm.capture = bindings::v4l2_captureparm {
            capability: bindings::V4L2_CAP_TIMEPERFRAME,
            timeperframe: interval.into(),
            readbuffers: 1,
            ..pin_init::zeroed()
        };
        Ok(0)
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn enum_input(
        _file: *mut bindings::file,
        _priv: *mut c_void,
        input: *mut bindings::v4l2_input,
    ) -> c_int {
        // SAFETY: See [`Table`].
        let input = unsafe { &mut *input };

        from_result(|| {
            if input.index != 0 {
                return Err(EINVAL);
            }
            input.type_ = bindings::V4L2_INPUT_TYPE_CAMERA;
            copy_name(H::Ops::INPUT, &mut input.name)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn g_input(
        _file: *mut bindings::file,
        _priv: *mut c_void,
        index: *mut c_uint,
    ) -> c_int {
        // SAFETY: See [`Table`].
        unsafe { *index = 0 };
        0
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn s_input(
        _file: *mut bindings::file,
        _priv: *mut c_void,
        index: c_uint,
    ) -> c_int {
        match index {
            0 => 0,
            _ => EINVAL.to_errno(),
        }
    }
}
