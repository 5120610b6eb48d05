// SPDX-License-Identifier: GPL-2.0

//! Exporters: giving memory to others as buffers.
//!
//! C header: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h)

use super::{
    cpu,
    memory::{
        MappedTable,
        Memory, //
    },
    DmaBuf,
    LockedResv,
    Resv, //
};

use crate::{
    bindings,
    device::Device,
    dma::DataDirection,
    error::{
        from_result,
        VTABLE_DEFAULT_ERROR, //
    },
    io::{
        Io,
        IoSysMap, //
    },
    mm::virt::VmaNew,
    module::{
        module_of,
        this_module, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    },
};

use core::{
    any::TypeId,
    marker::PhantomData,
    ptr, //
};

/// A reference to the data of a buffer, as the callbacks of `T` get it.
pub type BorrowedData<'a, T> = <<T as Exporter>::Data as ForeignOwnable>::Borrowed<'a>;

/// The operations of an exporter (`struct dma_buf_ops`).
///
/// Callbacks may run concurrently, unless the reservation lock keeps them apart: those that have an
/// argument `locked` are called under it. Others are not, and may take it. All may sleep.
///
/// The module that this is compiled into stays loaded for as long as there are buffers.
///
/// [`MemoryExporter`](super::MemoryExporter) implements all of it for ordinary memory.
#[vtable]
pub trait Exporter: Sized + 'static {
    /// The name of the exporter, for `fdinfo` and debugfs.
    const NAME: &'static CStr;

    /// The data of one buffer. [`export()`] takes it, and [`release`](Self::release) gives it back.
    type Data: ForeignOwnable + Send + Sync + 'static;

    /// The data of one attachment. [`attach`](Self::attach) makes it, and
    /// [`detach`](Self::detach) gives it back.
    type Attachment: Send + Sync + 'static;

    /// A device is to be attached.
    ///
    /// Return [`EBUSY`] if the memory is where the device cannot access it and cannot be moved.
    fn attach(
        data: BorrowedData<'_, Self>,
        attachment: &NewAttachment<'_>,
    ) -> Result<Self::Attachment>;

    /// A device is detached. It has no mappings any more.
    fn detach(_data: BorrowedData<'_, Self>, attachment: Self::Attachment) {
        drop(attachment);
    }

    /// The memory is to stay where it is until [`unpin`](Self::unpin). May be called repeatedly.
    ///
    /// Whoever implements one of the two implements both, and may move the memory while it is not
    /// pinned. Pins nest.
    fn pin(
        _data: BorrowedData<'_, Self>,
        _attachment: &Attached<'_, Self>,
        _locked: &LockedResv,
    ) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Undoes one [`pin`](Self::pin).
    fn unpin(
        _data: BorrowedData<'_, Self>,
        _attachment: &Attached<'_, Self>,
        _locked: &LockedResv,
    ) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The buffer is to be mapped for the device, see [`Attached::map`].
    ///
    /// This is the place to allocate memory late, when all devices that are attached so far are
    /// known.
    fn map<'a>(
        data: BorrowedData<'a, Self>,
        attachment: &Attached<'a, Self>,
        dir: DataDirection,
        locked: &LockedResv,
    ) -> Result<MappedTable<'a>>;

    /// The buffer has been unmapped for the device.
    fn unmap(
        _data: BorrowedData<'_, Self>,
        _attachment: &Attached<'_, Self>,
        _locked: &LockedResv,
    ) {
    }

    /// The reservation object of the buffer, if it is one of the exporter's: several buffers may
    /// have the same, and the exporter may lock it without a buffer. Asked for once, in
    /// [`export()`].
    fn resv<'a>(_data: &'a BorrowedData<'_, Self>) -> Option<&'a Resv> {
        None
    }

    /// The last reference to the buffer is gone.
    fn release(data: Self::Data) {
        drop(data);
    }

    /// The CPU is about to access the buffer, and needs to see what devices wrote.
    fn begin_cpu_access(_data: BorrowedData<'_, Self>, _dir: DataDirection) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The CPU has accessed the buffer; devices need to see what it wrote.
    fn end_cpu_access(_data: BorrowedData<'_, Self>, _dir: DataDirection) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The buffer is to be mapped for user space. The range is within the buffer, and cannot be
    /// expanded later.
    fn mmap(_data: BorrowedData<'_, Self>, _vma: &VmaNew) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The buffer is to be mapped for the kernel, all of it. Called once, until
    /// [`vunmap`](Self::vunmap).
    ///
    /// The view is borrowed from the data, so it is valid for as long as the buffer exists. If it
    /// is smaller than the buffer, that is an error. The core in C warns of all errors here, as of
    /// [`ENOMEM`]: who cannot map their memory leaves this out.
    fn vmap<'a>(_data: BorrowedData<'a, Self>, _locked: &LockedResv) -> Result<IoSysMap<'a, [u8]>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Nobody needs the mapping for the kernel any more.
    fn vunmap(_data: BorrowedData<'_, Self>, _locked: &LockedResv) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// What went wrong in [`export()`], and the data that was to be exported.
#[derive(Debug)]
pub struct ExportError<D> {
    /// The error.
    pub error: Error,
    /// The data, whose owner is the caller again.
    pub data: D,
}

impl<D> From<ExportError<D>> for Error {
    fn from(this: ExportError<D>) -> Error {
        this.error
    }
}

/// Makes a buffer of `size` bytes.
///
/// `flags` are those of the file: [`O_RDWR`](crate::fs::file::flags::O_RDWR) lets user space map
/// the buffer for writing, [`O_RDONLY`](crate::fs::file::flags::O_RDONLY) only for reading.
///
/// Must not be called under a reservation lock.
///
/// # Errors
///
/// The data is given back, with [`EINVAL`] if `size` is zero or more than an object can have,
/// [`ENOENT`] if the module is being unloaded, [`ENOMEM`], or [`ENFILE`].
pub fn export<T: Exporter>(
    data: T::Data,
    size: usize,
    flags: u32,
) -> Result<ARef<DmaBuf>, ExportError<T::Data>> {
    if size == 0 || isize::try_from(size).is_err() {
        return Err(ExportError {
            error: EINVAL,
            data,
        });
    }

    let private = data.into_foreign();
    // SAFETY: The pointer is from above, and is not given back before the buffer is released.
    let borrowed = unsafe { T::Data::borrow(private) };
    // What is lent are references to the data, as all implementations of `ForeignOwnable` lend, and
    // not something that would end here. The data stays borrowed until then, as by the callbacks.
    let resv = T::resv(&borrowed).map_or(core::ptr::null_mut(), Resv::as_raw);
    let table = const { &ExporterVTable::<T>::TABLE };
    let info = bindings::dma_buf_export_info {
        exp_name: T::NAME.as_char_ptr(),
        // By where the operations are, whatever crate the type is of.
        owner: module_of(table),
        ops: &table.ops,
        size,
        // CAST: Only the lowest bits mean something.
        flags: flags as i32,
        resv,
        priv_: private,
    };

    // SAFETY: All is set up as `dma_buf_export()` wants it: the operations match the data, and
    // the module is that of the operations. On success a reference passes to the result.
    unsafe { DmaBuf::from_owned(bindings::dma_buf_export(&info)) }.map_err(|error| ExportError {
        error,
        // SAFETY: This is the pointer from above, and `dma_buf_export()` does not keep it when it
        // fails.
        data: unsafe { T::Data::from_foreign(private) },
    })
}

/// The attachment that is being made, in [`Exporter::attach`].
pub struct NewAttachment<'a>(&'a Opaque<bindings::dma_buf_attachment>);

impl<'a> NewAttachment<'a> {
    /// The device that is to be attached. It need not be bound to a driver.
    #[inline]
    pub fn device(&self) -> &'a Device {
        // SAFETY: The attachment and its device are valid for as long as the callback runs.
        unsafe { Device::from_raw((*self.0.get()).dev) }
    }

    /// Whether the device can access memory of other devices on the bus, and nobody has denied it
    /// so far.
    #[inline]
    pub fn peer2peer(&self) -> bool {
        // SAFETY: The attachment is valid. The field is not touched by others before it is
        // attached.
        unsafe { (*self.0.get()).peer2peer }
    }

    /// Denies access to memory of other devices on the bus.
    #[inline]
    pub fn deny_peer2peer(&self) {
        // SAFETY: As above, and `NewAttachment` is not `Sync`.
        unsafe { (*self.0.get()).peer2peer = false };
    }

    /// Whether the importer can be made to give the buffer back: it has promised to end its
    /// mappings in bounded time after [`DmaBuf::invalidate_mappings`].
    #[inline]
    pub fn is_revocable(&self) -> bool {
        // SAFETY: The attachment is valid.
        unsafe { bindings::dma_buf_attach_revocable(self.0.get()) }
    }
}

/// A device that is attached to a buffer, in the callbacks of its exporter.
pub struct Attached<'a, T: Exporter> {
    raw: &'a Opaque<bindings::dma_buf_attachment>,
    _exporter: PhantomData<T>,
}

