// SPDX-License-Identifier: GPL-2.0

//! KUnit tests: the memory operations, as videobuf2 calls them.

use super::*;

use crate::{
    device::Core,
    dma::DmaMask,
    dma_buf::Memory,
    driver,
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::file::flags,
    mm::virt::flags as vm_flags,
    page::PAGE_SIZE,
    platform,
    sync::atomic::Atomic,
    types::Opaque, //
};

const NAME: &CStr = c"rust_kunit_vb2";

/// Memory whose attachments look like a large number of users, wherever one looks for that.
struct Marked;

impl MemOps for Marked {
    type Plane = Arc<Memory>;
    type Attachment = [u32; 64];
    type Mapping = ();

    fn alloc(size: usize) -> Result<Arc<Memory>> {
        Pages::alloc(size)
    }

    // As by a driver that does not think of how a mapping can change.
    fn mmap(_plane: &Arc<Memory>, _vma: &VmaNew) -> Result {
        Ok(())
    }

    fn export(_plane: ARef<Plane<Self>>, _flags: u32) -> Result<ARef<DmaBuf>> {
        Err(EOPNOTSUPP)
    }

    fn view(plane: &Arc<Memory>) -> Result<SysMem<'_, [u8]>> {
        Pages::view(plane)
    }

    fn attach(_dev: &Device<Bound>, _buf: &DmaBuf, _size: usize) -> Result<[u32; 64]> {
        Ok([0x1234_5678; 64])
    }

    fn map(_attachment: &[u32; 64], _dev: &Device<Bound>, _dir: DataDirection) -> Result {
        Ok(())
    }

    fn access<A: cpu::Access>(plane: &Arc<Memory>) -> Result<Frame<'_, A>> {
        Pages::access(plane)
    }

    fn access_mapped<A: cpu::Access>(_mapping: &()) -> Result<Frame<'_, A>> {
        Err(EDOM)
    }
}

/// A queue of which there is nothing but its device.
#[repr(C)]
struct Host {
    queue: Opaque<bindings::vb2_queue>,
    device: Arc<v4l2::Device>,
}

// SAFETY: The device is that of the host, which the queue is a part of.
unsafe impl QueueHost for Host {
    unsafe fn device<'a>(queue: *mut bindings::vb2_queue) -> &'a Arc<v4l2::Device> {
        // SAFETY: The queue is the first field of a host.
        unsafe { &(*queue.cast::<Host>()).device }
    }
}

/// The operations, and a buffer to call them for.
struct Caller {
    ops: &'static bindings::vb2_mem_ops,
    host: Host,
    vb: bindings::vb2_buffer,
}

/// What is not as it has to be is in the log.
fn check(good: bool, what: &str) -> Result {
    if !good {
        pr_err!("not as it has to be: {what}\n");
        return Err(EDOM);
    }
    Ok(())
}

// Why the unsafe calls here are sound: the operations get what videobuf2 hands them, NULL included,
// and the buffer and its queue are valid.
impl Caller {
    fn new<M: MemOps>(device: &Arc<v4l2::Device>) -> Self {
        Self {
            ops: mem_ops::<M, Host>(),
            host: Host {
                queue: Opaque::zeroed(),
                device: device.clone(),
            },
            vb: Default::default(),
        }
    }

    fn vb(&mut self, memory: bindings::vb2_memory, length: usize) -> *mut bindings::vb2_buffer {
        self.vb.vb2_queue = self.host.queue.get();
        self.vb.memory = memory;
        // CAST: A few pages.
        self.vb.planes[0].length = length as u32;
        &mut self.vb
    }

    fn own(&mut self, length: usize) -> *mut bindings::vb2_buffer {
        self.vb(bindings::vb2_memory_VB2_MEMORY_MMAP, length)
    }

    fn alloc(&mut self) -> Result<*mut c_void> {
        let alloc = self.ops.alloc.ok_or(ENOSYS)?;

        // SAFETY: See the `impl` block.
        from_err_ptr(unsafe { alloc(self.own(PAGE_SIZE), ptr::null_mut(), PAGE_SIZE) })
    }

