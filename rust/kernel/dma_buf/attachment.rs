// SPDX-License-Identifier: GPL-2.0

//! Importers: attaching devices to buffers, and mapping buffers for devices.
//!
//! Importers that can follow a buffer which moves are in [`super::dynamic`].
//!
//! What is attached ends when the driver core releases the resources of the device, after its
//! driver. That a `Device<Bound>` stands for a device whose resources are not being released is a
//! promise of who lends it, on which this relies, as [`Devres::access`] does.
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
    devres::Devres,
    dma::DataDirection,
    error::from_err_ptr,
    prelude::*,
    scatterlist::SGTable,
    sync::{
        aref::ARef,
        Arc, //
    },
};

use core::{
    cell::UnsafeCell,
    mem::{
        replace,
        ManuallyDrop, //
    },
    ptr::{
        self,
        NonNull, //
    },
};

/// A mapping of an attachment.
///
/// # Invariants
///
/// - `table` is a mapping of `attachment` with direction `dir`, which this owns.
/// - It is dropped before the attachment is detached, and under the reservation lock.
pub(super) struct Table {
    attachment: NonNull<bindings::dma_buf_attachment>,
    pub(super) table: NonNull<bindings::sg_table>,
    pub(super) dir: DataDirection,
}

impl Table {
    /// Maps a buffer.
    ///
    /// # Safety
    ///
    /// `attachment` must be attached, the reservation lock of its buffer held, and the device be
    /// bound. The type invariants must be kept.
    pub(super) unsafe fn new(
        attachment: NonNull<bindings::dma_buf_attachment>,
        dir: DataDirection,
    ) -> Result<Self> {
        // The C side takes all but this for granted.
        if dir == DataDirection::None {
            return Err(EINVAL);
        }
        // SAFETY: By the safety requirements.
        let table = unsafe { bindings::dma_buf_map_attachment(attachment.as_ptr(), dir.into()) };

        // INVARIANT: The table is new. The rest is up to the caller.
        Ok(Self {
            attachment,
            table: NonNull::new(from_err_ptr(table)?).ok_or(ENOMEM)?,
            dir,
        })
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, the attachment is still there, and the lock is held, by the
        // type invariants.
        unsafe {
            bindings::dma_buf_unmap_attachment(
                self.attachment.as_ptr(),
                self.table.as_ptr(),
                self.dir.into(),
            )
        };
    }
}

/// Of what an attachment has at most one, as exporters may keep one table for each attachment, and
/// write it anew whenever it is mapped.
enum State {
    Unmapped,
    /// The exporter is being called.
    Busy,
    Mapped(Table),
    /// It is detached.
    Gone,
}

/// What a device and a buffer have in common: one `struct dma_buf_attachment`.
///
/// # Invariants
///
/// - `raw` is an attachment of `dev` to `buf`, until [`Shutdown`] detaches it.
/// - `state` is only accessed under the reservation lock. Once it is [`State::Gone`], it stays so.
struct Link {
    raw: NonNull<bindings::dma_buf_attachment>,
    buf: ARef<DmaBuf>,
    // Exporters look at the device of an attachment for as long as there is one.
    dev: ARef<Device>,
    state: UnsafeCell<State>,
}

// SAFETY: An attachment belongs to no task, and neither does a table.
unsafe impl Send for Link {}

// SAFETY: `state` is protected by the reservation lock, and the other fields do not change.
unsafe impl Sync for Link {}

impl Link {
    /// # Safety
    ///
    /// The lock must be held.
    unsafe fn set(&self, state: State) -> State {
        // SAFETY: By the safety requirements nobody else is here, and nothing is called.
        replace(unsafe { &mut *self.state.get() }, state)
    }

