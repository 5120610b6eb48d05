// SPDX-License-Identifier: GPL-2.0

//! Importers: attaching devices to buffers, and mapping buffers for devices.
//!
//! C header: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h)

use super::{
    DmaBuf,
    LockedResv,
    ModuleRef, //
};

use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    devres::DevresLt,
    dma::DataDirection,
    error::from_err_ptr,
    prelude::*,
    scatterlist::SGTable,
    sync::{
        aref::ARef,
        Arc, //
    },
    types::CovariantForLt,
};

use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::{
        self,
        NonNull, //
    },
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
}

// SAFETY: An attachment belongs to no task.
unsafe impl Send for Link {}

// SAFETY: The fields do not change, and the C functions on attachments may run concurrently.
unsafe impl Sync for Link {}

impl Drop for Link {
    fn drop(&mut self) {
        // SAFETY: The attachment is ours by the type invariants, and no mapping of it is left:
        // each has a reference to this.
        unsafe { bindings::dma_buf_detach(self.buf.as_raw(), self.raw.as_ptr()) };
    }
}

/// The attachment of a device to a buffer.
///
/// Cheap to clone: the device is detached when the last clone and the last [`Mapping`] are gone.
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

impl Clone for Attachment<'_> {
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
        };

        Ok(Attachment {
            link: Arc::new(link, GFP_KERNEL)?,
            _bound: PhantomData,
        })
    }
}

/// An attachment that ends, at the latest, when the device is unbound.
pub type DevresAttachment = DevresLt<CovariantForLt!(Attachment<'_>)>;

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

        // SAFETY: The device is bound for at least `'dev`, which therefore it also lives.
        unsafe { (*dev).as_bound() }
    }

    /// Maps the buffer for the device, and waits until what moves the buffer is done.
    ///
    /// Takes the reservation lock, uninterruptibly; the wait is interruptible.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`EINVAL`] for [`DataDirection::None`], [`ERESTARTSYS`], and whatever the
    /// exporter fails with.
    pub fn map(&self, dir: DataDirection) -> Result<Mapping<'dev>> {
        check(dir)?;
        // SAFETY: The attachment is valid by the type invariants of `Link`.
        let table = from_err_ptr(unsafe {
            bindings::dma_buf_map_attachment_unlocked(self.link.raw.as_ptr(), dir.into())
        })?;

        // INVARIANT: The table is new.
        Ok(Mapping {
            attachment: self.clone(),
            table: NonNull::new(table).ok_or(ENOMEM)?,
            dir,
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
        check(dir)?;
        locked.expect(self.buf().resv())?;
        // SAFETY: The attachment is valid by the type invariants of `Link`, and the lock is held.
        let table = from_err_ptr(unsafe {
            bindings::dma_buf_map_attachment(self.link.raw.as_ptr(), dir.into())
        })?;

        // INVARIANT: The table is new; the lock is held for all of `'l`.
        Ok(LockedMapping {
            attachment: self,
            table: NonNull::new(table).ok_or(ENOMEM)?,
            dir,
            _locked: locked,
        })
    }

    /// Has the driver core drop the attachment when the device is unbound, if it is not dropped
    /// before. This is for state that may outlive the binding, like that of an open file.
    pub fn into_devres(self) -> Result<DevresAttachment> {
        let dev = self.device();

        // SAFETY: An attachment owns all it needs, except the binding of the device.
        unsafe { DevresLt::new(dev, self) }
    }
}

/// The C side takes all but this for granted.
fn check(dir: DataDirection) -> Result {
    if dir == DataDirection::None {
        return Err(EINVAL);
    }
    Ok(())
}

/// A buffer mapped for a device. While it exists, the buffer does not move.
///
/// Dropping it takes the reservation lock; it must not be held. See
/// [`unmap_locked`](Self::unmap_locked) for where it is.
///
/// # Invariants
///
/// `table` is a mapping of `attachment` with direction `dir`, which this owns.
pub struct Mapping<'dev> {
    attachment: Attachment<'dev>,
    table: NonNull<bindings::sg_table>,
    dir: DataDirection,
}

