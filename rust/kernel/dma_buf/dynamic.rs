// SPDX-License-Identifier: GPL-2.0

//! Importers that can follow a buffer which moves.
//!
//! C header: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h)

use super::{
    attachment::Table,
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
    devres::Devres,
    dma::DataDirection,
    error::{
        from_err_ptr,
        to_result, //
    },
    module::module_of,
    prelude::*,
    scatterlist::SGTable,
    sync::{
        aref::ARef,
        Arc, //
    },
};

use core::{
    cell::UnsafeCell,
    marker::{
        PhantomData,
        PhantomPinned, //
    },
    mem::{
        replace,
        take,
        ManuallyDrop, //
    },
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    },
};

/// An importer that can follow a buffer which moves, or which goes away.
///
/// The value is the importer's state for one buffer. The attachment owns it, from before the
/// exporter can call it until after it no longer can.
///
/// Because an exporter may call this code, the module that it is compiled into stays loaded until
/// the attachment is gone; unless it is that of the driver of the device, whose unbinding detaches.
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
    /// [`DevresDynamicAttachment::unmap`], or by mapping anew.
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

/// The mapping of a dynamic attachment, or none.
#[derive(Default)]
struct Current {
    table: Option<Table>,
    /// The buffer has moved since it was mapped.
    stale: bool,
    /// How many times the table is being read, or made. It is not changed meanwhile: exporters may
    /// keep one table for each attachment, and write it anew whenever it is mapped.
    users: usize,
    /// It is to be unmapped when the last user is done.
    unmap: bool,
}

/// What the reservation lock protects of a dynamic attachment.
#[derive(Default)]
struct State {
    current: Current,
    /// How many pins there are.
    pins: usize,
    /// It is detached.
    gone: bool,
}

/// # Invariants
///
/// - `raw` is an attachment of `dev` to `buf`, whose importer's private data this is, until
///   [`Shutdown`] sets `gone` and detaches it. It is null before, when nobody reads it.
/// - `state` is only accessed under the reservation lock, by [`Self::with_state`].
#[pin_data]
struct Dynamic<T: DynamicImporter> {
    raw: UnsafeCell<*mut bindings::dma_buf_attachment>,
    state: UnsafeCell<State>,
    importer: T,
    buf: ARef<DmaBuf>,
    dev: ARef<Device>,
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
        unsafe { inner.with_state(|state| state.current.stale = true) };
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

        // INVARIANT: `Shutdown` drops the table before it detaches.
        // SAFETY: The attachment is valid by the type invariants, and the lock is held.
        unsafe { Table::new(attachment, dir) }
    }

    /// Ends the mapping, or has the last user do so.
    ///
    /// # Safety
    ///
    /// The lock must be held.
    unsafe fn unmap(&self) {
        // SAFETY: The lock is held by the safety requirements.
        let table = unsafe {
            self.with_state(|State { current, .. }| {
                if current.users == 0 {
                    return current.table.take();
                }
                current.stale = true;
                current.unmap = true;
                None
            })
        };

        // This calls the exporter.
        drop(table);
    }
}

/// Owns what there is of a dynamic attachment on the C side. Dropped with the last handle, or by
/// the driver core when the device is unbound, even if handles have been leaked.
///
/// It is not generic, and so what the driver core has of it is in this crate. That may be called
/// when the importer's module is gone, if the last handle was dropped while the resources of the
/// device were being released.
///
/// # Invariants
///
/// `inner` is from [`Arc::into_raw`] of an `Arc` of the type that `end` is for, and owned.
struct Shutdown {
    inner: NonNull<c_void>,
    end: unsafe fn(NonNull<c_void>),
    // Dropped last, when no code of the module is left to run for this.
    _module: Option<ModuleRef>,
}

// SAFETY: It is that of a `Dynamic`, which is `Send` and `Sync`.
unsafe impl Send for Shutdown {}

// SAFETY: There are no methods that take a shared reference.
unsafe impl Sync for Shutdown {}

impl Shutdown {
    fn new<T: DynamicImporter>(inner: Arc<Dynamic<T>>, module: Option<ModuleRef>) -> Self {
        // INVARIANT: The function is for this type.
        Self {
            // SAFETY: The pointer of an `Arc` is not null.
            inner: unsafe { NonNull::new_unchecked(Arc::into_raw(inner).cast_mut()) }.cast(),
            end: end::<T>,
            _module: module,
        }
    }

