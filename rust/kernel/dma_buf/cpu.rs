// SPDX-License-Identifier: GPL-2.0

//! Access to buffers by the CPU.
//!
//! C header: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h)

use super::DmaBuf;

use crate::{
    bindings,
    dma::DataDirection,
    error::to_result,
    io::{
        io_project,
        Io,
        IoBackend,
        IoSysMap,
        IoSysMapBackend,
        Mmio,
        MmioBackend,
        MmioRaw,
        Region,
        SysMem, //
    },
    prelude::*,
    sync::aref::ARef,
};

use core::{
    marker::PhantomData,
    mem::ManuallyDrop, //
};

mod private {
    pub trait Sealed {}
}

/// What the CPU is going to do with a buffer: [`Read`], [`Write`] or [`ReadWrite`].
pub trait Access: private::Sealed {
    /// The direction, seen from the device, that the exporter is told.
    const DIRECTION: DataDirection;
}

/// An [`Access`] that reads.
pub trait Readable: Access {}

/// An [`Access`] that writes.
pub trait Writable: Access {}

/// The CPU reads what devices have written.
pub enum Read {}

/// The CPU writes what devices will read. What it does not write may be lost.
pub enum Write {}

/// The CPU reads and writes.
pub enum ReadWrite {}

impl private::Sealed for Read {}
impl private::Sealed for Write {}
impl private::Sealed for ReadWrite {}

impl Access for Read {
    const DIRECTION: DataDirection = DataDirection::FromDevice;
}

impl Access for Write {
    const DIRECTION: DataDirection = DataDirection::ToDevice;
}

impl Access for ReadWrite {
    const DIRECTION: DataDirection = DataDirection::Bidirectional;
}

impl Readable for Read {}
impl Readable for ReadWrite {}
impl Writable for Write {}
impl Writable for ReadWrite {}

/// Access of the CPU to a buffer: mapped for the kernel, and between "begin" and "end".
///
/// Devices and user space may access the buffer at the same time; so there are no slices of it, and
/// what is read may be anything.
///
/// Dropping it ends the access, and takes the reservation lock, which must not be held. To learn of
/// errors, use [`finish`](Self::finish).
///
/// # Invariants
///
/// - `view` is of the `buf.size()` bytes that the exporter mapped, and this owns that mapping.
/// - The CPU access has begun, and this ends it.
///
/// # Examples
///
/// ```
/// use kernel::dma_buf::{cpu, DmaBuf};
///
/// fn first_word(buf: &DmaBuf) -> Result<u32> {
///     let access = buf.cpu_access::<cpu::Read>()?;
///     let mut word = [0; 4];
///
///     access.copy_to_slice(0, &mut word)?;
///     access.finish()?;
///     Ok(u32::from_le_bytes(word))
/// }
/// # let _: fn(&DmaBuf) -> Result<u32> = first_word;
/// ```
pub struct CpuAccess<A: Access> {
    vmap: Vmap,
    _access: PhantomData<A>,
}

/// The mapping of a buffer for the kernel.
///
/// # Invariants
///
/// `map` is a mapping of `buf` for the kernel, which this owns.
struct Vmap {
    // A buffer must not be released while it is mapped.
    buf: ARef<DmaBuf>,
    map: bindings::iosys_map,
}

impl Vmap {
    fn new(buf: &DmaBuf) -> Result<Self> {
        let mut map = pin_init::zeroed();

        // SAFETY: The buffer is valid, and `map` is valid for writing.
        to_result(unsafe { bindings::dma_buf_vmap_unlocked(buf.as_raw(), &mut map) })?;
        // INVARIANT: The mapping is new.
        Ok(Self {
            buf: buf.into(),
            map,
        })
    }

    fn view(&self) -> Result<IoSysMap<'_, [u8]>> {
        // SAFETY: The mapping is valid for as long as `self`, by the type invariants, and an
        // exporter maps all of the buffer.
        unsafe { view_from_raw(&self.map, self.buf.size()) }
    }
}

impl Drop for Vmap {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours by the type invariants.
        unsafe { bindings::dma_buf_vunmap_unlocked(self.buf.as_raw(), &mut self.map) };
    }
}