// SAFETY: A mapping belongs to no task.
unsafe impl Send for Mapping<'_> {}

// SAFETY: The table does not change while the mapping exists.
unsafe impl Sync for Mapping<'_> {}

/// A mapping that ends, at the latest, when the device is unbound.
pub type DevresMapping = DevresLt<CovariantForLt!(Mapping<'_>)>;

impl<'dev> Mapping<'dev> {
    /// The attachment that the mapping is of.
    #[inline]
    pub fn attachment(&self) -> &Attachment<'dev> {
        &self.attachment
    }

    /// The direction that the buffer is mapped for.
    #[inline]
    pub fn direction(&self) -> DataDirection {
        self.dir
    }

    /// The addresses at which the device finds the buffer.
    #[inline]
    pub fn table(&self) -> &SGTable {
        // SAFETY: The table is ours by the type invariants, and nobody changes it.
        unsafe { SGTable::from_raw(self.table.as_ptr()) }
    }

    /// Ends the mapping under the reservation lock. Gives the attachment back, because the last
    /// clone of that must not be dropped under the lock.
    ///
    /// # Errors
    ///
    /// The mapping, unchanged, if `locked` is not the lock of its buffer.
    pub fn unmap_locked(self, locked: &LockedResv) -> Result<Attachment<'dev>, Self> {
        if !locked.is_of(self.attachment.buf().resv()) {
            return Err(self);
        }

        let this = ManuallyDrop::new(self);

        // SAFETY: The mapping is ours by the type invariants, and not touched again. The lock is
        // held.
        unsafe {
            bindings::dma_buf_unmap_attachment(
                this.attachment.link.raw.as_ptr(),
                this.table.as_ptr(),
                this.dir.into(),
            )
        };
        // SAFETY: `this` is not dropped, and not touched again.
        Ok(unsafe { ptr::read(&this.attachment) })
    }

    /// Has the driver core drop the mapping when the device is unbound, if it is not dropped
    /// before.
    pub fn into_devres(self) -> Result<DevresMapping> {
        let dev = self.attachment.device();

        // SAFETY: A mapping owns all it needs, except the binding of the device.
        unsafe { DevresLt::new(dev, self) }
    }
}

impl Drop for Mapping<'_> {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours by the type invariants.
        unsafe {
            bindings::dma_buf_unmap_attachment_unlocked(
                self.attachment.link.raw.as_ptr(),
                self.table.as_ptr(),
                self.dir.into(),
            )
        };
    }
}

/// A buffer mapped for a device, under the reservation lock. Dropping it does not take the lock.
///
/// # Invariants
///
/// `table` is a mapping of `attachment` with direction `dir`, which this owns. The lock of the
/// buffer is held for all of `'l`.
#[must_use = "the buffer is unmapped at once when the mapping is not used"]
pub struct LockedMapping<'l, 'dev> {
    attachment: &'l Attachment<'dev>,
    table: NonNull<bindings::sg_table>,
    dir: DataDirection,
    _locked: &'l LockedResv,
}

impl<'dev> LockedMapping<'_, 'dev> {
    /// The addresses at which the device finds the buffer.
    #[inline]
    pub fn table(&self) -> &SGTable {
        // SAFETY: The table is ours by the type invariants, and nobody changes it.
        unsafe { SGTable::from_raw(self.table.as_ptr()) }
    }

    /// Keeps the buffer mapped beyond the time that the lock is held for.
    ///
    /// What this returns must be dropped after the lock.
    pub fn keep(self) -> Mapping<'dev> {
        let this = ManuallyDrop::new(self);

        // INVARIANT: The table is that of `this`, which does not own it any more.
        Mapping {
            attachment: this.attachment.clone(),
            table: this.table,
            dir: this.dir,
        }
    }
}