impl<'a, T: Exporter> Attached<'a, T> {
    /// # Safety
    ///
    /// `raw` must be an attachment to a buffer of `T`, and be valid for `'a`.
    unsafe fn from_raw(raw: *mut bindings::dma_buf_attachment) -> Self {
        Self {
            // SAFETY: By the safety requirements.
            raw: unsafe { &*Opaque::cast_from(raw) },
            _exporter: PhantomData,
        }
    }

    /// What [`Exporter::attach`] made.
    #[inline]
    pub fn data(&self) -> &'a T::Attachment {
        // SAFETY: The pointer is from `KBox::into_foreign()` in `attach`, and given back in
        // `detach` only.
        unsafe { KBox::borrow((*self.raw.get()).priv_) }
    }

    /// The device.
    #[inline]
    pub fn device(&self) -> &'a Device {
        // SAFETY: The attachment is valid, and an importer keeps its device until it detaches it.
        unsafe { Device::from_raw((*self.raw.get()).dev) }
    }

    /// Whether the device can access memory of other devices on the bus.
    #[inline]
    pub fn peer2peer(&self) -> bool {
        // SAFETY: The attachment is valid, and the field does not change after `attach`.
        unsafe { (*self.raw.get()).peer2peer }
    }

    /// Maps memory for the device.
    ///
    /// The table has segments that the device can take. It keeps the memory.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`EINVAL`] for [`DataDirection::None`], [`EIO`] if the device cannot access the
    /// memory.
    #[inline]
    pub fn map(&self, memory: Arc<Memory>, dir: DataDirection) -> Result<MappedTable<'a>> {
        // SAFETY: An importer maps a buffer for a device that can do DMA, and unmaps it before that
        // ends: this is its side of the contract, and those of `super::attachment` keep it by their
        // types. The result can only be dropped in this callback, or come to the importer.
        unsafe { MappedTable::new(self.device(), memory, dir) }
    }
}

