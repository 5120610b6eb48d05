// SPDX-License-Identifier: GPL-2.0

//! Importers that can follow a buffer which moves.
//!
//! C header: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h)

use super::{
    attachment::check,
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
    module::this_module,
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
    mem::ManuallyDrop,
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
