// SPDX-License-Identifier: GPL-2.0

//! Pixel formats, frame sizes and frame rates.

use crate::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// The code of a pixel format.
///
/// # Examples
///
/// ```
/// use kernel::media::v4l2::{fourcc, FourCc};
///
/// assert_eq!(FourCc::new(*b"YUYV"), fourcc::YUYV);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct FourCc(u32);

impl FourCc {
    /// The code of these four characters. C source: `v4l2_fourcc()`.
    pub const fn new(code: [u8; 4]) -> Self {
        Self(u32::from_le_bytes(code))
    }

    /// The code of this number.
    #[inline]
    pub const fn from_u32(code: u32) -> Self {
        Self(code)
    }

    /// The number that user space knows.
    #[inline]
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

/// Codes of pixel formats. C source: `V4L2_PIX_FMT_*`.
pub mod fourcc {
    use super::FourCc;

    /// Bytes red, green, blue.
    pub const RGB24: FourCc = FourCc::new(*b"RGB3");
    /// Bytes unused, red, green, blue.
    pub const XRGB32: FourCc = FourCc::new(*b"BX24");
    /// 16 bits, little endian: five red, from the top, six green, five blue.
    pub const RGB565: FourCc = FourCc::new(*b"RGBP");
    /// Bytes Y, Cb, Y, Cr for two pixels.
    pub const YUYV: FourCc = FourCc::new(*b"YUYV");
    /// A plane of Y, then one of Cb and Cr for each two by two pixels, in one buffer.
    pub const NV12: FourCc = FourCc::new(*b"NV12");
    /// One byte of grey.
    pub const GREY: FourCc = FourCc::new(*b"GREY");
}

/// How to understand the colours of a format.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Colorimetry {
    colorspace: u32,
    ycbcr_enc: u32,
    quantization: u32,
    xfer_func: u32,
}

impl Colorimetry {
    /// `V4L2_COLORSPACE_SRGB`, with its defaults for the rest.
    pub const SRGB: Self = Self {
        colorspace: bindings::v4l2_colorspace_V4L2_COLORSPACE_SRGB,
        ycbcr_enc: 0,
        quantization: 0,
        xfer_func: 0,
    };

    /// These, or those of sRGB if user space left it to the device.
    pub fn or_srgb(self) -> Self {
        match self.colorspace {
            bindings::v4l2_colorspace_V4L2_COLORSPACE_DEFAULT => Self::SRGB,
            _ => self,
        }
    }
}

/// A format of frames in one piece. C source: `struct v4l2_pix_format`.
///
/// # Examples
///
/// ```
/// use kernel::media::v4l2::{fourcc, Colorimetry, PixFormat};
///
/// let format = PixFormat::new(fourcc::NV12, 640, 480, Colorimetry::SRGB)?;
///
/// assert_eq!(format.bytesperline(), 640);
/// assert_eq!(format.sizeimage(), 640 * 480 * 3 / 2);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct PixFormat(bindings::v4l2_pix_format);

impl PixFormat {
    /// The largest width and height, in pixels. With up to eight bytes for each, all sizes fit.
    pub const MAX_SIZE: u32 = 16384;

    /// The format of this kind and size, progressive, and without padding between the lines.
    ///
    /// C source: `v4l2_fill_pixfmt()`.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the core does not know the pixel format, or the width or the height is zero or
    /// more than [`MAX_SIZE`](Self::MAX_SIZE).
    pub fn new(format: FourCc, width: u32, height: u32, colors: Colorimetry) -> Result<Self> {
        // The C side does not look for overflows.
        if ![width, height]
            .iter()
            .all(|size| (1..=Self::MAX_SIZE).contains(size))
        {
            return Err(EINVAL);
        }

        let mut pix = bindings::v4l2_pix_format {
            field: bindings::v4l2_field_V4L2_FIELD_NONE,
            colorspace: colors.colorspace,
            quantization: colors.quantization,
            xfer_func: colors.xfer_func,
            ..pin_init::zeroed()
        };

        pix.__bindgen_anon_1.ycbcr_enc = colors.ycbcr_enc;
        // SAFETY: The pointer is valid for the call.
        to_result(unsafe { bindings::v4l2_fill_pixfmt(&mut pix, format.0, width, height) })?;
        Ok(Self(pix))
    }

    pub(super) fn from_raw(pix: bindings::v4l2_pix_format) -> Self {
        Self(pix)
    }

    pub(super) fn into_raw(self) -> bindings::v4l2_pix_format {
        self.0
    }

    /// The width in pixels.
    #[inline]
    pub fn width(&self) -> u32 {
        self.0.width
    }

    /// The height in pixels.
    #[inline]
    pub fn height(&self) -> u32 {
        self.0.height
    }

    /// The pixel format.
    #[inline]
    pub fn format(&self) -> FourCc {
        FourCc(self.0.pixelformat)
    }

    /// The bytes from the start of a line to the start of the next.
    #[inline]
    pub fn bytesperline(&self) -> u32 {
        self.0.bytesperline
    }

    /// The bytes of a frame.
    #[inline]
    pub fn sizeimage(&self) -> u32 {
        self.0.sizeimage
    }

    /// How to understand the colours.
    #[inline]
    pub fn colorimetry(&self) -> Colorimetry {
        Colorimetry {
            colorspace: self.0.colorspace,
            // SAFETY: All variants of the union are integers of this size.
            ycbcr_enc: unsafe { self.0.__bindgen_anon_1.ycbcr_enc },
            quantization: self.0.quantization,
            xfer_func: self.0.xfer_func,
        }
    }
}

/// A time, or a rate, as a fraction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fraction {
    /// Above the line.
    pub numerator: u32,
    /// Below the line.
    pub denominator: u32,
}

impl From<Fraction> for bindings::v4l2_fract {
    fn from(fraction: Fraction) -> Self {
        Self {
            numerator: fraction.numerator,
            denominator: fraction.denominator,
        }
    }
}

impl From<bindings::v4l2_fract> for Fraction {
    fn from(fraction: bindings::v4l2_fract) -> Self {
        Self {
            numerator: fraction.numerator,
            denominator: fraction.denominator,
        }
    }
}

/// Sizes of frames, in pixels, as width and height.
#[derive(Clone, Copy, Debug)]
pub enum FrameSize {
    /// One size.
    Discrete((u32, u32)),
    /// All sizes from `min` to `max` in steps of `step`.
    Stepwise {
        /// The smallest.
        min: (u32, u32),
        /// The largest.
        max: (u32, u32),
        /// The distance from one to the next.
        step: (u32, u32),
    },
}

/// Times from one frame to the next, in seconds.
#[derive(Clone, Copy, Debug)]
pub enum FrameInterval {
    /// One interval.
    Discrete(Fraction),
    /// All intervals from `min` to `max`.
    Continuous {
        /// The shortest.
        min: Fraction,
        /// The longest.
        max: Fraction,
    },
}
