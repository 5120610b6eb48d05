// SPDX-License-Identifier: GPL-2.0

//! Importers: attaching devices to buffers, and mapping buffers for devices.
//!
//! Importers that can follow a buffer which moves are in [`super::dynamic`].
//!
//! C header: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h)

use super::{
    DmaBuf,
    LockedResv, //
};

use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    devres::{
        Devres,
        DevresLt, //
    },
    dma::DataDirection,
    error::from_err_ptr,
    prelude::*,
    scatterlist::SGTable,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    types::ForLt,
};

use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};

/// What a device and a buffer have in common: one `struct dma_buf_attachment`.
///
/// # Invariants
///
/// `raw` is an attachment of `dev` to `buf`, which this owns.
struct Link {
    raw: NonNull<bindings::dma_buf_attachment>,
    buf: ARef<DmaBuf>,
    // Exporters look at the device of an attachment for as long as there is one.
    dev: ARef<Device>,
    /// Whether there is a [`Claim`].
    mapped: Atomic<bool>,
}

// SAFETY: An attachment belongs to no task.
unsafe impl Send for Link {}

// SAFETY: The other fields do not change, and the C functions on attachments may run concurrently.
unsafe impl Sync for Link {}

impl Drop for Link {
    fn drop(&mut self) {
        // SAFETY: The attachment is ours by the type invariants, and no mapping of it is left:
        // each has a reference to this.
        unsafe { bindings::dma_buf_detach(self.buf.as_raw(), self.raw.as_ptr()) };
    }
}

/// The right to map an attachment, of which there is one: exporters may keep one table for each
/// attachment, and write it anew whenever it is mapped.
struct Claim(Arc<Link>);

impl Claim {
    fn new(link: &Arc<Link>) -> Result<Self> {
        if link.mapped.xchg(true, Acquire) {
            return Err(EBUSY);
        }
        Ok(Self(link.clone()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.mapped.store(false, Release);
    }
}

/// The attachment of a device to a buffer.
///
/// Cheap to clone: the device is detached when the last clone and the [`Mapping`] are gone.
/// Dropping that last one takes the reservation lock; it must not be held.
///
/// It lives no longer than the device is bound, by `'dev`. Where that cannot be proved to the
/// compiler, [`into_devres`](Self::into_devres) has the driver core end it.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::{Bound, Device},
///     dma::DataDirection,
///     dma_buf::{DmaBuf, Mapping},
/// };
///
/// fn import<'dev>(dev: &'dev Device<Bound>, fd: i32) -> Result<Mapping<'dev>> {
///     let buf = DmaBuf::get(fd)?;
///     let mapping = buf.attach(dev)?.map(DataDirection::ToDevice)?;
///
///     for segment in mapping.table().iter() {
///         // ... tell the device ...
///         let _ = (segment.dma_address(), segment.dma_len());
///     }
///     Ok(mapping)
/// }
/// # let _: for<'a> fn(&'a Device<Bound>, i32) -> Result<Mapping<'a>> = import;
/// ```
pub struct Attachment<'dev> {
    link: Arc<Link>,
    // The device is bound for at least `'dev`.
    _bound: PhantomData<&'dev Device<Bound>>,
}

// Without this, a compiler that looks at the fields alone would let an attachment be dropped, and
// the device be detached, after `'dev`.
impl Drop for Attachment<'_> {
    #[inline]
    fn drop(&mut self) {}
}

impl Clone for Attachment<'_> {
    #[inline]
    fn clone(&self) -> Self {
        Self {
            link: self.link.clone(),
            _bound: PhantomData,
        }
    }
}

impl DmaBuf {
    /// Attaches a device that needs the buffer to stay where it is while it is mapped.
    ///
    /// Must not be called under the reservation lock.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and whatever the exporter fails with: [`EBUSY`] stands for a buffer that is in a
    /// place which `dev` cannot access.
    pub fn attach<'dev>(&self, dev: &'dev Device<Bound>) -> Result<Attachment<'dev>> {
        // SAFETY: Both are valid, and stay so until the device is detached: see `Link`.
        let raw = from_err_ptr(unsafe { bindings::dma_buf_attach(self.as_raw(), dev.as_raw()) })?;
        // INVARIANT: The attachment is new.
        let link = Link {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            buf: self.into(),
            dev: dev.into(),
            mapped: Atomic::new(false),
        };

        Ok(Attachment {
            link: Arc::new(link, GFP_KERNEL)?,
            _bound: PhantomData,
        })
    }
}

