// SPDX-License-Identifier: GPL-2.0

//! Buffers: export, references, descriptors, release, and the list of all.

#[kernel::macros::kunit_tests(dma_buf_core_buffer)]
mod tests {
    use crate::mock::*;

    use core::ptr::null_mut;

    use kernel::{
        bindings,
        error::from_err_ptr,
        ffi::c_int,
        page::PAGE_SIZE,
        prelude::*,
        sync::{
            atomic::Relaxed,
            Arc, //
        },
        types::Opaque, //
    };

    #[test]
    fn export_takes_what_it_is_told() -> Result {
        let export = Export::new(&FIXED)?;
        let buf = export.export()?;

        unsafe {
            let b = &*buf.ptr;

            assert_eq!(b.size, SIZE);
            assert_eq!(b.ops, &raw const FIXED);
            assert_eq!(b.exp_name, export.info.exp_name);
            assert_eq!(b.priv_, export.info.priv_);
            assert!(b.owner.is_null());
            assert!(is_empty(&raw const b.attachments));
            assert!(!b.resv.is_null());
            assert!(!buf.is_locked());
            assert_eq!((*b.file).private_data, buf.ptr.cast());
            assert_eq!((*(*b.file).f_inode).i_size, SIZE as i64);
        }
        assert_eq!(buf.refs(), 1);
        assert!(buf.mock.called(&[]));
        Ok(())
    }

    #[test]
    fn flags_of_the_file() -> Result {
        let (rdonly, wronly, rdwr) = (bindings::O_RDONLY, bindings::O_WRONLY, bindings::O_RDWR);
        let (nonblock, others) = (
            bindings::O_NONBLOCK,
            bindings::O_CLOEXEC | bindings::O_APPEND,
        );
        let readable = 1; // FMODE_READ
        let writable = 2; // FMODE_WRITE

        for (flags, kept, mode) in [
            (rdonly, rdonly, readable),
            (wronly, wronly, writable),
            (rdwr, rdwr, readable | writable),
            (rdwr | nonblock, rdwr | nonblock, readable | writable),
            (rdonly | others, rdonly, readable),
            (bindings::O_ACCMODE, bindings::O_ACCMODE, 0),
        ] {
            let buf = Export::new(&FIXED)?.flags(flags).export()?;
            let file = unsafe { &*buf.file() };

            assert_eq!(file.f_flags & (3 | nonblock | others), kept);
            assert_eq!(file.f_mode & 3, mode);
        }
        Ok(())
    }

    #[test]
    fn sizes() -> Result {
        for size in [
            0,
            1,
            PAGE_SIZE - 1,
            PAGE_SIZE + 1,
            1 << 20,
            (isize::MAX as usize) & !0xfff,
            isize::MAX as usize + 1,
        ] {
            let buf = Export::new(&FIXED)?.sized(size).export()?;
            let inode = unsafe { &*(*buf.file()).f_inode };

            assert_eq!(unsafe { (*buf.ptr).size }, size);
            assert_eq!(inode.i_size, size as i64);
            // In units of 512 bytes, and what remains. For the VFS a size has a sign.
            assert_eq!(inode.i_blocks as i64, size as i64 >> 9);
            assert_eq!(inode.i_bytes as usize, size & 511);
        }
        Ok(())
    }

    #[test]
    fn inode_numbers_go_up() -> Result {
        let number = |buf: &Buf| unsafe { (*(*buf.file()).f_inode).i_ino };
        let first = Buf::new(&FIXED)?;
        let second = Buf::new(&FIXED)?;
        let last = number(&second);

        assert!(number(&first) < last);
        drop(second);
        assert!(last < number(&Buf::new(&FIXED)?));
        Ok(())
    }