/// Only bits that C can pass.
fn direction(dir: bindings::dma_data_direction) -> Result<DataDirection> {
    match dir {
        bindings::dma_data_direction::DMA_BIDIRECTIONAL => Ok(DataDirection::Bidirectional),
        bindings::dma_data_direction::DMA_TO_DEVICE => Ok(DataDirection::ToDevice),
        bindings::dma_data_direction::DMA_FROM_DEVICE => Ok(DataDirection::FromDevice),
        _ => Err(EINVAL),
    }
}

/// The C functions for the operations of `T`.
struct ExporterVTable<T: Exporter>(PhantomData<T>);

/// The operations of an exporter in Rust, and which one it is. There may be several tables of the
/// same exporter, in different modules.
#[repr(C)]
struct Table {
    // First, so that a pointer to these is one to the table.
    ops: bindings::dma_buf_ops,
    exporter: fn() -> TypeId,
    // Crates of one name have the same identities of types.
    crate_of: *mut bindings::module,
    release: unsafe fn(*mut bindings::dma_buf),
}

/// The `release` of all exporters in Rust, which is how they are told from others.
///
/// # Safety
///
/// As of [`ExporterVTable`].
#[inline(never)]
unsafe extern "C" fn release(dmabuf: *mut bindings::dma_buf) {
    // SAFETY: The buffer is valid while this runs, and this is in no other table.
    unsafe { ((*(*dmabuf).ops.cast::<Table>()).release)(dmabuf) };
}