/// Makes a view from what C gives.
///
/// # Errors
///
/// [`EINVAL`] if the memory is I/O memory and not aligned to four bytes.
///
/// # Safety
///
/// `map` must be set up, and be of at least `size` bytes that stay mapped for at least `'a`.
unsafe fn view_from_raw<'a>(map: &bindings::iosys_map, size: usize) -> Result<IoSysMap<'a, [u8]>> {
    // SAFETY: Both members of the union are addresses, and the map is set up.
    let addr = unsafe { map.__bindgen_anon_1.vaddr }.cast::<u8>();
    let bytes = core::ptr::slice_from_raw_parts_mut(addr, size);

    if !map.is_iomem {
        // SAFETY: By the safety requirements.
        return Ok(unsafe { SysMem::new(bytes) }.into());
    }

    if !addr.cast::<u32>().is_aligned() {
        return Err(EINVAL);
    }
    // The type of the region wants its size to be a multiple of four, the view made of it does
    // not.
    let raw = MmioRaw::<Region>::new_region(addr.addr(), size & !3)?;
    // SAFETY: By the safety requirements.
    let region = unsafe { Mmio::from_raw(raw) };
    // SAFETY: By the safety requirements all of the bytes are I/O memory as the region is; bytes
    // need no alignment.
    Ok(unsafe { MmioBackend::project_view(region, bytes) }.into())
}

/// Makes of a view what C wants.
pub(super) fn view_to_raw(view: IoSysMap<'_, [u8]>) -> bindings::iosys_map {
    let is_iomem = matches!(view, IoSysMap::Io(_));

    bindings::iosys_map {
        __bindgen_anon_1: bindings::iosys_map__bindgen_ty_1 {
            vaddr: IoSysMapBackend::as_ptr(view).cast(),
        },
        is_iomem,
    }
}

impl DmaBuf {
    /// Maps the buffer for the kernel, and prepares it for access by the CPU.
    ///
    /// Waits, interruptibly, for the fences of those who write it, and if the CPU writes also for
    /// those of who reads it: see [`Usage::rw`](super::Usage::rw). Must not be called under the
    /// reservation lock.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the exporter does not support it, [`ERESTARTSYS`], and whatever the exporter
    /// fails with.
    pub fn cpu_access<A: Access>(&self) -> Result<CpuAccess<A>> {
        let vmap = Vmap::new(self)?;

        vmap.view()?;
        // SAFETY: The buffer is valid.
        to_result(unsafe {
            bindings::dma_buf_begin_cpu_access(self.as_raw(), A::DIRECTION.into())
        })?;
        // INVARIANT: The access has begun just now.
        Ok(CpuAccess {
            vmap,
            _access: PhantomData,
        })
    }
}

impl<A: Access> CpuAccess<A> {
    /// The size of the buffer in bytes.
    #[inline]
    pub fn size(&self) -> usize {
        self.vmap.buf.size()
    }

    fn range(&self, offset: usize, len: usize) -> Result<IoSysMap<'_, [u8]>> {
        let view = self.vmap.view()?;
        let end = offset.checked_add(len).ok_or(ERANGE)?;

        Ok(io_project!(view, [try: offset..end]))
    }

    /// Ends the access.
    ///
    /// # Errors
    ///
    /// What the exporter fails with: what was written may be lost. The access has ended in either
    /// case.
    pub fn finish(self) -> Result {
        let this = ManuallyDrop::new(self);
        let result = this.end();

        // SAFETY: `this` is not dropped, and not touched again.
        drop(unsafe { core::ptr::read(&this.vmap) });
        result
    }

    /// Only to be called once.
    fn end(&self) -> Result {
        // SAFETY: The buffer is valid, and the access has begun by the type invariants.
        to_result(unsafe {
            bindings::dma_buf_end_cpu_access(self.vmap.buf.as_raw(), A::DIRECTION.into())
        })
    }
}

impl<A: Readable> CpuAccess<A> {
    /// Copies from the buffer.
    ///
    /// # Errors
    ///
    /// [`ERANGE`] if the buffer has no such bytes; nothing is copied.
    pub fn copy_to_slice(&self, offset: usize, data: &mut [u8]) -> Result {
        self.range(offset, data.len())?.copy_to_slice(data);
        Ok(())
    }
}

impl<A: Writable> CpuAccess<A> {
    /// Copies to the buffer.
    ///
    /// # Errors
    ///
    /// [`ERANGE`] if the buffer has no such bytes; nothing is copied.
    pub fn copy_from_slice(&self, offset: usize, data: &[u8]) -> Result {
        self.range(offset, data.len())?.copy_from_slice(data);
        Ok(())
    }
}

impl CpuAccess<ReadWrite> {
    /// The buffer as memory for the kernel's I/O accessors.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] for I/O memory that is not aligned.
    pub fn view(&self) -> Result<IoSysMap<'_, [u8]>> {
        self.vmap.view()
    }
}

impl<A: Access> Drop for CpuAccess<A> {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.end();
    }
}