    /// What is wrong with the information, and that the exporter keeps its object.
    #[test]
    fn export_refuses() -> Result {
        static NO_MAP: bindings::dma_buf_ops = bindings::dma_buf_ops {
            map_dma_buf: None,
            ..FIXED
        };
        static NO_UNMAP: bindings::dma_buf_ops = bindings::dma_buf_ops {
            unmap_dma_buf: None,
            ..FIXED
        };
        static NO_RELEASE: bindings::dma_buf_ops = bindings::dma_buf_ops {
            release: None,
            ..FIXED
        };
        static ONLY_PIN: bindings::dma_buf_ops = bindings::dma_buf_ops {
            unpin: None,
            ..MOVABLE
        };
        static ONLY_UNPIN: bindings::dma_buf_ops = bindings::dma_buf_ops {
            pin: None,
            ..MOVABLE
        };

        let good = Export::new(&FIXED)?;
        let mut bad: [_; 7] = [good.info; 7];
        bad[0].priv_ = null_mut();
        bad[1].ops = core::ptr::null();
        bad[2].ops = &NO_MAP;
        bad[3].ops = &NO_UNMAP;
        bad[4].ops = &NO_RELEASE;
        bad[5].ops = &ONLY_PIN;
        bad[6].ops = &ONLY_UNPIN;

        for info in bad {
            let (result, count) =
                warnings(|| from_err_ptr(unsafe { bindings::dma_buf_export(&info) }));
            let mut found = false;
            for_each_buffer(|buf| found |= unsafe { (*buf).priv_ } == info.priv_);

            assert_eq!(result.err(), Some(EINVAL));
            assert_eq!(count, 1);
            assert!(!found);
        }
        assert!(good.mock.called(&[]));
        Ok(())
    }

    #[test]
    fn only_what_must_be_is_needed() -> Result {
        let (ptr, mock) = Buf::new(&LEAST)?.forget();

        unsafe { bindings::__fput_sync((*ptr).file) };
        assert!(mock.called(&[Op::Release]));
        Ok(())
    }

    #[test]
    fn a_reservation_object_of_the_exporter() -> Result {
        let resv = KBox::new(Opaque::<bindings::dma_resv>::zeroed(), GFP_KERNEL)?;
        unsafe { bindings::dma_resv_init(resv.get()) };
        let mut export = Export::new(&FIXED)?;
        export.info.resv = resv.get();
        let fence = fence()?;
        let before = fence_refs(fence.as_ref());

        let buf = export.export()?;
        assert_eq!(buf.resv(), resv.get());
        buf.add(&fence, BOOKKEEP)?;
        drop(buf);
        assert!(export.mock.called(&[Op::Release]));

        // It is the exporter's still, with its fence.
        assert_eq!(fence_refs(fence.as_ref()), before + 1);
        unsafe { bindings::dma_resv_fini(resv.get()) };
        assert_eq!(fence_refs(fence.as_ref()), before);
        Ok(())
    }

    /// Fences of a reservation object that is the buffer's own go with it.
    #[test]
    fn fences_are_put() -> Result {
        let buf = Buf::new(&FIXED)?;
        let fence = fence()?;
        let before = fence_refs(fence.as_ref());

        buf.add(&fence, BOOKKEEP)?;
        assert_eq!(fence_refs(fence.as_ref()), before + 1);
        drop(buf);
        assert_eq!(fence_refs(fence.as_ref()), before);
        Ok(())
    }

    /// Two buffers of one reservation object, as parts of one image.
    #[test]
    fn a_shared_reservation_object() -> Result {
        let first = Buf::new(&FIXED)?;
        let mut export = Export::new(&FIXED)?;
        export.info.resv = first.resv();
        let second = export.export()?;
        let fence = fence()?;
        let before = fence_refs(fence.as_ref());

        let lock = first.lock();
        let locked = second.is_locked();
        drop(lock);
        assert!(locked && !second.is_locked());
        second.add(&fence, BOOKKEEP)?;
        drop(second);
        assert_eq!(fence_refs(fence.as_ref()), before + 1);
        drop(first);
        assert_eq!(fence_refs(fence.as_ref()), before);
        Ok(())
    }

