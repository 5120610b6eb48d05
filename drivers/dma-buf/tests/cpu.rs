// SPDX-License-Identifier: GPL-2.0

//! Access by the CPU: begin and end, vmap, and mmap by another driver.

#[kernel::macros::kunit_tests(dma_buf_core_cpu)]
mod tests {
    use crate::mock::*;

    use core::ptr::null_mut;

    use kernel::{
        bindings,
        error::to_result,
        page::PAGE_SIZE,
        prelude::*,
        sync::atomic::Relaxed,
        types::Opaque, //
    };

    fn begin(buf: &Buf, direction: bindings::dma_data_direction) -> Result {
        to_result(unsafe { bindings::dma_buf_begin_cpu_access(buf.ptr, direction) })
    }

    fn end(buf: &Buf, direction: bindings::dma_data_direction) -> Result {
        to_result(unsafe { bindings::dma_buf_end_cpu_access(buf.ptr, direction) })
    }

    #[test]
    fn access_is_told_to_the_exporter() -> Result {
        let buf = Buf::new(&FIXED)?;

        for direction in [BIDIRECTIONAL, TO_DEVICE, FROM_DEVICE] {
            begin(&buf, direction)?;
            assert!(buf.mock.was_for(direction));
            assert!(buf.mock.called(&[Op::Begin]));
            end(&buf, direction)?;
            assert!(buf.mock.was_for(direction));
            assert!(buf.mock.called(&[Op::End]));
        }
        assert!(!buf.is_locked());
        Ok(())
    }

    #[test]
    fn an_exporter_that_need_not_know() -> Result {
        let buf = Buf::new(&LEAST)?;

        begin(&buf, BIDIRECTIONAL)?;
        end(&buf, BIDIRECTIONAL)?;
        assert!(buf.mock.called(&[]));
        Ok(())
    }

    #[test]
    fn access_fails() -> Result {
        let buf = Buf::new(&FIXED)?;
        let fence = fence()?;
        buf.add(&fence, WRITE)?;

        // Nobody waits for the fence then.
        buf.mock.fail(Op::Begin, EIO);
        let result = interrupted(|| begin(&buf, BIDIRECTIONAL));
        assert_eq!(result.err(), Some(EIO));
        assert!(buf.mock.called(&[Op::Begin]));
        buf.mock.fail(Op::End, ENXIO);
        let result = interrupted(|| end(&buf, BIDIRECTIONAL));
        assert_eq!(result.err(), Some(ENXIO));
        assert!(buf.mock.called(&[Op::End]));
        assert!(!fence.as_ref().is_signaled());
        Ok(())
    }

    #[test]
    fn access_to_nothing() {
        let begin = || unsafe { bindings::dma_buf_begin_cpu_access(null_mut(), TO_DEVICE) };
        assert_eq!(warnings(begin), (EINVAL.to_errno(), 1));
        // The core in C warns, and looks at it nevertheless.
        if cfg!(CONFIG_DMA_SHARED_BUFFER_RUST) {
            let end = || unsafe { bindings::dma_buf_end_cpu_access(null_mut(), TO_DEVICE) };
            assert_eq!(warnings(end), (EINVAL.to_errno(), 1));
        }
    }

    /// Whether access in a direction waits for a fence, after it has asked the exporter.
    fn waits(
        ops: &'static bindings::dma_buf_ops,
        direction: bindings::dma_data_direction,
        usage: bindings::dma_resv_usage,
    ) -> Result<bool> {
        let buf = Buf::new(ops)?;
        let fence = fence()?;
        let asked: &[_] = if ops.begin_cpu_access.is_some() {
            &[Op::Begin]
        } else {
            &[]
        };

        buf.add(&fence, usage)?;
        let result = interrupted(|| begin(&buf, direction));
        if !buf.mock.called(asked) {
            return Err(EINVAL);
        }
        match result {
            Err(e) if e != ERESTARTSYS => Err(e),
            result => Ok(result.is_err()),
        }
    }

    #[test]
    fn who_reads_waits_for_writers() -> Result {
        assert!(waits(&FIXED, FROM_DEVICE, WRITE)?);
        assert!(waits(&FIXED, FROM_DEVICE, KERNEL)?);
        assert!(waits(&LEAST, FROM_DEVICE, WRITE)?);
        assert!(!waits(&FIXED, FROM_DEVICE, READ)?);
        assert!(!waits(&FIXED, FROM_DEVICE, BOOKKEEP)?);
        Ok(())
    }

