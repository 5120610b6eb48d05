// SPDX-License-Identifier: GPL-2.0

//! Rust V4L2 sample: a capture device that shows test patterns.
//!
//! Its buffers are shared with other devices by dma-buf, either way: it exports its own, and fills
//! those that it imports. `rust_vim2m` is a device to share them with.
//!
//! The first and the last sixteenth of a frame, from top to bottom, show its number: sixteen cells
//! of a sixteenth of the width, white for each bit of the number that is set, the lowest at the
//! left unless the picture is flipped. Between them is the pattern.

use kernel::{
    device::{
        Core,
        Device, //
    },
    dma::DmaMask,
    dma_buf::cpu,
    driver,
    kthread::{
        self,
        JoinHandle,
        Thread, //
    },
    media::{
        capture::{
            self,
            Capture, //
        },
        v4l2::{
            self,
            fourcc,
            id,
            Colorimetry,
            Control,
            Direction,
            FourCc,
            Fraction,
            FrameInterval,
            FrameSize,
            IoctlOps,
            PixFormat, //
        },
        vb2::{
            Frame,
            Pages, //
        },
    },
    new_mutex, platform,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow,
        Mutex, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

use core::num::NonZeroUsize;

mod rust_v4l2_rgb;
use rust_v4l2_rgb::{
    encode,
    Rgb,
    BLACK, //
};

module! {
    type: RustVivid,
    name: "rust_vivid",
    authors: ["Rust for Linux Contributors"],
    description: "Rust V4L2 capture sample",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
}

const FORMATS: [FourCc; 6] = [
    fourcc::RGB24,
    fourcc::XRGB32,
    fourcc::RGB565,
    fourcc::YUYV,
    fourcc::NV12,
    fourcc::GREY,
];

const MIN_SIZE: (u32, u32) = (16, 16);
const MAX_SIZE: (u32, u32) = (1920, 1080);
const DEFAULT_SIZE: (u32, u32) = (640, 480);

const fn per_second(frames: u32) -> Fraction {
    Fraction {
        numerator: 1,
        denominator: frames,
    }
}

const MIN_INTERVAL: Fraction = per_second(60);
const MAX_INTERVAL: Fraction = per_second(1);
const DEFAULT_INTERVAL: Fraction = per_second(30);

const COLOUR_BARS: i32 = 0;
const HORIZONTAL_RAMP: i32 = 1;
const VERTICAL_RAMP: i32 = 2;
const PATTERNS: &[&CStr] = &[c"Colour Bars", c"Horizontal Ramp", c"Vertical Ramp"];

const BARS: [Rgb; 8] = [
    [192, 192, 192],
    [192, 192, 0],
    [0, 192, 192],
    [0, 192, 0],
    [192, 0, 192],
    [192, 0, 0],
    [0, 0, 192],
    BLACK,
];

const WHITE: Rgb = [255, 255, 255];

/// How many cells there are across, which is how many bits of its number a frame shows.
const CELLS: usize = 16;

/// What user space chooses.
struct Settings {
    format: PixFormat,
    interval: Fraction,
}

/// The values of the controls. Those of a frame need not be from one moment.
struct Picture {
    pattern: Atomic<i32>,
    brightness: Atomic<i32>,
    hflip: Atomic<i32>,
    vflip: Atomic<i32>,
}

#[pin_data]
struct Vivid {
    #[pin]
    settings: Mutex<Settings>,
    picture: Picture,
    /// Fills buffers while streaming.
    #[pin]
    worker: Mutex<Option<JoinHandle<Worker>>>,
}

impl Vivid {
    fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            settings <- new_mutex!(Settings {
                format: PixFormat::new(
                    fourcc::RGB24,
                    DEFAULT_SIZE.0,
                    DEFAULT_SIZE.1,
                    Colorimetry::SRGB,
                )?,
                interval: DEFAULT_INTERVAL,
            }),
            // The core sets all controls before the device can be used.
            picture: Picture {
                pattern: Atomic::new(0),
                brightness: Atomic::new(0),
                hflip: Atomic::new(0),
                vflip: Atomic::new(0),
            },
            worker <- new_mutex!(None),
        })
    }
}

