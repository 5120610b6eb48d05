// SPDX-License-Identifier: GPL-2.0

//! The memory of buffers.
//!
//! C header: [`include/media/videobuf2-core.h`](srctree/include/media/videobuf2-core.h)

use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::DataDirection,
    dma_buf::{
        self,
        attachment::{
            DevresAttachment,
            DevresMapping, //
        },
        cpu,
        CpuAccess,
        DmaBuf,
        Memory,
        MemoryExporter, //
    },
    error::{
        from_result,
        Error, //
    },
    io::{
        Io,
        SysMem, //
    },
    media::v4l2,
    mm::virt::VmaNew,
    prelude::*,
    sync::{
        aref::{
            ARef,
            AlwaysRefCounted, //
        },
        atomic::Relaxed,
        Arc,
        Refcount, //
    }, //
};

use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    },
};

/// A kind of memory that buffers are made of: their own, and that which is imported.
///
/// All functions run in process context, and may sleep. The lock of the queue is held, but for
/// [`mmap`](Self::mmap), where that of the address space is, and inside of it `mmap_lock` of the
/// queue; and for access by the CPU. What is dropped may be dropped with `mmap_lock`: memory of
/// user space must not be touched. A plane is
/// dropped by its last user, whoever that is. Functions that get a bound device are only called
/// while it is; what they return may outlive the binding, so it has to give up by itself what needs
/// it, as [`DevresAttachment`] does.
///
/// C source: `struct vb2_mem_ops`. [`Pages`] implements it for ordinary memory.
pub trait MemOps: Sized + 'static {
    /// The memory of a plane of its own. `V4L2_MEMORY_MMAP`.
    type Plane: Send + Sync + 'static;

    /// A plane in the buffer of another exporter, while it is attached. `V4L2_MEMORY_DMABUF`.
    type Attachment: Send + Sync + 'static;

    /// What is attached, while it is mapped for the device.
    type Mapping: Send + Sync + 'static;

    /// Allocates a plane of `size` bytes.
    fn alloc(size: usize) -> Result<Self::Plane>;

    /// Maps a plane for user space.
    fn mmap(plane: &Self::Plane, vma: &VmaNew) -> Result;

    /// Exports a plane as a buffer, with the access mode of `flags`. The buffer has a reference to
    /// the plane, and both outlive the device.
    fn export(plane: ARef<Plane<Self>>, flags: u32) -> Result<ARef<DmaBuf>>;

    /// The plane as the kernel sees it, for `read()`.
    fn view(plane: &Self::Plane) -> Result<SysMem<'_, [u8]>>;

    /// Attaches the device to a buffer that has room for `size` bytes.
    fn attach(dev: &Device<Bound>, buf: &DmaBuf, size: usize) -> Result<Self::Attachment>;

    /// Maps what is attached for DMA. No reservation lock is held.
    fn map(
        attachment: &Self::Attachment,
        dev: &Device<Bound>,
        dir: DataDirection,
    ) -> Result<Self::Mapping>;

    /// Begins an access by the CPU to a plane.
    fn access<A: cpu::Access>(plane: &Self::Plane) -> Result<Frame<'_, A>>;

    /// Begins an access by the CPU to what is mapped.
    fn access_mapped<A: cpu::Access>(mapping: &Self::Mapping) -> Result<Frame<'_, A>>;
}

/// Ordinary memory, page by page. A buffer that is imported is attached and mapped for the device,
/// and accessed by the CPU in between.
///
/// Importers attach and map the buffers that this exports as they do any other.
pub struct Pages;

/// A plane of [`Pages`] as a buffer.
struct Exported(ARef<Plane<Pages>>);

#[vtable]
impl MemoryExporter for Exported {
    const NAME: &'static CStr = c"rust_vb2_pages";

    fn memory(&self) -> &Arc<Memory> {
        &self.0
    }
}

/// A buffer to which a device that needs not be bound any more was attached.
pub struct PagesAttachment(DevresAttachment);

/// A buffer that is mapped for a device, for as long as that is bound.
pub struct PagesMapping(DevresMapping);

impl MemOps for Pages {
    type Plane = Arc<Memory>;
    type Attachment = PagesAttachment;
    type Mapping = PagesMapping;

    fn alloc(size: usize) -> Result<Self::Plane> {
        Memory::new(size, GFP_KERNEL)
    }

    fn mmap(plane: &Self::Plane, vma: &VmaNew) -> Result {
        plane.mmap(vma)
    }

