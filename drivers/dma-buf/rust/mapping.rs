// SPDX-License-Identifier: GPL-2.0

//! Map and unmap: the DMA addresses of a buffer for one of its devices.

use crate::attachment::{
    Attachment,
    LockedAttachment, //
};

use kernel::{
    bindings,
    dma_buf::Usage,
    error::{
        from_err_ptr,
        to_result, //
    },
    page::PAGE_SIZE,
    prelude::*,
    warn_on, //
};

use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};

/// The direction of a transfer.
pub(crate) type Direction = bindings::dma_data_direction;

/// Keeps a buffer pinned for a mapping of an importer that cannot follow when it moves.
///
/// # Invariants
///
/// One pin of the attachment is owned.
struct Pin<'a>(LockedAttachment<'a>);

impl<'a> Pin<'a> {
    /// Whether mappings of `attach` come with a pin.
    fn is_needed(attach: &Attachment) -> bool {
        attach.buffer().ops().pin.is_some() && !attach.is_dynamic()
    }

    fn new(attach: LockedAttachment<'a>) -> Result<Option<Self>> {
        if !Self::is_needed(&attach) {
            return Ok(None);
        }
        let result = attach.pin();
        // An exporter must not let a buffer go where an attached device cannot reach it.
        warn_on!(result == Err(EBUSY));
        result?;
        // INVARIANT: Just pinned.
        Ok(Some(Self(attach)))
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        // SAFETY: The pin is owned by the type invariant.
        unsafe { self.0.unpin() };
    }
}

/// A mapping of the exporter's.
///
/// # Invariants
///
/// `sgt` is a result of the exporter's `map_dma_buf` for `attach` and `direction`, and owned.
struct Mapping<'a> {
    sgt: NonNull<bindings::sg_table>,
    direction: Direction,
    attach: LockedAttachment<'a>,
    // Dropped after the mapping.
    _pin: Option<Pin<'a>>,
}

impl<'a> Mapping<'a> {
    fn new(attach: LockedAttachment<'a>, direction: Direction) -> Result<Self> {
        let pin = Pin::new(attach)?;
        let map = attach.buffer().ops().map_dma_buf.ok_or(EINVAL)?;

        // SAFETY: The attachment is valid, and the reservation lock of its buffer is held.
        let sgt = from_err_ptr(unsafe { map(attach.as_raw(), direction) })?;
        // INVARIANT: Just mapped.
        Ok(Self {
            sgt: NonNull::new(sgt).ok_or(ENOMEM)?,
            direction,
            attach,
            _pin: pin,
        })
    }

    /// Takes over a mapping, with its pin, that was given away by [`Self::into_raw`].
    ///
    /// # Safety
    ///
    /// `sgt` must come from [`Self::into_raw`] for the same attachment and direction, and not be
    /// used again.
    unsafe fn from_raw(
        sgt: NonNull<bindings::sg_table>,
        attach: LockedAttachment<'a>,
        direction: Direction,
    ) -> Self {
        // INVARIANT: By the safety requirements; the pin was given away with the mapping.
        Self {
            sgt,
            direction,
            attach,
            _pin: Pin::is_needed(&attach).then(|| Pin(attach)),
        }
    }

    fn into_raw(self) -> NonNull<bindings::sg_table> {
        ManuallyDrop::new(self).sgt
    }
}

impl Drop for Mapping<'_> {
    fn drop(&mut self) {
        if let Some(unmap) = self.attach.buffer().ops().unmap_dma_buf {
            // SAFETY: The table is owned by the type invariant, and the reservation lock of the
            // buffer is held.
            unsafe { unmap(self.attach.as_raw(), self.sgt.as_ptr(), self.direction) };
        }
    }
}

/// What the importer gets under `CONFIG_DMABUF_DEBUG`: a copy of the table without pages, so that
/// one that looks at them fails at once.
#[repr(C)]
struct Hidden {
    copy: bindings::sg_table,
    original: NonNull<bindings::sg_table>,
}

