// SPDX-License-Identifier: GPL-2.0

//! The dma-buf core.
//!
//! This is the crate root: one function for each symbol of `include/linux/dma-buf.h`, in the order
//! of `drivers/dma-buf/dma-buf.c`, where their kernel-doc is. Here, and nowhere deeper, pointers of
//! C callers become references or owners; what they point to is the callers' promise, by the
//! convention of that file ("DOC: locking convention").
//!
//! A NULL where the interface wants a pointer gets a warning and an error, as in C, and so does a
//! buffer whose file has been released.

use kernel::{
    bindings,
    error::Error,
    ffi::{
        c_int,
        c_void, //
    },
    prelude::*,
    sync::aref::ARef,
    task::might_sleep,
    warn_on, //
};

use core::{
    mem::ManuallyDrop,
    ptr::{
        null_mut,
        NonNull, //
    }, //
};

mod attachment;
mod buffer;
#[cfg(CONFIG_DEBUG_FS)]
mod bufinfo;
mod cpu_access;
mod file;
mod mapping;
mod poll;
mod pseudo_fs;
mod registry;
mod resv;
mod seq;
#[cfg(CONFIG_SYNC_FILE)]
mod sync_file;
mod trace;

use attachment::Attachment;
use buffer::Buffer;
use cpu_access::Map;
use mapping::Direction;

const __LOG_PREFIX: &[u8] = b"dma_buf\0";

fn errno(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(e) => e.to_errno(),
    }
}

fn ptr_or_err<T>(result: Result<NonNull<T>>) -> *mut T {
    result.map_or_else(Error::to_ptr, NonNull::as_ptr)
}

/// The pointer that C gets for a reference, which goes with it; NULL for none.
fn into_ptr(buf: Option<ARef<Buffer>>) -> *mut bindings::dma_buf {
    buf.map_or(null_mut(), |buf| ARef::into_raw(buf).cast().as_ptr())
}

/// Whether there is a buffer that can be used: one whose file has not been released.
///
/// # Safety
///
/// `buf` must be NULL, or point to what is, or was, a buffer, and has not been freed.
unsafe fn usable(buf: *mut bindings::dma_buf) -> bool {
    // SAFETY: By the safety requirements.
    !buf.is_null() && unsafe { registry::has(buf) }
}

/// # Safety
///
/// `buf` must be NULL, a buffer that stays referenced for `'a`, or one without references that has
/// not been freed.
unsafe fn buffer<'a>(buf: *mut bindings::dma_buf) -> Option<&'a Buffer> {
    // SAFETY: By the safety requirements.
    let usable = unsafe { usable(buf) };

    if warn_on!(!usable) {
        return None;
    }
    // SAFETY: By the safety requirements. It is registered, so it has not lost its file.
    Some(unsafe { Buffer::from_raw(buf) })
}

/// As [`buffer()`], for a reference that passes to the callee.
///
/// # Safety
///
/// As for [`buffer()`], and if there is a buffer, the caller has a reference, which it gives away.
unsafe fn owned(buf: *mut bindings::dma_buf) -> Option<ARef<Buffer>> {
    // SAFETY: By the safety requirements.
    let buf = unsafe { buffer(buf) }?;

    // SAFETY: By the safety requirements the reference passes to the result.
    Some(unsafe { ARef::from_raw(NonNull::from(buf)) })
}

/// # Safety
///
/// `attach` must be NULL or an attachment that is not detached during `'a`, to a buffer as for
/// [`buffer()`].
unsafe fn attachment<'a>(attach: *mut bindings::dma_buf_attachment) -> Option<&'a Attachment> {
    // SAFETY: By the safety requirements.
    let usable = !attach.is_null() && unsafe { usable((*attach).dmabuf) };

    if warn_on!(!usable) {
        return None;
    }
    // SAFETY: By the safety requirements.
    Some(unsafe { Attachment::from_raw(attach) })
}

/// # Safety
///
/// Called once, by the initcall.
#[export]
unsafe extern "C" fn dma_buf_rust_init() -> c_int {
    // SAFETY: By the safety requirements; without the mount nothing can be exported.
    unsafe { registry::init() };
    let result = pseudo_fs::init();

    #[cfg(CONFIG_DEBUG_FS)]
    if result.is_ok() {
        bufinfo::init();
    }
    errno(result)
}

/// # Safety
///
/// Called once, by the exitcall.
#[export]
unsafe extern "C" fn dma_buf_rust_exit() {
    #[cfg(CONFIG_DEBUG_FS)]
    bufinfo::exit();
    // SAFETY: The kernel is going down.
    unsafe { pseudo_fs::exit() };
}

/// # Safety
///
/// None.
#[export]
unsafe extern "C" fn dma_buf_iter_begin() -> *mut bindings::dma_buf {
    into_ptr(registry::first())
}

