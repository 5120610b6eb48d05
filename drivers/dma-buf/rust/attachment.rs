// SPDX-License-Identifier: GPL-2.0

//! Attach, detach, pin and invalidation: the devices of a buffer.

use crate::{
    buffer::{
        Buffer,
        Locked, //
    },
    trace, //
};

use kernel::{
    bindings,
    error::to_result,
    ffi::c_void,
    prelude::*,
    types::Opaque,
    warn_on, //
};

use core::ptr::NonNull;

/// A device that is attached to a buffer (`struct dma_buf_attachment`).
///
/// # Invariants
///
/// `dmabuf` points to a buffer that the importer references, `dev` to a device that the importer
/// keeps, and `importer_ops` to operations that live as long as the attachment, or is NULL. None of
/// these changes.
#[repr(transparent)]
pub(crate) struct Attachment(Opaque<bindings::dma_buf_attachment>);

impl Attachment {
    /// # Safety
    ///
    /// `ptr` must point to an attachment that is not detached before the end of `'a`; it may be on
    /// its way through [`attach`].
    pub(crate) unsafe fn from_raw<'a>(ptr: *mut bindings::dma_buf_attachment) -> &'a Self {
        // SAFETY: By the safety requirements; `Attachment` is a transparent wrapper.
        unsafe { &*ptr.cast() }
    }

    pub(crate) fn as_raw(&self) -> *mut bindings::dma_buf_attachment {
        self.0.get()
    }

    pub(crate) fn buffer(&self) -> &Buffer {
        // SAFETY: By the type invariants.
        unsafe { Buffer::from_raw((*self.as_raw()).dmabuf) }
    }

    pub(crate) fn device(&self) -> *mut bindings::device {
        // SAFETY: By the type invariants.
        unsafe { (*self.as_raw()).dev }
    }

    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn device_name(&self) -> &kernel::str::CStr {
        // SAFETY: By the type invariants.
        let dev: &kernel::device::Device =
            unsafe { kernel::device::Device::from_raw(self.device()) };

        dev.name()
    }

    fn importer_ops(&self) -> Option<&bindings::dma_buf_attach_ops> {
        // SAFETY: By the type invariants.
        unsafe { (*self.as_raw()).importer_ops.as_ref() }
    }

    /// Whether the importer copes with a buffer that moves, or at least with one that is pinned
    /// only while it says so.
    pub(crate) fn is_dynamic(&self) -> bool {
        self.importer_ops().is_some()
    }

    /// Whether the importer can be told to unmap.
    pub(crate) fn is_revocable(&self) -> bool {
        self.importer_ops()
            .is_some_and(|ops| ops.invalidate_mappings.is_some())
    }

    /// Takes the reservation lock of the buffer for the time of `f`. Sleeps.
    pub(crate) fn with_lock<R>(this: &Self, f: impl FnOnce(LockedAttachment<'_>) -> R) -> R {
        let guard = this.buffer().lock();

        // INVARIANT: The lock is that of the buffer of this attachment.
        f(LockedAttachment {
            attach: this,
            _locked: guard.held(),
        })
    }

    /// The attachment as one whose reservation lock the caller of the core holds.
    ///
    /// # Safety
    ///
    /// The reservation lock must be held by the current context for as long as the result lives.
    pub(crate) unsafe fn assume_locked(&self) -> LockedAttachment<'_> {
        // INVARIANT: The lock is that of the buffer of this attachment.
        LockedAttachment {
            attach: self,
            // SAFETY: By the safety requirements.
            _locked: unsafe { self.buffer().assume_locked() },
        }
    }
}

/// An attachment to a buffer whose reservation lock is held.
///
/// # Invariants
///
/// `_locked` is about the buffer of `attach`.
#[derive(Copy, Clone)]
pub(crate) struct LockedAttachment<'a> {
    attach: &'a Attachment,
    _locked: Locked<'a>,
}