    // So that what the buffer is made with is in this crate, and not in the module of the driver,
    // which the buffer would keep loaded.
    #[inline(never)]
    fn export(plane: ARef<Plane<Self>>, flags: u32) -> Result<ARef<DmaBuf>> {
        let data = KBox::new(Exported(plane), GFP_KERNEL)?;

        Ok(dma_buf::export_memory(data, flags)?)
    }

    fn view(plane: &Self::Plane) -> Result<SysMem<'_, [u8]>> {
        Ok(plane.deref().view())
    }

    fn attach(dev: &Device<Bound>, buf: &DmaBuf, size: usize) -> Result<Self::Attachment> {
        // What user space says of the size may be more than there is. The error is that of
        // videobuf2's memory operations in C.
        if size > buf.size() {
            return Err(EFAULT);
        }
        Ok(PagesAttachment(buf.attach(dev)?.into_devres()))
    }

    fn map(
        attachment: &Self::Attachment,
        dev: &Device<Bound>,
        dir: DataDirection,
    ) -> Result<Self::Mapping> {
        Ok(PagesMapping(attachment.0.map(dev, dir)?))
    }

    fn access<A: cpu::Access>(plane: &Self::Plane) -> Result<Frame<'_, A>> {
        Ok(Frame::of_memory(plane))
    }

    fn access_mapped<A: cpu::Access>(mapping: &Self::Mapping) -> Result<Frame<'_, A>> {
        Frame::of_buf(mapping.0.buf())
    }
}

/// A plane of a buffer, with its number of users: the queue, buffers that are exported, mappings of
/// user space.
///
/// # Invariants
///
/// It was allocated by [`KBox`]. `users` is the number of references.
pub struct Plane<M: MemOps> {
    users: Refcount,
    memory: M::Plane,
}

impl<M: MemOps> Plane<M> {
    /// How many references there are.
    fn users(&self) -> c_uint {
        // A reference count is never negative.
        c_uint::try_from(self.users.as_atomic().load(Relaxed)).unwrap_or(0)
    }

    fn new(memory: M::Plane) -> Result<ARef<Self>> {
        let plane = KBox::new(
            Self {
                users: Refcount::new(1),
                memory,
            },
            GFP_KERNEL,
        )?;

        // SAFETY: There is one reference, and it is not used for anything else.
        Ok(unsafe { ARef::from_raw(NonNull::from(KBox::leak(plane))) })
    }
}

impl<M: MemOps> Deref for Plane<M> {
    type Target = M::Plane;

    #[inline]
    fn deref(&self) -> &M::Plane {
        &self.memory
    }
}

// SAFETY: The count is that of the references; the last of them frees it.
unsafe impl<M: MemOps> AlwaysRefCounted for Plane<M> {
    fn inc_ref(&self) {
        self.users.inc();
    }

    unsafe fn dec_ref(this: NonNull<Self>) {
        // SAFETY: The caller has a reference, so this is valid until it is given back here.
        if unsafe { this.as_ref() }.users.dec_and_test() {
            // SAFETY: It was the last, and by the type invariants it is from a `KBox`.
            drop(unsafe { KBox::from_raw(this.as_ptr()) });
        }
    }
}

/// A plane in the buffer of another exporter.
///
/// # Invariants
///
/// `mapping` is only changed by the C side's calls to map and to unmap, which have the lock of the
/// queue, while no driver has the buffer.
struct Import<M: MemOps> {
    // Dropped first.
    mapping: UnsafeCell<Option<M::Mapping>>,
    attachment: M::Attachment,
    device: Arc<v4l2::Device>,
}

/// The memory of a plane as the C side keeps it, in `mem_priv`.
///
/// The C side has one pointer for either kind, and calls `num_users`, `vaddr` and what V4L2 offers
/// for all buffers, such as exporting, without a look at the kind. So each function looks.
enum Private<M: MemOps> {
    /// `V4L2_MEMORY_MMAP`.
    Own(ARef<Plane<M>>),
    /// `V4L2_MEMORY_DMABUF`.
    Import(Import<M>),
}

impl<M: MemOps> Private<M> {
    /// The pointer that the C side keeps, or an error as one.
    fn into_raw(this: Result<Self>) -> *mut c_void {
        match this.and_then(|this| Ok(KBox::new(this, GFP_KERNEL)?)) {
            Ok(this) => KBox::into_raw(this).cast(),
            Err(e) => e.to_ptr(),
        }
    }