    /// # Safety
    ///
    /// The lock must be held, and the device be bound, as it has been since it was attached.
    unsafe fn map(&self, dir: DataDirection) -> Result<NonNull<bindings::sg_table>> {
        // SAFETY: The lock is held.
        match unsafe { self.set(State::Busy) } {
            State::Unmapped => (),
            other => {
                // SAFETY: The lock is held.
                unsafe { self.set(other) };
                return Err(EBUSY);
            }
        }

        // INVARIANT: `Shutdown` drops the table before it detaches.
        // SAFETY: The device is bound, so `Shutdown` has not come. The lock is held.
        let result = unsafe { Table::new(self.raw, dir) };
        let (state, result) = match result {
            Ok(table) => {
                let raw = table.table;

                (State::Mapped(table), Ok(raw))
            }
            Err(error) => (State::Unmapped, Err(error)),
        };

        // SAFETY: The lock is held.
        unsafe { self.set(state) };
        result
    }

    /// Ends the mapping, unless [`Shutdown`] has.
    ///
    /// # Safety
    ///
    /// The lock must be held.
    unsafe fn unmap(&self) {
        // SAFETY: The lock is held.
        let state = match unsafe { self.set(State::Busy) } {
            // This calls the exporter.
            State::Mapped(table) => {
                drop(table);
                State::Unmapped
            }
            other => other,
        };

        // SAFETY: The lock is held.
        unsafe { self.set(state) };
    }
}

/// Owns the attachment. Dropped with the last handle, or by the driver core when the device is
/// unbound, even if handles have been leaked.
struct Shutdown(Arc<Link>);

impl Drop for Shutdown {
    fn drop(&mut self) {
        let link = &self.0;
        let locked = link.buf.resv().lock();

        // A mapping can be left if it was leaked, or is stored somewhere.
        //
        // SAFETY: The lock is held.
        drop(unsafe { link.set(State::Gone) });
        drop(locked);
        // SAFETY: The attachment is ours, and there is no mapping of it, nor will there be.
        unsafe { bindings::dma_buf_detach(link.buf.as_raw(), link.raw.as_ptr()) };
    }
}

/// What an attachment and its mapping share.
struct Handle {
    shutdown: Devres<Shutdown>,
    link: Arc<Link>,
}

impl Handle {
    /// Whether the device is attached: since before it was bound this time it cannot be.
    fn check(&self, dev: &Device<Bound>) -> Result {
        if !ptr::eq(dev.as_raw(), self.link.dev.as_raw()) {
            return Err(EINVAL);
        }
        self.shutdown.try_access().map(|_| ()).ok_or(ENODEV)
    }
}

/// An attachment that may outlive the binding of its device, to be stored in what a driver keeps.
/// It ends when the device is unbound, or when this and its mapping have been dropped before.
///
/// Dropping it takes the reservation lock; it must not be held.
pub struct DevresAttachment(Arc<Handle>);

impl DevresAttachment {
    /// The buffer.
    #[inline]
    pub fn buf(&self) -> &DmaBuf {
        &self.0.link.buf
    }

    /// As [`Attachment::map`], for a device that is bound.
    ///
    /// # Errors
    ///
    /// Those of [`Attachment::map`]; [`EINVAL`] if `dev` is another device, [`ENODEV`] if it has
    /// been unbound since it was attached.
    pub fn map(&self, dev: &Device<Bound>, dir: DataDirection) -> Result<DevresMapping> {
        self.0.check(dev)?;

        let _locked = self.buf().resv().lock();

        // SAFETY: The device is bound, and attached since it is, and the lock is held.
        unsafe { self.map_under_lock(dir) }
    }

    /// # Safety
    ///
    /// As for [`Link::map`].
    unsafe fn map_under_lock(&self, dir: DataDirection) -> Result<DevresMapping> {
        // SAFETY: By the safety requirements.
        let table = unsafe { self.0.link.map(dir) }?;

        // INVARIANT: It was mapped just now.
        Ok(DevresMapping {
            handle: self.0.clone(),
            table,
            dir,
        })
    }
}

/// A mapping that may outlive the binding of its device, to be stored in what a driver keeps. It
/// ends when the device is unbound, or when this is dropped before.
///
/// Dropping it takes the reservation lock; it must not be held.
///
/// # Invariants
///
/// `table` is the mapping of the attachment with direction `dir`, until the device is unbound.
pub struct DevresMapping {
    handle: Arc<Handle>,
    table: NonNull<bindings::sg_table>,
    dir: DataDirection,
}