impl core::ops::Deref for LockedAttachment<'_> {
    type Target = Attachment;

    fn deref(&self) -> &Attachment {
        self.attach
    }
}

impl LockedAttachment<'_> {
    /// Asks the exporter to keep the buffer where it is.
    pub(crate) fn pin(self) -> Result {
        match self.buffer().ops().pin {
            // SAFETY: The attachment is valid, and the reservation lock of its buffer is held.
            Some(pin) => to_result(unsafe { pin(self.as_raw()) }),
            None => Ok(()),
        }
    }

    /// Undoes one [`Self::pin`].
    ///
    /// # Safety
    ///
    /// There must be one.
    pub(crate) unsafe fn unpin(self) {
        if let Some(unpin) = self.buffer().ops().unpin {
            // SAFETY: The attachment is valid and pinned, and the reservation lock of its buffer is
            // held.
            unsafe { unpin(self.as_raw()) };
        }
    }
}

/// Attaches a device to a buffer.
///
/// The exporter sees the attachment first; then it goes on the list of the buffer. The result
/// belongs to the caller, who gives it to [`detach`].
///
/// # Safety
///
/// `dev` must point to a device, and `importer_ops` to operations or be NULL; both must live until
/// the attachment is detached, and `buf` must be referenced until then.
pub(crate) unsafe fn attach(
    buf: &Buffer,
    dev: *mut bindings::device,
    importer_ops: *const bindings::dma_buf_attach_ops,
    importer_priv: *mut c_void,
) -> Result<NonNull<bindings::dma_buf_attachment>> {
    // SAFETY: By the safety requirements.
    let peer2peer = unsafe { importer_ops.as_ref() }.is_some_and(|ops| ops.allow_peer2peer);

    // INVARIANT: By the safety requirements.
    let attach = KBox::new(
        Attachment(Opaque::new(bindings::dma_buf_attachment {
            dmabuf: buf.as_raw(),
            dev,
            peer2peer,
            importer_ops,
            importer_priv,
            ..pin_init::zeroed()
        })),
        GFP_KERNEL,
    )?;

    if let Some(op) = buf.ops().attach {
        // SAFETY: Buffer and attachment are valid, and no lock is held.
        to_result(unsafe { op(buf.as_raw(), attach.as_raw()) })?;
    }
    // SAFETY: The attachment is new, and `detach()` takes it off before it frees it.
    unsafe { buf.lock().held().add(&attach) };
    trace::attach(&attach);

    // SAFETY: A box is not NULL.
    Ok(unsafe { NonNull::new_unchecked(KBox::into_raw(attach).cast()) })
}

/// Detaches a device from a buffer.
///
/// # Safety
///
/// `attach` must be a result of [`attach`] for `buf` that is not used again.
pub(crate) unsafe fn detach(buf: &Buffer, attach: NonNull<bindings::dma_buf_attachment>) {
    // SAFETY: `attach()` made it from a box.
    let attach: KBox<Attachment> = unsafe { KBox::from_raw(attach.as_ptr().cast()) };

    // SAFETY: `attach()` put it on the list.
    unsafe { buf.lock().held().remove(&attach) };
    if let Some(op) = buf.ops().detach {
        // SAFETY: Buffer and attachment are valid, and no lock is held.
        unsafe { op(buf.as_raw(), attach.as_raw()) };
    }
    trace::detach(&attach);
}

/// Tells each importer that can be told that the buffer moves, or is gone.
pub(crate) fn invalidate_mappings(locked: Locked<'_>) {
    for attach in locked.attachments() {
        if let Some(invalidate) = attach
            .importer_ops()
            .and_then(|ops| ops.invalidate_mappings)
        {
            // SAFETY: The attachment is valid, and the reservation lock of its buffer is held. The
            // callee cannot detach: that takes the lock.
            unsafe { invalidate(attach.as_raw()) };
        }
    }
}

/// Warns of an importer that pins without being a dynamic one.
pub(crate) fn warn_if_static(attach: &Attachment) {
    warn_on!(!attach.is_dynamic());
}