    /// What the C side has. That is nothing at first, when a buffer can be found already.
    ///
    /// # Safety
    ///
    /// `private` must be NULL, or from [`Self::into_raw`] and not dropped before the end of `'a`.
    unsafe fn from_raw<'a>(private: *mut c_void) -> Option<&'a Self> {
        // SAFETY: By the safety requirements.
        unsafe { private.cast::<Self>().as_ref() }
    }

    /// Drops what the C side had.
    ///
    /// # Safety
    ///
    /// `private` must be NULL, or from [`Self::into_raw`], and not be used again.
    unsafe fn drop_raw(private: *mut c_void) {
        if !private.is_null() {
            // SAFETY: By the safety requirements.
            drop(unsafe { KBox::<Self>::from_raw(private.cast()) });
        }
    }

    fn own(&self) -> Result<&Plane<M>> {
        match self {
            Self::Own(plane) => Ok(plane),
            Self::Import(_) => Err(EINVAL),
        }
    }

    fn import(&self) -> Result<&Import<M>> {
        match self {
            Self::Own(_) => Err(EINVAL),
            Self::Import(import) => Ok(import),
        }
    }
}

/// A frame, for access by the CPU. Dropping it ends the access, [`finish`](Self::finish) also tells
/// of errors.
///
/// User space and other devices may access the same memory. So there are only copies.
pub struct Frame<'a, A: cpu::Access> {
    inner: Inner<'a, A>,
    size: usize,
}

enum Inner<'a, A: cpu::Access> {
    Memory(MemoryAccess<'a>),
    Buf(CpuAccess<A>),
}

/// An access to memory of ours, as [`CpuAccess`] is to a buffer.
struct MemoryAccess<'a>(&'a Memory);

impl<'a> MemoryAccess<'a> {
    fn part(&self, offset: usize, len: usize) -> Result<SysMem<'a, [u8]>> {
        let end = offset.checked_add(len).ok_or(EINVAL)?;
        let view = self.0.view();

        if end > view.size() {
            return Err(EINVAL);
        }

        let start = view.as_ptr().cast::<u8>().wrapping_add(offset);

        // SAFETY: The part is within the view, and lives as long.
        Ok(unsafe { SysMem::new(ptr::slice_from_raw_parts_mut(start, len)) })
    }
}

impl Drop for MemoryAccess<'_> {
    fn drop(&mut self) {
        self.0.end_cpu_access();
    }
}

impl<'a, A: cpu::Access> Frame<'a, A> {
    /// Begins an access to memory.
    pub fn of_memory(memory: &'a Memory) -> Self {
        memory.begin_cpu_access();
        Self {
            size: memory.size(),
            inner: Inner::Memory(MemoryAccess(memory)),
        }
    }

    /// Begins an access to a buffer. See [`DmaBuf::cpu_access`].
    pub fn of_buf(buf: &DmaBuf) -> Result<Self> {
        Ok(Self {
            size: buf.size(),
            inner: Inner::Buf(buf.cpu_access()?),
        })
    }

    /// The bytes that there are.
    #[inline]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Ends the access.
    ///
    /// # Errors
    ///
    /// Those of [`CpuAccess::finish`].
    pub fn finish(self) -> Result {
        match self.inner {
            Inner::Memory(access) => {
                drop(access);
                Ok(())
            }
            Inner::Buf(access) => access.finish(),
        }
    }

    fn check(&self, offset: usize, len: usize) -> Result {
        if offset.checked_add(len).ok_or(EINVAL)? > self.size {
            return Err(EINVAL);
        }
        Ok(())
    }
}

impl<A: cpu::Readable> Frame<'_, A> {
    /// Copies what is at `offset`.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it is not within the frame.
    pub fn copy_to_slice(&self, offset: usize, data: &mut [u8]) -> Result {
        self.check(offset, data.len())?;
        match &self.inner {
            Inner::Memory(access) => {
                access.part(offset, data.len())?.copy_to_slice(data);
                Ok(())
            }
            Inner::Buf(access) => access.copy_to_slice(offset, data),
        }
    }
}

impl<A: cpu::Writable> Frame<'_, A> {
    /// Copies `data` to `offset`.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it is not within the frame.
    pub fn copy_from_slice(&self, offset: usize, data: &[u8]) -> Result {
        self.check(offset, data.len())?;
        match &self.inner {
            Inner::Memory(access) => {
                access.part(offset, data.len())?.copy_from_slice(data);
                Ok(())
            }
            Inner::Buf(access) => access.copy_from_slice(offset, data),
        }
    }
}

