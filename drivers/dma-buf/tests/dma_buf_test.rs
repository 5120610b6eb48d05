// SPDX-License-Identifier: GPL-2.0

//! What tests in user space need a driver for: one that is slow, one whose exporter is that of
//! another crate, and one whose initialisation fails when user space has got a buffer already.

use kernel::{
    dma_buf::{
        self,
        tests::Region,
        DmaBuf,
        Memory,
        MemoryExporter, //
    },
    fs::{
        file::{
            flags,
            FileDescriptorReservation, //
        },
        File, //
    },
    ioctl::{
        _IO,
        _IOW, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc,
    time::{
        delay::fsleep,
        Delta, //
    },
    uaccess::UserSlice, //
};

module! {
    type: Test,
    name: "dma_buf_test",
    authors: ["Rust for Linux Contributors"],
    description: "dma-buf driver for tests",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
    params: {
        fail: bool {
            default: false,
            description: "Whether the initialisation fails, with a buffer in user space",
        },
    },
}

/// Holds the reservation lock of the buffer behind the file descriptor, the first number, for as
/// many milliseconds as the second, 10000 at most.
const HOLD: u32 = _IOW::<[u64; 2]>('|' as u32, 0x93);
/// Allocates a page, as a buffer whose exporter is defined in the kernel. Returns a file
/// descriptor.
const REGION: u32 = _IO('|' as u32, 0x94);

/// The exporter of this module.
struct Buffer(Arc<Memory>);

#[vtable]
impl MemoryExporter for Buffer {
    const NAME: &'static CStr = c"dma_buf_test";

    fn memory(&self) -> &Arc<Memory> {
        &self.0
    }
}

/// Gives a page to user space.
fn publish<T: MemoryExporter>(exporter: fn(Arc<Memory>) -> T) -> Result<u32> {
    let fd = FileDescriptorReservation::get_unused_fd_flags(flags::O_CLOEXEC)?;
    let number = fd.reserved_fd();
    let memory = Memory::new(PAGE_SIZE, GFP_KERNEL_ACCOUNT)?;
    let data = KBox::new(exporter(memory), GFP_KERNEL)?;

    DmaBuf::install(dma_buf::export_memory(data, flags::O_RDWR)?, fd);
    Ok(number)
}

fn hold(fd: u64, millis: u64) -> Result {
    let buf = DmaBuf::get(fd.try_into().map_err(|_| EBADF)?)?;

    if millis > 10_000 {
        return Err(EINVAL);
    }

    let _guard = buf.resv().lock_interruptible()?;

    fsleep(Delta::from_millis(millis.try_into()?));
    Ok(())
}

struct Device;

#[vtable]
impl MiscDevice for Device {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        Ok(KBox::new(Self, GFP_KERNEL)?)
    }

    fn ioctl(_me: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            HOLD => {
                let arg = UserSlice::new(UserPtr::from_addr(arg), 16);
                let [fd, millis] = arg.reader().read()?;

                hold(fd, millis)?;
                Ok(0)
            }
            REGION => Ok(publish(Region)?.try_into()?),
            _ => Err(ENOTTY),
        }
    }
}

#[pin_data]
struct Test {
    #[pin]
    _misc: MiscDeviceRegistration<Device>,
}

impl kernel::InPlaceModule for Test {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let options = MiscDeviceOptions {
            name: c"dma-buf-test",
        };

        try_pin_init!(Self {
            _misc <- MiscDeviceRegistration::register(options),
            _: {
                if module_parameters::fail.value() {
                    // It is the process that loads the module which gets this.
                    publish(Buffer)?;
                    return Err(EINVAL);
                }
            },
        })
    }
}
