// SPDX-License-Identifier: GPL-2.0

//! KUnit tests: what drivers forgot to give back when something failed. Here nobody has to think of
//! it, so these have no program that does not compile; each test is named after what it is about.

use super::{
    dma_fence::DriverFenceAllocation,
    dynamic::{
        Invalidation,
        Pinned, //
    },
    tests::{
        bound,
        device,
        eventually,
        fixed,
        movable,
        Counts,
        Follower,
        Op, //
    },
    *, //
};

use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::DataDirection,
    fs::file::{
        flags,
        FileDescriptorReservation, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    workqueue, //
};

/// How many references there are to a buffer.
fn refs(buf: &DmaBuf) -> usize {
    // SAFETY: The buffer is valid, and its file never changes.
    unsafe { bindings::file_count((*buf.as_raw()).file) }
}

/// How many references there are to a fence.
fn fence_refs(fence: &Fence) -> i32 {
    // SAFETY: The fence is valid, and this is read as others write it, at once.
    unsafe { (&raw const (*fence.as_raw()).refcount.refcount.refs.counter).read_volatile() }
}

/// A descriptor of the threads of the kernel; closed when dropped.
struct Descriptor(u32);

impl Descriptor {
    fn new(buf: ARef<DmaBuf>) -> Result<Self> {
        let fd = FileDescriptorReservation::get_unused_fd_flags(flags::O_CLOEXEC)?;
        let number = fd.reserved_fd();

        DmaBuf::install(buf, fd);
        Ok(Self(number))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: It is open, and only this test knows it.
        unsafe { bindings::close_fd(self.0) };
    }
}

fn follower(counts: &Arc<Counts>) -> Follower {
    Follower {
        counts: counts.clone(),
        unmap: true,
    }
}

/// A fence that is in the reservation object of a buffer.
fn transfer(buf: &DmaBuf, queue: &FenceContext) -> Result<DriverFence> {
    let work = queue.new_fence(DriverFenceAllocation::new(GFP_KERNEL)?);

    buf.resv().lock().add_fence(work.as_ref(), Usage::Write)?;
    Ok(work)
}

/// What is kept for a buffer that is shown.
struct PlaneState<'dev> {
    _pin: Pinned<'dev, Follower>,
    _fence: DriverFenceAllocation,
}

/// An importer that notes whether it was detached when it is dropped.
struct Pages {
    counts: Arc<Counts>,
    detached: Arc<Atomic<u32>>,
}

#[vtable]
impl DynamicImporter for Pages {
    fn invalidate_mappings(&self, invalidation: &Invalidation<'_, Self>) {
        invalidation.unmap();
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.detached.store(self.counts.of(Op::Detach), Relaxed);
        self.counts.note(Op::ImporterDrop);
    }
}

#[kunit_tests(rust_dma_buf_leaks)]
mod suite {
    use super::*;

    /// fastrpc: the buffer of a descriptor was looked for among those that are mapped, and not put.
    #[test]
    fn cve_2025_68252() -> Result {
        let counts = Counts::new()?;
        let buf = fixed(&counts)?;
        let fd = Descriptor::new(buf.clone())?;
        let lookup = |maps: &[ARef<DmaBuf>]| -> Result<usize> {
            let buf = DmaBuf::get(fd.0.try_into()?)?;

            maps.iter().position(|map| *map == buf).ok_or(ENOENT)
        };

        assert_eq!(refs(&buf), 2);
        assert_eq!(lookup(&[]).err(), Some(ENOENT));
        assert_eq!(refs(&buf), 2);
        assert_eq!(lookup(&[fixed(&Counts::new()?)?, buf.clone()])?, 1);
        assert_eq!(refs(&buf), 2);
        drop(fd);
        drop(buf);
        assert!(eventually(|| counts.are(&[(Op::Release, 1)])));
        Ok(())
    }