/// Begins an access by the CPU to the first plane of a buffer.
///
/// # Safety
///
/// `vb` must be a buffer of a queue with the [`mem_ops`] of `M`, that the driver has for `'a`.
pub(super) unsafe fn access<'a, M: MemOps, A: cpu::Access>(
    vb: *mut bindings::vb2_buffer,
) -> Result<Frame<'a, A>> {
    // SAFETY: While the driver has the buffer, this does not change.
    let (mem_priv, length) = unsafe { ((*vb).planes[0].mem_priv, (*vb).planes[0].length) };

    // SAFETY: The memory remains while the driver has the buffer.
    let mut frame = match unsafe { Private::<M>::from_raw(mem_priv) }.ok_or(EINVAL)? {
        Private::Own(plane) => M::access(plane)?,
        Private::Import(import) => {
            // SAFETY: It is neither mapped nor unmapped while the driver has the buffer.
            let mapping = unsafe { &*import.mapping.get() };

            M::access_mapped(mapping.as_ref().ok_or(EIO)?)?
        }
    };

    // What user space says of an imported buffer may be less than there is.
    frame.size = frame.size.min(usize::try_from(length)?);
    Ok(frame)
}

/// A kind of queue.
///
/// # Safety
///
/// [`device`](Self::device) must return what is valid for as long as the queue is.
pub(in crate::media) unsafe trait QueueHost {
    /// # Safety
    ///
    /// `queue` must be a queue of this kind.
    unsafe fn device<'a>(queue: *mut bindings::vb2_queue) -> &'a Arc<v4l2::Device>;
}

/// The memory operations of queues of kind `H` with memory `M`.
pub(in crate::media) fn mem_ops<M: MemOps, H: QueueHost>() -> &'static bindings::vb2_mem_ops {
    const { &Table::<M, H>::OPS }
}

/// The C side calls these functions with what those before returned, or with NULL for a plane that
/// has no memory yet, for buffers of queues of kind `H`; with the lock of the queue, so that an
/// import is used by one call at a time. Only `mmap` and what ends a mapping are called with the
/// lock of the address space in place of that; and `mmap` with `mmap_lock` of the queue, under
/// which a plane is given its memory, and loses it.
struct Table<M, H>(PhantomData<(M, H)>);

impl<M: MemOps, H: QueueHost> Table<M, H> {
    // `prepare` and `finish` are called in whatever context a buffer is done in. There, other
    // devices cannot be told of an access by the CPU. So this is done with each access.
    const OPS: bindings::vb2_mem_ops = bindings::vb2_mem_ops {
        alloc: Some(Self::alloc),
        put: Some(Self::put),
        get_dmabuf: Some(Self::get_dmabuf),
        attach_dmabuf: Some(Self::attach_dmabuf),
        detach_dmabuf: Some(Self::detach_dmabuf),
        map_dmabuf: Some(Self::map_dmabuf),
        unmap_dmabuf: Some(Self::unmap_dmabuf),
        vaddr: Some(Self::vaddr),
        num_users: Some(Self::num_users),
        mmap: Some(Self::mmap),
        ..pin_init::zeroed()
    };

