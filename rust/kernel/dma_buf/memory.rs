// SPDX-License-Identifier: GPL-2.0

//! Ordinary memory to be shared, and exporters of it.
//!
//! C header: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h)

use super::{
    exporter::{
        export,
        Attached,
        BorrowedData,
        ExportError,
        Exporter,
        NewAttachment, //
    },
    DmaBuf,
    LockedResv, //
};

use crate::{
    alloc::{
        allocator::VmallocPageIter,
        flags::{
            __GFP_NOWARN,
            __GFP_ZERO, //
        },
        Flags, //
    },
    bindings,
    device::Device,
    dma::DataDirection,
    error::to_result,
    io::{
        IoSysMap,
        SysMem, //
    },
    mm::virt::{
        flags as vm_flags,
        VmaNew, //
    },
    new_mutex,
    page::{
        page_align,
        PAGE_SIZE, //
    },
    prelude::*,
    scatterlist::RawSGTable,
    sync::{
        aref::ARef,
        Arc,
        Mutex, //
    },
};

use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::{
        self,
        NonNull, //
    },
};

/// Pages of memory that are zeroed at first, and contiguous for the kernel.
///
/// Devices and user space may access it at any time; so there are no slices of it.
///
/// # Invariants
///
/// The capacity of `pages` is the size, which is not zero, and a multiple of [`PAGE_SIZE`].
/// `pages` does not change.
///
/// # Examples
///
/// ```
/// use kernel::{dma_buf::Memory, io::Io, page::PAGE_SIZE};
///
/// let memory = Memory::new(1, GFP_KERNEL)?;
///
/// assert_eq!(memory.size(), PAGE_SIZE);
/// memory.view().copy_from_slice(&[0; PAGE_SIZE]);
/// assert_eq!(Memory::new(0, GFP_KERNEL).err(), Some(EINVAL));
/// # Ok::<(), Error>(())
/// ```
#[pin_data]
pub struct Memory {
    pages: VVec<u8>,
    /// All tables that importers have now.
    #[pin]
    tables: Mutex<KVec<NonNull<Table>>>,
}

// SAFETY: The list of tables has pointers to what belongs to no task.
unsafe impl Send for Memory {}

// SAFETY: `pages` is only accessed through views, which may be used concurrently, and `tables` is
// protected by its lock.
unsafe impl Sync for Memory {}

impl Memory {
    /// Allocates memory of `size` bytes, rounded up to pages.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `size` is zero, [`ENOMEM`].
    pub fn new(size: usize, flags: Flags) -> Result<Arc<Self>> {
        if size == 0 {
            return Err(EINVAL);
        }

        let size = page_align(size).ok_or(ENOMEM)?;
        // Sizes tend to come from user space, which must not fill the log.
        let pages = VVec::with_capacity(size, flags | __GFP_ZERO | __GFP_NOWARN)?;

        // INVARIANT: For bytes the capacity is what was asked for.
        Arc::pin_init(
            pin_init!(Self {
                pages,
                tables <- new_mutex!(KVec::new()),
            }),
            GFP_KERNEL,
        )
    }

    /// The size in bytes, a multiple of the page size.
    #[inline]
    pub fn size(&self) -> usize {
        self.pages.capacity()
    }

    /// The memory, for access by the CPU.
    ///
    /// What devices write is seen, and what the CPU writes is seen by devices, only between
    /// [`begin_cpu_access`](Self::begin_cpu_access) and [`end_cpu_access`](Self::end_cpu_access).
    #[inline]
    pub fn view(&self) -> SysMem<'_, [u8]> {
        let addr = self.pages.as_ptr().cast_mut();

        // SAFETY: This is the allocation, which lives as long as `self` is borrowed. There are no
        // references to what is in it.
        unsafe { SysMem::new(ptr::slice_from_raw_parts_mut(addr, self.size())) }
    }

    fn page_iter(&self) -> VmallocPageIter<'_> {
        // SAFETY: The pointer of a vector is not null.
        let addr = unsafe { NonNull::new_unchecked(self.pages.as_ptr().cast_mut()) };

        // SAFETY: `addr` is the start of an allocation of `Vmalloc` that has this size, which
        // lives as long as `self` is borrowed.
        unsafe { VmallocPageIter::new(addr, self.size()) }
    }

    /// Has the CPU see what devices have written so far, through all mappings that there are.
    pub fn begin_cpu_access(&self) {
        for table in self.tables.lock().iter() {
            // SAFETY: What is on the list is mapped, and stays so while the list is locked.
            unsafe { table.as_ref().sync_for_cpu() };
        }
    }

    /// Has devices see what the CPU has written so far, through all mappings that there are.
    pub fn end_cpu_access(&self) {
        for table in self.tables.lock().iter() {
            // SAFETY: What is on the list is mapped, and stays so while the list is locked.
            unsafe { table.as_ref().sync_for_device() };
        }
    }

    /// Maps the memory for user space. The mapping cannot be expanded later.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the mapping is private or not within the memory.
    pub fn mmap(&self, vma: &VmaNew) -> Result {
        if vma.flags() & (vm_flags::SHARED | vm_flags::MAYSHARE) == 0 {
            return Err(EINVAL);
        }

        let count = (vma.end() - vma.start()) / PAGE_SIZE;
        let end = vma.pgoff().checked_add(count).ok_or(EINVAL)?;

        if end > self.size() / PAGE_SIZE {
            return Err(EINVAL);
        }

        vma.set_dontexpand();
        vma.set_dontdump();
        let area = vma.set_mixedmap();
        let pages = self.page_iter().skip(vma.pgoff());

        for (addr, page) in (vma.start()..vma.end()).step_by(PAGE_SIZE).zip(pages) {
            area.vm_insert_page(addr, &page)?;
        }
        Ok(())
    }
}