impl Hidden {
    /// # Safety
    ///
    /// `original` must be a table that is mapped for DMA.
    unsafe fn wrap(original: NonNull<bindings::sg_table>) -> Result<NonNull<bindings::sg_table>> {
        let mut this = KBox::new(
            Self {
                copy: pin_init::zeroed(),
                original,
            },
            GFP_KERNEL,
        )?;

        // SAFETY: The table is valid by the safety requirements.
        let nents = unsafe { original.as_ref() }.nents;
        // SAFETY: `copy` is ours and empty.
        to_result(unsafe {
            bindings::sg_alloc_table(&mut this.copy, nents, bindings::GFP_KERNEL)
        })?;

        let mut to = this.copy.sgl;
        for (addr, len) in
            // SAFETY: The table is valid by the safety requirements.
            unsafe { DmaSegments::new(original) }
        {
            // SAFETY: `copy` has as many entries as the original has segments.
            unsafe {
                (*to).offset = 0;
                (*to).dma_address = addr;
                #[cfg(CONFIG_NEED_SG_DMA_LENGTH)]
                {
                    (*to).length = 0;
                    (*to).dma_length = len;
                }
                #[cfg(not(CONFIG_NEED_SG_DMA_LENGTH))]
                {
                    (*to).length = len;
                }
                to = bindings::sg_next(to);
            }
        }
        // SAFETY: A box is not NULL, and the table is its first field.
        Ok(unsafe { NonNull::new_unchecked(KBox::into_raw(this).cast()) })
    }

    /// The original of a copy, which is freed.
    ///
    /// # Safety
    ///
    /// `copy` must be a result of [`Self::wrap`] that is not used again.
    unsafe fn undo(copy: NonNull<bindings::sg_table>) -> NonNull<bindings::sg_table> {
        // SAFETY: The table is the first field of a box.
        let mut this: KBox<Self> = unsafe { KBox::from_raw(copy.as_ptr().cast()) };

        // SAFETY: `wrap()` allocated the entries.
        unsafe { bindings::sg_free_table(&mut this.copy) };
        this.original
    }
}

/// The DMA addresses and lengths of a table.
///
/// # Invariants
///
/// `left` mapped entries follow from `sg` on, itself included.
struct DmaSegments {
    sg: *mut bindings::scatterlist,
    left: u32,
}

impl DmaSegments {
    /// # Safety
    ///
    /// `sgt` must be a table that is mapped for DMA and stays so while the result is used.
    unsafe fn new(sgt: NonNull<bindings::sg_table>) -> Self {
        // SAFETY: The table is valid by the safety requirements.
        let sgt = unsafe { sgt.as_ref() };

        Self {
            sg: sgt.sgl,
            left: sgt.nents,
        }
    }
}

impl Iterator for DmaSegments {
    type Item = (bindings::dma_addr_t, u32);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        // SAFETY: The table has `nents` entries that are mapped.
        unsafe {
            let segment = (
                bindings::sg_dma_address(self.sg),
                bindings::sg_dma_len(self.sg),
            );
            self.sg = bindings::sg_next(self.sg);
            Some(segment)
        }
    }
}

/// Maps a buffer for an attached device.
///
/// Pins first where the importer cannot follow a move; waits, interruptibly, for fences of the
/// kernel's after the exporter mapped; hides the pages last.
pub(crate) fn map(
    attach: LockedAttachment<'_>,
    direction: Direction,
) -> Result<NonNull<bindings::sg_table>> {
    let mapping = Mapping::new(attach, direction)?;

    // Dynamic importers wait themselves.
    if !attach.is_dynamic() {
        attach.buffer().resv().wait(Usage::Kernel)?;
    }

    let shown = if cfg!(CONFIG_DMABUF_DEBUG) {
        // SAFETY: The exporter mapped the table.
        unsafe { Hidden::wrap(mapping.sgt) }?
    } else {
        mapping.sgt
    };

    if cfg!(CONFIG_DMA_API_DEBUG) {
        const MASK: usize = PAGE_SIZE - 1;

        // SAFETY: The exporter mapped the table.
        let unaligned = unsafe { DmaSegments::new(shown) }.find(|&(addr, len)| {
            addr & MASK as bindings::dma_addr_t != 0 || len as usize & MASK != 0
        });
        if let Some((addr, len)) = unaligned {
            // SAFETY: No requirements.
            unsafe { bindings::dma_buf_shim_debug_unaligned(addr, len) };
        }
    }

    // The importer owns the mapping, and gives it to `unmap()`.
    let _ = mapping.into_raw();
    Ok(shown)
}

/// Undoes [`map`].
///
/// # Safety
///
/// `sgt` must be a result of [`map`] for the same attachment and direction that is not used again.
pub(crate) unsafe fn unmap(
    attach: LockedAttachment<'_>,
    sgt: NonNull<bindings::sg_table>,
    direction: Direction,
) {
    let sgt = if cfg!(CONFIG_DMABUF_DEBUG) {
        // SAFETY: `map()` made the copy.
        unsafe { Hidden::undo(sgt) }
    } else {
        sgt
    };

    // SAFETY: By the safety requirements.
    drop(unsafe { Mapping::from_raw(sgt, attach, direction) });
}
