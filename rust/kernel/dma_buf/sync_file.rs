// SPDX-License-Identifier: GPL-2.0

//! Sync files: fences that user space can hold.
//!
//! A sync file is a file that stands for a fence. User space can poll it, wait for several of them
//! at once, and pass it to a driver that has to wait before it begins its own work.
//!
//! C header: [`include/linux/sync_file.h`](srctree/include/linux/sync_file.h)

use super::{
    has_files,
    Fence, //
};

use crate::{
    bindings,
    fs::File,
    prelude::*,
    sync::aref::ARef, //
};

use core::ptr::NonNull;

/// Creates a sync file for `fence`.
///
/// The file has its own reference to the fence. It is not in any descriptor table; see
/// [`FileDescriptorReservation`] for how to put it there, which has to be the last step: it cannot
/// be undone, and user space may use or close the descriptor at once.
///
/// # Errors
///
/// `ENOMEM`, also if there are too many open files in the system.
///
/// # Context
///
/// Process context; may sleep.
///
/// # Examples
///
/// ```
/// use kernel::{
///     bindings,
///     dma_buf::{
///         dma_fence::Fence,
///         sync_file, //
///     },
///     fs::file::FileDescriptorReservation,
///     prelude::*, //
/// };
///
/// /// Makes a descriptor for `fence`, and hands its number to user space by `tell`.
/// fn export(fence: &Fence, tell: impl FnOnce(u32) -> Result) -> Result {
///     let fd = FileDescriptorReservation::get_unused_fd_flags(bindings::O_CLOEXEC)?;
///     let file = sync_file::create(fence)?;
///
///     tell(fd.reserved_fd())?;
///     // From here on, nothing can fail.
///     fd.fd_install(file);
///     Ok(())
/// }
/// # Ok::<(), Error>(())
/// ```
///
/// [`FileDescriptorReservation`]: crate::fs::file::FileDescriptorReservation
pub fn create(fence: &Fence) -> Result<ARef<File>> {
    // SAFETY: The fence is valid. The callee takes a reference of its own.
    let sync_file = NonNull::new(unsafe { bindings::sync_file_create(fence.as_raw()) });

    // SAFETY: What the call returns, if not NULL, is a valid sync file, which is part of its file.
    let file = unsafe { (*sync_file.ok_or(ENOMEM)?.as_ptr()).file };

    // SAFETY: The file of a sync file is not NULL. It comes with a reference that passes to the
    // result. As it is new, it is in no descriptor table, and nobody is in `fdget_pos()` with it.
    // `File` is a transparent wrapper.
    Ok(unsafe { ARef::from_raw(NonNull::new_unchecked(file.cast())) })
}

/// Returns the fence of the sync file that is open as `fd` in the current process.
///
/// It may be a container for several fences; see [`Fence::unwrapped`].
///
/// # Errors
///
/// `EINVAL` if `fd` is not open, or is not a sync file.
///
/// # Context
///
/// Process context.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma_buf::sync_file,
///     prelude::*, //
/// };
///
/// /// Waits for a sync file that user space has passed.
/// fn wait(fd: u32) -> Result {
///     sync_file::fence_from_fd(fd)?.wait()
/// }
/// # Ok::<(), Error>(())
/// ```
pub fn fence_from_fd(fd: u32) -> Result<ARef<Fence>> {
    if !has_files() {
        return Err(EINVAL);
    }
    // CAST: The callee turns the number back into an unsigned one.
    //
    // SAFETY: The task has files. Any number is allowed.
    let fence = NonNull::new(unsafe { bindings::sync_file_get_fence(fd as c_int) });

    // SAFETY: A fence that the call returns is valid, and comes with a reference that passes to the
    // result. `Fence` is a transparent wrapper.
    Ok(unsafe { ARef::from_raw(fence.ok_or(EINVAL)?.cast()) })
}

// A descriptor cannot be closed again from Rust, so there is no test that installs one: the tests
// run in kernel threads, which share their descriptor table with all others.
#[cfg(CONFIG_RUST_DMA_BUF_KUNIT_TEST)]
#[kunit_tests(rust_sync_file)]
mod tests {
    use super::*;
    use crate::{
        dma_buf::dma_fence::{
            DriverFenceAllocation,
            FenceContext, //
        },
        fs::file::FileDescriptorReservation, //
    };

    #[test]
    fn create_and_drop() -> Result {
        let driver = FenceContext::new(c"rust_kunit", c"rust_kunit_timeline")?
            .new_fence(DriverFenceAllocation::new(GFP_KERNEL)?);
        let fence = driver.fence();
        let (first, second) = (create(&fence)?, create(&fence)?);

        assert!(first.as_ptr() != second.as_ptr());
        drop(first);
        driver.signal(Ok(()));
        drop(second);
        assert_eq!(fence.status(), Some(Ok(())));
        Ok(())
    }

    #[test]
    fn file_outlives_fence_reference() -> Result {
        drop(create(&Fence::stub())?);

        let driver = FenceContext::new(c"rust_kunit", c"rust_kunit_timeline")?
            .new_fence(DriverFenceAllocation::new(GFP_KERNEL)?);
        let file = create(driver.as_ref())?;

        drop(driver);
        drop(file);
        Ok(())
    }

    #[test]
    fn bad_descriptors() -> Result {
        let fd = FileDescriptorReservation::get_unused_fd_flags(bindings::O_CLOEXEC)?;

        // Reserved, but not open.
        assert_eq!(fence_from_fd(fd.reserved_fd()).err(), Some(EINVAL));
        assert_eq!(fence_from_fd(i32::MAX as u32).err(), Some(EINVAL));
        assert_eq!(fence_from_fd(u32::MAX).err(), Some(EINVAL));
        Ok(())
    }
}
