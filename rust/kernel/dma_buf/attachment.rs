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
    devres::{
        Devres,
        DevresLt, //
    },
    dma::DataDirection,
    error::{
        from_err_ptr,
        to_result, //
    },
    module::this_module,
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
    cell::UnsafeCell,
    marker::{
        PhantomData,
        PhantomPinned, //
    },
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
fn check(dir: DataDirection) -> Result {
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

    /// Ends the mapping, if there is one: at once, or when it is not being read any more.
    #[inline]
    pub fn unmap(&self) {
        // SAFETY: `locked` is the lock of the buffer.
        unsafe { self.inner.unmap() };
    }
}

/// One mapping of a dynamic attachment.
///
/// # Invariants
///
/// - `table` is a mapping of `attachment` with direction `dir`, which this owns.
/// - It is dropped before the attachment is detached, and under the reservation lock.
struct Table {
    attachment: NonNull<bindings::dma_buf_attachment>,
    table: NonNull<bindings::sg_table>,
    dir: DataDirection,
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

/// What the reservation lock protects of a dynamic attachment.
#[derive(Default)]
struct State {
    table: Option<Table>,
    /// The buffer has moved since it was mapped.
    stale: bool,
    /// How many times the table is being read, or made. It is not changed meanwhile: exporters may
    /// keep one table for each attachment, and write it anew whenever it is mapped.
    users: usize,
    /// It is to be unmapped when the last user is done.
    unmap: bool,
}

/// # Invariants
///
/// - `raw` is an attachment of `dev` to `buf`, whose importer's private data this is, until
///   [`Shutdown`] detaches it. It is null before, when nobody reads it.
/// - `state` is only accessed under the reservation lock, by [`Self::with_state`].
#[pin_data]
struct Dynamic<T: DynamicImporter> {
    raw: UnsafeCell<*mut bindings::dma_buf_attachment>,
    state: UnsafeCell<State>,
    importer: T,
    buf: ARef<DmaBuf>,
    dev: ARef<Device>,
    // Last: the fields above are dropped by code of the module.
    _module: Option<ModuleRef>,
    // The exporter has a pointer to this.
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: An attachment belongs to no task, and all the rest is `Send`.
unsafe impl<T: DynamicImporter> Send for Dynamic<T> {}

// SAFETY: `raw` does not change when it is shared, `state` is protected by the reservation lock,
// and all the rest is `Sync`.
unsafe impl<T: DynamicImporter> Sync for Dynamic<T> {}

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

        // SAFETY: The lock is held by the safety requirements.
        unsafe { inner.with_state(|state| state.stale = true) };
        inner
            .importer
            .invalidate_mappings(&Invalidation { inner, locked });
    }

    #[inline]
    fn raw(&self) -> *mut bindings::dma_buf_attachment {
        // SAFETY: By the type invariants the field does not change when it is read.
        unsafe { *self.raw.get() }
    }

    /// Access to what the reservation lock protects.
    ///
    /// # Safety
    ///
    /// The lock must be held, and `f` must not call anything that may come here again: neither the
    /// exporter nor the importer.
    unsafe fn with_state<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        // SAFETY: By the safety requirements no other task is here, and this one is once.
        f(unsafe { &mut *self.state.get() })
    }

    /// Maps the buffer, without regard to what there is.
    ///
    /// # Safety
    ///
    /// The lock must be held.
    unsafe fn map(&self, dir: DataDirection) -> Result<Table> {
        let attachment = NonNull::new(self.raw()).ok_or(ENODEV)?;
        // SAFETY: The attachment is valid by the type invariants, and the lock is held.
        let table = unsafe { bindings::dma_buf_map_attachment(attachment.as_ptr(), dir.into()) };

        // INVARIANT: The table is new. `Shutdown` ends it before the attachment is detached.
        Ok(Table {
            attachment,
            table: NonNull::new(from_err_ptr(table)?).ok_or(ENOMEM)?,
            dir,
        })
    }

    /// Ends the mapping, or has the last user do so.
    ///
    /// # Safety
    ///
    /// The lock must be held.
    unsafe fn unmap(&self) {
        // SAFETY: The lock is held by the safety requirements.
        let table = unsafe {
            self.with_state(|state| {
                if state.users == 0 {
                    return state.table.take();
                }
                state.stale = true;
                state.unmap = true;
                None
            })
        };

        // This calls the exporter.
        drop(table);
    }
}

/// Owns what there is of a dynamic attachment on the C side. Dropped with the last handle, or by
/// the driver core when the device is unbound, even if handles have been leaked.
struct Shutdown<T: DynamicImporter>(Arc<Dynamic<T>>);