    const VM_OPS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        open: Some(Self::vm_open),
        close: Some(Self::vm_close),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn alloc(
        _vb: *mut bindings::vb2_buffer,
        _dev: *mut bindings::device,
        size: c_ulong,
    ) -> *mut c_void {
        Private::into_raw(M::alloc(size).and_then(Plane::<M>::new).map(Private::Own))
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn put(private: *mut c_void) {
        // SAFETY: The C side gives back what `alloc` made.
        unsafe { Private::<M>::drop_raw(private) };
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn num_users(private: *mut c_void) -> c_uint {
        // SAFETY: The C side keeps it for this call.
        match unsafe { Private::<M>::from_raw(private) } {
            Some(Private::Own(plane)) => plane.users(),
            // Nobody can have mapped or exported it here.
            Some(Private::Import(_)) | None => 0,
        }
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn vaddr(vb: *mut bindings::vb2_buffer, private: *mut c_void) -> *mut c_void {
        // SAFETY: The C side keeps it for this call.
        let private = unsafe { Private::<M>::from_raw(private) };
        // SAFETY: The buffer is valid.
        let size = unsafe { (*vb).planes[0].length };

        let view = || {
            let view = M::view(private.ok_or(EINVAL)?.own()?)?;

            if view.size() < usize::try_from(size)? {
                return Err(EINVAL);
            }
            Ok(view.as_ptr().cast())
        };

        view().unwrap_or(ptr::null_mut())
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn mmap(private: *mut c_void, vma: *mut bindings::vm_area_struct) -> c_int {
        // SAFETY: The C side keeps it for this call.
        let private = unsafe { Private::<M>::from_raw(private) };
        // SAFETY: The C side is in a call to mmap, where the area is new.
        let area = unsafe { VmaNew::from_raw(vma) };

        from_result(|| {
            let plane = private.ok_or(EINVAL)?.own()?;

            // The C side has checked the range that there is now.
            area.set_dontexpand();
            area.set_dontdump();
            M::mmap(plane, area)?;

            let user = ARef::into_raw(ARef::from(plane));

            // SAFETY: The area is new, and the operations are those for the data, which is a
            // reference that `vm_close` gives back.
            unsafe {
                (*vma).vm_private_data = user.as_ptr().cast();
                (*vma).vm_ops = const { &Self::VM_OPS };
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn vm_open(vma: *mut bindings::vm_area_struct) {
        // SAFETY: The area that this one is a copy of has a reference.
        unsafe { (*(*vma).vm_private_data.cast::<Plane<M>>()).inc_ref() };
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn vm_close(vma: *mut bindings::vm_area_struct) {
        // SAFETY: The area has a reference, which it gives back.
        drop(unsafe {
            ARef::<Plane<M>>::from_raw(NonNull::new_unchecked((*vma).vm_private_data.cast()))
        });
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn get_dmabuf(
        _vb: *mut bindings::vb2_buffer,
        private: *mut c_void,
        flags: c_ulong,
    ) -> *mut bindings::dma_buf {
        // SAFETY: The C side keeps it for this call.
        let private = unsafe { Private::<M>::from_raw(private) };
        let export = || M::export(private.ok_or(EINVAL)?.own()?.into(), u32::try_from(flags)?);

        match export() {
            // CAST: A buffer is transparent.
            Ok(buf) => ARef::into_raw(buf).as_ptr().cast(),
            Err(e) => e.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn attach_dmabuf(
        vb: *mut bindings::vb2_buffer,
        _dev: *mut bindings::device,
        buf: *mut bindings::dma_buf,
        size: c_ulong,
    ) -> *mut c_void {
        // SAFETY: The buffer belongs to a queue of this kind.
        let device = unsafe { H::device((*vb).vb2_queue) };
        // SAFETY: The C side has a reference.
        let buf = unsafe { DmaBuf::from_raw(buf) };

        let import = || {
            let bound = device.enter().ok_or(ENODEV)?;

            Ok(Private::Import(Import::<M> {
                mapping: UnsafeCell::new(None),
                attachment: M::attach(&bound, buf, size)?,
                device: device.clone(),
            }))
        };

        Private::into_raw(import())
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn detach_dmabuf(private: *mut c_void) {
        // SAFETY: The C side gives back what `attach_dmabuf` made.
        unsafe { Private::<M>::drop_raw(private) };
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn map_dmabuf(private: *mut c_void) -> c_int {
        // SAFETY: The C side keeps it for this call.
        let private = unsafe { Private::<M>::from_raw(private) };

        from_result(|| {
            let import = private.ok_or(EINVAL)?.import()?;
            let bound = import.device.enter().ok_or(ENODEV)?;
            // The device is the CPU here: whichever way the frames go, it reads and writes. And
            // only such a mapping may be synchronised for either.
            let mapping = M::map(&import.attachment, &bound, DataDirection::Bidirectional)?;

            // SAFETY: By the type invariants nobody else uses it now.
            unsafe { *import.mapping.get() = Some(mapping) };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// See [`Table`].
    unsafe extern "C" fn unmap_dmabuf(private: *mut c_void) {
        // SAFETY: The C side keeps it for this call.
        if let Some(Private::Import(import)) = unsafe { Private::<M>::from_raw(private) } {
            // SAFETY: By the type invariants nobody else uses it now.
            unsafe { *import.mapping.get() = None };
        }
    }
}

#[cfg(CONFIG_RUST_MEDIA_KUNIT_TEST)]
mod tests;