/// An attachment that ends, at the latest, when the device is unbound.
///
/// It is lent to closures only: a clone that outlives the binding would pretend that the device is
/// still bound.
pub type DevresAttachment = DevresLt<ForLt!(Attachment<'_>)>;

impl<'dev> Attachment<'dev> {
    /// The buffer.
    #[inline]
    pub fn buf(&self) -> &DmaBuf {
        &self.link.buf
    }

    /// The device.
    #[inline]
    pub fn device(&self) -> &'dev Device<Bound> {
        let dev: *const Device = &*self.link.dev;

        // SAFETY: The device is bound for at least `'dev`, and therefore lives for as long.
        unsafe { (*dev).as_bound() }
    }

    /// Maps the buffer for the device, and waits until what moves the buffer is done.
    ///
    /// Takes the reservation lock, uninterruptibly; the wait is interruptible.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it is mapped, [`ENOMEM`], [`EINVAL`] for [`DataDirection::None`],
    /// [`ERESTARTSYS`], and whatever the exporter fails with.
    pub fn map(&self, dir: DataDirection) -> Result<Mapping<'dev>> {
        self.map_with(dir, |raw, dir| {
            // SAFETY: The attachment is valid.
            unsafe { bindings::dma_buf_map_attachment_unlocked(raw.as_ptr(), dir.into()) }
        })
    }

    /// Maps the buffer for the device, under the reservation lock.
    ///
    /// # Errors
    ///
    /// Those of [`map`](Self::map); [`EINVAL`] if `locked` is not the lock of the buffer.
    pub fn map_locked<'l>(
        &'l self,
        dir: DataDirection,
        locked: &'l LockedResv,
    ) -> Result<LockedMapping<'l, 'dev>> {
        locked.expect(self.buf().resv())?;

        let mapping = self.map_with(dir, |raw, dir| {
            // SAFETY: The attachment is valid, and the lock is held.
            unsafe { bindings::dma_buf_map_attachment(raw.as_ptr(), dir.into()) }
        })?;

        // INVARIANT: The lock is held for all of `'l`.
        Ok(LockedMapping {
            mapping: ManuallyDrop::new(mapping),
            _attachment: self,
            _locked: locked,
        })
    }

    /// `map` is called with a valid attachment that is not mapped.
    fn map_with(
        &self,
        dir: DataDirection,
        map: impl FnOnce(
            NonNull<bindings::dma_buf_attachment>,
            DataDirection,
        ) -> *mut bindings::sg_table,
    ) -> Result<Mapping<'dev>> {
        check(dir)?;

        let claim = Claim::new(&self.link)?;
        let dev = self.device();
        // INVARIANT: The table is new. It is made last, so that nothing has to be undone here: the
        // lock may be held or not.
        let devres = Devres::new(
            dev,
            try_init!(MappedBuffer {
                table: NonNull::new(from_err_ptr(map(claim.0.raw, dir))?).ok_or(ENOMEM)?,
                dir,
                ended: Atomic::new(false),
                claim,
            }? Error),
        )?;
        let mapped = devres.access(dev)?.into();

        // INVARIANT: The device is bound for `'dev`, so the driver core does not end the mapping.
        Ok(Mapping {
            devres,
            mapped,
            attachment: self.clone(),
        })
    }

    /// Leaves the attachment to the driver core, which drops it when the device is unbound, if it
    /// is not dropped before. This is for state that may outlive the binding.
    ///
    /// It can be mapped where the device is known to be bound, with
    /// [`access_with`](DevresLt::access_with). Dropping it takes the reservation lock; it must not
    /// be held.
    pub fn into_devres(self) -> Result<DevresAttachment> {
        let dev = self.device();

        // SAFETY: An attachment owns all it needs, except the binding of the device.
        unsafe { DevresLt::new(dev, self) }
    }
}

/// The C side takes all but this for granted.
pub(super) fn check(dir: DataDirection) -> Result {
    if dir == DataDirection::None {
        return Err(EINVAL);
    }
    Ok(())
}

/// What the driver core keeps of a [`Mapping`]; see [`Mapping::into_devres`].
///
/// # Invariants
///
/// `table` is a mapping of the attachment of `claim` with direction `dir`, which this owns until
/// `ended` is set.
pub struct MappedBuffer {
    table: NonNull<bindings::sg_table>,
    dir: DataDirection,
    ended: Atomic<bool>,
    claim: Claim,
}

// SAFETY: A mapping belongs to no task.
unsafe impl Send for MappedBuffer {}

// SAFETY: The table does not change while the mapping exists.
unsafe impl Sync for MappedBuffer {}

impl MappedBuffer {
    /// The buffer.
    #[inline]
    pub fn buf(&self) -> &DmaBuf {
        &self.claim.0.buf
    }

    /// The direction that the buffer is mapped for.
    #[inline]
    pub fn direction(&self) -> DataDirection {
        self.dir
    }

    /// The addresses at which the device finds the buffer.
    #[inline]
    pub fn table(&self) -> &SGTable {
        // SAFETY: The table is ours by the type invariants: `ended` is only set where nobody else
        // can have a reference to this. Nobody changes the table while it is mapped.
        unsafe { SGTable::from_raw(self.table.as_ptr()) }
    }
}