/// # Invariants
///
/// `sgt` has the pages of `memory`. When there is a [`MappedTable`] of it, or when it is on the
/// list of `memory`, it is mapped for `dev` with direction `dir`.
#[repr(C)]
struct Table {
    // First, so that a pointer to it is one to all.
    sgt: RawSGTable,
    dev: ARef<Device>,
    dir: DataDirection,
    memory: Arc<Memory>,
}

impl Table {
    fn sync_for_cpu(&self) {
        // SAFETY: The table is mapped for the device by the type invariants.
        unsafe {
            bindings::dma_sync_sgtable_for_cpu(
                self.dev.as_raw(),
                self.sgt.as_raw(),
                self.dir.into(),
            )
        };
    }

    fn sync_for_device(&self) {
        // SAFETY: The table is mapped for the device by the type invariants.
        unsafe {
            bindings::dma_sync_sgtable_for_device(
                self.dev.as_raw(),
                self.sgt.as_raw(),
                self.dir.into(),
            )
        };
    }
}

/// Memory that is mapped for a device; unmapped when dropped.
///
/// The lifetime is that of the callback in which it is made: all an exporter can do with it is to
/// return it there. That is how the device still can do DMA when it is unmapped.
///
/// # Invariants
///
/// The pointer is from [`KBox::leak`], and this owns it.
pub struct MappedTable<'a>(NonNull<Table>, PhantomData<&'a ()>);

// SAFETY: A mapping belongs to no task.
unsafe impl Send for MappedTable<'_> {}

// SAFETY: The table does not change while it is mapped.
unsafe impl Sync for MappedTable<'_> {}

impl MappedTable<'_> {
    /// # Safety
    ///
    /// `dev` must be able to do DMA until the result is dropped, if it is.
    pub(super) unsafe fn new(
        dev: &Device,
        memory: Arc<Memory>,
        dir: DataDirection,
    ) -> Result<Self> {
        if dir == DataDirection::None {
            return Err(EINVAL);
        }

        // The DMA API warns of a device that was never set up for DMA; this is an importer's error.
        //
        // SAFETY: The device is valid.
        if unsafe { (*dev.as_raw()).dma_mask }.is_null() {
            return Err(EIO);
        }

        let count = memory.size() / PAGE_SIZE;
        let mut pages = VVec::with_capacity(count, GFP_KERNEL | __GFP_NOWARN)?;

        for page in memory.page_iter() {
            pages.push(page.as_ptr(), GFP_KERNEL)?;
        }

        // SAFETY: The device is valid.
        let (segment, mapping) = unsafe {
            (
                bindings::dma_get_max_seg_size(dev.as_raw()),
                bindings::dma_max_mapping_size(dev.as_raw()),
            )
        };
        let max_segment = segment.min(u32::try_from(mapping).unwrap_or(u32::MAX));

        // The smallest that there can be. The C side warns of less.
        if usize::try_from(max_segment)? < PAGE_SIZE {
            return Err(EIO);
        }

        // SAFETY: The pages are valid for as long as there is a reference to the memory.
        let sgt = unsafe { RawSGTable::new(&mut pages, memory.size(), max_segment, GFP_KERNEL) }?;
        let table = KBox::new(
            Table {
                sgt,
                dev: dev.into(),
                dir,
                memory,
            },
            GFP_KERNEL,
        )?;

        // SAFETY: The table is set up, and by the safety requirements the device can do DMA.
        to_result(unsafe {
            bindings::dma_map_sgtable(dev.as_raw(), table.sgt.as_raw(), dir.into(), 0)
        })?;
        // INVARIANT: It has just been mapped.
        Ok(Self(NonNull::from(KBox::leak(table)), PhantomData))
    }

    /// Whether this is a mapping for `dev` with direction `dir`, and of at least `size` bytes.
    pub(super) fn is_for(&self, dev: &Device, dir: DataDirection, size: usize) -> bool {
        // SAFETY: The pointer is valid by the type invariants.
        let table = unsafe { self.0.as_ref() };

        ptr::eq(table.dev.as_raw(), dev.as_raw()) && table.dir == dir && table.memory.size() >= size
    }

    /// Gives the table to an importer. From now on access by the CPU brings it up to date.
    pub(super) fn into_raw(self) -> Result<*mut bindings::sg_table> {
        // SAFETY: The pointer is ours by the type invariants.
        let table = unsafe { self.0.as_ref() };

        table.memory.tables.lock().push(self.0, GFP_KERNEL)?;
        // CAST: The table is first, and the wrapper is transparent.
        Ok(ManuallyDrop::new(self).0.as_ptr().cast())
    }

    /// # Safety
    ///
    /// `table` must be from [`Self::into_raw`], and not be used again.
    pub(super) unsafe fn from_raw(table: *mut bindings::sg_table) -> Self {
        // SAFETY: By the safety requirements.
        Self(unsafe { NonNull::new_unchecked(table.cast()) }, PhantomData)
    }
}