    #[test]
    #[cfg(CONFIG_MODULE_UNLOAD)]
    fn the_owner_is_kept() -> Result {
        let module = Module::new(1)?;
        let mut export = Export::new(&FIXED)?;
        export.info.owner = module.as_ptr();
        export.mock.module.store(module.as_ptr() as usize, Relaxed);

        let buf = export.export()?;
        assert_eq!(module.refs(), 2);
        drop(buf);
        assert_eq!(module.refs(), 1);
        // The code of `release` is the module's.
        assert_eq!(export.mock.owner_refs.load(Relaxed), 2);
        Ok(())
    }

    #[test]
    #[cfg(CONFIG_MODULE_UNLOAD)]
    fn an_owner_that_goes() -> Result {
        for module in [Module::new(0)?, Module::new(1)?.going()] {
            let refs = module.refs();
            let mut export = Export::new(&FIXED)?;
            export.info.owner = module.as_ptr();

            assert_eq!(export.export().err(), Some(ENOENT));
            assert_eq!(module.refs(), refs);
            assert!(export.mock.called(&[]));
        }
        Ok(())
    }

    /// A wrong argument is found before the owner is looked at.
    #[test]
    #[cfg(CONFIG_MODULE_UNLOAD)]
    fn a_refused_export_does_not_keep_the_owner() -> Result {
        let module = Module::new(1)?;
        let mut export = Export::new(&FIXED)?;
        export.info.owner = module.as_ptr();
        export.info.priv_ = null_mut();

        let export = || from_err_ptr(unsafe { bindings::dma_buf_export(&export.info) }).err();
        assert_eq!(warnings(export), (Some(EINVAL), 1));
        assert_eq!(module.refs(), 1);
        Ok(())
    }

    #[test]
    fn the_last_reference_releases() -> Result {
        let (ptr, mock) = Buf::new(&FIXED)?.forget();
        unsafe { bindings::get_file((*ptr).file) };
        let refs = Arc::into_raw(mock.clone());

        unsafe { bindings::dma_buf_put(ptr) };
        assert!(is_registered(ptr));
        assert!(mock.called(&[]));
        mock.listed.store(true, Relaxed);
        unsafe { bindings::dma_buf_put(ptr) };
        assert!(eventually(|| mock.ends_with(Op::Release)));
        assert!(mock.called(&[Op::Release]));
        // It was off the list by then.
        assert!(!mock.listed.load(Relaxed));
        assert!(!is_registered(ptr));
        drop(unsafe { Arc::from_raw(refs) });
        Ok(())
    }

    #[test]
    fn put_of_nothing() {
        assert_eq!(
            warnings(|| unsafe { bindings::dma_buf_put(null_mut()) }).1,
            1
        );
    }

    #[test]
    fn descriptors() -> Result {
        let (ptr, mock) = Buf::new(&FIXED)?.forget();
        let refs = || unsafe { bindings::file_count((*ptr).file) };
        let fd = unsafe { bindings::dma_buf_fd(ptr, 0) };

        assert!(fd >= 0);
        // The reference is the descriptor's now.
        assert_eq!(refs(), 1);
        assert!(!unsafe { bindings::get_close_on_exec(fd as u32) });

        let got = from_err_ptr(unsafe { bindings::dma_buf_get(fd) })?;
        assert_eq!(got, ptr);
        assert_eq!(refs(), 2);

        let another = unsafe { bindings::dma_buf_fd(got, bindings::O_CLOEXEC as c_int) };
        assert!(another >= 0 && another != fd);
        assert_eq!(refs(), 2);
        assert!(unsafe { bindings::get_close_on_exec(another as u32) });

        assert_eq!(unsafe { bindings::close_fd(fd as u32) }, 0);
        assert_eq!(
            from_err_ptr(unsafe { bindings::dma_buf_get(fd) }).err(),
            Some(EBADF)
        );
        assert_eq!(unsafe { bindings::close_fd(another as u32) }, 0);
        assert!(eventually(|| mock.ends_with(Op::Release)));
        assert!(mock.called(&[Op::Release]));
        Ok(())
    }