    #[test]
    fn who_writes_waits_for_all() -> Result {
        for direction in [TO_DEVICE, BIDIRECTIONAL] {
            assert!(waits(&FIXED, direction, WRITE)?);
            assert!(waits(&FIXED, direction, READ)?);
            assert!(waits(&FIXED, direction, KERNEL)?);
            assert!(!waits(&FIXED, direction, BOOKKEEP)?);
        }
        Ok(())
    }

    #[test]
    fn who_names_no_direction_waits_for_writers() -> Result {
        assert!(waits(&FIXED, NONE, WRITE)?);
        assert!(!waits(&FIXED, NONE, READ)?);
        Ok(())
    }

    #[test]
    fn the_wait_ends_with_the_fence() -> Result {
        let buf = Buf::new(&FIXED)?;
        let (signalled, pending) = (fence()?, fence()?);

        buf.add(&signalled, WRITE)?;
        buf.add(&pending, WRITE)?;
        signalled.signal(Ok(()));
        signal_after(Op::Begin, pending, &buf.mock)?;
        begin(&buf, FROM_DEVICE)?;
        assert!(buf.mock.called(&[Op::Begin, Op::Signalled]));

        // Both have signalled by now.
        interrupted(|| begin(&buf, FROM_DEVICE))?;
        assert!(buf.mock.called(&[Op::Begin]));
        Ok(())
    }

    #[test]
    fn the_end_of_access_waits_for_nobody() -> Result {
        let buf = Buf::new(&FIXED)?;
        let fence = fence()?;
        buf.add(&fence, WRITE)?;

        interrupted(|| end(&buf, BIDIRECTIONAL))?;
        assert!(buf.mock.called(&[Op::End]));
        assert!(!fence.as_ref().is_signaled());
        Ok(())
    }

    /// The address that vmap gives, or its error; the map starts out as something else.
    fn vmap(buf: *mut bindings::dma_buf, locked: bool) -> (Result, bindings::iosys_map) {
        let mut map = bindings::iosys_map::default();

        map.__bindgen_anon_1.vaddr = 0x5a5a as *mut _;
        map.is_iomem = true;
        let result = to_result(if locked {
            unsafe { bindings::dma_buf_vmap(buf, &mut map) }
        } else {
            unsafe { bindings::dma_buf_vmap_unlocked(buf, &mut map) }
        });
        (result, map)
    }

    fn address(map: &bindings::iosys_map) -> usize {
        unsafe { map.__bindgen_anon_1.vaddr as usize }
    }

    fn vunmap(buf: *mut bindings::dma_buf, map: &mut bindings::iosys_map, locked: bool) {
        if locked {
            unsafe { bindings::dma_buf_vunmap(buf, map) };
        } else {
            unsafe { bindings::dma_buf_vunmap_unlocked(buf, map) };
        }
    }

    /// Whether the exporter is asked for the first mapping, and told of the last.
    fn vmap_counts(buf: &Buf, locked: bool) -> bool {
        let is_mapped = |(result, map): &(Result, bindings::iosys_map)| {
            result.is_ok()
                && address(map) == buf.mock.memory() as usize
                && map.is_iomem == buf.mock.is_iomem.load(Relaxed)
        };

        let mut first = vmap(buf.ptr, locked);
        let mut good = is_mapped(&first) && buf.mock.called(&[Op::Vmap]);
        // The exporter is not asked again, so it does not fail, either.
        buf.mock.fail(Op::Vmap, EIO);
        let mut second = vmap(buf.ptr, locked);
        let mut third = vmap(buf.ptr, locked);
        good &= is_mapped(&second) && is_mapped(&third);
        buf.mock.succeed();

        vunmap(buf.ptr, &mut third.1, locked);
        vunmap(buf.ptr, &mut first.1, locked);
        good &= buf.mock.called(&[]);
        vunmap(buf.ptr, &mut second.1, locked);
        good &= buf.mock.called(&[Op::Vunmap]);
        // Post-mortem tools take what is there for a mapping.
        good && address(unsafe { &(*buf.ptr).vmap_ptr }) == 0 && buf.is_locked() == locked
    }

    #[test]
    fn vmap_asks_the_exporter_once() -> Result {
        for is_iomem in [false, true] {
            let buf = Buf::new(&FIXED)?;
            buf.mock.is_iomem.store(is_iomem, Relaxed);

            // Again, as all has to be as at first.
            for _ in 0..2 {
                assert!(vmap_counts(&buf, false));
                let lock = buf.lock();
                let good = vmap_counts(&buf, true);
                drop(lock);
                assert!(good);
            }
        }
        Ok(())
    }

