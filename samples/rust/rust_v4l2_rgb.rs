// SPDX-License-Identifier: GPL-2.0

//! Lines of pixels, for the V4L2 samples.

use kernel::{
    media::v4l2::{
        fourcc,
        FourCc, //
    },
    prelude::*, //
};

/// Red, green and blue, of 8 bits.
pub(crate) type Rgb = [u8; 3];

/// Black.
pub(crate) const BLACK: Rgb = [0, 0, 0];

/// Writes a line of pixels in an RGB format; what does not fit is left out.
pub(crate) fn encode(format: FourCc, line: &[Rgb], out: &mut [u8]) -> Result {
    match format {
        fourcc::RGB24 => {
            for (out, rgb) in out.chunks_exact_mut(3).zip(line) {
                out.copy_from_slice(rgb);
            }
        }
        fourcc::XRGB32 => {
            for (out, [r, g, b]) in out.chunks_exact_mut(4).zip(line) {
                out.copy_from_slice(&[255, *r, *g, *b]);
            }
        }
        fourcc::RGB565 => {
            for (out, rgb) in out.chunks_exact_mut(2).zip(line) {
                let [r, g, b] = rgb.map(u16::from);

                out.copy_from_slice(&(r >> 3 << 11 | g >> 2 << 5 | b >> 3).to_le_bytes());
            }
        }
        _ => return Err(EINVAL),
    }
    Ok(())
}