    /// Without a descriptor, the reference stays the caller's.
    #[test]
    fn no_descriptor_is_left() -> Result {
        let buf = Buf::new(&FIXED)?;
        let limit = unsafe {
            let signal = (*bindings::get_current()).signal;
            &raw mut (*signal).rlim[bindings::RLIMIT_NOFILE as usize].rlim_cur
        };

        let before = unsafe { limit.replace(0) };
        let fd = unsafe { bindings::dma_buf_fd(buf.ptr, 0) };
        unsafe { limit.write(before) };
        assert_eq!(fd, EMFILE.to_errno());
        assert_eq!(buf.refs(), 1);
        assert!(buf.mock.called(&[]));
        Ok(())
    }

    #[test]
    fn a_descriptor_of_nothing() {
        assert_eq!(
            unsafe { bindings::dma_buf_fd(null_mut(), 0) },
            EINVAL.to_errno()
        );
    }

    #[test]
    fn a_reserved_descriptor_is_installed() -> Result {
        let (ptr, mock) = Buf::new(&FIXED)?.forget();
        let fd = unsafe { bindings::get_unused_fd_flags(bindings::O_CLOEXEC) };

        assert!(fd >= 0);
        assert_eq!(
            from_err_ptr(unsafe { bindings::dma_buf_get(fd) }).err(),
            Some(EBADF)
        );
        unsafe { bindings::dma_buf_fd_install(ptr, fd) };
        let got = from_err_ptr(unsafe { bindings::dma_buf_get(fd) })?;
        assert_eq!(got, ptr);
        unsafe { bindings::dma_buf_put(got) };
        assert_eq!(unsafe { bindings::close_fd(fd as u32) }, 0);
        assert!(eventually(|| mock.ends_with(Op::Release)));
        Ok(())
    }

    #[test]
    fn get_of_what_is_not_open() {
        for fd in [-1, c_int::MAX] {
            assert_eq!(
                from_err_ptr(unsafe { bindings::dma_buf_get(fd) }).err(),
                Some(EBADF)
            );
        }
    }

    #[test]
    #[cfg(CONFIG_SYNC_FILE)]
    fn get_of_another_file() -> Result {
        let fence = fence()?;
        let fd = unsafe { bindings::get_unused_fd_flags(0) };
        assert!(fd >= 0);
        let file = unsafe { bindings::sync_file_create(fence.as_ref().as_raw()) };
        assert!(!file.is_null());
        let file = unsafe { (*file).file };
        unsafe { bindings::get_file(file) };
        unsafe { bindings::fd_install(fd as u32, file) };

        assert_eq!(
            from_err_ptr(unsafe { bindings::dma_buf_get(fd) }).err(),
            Some(EINVAL)
        );
        assert_eq!(unsafe { bindings::file_count(file) }, 2);
        assert_eq!(unsafe { bindings::close_fd(fd as u32) }, 0);
        unsafe { bindings::__fput_sync(file) };
        Ok(())
    }

    /// Which of the buffers the iterators find, in their order.
    fn found<const N: usize>(bufs: [*mut bindings::dma_buf; N]) -> (usize, [usize; N]) {
        let mut order = [usize::MAX; N];
        let mut count = 0;

        for_each_buffer(|buf| {
            if let Some(i) = bufs.iter().position(|b| *b == buf) {
                if count < N {
                    order[count] = i;
                }
                count += 1;
            }
        });
        (count, order)
    }

    #[test]
    fn the_newest_comes_first() -> Result {
        let bufs = [Buf::new(&FIXED)?, Buf::new(&FIXED)?, Buf::new(&FIXED)?];
        let ptrs = [bufs[0].ptr, bufs[1].ptr, bufs[2].ptr];

        assert_eq!(found(ptrs), (3, [2, 1, 0]));
        // It leaves no references.
        assert!(bufs.iter().all(|buf| buf.refs() == 1));

        let [oldest, middle, newest] = bufs;
        drop(middle);
        assert_eq!(found([oldest.ptr, newest.ptr]), (2, [1, 0]));
        drop(newest);
        assert_eq!(found([oldest.ptr]), (1, [0]));
        let first = unsafe { bindings::dma_buf_iter_begin() };
        assert!(!first.is_null());
        unsafe { bindings::dma_buf_put(first) };
        Ok(())
    }

