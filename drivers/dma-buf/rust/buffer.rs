// SPDX-License-Identifier: GPL-2.0

//! The buffer: export, references, file descriptors, name, release.

use crate::{
    attachment::Attachment,
    file,
    poll,
    pseudo_fs::NewFile,
    registry,
    resv,
    trace, //
};

use kernel::{
    bindings,
    dma_buf::{
        Resv,
        ResvGuard, //
    },
    error::from_err_ptr,
    ffi::{
        c_char,
        c_int, //
    },
    fs::{
        file::FileDescriptorReservation,
        File,
        LocalFile, //
    },
    interop::list::{
        clist_create,
        CList, //
    },
    prelude::*,
    static_lock_class,
    str::CStr,
    sync::{
        aref::{
            ARef,
            AlwaysRefCounted, //
        },
        lock::{
            spinlock::SpinLockBackend,
            Backend,
            Lock, //
        }, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    },
    uaccess::UserPtr,
    warn_on, //
};

use core::{
    mem::ManuallyDrop,
    ptr::{
        null_mut,
        NonNull, //
    },
};

/// A shared buffer (`struct dma_buf`).
///
/// Its reference count is that of its file. The fields are C's, and C code reads most of them
/// without asking: see section "struct dma_buf" of `include/linux/dma-buf.h`.
///
/// # Invariants
///
/// - The file has a reference for as long as a `&Buffer` lives, and so has everything that the
///   buffer keeps.
/// - [`Buffer::init`] filled the structure in; `size`, `file`, `exp_name`, `owner` and `resv` have
///   not changed since. [`Buffer::release`] takes `file` away.
/// - `ops` points to the operations of the exporter, which live for as long as `owner` is
///   referenced. The exporter may point it to another table.
/// - `name` is NULL or a string from the kernel allocator, and changes under `name_lock`.
/// - `attachments`, `vmapping_counter` and `vmap_ptr` change under the lock of `resv`.
#[repr(transparent)]
pub(crate) struct Buffer(Opaque<bindings::dma_buf>);

// SAFETY: A buffer is used from every context that holds a reference.
unsafe impl Send for Buffer {}
// SAFETY: What can change does so under locks, by the type invariants.
unsafe impl Sync for Buffer {}

// SAFETY: The reference count of the file keeps the buffer: `release()` runs after the last one is
// gone.
unsafe impl AlwaysRefCounted for Buffer {
    fn inc_ref(&self) {
        // SAFETY: By the type invariants the file has a reference.
        unsafe { bindings::get_file(self.file()) };
    }

    unsafe fn dec_ref(buf: NonNull<Self>) {
        // SAFETY: The caller owns a reference, so the buffer is valid until it is dropped here.
        let file = unsafe { buf.as_ref() }.file();

        // `release()` takes the file away from a buffer that somebody put once too often.
        if !file.is_null() {
            // SAFETY: The reference is one to this file.
            unsafe { bindings::fput(file) };
        }
    }
}

impl Buffer {
    /// # Safety
    ///
    /// `ptr` must point to a buffer whose file has a reference that is not dropped before the end
    /// of `'a`.
    pub(crate) unsafe fn from_raw<'a>(ptr: *mut bindings::dma_buf) -> &'a Self {
        // SAFETY: By the safety requirements; `Buffer` is a transparent wrapper.
        unsafe { &*ptr.cast() }
    }

    pub(crate) fn as_raw(&self) -> *mut bindings::dma_buf {
        self.0.get()
    }