// SAFETY: A mapping belongs to no task.
unsafe impl Send for DevresMapping {}

// SAFETY: The table does not change while the mapping exists.
unsafe impl Sync for DevresMapping {}

impl DevresMapping {
    /// The buffer.
    #[inline]
    pub fn buf(&self) -> &DmaBuf {
        &self.handle.link.buf
    }

    /// The direction that the buffer is mapped for.
    #[inline]
    pub fn direction(&self) -> DataDirection {
        self.dir
    }

    /// The addresses at which the device finds the buffer, while it is bound.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `dev` is another device, [`ENODEV`] if it has been unbound since.
    pub fn table<'a>(&'a self, dev: &'a Device<Bound>) -> Result<&'a SGTable> {
        self.handle.check(dev)?;
        // SAFETY: The device is bound, as it has been since it was attached, for all of `'a`.
        Ok(unsafe { self.assume_mapped() })
    }

    /// # Safety
    ///
    /// The device must be bound, as it has been since it was attached.
    unsafe fn assume_mapped(&self) -> &SGTable {
        // SAFETY: By the type invariants it is mapped. Nobody changes a table that is.
        unsafe { SGTable::from_raw(self.table.as_ptr()) }
    }

    /// Ends the mapping.
    ///
    /// # Safety
    ///
    /// The lock must be held.
    unsafe fn end(self) -> DevresAttachment {
        let this = ManuallyDrop::new(self);

        // SAFETY: The lock is held by the safety requirements.
        unsafe { this.handle.link.unmap() };
        // SAFETY: The field is moved out of what is not dropped.
        DevresAttachment(unsafe { ptr::read(&this.handle) })
    }
}

impl Drop for DevresMapping {
    fn drop(&mut self) {
        let _locked = self.buf().resv().lock();

        // SAFETY: The lock is held.
        unsafe { self.handle.link.unmap() };
    }
}

/// The attachment of a device to a buffer.
///
/// Cheap to clone: the device is detached when the last clone and the [`Mapping`] are gone.
/// Dropping that last one takes the reservation lock; it must not be held. If all are leaked, it is
/// detached when the device is unbound.
///
/// It lives no longer than the device is bound, by `'dev`. Where that cannot be proved to the
/// compiler, [`into_devres`](Self::into_devres) makes what can be stored.
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
///
/// # Invariants
///
/// The device of `attachment` is `dev`, and has been bound since before it was attached.
pub struct Attachment<'dev> {
    attachment: DevresAttachment,
    dev: &'dev Device<Bound>,
}

impl Clone for Attachment<'_> {
    #[inline]
    fn clone(&self) -> Self {
        // INVARIANT: As for `self`.
        Self {
            attachment: DevresAttachment(self.attachment.0.clone()),
            dev: self.dev,
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
    // Inline, so that a module that attaches devices has to import the namespace.
    #[inline]
    pub fn attach<'dev>(&self, dev: &'dev Device<Bound>) -> Result<Attachment<'dev>> {
        // SAFETY: Both are valid, and stay so until the device is detached: see `Link`.
        let raw = from_err_ptr(unsafe { bindings::dma_buf_attach(self.as_raw(), dev.as_raw()) })?;

        // SAFETY: The attachment is new, of these two.
        unsafe { Attachment::new(self, dev, NonNull::new(raw).ok_or(ENOMEM)?) }
    }
}