#[vtable]
impl IoctlOps for Vivid {
    const DRIVER: &'static CStr = c"rust_vivid";
    const CARD: &'static CStr = c"rust_vivid";
    const INPUT: &'static CStr = c"Test pattern";

    const CONTROLS: &'static [Control] = &[
        Control::Integer {
            id: id::BRIGHTNESS,
            min: 0,
            max: 255,
            step: 1,
            default: 128,
        },
        Control::Boolean {
            id: id::HFLIP,
            default: false,
        },
        Control::Boolean {
            id: id::VFLIP,
            default: false,
        },
        Control::Menu {
            id: id::TEST_PATTERN,
            items: PATTERNS,
            default: 0,
        },
    ];

    fn formats(&self, _queue: Direction) -> &[FourCc] {
        &FORMATS
    }

    fn g_fmt(&self, _queue: Direction) -> PixFormat {
        self.settings.lock().format
    }

    fn try_fmt(&self, _queue: Direction, format: &PixFormat) -> Result<PixFormat> {
        let code = if FORMATS.contains(&format.format()) {
            format.format()
        } else {
            fourcc::RGB24
        };

        PixFormat::new(
            code,
            format.width().clamp(MIN_SIZE.0, MAX_SIZE.0) & !1,
            format.height().clamp(MIN_SIZE.1, MAX_SIZE.1) & !1,
            Colorimetry::SRGB,
        )
    }

    fn s_fmt(&self, _queue: Direction, format: &PixFormat) -> Result {
        self.settings.lock().format = *format;
        Ok(())
    }

    fn enum_framesizes(&self, index: u32, format: FourCc) -> Option<FrameSize> {
        (index == 0 && FORMATS.contains(&format)).then_some(FrameSize::Stepwise {
            min: MIN_SIZE,
            max: MAX_SIZE,
            step: (2, 2),
        })
    }

    fn enum_frameintervals(
        &self,
        index: u32,
        format: FourCc,
        (width, height): (u32, u32),
    ) -> Option<FrameInterval> {
        let size_is_valid = (MIN_SIZE.0..=MAX_SIZE.0).contains(&width)
            && (MIN_SIZE.1..=MAX_SIZE.1).contains(&height)
            && width % 2 == 0
            && height % 2 == 0;

        (index == 0 && FORMATS.contains(&format) && size_is_valid).then_some(
            FrameInterval::Continuous {
                min: MIN_INTERVAL,
                max: MAX_INTERVAL,
            },
        )
    }

    fn g_parm(&self) -> Fraction {
        self.settings.lock().interval
    }

    fn s_parm(&self, wanted: Fraction) -> Result<Fraction> {
        let numerator = u64::from(wanted.numerator);
        let denominator = u64::from(wanted.denominator);
        let interval = if numerator == 0 || denominator == 0 {
            DEFAULT_INTERVAL
        } else if numerator * u64::from(MIN_INTERVAL.denominator) < denominator {
            MIN_INTERVAL
        } else if numerator > denominator {
            MAX_INTERVAL
        } else {
            wanted
        };

        self.settings.lock().interval = interval;
        Ok(interval)
    }

    fn s_ctrl(&self, id: u32, value: i32) -> Result {
        match id {
            id::BRIGHTNESS => self.picture.brightness.store(value, Relaxed),
            id::HFLIP => self.picture.hflip.store(value, Relaxed),
            id::VFLIP => self.picture.vflip.store(value, Relaxed),
            id::TEST_PATTERN => self.picture.pattern.store(value, Relaxed),
            _ => return Err(EINVAL),
        }
        Ok(())
    }
}

#[vtable]
impl capture::Driver for Vivid {
    type Memory = Pages;

    fn start_streaming(this: ArcBorrow<'_, Capture<Self>>) -> Result {
        let worker = KBox::new(
            Worker {
                canvas: Canvas::new(this.g_fmt(Direction::Capture))?,
                device: this.into(),
            },
            GFP_KERNEL,
        )?;

        *this.worker.lock() = Some(kthread::spawn(c"rust_vivid", worker)?);
        Ok(())
    }