/// # Safety
///
/// `dmabuf` must be NULL or a buffer; the caller's reference passes to the callee.
#[export]
unsafe extern "C" fn dma_buf_iter_next(dmabuf: *mut bindings::dma_buf) -> *mut bindings::dma_buf {
    // SAFETY: By the safety requirements.
    let Some(buf) = (unsafe { owned(dmabuf) }) else {
        return null_mut();
    };

    trace::put(&buf);
    into_ptr(registry::after(buf))
}

/// # Safety
///
/// `exp_info` must be NULL or point to what `struct dma_buf_export_info` says.
#[export]
unsafe extern "C" fn dma_buf_export(
    exp_info: *const bindings::dma_buf_export_info,
) -> *mut bindings::dma_buf {
    if warn_on!(exp_info.is_null()) {
        return EINVAL.to_ptr();
    }
    // SAFETY: By the safety requirements.
    ptr_or_err(unsafe { Buffer::export(&*exp_info) }.map(|buf| ARef::into_raw(buf).cast()))
}

/// There is no warning for NULL, as in C.
///
/// # Safety
///
/// `dmabuf` must be NULL or a buffer; on success the caller's reference passes to the descriptor.
#[export]
unsafe extern "C" fn dma_buf_fd(dmabuf: *mut bindings::dma_buf, flags: c_int) -> c_int {
    // SAFETY: By the safety requirements.
    if !unsafe { usable(dmabuf) } {
        return EINVAL.to_errno();
    }

    // SAFETY: By the safety requirements; on failure the reference stays the caller's.
    let buf = ManuallyDrop::new(unsafe { ARef::from_raw(NonNull::new_unchecked(dmabuf.cast())) });
    Buffer::into_fd(buf, flags).unwrap_or_else(Error::to_errno)
}

/// # Safety
///
/// `dmabuf` must be NULL or a buffer and `fd` a descriptor that is reserved; the caller's
/// references to both pass on.
#[export]
unsafe extern "C" fn dma_buf_fd_install(dmabuf: *mut bindings::dma_buf, fd: c_int) {
    // SAFETY: By the safety requirements.
    let Some(buf) = (unsafe { buffer(dmabuf) }) else {
        return;
    };

    trace::fd(buf, fd);
    // SAFETY: By the safety requirements. The buffer is not touched after this.
    unsafe { bindings::fd_install(fd as u32, buf.file()) };
}

/// # Safety
///
/// None.
#[export]
unsafe extern "C" fn dma_buf_get(fd: c_int) -> *mut bindings::dma_buf {
    ptr_or_err(Buffer::from_fd(fd).map(|buf| ARef::into_raw(buf).cast()))
}

/// # Safety
///
/// `dmabuf` must be NULL or a buffer; the caller's reference passes to the callee.
#[export]
unsafe extern "C" fn dma_buf_put(dmabuf: *mut bindings::dma_buf) {
    // SAFETY: By the safety requirements.
    if let Some(buf) = unsafe { owned(dmabuf) } {
        trace::put(&buf);
    }
}

/// # Safety
///
/// `dmabuf` and `dev` must be NULL, or a buffer and a device that stay until the attachment is
/// detached, like `importer_ops` if that is not NULL.
#[export]
unsafe extern "C" fn dma_buf_dynamic_attach(
    dmabuf: *mut bindings::dma_buf,
    dev: *mut bindings::device,
    importer_ops: *const bindings::dma_buf_attach_ops,
    importer_priv: *mut c_void,
) -> *mut bindings::dma_buf_attachment {
    // SAFETY: By the safety requirements.
    let Some(buf) = (unsafe { buffer(dmabuf) }) else {
        return EINVAL.to_ptr();
    };
    if warn_on!(dev.is_null()) {
        return EINVAL.to_ptr();
    }
    // SAFETY: By the safety requirements.
    ptr_or_err(unsafe { attachment::attach(buf, dev, importer_ops, importer_priv) })
}

/// # Safety
///
/// As for [`dma_buf_dynamic_attach`].
#[export]
unsafe extern "C" fn dma_buf_attach(
    dmabuf: *mut bindings::dma_buf,
    dev: *mut bindings::device,
) -> *mut bindings::dma_buf_attachment {
    // SAFETY: By the safety requirements.
    unsafe { dma_buf_dynamic_attach(dmabuf, dev, core::ptr::null(), null_mut()) }
}