/// Whether `buf` is one of an exporter in Rust, the one with this type of this crate.
// Not generic, so that there is one `release` to compare with.
#[inline(never)]
fn is_of(buf: &DmaBuf, exporter: TypeId, crate_of: *mut bindings::module) -> bool {
    // SAFETY: The buffer is valid. The exporter may write the field, but no exporter in Rust does.
    let ops = unsafe { (&raw const (*buf.as_raw()).ops).read_volatile() };
    // SAFETY: The operations live as long as the buffer.
    let found = unsafe { (*ops).release }.map(|f| f as *const ());

    if found != Some(release as *const ()) {
        return false;
    }

    // SAFETY: What has this function is the first field of a table, which lives as long.
    let table = unsafe { &*ops.cast::<Table>() };

    (table.exporter)() == exporter && ptr::eq(table.crate_of, crate_of)
}

impl DmaBuf {
    /// The exporter's data, if the buffer is one of `T`, wherever it was exported.
    ///
    /// An exporter that gets a buffer to import asks this first: what is its own already needs
    /// neither an attachment nor a mapping. Not for a [`MemoryExporter`](super::MemoryExporter).
    #[inline]
    pub fn data<T: Exporter>(&self) -> Option<BorrowedData<'_, T>> {
        let crate_of = this_module::<T::OwnerModule>().as_ptr();

        if !is_of(self, TypeId::of::<T>(), crate_of) {
            return None;
        }
        // SAFETY: The buffer is one of `T`, and not released while it is borrowed.
        Some(unsafe { ExporterVTable::<T>::data(self.as_raw()) })
    }
}

/// # Safety
///
/// For all functions here: they are only called by the dma-buf core, for buffers that [`export()`]
/// made with the same `T`, and as the C header says.
impl<T: Exporter> ExporterVTable<T> {
    const TABLE: Table = Table {
        ops: Self::OPS,
        exporter: TypeId::of::<T>,
        crate_of: this_module::<T::OwnerModule>().as_ptr(),
        release: Self::release,
    };

    const OPS: bindings::dma_buf_ops = {
        assert!(
            T::HAS_PIN == T::HAS_UNPIN,
            "an exporter has both pin() and unpin(), or none"
        );
        assert!(
            T::HAS_VMAP || !T::HAS_VUNMAP,
            "an exporter with vunmap() has vmap()"
        );
        bindings::dma_buf_ops {
            attach: Some(Self::attach),
            detach: Some(Self::detach),
            pin: if T::HAS_PIN { Some(Self::pin) } else { None },
            unpin: if T::HAS_UNPIN {
                Some(Self::unpin)
            } else {
                None
            },
            map_dma_buf: Some(Self::map),
            unmap_dma_buf: Some(Self::unmap),
            release: Some(release),
            begin_cpu_access: if T::HAS_BEGIN_CPU_ACCESS {
                Some(Self::begin_cpu_access)
            } else {
                None
            },
            end_cpu_access: if T::HAS_END_CPU_ACCESS {
                Some(Self::end_cpu_access)
            } else {
                None
            },
            mmap: if T::HAS_MMAP { Some(Self::mmap) } else { None },
            vmap: if T::HAS_VMAP { Some(Self::vmap) } else { None },
            vunmap: if T::HAS_VUNMAP {
                Some(Self::vunmap)
            } else {
                None
            },
        }
    };

