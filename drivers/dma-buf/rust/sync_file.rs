// SPDX-License-Identifier: GPL-2.0

//! The ioctls that turn implicit fences into sync files, and back.

use crate::buffer::Buffer;

use kernel::{
    bindings,
    dma_buf::{
        sync_file,
        Fence,
        Usage, //
    },
    fs::file::FileDescriptorReservation,
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// `struct dma_buf_export_sync_file`.
#[repr(transparent)]
pub(crate) struct ExportArg(bindings::dma_buf_export_sync_file);

// SAFETY: Two integers without padding.
unsafe impl FromBytes for ExportArg {}
// SAFETY: Two integers without padding.
unsafe impl AsBytes for ExportArg {}

/// `struct dma_buf_import_sync_file`.
#[repr(transparent)]
pub(crate) struct ImportArg(bindings::dma_buf_import_sync_file);

// SAFETY: Two integers without padding.
unsafe impl FromBytes for ImportArg {}

/// Whether `flags` ask for writing, if they are valid.
fn is_write(flags: u32) -> Result<bool> {
    if flags & !bindings::DMA_BUF_SYNC_RW != 0 || flags & bindings::DMA_BUF_SYNC_RW == 0 {
        return Err(EINVAL);
    }
    Ok(flags & bindings::DMA_BUF_SYNC_WRITE != 0)
}

/// Makes a sync file of what a reader or a writer has to wait for, and tells its descriptor.
///
/// # Errors
///
/// `EFAULT`, `EINVAL` for bad flags, `EMFILE`, `ENOMEM`. Nothing is left behind.
pub(crate) fn export(buf: &Buffer, arg: UserPtr) -> Result {
    let (mut reader, mut writer) = UserSlice::new(arg, size_of::<ExportArg>()).reader_writer();
    let mut arg: ExportArg = reader.read()?;
    let write = is_write(arg.0.flags)?;

    let fd = FileDescriptorReservation::get_unused_fd_flags(bindings::O_CLOEXEC)?;
    let fence = buf
        .resv()
        .singleton(Usage::rw(write))?
        .unwrap_or_else(Fence::stub);
    let file = sync_file::create(&fence)?;

    // CAST: Descriptor numbers are not negative.
    arg.0.fd = fd.reserved_fd() as i32;
    writer.write(&arg)?;
    fd.fd_install(file);
    Ok(())
}

/// Adds the fences of a sync file to the buffer.
///
/// # Errors
///
/// `EFAULT`, `EINVAL` for bad flags or a descriptor that is not a sync file's, `ENOMEM`.
pub(crate) fn import(buf: &Buffer, arg: UserPtr) -> Result {
    let arg: ImportArg = UserSlice::new(arg, size_of::<ImportArg>())
        .reader()
        .read()?;
    let usage = if is_write(arg.0.flags)? {
        Usage::Write
    } else {
        Usage::Read
    };

    // CAST: The callee looks at the bits only.
    let fence = sync_file::fence_from_fd(arg.0.fd as u32)?;

    buf.resv().lock().add_fence(&fence, usage)
}
