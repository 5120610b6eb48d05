// SPDX-License-Identifier: GPL-2.0

//! Rust V4L2 sample: a memory-to-memory device.
//!
//! It flips and scales pictures, and converts between RGB formats. The buffers of both queues are
//! shared with other devices by dma-buf, either way. `rust_vivid` is a device to share them with.

use kernel::{
    device::{
        Core,
        Device, //
    },
    dma::DmaMask,
    driver,
    kthread::{
        self,
        JoinHandle,
        Thread, //
    },
    media::{
        m2m::{
            self,
            Context,
            Job, //
        },
        v4l2::{
            self,
            fourcc,
            id,
            Colorimetry,
            Control,
            Direction,
            FourCc,
            FrameSize,
            IoctlOps,
            PixFormat, //
        },
        vb2::Pages,
    },
    new_condvar, new_mutex, platform,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        CondVar,
        Mutex, //
    },
};

mod rust_v4l2_rgb;
use rust_v4l2_rgb::{
    encode,
    Rgb,
    BLACK, //
};

module! {
    type: RustVim2m,
    name: "rust_vim2m",
    authors: ["Rust for Linux Contributors"],
    description: "Rust V4L2 memory-to-memory sample",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
}

const FORMATS: [FourCc; 3] = [fourcc::RGB24, fourcc::XRGB32, fourcc::RGB565];

const MIN_SIZE: (u32, u32) = (16, 16);
const MAX_SIZE: (u32, u32) = (1920, 1080);
const DEFAULT_SIZE: (u32, u32) = (640, 480);

/// The formats of the queues.
struct Formats {
    src: PixFormat,
    dst: PixFormat,
}

/// What belongs to one open file.
#[pin_data]
struct Stream {
    #[pin]
    formats: Mutex<Formats>,
    hflip: Atomic<i32>,
    vflip: Atomic<i32>,
    jobs: Arc<Jobs>,
    /// Does the jobs while streaming.
    #[pin]
    worker: Mutex<Option<JoinHandle<Worker>>>,
}

impl Stream {
    fn new() -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            let (width, height) = DEFAULT_SIZE;
            let format = PixFormat::new(fourcc::RGB24, width, height, Colorimetry::SRGB)?;
            let jobs = Arc::pin_init(Jobs::new(), GFP_KERNEL)?;

            Ok(try_pin_init!(Self {
                formats <- new_mutex!(Formats {
                    src: format,
                    dst: format,
                }),
                hflip: Atomic::new(0),
                vflip: Atomic::new(0),
                jobs,
                worker <- new_mutex!(None),
            }))
        })
    }

    /// Reads the source line by line, and writes each to its place.
    fn process(&self, job: &Job<Vim2m>) -> Result {
        let (from, to) = {
            let formats = self.formats.lock();

            (formats.src, formats.dst)
        };
        let size = |format: &PixFormat| {
            Ok::<_, Error>((
                usize::try_from(format.width())?,
                usize::try_from(format.height())?,
                usize::try_from(format.bytesperline())?,
            ))
        };
        let (src_width, src_height, src_stride) = size(&from)?;
        let (dst_width, dst_height, dst_stride) = size(&to)?;
        let hflip = self.hflip.load(Relaxed) != 0;
        let vflip = self.vflip.load(Relaxed) != 0;

        let mut src_data = KVec::from_elem(0u8, src_stride, GFP_KERNEL)?;
        let mut src_line = KVec::from_elem(BLACK, src_width, GFP_KERNEL)?;
        let mut dst_line = KVec::from_elem(BLACK, dst_width, GFP_KERNEL)?;
        let mut dst_data = KVec::from_elem(0u8, dst_stride, GFP_KERNEL)?;
        let src = job.read_src()?;
        let dst = job.write_dst()?;
        let mut last = None;

        for y in 0..dst_height {
            let src_y = y * src_height / dst_height;

            // When it gets larger, lines are repeated.
            if last != Some(src_y) {
                src.copy_to_slice(src_y * src_stride, &mut src_data)?;
                decode(from.format(), &src_data, &mut src_line)?;
                for (x, pixel) in dst_line.iter_mut().enumerate() {
                    *pixel = *src_line.get(x * src_width / dst_width).ok_or(EIO)?;
                }
                if hflip {
                    dst_line.reverse();
                }
                encode(to.format(), &dst_line, &mut dst_data)?;
                last = Some(src_y);
            }

            let dst_y = if vflip { dst_height - 1 - y } else { y };

            dst.copy_from_slice(dst_y * dst_stride, &dst_data)?;
        }
        dst.finish()?;
        src.finish()
    }
}