    fn stop_streaming(this: &Capture<Self>) {
        let worker = this.worker.lock().take();

        // This waits until it has ended.
        drop(worker);
    }
}

/// The thread that fills the buffers.
struct Worker {
    device: Arc<Capture<Vivid>>,
    canvas: Canvas,
}

#[vtable]
impl Thread for Worker {
    fn run(self: KBox<Self>, current: &kthread::Current) {
        let Self { device, mut canvas } = KBox::into_inner(self);
        let mut due = Instant::<Monotonic>::now();
        let mut sequence = 0u32;

        loop {
            let interval = device.settings.lock().interval;

            // As of a sensor, the first frame takes its time, too. When this is too slow, the next
            // frame is late.
            due = due
                + Delta::from_nanos(
                    i64::from(interval.numerator) * 1_000_000_000
                        / i64::from(interval.denominator).max(1),
                );
            if (Instant::now() - due).as_nanos() > 0 {
                due = Instant::now();
            }
            current.sleep(due - Instant::now());
            if current.should_stop() {
                break;
            }

            if let Some(mut buffer) = device.next_buffer() {
                let result = buffer
                    .access()
                    .and_then(|frame| canvas.paint(&device, frame, sequence));
                let now = Instant::now();

                match result {
                    Ok(()) => buffer.done(sequence, now),
                    Err(_) => buffer.error(sequence, now),
                }
            }
            // The number of a frame that nobody gave a buffer for is left out.
            sequence = sequence.wrapping_add(1);
        }
    }
}

/// What the lines of a frame are made in.
struct Canvas {
    format: PixFormat,
    line: KVec<Rgb>,
    data: KVec<u8>,
    chroma: KVec<u8>,
}

/// Lines that look the same.
#[derive(Clone, Copy, PartialEq)]
enum Line {
    /// The number of the frame.
    Number,
    /// The pattern, with as much darker as this.
    Pattern(i32),
}

impl Canvas {
    fn new(format: PixFormat) -> Result<Self> {
        let width = usize::try_from(format.width())?;
        let stride = usize::try_from(format.bytesperline())?;

        Ok(Self {
            format,
            line: KVec::from_elem(BLACK, width, GFP_KERNEL)?,
            data: KVec::from_elem(0, stride, GFP_KERNEL)?,
            chroma: KVec::from_elem(0, stride, GFP_KERNEL)?,
        })
    }

    /// Fills a frame, and ends the access to it.
    fn paint(&mut self, vivid: &Vivid, frame: Frame<'_, cpu::Write>, sequence: u32) -> Result {
        let stride = self.data.len();
        let height = usize::try_from(self.format.height())?;
        let is_nv12 = self.format.format() == fourcc::NV12;
        let picture = &vivid.picture;
        let vflip = picture.vflip.load(Relaxed) != 0;
        let pattern = picture.pattern.load(Relaxed);
        let band = (height / CELLS).max(1);
        let mut last = None;

        for y in 0..height {
            let from_top = if vflip { height - 1 - y } else { y };
            let kind = if from_top < band || from_top >= height - band {
                Line::Number
            } else if pattern == VERTICAL_RAMP {
                Line::Pattern(i32::try_from(192 * from_top / at_least_one(height))?)
            } else {
                Line::Pattern(0)
            };

            if last != Some(kind) {
                self.draw(picture, kind, pattern, sequence);
                self.encode()?;
                last = Some(kind);
            }
            frame.copy_from_slice(y * stride, &self.data)?;
            if is_nv12 && y % 2 == 0 {
                frame.copy_from_slice((height + y / 2) * stride, &self.chroma)?;
            }
        }
        frame.finish()
    }