impl Drop for MappedBuffer {
    fn drop(&mut self) {
        if self.ended.load(Relaxed) {
            return;
        }
        // SAFETY: The mapping is ours by the type invariants.
        unsafe {
            bindings::dma_buf_unmap_attachment_unlocked(
                self.claim.0.raw.as_ptr(),
                self.table.as_ptr(),
                self.dir.into(),
            )
        };
    }
}

/// A buffer mapped for a device. While it exists, the buffer does not move.
///
/// An attachment has at most one. When the device is unbound, the buffer is unmapped even if this
/// has been leaked.
///
/// Dropping it takes the reservation lock; it must not be held. See
/// [`unmap_locked`](Self::unmap_locked) for where it is.
///
/// # Invariants
///
/// `devres` is not revoked before the end of `'dev`, and `mapped` is what is in it.
pub struct Mapping<'dev> {
    // First, so that the buffer is unmapped before the device is detached.
    devres: Devres<MappedBuffer>,
    mapped: NonNull<MappedBuffer>,
    attachment: Attachment<'dev>,
}

// SAFETY: A mapping belongs to no task.
unsafe impl Send for Mapping<'_> {}

// SAFETY: The table does not change while the mapping exists.
unsafe impl Sync for Mapping<'_> {}

impl<'dev> Mapping<'dev> {
    /// The attachment that the mapping is of.
    #[inline]
    pub fn attachment(&self) -> &Attachment<'dev> {
        &self.attachment
    }

    fn mapped(&self) -> &MappedBuffer {
        // SAFETY: By the type invariants it is there for as long as `self`.
        unsafe { self.mapped.as_ref() }
    }

    /// The direction that the buffer is mapped for.
    #[inline]
    pub fn direction(&self) -> DataDirection {
        self.mapped().direction()
    }

    /// The addresses at which the device finds the buffer.
    #[inline]
    pub fn table(&self) -> &SGTable {
        self.mapped().table()
    }

    /// Ends the mapping under the reservation lock. Gives the attachment back, because the last
    /// clone of that must not be dropped under the lock: have a variable for it that is declared
    /// before the guard.
    ///
    /// # Errors
    ///
    /// The mapping, unchanged, if `locked` is not the lock of its buffer.
    pub fn unmap_locked(self, locked: &LockedResv) -> Result<Attachment<'dev>, Self> {
        if !locked.is_of(self.attachment.buf().resv()) {
            return Err(self);
        }
        // SAFETY: The lock is that of the buffer.
        Ok(unsafe { self.end() })
    }

    /// # Safety
    ///
    /// The reservation lock of the buffer must be held.
    unsafe fn end(self) -> Attachment<'dev> {
        // SAFETY: The device is bound, so `devres` has not been revoked, and will not be meanwhile.
        // INVARIANT: The mapping passes to the call below.
        unsafe { self.mapped.as_ref() }.ended.store(true, Relaxed);
        // SAFETY: The mapping was ours by the type invariants, and nobody else ends it. The lock is
        // held by the safety requirements.
        unsafe {
            bindings::dma_buf_unmap_attachment(
                self.attachment.link.raw.as_ptr(),
                self.mapped.as_ref().table.as_ptr(),
                self.mapped.as_ref().dir.into(),
            )
        };
        self.attachment
    }

    /// Leaves the mapping to the driver core, which drops it when the device is unbound, if it is
    /// not dropped before. This is for state that may outlive the binding. Dropping it takes the
    /// reservation lock; it must not be held.
    pub fn into_devres(self) -> Devres<MappedBuffer> {
        self.devres
    }
}

/// A buffer mapped for a device, under the reservation lock. Dropping it does not take the lock.
///
/// # Invariants
///
/// The lock of the buffer is held for all of `'l`.
#[must_use = "the buffer is unmapped at once when the mapping is not used"]
pub struct LockedMapping<'l, 'dev> {
    mapping: ManuallyDrop<Mapping<'dev>>,
    // Keeps the attachment from being dropped under the lock.
    _attachment: &'l Attachment<'dev>,
    _locked: &'l LockedResv,
}

impl<'dev> LockedMapping<'_, 'dev> {
    /// The addresses at which the device finds the buffer.
    #[inline]
    pub fn table(&self) -> &SGTable {
        self.mapping.table()
    }

    /// Keeps the buffer mapped beyond the time that the lock is held for.
    ///
    /// What this returns must be dropped after the lock. So call it last, after all that can fail
    /// under the lock: `?` drops what was declared after the guard before the guard.
    #[inline]
    pub fn keep(self) -> Mapping<'dev> {
        // SAFETY: `self` is not dropped, and not touched again.
        unsafe { ManuallyDrop::take(&mut ManuallyDrop::new(self).mapping) }
    }
}

impl Drop for LockedMapping<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: The field is not touched again.
        let mapping = unsafe { ManuallyDrop::take(&mut self.mapping) };

        // SAFETY: The lock is held by the type invariants.
        let attachment = unsafe { mapping.end() };

        // This is not the last clone: one is borrowed.
        drop(attachment);
    }
}