    /// Makes a buffer of what an exporter has.
    ///
    /// On failure the exporter still owns what it passed.
    ///
    /// # Errors
    ///
    /// `EINVAL` (after a warning) for missing or inconsistent operations, `ENOENT` when the
    /// exporting module is going, otherwise what making a file returns.
    ///
    /// # Safety
    ///
    /// The pointers of `info` must be what `struct dma_buf_export_info` says of them, or NULL, and
    /// on success live until the exporter's `release`.
    pub(crate) unsafe fn export(info: &bindings::dma_buf_export_info) -> Result<ARef<Self>> {
        // SAFETY: By the safety requirements.
        let Some(ops) = (unsafe { info.ops.as_ref() }) else {
            warn_on!(true);
            return Err(EINVAL);
        };
        if warn_on!(
            info.priv_.is_null()
                || ops.map_dma_buf.is_none()
                || ops.unmap_dma_buf.is_none()
                || ops.release.is_none()
        ) {
            return Err(EINVAL);
        }
        if warn_on!(ops.pin.is_some() != ops.unpin.is_some()) {
            return Err(EINVAL);
        }

        // SAFETY: The owner is a module or NULL by the safety requirements.
        let owner = unsafe { ModuleRef::get(info.owner) }?;
        let new = NewFile::new(info.size, info.flags)?;

        // Nothing fails from here on.

        // SAFETY: The memory is zeroed and in nobody else's hands, and the pointers are what they
        // should be by the safety requirements.
        unsafe { Self::init(&new, info, owner) };
        // SAFETY: The memory just became a buffer.
        let buf = unsafe { new.publish() };

        // SAFETY: The buffer is new, and removed when its file is released.
        unsafe { registry::add(&buf) };
        trace::export(&buf);
        Ok(buf)
    }

    /// # Safety
    ///
    /// The memory of `new` must be zeroed and not used by anybody else; the pointers of `info` as
    /// for [`Self::export`], and `ops` not NULL.
    unsafe fn init(new: &NewFile, info: &bindings::dma_buf_export_info, owner: ModuleRef) {
        let buf = new.buf.as_ptr();
        let resv = if info.resv.is_null() {
            // SAFETY: There is room for it behind the buffer.
            unsafe { bindings::dma_resv_init(new.resv.as_ptr()) };
            new.resv.as_ptr()
        } else {
            info.resv
        };

        // INVARIANT: All that the type invariants name is set here.
        // SAFETY: The memory is valid and ours alone by the safety requirements.
        unsafe {
            (*buf).priv_ = info.priv_;
            (*buf).ops = info.ops;
            (*buf).size = info.size;
            (*buf).exp_name = info.exp_name;
            (*buf).owner = owner.into_raw();
            (*buf).resv = resv;
            SpinLockBackend::init(
                &raw mut (*buf).name_lock,
                c"&dmabuf->name_lock".as_char_ptr(),
                static_lock_class!().as_ptr(),
            );
            bindings::__init_waitqueue_head(
                &raw mut (*buf).poll,
                c"&dmabuf->poll".as_char_ptr(),
                static_lock_class!().as_ptr(),
            );
            (*buf).cb_in.poll = &raw mut (*buf).poll;
            (*buf).cb_out.poll = &raw mut (*buf).poll;
            bindings::INIT_LIST_HEAD(&raw mut (*buf).attachments);
        }
    }

    /// Ends a buffer: gives the exporter's part back and tells whether the memory may go, too.
    ///
    /// After a warning, the memory of a buffer that is still vmapped, or has a poll callback out,
    /// is never freed and the exporter is not told, because somebody is about to use both. The
    /// file, which may be gone by now, is not used.
    ///
    /// # Safety
    ///
    /// No reference may be left, and this must be the only call for the buffer.
    pub(crate) unsafe fn release(buf: NonNull<bindings::dma_buf>) -> bool {
        let raw = buf.as_ptr();

        // SAFETY: Nobody else has a reference, so nobody changes these.
        let (vmaps, pending, ops) =
            unsafe { ((*raw).vmapping_counter, poll::is_pending(raw), &*(*raw).ops) };
        let in_use = warn_on!(vmaps != 0) || warn_on!(pending);

        if !in_use {
            if let Some(release) = ops.release {
                // SAFETY: The exporter's `release` takes a buffer without references, once.
                unsafe { release(raw) };
            }
        }

        // The memory of a file is reused at once, so who still believes to have a reference must
        // not find it. Not before, as exporters look at it, as long as an `O_PATH` descriptor may
        // keep them from being told: that is what `registry::has()` is for.
        //
        // SAFETY: Nobody else has a reference.
        unsafe { (*raw).file = null_mut() };
        if in_use {
            return false;
        }

        // SAFETY: Nobody else has a reference. The embedded reservation object was initialised by
        // `init()`; an exporter's one may be gone by now, so only its address is looked at. Module
        // reference and name are owned by the buffer.
        unsafe {
            if core::ptr::eq((*raw).resv, raw.add(1).cast()) {
                bindings::dma_resv_fini((*raw).resv);
            }
            warn_on!(!core::ptr::eq(
                (*raw).attachments.next,
                &raw const (*raw).attachments
            ));
            drop(ModuleRef::from_raw((*raw).owner));
            drop(Name::from_raw((*raw).name));
        }
        true
    }

