// SPDX-License-Identifier: GPL-2.0

//! Importers: attach, pin, map, and what they are told when the memory moves.

#[kernel::macros::kunit_tests(dma_buf_core_importer)]
mod tests {
    use crate::mock::*;

    use core::ptr::null_mut;

    use kernel::{
        bindings,
        error::from_err_ptr,
        prelude::*,
        sync::{
            atomic::{
                Acquire,
                Atomic,
                Relaxed,
                Release, //
            },
            Arc, //
        },
        time::{
            delay::fsleep,
            Delta, //
        }, //
    };

    const STATIC: Option<&bindings::dma_buf_attach_ops> = None;

    #[test]
    fn the_exporter_sees_a_complete_attachment() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&FIXED)?;
        let attachment = buf.attach(&device)?;

        // The mock has looked at the rest.
        assert!(buf.mock.called(&[Op::Attach]));
        assert!(!buf.mock.listed.load(Relaxed));
        assert!(!buf.mock.peer2peer.load(Relaxed));
        assert_eq!(buf.mock.attached.load(Relaxed), attachment.ptr as usize);
        assert_eq!(attachment.dmabuf, buf.ptr);
        assert_eq!(attachment.dev, device.as_ptr());
        assert!(attachment.importer_ops.is_null() && attachment.importer_priv.is_null());

        unsafe { assert!(!is_empty(&raw const (*buf.ptr).attachments)) };
        drop(attachment);
        assert!(buf.mock.called(&[Op::Detach]));
        assert!(!buf.mock.listed.load(Relaxed));
        unsafe { assert!(is_empty(&raw const (*buf.ptr).attachments)) };
        assert_eq!(buf.refs(), 1);
        Ok(())
    }

    /// The list of attachments changes under the reservation lock alone.
    #[test]
    fn attach_and_detach_wait_for_the_lock() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&LEAST)?;
        let (raw, dev) = (buf.ptr as usize, device.as_ptr() as usize);
        let is_listed = || unsafe { !is_empty(&raw const (*buf.ptr).attachments) };
        const STARTED: usize = 1;
        const DETACHED: usize = 2;
        let state = Arc::new(Atomic::new(0usize), GFP_KERNEL)?;

        let lock = buf.lock();
        let thread_state = state.clone();
        // SAFETY: Nothing goes before the thread is done: an assertion that fails frees nothing.
        unsafe {
            in_thread(move || {
                thread_state.store(STARTED, Release);
                let attach = bindings::dma_buf_attach(
                    raw as *mut bindings::dma_buf,
                    dev as *mut bindings::device,
                );
                thread_state.store(attach as usize, Release);
            })
        }?;
        let started = eventually(|| state.load(Acquire) != 0);
        fsleep(Delta::from_millis(50));
        let early = is_listed() || state.load(Acquire) != STARTED;
        drop(lock);
        assert!(started && eventually(|| state.load(Acquire) != STARTED));
        let attach = from_err_ptr(state.load(Acquire) as *mut bindings::dma_buf_attachment)?;
        assert!(!early && is_listed());

        let lock = buf.lock();
        let attach = attach as usize;
        let thread_state = state.clone();
        // SAFETY: As above.
        unsafe {
            in_thread(move || {
                thread_state.store(STARTED, Release);
                bindings::dma_buf_detach(
                    raw as *mut bindings::dma_buf,
                    attach as *mut bindings::dma_buf_attachment,
                );
                thread_state.store(DETACHED, Release);
            })
        }?;
        let started = eventually(|| state.load(Acquire) != attach);
        fsleep(Delta::from_millis(50));
        let early = !is_listed() || state.load(Acquire) != STARTED;
        drop(lock);
        assert!(started && eventually(|| state.load(Acquire) == DETACHED));
        assert!(!early && !is_listed());
        Ok(())
    }

    #[test]
    fn a_dynamic_importer_is_known_before() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&MOVABLE)?;

        let attachment = buf.attach_dynamic(&device, &FOLLOWS, 0x1234)?;
        assert!(buf.mock.peer2peer.load(Relaxed) && attachment.peer2peer);
        assert_eq!(buf.mock.importer.load(Relaxed), 0x1234);
        assert_eq!(attachment.importer_ops, &raw const FOLLOWS);
        assert_eq!(attachment.importer_priv as usize, 0x1234);
        drop(attachment);

        let attachment = buf.attach_dynamic(&device, &DEAF, 0)?;
        assert!(!buf.mock.peer2peer.load(Relaxed) && !attachment.peer2peer);
        drop(attachment);

        // The exporter has the last word.
        buf.mock.out_of_reach.store(true, Relaxed);
        let attachment = buf.attach_dynamic(&device, &FOLLOWS, 0)?;
        assert!(buf.mock.peer2peer.load(Relaxed) && !attachment.peer2peer);
        Ok(())
    }

    #[test]
    fn an_exporter_without_attach() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&NO_ATTACH)?;

        let attachment = buf.attach(&device)?;
        unsafe { assert!(!is_empty(&raw const (*buf.ptr).attachments)) };
        drop(attachment);
        assert!(buf.mock.called(&[]));
        unsafe { assert!(is_empty(&raw const (*buf.ptr).attachments)) };
        Ok(())
    }

    #[test]
    fn attach_fails() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&FIXED)?;

        buf.mock.fail(Op::Attach, EBUSY);
        assert_eq!(buf.attach(&device).err(), Some(EBUSY));
        assert!(buf.mock.called(&[Op::Attach]));
        unsafe { assert!(is_empty(&raw const (*buf.ptr).attachments)) };
        Ok(())
    }

    #[test]
    fn attach_of_nothing() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&FIXED)?;

        for (ptr, dev) in [(null_mut(), device.as_ptr()), (buf.ptr, null_mut())] {
            let attach = || from_err_ptr(unsafe { bindings::dma_buf_attach(ptr, dev) }).err();
            assert_eq!(warnings(attach), (Some(EINVAL), 1));
        }
        assert!(buf.mock.called(&[]));
        Ok(())
    }

    /// The list that exporters walk has the newest attachment first.
    #[test]
    fn attachments_are_listed() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&FIXED)?;
        let first = buf.attach(&device)?;
        let second = buf.attach(&device)?;
        let third = buf.attach(&device)?;
        let listed = |expected: &[&Attachment<'_>]| unsafe {
            let head = &raw mut (*buf.ptr).attachments;
            let mut node = (*head).next;

            expected.iter().all(|attachment| {
                let ours = node == &raw mut (*attachment.ptr).node;
                node = (*node).next;
                ours
            }) && node == head
        };

        assert!(listed(&[&third, &second, &first]));
        drop(second);
        assert!(listed(&[&third, &first]));
        drop(third);
        assert!(listed(&[&first]));
        Ok(())
    }

    #[test]
    fn detach_of_what_is_not_attached() -> Result {
        let device = Device::new()?;
        let (buf, other) = (Buf::new(&FIXED)?, Buf::new(&FIXED)?);
        let attachment = buf.attach(&device)?;
        buf.mock.forget_calls();

        for (b, a) in [
            (other.ptr, attachment.ptr),
            (null_mut(), attachment.ptr),
            (buf.ptr, null_mut()),
        ] {
            let detach = || unsafe { bindings::dma_buf_detach(b, a) };
            assert_eq!(warnings(detach).1, 1);
        }
        // It is attached still.
        assert!(buf.mock.called(&[]) && other.mock.called(&[]));
        unsafe { assert!(!is_empty(&raw const (*buf.ptr).attachments)) };
        drop(attachment);
        assert!(buf.mock.called(&[Op::Detach]));
        Ok(())
    }

    #[test]
    fn pin_and_unpin() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&MOVABLE)?;
        let attachment = buf.attach_dynamic(&device, &FOLLOWS, 0)?;
        let pin = || {
            let _lock = buf.lock();
            unsafe { bindings::dma_buf_pin(attachment.ptr) }
        };
        buf.mock.forget_calls();

        assert_eq!(pin(), 0);
        assert!(buf.mock.called(&[Op::Pin]));
        {
            let _lock = buf.lock();
            unsafe { bindings::dma_buf_unpin(attachment.ptr) };
        }
        assert!(buf.mock.called(&[Op::Unpin]));

        for error in [ENOSPC, EINTR] {
            buf.mock.fail(Op::Pin, error);
            assert_eq!(pin(), error.to_errno());
            assert!(buf.mock.called(&[Op::Pin]));
        }
        buf.mock.succeed();
        assert_eq!(pin(), 0);
        {
            let _lock = buf.lock();
            unsafe { bindings::dma_buf_unpin(attachment.ptr) };
        }
        assert!(buf.mock.called(&[Op::Pin, Op::Unpin]));
        Ok(())
    }

    /// Memory that stays where it is needs no pinning.
    #[test]
    fn pin_of_what_does_not_move() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&FIXED)?;
        let attachment = buf.attach_dynamic(&device, &FOLLOWS, 0)?;
        buf.mock.forget_calls();

        let lock = buf.lock();
        let pinned = unsafe { bindings::dma_buf_pin(attachment.ptr) };
        unsafe { bindings::dma_buf_unpin(attachment.ptr) };
        drop(lock);
        assert_eq!(pinned, 0);
        assert!(buf.mock.called(&[]));
        Ok(())
    }

    /// It is not for static importers: they get a warning, and what they asked for.
    #[test]
    fn pin_by_a_static_importer() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&MOVABLE)?;
        let attachment = buf.attach(&device)?;
        buf.mock.forget_calls();

        let lock = buf.lock();
        let pinned = warnings(|| unsafe { bindings::dma_buf_pin(attachment.ptr) });
        let unpinned = warnings(|| unsafe { bindings::dma_buf_unpin(attachment.ptr) });
        drop(lock);
        assert_eq!(pinned, (0, 1));
        assert_eq!(unpinned.1, 1);
        assert!(buf.mock.called(&[Op::Pin, Op::Unpin]));
        Ok(())
    }

    /// Attaches and maps, in both ways, and expects these calls.
    fn map_and_unmap(
        ops: &'static bindings::dma_buf_ops,
        importer: Option<&'static bindings::dma_buf_attach_ops>,
        mapped: &[Op],
        unmapped: &[Op],
    ) -> Result<bool> {
        let device = Device::new()?;
        let buf = Buf::new(ops)?;
        let attachment = match importer {
            None => buf.attach(&device)?,
            Some(importer) => buf.attach_dynamic(&device, importer, 0)?,
        };
        let mut good = buf.mock.called(&[Op::Attach]);

        for direction in [BIDIRECTIONAL, TO_DEVICE, FROM_DEVICE] {
            let table = attachment.map(direction)?;
            good &= buf.mock.called(mapped) && buf.mock.was_for(direction);
            attachment.unmap(table, direction);
            good &= buf.mock.called(unmapped) && !buf.is_locked();

            let table = attachment.map_unlocked(direction)?;
            good &= buf.mock.called(mapped) && !buf.is_locked();
            good &= buf.mock.was_for(direction);
            unsafe {
                bindings::dma_buf_unmap_attachment_unlocked(attachment.ptr, table, direction)
            };
            good &= buf.mock.called(unmapped) && !buf.is_locked();
        }
        Ok(good)
    }

    #[test]
    fn map_by_who_must_pin() -> Result {
        let (map, unmap) = (&[Op::Pin, Op::Map], &[Op::Unmap, Op::Unpin]);
        assert!(map_and_unmap(&MOVABLE, STATIC, map, unmap)?);
        Ok(())
    }

    #[test]
    fn map_by_who_follows() -> Result {
        assert!(map_and_unmap(
            &MOVABLE,
            Some(&FOLLOWS),
            &[Op::Map],
            &[Op::Unmap]
        )?);
        assert!(map_and_unmap(
            &MOVABLE,
            Some(&DEAF),
            &[Op::Map],
            &[Op::Unmap]
        )?);
        Ok(())
    }

    #[test]
    fn map_of_what_does_not_move() -> Result {
        assert!(map_and_unmap(&FIXED, STATIC, &[Op::Map], &[Op::Unmap])?);
        assert!(map_and_unmap(
            &FIXED,
            Some(&FOLLOWS),
            &[Op::Map],
            &[Op::Unmap]
        )?);
        Ok(())
    }

    #[test]
    fn pin_for_a_mapping_fails() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&MOVABLE)?;
        let attachment = buf.attach(&device)?;
        buf.mock.forget_calls();

        buf.mock.fail(Op::Pin, ENOMEM);
        assert_eq!(attachment.map(TO_DEVICE).err(), Some(ENOMEM));
        assert!(buf.mock.called(&[Op::Pin]));
        assert_eq!(attachment.map_unlocked(TO_DEVICE).err(), Some(ENOMEM));
        assert!(buf.mock.called(&[Op::Pin]));
        assert!(!buf.is_locked());
        Ok(())
    }

    /// To attach was the time to say that a device cannot get at the memory: the core warns. The
    /// one in C does so once.
    #[test]
    fn pin_for_a_mapping_is_too_late_for_ebusy() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&MOVABLE)?;
        let attachment = buf.attach(&device)?;
        buf.mock.forget_calls();

        buf.mock.fail(Op::Pin, EBUSY);
        let (result, count) = warnings(|| attachment.map(TO_DEVICE));
        assert_eq!(result.err(), Some(EBUSY));
        assert!(count == 1 || count == 0 && cfg!(not(CONFIG_DMA_SHARED_BUFFER_RUST)));
        assert!(buf.mock.called(&[Op::Pin]));
        Ok(())
    }

    #[test]
    fn map_fails() -> Result {
        let device = Device::new()?;
        for (ops, calls) in [
            (&MOVABLE, &[Op::Pin, Op::Map, Op::Unpin][..]),
            (&FIXED, &[Op::Map]),
        ] {
            let buf = Buf::new(ops)?;
            let attachment = buf.attach(&device)?;
            buf.mock.forget_calls();

            buf.mock.fail(Op::Map, EIO);
            assert_eq!(attachment.map(TO_DEVICE).err(), Some(EIO));
            assert!(buf.mock.called(calls));
            assert_eq!(attachment.map_unlocked(TO_DEVICE).err(), Some(EIO));
            assert!(buf.mock.called(calls));
            assert!(!buf.is_locked());

            buf.mock.succeed();
            buf.mock.no_table.store(true, Relaxed);
            assert_eq!(attachment.map(TO_DEVICE).err(), Some(ENOMEM));
            assert!(buf.mock.called(calls));
            assert_eq!(attachment.map_unlocked(TO_DEVICE).err(), Some(ENOMEM));
            assert!(buf.mock.called(calls) && !buf.is_locked());
        }
        Ok(())
    }

    #[test]
    fn map_of_nothing() -> Result {
        let map = || {
            from_err_ptr(unsafe { bindings::dma_buf_map_attachment(null_mut(), TO_DEVICE) }).err()
        };
        let unlocked = || {
            from_err_ptr(unsafe {
                bindings::dma_buf_map_attachment_unlocked(null_mut(), TO_DEVICE)
            })
            .err()
        };

        assert_eq!(warnings(map), (Some(EINVAL), 1));
        assert_eq!(warnings(unlocked), (Some(EINVAL), 1));
        Ok(())
    }

    #[test]
    fn unmap_of_nothing() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&FIXED)?;
        let attachment = buf.attach(&device)?;
        let table = attachment.map(TO_DEVICE)?;
        buf.mock.forget_calls();

        for (a, t) in [(null_mut(), table), (attachment.ptr, null_mut())] {
            let unlocked =
                || unsafe { bindings::dma_buf_unmap_attachment_unlocked(a, t, TO_DEVICE) };
            assert_eq!(warnings(unlocked).1, 1);
            let lock = buf.lock();
            let unmap = || unsafe { bindings::dma_buf_unmap_attachment(a, t, TO_DEVICE) };
            let count = warnings(unmap).1;
            drop(lock);
            assert_eq!(count, 1);
        }
        assert!(buf.mock.called(&[]));
        attachment.unmap(table, TO_DEVICE);
        assert!(buf.mock.called(&[Op::Unmap]));
        Ok(())
    }

    /// Importers get a table without pages when that is debugged, and the exporter's own if not.
    #[test]
    fn the_table_of_an_importer() -> Result {
        const SEGMENTS: u32 = 3;
        let device = Device::new()?;
        let buf = Export::of(Mock::with_segments(SEGMENTS)?, &FIXED)?.export()?;
        let attachment = buf.attach(&device)?;
        let table = attachment.map(BIDIRECTIONAL)?;
        let debugged = cfg!(CONFIG_DMABUF_DEBUG);

        let hidden = table != buf.mock.table();
        assert_eq!(hidden, debugged);
        unsafe {
            assert_eq!((*table).nents, SEGMENTS);
            // What it is made of, for the comparison below.
            assert_eq!((*buf.mock.table()).orig_nents, SEGMENTS + 1);
            assert!((*(*buf.mock.table()).sgl).page_link & !3 != 0);
            let mut sg = (*table).sgl;

            for i in 0..SEGMENTS as usize {
                let (addr, len) = Mock::segment(i, SEGMENTS);

                assert!(!sg.is_null());
                assert_eq!(bindings::sg_dma_address(sg) as u64, addr);
                assert_eq!(bindings::sg_dma_len(sg), len);
                if debugged {
                    // The two lowest bits tell the end of a list.
                    assert_eq!((*sg).page_link & !3, 0);
                    assert_eq!((*sg).offset, 0);
                    assert!(cfg!(not(CONFIG_NEED_SG_DMA_LENGTH)) || (*sg).length == 0);
                }
                sg = bindings::sg_next(sg);
            }
            assert_eq!(sg.is_null(), debugged);
        }
        buf.mock.forget_calls();
        // The exporter gets its own back, as the mock sees.
        attachment.unmap(table, BIDIRECTIONAL);
        assert!(buf.mock.called(&[Op::Unmap]));
        Ok(())
    }

    /// Each mapping has a table of its own when that is debugged, and undoes its own.
    #[test]
    fn several_mappings() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&FIXED)?;
        let (first, second) = (buf.attach(&device)?, buf.attach(&device)?);
        let tables = [
            first.map(TO_DEVICE)?,
            second.map(TO_DEVICE)?,
            first.map(TO_DEVICE)?,
        ];

        if cfg!(CONFIG_DMABUF_DEBUG) {
            assert!(tables[0] != tables[1] && tables[1] != tables[2] && tables[0] != tables[2]);
        }
        buf.mock.forget_calls();
        // The mock sees that it gets its own back.
        first.unmap(tables[0], TO_DEVICE);
        second.unmap(tables[1], TO_DEVICE);
        unsafe {
            assert_eq!(
                bindings::sg_dma_address((*tables[2]).sgl) as u64,
                Mock::segment(0, 2).0
            );
        }
        first.unmap(tables[2], TO_DEVICE);
        assert!(buf.mock.called(&[Op::Unmap, Op::Unmap, Op::Unmap]));
        Ok(())
    }

    /// With the DMA API debugged, this is worth a line in the log; it is a mapping like any other.
    #[test]
    fn a_table_that_is_not_aligned() -> Result {
        let device = Device::new()?;
        let buf = Export::of(Mock::unaligned()?, &FIXED)?.export()?;
        let attachment = buf.attach(&device)?;
        let table = attachment.map(TO_DEVICE)?;
        let (addr, _) = Mock::segment(0, 2);

        assert_eq!(
            unsafe { bindings::sg_dma_address((*table).sgl) } as u64,
            addr + 16
        );
        buf.mock.forget_calls();
        attachment.unmap(table, TO_DEVICE);
        assert!(buf.mock.called(&[Op::Unmap]));
        Ok(())
    }

    /// Who does not know of moves waits until the memory is there, after it was mapped.
    #[test]
    fn a_static_importer_waits_for_the_kernel() -> Result {
        let device = Device::new()?;
        for (ops, calls) in [
            (&MOVABLE, &[Op::Pin, Op::Map, Op::Signalled][..]),
            (&FIXED, &[Op::Map, Op::Signalled]),
        ] {
            let buf = Buf::new(ops)?;
            let attachment = buf.attach(&device)?;

            for locked in [true, false] {
                let fence = fence()?;
                buf.add(&fence, KERNEL)?;
                buf.mock.forget_calls();
                signal_after(Op::Map, fence, &buf.mock)?;
                let table = if locked {
                    attachment.map(TO_DEVICE)?
                } else {
                    attachment.map_unlocked(TO_DEVICE)?
                };
                assert!(buf.mock.called(calls));
                attachment.unmap(table, TO_DEVICE);
            }
        }
        Ok(())
    }

    #[test]
    fn mapping_does_not_wait_for_others() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&MOVABLE)?;
        let fence = fence()?;

        for usage in [WRITE, READ, BOOKKEEP] {
            buf.add(&fence, usage)?;
            let attachment = buf.attach(&device)?;
            let table = interrupted(|| attachment.map(TO_DEVICE))?;
            attachment.unmap(table, TO_DEVICE);
        }
        Ok(())
    }

    #[test]
    fn a_dynamic_importer_waits_itself() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&MOVABLE)?;
        let attachment = buf.attach_dynamic(&device, &FOLLOWS, 0)?;
        let fence = fence()?;

        buf.add(&fence, KERNEL)?;
        let table = interrupted(|| attachment.map(TO_DEVICE))?;
        attachment.unmap(table, TO_DEVICE);
        Ok(())
    }

    #[test]
    fn the_wait_for_the_kernel_is_interrupted() -> Result {
        let device = Device::new()?;
        for (ops, calls) in [
            (&MOVABLE, &[Op::Pin, Op::Map, Op::Unmap, Op::Unpin][..]),
            (&FIXED, &[Op::Map, Op::Unmap]),
        ] {
            let buf = Buf::new(ops)?;
            let attachment = buf.attach(&device)?;
            buf.mock.forget_calls();
            let fence = fence()?;
            buf.add(&fence, KERNEL)?;

            let result = interrupted(|| attachment.map(TO_DEVICE));
            assert_eq!(result.err(), Some(ERESTARTSYS));
            assert!(buf.mock.called(calls));
            let result = interrupted(|| attachment.map_unlocked(TO_DEVICE));
            assert_eq!(result.err(), Some(ERESTARTSYS));
            assert!(buf.mock.called(calls));
            assert!(!buf.is_locked());
        }
        Ok(())
    }

    #[test]
    fn who_is_told_of_a_move() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&MOVABLE)?;
        let invalidate = || {
            let _lock = buf.lock();
            unsafe { bindings::dma_buf_invalidate_mappings(buf.ptr) };
        };

        invalidate();
        assert!(buf.mock.called(&[]));

        let _static = buf.attach(&device)?;
        let _deaf = buf.attach_dynamic(&device, &DEAF, 0)?;
        buf.mock.forget_calls();
        invalidate();
        assert!(buf.mock.called(&[]));

        let first = buf.attach_dynamic(&device, &FOLLOWS, 0)?;
        let second = buf.attach_dynamic(&device, &FOLLOWS, 0)?;
        buf.mock.forget_calls();
        invalidate();
        assert!(buf.mock.called(&[Op::Invalidate, Op::Invalidate]));
        // The newest is first in the list.
        assert_eq!(buf.mock.attached.load(Relaxed), first.ptr as usize);
        drop(first);
        buf.mock.forget_calls();
        invalidate();
        assert!(buf.mock.called(&[Op::Invalidate]));
        assert_eq!(buf.mock.attached.load(Relaxed), second.ptr as usize);

        // Who has pinned and mapped it is told, and undoes both himself.
        let table = second.map(TO_DEVICE)?;
        {
            let _lock = buf.lock();
            unsafe { bindings::dma_buf_pin(second.ptr) };
        }
        invalidate();
        second.unmap(table, TO_DEVICE);
        {
            let _lock = buf.lock();
            unsafe { bindings::dma_buf_unpin(second.ptr) };
        }
        assert!(buf
            .mock
            .called(&[Op::Map, Op::Pin, Op::Invalidate, Op::Unmap, Op::Unpin]));
        Ok(())
    }

    #[test]
    fn revocable() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&MOVABLE)?;
        let is_revocable =
            |a: &Attachment<'_>| unsafe { bindings::dma_buf_attach_revocable(a.ptr) };

        assert!(!is_revocable(&buf.attach(&device)?));
        assert!(!is_revocable(&buf.attach_dynamic(&device, &DEAF, 0)?));
        assert!(is_revocable(&buf.attach_dynamic(&device, &FOLLOWS, 0)?));
        Ok(())
    }

    /// A table for memory of a device, from a provider of it, or none.
    fn device_table(
        attachment: &Attachment<'_>,
        provider: *mut bindings::p2pdma_provider,
        ranges: &mut [bindings::phys_vec],
    ) -> Result<*mut bindings::sg_table> {
        let _lock = attachment.buf.lock();

        from_err_ptr(unsafe {
            bindings::dma_buf_phys_vec_to_sgt(
                attachment.ptr,
                provider,
                ranges.as_mut_ptr(),
                ranges.len(),
                ranges.iter().map(|range| range.len).sum(),
                TO_DEVICE,
            )
        })
    }

    /// A PCI device that has memory, locked, so that its driver stays or none comes.
    #[cfg(CONFIG_PCI_P2PDMA)]
    struct PciMemory {
        pci: *mut bindings::pci_dev,
        provider: *mut bindings::p2pdma_provider,
        /// The group of what this adds to the device, which the probe of a driver must not find.
        group: *mut kernel::ffi::c_void,
    }

    #[cfg(CONFIG_PCI_P2PDMA)]
    impl PciMemory {
        fn find() -> Option<Self> {
            const BARS: i32 = 6;
            let mut pci = null_mut();

            loop {
                // This drops the reference to the last one.
                pci = unsafe { bindings::pci_get_device(!0, !0, pci) };
                if pci.is_null() {
                    return None;
                }
                let dev = unsafe { &raw mut (*pci).dev };
                unsafe { bindings::mutex_lock(&raw mut (*dev).mutex) };
                let group =
                    unsafe { bindings::devres_open_group(dev, null_mut(), bindings::GFP_KERNEL) };
                if group.is_null() {
                    unsafe { bindings::mutex_unlock(&raw mut (*dev).mutex) };
                    continue;
                }
                // Undoes all that when it is dropped.
                let mut found = Self {
                    pci,
                    provider: null_mut(),
                    group,
                };
                if unsafe { bindings::pcim_p2pdma_init(pci) } == 0 {
                    found.provider = (0..BARS)
                        .map(|bar| unsafe { bindings::pcim_p2pdma_provider(pci, bar) })
                        .find(|provider| !provider.is_null())
                        .unwrap_or(null_mut());
                }
                if !found.provider.is_null() {
                    return Some(found);
                }
                // The loop goes on from this one.
                unsafe { bindings::get_device(dev) };
            }
        }

        /// Attaches the device itself.
        fn attach<'a>(&'a self, buf: &'a Buf) -> Result<Attachment<'a>> {
            let dev = unsafe { &raw mut (*self.pci).dev };
            let ptr = from_err_ptr(unsafe { bindings::dma_buf_attach(buf.ptr, dev) })?;

            Ok(Attachment { ptr, buf })
        }
    }

    #[cfg(CONFIG_PCI_P2PDMA)]
    impl Drop for PciMemory {
        fn drop(&mut self) {
            unsafe {
                let dev = &raw mut (*self.pci).dev;
                bindings::devres_release_group(dev, self.group);
                bindings::mutex_unlock(&raw mut (*dev).mutex);
                bindings::pci_dev_put(self.pci);
            }
        }
    }

    const RANGES: [bindings::phys_vec; 2] = [
        bindings::phys_vec {
            paddr: 0x10000,
            len: 0x2000,
        },
        bindings::phys_vec {
            paddr: 0x40000,
            len: 0x1000,
        },
    ];

    /// There has to be a provider.
    #[test]
    fn memory_of_no_device() -> Result {
        let device = Device::new()?;
        let buf = Buf::new(&FIXED)?;
        let attachment = buf.attach(&device)?;
        let mut ranges = RANGES;

        let (result, count) = warnings(|| device_table(&attachment, null_mut(), &mut ranges));
        assert_eq!((result.err(), count), (Some(EINVAL), 1));
        Ok(())
    }

    /// Memory of a PCI device goes to devices that reach it, which are PCI devices as well.
    #[test]
    fn memory_of_a_device_out_of_reach() -> Result {
        #[cfg(CONFIG_PCI_P2PDMA)]
        let Some(memory) = PciMemory::find() else {
            return skip(c"needs a PCI device that has memory");
        };
        #[cfg(CONFIG_PCI_P2PDMA)]
        let provider = memory.provider;
        #[cfg(not(CONFIG_PCI_P2PDMA))]
        let provider = &mut bindings::p2pdma_provider::default();
        let device = Device::new()?;
        let buf = Buf::new(&FIXED)?;
        let attachment = buf.attach(&device)?;

        let result = device_table(&attachment, provider, &mut RANGES.clone());
        drop(attachment);
        #[cfg(CONFIG_PCI_P2PDMA)]
        drop(memory);
        assert_eq!(result.err(), Some(EINVAL));
        Ok(())
    }

    /// A table for two ranges of a PCI device's own memory, and what is in it.
    #[cfg(CONFIG_PCI_P2PDMA)]
    fn own_memory(memory: &PciMemory) -> Result<bool> {
        let buf = Buf::new(&FIXED)?;
        let attachment = memory.attach(&buf)?;
        let mut ranges = RANGES;

        let table = device_table(&attachment, memory.provider, &mut ranges)?;
        unsafe {
            let mut sg = (*table).sgl;
            // There is memory of the device, and no pages.
            let mut good = (*table).nents == 2 && (*table).orig_nents == 0;

            for range in &ranges {
                let addr = range.paddr.wrapping_add((*memory.provider).bus_offset);

                good &= bindings::sg_dma_address(sg) as u64 == addr
                    && bindings::sg_dma_len(sg) as usize == range.len
                    && (*sg).page_link & !3 == 0;
                sg = bindings::sg_next(sg);
            }
            let _lock = buf.lock();
            bindings::dma_buf_free_sgt(attachment.ptr, table, TO_DEVICE);
            Ok(good && sg.is_null())
        }
    }

    /// A PCI device reaches its own memory by its bus.
    #[test]
    #[cfg(CONFIG_PCI_P2PDMA)]
    fn memory_of_a_device_on_the_same_bus() -> Result {
        let Some(memory) = PciMemory::find() else {
            return skip(c"needs a PCI device that has memory");
        };
        let buf = Buf::new(&FIXED)?;
        let attachment = memory.attach(&buf)?;

        let good = own_memory(&memory);
        let empty = device_table(&attachment, memory.provider, &mut []).err();
        drop(attachment);
        drop(memory);
        assert!(good?);
        // Nothing of no size.
        assert_eq!(empty, Some(EINVAL));
        Ok(())
    }
}