    fn attach(&mut self, buf: &DmaBuf, size: usize) -> Result<*mut c_void> {
        let attach = self.ops.attach_dmabuf.ok_or(ENOSYS)?;
        let vb = self.vb(bindings::vb2_memory_VB2_MEMORY_DMABUF, PAGE_SIZE);
        // A buffer is transparent.
        let buf = ptr::from_ref(buf).cast_mut().cast();

        // SAFETY: See the `impl` block.
        from_err_ptr(unsafe { attach(vb, ptr::null_mut(), buf, size) })
    }

    fn num_users(&self, private: *mut c_void) -> Result<u32> {
        // SAFETY: See the `impl` block.
        Ok(unsafe { self.ops.num_users.ok_or(ENOSYS)?(private) })
    }

    fn vaddr(&mut self, private: *mut c_void, length: usize) -> Result<*mut c_void> {
        let vaddr = self.ops.vaddr.ok_or(ENOSYS)?;

        // SAFETY: See the `impl` block.
        Ok(unsafe { vaddr(self.own(length), private) })
    }

    fn get_dmabuf(&mut self, private: *mut c_void) -> Result<*mut bindings::dma_buf> {
        let get_dmabuf = self.ops.get_dmabuf.ok_or(ENOSYS)?;
        // CAST: Small.
        let flags = flags::O_RDWR as usize;

        // SAFETY: See the `impl` block.
        from_err_ptr(unsafe { get_dmabuf(self.own(PAGE_SIZE), private, flags) })
    }

    fn map(&self, private: *mut c_void) -> Result {
        // SAFETY: See the `impl` block.
        to_result(unsafe { self.ops.map_dmabuf.ok_or(ENOSYS)?(private) })
    }

    fn unmap(&self, private: *mut c_void) -> Result {
        // SAFETY: See the `impl` block.
        unsafe { self.ops.unmap_dmabuf.ok_or(ENOSYS)?(private) };
        Ok(())
    }

    fn detach(&self, private: *mut c_void) -> Result {
        // SAFETY: See the `impl` block.
        unsafe { self.ops.detach_dmabuf.ok_or(ENOSYS)?(private) };
        Ok(())
    }

    fn put(&self, private: *mut c_void) -> Result {
        // SAFETY: See the `impl` block.
        unsafe { self.ops.put.ok_or(ENOSYS)?(private) };
        Ok(())
    }

    /// Whether what is not memory of the queue's own is not treated as such.
    fn refuses_as_own(&mut self, private: *mut c_void) -> Result {
        let area: Opaque<bindings::vm_area_struct> = Opaque::zeroed();

        check(self.num_users(private)? == 0, "it has users")?;
        check(
            self.vaddr(private, PAGE_SIZE)?.is_null(),
            "it has an address",
        )?;
        // SAFETY: See the `impl` block; the area is not looked at.
        let error = unsafe { self.ops.mmap.ok_or(ENOSYS)?(private, area.get()) };
        check(error == EINVAL.to_errno(), "it can be mapped")?;
        check(
            self.get_dmabuf(private).err() == Some(EINVAL),
            "it can be exported",
        )
    }

    /// Whether what is not imported is not treated as such.
    fn refuses_as_import(&mut self, private: *mut c_void) -> Result {
        check(
            self.map(private).err() == Some(EINVAL),
            "it can be mapped for a device",
        )?;
        self.unmap(private)
    }
}

fn nothing<M: MemOps>(device: &Arc<v4l2::Device>) -> Result {
    let mut caller = Caller::new::<M>(device);

    caller.refuses_as_own(ptr::null_mut())?;
    caller.refuses_as_import(ptr::null_mut())?;
    caller.detach(ptr::null_mut())?;
    caller.put(ptr::null_mut())
}