/// # Safety
///
/// `dmabuf` and `attach` must be NULL, or a buffer and an attachment, which is not used again. The
/// reservation lock must not be held.
#[export]
unsafe extern "C" fn dma_buf_detach(
    dmabuf: *mut bindings::dma_buf,
    attach: *mut bindings::dma_buf_attachment,
) {
    // SAFETY: By the safety requirements.
    let Some(buf) = (unsafe { buffer(dmabuf) }) else {
        return;
    };
    let attached_here = NonNull::new(attach)
        // SAFETY: By the safety requirements.
        .filter(|attach| unsafe { (*attach.as_ptr()).dmabuf } == dmabuf);
    let Some(attach) = attached_here else {
        warn_on!(true);
        return;
    };

    // SAFETY: By the safety requirements.
    unsafe { attachment::detach(buf, attach) };
}

/// # Safety
///
/// `attach` must be NULL or an attachment whose reservation lock is held.
#[export]
unsafe extern "C" fn dma_buf_pin(attach: *mut bindings::dma_buf_attachment) -> c_int {
    // SAFETY: By the safety requirements.
    let Some(attach) = (unsafe { attachment(attach) }) else {
        return EINVAL.to_errno();
    };

    attachment::warn_if_static(attach);
    // SAFETY: By the safety requirements.
    errno(unsafe { attach.assume_locked() }.pin())
}

/// # Safety
///
/// `attach` must be NULL or an attachment whose reservation lock is held, and pinned.
#[export]
unsafe extern "C" fn dma_buf_unpin(attach: *mut bindings::dma_buf_attachment) {
    // SAFETY: By the safety requirements.
    let Some(attach) = (unsafe { attachment(attach) }) else {
        return;
    };

    attachment::warn_if_static(attach);
    // SAFETY: By the safety requirements.
    unsafe { attach.assume_locked().unpin() };
}

/// # Safety
///
/// `attach` must be NULL or an attachment whose reservation lock is held.
#[export]
unsafe extern "C" fn dma_buf_map_attachment(
    attach: *mut bindings::dma_buf_attachment,
    direction: Direction,
) -> *mut bindings::sg_table {
    might_sleep();

    // SAFETY: By the safety requirements.
    let Some(attach) = (unsafe { attachment(attach) }) else {
        return EINVAL.to_ptr();
    };
    // SAFETY: By the safety requirements.
    ptr_or_err(mapping::map(unsafe { attach.assume_locked() }, direction))
}

/// # Safety
///
/// `attach` must be NULL or an attachment whose reservation lock is not held by the caller.
#[export]
unsafe extern "C" fn dma_buf_map_attachment_unlocked(
    attach: *mut bindings::dma_buf_attachment,
    direction: Direction,
) -> *mut bindings::sg_table {
    might_sleep();

    // SAFETY: By the safety requirements.
    let Some(attach) = (unsafe { attachment(attach) }) else {
        return EINVAL.to_ptr();
    };
    ptr_or_err(Attachment::with_lock(attach, |attach| {
        mapping::map(attach, direction)
    }))
}

/// # Safety
///
/// `attach` must be NULL or an attachment whose reservation lock is held, `sg_table` NULL or a
/// mapping of it for `direction` that is not used again.
#[export]
unsafe extern "C" fn dma_buf_unmap_attachment(
    attach: *mut bindings::dma_buf_attachment,
    sg_table: *mut bindings::sg_table,
    direction: Direction,
) {
    might_sleep();

    // SAFETY: By the safety requirements.
    let Some(attach) = (unsafe { attachment(attach) }) else {
        return;
    };
    let Some(sgt) = table(sg_table) else {
        return;
    };
    // SAFETY: By the safety requirements.
    unsafe { mapping::unmap(attach.assume_locked(), sgt, direction) };
}

/// # Safety
///
/// As for [`dma_buf_unmap_attachment`], but the reservation lock must not be held by the caller.
#[export]
unsafe extern "C" fn dma_buf_unmap_attachment_unlocked(
    attach: *mut bindings::dma_buf_attachment,
    sg_table: *mut bindings::sg_table,
    direction: Direction,
) {
    might_sleep();

    // SAFETY: By the safety requirements.
    let Some(attach) = (unsafe { attachment(attach) }) else {
        return;
    };
    let Some(sgt) = table(sg_table) else {
        return;
    };
    // SAFETY: By the safety requirements.
    Attachment::with_lock(attach, |attach| unsafe {
        mapping::unmap(attach, sgt, direction)
    });
}

fn table(sgt: *mut bindings::sg_table) -> Option<NonNull<bindings::sg_table>> {
    warn_on!(sgt.is_null());
    NonNull::new(sgt)
}

/// # Safety
///
/// `attach` must be NULL, an attachment, or the half-made one that an exporter's attach gets.
#[export]
unsafe extern "C" fn dma_buf_attach_revocable(attach: *mut bindings::dma_buf_attachment) -> bool {
    // SAFETY: By the safety requirements.
    unsafe { attachment(attach) }.is_some_and(Attachment::is_revocable)
}