    /// The buffer that the iterator is at is kept by it, and released by its next step.
    #[test]
    fn the_iterator_holds_a_buffer() -> Result {
        let older = Buf::new(&FIXED)?;
        let newer = Buf::new(&FIXED)?;
        let mut at = unsafe { bindings::dma_buf_iter_begin() };

        while at != newer.ptr {
            at = unsafe { bindings::dma_buf_iter_next(at) };
            assert!(!at.is_null());
        }
        assert_eq!(newer.refs(), 2);
        let (_, mock) = newer.forget();
        // What was the caller's.
        unsafe { bindings::dma_buf_put(at) };
        assert!(mock.called(&[]));

        while at != older.ptr {
            at = unsafe { bindings::dma_buf_iter_next(at) };
            assert!(!at.is_null());
        }
        assert_eq!(older.refs(), 2);
        unsafe { bindings::dma_buf_put(at) };
        assert!(eventually(|| mock.ends_with(Op::Release)));
        assert_eq!(older.refs(), 1);
        Ok(())
    }

    /// A buffer without references, which is not released yet, is not found, be it the first or
    /// another one.
    #[test]
    fn the_iterator_skips_what_dies() -> Result {
        let older = Buf::new(&FIXED)?;
        let (middle, mock_of_middle) = Buf::new(&FIXED)?.forget();
        let newer = Buf::new(&FIXED)?;
        let (first, mock_of_first) = Buf::new(&FIXED)?.forget();

        // The work item that releases them may come first; then they are not found, either.
        unsafe {
            bindings::dma_buf_put(middle);
            bindings::dma_buf_put(first);
        }
        assert_eq!(found([middle, first]).0, 0);
        assert_eq!(found([older.ptr, newer.ptr]), (2, [1, 0]));
        assert!(eventually(|| mock_of_middle.ends_with(Op::Release)));
        assert!(eventually(|| mock_of_first.ends_with(Op::Release)));
        Ok(())
    }

    /// xe and amdgpu put operations of their own in the place of the common ones.
    #[test]
    fn operations_may_be_replaced() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&FIXED)?;

        drop(buf.attach(&device)?);
        assert!(buf.mock.called(&[Op::Attach, Op::Detach]));

        // Now its memory may move, so who is not dynamic pins.
        unsafe { (*buf.ptr).ops = &MOVABLE };
        let attachment = buf.attach(&device)?;
        let table = attachment.map(TO_DEVICE)?;
        assert!(buf.mock.called(&[Op::Attach, Op::Pin, Op::Map]));
        attachment.unmap(table, TO_DEVICE);
        assert!(buf.mock.called(&[Op::Unmap, Op::Unpin]));
        drop(attachment);
        assert!(buf.mock.called(&[Op::Detach]));

        unsafe { (*buf.ptr).ops = &LEAST };
        assert_eq!(
            unsafe { bindings::dma_buf_begin_cpu_access(buf.ptr, TO_DEVICE) },
            0
        );
        assert!(buf.mock.called(&[]));
        Ok(())
    }

    #[test]
    fn release_with_an_attachment() -> Result {
        let device = Device::new()?;
        let (ptr, mock) = Buf::new(&FIXED)?.forget();
        let attachment = from_err_ptr(unsafe { bindings::dma_buf_attach(ptr, device.as_ptr()) })?;

        let ((), count) = warnings(|| unsafe { bindings::__fput_sync((*ptr).file) });
        assert_eq!(count, 1);
        assert!(mock.called(&[Op::Attach, Op::Release]));
        // Nobody can detach it any more.
        unsafe { bindings::kfree(attachment.cast()) };
        Ok(())
    }
}