#[vtable]
impl IoctlOps for Stream {
    const DRIVER: &'static CStr = c"rust_vim2m";
    const CARD: &'static CStr = c"rust_vim2m";

    const CONTROLS: &'static [Control] = &[
        Control::Boolean {
            id: id::HFLIP,
            default: false,
        },
        Control::Boolean {
            id: id::VFLIP,
            default: false,
        },
    ];

    fn formats(&self, _queue: Direction) -> &[FourCc] {
        &FORMATS
    }

    fn g_fmt(&self, queue: Direction) -> PixFormat {
        let formats = self.formats.lock();

        match queue {
            Direction::Output => formats.src,
            Direction::Capture => formats.dst,
        }
    }

    fn try_fmt(&self, queue: Direction, format: &PixFormat) -> Result<PixFormat> {
        let code = if FORMATS.contains(&format.format()) {
            format.format()
        } else {
            fourcc::RGB24
        };
        // The colours that come out are those that went in.
        let colors = match queue {
            Direction::Output => format.colorimetry().or_srgb(),
            Direction::Capture => self.formats.lock().src.colorimetry(),
        };

        PixFormat::new(
            code,
            format.width().clamp(MIN_SIZE.0, MAX_SIZE.0) & !1,
            format.height().clamp(MIN_SIZE.1, MAX_SIZE.1) & !1,
            colors,
        )
    }

    fn s_fmt(&self, queue: Direction, format: &PixFormat) -> Result {
        let mut formats = self.formats.lock();

        match queue {
            Direction::Output => {
                let dst = formats.dst;

                formats.src = *format;
                formats.dst = PixFormat::new(
                    dst.format(),
                    dst.width(),
                    dst.height(),
                    format.colorimetry(),
                )?;
            }
            Direction::Capture => formats.dst = *format,
        }
        Ok(())
    }

    fn enum_framesizes(&self, index: u32, format: FourCc) -> Option<FrameSize> {
        (index == 0 && FORMATS.contains(&format)).then_some(FrameSize::Stepwise {
            min: MIN_SIZE,
            max: MAX_SIZE,
            step: (2, 2),
        })
    }

    fn s_ctrl(&self, id: u32, value: i32) -> Result {
        match id {
            id::HFLIP => self.hflip.store(value, Relaxed),
            id::VFLIP => self.vflip.store(value, Relaxed),
            _ => return Err(EINVAL),
        }
        Ok(())
    }
}

/// What the thread of a context is told.
#[pin_data]
struct Jobs {
    #[pin]
    state: Mutex<State>,
    #[pin]
    changed: CondVar,
}

struct State {
    job: Option<Job<Vim2m>>,
    stop: bool,
}

impl Jobs {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_mutex!(State {
                job: None,
                stop: false,
            }),
            changed <- new_condvar!(),
        })
    }

    /// The next job, or none if this is to stop.
    fn next(&self) -> Option<Job<Vim2m>> {
        let mut state = self.state.lock();

        loop {
            if let Some(job) = state.job.take() {
                return Some(job);
            }
            if state.stop {
                return None;
            }
            // As a thread that may be idle for long; it gets no signals.
            let _ = self.changed.wait_interruptible(&mut state);
        }
    }

    fn set_stop(&self, stop: bool) {
        self.state.lock().stop = stop;
        self.changed.notify_all();
    }
}