    /// The buffer behind a file descriptor of the current process.
    ///
    /// # Errors
    ///
    /// `EBADF` for a descriptor that is not open, `EINVAL` for one that is not a buffer's.
    pub(crate) fn from_fd(fd: c_int) -> Result<ARef<Self>> {
        // CAST: As in C, a negative number becomes one that no process has.
        let file = LocalFile::fget(fd as u32)?;

        // SAFETY: The file is referenced.
        let ops = unsafe { (*file.as_ptr()).f_op };
        if !core::ptr::eq(ops, file::dma_buf_fops.as_ptr()) {
            return Err(EINVAL);
        }
        let raw = ARef::into_raw(file).as_ptr().cast::<bindings::file>();
        // SAFETY: A file with these operations has its buffer in `private_data` before anybody can
        // get at it. Its reference, which is that of the buffer, passes to the result.
        let buf: ARef<Self> =
            unsafe { ARef::from_raw(NonNull::new_unchecked((*raw).private_data.cast())) };

        trace::get(&buf, fd);
        Ok(buf)
    }

    /// A new reference, unless the last one is gone already.
    ///
    /// # Safety
    ///
    /// `raw` must point to a buffer whose file has not been freed: one that is in the registry,
    /// whose lock is held, or one of a file whose operation is running.
    pub(crate) unsafe fn try_get(raw: *mut bindings::dma_buf) -> Option<ARef<Self>> {
        // SAFETY: By the safety requirements the file can be looked at.
        if unsafe { bindings::file_ref_get(&raw mut (*(*raw).file).f_ref) } {
            // SAFETY: The reference was just taken.
            Some(unsafe { ARef::from_raw(NonNull::new_unchecked(raw.cast())) })
        } else {
            None
        }
    }

    /// Puts the buffer behind a new file descriptor with `flags`, and returns its number.
    ///
    /// On success the reference of `buf` belongs to the descriptor: other threads may close it
    /// before this returns. On failure it is not dropped: it stays that of the C caller.
    pub(crate) fn into_fd(buf: ManuallyDrop<ARef<Self>>, flags: c_int) -> Result<c_int> {
        // CAST: Flags are bits.
        let fd = FileDescriptorReservation::get_unused_fd_flags(flags as u32)?;
        // CAST: Descriptor numbers are not negative.
        let number = fd.reserved_fd() as c_int;

        trace::fd(&buf, number);
        // SAFETY: `NonNull` to the file of a referenced buffer; the reference passes on. The file
        // operations of a buffer do not use the file position.
        let file = unsafe {
            ARef::<File>::from_raw(NonNull::new_unchecked(
                ARef::into_raw(ManuallyDrop::into_inner(buf))
                    .as_ref()
                    .file()
                    .cast(),
            ))
        };
        fd.fd_install(file);
        Ok(number)
    }

    pub(crate) fn size(&self) -> usize {
        // SAFETY: By the type invariants the size does not change.
        unsafe { (*self.as_raw()).size }
    }

    pub(crate) fn file(&self) -> *mut bindings::file {
        // SAFETY: By the type invariants the file does not change.
        unsafe { (*self.as_raw()).file }
    }

    pub(crate) fn exp_name(&self) -> &CStr {
        // SAFETY: By the type invariants the name does not change. `struct dma_buf_export_info`
        // wants one that is not NULL; a NULL is shown the way `%s` does.
        unsafe {
            let name = (*self.as_raw()).exp_name;
            if name.is_null() {
                c"(null)"
            } else {
                CStr::from_char_ptr(name)
            }
        }
    }