    /// # Safety
    ///
    /// `dmabuf` must be a buffer of `T` that is not released before the end of `'a`.
    unsafe fn data<'a>(dmabuf: *mut bindings::dma_buf) -> BorrowedData<'a, T> {
        // SAFETY: The pointer is from `into_foreign()` in `export`, and given back in `release`
        // only.
        unsafe { T::Data::borrow((*dmabuf).priv_) }
    }

    /// # Safety
    ///
    /// See the `impl` block.
    unsafe extern "C" fn attach(
        dmabuf: *mut bindings::dma_buf,
        attach: *mut bindings::dma_buf_attachment,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The buffer and the attachment are valid while this runs.
            let (data, new) = unsafe {
                (
                    Self::data(dmabuf),
                    NewAttachment(&*Opaque::cast_from(attach)),
                )
            };
            // First, so that an attachment that the exporter has made cannot fail.
            let state = KBox::new_uninit(GFP_KERNEL)?;
            let state = KBox::write(state, T::attach(data, &new)?);

            // SAFETY: The field is the exporter's.
            unsafe { (*attach).priv_ = state.into_foreign() };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// See the `impl` block.
    unsafe extern "C" fn detach(
        dmabuf: *mut bindings::dma_buf,
        attach: *mut bindings::dma_buf_attachment,
    ) {
        // SAFETY: The pointer is from `attach`, and nobody can ask for the attachment any more.
        let state = unsafe { KBox::<T::Attachment>::from_foreign((*attach).priv_) };

        // SAFETY: The buffer is valid while this runs.
        T::detach(unsafe { Self::data(dmabuf) }, KBox::into_inner(state));
    }

    /// # Safety
    ///
    /// See the `impl` block; `attach` must be attached and the lock of its buffer held for `'a`.
    unsafe fn locked<'a>(
        attach: *mut bindings::dma_buf_attachment,
    ) -> (BorrowedData<'a, T>, Attached<'a, T>, &'a LockedResv) {
        // SAFETY: By the safety requirements. Attachments keep their buffer.
        unsafe {
            (
                Self::data((*attach).dmabuf),
                Attached::from_raw(attach),
                LockedResv::from_raw((*(*attach).dmabuf).resv),
            )
        }
    }

    /// # Safety
    ///
    /// See the `impl` block.
    unsafe extern "C" fn pin(attach: *mut bindings::dma_buf_attachment) -> c_int {
        // SAFETY: The core calls this under the lock.
        let (data, attached, locked) = unsafe { Self::locked(attach) };

        from_result(|| T::pin(data, &attached, locked).map(|()| 0))
    }

    /// # Safety
    ///
    /// See the `impl` block.
    unsafe extern "C" fn unpin(attach: *mut bindings::dma_buf_attachment) {
        // SAFETY: The core calls this under the lock.
        let (data, attached, locked) = unsafe { Self::locked(attach) };

        T::unpin(data, &attached, locked);
    }

    /// # Safety
    ///
    /// See the `impl` block.
    unsafe extern "C" fn map(
        attach: *mut bindings::dma_buf_attachment,
        dir: bindings::dma_data_direction,
    ) -> *mut bindings::sg_table {
        // SAFETY: The core calls this under the lock.
        let (data, attached, locked) = unsafe { Self::locked(attach) };
        // SAFETY: The attachment is valid, and keeps its buffer.
        let size = unsafe { (*(*attach).dmabuf).size };
        let map = || -> Result<_> {
            let dir = direction(dir)?;

            Ok((dir, T::map(data, &attached, dir, locked)?))
        };
        let (dir, table) = match map() {
            Ok(mapped) => mapped,
            Err(error) => return error.to_ptr(),
        };
        // Addresses for another device would make this one access whatever is there, and so would
        // a table that ends before the buffer does.
        let table = if table.is_for(attached.device(), dir, size) {
            table.into_raw()
        } else {
            drop(table);
            Err(EINVAL)
        };

        table.unwrap_or_else(|error| {
            // SAFETY: The core calls this under the lock.
            let (data, attached, locked) = unsafe { Self::locked(attach) };

            T::unmap(data, &attached, locked);
            error.to_ptr()
        })
    }