impl<T: DynamicImporter> Drop for Shutdown<T> {
    fn drop(&mut self) {
        let locked = self.0.buf.resv().lock();

        // SAFETY: The lock is held. There are no users: they hold it, too.
        unsafe { self.0.unmap() };
        drop(locked);
        // SAFETY: The attachment is ours, and no mapping is left: who could make one has a handle
        // and a device that is bound. When this returns, no callback runs or can come: exporters
        // call them under the lock, for what is on the list.
        unsafe { bindings::dma_buf_detach(self.0.buf.as_raw(), self.0.raw()) };
    }
}

/// What a [`DynamicAttachment`] and its pins share.
struct Handle<T: DynamicImporter> {
    _shutdown: Devres<Shutdown<T>>,
    inner: Arc<Dynamic<T>>,
}

/// The attachment of a device to a buffer that may move.
///
/// It keeps one mapping, made by [`map`](Self::map), and ended by [`unmap`](Self::unmap), by the
/// importer on invalidation, by mapping anew, or with the attachment. All that is done under the
/// reservation lock, and addresses can only be read under it: those of a buffer that has moved
/// cannot be taken for current ones.
///
/// Dropping the attachment, or its last [`Pinned`] if there are such, takes the reservation lock;
/// it must not be held.
///
/// Lives no longer than the device is bound, by `'dev`.
pub struct DynamicAttachment<'dev, T: DynamicImporter> {
    handle: Arc<Handle<T>>,
    _bound: PhantomData<&'dev Device<Bound>>,
}

// As for `Attachment`.
impl<T: DynamicImporter> Drop for DynamicAttachment<'_, T> {
    #[inline]
    fn drop(&mut self) {}
}