/// # Safety
///
/// `dmabuf` must be NULL or a buffer whose reservation lock is held.
#[export]
unsafe extern "C" fn dma_buf_invalidate_mappings(dmabuf: *mut bindings::dma_buf) {
    // SAFETY: By the safety requirements.
    if let Some(buf) = unsafe { buffer(dmabuf) } {
        // SAFETY: By the safety requirements.
        attachment::invalidate_mappings(unsafe { buf.assume_locked() });
    }
}

/// # Safety
///
/// `dma_buf` must be NULL or a buffer whose reservation lock is not held by the caller.
#[export]
unsafe extern "C" fn dma_buf_begin_cpu_access(
    dma_buf: *mut bindings::dma_buf,
    dir: Direction,
) -> c_int {
    // SAFETY: By the safety requirements.
    match unsafe { buffer(dma_buf) } {
        Some(buf) => errno(cpu_access::begin(buf, dir)),
        None => EINVAL.to_errno(),
    }
}

/// # Safety
///
/// As for [`dma_buf_begin_cpu_access`].
#[export]
unsafe extern "C" fn dma_buf_end_cpu_access(
    dma_buf: *mut bindings::dma_buf,
    dir: Direction,
) -> c_int {
    // SAFETY: By the safety requirements.
    match unsafe { buffer(dma_buf) } {
        Some(buf) => errno(cpu_access::end(buf, dir)),
        None => EINVAL.to_errno(),
    }
}

/// # Safety
///
/// `dmabuf` must be NULL or a buffer, `vma` NULL or a mapping that an mmap operation is making.
#[export]
unsafe extern "C" fn dma_buf_mmap(
    dmabuf: *mut bindings::dma_buf,
    vma: *mut bindings::vm_area_struct,
    pgoff: usize,
) -> c_int {
    // SAFETY: By the safety requirements.
    let Some(buf) = (unsafe { buffer(dmabuf) }) else {
        return EINVAL.to_errno();
    };
    if warn_on!(vma.is_null()) {
        return EINVAL.to_errno();
    }
    // SAFETY: By the safety requirements.
    errno(unsafe { file::mmap_into(buf, vma, pgoff) })
}

/// # Safety
///
/// `dmabuf` must be NULL or a buffer whose reservation lock is held, `map` valid for a write.
#[export]
unsafe extern "C" fn dma_buf_vmap(
    dmabuf: *mut bindings::dma_buf,
    map: *mut bindings::iosys_map,
) -> c_int {
    // SAFETY: By the safety requirements.
    unsafe { vmap_with(dmabuf, map, |buf| buf.assume_locked().vmap()) }
}

/// # Safety
///
/// `dmabuf` must be NULL or a buffer whose reservation lock is not held by the caller, `map` valid
/// for a write.
#[export]
unsafe extern "C" fn dma_buf_vmap_unlocked(
    dmabuf: *mut bindings::dma_buf,
    map: *mut bindings::iosys_map,
) -> c_int {
    // SAFETY: By the safety requirements.
    unsafe { vmap_with(dmabuf, map, |buf| buf.lock().held().vmap()) }
}

/// # Safety
///
/// `dmabuf` must be NULL or a buffer, `map` valid for a write.
unsafe fn vmap_with(
    dmabuf: *mut bindings::dma_buf,
    map: *mut bindings::iosys_map,
    f: impl FnOnce(&Buffer) -> Result<Map>,
) -> c_int {
    // SAFETY: By the safety requirements.
    let result = match unsafe { buffer(dmabuf) } {
        Some(buf) => f(buf),
        None => Err(EINVAL),
    };
    // SAFETY: By the safety requirements.
    unsafe { map.write(result.unwrap_or(Map::none()).0) };
    errno(result.map(|_| ()))
}

/// # Safety
///
/// `dmabuf` must be NULL or a buffer whose reservation lock is held, `map` a vmap of it.
#[export]
unsafe extern "C" fn dma_buf_vunmap(dmabuf: *mut bindings::dma_buf, map: *mut bindings::iosys_map) {
    // SAFETY: By the safety requirements; `Map` is transparent.
    unsafe {
        if let Some(buf) = buffer(dmabuf) {
            buf.assume_locked().vunmap(&mut *map.cast::<Map>());
        }
    }
}

/// # Safety
///
/// As for [`dma_buf_vunmap`], but the reservation lock must not be held by the caller.
#[export]
unsafe extern "C" fn dma_buf_vunmap_unlocked(
    dmabuf: *mut bindings::dma_buf,
    map: *mut bindings::iosys_map,
) {
    // SAFETY: By the safety requirements; `Map` is transparent.
    unsafe {
        if let Some(buf) = buffer(dmabuf) {
            buf.lock().held().vunmap(&mut *map.cast::<Map>());
        }
    }
}