    /// Not inline, as what the driver core gets is to be compiled into this crate.
    #[inline(never)]
    fn register(self, dev: &Device<Bound>) -> Result<Devres<Self>> {
        Devres::new(dev, self)
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, and this is dropped once.
        unsafe { (self.end)(self.inner) };
    }
}

/// Ends an attachment.
///
/// # Safety
///
/// `inner` must be from [`Arc::into_raw`] of an `Arc<Dynamic<T>>` that was attached, and is
/// consumed.
unsafe fn end<T: DynamicImporter>(inner: NonNull<c_void>) {
    // SAFETY: By the safety requirements.
    let inner = unsafe { Arc::<Dynamic<T>>::from_raw(inner.as_ptr().cast()) };
    let locked = inner.buf.resv().lock();

    // SAFETY: The lock is held. There are no users: they hold it, too.
    unsafe { inner.unmap() };
    // SAFETY: As above.
    let pins = unsafe {
        inner.with_state(|state| {
            state.gone = true;
            replace(&mut state.pins, 0)
        })
    };
    for _ in 0..pins {
        // SAFETY: The pin was counted, so it is ours to give back. The lock is held.
        unsafe { bindings::dma_buf_unpin(inner.raw()) };
    }
    drop(locked);
    // SAFETY: The attachment is ours, and neither a mapping nor a pin is left, nor will be. When
    // this returns, no callback runs or can come: exporters call them under the lock, for what is
    // on the list.
    unsafe { bindings::dma_buf_detach(inner.buf.as_raw(), inner.raw()) };
}

/// What a [`DynamicAttachment`] and its pins share.
struct Handle<T: DynamicImporter> {
    shutdown: Devres<Shutdown>,
    inner: Arc<Dynamic<T>>,
}

impl<T: DynamicImporter> Handle<T> {
    /// Whether the device is attached: since before it was bound this time it cannot be.
    fn check(&self, dev: &Device<Bound>) -> Result {
        if !ptr::eq(dev.as_raw(), self.inner.dev.as_raw()) {
            return Err(EINVAL);
        }
        self.shutdown.try_access().map(|_| ()).ok_or(ENODEV)
    }
}

/// The attachment of a device to a buffer that may move.
///
/// It keeps one mapping, made by [`map`](Self::map), and ended by
/// [`unmap`](DevresDynamicAttachment::unmap), by the importer on invalidation, by mapping anew, or
/// with the attachment. All that is done under the reservation lock, and addresses can only be read
/// under it: those of a buffer that has moved cannot be taken for current ones.
///
/// Dropping the attachment, or its last [`Pinned`] if there are such, takes the reservation lock;
/// it must not be held.
///
/// Lives no longer than the device is bound, by `'dev`. Where that cannot be proved to the
/// compiler, [`into_devres`](Self::into_devres) makes what can be stored.
///
/// # Invariants
///
/// The device of `attachment` is `dev`, and has been bound since before it was attached.
pub struct DynamicAttachment<'dev, T: DynamicImporter> {
    attachment: DevresDynamicAttachment<T>,
    dev: &'dev Device<Bound>,
}

impl<T: DynamicImporter> Deref for DynamicAttachment<'_, T> {
    type Target = DevresDynamicAttachment<T>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.attachment
    }
}

/// A dynamic attachment that may outlive the binding of its device, to be stored in what a driver
/// keeps, like the object that stands for the buffer.
///
/// It ends when the device is unbound, whatever mapping and pins there are, or when this and its
/// pins have been dropped before. Dropping it takes the reservation lock; it must not be held.
pub struct DevresDynamicAttachment<T: DynamicImporter>(Arc<Handle<T>>);

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
        let ops = const { &Dynamic::<T>::OPS };
        let module = if ptr::eq(owner, module_of(ops)) {
            None
        } else {
            Some(ModuleRef::of(ops)?)
        };
        // INVARIANT: There is no attachment yet.
        let inner = Arc::pin_init(
            pin_init!(Dynamic {
                raw: UnsafeCell::new(ptr::null_mut()),
                state: UnsafeCell::new(State::default()),
                importer,
                buf: self.into(),
                dev: dev.into(),
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
                ops,
                Arc::as_ptr(&inner).cast_mut().cast(),
            )
        })?;

        // INVARIANT: The attachment is new, and nobody reads the field yet: the callback, which may
        // run already, does not.
        // SAFETY: As above.
        unsafe { *inner.raw.get() = raw };

        let shutdown = Shutdown::new(inner.clone(), module).register(dev)?;

        // INVARIANT: The device is bound for all of `'dev`.
        Ok(DynamicAttachment {
            attachment: DevresDynamicAttachment(Arc::new(Handle { shutdown, inner }, GFP_KERNEL)?),
            dev,
        })
    }
}