impl DmaBuf {
    /// Attaches a device that can follow the buffer when it moves.
    ///
    /// Must not be called under the reservation lock. `importer` may be called before this
    /// returns, and is dropped if this fails.
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
        // SAFETY: The device is bound, so it has a driver.
        let owner = unsafe { (*(*dev.as_raw()).driver).owner };
        // A module that owns the driver unbinds its devices before it goes, which detaches this.
        // Of another one's device it cannot know.
        let module = if ptr::eq(owner, this_module::<T::OwnerModule>().as_ptr()) {
            None
        } else {
            Some(ModuleRef::get::<T::OwnerModule>()?)
        };
        // INVARIANT: There is no attachment yet.
        let inner = Arc::pin_init(
            pin_init!(Dynamic {
                raw: UnsafeCell::new(ptr::null_mut()),
                state: UnsafeCell::new(State::default()),
                importer,
                buf: self.into(),
                dev: dev.into(),
                _module: module,
                _pin: PhantomPinned,
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The buffer and the device are valid and stay so until the device is detached:
        // `inner` has references. So is the private data, which is pinned, and of which `Shutdown`
        // has a reference.
        let raw = from_err_ptr(unsafe {
            bindings::dma_buf_dynamic_attach(
                self.as_raw(),
                dev.as_raw(),
                &Dynamic::<T>::OPS,
                Arc::as_ptr(&inner).cast_mut().cast(),
            )
        })?;

        // INVARIANT: The attachment is new, and nobody reads the field yet: the callback, which may
        // run already, does not.
        // SAFETY: As above.
        unsafe { *inner.raw.get() = raw };

        let shutdown = Shutdown(inner.clone());
        let handle = Handle {
            _shutdown: Devres::new(dev, shutdown)?,
            inner,
        };

        Ok(DynamicAttachment {
            handle: Arc::new(handle, GFP_KERNEL)?,
            _bound: PhantomData,
        })
    }
}

impl<'dev, T: DynamicImporter> DynamicAttachment<'dev, T> {
    /// The importer's state.
    #[inline]
    pub fn importer(&self) -> &T {
        &self.handle.inner.importer
    }

    /// The buffer.
    #[inline]
    pub fn buf(&self) -> &DmaBuf {
        &self.handle.inner.buf
    }

    /// Makes sure that there is a current mapping; see [`with_table`](Self::with_table).
    ///
    /// One that is current and for the same direction is used again. Another one is ended.
    /// Moving the buffer may be under way: wait for the fences of
    /// [`Usage::Kernel`](super::Usage::Kernel), or have the device wait, before it uses the buffer.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`EINVAL`] for [`DataDirection::None`] or if `locked` is not the lock of the
    /// buffer, [`EBUSY`] if another mapping is being read or made further up the call chain, and
    /// whatever the exporter fails with.
    pub fn map(&self, dir: DataDirection, locked: &LockedResv) -> Result {
        check(dir)?;
        locked.expect(self.buf().resv())?;

        let inner = &self.handle.inner;
        // SAFETY: The lock is held.
        let old = unsafe {
            inner.with_state(|state| {
                if !state.stale && state.table.as_ref().is_some_and(|table| table.dir == dir) {
                    return Ok(None);
                }
                if state.users != 0 {
                    return Err(EBUSY);
                }
                state.users = 1;
                Ok(Some(state.table.take()))
            })
        }?;
        let Some(old) = old else {
            return Ok(());
        };

        // Both call the exporter, which may call the importer.
        drop(old);
        // SAFETY: The lock is held.
        let new = unsafe { inner.map(dir) };

        // SAFETY: The lock is held.
        unsafe {
            inner.with_state(|state| {
                // What became stale meanwhile was not this one: an exporter that moves the buffer
                // does so before it makes the table.
                *state = State::default();
                state.table = Some(new?);
                Ok(())
            })
        }
    }

    /// Calls `f` with the addresses at which the device finds the buffer, if there is a current
    /// mapping; they are valid until `f` returns.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `locked` is not the lock of the buffer.
    pub fn with_table<R>(
        &self,
        locked: &LockedResv,
        f: impl FnOnce(&SGTable) -> R,
    ) -> Result<Option<R>> {
        locked.expect(self.buf().resv())?;

        let inner = &self.handle.inner;
        // SAFETY: The lock is held.
        let table = unsafe {
            inner.with_state(|state| {
                let table = state.table.as_ref().filter(|_| !state.stale)?;

                state.users += 1;
                Some(table.table)
            })
        };
        let Some(table) = table else {
            return Ok(None);
        };
        // SAFETY: The table is mapped, and stays so and unchanged while there is a user.
        let result = f(unsafe { SGTable::from_raw(table.as_ptr()) });
        // SAFETY: The lock is still held: it is borrowed.
        let table = unsafe {
            inner.with_state(|state| {
                state.users -= 1;
                if state.users == 0 && state.unmap {
                    core::mem::take(state).table
                } else {
                    None
                }
            })
        };

        // This calls the exporter.
        drop(table);
        Ok(Some(result))
    }

    /// Ends the mapping, if there is one.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `locked` is not the lock of the buffer.
    pub fn unmap(&self, locked: &LockedResv) -> Result {
        locked.expect(self.buf().resv())?;
        // SAFETY: The lock is held.
        unsafe { self.handle.inner.unmap() };
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
        to_result(unsafe { bindings::dma_buf_pin(self.handle.inner.raw()) })?;
        // INVARIANT: The buffer has been pinned just now, and the lock is held for all of `'l`.
        Ok(LockedPin {
            pinned: ManuallyDrop::new(Pinned {
                handle: self.handle.clone(),
                _bound: PhantomData,
            }),
            _attachment: self,
            _locked: locked,
        })
    }
}

/// A buffer that is pinned. Dropping it does not take the lock.
///
/// # Invariants
///
/// The lock of the buffer is held for all of `'l`.
#[must_use = "the buffer is unpinned at once when the pin is not used"]
pub struct LockedPin<'l, 'dev, T: DynamicImporter> {
    pinned: ManuallyDrop<Pinned<'dev, T>>,
    // Keeps the attachment from being dropped under the lock.
    _attachment: &'l DynamicAttachment<'dev, T>,
    _locked: &'l LockedResv,
}

impl<'dev, T: DynamicImporter> LockedPin<'_, 'dev, T> {
    /// Keeps the buffer pinned beyond the time that the lock is held for.
    ///
    /// What this returns must be dropped after the lock. So call it last, after all that can fail
    /// under the lock: `?` drops what was declared after the guard before the guard.
    #[inline]
    pub fn keep(self) -> Pinned<'dev, T> {
        // SAFETY: `self` is not dropped, and not touched again.
        unsafe { ManuallyDrop::take(&mut ManuallyDrop::new(self).pinned) }
    }
}

impl<T: DynamicImporter> Drop for LockedPin<'_, '_, T> {
    fn drop(&mut self) {
        // SAFETY: The field is not touched again.
        let pinned = ManuallyDrop::new(unsafe { ManuallyDrop::take(&mut self.pinned) });

        // SAFETY: `Pinned` owns a pin, which is given back here instead of by its drop. The lock is
        // held by the type invariants.
        unsafe { bindings::dma_buf_unpin(pinned.handle.inner.raw()) };
        // SAFETY: `pinned` is not dropped, and not touched again. This is not the last reference:
        // the attachment is borrowed.
        drop(unsafe { ptr::read(&pinned.handle) });
    }
}

/// A buffer that is pinned.
///
/// Dropping it takes the reservation lock; it must not be held.
///
/// # Invariants
///
/// Owns one pin of the attachment.
pub struct Pinned<'dev, T: DynamicImporter> {
    handle: Arc<Handle<T>>,
    _bound: PhantomData<&'dev Device<Bound>>,
}

impl<T: DynamicImporter> Drop for Pinned<'_, T> {
    fn drop(&mut self) {
        let _locked = self.handle.inner.buf.resv().lock();

        // SAFETY: The pin is ours by the type invariants, and the lock is held.
        unsafe { bindings::dma_buf_unpin(self.handle.inner.raw()) };
    }
}
