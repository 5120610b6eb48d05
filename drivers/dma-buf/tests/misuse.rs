// SPDX-License-Identifier: GPL-2.0

//! Every function, called for no buffer at all, and for one whose file has been released.
//!
//! That is what comes of a driver in C that puts a reference which it does not have. The core in C
//! follows the pointer in most of the functions; so this is for the one in Rust, which warns, and
//! touches nothing.

#[kernel::macros::kunit_tests(dma_buf_core_misuse)]
mod tests {
    use crate::mock::*;

    use core::ptr::{
        null,
        null_mut, //
    };

    use kernel::{
        bindings,
        error::{
            from_err_ptr,
            to_result, //
        },
        prelude::*, //
    };

    type Buffer = *mut bindings::dma_buf;
    type Attachment = *mut bindings::dma_buf_attachment;

    /// The name of a function, and a call that tells whether it failed.
    type Call<T> = (&'static str, fn(T) -> bool);

    fn failed<T>(result: Result<T>) -> bool {
        result.err() == Some(EINVAL)
    }

    /// A structure that nobody has set up, for a function that fails before it looks at it.
    fn blank<T>() -> core::mem::MaybeUninit<T> {
        core::mem::MaybeUninit::zeroed()
    }

    fn attachment(buf: Buffer) -> bindings::dma_buf_attachment {
        bindings::dma_buf_attachment {
            dmabuf: buf,
            ..Default::default()
        }
    }

    /// The functions that take a buffer. Those that return nothing say by a warning alone that
    /// they fail.
    const OF_BUFFER: &[Call<Buffer>] = &[
        ("iter_next", |buf| {
            unsafe { bindings::dma_buf_iter_next(buf) }.is_null()
        }),
        ("fd_install", |buf| {
            let fd = unsafe { bindings::get_unused_fd_flags(0) };

            unsafe { bindings::dma_buf_fd_install(buf, fd) };
            // It is still reserved.
            unsafe { bindings::put_unused_fd(fd as u32) };
            fd >= 0
        }),
        ("put", |buf| {
            unsafe { bindings::dma_buf_put(buf) };
            true
        }),
        ("attach", |buf| {
            let mut dev = blank();

            failed(from_err_ptr(unsafe {
                bindings::dma_buf_attach(buf, dev.as_mut_ptr())
            }))
        }),
        ("dynamic_attach", |buf| {
            let mut dev = blank();

            failed(from_err_ptr(unsafe {
                bindings::dma_buf_dynamic_attach(buf, dev.as_mut_ptr(), null(), null_mut())
            }))
        }),
        ("detach", |buf| {
            unsafe { bindings::dma_buf_detach(buf, &mut attachment(buf)) };
            true
        }),
        ("invalidate_mappings", |buf| {
            unsafe { bindings::dma_buf_invalidate_mappings(buf) };
            true
        }),
        ("begin_cpu_access", |buf| {
            failed(to_result(unsafe {
                bindings::dma_buf_begin_cpu_access(buf, TO_DEVICE)
            }))
        }),
        ("end_cpu_access", |buf| {
            failed(to_result(unsafe {
                bindings::dma_buf_end_cpu_access(buf, TO_DEVICE)
            }))
        }),
        ("mmap", |buf| {
            let mut vma = blank();

            failed(to_result(unsafe {
                bindings::dma_buf_mmap(buf, vma.as_mut_ptr(), 0)
            }))
        }),
        ("vmap", |buf| {
            let mut map = bindings::iosys_map::default();

            failed(to_result(unsafe { bindings::dma_buf_vmap(buf, &mut map) }))
        }),
        ("vmap_unlocked", |buf| {
            let mut map = bindings::iosys_map::default();

            failed(to_result(unsafe {
                bindings::dma_buf_vmap_unlocked(buf, &mut map)
            }))
        }),
        ("vunmap", |buf| {
            unsafe { bindings::dma_buf_vunmap(buf, &mut Default::default()) };
            true
        }),
        ("vunmap_unlocked", |buf| {
            unsafe { bindings::dma_buf_vunmap_unlocked(buf, &mut Default::default()) };
            true
        }),
    ];

    /// The same, of those that take an attachment.
    const OF_ATTACHMENT: &[Call<Attachment>] = &[
        ("pin", |attach| {
            failed(to_result(unsafe { bindings::dma_buf_pin(attach) }))
        }),
        ("unpin", |attach| {
            unsafe { bindings::dma_buf_unpin(attach) };
            true
        }),
        ("map_attachment", |attach| {
            failed(from_err_ptr(unsafe {
                bindings::dma_buf_map_attachment(attach, TO_DEVICE)
            }))
        }),
        ("map_attachment_unlocked", |attach| {
            failed(from_err_ptr(unsafe {
                bindings::dma_buf_map_attachment_unlocked(attach, TO_DEVICE)
            }))
        }),
        ("unmap_attachment", |attach| {
            let mut table = blank();

            unsafe {
                bindings::dma_buf_unmap_attachment(attach, table.as_mut_ptr(), TO_DEVICE);
            }
            true
        }),
        ("unmap_attachment_unlocked", |attach| {
            let mut table = blank();

            unsafe {
                bindings::dma_buf_unmap_attachment_unlocked(attach, table.as_mut_ptr(), TO_DEVICE);
            }
            true
        }),
        ("attach_revocable", |attach| !unsafe {
            bindings::dma_buf_attach_revocable(attach)
        }),
    ];

    /// Whether a call failed, with one warning.
    fn refused(name: &str, call: impl FnOnce() -> bool) -> bool {
        let (failed, count) = warnings(call);
        let good = failed && count == 1;

        if !good {
            pr_err!("dma_buf_{name}: failed: {failed}, {count} warnings\n");
        }
        good
    }

    fn all_are_refused(buf: Buffer) -> bool {
        let mut good = true;

        for (name, call) in OF_BUFFER {
            good &= refused(name, || call(buf));
        }
        for (name, call) in OF_ATTACHMENT {
            good &= refused(name, || call(&mut attachment(buf)));
        }
        // This one does not warn, as in C.
        good && warnings(|| unsafe { bindings::dma_buf_fd(buf, 0) }) == (EINVAL.to_errno(), 0)
    }

    #[test]
    fn of_nothing() {
        assert!(all_are_refused(null_mut()));
        for (name, call) in OF_ATTACHMENT {
            assert!(refused(name, || call(null_mut())));
        }
        assert!(refused("export", || failed(from_err_ptr(unsafe {
            bindings::dma_buf_export(null())
        }))));
    }

    /// The memory of a file is reused for another one at once. So a buffer whose file is gone must
    /// not point to it any more, or a put too many drops somebody else's reference. Somebody who
    /// has the inode keeps the memory of the buffer for this test.
    #[test]
    fn of_what_has_been_released() -> Result {
        let (ptr, mock) = Buf::new(&FIXED)?.forget();
        let inode = unsafe { (*(*ptr).file).f_inode };

        unsafe { bindings::ihold(inode) };
        unsafe { bindings::__fput_sync((*ptr).file) };
        assert!(mock.called(&[Op::Release]));
        assert!(unsafe { (*ptr).file }.is_null());
        assert!(all_are_refused(ptr));
        assert!(mock.called(&[]));
        unsafe { bindings::iput(inode) };
        Ok(())
    }

    /// With an `O_PATH` descriptor, user space keeps a buffer from being released for as long as it
    /// likes, without a reference to it. Its file is gone all the same.
    #[test]
    fn of_what_waits_to_be_released() -> Result {
        let (ptr, mock) = Buf::new(&FIXED)?.forget();
        let path = unsafe { (*(*ptr).file).__bindgen_anon_1.f_path };

        unsafe { bindings::path_get(&path) };
        unsafe { bindings::__fput_sync((*ptr).file) };
        assert!(mock.called(&[]));
        assert!(all_are_refused(ptr));
        assert!(mock.called(&[]));
        unsafe { bindings::path_put(&path) };
        assert!(mock.called(&[Op::Release]));
        Ok(())
    }

    /// An exporter still finds the file, by which some look whether their buffer is in use.
    #[test]
    fn the_file_is_there_while_the_exporter_releases() -> Result {
        let buf = Buf::new(&FIXED)?;
        let (file, mock) = (buf.file() as usize, buf.mock.clone());

        drop(buf);
        assert!(mock.called(&[Op::Release]));
        assert_eq!(mock.file.load(kernel::sync::atomic::Relaxed), file);
        Ok(())
    }
}