impl Drop for LockedMapping<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, and the lock is held, by the type invariants.
        unsafe {
            bindings::dma_buf_unmap_attachment(
                self.attachment.link.raw.as_ptr(),
                self.table.as_ptr(),
                self.dir.into(),
            )
        };
    }
}

/// An importer that can follow a buffer which moves, or which goes away.
///
/// The value is the importer's state for one buffer. The attachment owns it, from before the
/// exporter can call it until after it no longer can.
///
/// Because an exporter may call this code, its module stays loaded until the attachment is gone.
#[vtable]
pub trait DynamicImporter: Send + Sync + Sized + 'static {
    /// Whether the device can access memory of other devices on the bus.
    const ALLOW_PEER2PEER: bool = false;

    /// Called when the buffer moves, or when the exporter takes it away, under its reservation
    /// lock.
    ///
    /// Make the device stop to use the buffer. What it is at may go on until its fences signal,
    /// which must be in the reservation object; new work needs a new mapping. In bounded time end
    /// the mapping that there is: here, by [`Invalidation::unmap`], or later by
    /// [`DynamicAttachment::unmap`], or by mapping anew.
    ///
    /// May sleep, but must not wait for fences, nor take a lock that is held while mapping.
    fn invalidate_mappings(&self, invalidation: &Invalidation<'_, Self>);
}

/// What [`DynamicImporter::invalidate_mappings`] can do with the attachment it is called for.
pub struct Invalidation<'a, T: DynamicImporter> {
    inner: &'a Dynamic<T>,
    locked: &'a LockedResv,
}

impl<T: DynamicImporter> Invalidation<'_, T> {
    /// The buffer.
    #[inline]
    pub fn buf(&self) -> &DmaBuf {
        &self.inner.buf
    }

    /// The reservation object of the buffer.
    #[inline]
    pub fn resv(&self) -> &LockedResv {
        self.locked
    }

    /// Ends the mapping, if there is one.
    pub fn unmap(&self) {
        drop(self.inner.mapping(self.locked).take());
    }
}

/// One mapping of a dynamic attachment.
///
/// # Invariants
///
/// - `table` is a mapping of `attachment` with direction `dir`, which this owns.
/// - It is dropped before the attachment is detached, and under the reservation lock.
struct DynamicTable {
    attachment: NonNull<bindings::dma_buf_attachment>,
    table: NonNull<bindings::sg_table>,
    dir: DataDirection,
}

// SAFETY: A mapping belongs to no task.
unsafe impl Send for DynamicTable {}

// SAFETY: The table does not change while the mapping exists.
unsafe impl Sync for DynamicTable {}

impl Drop for DynamicTable {
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

/// What [`Dynamic`] keeps of its mapping.
struct Slot {
    table: Arc<DynamicTable>,
    stale: bool,
}

/// # Invariants
///
/// - `raw` is null, or an attachment of `dev` to `buf`, which this owns, and whose importer's
///   private data this is. It changes only before anybody else can see it.
/// - `current` is only accessed under the reservation lock, and never for longer than one step.
#[pin_data(PinnedDrop)]
struct Dynamic<T: DynamicImporter> {
    raw: UnsafeCell<*mut bindings::dma_buf_attachment>,
    current: UnsafeCell<Option<Slot>>,
    importer: T,
    buf: ARef<DmaBuf>,
    dev: ARef<Device>,
    // Last: the fields above are dropped by code of the module.
    _module: ModuleRef,
    // The exporter has a pointer to this.
    #[pin]
    _pin: core::marker::PhantomPinned,
}

// SAFETY: An attachment belongs to no task, and all the rest is `Send`.
unsafe impl<T: DynamicImporter> Send for Dynamic<T> {}

// SAFETY: `raw` does not change when it is shared, `current` is protected by the reservation lock,
// and all the rest is `Sync`.
unsafe impl<T: DynamicImporter> Sync for Dynamic<T> {}

/// The mapping of a [`Dynamic`] under the lock.
struct SlotRef<'a>(&'a UnsafeCell<Option<Slot>>);