impl<'dev, T: DynamicImporter> DynamicAttachment<'dev, T> {
    /// The device.
    #[inline]
    pub fn device(&self) -> &'dev Device<Bound> {
        self.dev
    }

    /// Makes sure that there is a current mapping; see
    /// [`with_table`](DevresDynamicAttachment::with_table).
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
        self.attachment.map(self.dev, dir, locked)
    }

    /// Keeps the buffer where it is, for uses that cannot follow it, like scanout.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `locked` is not the lock of the buffer, and whatever the exporter fails with.
    pub fn pin<'l>(&'l self, locked: &'l LockedResv) -> Result<LockedPin<'l, 'dev, T>> {
        Ok(LockedPin {
            pin: self.attachment.pin(self.dev, locked)?,
            _dev: PhantomData,
        })
    }

    /// Makes what may outlive the binding: it can be mapped and pinned where the device is known to
    /// be bound.
    #[inline]
    pub fn into_devres(self) -> DevresDynamicAttachment<T> {
        self.attachment
    }
}

impl<T: DynamicImporter> DevresDynamicAttachment<T> {
    /// The importer's state.
    #[inline]
    pub fn importer(&self) -> &T {
        &self.0.inner.importer
    }

    /// The buffer.
    #[inline]
    pub fn buf(&self) -> &DmaBuf {
        &self.0.inner.buf
    }