fn own(device: &Arc<v4l2::Device>) -> Result {
    let mut caller = Caller::new::<Pages>(device);
    let plane = caller.alloc()?;

    check(caller.num_users(plane)? == 1, "the queue is its one user")?;
    caller.refuses_as_import(plane)?;
    check(
        !caller.vaddr(plane, PAGE_SIZE)?.is_null(),
        "it has an address",
    )?;
    check(
        caller.vaddr(plane, PAGE_SIZE + 1)?.is_null(),
        "it ends where the memory does",
    )?;

    let buf = caller.get_dmabuf(plane)?;

    check(
        caller.num_users(plane)? == 2,
        "an exported buffer is a user",
    )?;
    // SAFETY: The reference is that of `get_dmabuf`, and these threads may wait for the release.
    unsafe { bindings::__fput_sync((*buf).file) };
    check(caller.num_users(plane)? == 1, "it is none any more")?;
    caller.put(plane)
}

/// A mapping cannot be expanded, and is a user of the plane, whatever the memory is.
fn mapped(device: &Arc<v4l2::Device>) -> Result {
    let mut caller = Caller::new::<Marked>(device);
    let plane = caller.alloc()?;
    let area: Opaque<bindings::vm_area_struct> = Opaque::zeroed();
    let vma = area.get();

    // SAFETY: The area is new, and nobody else has it.
    unsafe {
        to_result(caller.ops.mmap.ok_or(ENOSYS)?(plane, vma))?;

        let flags = (*vma).__bindgen_anon_2.vm_flags;
        let fixed = vm_flags::DONTEXPAND | vm_flags::DONTDUMP;

        check(flags & fixed == fixed, "it is neither expanded nor dumped")?;
        check(caller.num_users(plane)? == 2, "a mapping is a user")?;

        let ops = (*vma).vm_ops;

        (*ops).open.ok_or(ENOSYS)?(vma);
        check(caller.num_users(plane)? == 3, "and so is a copy of it")?;
        (*ops).close.ok_or(ENOSYS)?(vma);
        (*ops).close.ok_or(ENOSYS)?(vma);
    }
    check(caller.num_users(plane)? == 1, "it is none any more")?;
    caller.put(plane)
}

fn imported(device: &Arc<v4l2::Device>) -> Result {
    let buf = Pages::export(Plane::new(Pages::alloc(PAGE_SIZE)?)?, flags::O_RDWR)?;
    let mut caller = Caller::new::<Marked>(device);
    let import = caller.attach(&buf, PAGE_SIZE)?;

    caller.refuses_as_own(import)?;
    caller.map(import)?;
    caller.refuses_as_own(import)?;
    caller.unmap(import)?;
    caller.detach(import)?;

    let mut caller = Caller::new::<Pages>(device);

    check(
        caller.attach(&buf, PAGE_SIZE + 1).err() == Some(EFAULT),
        "a buffer that is too small is refused",
    )?;
    let import = caller.attach(&buf, PAGE_SIZE)?;

    caller.refuses_as_own(import)?;
    caller.map(import)?;
    caller.unmap(import)?;
    caller.map(import)?;
    // That it is mapped still is what detaching has to see.
    caller.detach(import)
}

static PASSED: Atomic<bool> = Atomic::new(false);

/// Has a device that is bound: the one that it probes.
struct Prober;

impl platform::Driver for Prober {
    type IdInfo = ();
    type Data<'bound> = ();

    fn probe<'bound>(
        pdev: &'bound platform::Device<Core<'_>>,
        _id_info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<(), Error> + 'bound {
        let test = || -> Result {
            let device = v4l2::Device::new(pdev.as_ref(), NAME)?;

            nothing::<Pages>(&device)?;
            nothing::<Marked>(&device)?;
            own(&device)?;
            mapped(&device)?;
            imported(&device)?;
            PASSED.store(true, Relaxed);
            Ok(())
        };

        test()
    }
}

#[kunit_tests(rust_media_vb2_memory)]
mod suite {
    use super::*;

    // SAFETY: What is built in has no module.
    static MODULE: ThisModule = unsafe { ThisModule::from_ptr(ptr::null_mut()) };

    #[test]
    fn operations_for_any_memory() -> Result {
        PASSED.store(false, Relaxed);
        // Dropped last.
        let _driver = KBox::pin_init(
            driver::Registration::<platform::Adapter<Prober>>::new(NAME, &MODULE),
            GFP_KERNEL,
        )?;
        let _device = platform::DeviceRegistration::new(NAME, DmaMask::new::<64>())?;

        assert!(PASSED.load(Relaxed));
        Ok(())
    }
}