impl SlotRef<'_> {
    /// What there is, to read it.
    fn get(&self) -> Option<(Arc<DynamicTable>, bool)> {
        // SAFETY: The lock is held, see `Dynamic::mapping`, so nobody writes: not another task,
        // and not this one, which is here and runs nothing else meanwhile.
        let slot = unsafe { &*self.0.get() };

        slot.as_ref().map(|slot| (slot.table.clone(), slot.stale))
    }

    /// Puts something else in, and gives what was there. The caller drops it, now that nothing of
    /// the slot is borrowed: to unmap is to call the exporter.
    fn replace(&self, slot: Option<Slot>) -> Option<Slot> {
        // SAFETY: As in `get`, and so nobody reads either.
        unsafe { ptr::replace(self.0.get(), slot) }
    }

    fn take(&self) -> Option<Slot> {
        self.replace(None)
    }
}

impl<T: DynamicImporter> Dynamic<T> {
    const OPS: bindings::dma_buf_attach_ops = bindings::dma_buf_attach_ops {
        allow_peer2peer: T::ALLOW_PEER2PEER,
        invalidate_mappings: Some(Self::invalidate_mappings),
    };

    /// # Safety
    ///
    /// `attach` must be an attachment made by [`DmaBuf::attach_dynamic`] with the same `T`, and
    /// the reservation lock of its buffer must be held.
    unsafe extern "C" fn invalidate_mappings(attach: *mut bindings::dma_buf_attachment) {
        // SAFETY: The attachment is valid by the safety requirements. `importer_priv` is set
        // before the exporter can see it, and valid until it no longer can.
        let inner = unsafe { &*(*attach).importer_priv.cast::<Self>() };
        // SAFETY: The attachment is valid, and the lock held, by the safety requirements.
        let locked = unsafe { LockedResv::from_raw((*(*attach).dmabuf).resv) };
        let slot = inner.mapping(locked);

        if let Some((table, _)) = slot.get() {
            drop(slot.replace(Some(Slot { table, stale: true })));
        }
        inner
            .importer
            .invalidate_mappings(&Invalidation { inner, locked });
    }

    fn raw(&self) -> *mut bindings::dma_buf_attachment {
        // SAFETY: By the type invariants the field does not change any more.
        unsafe { *self.raw.get() }
    }

    /// Access to the mapping; `_locked` must be the lock of the buffer.
    fn mapping<'a>(&'a self, _locked: &'a LockedResv) -> SlotRef<'a> {
        SlotRef(&self.current)
    }
}

#[pinned_drop]
impl<T: DynamicImporter> PinnedDrop for Dynamic<T> {
    fn drop(self: Pin<&mut Self>) {
        if self.raw().is_null() {
            return;
        }

        let locked = self.buf.resv().lock();

        drop(self.mapping(&locked).take());
        drop(locked);
        // SAFETY: The attachment is ours by the type invariants, and no mapping is left: the slot
        // is empty, and what else there was borrowed the attachment. When this returns, no
        // callback runs or can come: exporters call them under the lock, for what is on the list.
        unsafe { bindings::dma_buf_detach(self.buf.as_raw(), self.raw()) };
    }
}

/// The attachment of a device to a buffer that may move.
///
/// It keeps one mapping, made by [`map`](Self::map), and ended by [`unmap`](Self::unmap), by the
/// importer on invalidation, by mapping anew, or with the attachment. All that is done under the
/// reservation lock, and addresses can only be read under it: those of a buffer that has moved
/// cannot be taken for current ones.
///
/// Dropping the attachment takes the reservation lock; it must not be held.
///
/// Lives no longer than the device is bound, by `'dev`.
pub struct DynamicAttachment<'dev, T: DynamicImporter> {
    inner: Arc<Dynamic<T>>,
    _bound: PhantomData<&'dev Device<Bound>>,
}

