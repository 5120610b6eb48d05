// SPDX-License-Identifier: GPL-2.0

//! The file operations of a buffer: release, mmap, llseek, poll, ioctl, fdinfo.

use crate::{
    buffer::Buffer,
    cpu_access,
    mapping::Direction,
    poll,
    pseudo_fs::Table,
    registry,
    seq::Seq,
    trace, //
};

#[cfg(CONFIG_SYNC_FILE)]
use crate::sync_file;

use kernel::{
    bindings,
    error::to_result,
    ffi::{
        c_int,
        c_long,
        c_uint,
        c_ulong, //
    },
    ioctl::_IOW,
    mm::virt::VmaRef,
    page::PAGE_SHIFT,
    prelude::*,
    seq_file::seq_print,
    transmute::FromBytes,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// Files with these operations are those of buffers. Post-mortem tools know the name.
#[no_mangle]
pub(crate) static dma_buf_fops: Table<bindings::file_operations> =
    // SAFETY: Function pointers, which nobody writes.
    unsafe {
        Table::new(bindings::file_operations {
            release: Some(release),
            mmap: Some(mmap),
            llseek: Some(llseek),
            poll: Some(poll),
            unlocked_ioctl: Some(ioctl),
            compat_ioctl: bindings::compat_ptr_ioctl,
            show_fdinfo: Some(show_fdinfo),
            ..pin_init::zeroed()
        })
    };

/// The buffer of a file that has the operations of this module.
///
/// # Safety
///
/// `file` must point to such a file, which is referenced until the end of `'a`.
unsafe fn buffer_of<'a>(file: *mut bindings::file) -> &'a Buffer {
    // SAFETY: A file gets these operations together with its buffer.
    unsafe { Buffer::from_raw((*file).private_data.cast()) }
}

/// The last reference is gone.
///
/// # Safety
///
/// Called by the VFS, with a file that has these operations.
unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: The caller passes a file with these operations.
    let buf: *mut bindings::dma_buf = unsafe { (*file).private_data.cast() };

    // A file that did not get as far as to have a buffer has none in the registry either.
    if !buf.is_null() {
        // SAFETY: The buffer was added when the file got it, and a file is released once.
        unsafe { registry::remove(buf) };
    }
    0
}

/// Whether `pages` from `pgoff` on lie within the buffer.
fn check_range(buf: &Buffer, pgoff: usize, pages: usize) -> Result {
    match pgoff.checked_add(pages) {
        Some(end) if end <= buf.size() >> PAGE_SHIFT => Ok(()),
        _ => Err(EINVAL),
    }
}

/// The number of pages of a mapping.
fn vma_pages(vma: &VmaRef) -> usize {
    (vma.end() - vma.start()) >> PAGE_SHIFT
}

/// # Safety
///
/// Called by the VFS, with a file that has these operations, which is referenced, and a mapping
/// that is being made.
unsafe extern "C" fn mmap(file: *mut bindings::file, vma: *mut bindings::vm_area_struct) -> c_int {
    // SAFETY: The caller passes a file with these operations.
    let buf = unsafe { buffer_of(file) };
    // SAFETY: The caller passes a mapping that is being made, which it has locked.
    let (pages, pgoff) = unsafe { (vma_pages(VmaRef::from_raw(vma)), (*vma).vm_pgoff) };

    let Some(op) = buf.ops().mmap else {
        return EINVAL.to_errno();
    };
    if let Err(e) = check_range(buf, pgoff, pages) {
        return e.to_errno();
    }
    trace::mmap_internal(buf);
    // SAFETY: Buffer and mapping are valid, and the range lies within the buffer.
    unsafe { op(buf.as_raw(), vma) }
}

/// Tells the size; otherwise there is nothing to seek.
///
/// # Safety
///
/// Called by the VFS, with a file that has these operations, which is referenced.
unsafe extern "C" fn llseek(
    file: *mut bindings::file,
    offset: bindings::loff_t,
    whence: c_int,
) -> bindings::loff_t {
    // SAFETY: The caller passes a file with these operations.
    let buf = unsafe { buffer_of(file) };

    // CAST: The constants are small; as in C, a size past the largest offset wraps.
    let base = match whence as u32 {
        bindings::SEEK_END => buf.size() as bindings::loff_t,
        // The pattern SEEK_END(0), SEEK_SET(0) is how user space finds the size.
        bindings::SEEK_SET => 0,
        _ => return EINVAL.to_errno().into(),
    };
    if offset != 0 {
        return EINVAL.to_errno().into();
    }
    base
}

/// # Safety
///
/// Called by the VFS, with a file that has these operations, which is referenced, and a poll table
/// or NULL.
unsafe extern "C" fn poll(
    file: *mut bindings::file,
    table: *mut bindings::poll_table_struct,
) -> bindings::__poll_t {
    // SAFETY: The caller passes a file with these operations, and a poll table or NULL.
    unsafe { poll::poll(buffer_of(file), file, table) }
}

/// `struct dma_buf_sync`.
#[repr(transparent)]
struct SyncArg(bindings::dma_buf_sync);