impl Drop for MappedTable<'_> {
    fn drop(&mut self) {
        // SAFETY: The pointer is ours by the type invariants.
        let table = unsafe { KBox::from_raw(self.0.as_ptr()) };
        let this = self.0;

        table.memory.tables.lock().retain(|other| *other != this);
        // SAFETY: The table is mapped for the device by the type invariants, and nobody
        // synchronises it any more.
        unsafe {
            bindings::dma_unmap_sgtable(table.dev.as_raw(), table.sgt.as_raw(), table.dir.into(), 0)
        };
    }
}

/// An exporter of [`Memory`]. All the operations are done for it.
///
/// The value is the data of one buffer.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma_buf::{self, Memory, MemoryExporter},
///     fs::file::flags,
///     page::PAGE_SIZE,
///     sync::Arc,
/// };
///
/// struct Frame(Arc<Memory>);
///
/// #[vtable]
/// impl MemoryExporter for Frame {
///     const NAME: &'static CStr = c"frames";
///
///     fn memory(&self) -> &Arc<Memory> {
///         &self.0
///     }
/// }
///
/// # // The example is not a module.
/// # struct LocalModule;
/// # impl kernel::ModuleMetadata for LocalModule {
/// #     const NAME: &'static CStr = c"example";
/// #     const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(core::ptr::null_mut()) };
/// # }
/// let frame = KBox::new(Frame(Memory::new(3 * PAGE_SIZE, GFP_KERNEL)?), GFP_KERNEL)?;
/// let buf = dma_buf::export_memory(frame, flags::O_RDWR)?;
///
/// assert_eq!(buf.size(), 3 * PAGE_SIZE);
/// # Ok::<(), Error>(())
/// ```
#[vtable]
pub trait MemoryExporter: Send + Sync + Sized + 'static {
    /// The name of the exporter, for `fdinfo` and debugfs.
    const NAME: &'static CStr;

    /// The memory of the buffer. Always the same.
    fn memory(&self) -> &Arc<Memory>;

    /// The last reference to the buffer is gone.
    fn release(self: KBox<Self>) {
        drop(self);
    }
}

/// Makes a buffer of memory, of its size. See [`export()`].
///
/// # Errors
///
/// Those of [`export()`].
pub fn export_memory<T: MemoryExporter>(
    data: KBox<T>,
    flags: u32,
) -> Result<ARef<DmaBuf>, ExportError<KBox<T>>> {
    let size = data.memory().size();

    export::<ByMemory<T>>(data, size, flags)
}

/// [`Exporter`] for a [`MemoryExporter`].
struct ByMemory<T>(PhantomData<T>);

#[vtable]
impl<T: MemoryExporter> Exporter for ByMemory<T> {
    const NAME: &'static CStr = T::NAME;

    type OwnerModule = T::OwnerModule;
    type Data = KBox<T>;
    type Attachment = ();

    fn attach(_data: &T, _attachment: &NewAttachment<'_>) -> Result {
        Ok(())
    }

    fn map<'a>(
        data: BorrowedData<'a, Self>,
        attachment: &Attached<'a, Self>,
        dir: DataDirection,
        _locked: &LockedResv,
    ) -> Result<MappedTable<'a>> {
        attachment.map(data.memory().clone(), dir)
    }

    fn release(data: KBox<T>) {
        T::release(data);
    }

    fn begin_cpu_access(data: &T, _dir: DataDirection) -> Result {
        data.memory().begin_cpu_access();
        Ok(())
    }

    fn end_cpu_access(data: &T, _dir: DataDirection) -> Result {
        data.memory().end_cpu_access();
        Ok(())
    }

    fn mmap(data: &T, vma: &VmaNew) -> Result {
        data.memory().mmap(vma)
    }

    fn vmap<'a>(data: BorrowedData<'a, Self>, _locked: &LockedResv) -> Result<IoSysMap<'a, [u8]>> {
        Ok(data.memory().view().into())
    }
}
