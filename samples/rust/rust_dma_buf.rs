// SPDX-License-Identifier: GPL-2.0

//! Rust dma-buf sample: an exporter and an importer.
//!
//! `/dev/rust-dma-buf` hands out buffers of ordinary memory, and imports buffers of any exporter
//! for a virtual device. `tools/testing/selftests/dma-buf` has programs that use it.

use kernel::{
    dma::{
        DataDirection,
        DmaMask, //
    },
    dma_buf::{
        self,
        cpu,
        DmaBuf,
        Memory,
        MemoryExporter, //
    },
    faux,
    fs::{
        file::{
            flags,
            FileDescriptorReservation, //
        },
        File, //
    },
    io::ResourceSize,
    ioctl::{
        _IOW,
        _IOWR, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    uaccess::UserSlice, //
};

module! {
    type: RustDmaBuf,
    name: "rust_dma_buf",
    authors: ["Rust for Linux Contributors"],
    description: "Rust dma-buf sample",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
}

/// Allocates a buffer of as many bytes. Returns a file descriptor.
const ALLOC: u32 = _IOW::<u64>('|' as u32, 0x90);
/// Maps the buffer behind a file descriptor for the device, and replaces the number by the sum of
/// all bytes.
const SUM: u32 = _IOWR::<u64>('|' as u32, 0x91);
/// Fills the buffer behind the file descriptor, the first number, with the second.
const FILL: u32 = _IOW::<[u64; 2]>('|' as u32, 0x92);

/// How much is copied at a time.
const CHUNK: usize = 4096;

/// What an exporter needs for one buffer. The memory is all there is.
struct Buffer(Arc<Memory>);

#[vtable]
impl MemoryExporter for Buffer {
    const NAME: &'static CStr = c"rust_dma_buf";

    fn memory(&self) -> &Arc<Memory> {
        &self.0
    }
}

/// One open file has a device of its own, which does the imports.
struct Importer {
    device: faux::Registration,
}

impl Importer {
    fn alloc(&self, size: u64) -> Result<isize> {
        // The descriptor first, and all that can fail. Installing is last: from then on user space
        // can do with the buffer what it likes.
        let fd = FileDescriptorReservation::get_unused_fd_flags(flags::O_CLOEXEC)?;
        let number = fd.reserved_fd();
        let memory = Memory::new(size.try_into()?, GFP_KERNEL_ACCOUNT)?;
        let data = KBox::new(Buffer(memory), GFP_KERNEL)?;

        DmaBuf::install(dma_buf::export_memory(data, flags::O_RDWR)?, fd);
        Ok(number.try_into()?)
    }

    fn sum(&self, fd: u64) -> Result<u64> {
        let buf = DmaBuf::get(fd.try_into().map_err(|_| EBADF)?)?;

        // A device that only reads. Here it would be told where the buffer is, and be waited for.
        // The mapping and the attachment end by themselves, also where `?` leaves early.
        let mapping = buf
            .attach(self.device.as_ref().as_ref())?
            .map(DataDirection::ToDevice)?;
        let mapped: ResourceSize = mapping.table().iter().map(|entry| entry.dma_len()).sum();

        drop(mapping);
        if usize::try_from(mapped)? < buf.size() {
            return Err(EIO);
        }

        let access = buf.cpu_access::<cpu::Read>()?;
        let mut chunk = KVec::from_elem(0u8, CHUNK, GFP_KERNEL)?;
        let mut sum = 0u64;

        for offset in (0..buf.size()).step_by(CHUNK) {
            let chunk = chunk.get_mut(..CHUNK.min(buf.size() - offset)).ok_or(EIO)?;

            access.copy_to_slice(offset, chunk)?;
            sum += chunk.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        }
        // Dropping would do as well, but only this tells of errors.
        access.finish()?;
        Ok(sum)
    }

    fn fill(&self, fd: u64, byte: u64) -> Result {
        let buf = DmaBuf::get(fd.try_into().map_err(|_| EBADF)?)?;
        let chunk = KVec::from_elem(u8::try_from(byte)?, CHUNK, GFP_KERNEL)?;
        let access = buf.cpu_access::<cpu::Write>()?;

        for offset in (0..buf.size()).step_by(CHUNK) {
            let chunk = chunk.get(..CHUNK.min(buf.size() - offset)).ok_or(EIO)?;

            access.copy_from_slice(offset, chunk)?;
        }
        access.finish()
    }
}

#[vtable]
impl MiscDevice for Importer {
    type Ptr = KBox<Self>;

    fn open(_file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        static COUNT: Atomic<u32> = Atomic::new(0);
        let number = COUNT.fetch_add(1, Relaxed);
        let name = CString::try_from_fmt(fmt!("rust_dma_buf.{number}"))?;
        let mask = DmaMask::new::<64>();
        let device = faux::Registration::new_with_dma_mask(&name, Some(misc.device()), mask)?;

        Ok(KBox::new(Self { device }, GFP_KERNEL)?)
    }

    fn ioctl(me: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let arg = UserPtr::from_addr(arg);

        match cmd {
            ALLOC => me.alloc(UserSlice::new(arg, 8).reader().read()?),
            SUM => {
                let (mut reader, mut writer) = UserSlice::new(arg, 8).reader_writer();

                writer.write(&me.sum(reader.read()?)?)?;
                Ok(0)
            }
            FILL => {
                let [fd, byte] = UserSlice::new(arg, 16).reader().read()?;

                me.fill(fd, byte)?;
                Ok(0)
            }
            _ => Err(ENOTTY),
        }
    }
}

#[pin_data]
struct RustDmaBuf {
    #[pin]
    _misc: MiscDeviceRegistration<Importer>,
}

impl kernel::InPlaceModule for RustDmaBuf {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let options = MiscDeviceOptions {
            name: c"rust-dma-buf",
        };

        try_pin_init!(Self {
            _misc <- MiscDeviceRegistration::register(options),
        })
    }
}