// SAFETY: One integer.
unsafe impl FromBytes for SyncArg {}

const IOCTL: u32 = bindings::DMA_BUF_BASE as u32;
const SYNC: u32 = _IOW::<bindings::dma_buf_sync>(IOCTL, 0);
// Both take a pointer, whatever their number says.
const SET_NAME_A: u32 = _IOW::<u32>(IOCTL, 1);
const SET_NAME_B: u32 = _IOW::<u64>(IOCTL, 1);
#[cfg(CONFIG_SYNC_FILE)]
const EXPORT_SYNC_FILE: u32 = kernel::ioctl::_IOWR::<bindings::dma_buf_export_sync_file>(IOCTL, 2);
#[cfg(CONFIG_SYNC_FILE)]
const IMPORT_SYNC_FILE: u32 = _IOW::<bindings::dma_buf_import_sync_file>(IOCTL, 3);

/// # Safety
///
/// Called by the VFS, with a file that has these operations, which is referenced.
unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
    // SAFETY: The caller passes a file with these operations.
    let buf = unsafe { buffer_of(file) };
    let arg = UserPtr::from_addr(arg);

    let result = match cmd {
        SYNC => sync(buf, arg),
        SET_NAME_A | SET_NAME_B => buf.set_name(arg),
        #[cfg(CONFIG_SYNC_FILE)]
        EXPORT_SYNC_FILE => sync_file::export(buf, arg),
        #[cfg(CONFIG_SYNC_FILE)]
        IMPORT_SYNC_FILE => sync_file::import(buf, arg),
        _ => Err(ENOTTY),
    };
    match result {
        Ok(()) => 0,
        Err(e) => e.to_errno() as c_long,
    }
}

fn sync(buf: &Buffer, arg: UserPtr) -> Result {
    let SyncArg(arg) = UserSlice::new(arg, size_of::<SyncArg>()).reader().read()?;

    if arg.flags & !u64::from(bindings::DMA_BUF_SYNC_VALID_FLAGS_MASK) != 0 {
        return Err(EINVAL);
    }
    // CAST: The bits that are left fit.
    let flags = arg.flags as u32;
    let direction = match flags & bindings::DMA_BUF_SYNC_RW {
        bindings::DMA_BUF_SYNC_READ => Direction::DMA_FROM_DEVICE,
        bindings::DMA_BUF_SYNC_WRITE => Direction::DMA_TO_DEVICE,
        bindings::DMA_BUF_SYNC_RW => Direction::DMA_BIDIRECTIONAL,
        _ => return Err(EINVAL),
    };
    if flags & bindings::DMA_BUF_SYNC_END != 0 {
        cpu_access::end(buf, direction)
    } else {
        cpu_access::begin(buf, direction)
    }
}

/// # Safety
///
/// Called by procfs, with a file that has these operations and is referenced, and a seq file that
/// it has to itself.
unsafe extern "C" fn show_fdinfo(m: *mut bindings::seq_file, file: *mut bindings::file) {
    // SAFETY: The caller passes a file with these operations.
    let buf = unsafe { buffer_of(file) };
    // SAFETY: The caller has the seq file to itself while it is shown.
    let m = unsafe { Seq::from_raw(m) };
    // SAFETY: The file is valid. One reference is that of procfs, for this call.
    let count = unsafe { bindings::file_count(buf.file()) }.wrapping_sub(1);

    seq_print!(m, "size:\t{}\ncount:\t{}\nexp_name:\t", buf.size(), count);
    m.text(buf.exp_name());
    seq_print!(m, "\n");
    buf.with_name(|name| {
        if let Some(name) = name {
            m.text(c"name:\t");
            m.user_text(name);
            m.text(c"\n");
        }
    });
}

/// Maps a buffer, from page `pgoff` on, into a mapping of some other file's that is being made.
///
/// # Errors
///
/// `EINVAL` for an exporter that cannot, or a range past the end, `EOVERFLOW` for one past all
/// ends, otherwise what the exporter returns.
///
/// # Safety
///
/// `vma` must point to a mapping that is being made by an mmap operation.
pub(crate) unsafe fn mmap_into(
    buf: &Buffer,
    vma: *mut bindings::vm_area_struct,
    pgoff: usize,
) -> Result {
    let op = buf.ops().mmap.ok_or(EINVAL)?;
    // SAFETY: By the safety requirements.
    let pages = vma_pages(unsafe { VmaRef::from_raw(vma) });

    if pgoff.checked_add(pages).is_none() {
        return Err(EOVERFLOW);
    }
    check_range(buf, pgoff, pages)?;

    // SAFETY: By the safety requirements. The mapping takes a reference of its own to the file.
    unsafe {
        bindings::vma_set_file(vma, buf.file());
        (*vma).vm_pgoff = pgoff;
    }
    trace::mmap(buf);
    // SAFETY: Buffer and mapping are valid, and the range lies within the buffer.
    to_result(unsafe { op(buf.as_raw(), vma) })
}
