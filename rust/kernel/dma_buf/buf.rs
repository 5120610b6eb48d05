// SPDX-License-Identifier: GPL-2.0

//! Buffers.
//!
//! C header: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h)

use super::{
    exporter::Exporter,
    has_files,
    LockedResv,
    Resv, //
};

use crate::{
    bindings,
    error::from_err_ptr,
    fs::file::FileDescriptorReservation,
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::Opaque,
};

use core::{
    mem::forget,
    ptr::{
        self,
        NonNull, //
    },
};

/// A buffer that devices share (`struct dma_buf`).
///
/// A reference to it is that of its file. The last one gone, the exporter releases the memory, in
/// a context that may sleep; references may be dropped in any context.
///
/// # Invariants
///
/// Instances come from `dma_buf_export()`, and their reference count is that of their file.
///
/// # Examples
///
/// To give a buffer to user space, take the descriptor first, do all that can fail, and install
/// last, by value: from then on the buffer belongs to user space, which may close it at any moment.
///
/// ```
/// use kernel::{
///     dma_buf::DmaBuf,
///     fs::file::{flags, FileDescriptorReservation},
///     sync::aref::ARef,
/// };
///
/// fn publish(buf: ARef<DmaBuf>) -> Result<u32> {
///     let fd = FileDescriptorReservation::get_unused_fd_flags(flags::O_CLOEXEC)?;
///     let number = fd.reserved_fd();
///
///     // ... all that can fail, like copying `number` to user space ...
///     DmaBuf::install(buf, fd);
///     Ok(number)
/// }
/// # let _: fn(ARef<DmaBuf>) -> Result<u32> = publish;
/// ```
#[repr(transparent)]
pub struct DmaBuf(Opaque<bindings::dma_buf>);

// SAFETY: Buffers belong to no task.
unsafe impl Send for DmaBuf {}

// SAFETY: All methods that take a shared reference may run concurrently.
unsafe impl Sync for DmaBuf {}

// SAFETY: The reference count is that of the file, and a buffer lives as long as its file.
unsafe impl AlwaysRefCounted for DmaBuf {
    #[inline]
    fn inc_ref(&self) {
        // SAFETY: The shared reference proves that there is a reference to the file, which is set
        // before a buffer is returned from `dma_buf_export()`, and never changes.
        unsafe { bindings::get_file((*self.as_raw()).file) };
    }

    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // Not `dma_buf_put()`: for its trace event, that takes a lock which is not for interrupts.
        //
        // SAFETY: By the safety requirements there is a reference to give back. The file is as
        // above.
        unsafe { bindings::fput((*obj.as_ref().as_raw()).file) };
    }
}

impl DmaBuf {
    /// Makes a reference from a pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to a buffer to which there is a reference for at least `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::dma_buf) -> &'a Self {
        // CAST: `DmaBuf` is a transparent wrapper of `struct dma_buf`.
        // SAFETY: By the safety requirements.
        unsafe { &*ptr.cast() }
    }

    /// Returns the C object.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::dma_buf {
        self.0.get()
    }

    /// Takes over a reference from C.
    ///
    /// # Errors
    ///
    /// The error that the pointer stands for.
    ///
    /// # Safety
    ///
    /// `ptr` must stand for an error, or be a buffer one reference to which passes to the result.
    pub(super) unsafe fn from_owned(ptr: *mut bindings::dma_buf) -> Result<ARef<Self>> {
        let ptr = NonNull::new(from_err_ptr(ptr)?).ok_or(EINVAL)?;

        // SAFETY: By the safety requirements.
        Ok(unsafe { ARef::from_raw(ptr.cast()) })
    }

    /// The buffer behind a file descriptor of the current task.
    ///
    /// # Errors
    ///
    /// [`EBADF`] if `fd` is not open, [`EINVAL`] if it is not a dma-buf.
    #[inline]
    pub fn get(fd: i32) -> Result<ARef<Self>> {
        if !has_files() {
            return Err(EBADF);
        }
        // SAFETY: The task has files. Any number is allowed, and a buffer comes with a reference.
        unsafe { Self::from_owned(bindings::dma_buf_get(fd)) }
    }

    /// Gives a reference to the buffer to user space, as a file descriptor.
    ///
    /// This cannot fail, and cannot be undone. It consumes both arguments: who still needs the
    /// buffer keeps a reference of their own.
    #[inline]
    pub fn install(this: ARef<Self>, fd: FileDescriptorReservation) {
        // CAST: Descriptor numbers are not negative.
        let number = fd.reserved_fd() as i32;

        // The callee consumes the reservation and the reference.
        forget(fd);
        // SAFETY: The descriptor is reserved in the current task, by the invariants of the type
        // that has just been forgotten. So is the reference given away.
        unsafe { bindings::dma_buf_fd_install(ARef::into_raw(this).as_ptr().cast(), number) };
    }

    /// The size in bytes. Never changes. Need not be a multiple of the page size.
    #[inline]
    pub fn size(&self) -> usize {
        // SAFETY: The buffer is valid, and the field never changes.
        unsafe { (*self.as_raw()).size }
    }

    /// The name of the exporter.
    #[inline]
    pub fn exporter_name(&self) -> &CStr {
        // SAFETY: The buffer is valid, and the field never changes. An exporter's name is a string
        // that lives as long as the module that the buffer keeps loaded.
        unsafe { CStr::from_char_ptr((*self.as_raw()).exp_name) }
    }

    /// The reservation object: the lock of the buffer, and the fences of the work on it.
    #[inline]
    pub fn resv(&self) -> &Resv {
        // SAFETY: The buffer is valid, the field never changes, and the object lives as long as
        // the buffer.
        unsafe { Resv::from_raw((*self.as_raw()).resv) }
    }

    /// Tells all dynamic importers that the buffer moves or goes away.
    ///
    /// For the exporter, `T`, which waits for the fences of
    /// [`Usage::Bookkeep`](super::Usage::Bookkeep) after it. When those have signalled, importers
    /// have stopped to use what they had mapped.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the buffer is not one of `T`, or if `locked` is the lock of something else.
    pub fn invalidate_mappings<T: Exporter>(&self, locked: &LockedResv) -> Result {
        locked.expect(self.resv())?;
        self.data::<T>().ok_or(EINVAL)?;
        // SAFETY: The buffer is valid, and its lock is held.
        unsafe { bindings::dma_buf_invalidate_mappings(self.as_raw()) };
        Ok(())
    }
}

impl PartialEq for DmaBuf {
    /// Whether the two are the same buffer.
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self, other)
    }
}

impl Eq for DmaBuf {}