    /// The exporter's operations.
    ///
    /// To be asked for anew with each call: some exporters replace the table after export.
    pub(crate) fn ops(&self) -> &bindings::dma_buf_ops {
        // SAFETY: By the type invariants. The exporter may write the pointer at the same time.
        unsafe { &*(&raw const (*self.as_raw()).ops).read_volatile() }
    }

    pub(crate) fn resv(&self) -> &Resv {
        // SAFETY: By the type invariants the pointer does not change, and the exporter keeps its
        // object until `release`, which comes after the last reference.
        unsafe { Resv::from_raw((*self.as_raw()).resv) }
    }

    /// Takes the reservation lock. Sleeps.
    pub(crate) fn lock(&self) -> LockGuard<'_> {
        LockGuard {
            buf: self,
            _guard: self.resv().lock(),
        }
    }

    /// Takes the reservation lock, or fails with `EINTR`.
    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn lock_interruptible(&self) -> Result<LockGuard<'_>> {
        Ok(LockGuard {
            buf: self,
            _guard: self.resv().lock_interruptible()?,
        })
    }

    /// The buffer as one whose reservation lock the caller of the core holds; lockdep checks it.
    ///
    /// # Safety
    ///
    /// The reservation lock must be held by the current context for as long as the result lives.
    pub(crate) unsafe fn assume_locked(&self) -> Locked<'_> {
        resv::assert_held(self.resv());
        // INVARIANT: By the safety requirements.
        Locked {
            buf: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Calls `f` with the name that user space gave, in atomic context.
    pub(crate) fn with_name<R>(&self, f: impl FnOnce(Option<&CStr>) -> R) -> R {
        // SAFETY: A buffer with a reference has not been released.
        unsafe { with_name(self.as_raw(), f) }
    }

    /// Replaces the name by one read from user space.
    ///
    /// # Errors
    ///
    /// `EFAULT` for memory that cannot be read, `EINVAL` for a string that is longer than
    /// `DMA_BUF_NAME_LEN` with its NUL, `ENOMEM`.
    pub(crate) fn set_name(&self, name: UserPtr) -> Result {
        let new = Name::from_user(name)?;
        // SAFETY: A buffer with a reference has not been released.
        let guard = unsafe { name_lock(self.as_raw()) }.lock();

        // SAFETY: The lock is held, and the buffer owns the name.
        let old = unsafe {
            Name::from_raw(core::mem::replace(
                &mut (*self.as_raw()).name,
                new.into_raw(),
            ))
        };

        drop(guard);
        drop(old);
        Ok(())
    }
}

/// The lock of the name.
///
/// # Safety
///
/// `raw` must point to a buffer that is not released before the end of `'a`.
unsafe fn name_lock<'a>(raw: *mut bindings::dma_buf) -> &'a Lock<(), SpinLockBackend> {
    // SAFETY: The lock was initialised by `init()` and lives as long as the buffer.
    unsafe { Lock::from_raw(&raw mut (*raw).name_lock) }
}

/// Calls `f` with the name that user space gave to a buffer, in atomic context.
///
/// # Safety
///
/// `raw` must point to a buffer that is not released meanwhile. Its file may be gone.
pub(crate) unsafe fn with_name<R>(
    raw: *mut bindings::dma_buf,
    f: impl FnOnce(Option<&CStr>) -> R,
) -> R {
    // SAFETY: By the safety requirements.
    let _guard = unsafe { name_lock(raw) }.lock();

    // SAFETY: The lock is held, so the string stays until the end of `f`.
    f(unsafe {
        let name = (*raw).name;
        if name.is_null() {
            None
        } else {
            Some(CStr::from_char_ptr(name))
        }
    })
}

/// The reservation lock of a buffer, given back on drop.
///
/// # Invariants
///
/// `_guard` is that of `buf`.
#[must_use = "the lock is given back when the guard is dropped"]
pub(crate) struct LockGuard<'a> {
    buf: &'a Buffer,
    _guard: ResvGuard<'a>,
}