impl DmaBuf {
    /// Attaches a device that can follow the buffer when it moves.
    ///
    /// Must not be called under the reservation lock. `importer` may be called before this
    /// returns.
    ///
    /// # Errors
    ///
    /// Those of [`attach`](Self::attach); [`ENOENT`] if the module of the importer is being
    /// unloaded.
    pub fn attach_dynamic<'dev, T: DynamicImporter>(
        &self,
        dev: &'dev Device<Bound>,
        importer: T,
    ) -> Result<DynamicAttachment<'dev, T>> {
        let module = ModuleRef::get::<T::OwnerModule>()?;
        // INVARIANT: There is no attachment yet.
        let inner = Arc::pin_init(
            pin_init!(Dynamic {
                raw: UnsafeCell::new(ptr::null_mut()),
                current: UnsafeCell::new(None),
                importer,
                buf: self.into(),
                dev: dev.into(),
                _module: module,
                _pin: core::marker::PhantomPinned,
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The buffer and the device are valid and stay so until the device is detached:
        // `inner` has references. So is the private data, which is pinned and detaches.
        let raw = from_err_ptr(unsafe {
            bindings::dma_buf_dynamic_attach(
                self.as_raw(),
                dev.as_raw(),
                &Dynamic::<T>::OPS,
                Arc::as_ptr(&inner).cast_mut().cast(),
            )
        })?;

        // INVARIANT: The attachment is new, and nobody else can read the field: the callback,
        // which may run already, does not.
        // SAFETY: As above.
        unsafe { *inner.raw.get() = raw };
        Ok(DynamicAttachment {
            inner,
            _bound: PhantomData,
        })
    }
}

impl<'dev, T: DynamicImporter> DynamicAttachment<'dev, T> {
    /// The importer's state.
    #[inline]
    pub fn importer(&self) -> &T {
        &self.inner.importer
    }

    /// The buffer.
    #[inline]
    pub fn buf(&self) -> &DmaBuf {
        &self.inner.buf
    }

    /// Makes sure that there is a current mapping.
    ///
    /// One that is current and for the same direction is used again. Another one is ended.
    /// Moving the buffer may be under way: wait for the fences of
    /// [`Usage::Kernel`](super::Usage::Kernel), or have the device wait, before it uses the buffer.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`EINVAL`] for [`DataDirection::None`] or if `locked` is not the lock of the
    /// buffer, and whatever the exporter fails with.
    pub fn map<'l>(
        &'l self,
        dir: DataDirection,
        locked: &'l LockedResv,
    ) -> Result<DynamicMapping<'l>> {
        check(dir)?;
        locked.expect(self.buf().resv())?;

        let slot = self.inner.mapping(locked);

        if let Some((table, false)) = slot.get() {
            if table.dir == dir {
                return Ok(DynamicMapping {
                    table,
                    _locked: locked,
                });
            }
        }
        drop(slot.take());

        let raw = NonNull::new(self.inner.raw()).ok_or(EINVAL)?;
        // SAFETY: The attachment is valid by the type invariants of `Dynamic`, and the lock is
        // held.
        let table = unsafe { bindings::dma_buf_map_attachment(raw.as_ptr(), dir.into()) };
        let table = NonNull::new(from_err_ptr(table)?).ok_or(ENOMEM)?;
        // INVARIANT: The table is new. `Dynamic` empties the slot before it detaches, and the
        // copies in `DynamicMapping` borrow both the attachment and the lock.
        let table = Arc::new(
            DynamicTable {
                attachment: raw,
                table,
                dir,
            },
            GFP_KERNEL,
        )?;

        // The exporter may have called the importer while it mapped.
        drop(slot.replace(Some(Slot {
            table: table.clone(),
            stale: false,
        })));
        Ok(DynamicMapping {
            table,
            _locked: locked,
        })
    }

    /// The mapping that there is, unless the buffer has moved since it was made.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `locked` is not the lock of the buffer.
    pub fn mapping<'l>(&'l self, locked: &'l LockedResv) -> Result<Option<DynamicMapping<'l>>> {
        locked.expect(self.buf().resv())?;
        Ok(match self.inner.mapping(locked).get() {
            Some((table, false)) => Some(DynamicMapping {
                table,
                _locked: locked,
            }),
            _ => None,
        })
    }

    /// Ends the mapping, if there is one.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `locked` is not the lock of the buffer.
    pub fn unmap(&self, locked: &LockedResv) -> Result {
        locked.expect(self.buf().resv())?;
        drop(self.inner.mapping(locked).take());
        Ok(())
    }

    /// Keeps the buffer where it is, for uses that cannot follow it, like scanout.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `locked` is not the lock of the buffer, and whatever the exporter fails with.
    pub fn pin<'l>(&'l self, locked: &'l LockedResv) -> Result<LockedPin<'l, 'dev, T>> {
        locked.expect(self.buf().resv())?;
        // SAFETY: The attachment is valid by the type invariants of `Dynamic`, and the lock is
        // held.
        crate::error::to_result(unsafe { bindings::dma_buf_pin(self.inner.raw()) })?;
        // INVARIANT: The buffer has been pinned just now.
        Ok(LockedPin {
            attachment: self,
            _locked: locked,
        })
    }
}