    /// # Safety
    ///
    /// See the `impl` block.
    unsafe extern "C" fn unmap(
        attach: *mut bindings::dma_buf_attachment,
        table: *mut bindings::sg_table,
        _dir: bindings::dma_data_direction,
    ) {
        // SAFETY: The core calls this under the lock.
        let (data, attached, locked) = unsafe { Self::locked(attach) };

        // SAFETY: The importer gives back what `map` returned, once.
        drop(unsafe { MappedTable::from_raw(table) });
        T::unmap(data, &attached, locked);
    }

    /// # Safety
    ///
    /// See the `impl` block.
    unsafe fn release(dmabuf: *mut bindings::dma_buf) {
        // SAFETY: The pointer is from `into_foreign()` in `export`; this is called once, when
        // nobody has a reference to the buffer any more.
        T::release(unsafe { T::Data::from_foreign((*dmabuf).priv_) });
    }

    /// # Safety
    ///
    /// See the `impl` block.
    unsafe extern "C" fn begin_cpu_access(
        dmabuf: *mut bindings::dma_buf,
        dir: bindings::dma_data_direction,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The buffer is valid while this runs.
            T::begin_cpu_access(unsafe { Self::data(dmabuf) }, direction(dir)?).map(|()| 0)
        })
    }

    /// # Safety
    ///
    /// See the `impl` block.
    unsafe extern "C" fn end_cpu_access(
        dmabuf: *mut bindings::dma_buf,
        dir: bindings::dma_data_direction,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The buffer is valid while this runs.
            T::end_cpu_access(unsafe { Self::data(dmabuf) }, direction(dir)?).map(|()| 0)
        })
    }

    /// # Safety
    ///
    /// See the `impl` block.
    unsafe extern "C" fn mmap(
        dmabuf: *mut bindings::dma_buf,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: The core calls this for an area that is being set up.
        let vma = unsafe { VmaNew::from_raw(vma) };

        // The core has checked the range that there is now.
        vma.set_dontexpand();
        vma.set_dontdump();
        // SAFETY: The buffer is valid while this runs.
        from_result(|| T::mmap(unsafe { Self::data(dmabuf) }, vma).map(|()| 0))
    }

    /// # Safety
    ///
    /// See the `impl` block.
    unsafe extern "C" fn vmap(
        dmabuf: *mut bindings::dma_buf,
        map: *mut bindings::iosys_map,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The buffer is valid, and the core calls this under the lock.
            let (size, locked) = unsafe { ((*dmabuf).size, LockedResv::from_raw((*dmabuf).resv)) };
            // SAFETY: The core does not use the view after the buffer has been released.
            let view = T::vmap(unsafe { Self::data(dmabuf) }, locked)?;

            if view.size() < size {
                if T::HAS_VUNMAP {
                    // SAFETY: The buffer is valid while this runs.
                    T::vunmap(unsafe { Self::data(dmabuf) }, locked);
                }
                return Err(EINVAL);
            }
            // SAFETY: `map` is valid for writing.
            unsafe { map.write(cpu::view_to_raw(view)) };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// See the `impl` block.
    unsafe extern "C" fn vunmap(dmabuf: *mut bindings::dma_buf, _map: *mut bindings::iosys_map) {
        // SAFETY: The buffer is valid, and the core calls this under the lock.
        let locked = unsafe { LockedResv::from_raw((*dmabuf).resv) };

        // SAFETY: The buffer is valid while this runs.
        T::vunmap(unsafe { Self::data(dmabuf) }, locked);
    }
}