impl LockGuard<'_> {
    /// The buffer as one that is locked, for as long as the guard is borrowed.
    pub(crate) fn held(&self) -> Locked<'_> {
        // INVARIANT: The lock is held for as long as the guard exists.
        Locked {
            buf: self.buf,
            _not_send: NotThreadSafe,
        }
    }
}

/// A buffer whose reservation lock is held, whoever took it.
///
/// # Invariants
///
/// The lock is held by the current context for `'a`.
#[derive(Copy, Clone)]
pub(crate) struct Locked<'a> {
    buf: &'a Buffer,
    _not_send: NotThreadSafe,
}

impl<'a> Locked<'a> {
    pub(crate) fn buffer(self) -> &'a Buffer {
        self.buf
    }

    pub(crate) fn resv(self) -> &'a Resv {
        self.buf.resv()
    }

    /// The attachments, the latest first.
    pub(crate) fn attachments(self) -> impl Iterator<Item = &'a Attachment> {
        // SAFETY: The list is initialised and changes only under the lock, which is held for `'a`.
        // It holds `struct dma_buf_attachment`s by their `node`, and `Attachment` is transparent.
        let list: &'a CList<Attachment, _> = unsafe {
            clist_create!(
                &raw mut (*self.buf.as_raw()).attachments,
                Attachment,
                bindings::dma_buf_attachment,
                node
            )
        };
        list.iter()
    }

    /// Puts an attachment on the list.
    ///
    /// # Safety
    ///
    /// The attachment must be one of this buffer and not be on the list. It must be removed before
    /// it is freed. No iterator of [`Self::attachments`] may be in use.
    pub(crate) unsafe fn add(self, attach: &Attachment) {
        // SAFETY: The lock is held; the rest by the safety requirements.
        unsafe {
            bindings::list_add(
                &raw mut (*attach.as_raw()).node,
                &raw mut (*self.buf.as_raw()).attachments,
            )
        };
    }

    /// Takes an attachment off the list.
    ///
    /// # Safety
    ///
    /// The attachment must be on the list of this buffer. No iterator of [`Self::attachments`] may
    /// be in use.
    pub(crate) unsafe fn remove(self, attach: &Attachment) {
        // SAFETY: The lock is held; the rest by the safety requirements.
        unsafe { bindings::list_del(&raw mut (*attach.as_raw()).node) };
    }
}

/// A string from user space, or none.
///
/// # Invariants
///
/// NULL, or a string from the kernel allocator that is owned.
struct Name(*mut c_char);

impl Name {
    fn from_user(name: UserPtr) -> Result<Self> {
        // SAFETY: Any user address is allowed.
        let name = from_err_ptr(unsafe {
            bindings::strndup_user(
                name.as_const_ptr().cast(),
                bindings::DMA_BUF_NAME_LEN as isize,
            )
        })?;
        Ok(Self(name))
    }

    /// # Safety
    ///
    /// `name` must come from [`Self::into_raw`] or be NULL, and not be used again.
    unsafe fn from_raw(name: *const c_char) -> Self {
        Self(name.cast_mut())
    }

    fn into_raw(self) -> *const c_char {
        ManuallyDrop::new(self).0
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // SAFETY: The string is from the kernel allocator, or NULL, and owned.
        unsafe { bindings::kfree(self.0.cast()) };
    }
}

/// A reference to the exporting module, or to the kernel itself.
///
/// # Invariants
///
/// NULL, or a module with a reference that is owned.
struct ModuleRef(*mut bindings::module);

impl ModuleRef {
    /// # Safety
    ///
    /// `module` must point to a module, or be NULL.
    unsafe fn get(module: *mut bindings::module) -> Result<Self> {
        // SAFETY: By the safety requirements.
        if unsafe { bindings::try_module_get(module) } {
            Ok(Self(module))
        } else {
            Err(ENOENT)
        }
    }

    /// # Safety
    ///
    /// `module` must come from [`Self::into_raw`], and its reference pass to the result.
    unsafe fn from_raw(module: *mut bindings::module) -> Self {
        Self(module)
    }

    fn into_raw(self) -> *mut bindings::module {
        ManuallyDrop::new(self).0
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: The reference is owned.
        unsafe { bindings::module_put(self.0) };
    }
}