    /// Draws one line.
    fn draw(&mut self, picture: &Picture, kind: Line, pattern: i32, sequence: u32) {
        let width = at_least_one(self.line.len());
        let cell = at_least_one(self.line.len() / CELLS);
        let brightness = picture.brightness.load(Relaxed) - 128;
        let moving = sequence as usize % CELLS;

        for (x, pixel) in self.line.iter_mut().enumerate() {
            let column = x / cell;

            *pixel = match kind {
                Line::Number if column < CELLS && sequence >> column & 1 != 0 => WHITE,
                Line::Number => BLACK,
                Line::Pattern(_) if column == moving => WHITE,
                Line::Pattern(darker) => {
                    let color = match pattern {
                        COLOUR_BARS => BARS[(x * BARS.len() / width).min(BARS.len() - 1)],
                        HORIZONTAL_RAMP => [(x * 192 / width).to_le_bytes()[0]; 3],
                        _ => [192; 3],
                    };

                    color.map(|value| {
                        (i32::from(value) - darker + brightness)
                            .clamp(0, 255)
                            .to_le_bytes()[0]
                    })
                }
            };
        }
        if picture.hflip.load(Relaxed) != 0 {
            self.line.reverse();
        }
    }

    /// Puts the line into the format.
    fn encode(&mut self) -> Result {
        match self.format.format() {
            fourcc::YUYV => {
                for (out, two) in self.data.chunks_exact_mut(4).zip(self.line.chunks_exact(2)) {
                    let [y0, cb, cr] = to_ycbcr(&two[0]);
                    let [y1, _, _] = to_ycbcr(&two[1]);

                    out.copy_from_slice(&[y0, cb, y1, cr]);
                }
            }
            fourcc::NV12 => {
                for (out, rgb) in self.data.iter_mut().zip(&self.line) {
                    *out = to_ycbcr(rgb)[0];
                }
                for (out, two) in self
                    .chroma
                    .chunks_exact_mut(2)
                    .zip(self.line.chunks_exact(2))
                {
                    out.copy_from_slice(&to_ycbcr(&two[0])[1..]);
                }
            }
            fourcc::GREY => {
                for (out, rgb) in self.data.iter_mut().zip(&self.line) {
                    *out = to_ycbcr(rgb)[0];
                }
            }
            rgb => encode(rgb, &self.line, &mut self.data)?,
        }
        Ok(())
    }
}

/// What can be divided by. No frame is without width or height.
fn at_least_one(value: usize) -> NonZeroUsize {
    NonZeroUsize::new(value).unwrap_or(NonZeroUsize::MIN)
}

/// The luma and the chroma of a pixel: Y, Cb, Cr as of BT.601, of limited range.
fn to_ycbcr(rgb: &Rgb) -> [u8; 3] {
    let [r, g, b] = rgb.map(i32::from);

    [
        (66 * r + 129 * g + 25 * b + 128 >> 8) + 16,
        (-38 * r - 74 * g + 112 * b + 128 >> 8) + 128,
        (112 * r - 94 * g - 18 * b + 128 >> 8) + 128,
    ]
    .map(|value| value.clamp(0, 255).to_le_bytes()[0])
}

/// The driver of the platform device, which has all it needs in the video device.
struct Driver;

impl Driver {
    fn new(dev: &Device<Core<'_>>) -> Result<Self> {
        let device = v4l2::Device::new(dev, c"rust_vivid")?;

        Capture::new(device, c"rust_vivid", Vivid::new())?.register()?;
        Ok(Self)
    }
}

impl platform::Driver for Driver {
    type IdInfo = ();
    type Data<'bound> = Self;

    fn probe<'bound>(
        pdev: &'bound platform::Device<Core<'_>>,
        _id_info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self, Error> + 'bound {
        Self::new(pdev.as_ref())
    }
}

#[pin_data]
struct RustVivid {
    // Dropped first, while there is a driver to be unbound.
    _device: platform::DeviceRegistration,
    #[pin]
    _driver: driver::Registration<platform::Adapter<Driver>>,
}

impl kernel::InPlaceModule for RustVivid {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // First, so that the device finds it.
            _driver <- driver::Registration::new(
                <LocalModule as kernel::ModuleMetadata>::NAME,
                module,
            ),
            _device: platform::DeviceRegistration::new(c"rust_vivid", DmaMask::new::<64>())?,
        })
    }
}