    /// As [`DynamicAttachment::map`], for a device that is bound.
    ///
    /// # Errors
    ///
    /// Those of [`DynamicAttachment::map`]; [`EINVAL`] if `dev` is another device, [`ENODEV`] if it
    /// has been unbound since it was attached.
    pub fn map(&self, dev: &Device<Bound>, dir: DataDirection, locked: &LockedResv) -> Result {
        self.0.check(dev)?;
        locked.expect(self.buf().resv())?;

        let inner = &self.0.inner;
        // SAFETY: The lock is held.
        let old = unsafe {
            inner.with_state(|State { current, gone, .. }| {
                if *gone {
                    return Err(ENODEV);
                }
                let same = current.table.as_ref().is_some_and(|table| table.dir == dir);

                if !current.stale && same {
                    return Ok(None);
                }
                if current.users != 0 {
                    return Err(EBUSY);
                }
                current.users = 1;
                Ok(Some(current.table.take()))
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
            inner.with_state(|State { current, .. }| {
                // What became stale meanwhile was not this one: an exporter that moves the buffer
                // does so before it makes the table.
                *current = Current::default();
                current.table = Some(new?);
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

        let inner = &self.0.inner;
        // SAFETY: The lock is held.
        let table = unsafe {
            inner.with_state(|State { current, .. }| {
                let table = current.table.as_ref().filter(|_| !current.stale)?;

                current.users += 1;
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
            inner.with_state(|State { current, .. }| {
                current.users -= 1;
                if current.users == 0 && current.unmap {
                    take(current).table
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
        unsafe { self.0.inner.unmap() };
        Ok(())
    }

    /// As [`DynamicAttachment::pin`], for a device that is bound.
    ///
    /// # Errors
    ///
    /// Those of [`DynamicAttachment::pin`]; [`EINVAL`] if `dev` is another device, [`ENODEV`] if it
    /// has been unbound since it was attached.
    pub fn pin<'l>(
        &'l self,
        dev: &Device<Bound>,
        locked: &'l LockedResv,
    ) -> Result<DevresLockedPin<'l, T>> {
        self.0.check(dev)?;
        locked.expect(self.buf().resv())?;

        let inner = &self.0.inner;

        // SAFETY: The lock is held.
        if unsafe { inner.with_state(|state| state.gone) } {
            return Err(ENODEV);
        }
        // SAFETY: It is not detached as long as the lock is held, which it is.
        to_result(unsafe { bindings::dma_buf_pin(inner.raw()) })?;
        // SAFETY: The lock is held.
        unsafe { inner.with_state(|state| state.pins += 1) };
        // INVARIANT: The buffer has been pinned just now, and the lock is held for all of `'l`.
        Ok(DevresLockedPin {
            pinned: ManuallyDrop::new(DevresPinned(self.0.clone())),
            _attachment: self,
            _locked: locked,
        })
    }
}

/// A buffer that is pinned. Dropping it does not take the lock.
#[must_use = "the buffer is unpinned at once when the pin is not used"]
pub struct LockedPin<'l, 'dev, T: DynamicImporter> {
    pin: DevresLockedPin<'l, T>,
    _dev: PhantomData<&'dev Device<Bound>>,
}

impl<'dev, T: DynamicImporter> LockedPin<'_, 'dev, T> {
    /// Keeps the buffer pinned beyond the time that the lock is held for.
    ///
    /// What this returns must be dropped after the lock. So call it last, after all that can fail
    /// under the lock: `?` drops what was declared after the guard before the guard.
    #[inline]
    pub fn keep(self) -> Pinned<'dev, T> {
        Pinned {
            pinned: self.pin.keep(),
            _dev: PhantomData,
        }
    }
}

/// A buffer that is pinned, as [`LockedPin`], by a [`DevresDynamicAttachment`].
///
/// # Invariants
///
/// The lock of the buffer is held for all of `'l`.
#[must_use = "the buffer is unpinned at once when the pin is not used"]
pub struct DevresLockedPin<'l, T: DynamicImporter> {
    pinned: ManuallyDrop<DevresPinned<T>>,
    // Keeps the attachment from being dropped under the lock.
    _attachment: &'l DevresDynamicAttachment<T>,
    _locked: &'l LockedResv,
}

impl<T: DynamicImporter> DevresLockedPin<'_, T> {
    /// As [`LockedPin::keep`].
    #[inline]
    pub fn keep(self) -> DevresPinned<T> {
        // SAFETY: `self` is not dropped, and not touched again.
        unsafe { ManuallyDrop::take(&mut ManuallyDrop::new(self).pinned) }
    }
}

impl<T: DynamicImporter> Drop for DevresLockedPin<'_, T> {
    fn drop(&mut self) {
        // SAFETY: The field is not touched again.
        let pinned = unsafe { ManuallyDrop::take(&mut self.pinned) };

        // SAFETY: The lock is held by the type invariants. This is not the last handle: the
        // attachment is borrowed.
        unsafe { pinned.unpin() };
    }
}

/// A buffer that is pinned.
///
/// Dropping it takes the reservation lock; it must not be held.
pub struct Pinned<'dev, T: DynamicImporter> {
    pinned: DevresPinned<T>,
    _dev: PhantomData<&'dev Device<Bound>>,
}

impl<T: DynamicImporter> Pinned<'_, T> {
    /// Makes what may outlive the binding.
    #[inline]
    pub fn into_devres(self) -> DevresPinned<T> {
        self.pinned
    }
}

/// A buffer that is pinned until the device is unbound, or this is dropped, to be stored in what a
/// driver keeps.
///
/// Dropping it takes the reservation lock; it must not be held.
///
/// # Invariants
///
/// Owns one pin of the attachment, unless that is gone.
pub struct DevresPinned<T: DynamicImporter>(Arc<Handle<T>>);

impl<T: DynamicImporter> DevresPinned<T> {
    /// Gives the pin back.
    ///
    /// # Safety
    ///
    /// The lock must be held, and this not be the last handle.
    unsafe fn unpin(self) {
        let this = ManuallyDrop::new(self);

        // SAFETY: The lock is held by the safety requirements.
        unsafe { this.end() };
        // SAFETY: The field is moved out of what is not dropped.
        drop(unsafe { ptr::read(&this.0) });
    }

    /// # Safety
    ///
    /// The lock must be held, and this be called once.
    unsafe fn end(&self) {
        let inner = &self.0.inner;
        // SAFETY: The lock is held by the safety requirements.
        let owned = unsafe {
            inner.with_state(|state| {
                // `Shutdown` has given all pins back.
                if state.gone {
                    return false;
                }
                state.pins -= 1;
                true
            })
        };

        if owned {
            // SAFETY: The pin is ours by the type invariants, and the lock is held.
            unsafe { bindings::dma_buf_unpin(inner.raw()) };
        }
    }
}

impl<T: DynamicImporter> Drop for DevresPinned<T> {
    fn drop(&mut self) {
        let _locked = self.0.inner.buf.resv().lock();

        // SAFETY: The lock is held.
        unsafe { self.end() };
    }
}