    #[test]
    fn vmap_is_not_for_every_exporter() -> Result {
        let buf = Buf::new(&LEAST)?;

        let (result, map) = vmap(buf.ptr, false);
        assert_eq!(result.err(), Some(EINVAL));
        assert_eq!(address(&map), 0);
        assert!(!map.is_iomem);
        assert!(!buf.is_locked());
        Ok(())
    }

    /// `vunmap` need not be there.
    #[test]
    fn vmap_without_vunmap() -> Result {
        static NO_VUNMAP: bindings::dma_buf_ops = bindings::dma_buf_ops {
            vunmap: None,
            ..FIXED
        };
        let buf = Buf::new(&NO_VUNMAP)?;

        for _ in 0..2 {
            let (result, mut map) = vmap(buf.ptr, false);
            assert!(result.is_ok() && buf.mock.called(&[Op::Vmap]));
            vunmap(buf.ptr, &mut map, false);
            assert!(buf.mock.called(&[]));
        }
        Ok(())
    }

    /// The core in C has a warning for it, once: out of memory is a panic then, where warnings are.
    #[test]
    fn vmap_fails() -> Result {
        let buf = Buf::new(&FIXED)?;

        buf.mock.fail(Op::Vmap, ENOMEM);
        for _ in 0..2 {
            let ((result, map), count) = warnings(|| vmap(buf.ptr, false));
            assert_eq!(result.err(), Some(ENOMEM));
            assert_eq!(address(&map), 0);
            assert!(!map.is_iomem);
            assert!(buf.mock.called(&[Op::Vmap]));
            assert!(count <= i32::from(cfg!(not(CONFIG_DMA_SHARED_BUFFER_RUST))));
        }
        assert!(!buf.is_locked());

        // Nothing of it remains.
        buf.mock.succeed();
        let (result, mut map) = vmap(buf.ptr, false);
        assert!(result.is_ok() && buf.mock.called(&[Op::Vmap]));
        vunmap(buf.ptr, &mut map, false);
        assert!(buf.mock.called(&[Op::Vunmap]));
        Ok(())
    }

    #[test]
    fn vmap_of_nothing() {
        for locked in [false, true] {
            let ((result, mut map), count) = warnings(|| vmap(null_mut(), locked));
            assert_eq!(result.err(), Some(EINVAL));
            assert_eq!((address(&map), count), (0, 1));
            assert_eq!(warnings(|| vunmap(null_mut(), &mut map, locked)).1, 1);
        }
    }

    /// With the core in C this ends the system.
    #[test]
    #[cfg(CONFIG_DMA_SHARED_BUFFER_RUST)]
    fn vunmap_of_what_is_not_mapped() -> Result {
        let buf = Buf::new(&FIXED)?;
        let mut map = bindings::iosys_map::default();

        assert_eq!(warnings(|| vunmap(buf.ptr, &mut map, false)).1, 1);
        assert!(buf.mock.called(&[]));

        let (result, mut mapped) = vmap(buf.ptr, false);
        result?;
        map.__bindgen_anon_1.vaddr = 0x5a5a as *mut _;
        assert_eq!(warnings(|| vunmap(buf.ptr, &mut map, false)).1, 1);
        assert!(buf.mock.called(&[Op::Vmap]));
        vunmap(buf.ptr, &mut mapped, false);
        assert!(buf.mock.called(&[Op::Vunmap]));
        Ok(())
    }

    /// With the core in C this ends the system; with the one in Rust the memory is never freed, as
    /// somebody has its address, so this is a leak.
    #[test]
    #[cfg(all(CONFIG_DMA_SHARED_BUFFER_RUST, not(CONFIG_DEBUG_KMEMLEAK)))]
    fn release_of_what_is_mapped() -> Result {
        let (ptr, mock) = Buf::new(&FIXED)?.forget();

        vmap(ptr, false).0?;
        let ((), count) = warnings(|| unsafe { bindings::__fput_sync((*ptr).file) });
        assert_eq!(count, 1);
        assert!(mock.called(&[Op::Vmap]));
        assert!(!is_registered(ptr));
        Ok(())
    }

    /// A mapping of a driver's own node, of as many pages.
    struct Vma {
        vma: KBox<Opaque<bindings::vm_area_struct>>,
        file: Buf,
    }