    /// virtio: a buffer that was to be shown stayed pinned when there was no memory for a fence.
    #[test]
    fn cve_2025_37762() -> Result {
        fn prepare_fb<'dev>(
            attachment: &DynamicAttachment<'dev, Follower>,
            alloc: impl FnOnce() -> Result<DriverFenceAllocation>,
        ) -> Result<PlaneState<'dev>> {
            let locked = attachment.buf().resv().lock();
            let pin = attachment.pin(&locked)?;

            attachment.map(DataDirection::ToDevice, &locked)?;

            let pin = pin.keep();

            drop(locked);
            Ok(PlaneState {
                _pin: pin,
                _fence: alloc()?,
            })
        }

        let counts = Counts::new()?;
        let device = device()?;
        let buf = movable(&counts)?;
        let attachment = buf.attach_dynamic(bound(&device), follower(&counts))?;
        let alloc = || DriverFenceAllocation::new(GFP_KERNEL);

        // Under the lock, and without it.
        counts.fail_next(Op::Map);
        assert_eq!(prepare_fb(&attachment, alloc).err(), Some(EREMOTEIO));
        assert_eq!(counts.of(Op::Unpin), 1);
        assert_eq!(prepare_fb(&attachment, || Err(ENOMEM)).err(), Some(ENOMEM));
        assert_eq!(counts.of(Op::Unpin), 2);

        let state = prepare_fb(&attachment, alloc)?;

        assert_eq!(counts.of(Op::Pin), 3);
        assert_eq!(counts.of(Op::Unpin), 2);
        drop(state);
        drop(attachment);
        assert!(counts.are(&[
            (Op::Attach, 1),
            (Op::Pin, 3),
            (Op::Map, 2),
            (Op::Unmap, 1),
            (Op::Unpin, 3),
            (Op::Detach, 1),
            (Op::ImporterDrop, 1),
        ]));
        Ok(())
    }

    /// xe: a buffer stayed attached when the object for it could not be initialised.
    #[test]
    fn cve_2026_46201() -> Result {
        fn import<'dev>(
            buf: &DmaBuf,
            dev: &'dev Device<Bound>,
            importer: Follower,
            init: impl FnOnce(&DynamicAttachment<'dev, Follower>) -> Result,
        ) -> Result<DynamicAttachment<'dev, Follower>> {
            let attachment = buf.attach_dynamic(dev, importer)?;

            init(&attachment)?;
            Ok(attachment)
        }

        let counts = Counts::new()?;
        let device = device()?;
        let buf = movable(&counts)?;
        let fail = |init: fn(&DynamicAttachment<'_, Follower>) -> Result| {
            import(&buf, bound(&device), follower(&counts), init).err()
        };

        assert_eq!(fail(|_| Err(ENOMEM)), Some(ENOMEM));
        assert!(counts.are(&[(Op::Attach, 1), (Op::Detach, 1), (Op::ImporterDrop, 1)]));

        // Whatever has been done already.
        let mapped = fail(|attachment| {
            attachment.map(DataDirection::ToDevice, &attachment.buf().resv().lock())?;
            Err(ENOMEM)
        });

        assert_eq!(mapped, Some(ENOMEM));
        assert_eq!(refs(&buf), 1);
        drop(buf);
        assert!(eventually(|| counts.are(&[
            (Op::Attach, 2),
            (Op::Map, 1),
            (Op::Unmap, 1),
            (Op::Detach, 2),
            (Op::ImporterDrop, 2),
            (Op::Release, 1),
        ])));
        Ok(())
    }

    /// xe: the caller left it to the callee to free the object on failure, which the callee did for
    /// one of its steps only.
    #[test]
    fn cve_2026_46224() -> Result {
        fn init_obj<'dev>(
            buf: &DmaBuf,
            dev: &'dev Device<Bound>,
            storage: Follower,
            first: Result,
        ) -> Result<DynamicAttachment<'dev, Follower>> {
            first?;
            buf.attach_dynamic(dev, storage)
        }

        let counts = Counts::new()?;
        let device = device()?;
        let buf = movable(&counts)?;
        let init = |first| init_obj(&buf, bound(&device), follower(&counts), first);

        assert_eq!(init(Err(ENOMEM)).err(), Some(ENOMEM));
        assert!(counts.are(&[(Op::ImporterDrop, 1)]));
        counts.fail_next(Op::Attach);
        assert_eq!(init(Ok(())).err(), Some(EREMOTEIO));
        assert!(counts.are(&[(Op::Attach, 1), (Op::ImporterDrop, 2)]));

        let attachment = init(Ok(()))?;

        assert_eq!(counts.of(Op::ImporterDrop), 2);
        drop(attachment);
        assert_eq!(counts.of(Op::ImporterDrop), 3);
        Ok(())
    }

    /// iio: the reference that comes with a new fence was given back neither when the transfer was
    /// done, nor when it could not be queued.
    #[test]
    fn cve_2026_63929() -> Result {
        fn enqueue(work: DriverFence, queued: Result) -> Result {
            queued?;
            work.signal(Ok(()));
            Ok(())
        }

        let counts = Counts::new()?;
        let buf = fixed(&counts)?;
        let queue = FenceContext::new(c"kunit", c"leaks")?;
        let done = transfer(&buf, &queue)?;
        let fence = done.fence();

        // That of the driver, the one here, that of the reservation object.
        assert_eq!(fence_refs(&fence), 3);
        enqueue(done, Ok(()))?;
        assert_eq!(fence_refs(&fence), 2);

        let failed = transfer(&buf, &queue)?;
        let other = failed.fence();

        assert_eq!(enqueue(failed, Err(EIO)), Err(EIO));
        assert_eq!(other.status(), Some(Err(ECANCELED)));
        assert_eq!(fence_refs(&other), 2);
        drop(buf);
        assert!(eventually(
            || fence_refs(&fence) == 1 && fence_refs(&other) == 1
        ));
        Ok(())
    }

    /// f_fs: a second reference was taken for the work item that cleans up, and only that was given
    /// back.
    #[test]
    fn cve_2026_64328() -> Result {
        let counts = Counts::new()?;
        let buf = fixed(&counts)?;
        let queue = FenceContext::new(c"kunit", c"leaks")?;
        let work = transfer(&buf, &queue)?;
        let (fence, cleanup) = (work.fence(), work.fence());

        assert_eq!(fence_refs(&fence), 4);
        work.signal(Ok(()));
        workqueue::system_unbound().try_spawn(GFP_KERNEL, move || drop(cleanup))?;
        assert!(eventually(|| fence_refs(&fence) == 2));
        drop(buf);
        assert!(eventually(|| fence_refs(&fence) == 1));
        Ok(())
    }

    /// The order of CVE-2026-74328: the importer is dropped when it can be called no more, whoever
    /// is last.
    #[test]
    fn the_importer_is_dropped_last() -> Result {
        for pin_last in [false, true] {
            let counts = Counts::new()?;
            let detached = Arc::new(Atomic::new(0), GFP_KERNEL)?;
            let device = device()?;
            let buf = movable(&counts)?;
            let pages = Pages {
                counts: counts.clone(),
                detached: detached.clone(),
            };
            let attachment = buf.attach_dynamic(bound(&device), pages)?;
            let locked = buf.resv().lock();
            let pin = attachment.pin(&locked)?.keep();

            drop(locked);
            if pin_last {
                drop(attachment);
                assert_eq!(counts.of(Op::ImporterDrop), 0);
                drop(pin);
            } else {
                drop(pin);
                assert_eq!(counts.of(Op::ImporterDrop), 0);
                drop(attachment);
            }
            assert_eq!(detached.load(Relaxed), 1);
            assert!(counts.are(&[
                (Op::Attach, 1),
                (Op::Pin, 1),
                (Op::Unpin, 1),
                (Op::Detach, 1),
                (Op::ImporterDrop, 1),
            ]));
        }
        Ok(())
    }
}