/// The thread of a context.
struct Worker(Arc<Jobs>);

#[vtable]
impl Thread for Worker {
    fn run(self: KBox<Self>, _current: &kthread::Current) {
        while let Some(job) = self.0.next() {
            // Dropping the job tells user space of the error.
            if job.context().process(&job).is_ok() {
                job.finish();
            }
        }
    }
}

struct Vim2m;

#[vtable]
impl m2m::Driver for Vim2m {
    type Memory = Pages;
    type Context = Stream;

    fn open(_device: &m2m::Device<Self>) -> impl PinInit<Stream, Error> {
        Stream::new()
    }

    fn device_run(job: Job<Self>) {
        let jobs = job.context().jobs.clone();
        // There is one job at a time. Were there another, it would end with an error here.
        let other = jobs.state.lock().job.replace(job);

        jobs.changed.notify_all();
        drop(other);
    }

    fn start_streaming(ctx: &Context<Self>, queue: Direction) -> Result {
        // There are no jobs before both have started, nor when one has stopped.
        if queue == Direction::Output {
            ctx.jobs.set_stop(false);

            let worker = KBox::new(Worker(ctx.jobs.clone()), GFP_KERNEL)?;

            *ctx.worker.lock() = Some(kthread::spawn(c"rust_vim2m", worker)?);
        }
        Ok(())
    }

    fn stop_streaming(ctx: &Context<Self>, queue: Direction) {
        if queue == Direction::Output {
            ctx.jobs.set_stop(true);

            let worker = ctx.worker.lock().take();

            // This waits until it has ended.
            drop(worker);
        }
    }
}

/// Reads a line of pixels of an RGB format; what does not fit is left out.
fn decode(format: FourCc, data: &[u8], line: &mut [Rgb]) -> Result {
    match format {
        fourcc::RGB24 => {
            for (rgb, data) in line.iter_mut().zip(data.chunks_exact(3)) {
                rgb.copy_from_slice(data);
            }
        }
        fourcc::XRGB32 => {
            for (rgb, data) in line.iter_mut().zip(data.chunks_exact(4)) {
                rgb.copy_from_slice(&data[1..]);
            }
        }
        fourcc::RGB565 => {
            for (rgb, data) in line.iter_mut().zip(data.chunks_exact(2)) {
                let pixel = u16::from_le_bytes([data[0], data[1]]);
                // The upper bits again below, so that white is white.
                let wide = |value: u16, bits: u32| {
                    (value << (8 - bits) | value >> (2 * bits - 8)).to_le_bytes()[0]
                };

                *rgb = [
                    wide(pixel >> 11, 5),
                    wide(pixel >> 5 & 0x3f, 6),
                    wide(pixel & 0x1f, 5),
                ];
            }
        }
        _ => return Err(EINVAL),
    }
    Ok(())
}

/// The driver of the platform device, which has all it needs in the video device.
struct Driver;

impl Driver {
    fn new(dev: &Device<Core<'_>>) -> Result<Self> {
        let device = v4l2::Device::new(dev, c"rust_vim2m")?;

        m2m::Device::new(device, c"rust_vim2m", Vim2m)?.register()?;
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
struct RustVim2m {
    // Dropped first, while there is a driver to be unbound.
    _device: platform::DeviceRegistration,
    #[pin]
    _driver: driver::Registration<platform::Adapter<Driver>>,
}

impl kernel::InPlaceModule for RustVim2m {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // First, so that the device finds it.
            _driver <- driver::Registration::new(
                <LocalModule as kernel::ModuleMetadata>::NAME,
                module,
            ),
            _device: platform::DeviceRegistration::new(c"rust_vim2m", DmaMask::new::<64>())?,
        })
    }
}