/// The current mapping of a [`DynamicAttachment`], while the reservation lock is held.
pub struct DynamicMapping<'l> {
    table: Arc<DynamicTable>,
    _locked: &'l LockedResv,
}

impl DynamicMapping<'_> {
    /// The addresses at which the device finds the buffer.
    #[inline]
    pub fn table(&self) -> &SGTable {
        // SAFETY: The table is valid by the type invariants of `DynamicTable`, and nobody changes
        // it.
        unsafe { SGTable::from_raw(self.table.table.as_ptr()) }
    }
}

/// A buffer that is pinned, while the reservation lock is held.
///
/// # Invariants
///
/// Owns one pin of `attachment`. The lock of the buffer is held for all of `'l`.
#[must_use = "the buffer is unpinned at once when the pin is not used"]
pub struct LockedPin<'l, 'dev, T: DynamicImporter> {
    attachment: &'l DynamicAttachment<'dev, T>,
    _locked: &'l LockedResv,
}

impl<'l, 'dev, T: DynamicImporter> LockedPin<'l, 'dev, T> {
    /// Keeps the buffer pinned beyond the time that the lock is held for.
    ///
    /// What this returns must be dropped after the lock.
    pub fn keep(self) -> Pinned<'dev, T> {
        let this = ManuallyDrop::new(self);

        // INVARIANT: The pin is that of `this`, which does not own it any more.
        Pinned {
            inner: this.attachment.inner.clone(),
            _bound: PhantomData,
        }
    }
}

impl<T: DynamicImporter> Drop for LockedPin<'_, '_, T> {
    fn drop(&mut self) {
        // SAFETY: The pin is ours, and the lock is held, by the type invariants.
        unsafe { bindings::dma_buf_unpin(self.attachment.inner.raw()) };
    }
}

/// A buffer that is pinned.
///
/// Dropping it takes the reservation lock; it must not be held.
///
/// # Invariants
///
/// Owns one pin of `inner`.
pub struct Pinned<'dev, T: DynamicImporter> {
    inner: Arc<Dynamic<T>>,
    _bound: PhantomData<&'dev Device<Bound>>,
}

impl<T: DynamicImporter> Drop for Pinned<'_, T> {
    fn drop(&mut self) {
        let _locked = self.inner.buf.resv().lock();

        // SAFETY: The pin is ours by the type invariants, and the lock is held.
        unsafe { bindings::dma_buf_unpin(self.inner.raw()) };
    }
}