impl<'dev> Attachment<'dev> {
    /// # Safety
    ///
    /// `raw` must be an attachment of `dev` to `buf`, which passes on.
    unsafe fn new(
        buf: &DmaBuf,
        dev: &'dev Device<Bound>,
        raw: NonNull<bindings::dma_buf_attachment>,
    ) -> Result<Self> {
        let detach = |raw: NonNull<_>| {
            // SAFETY: It is ours by the safety requirements, and not mapped.
            unsafe { bindings::dma_buf_detach(buf.as_raw(), raw.as_ptr()) }
        };
        // INVARIANT: By the safety requirements; nothing is mapped.
        let link = Arc::new(
            Link {
                raw,
                buf: buf.into(),
                dev: dev.into(),
                state: UnsafeCell::new(State::Unmapped),
            },
            GFP_KERNEL,
        )
        .inspect_err(|_| detach(raw))?;
        // From here on the attachment is that of `Shutdown`, also if this fails.
        let shutdown = Devres::new(dev, Shutdown(link.clone()))?;

        // INVARIANT: The device is bound for all of `'dev`.
        Ok(Self {
            attachment: DevresAttachment(Arc::new(Handle { shutdown, link }, GFP_KERNEL)?),
            dev,
        })
    }

    /// The buffer.
    #[inline]
    pub fn buf(&self) -> &DmaBuf {
        self.attachment.buf()
    }

    /// The device.
    #[inline]
    pub fn device(&self) -> &'dev Device<Bound> {
        self.dev
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
        let _locked = self.buf().resv().lock();

        // SAFETY: By the type invariants, and the lock is held.
        unsafe { self.map_under_lock(dir) }
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

        // SAFETY: By the type invariants, and the lock is held.
        let mapping = unsafe { self.map_under_lock(dir) }?;

        // INVARIANT: The lock is held for all of `'l`.
        Ok(LockedMapping {
            mapping: ManuallyDrop::new(mapping),
            _attachment: self,
            _locked: locked,
        })
    }

    /// # Safety
    ///
    /// The lock must be held.
    unsafe fn map_under_lock(&self, dir: DataDirection) -> Result<Mapping<'dev>> {
        // INVARIANT: As for `self`.
        Ok(Mapping {
            // SAFETY: By the type invariants, and the safety requirements.
            mapping: unsafe { self.attachment.map_under_lock(dir) }?,
            dev: self.dev,
        })
    }

    /// Makes what may outlive the binding: it can be mapped where the device is known to be bound.
    #[inline]
    pub fn into_devres(self) -> DevresAttachment {
        self.attachment
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
/// The device of `mapping` is `dev`, and has been bound since before it was attached.
pub struct Mapping<'dev> {
    mapping: DevresMapping,
    dev: &'dev Device<Bound>,
}

impl<'dev> Mapping<'dev> {
    /// The buffer.
    #[inline]
    pub fn buf(&self) -> &DmaBuf {
        self.mapping.buf()
    }

    /// The device.
    #[inline]
    pub fn device(&self) -> &'dev Device<Bound> {
        self.dev
    }

    /// The direction that the buffer is mapped for.
    #[inline]
    pub fn direction(&self) -> DataDirection {
        self.mapping.direction()
    }

    /// The addresses at which the device finds the buffer.
    #[inline]
    pub fn table(&self) -> &SGTable {
        // SAFETY: By the type invariants.
        unsafe { self.mapping.assume_mapped() }
    }

    /// Ends the mapping under the reservation lock. Gives the attachment back, because the last
    /// clone of that must not be dropped under the lock: have a variable for it that is declared
    /// before the guard.
    ///
    /// # Errors
    ///
    /// The mapping, unchanged, if `locked` is not the lock of its buffer.
    pub fn unmap_locked(self, locked: &LockedResv) -> Result<Attachment<'dev>, Self> {
        if !locked.is_of(self.buf().resv()) {
            return Err(self);
        }
        // SAFETY: The lock is that of the buffer.
        Ok(unsafe { self.end() })
    }

    /// # Safety
    ///
    /// The reservation lock of the buffer must be held.
    unsafe fn end(self) -> Attachment<'dev> {
        // INVARIANT: As for `self`.
        Attachment {
            // SAFETY: The lock is held by the safety requirements.
            attachment: unsafe { self.mapping.end() },
            dev: self.dev,
        }
    }

    /// Makes what may outlive the binding: its addresses can be read where the device is known to
    /// be bound.
    #[inline]
    pub fn into_devres(self) -> DevresMapping {
        self.mapping
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