    impl Vma {
        fn new(pages: usize) -> Result<Self> {
            let vma = KBox::new(Opaque::<bindings::vm_area_struct>::zeroed(), GFP_KERNEL)?;
            let file = Buf::new(&FIXED)?;

            file.get();
            unsafe {
                let vma = vma.get();
                (*vma).vm_file = file.file();
                (*vma).vm_pgoff = 77;
                (*vma).__bindgen_anon_1.__bindgen_anon_1.vm_start = PAGE_SIZE;
                (*vma).__bindgen_anon_1.__bindgen_anon_1.vm_end = (pages + 1) * PAGE_SIZE;
            }
            Ok(Self { vma, file })
        }

        fn map(&self, buf: &Buf, pgoff: usize) -> Result {
            to_result(unsafe { bindings::dma_buf_mmap(buf.ptr, self.vma.get(), pgoff) })
        }

        /// Whether it is as it was.
        fn untouched(&self) -> bool {
            unsafe {
                (*self.vma.get()).vm_file == self.file.file()
                    && (*self.vma.get()).vm_pgoff == 77
                    && self.file.refs() == 2
            }
        }
    }

    impl Drop for Vma {
        fn drop(&mut self) {
            unsafe { bindings::__fput_sync((*self.vma.get()).vm_file) };
        }
    }

    #[test]
    fn mmap_by_another_driver() -> Result {
        for (pages, pgoff) in [(3, 0), (1, 0), (1, 2), (2, 1)] {
            let buf = Buf::new(&FIXED)?;
            let vma = Vma::new(pages)?;

            vma.map(&buf, pgoff)?;
            assert!(buf.mock.called(&[Op::Mmap]));
            assert_eq!(buf.mock.pgoff.load(Relaxed), pgoff);
            unsafe {
                assert_eq!((*vma.vma.get()).vm_file, buf.file());
                assert_eq!((*vma.vma.get()).vm_pgoff, pgoff);
            }
            // The reference to the old file went, the one to the new came.
            assert_eq!((vma.file.refs(), buf.refs()), (1, 2));
            drop(vma);
            assert_eq!(buf.refs(), 1);
        }
        Ok(())
    }

    #[test]
    fn mmap_outside_of_the_buffer() -> Result {
        for (pages, pgoff, error) in [
            (4, 0, EINVAL),
            (3, 1, EINVAL),
            (1, 3, EINVAL),
            (2, usize::MAX, EOVERFLOW),
            (1, usize::MAX, EOVERFLOW),
            (1, usize::MAX - 1, EINVAL),
        ] {
            let buf = Buf::new(&FIXED)?;
            let vma = Vma::new(pages)?;

            assert_eq!(vma.map(&buf, pgoff).err(), Some(error));
            assert!(vma.untouched() && buf.mock.called(&[]));
        }
        // A page that is only in part in the buffer is not.
        let buf = Export::new(&FIXED)?.sized(SIZE - 1).export()?;
        assert_eq!(Vma::new(3)?.map(&buf, 0).err(), Some(EINVAL));
        Vma::new(2)?.map(&buf, 0)?;
        Ok(())
    }

    #[test]
    fn mmap_is_not_for_every_exporter() -> Result {
        let vma = Vma::new(1)?;

        assert_eq!(vma.map(&Buf::new(&LEAST)?, 0).err(), Some(EINVAL));
        assert!(vma.untouched());
        Ok(())
    }

    #[test]
    fn mmap_fails() -> Result {
        let buf = Buf::new(&FIXED)?;

        let vma = Vma::new(1)?;

        buf.mock.fail(Op::Mmap, EAGAIN);
        assert_eq!(vma.map(&buf, 1).err(), Some(EAGAIN));
        assert!(buf.mock.called(&[Op::Mmap]));
        // The mapping has the file of the buffer by then, for its caller to put.
        assert_eq!(unsafe { (*vma.vma.get()).vm_file }, buf.file());
        drop(vma);
        assert_eq!(buf.refs(), 1);
        Ok(())
    }

    #[test]
    fn mmap_of_nothing() -> Result {
        let buf = Buf::new(&FIXED)?;
        let vma = Vma::new(1)?;

        for (b, v) in [(null_mut(), vma.vma.get()), (buf.ptr, null_mut())] {
            let mmap = || unsafe { bindings::dma_buf_mmap(b, v, 0) };
            assert_eq!(warnings(mmap), (EINVAL.to_errno(), 1));
        }
        assert!(vma.untouched());
        Ok(())
    }
}
