// SPDX-License-Identifier: GPL-2.0

//! KUnit tests: buffers, exporters and importers, through the C API, and so of whichever core is
//! built.

use super::{
    cpu,
    dynamic::Invalidation,
    exporter::{
        Attached,
        BorrowedData,
        NewAttachment, //
    },
    memory::MappedTable,
    *, //
};

use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::{
        DataDirection,
        DmaMask, //
    },
    dma_buf::dma_fence::DriverFenceAllocation,
    faux,
    fs::file::flags,
    io::{
        io_project,
        Io,
        IoSysMap, //
    },
    kthread,
    mm::virt::{
        flags as vm_flags,
        VmaNew, //
    },
    page::PAGE_SIZE,
    prelude::*,
    scatterlist::SGEntry,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow, //
    },
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta, //
    },
    types::Opaque, //
};

const SIZE: usize = 3 * PAGE_SIZE;

/// How often each operation was called, and which one is to fail next.
pub(super) struct Counts {
    calls: [Atomic<u32>; OPS],
    fail: Atomic<u32>,
    /// Whether the exporter maps for a direction that was not asked for.
    wrong: Atomic<bool>,
    /// What the exporter was told of the last attachment.
    revocable: Atomic<bool>,
    peer2peer: Atomic<bool>,
}

const OPS: usize = 13;

#[derive(Copy, Clone)]
pub(super) enum Op {
    Attach,
    Detach,
    Pin,
    Unpin,
    Map,
    Unmap,
    Release,
    Begin,
    End,
    Vmap,
    Vunmap,
    Invalidate,
    ImporterDrop,
}

impl Counts {
    pub(super) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                calls: [const { Atomic::new(0) }; OPS],
                fail: Atomic::new(u32::MAX),
                wrong: Atomic::new(false),
                revocable: Atomic::new(false),
                peer2peer: Atomic::new(false),
            },
            GFP_KERNEL,
        )?)
    }

    pub(super) fn of(&self, op: Op) -> u32 {
        self.calls[op as usize].load(Relaxed)
    }

    /// Whether each operation was called as often as is listed, and no other one.
    pub(super) fn are(&self, expected: &[(Op, u32)]) -> bool {
        (0..OPS).all(|op| {
            let expected = expected.iter().find(|(other, _)| *other as usize == op);

            self.calls[op].load(Relaxed) == expected.map_or(0, |(_, count)| *count)
        })
    }

    pub(super) fn fail_next(&self, op: Op) {
        self.fail.store(op as u32, Relaxed);
    }

    pub(super) fn note(&self, op: Op) {
        self.calls[op as usize].fetch_add(1, Relaxed);
    }

    fn noted(&self, noted: &Noted) {
        self.revocable.store(noted.revocable, Relaxed);
        self.peer2peer.store(noted.peer2peer, Relaxed);
    }

    /// Counts an operation; fails if it is the one that is to fail.
    fn call(&self, op: Op) -> Result {
        self.note(op);
        if self.fail.load(Relaxed) == op as u32 {
            self.fail.store(u32::MAX, Relaxed);
            return Err(EREMOTEIO);
        }
        Ok(())
    }
}

/// What was attached and mapped once, and is not any more.
const ENDED: &[(Op, u32)] = &[
    (Op::Attach, 1),
    (Op::Map, 1),
    (Op::Unmap, 1),
    (Op::Detach, 1),
];

/// What may have to wait for a work item: files are released by one, where there is no user space
/// to return to.
pub(super) fn eventually(condition: impl Fn() -> bool) -> bool {
    for _ in 0..500 {
        if condition() {
            return true;
        }
        fsleep(Delta::from_millis(10));
    }
    condition()
}

/// A library that is built in.
pub struct Library;

impl crate::ModuleMetadata for Library {
    const NAME: &'static CStr = c"library";
    const THIS_MODULE: ThisModule = {
        // SAFETY: What is built in has no module.
        unsafe { ThisModule::from_ptr(core::ptr::null_mut()) }
    };
}

/// An exporter that is defined in another crate than the module that exports buffers of it.
pub struct Region(pub Arc<Memory>);

#[vtable]
impl MemoryExporter for Region {
    const NAME: &'static CStr = c"region";

    type OwnerModule = Library;

    fn memory(&self) -> &Arc<Memory> {
        &self.0
    }
}

/// How many bytes are mapped.
fn bytes<'a>(entries: impl Iterator<Item = &'a SGEntry>) -> usize {
    // A length has 32 bits on some machines.
    entries
        .map(|entry| usize::try_from(entry.dma_len()).unwrap_or(0))
        .sum()
}

/// The data of one buffer of the mock exporter.
struct Mock {
    counts: Arc<Counts>,
    memory: Arc<Memory>,
    /// How much of the memory to map for the kernel.
    vmap_size: usize,
}

/// The mock exporter; `MOVES` decides whether its memory may move.
struct MockExporter<const MOVES: bool>;

/// What the mock exporter keeps of an attachment.
struct Noted {
    revocable: bool,
    peer2peer: bool,
}

#[vtable]
impl<const MOVES: bool> Exporter for MockExporter<MOVES> {
    const NAME: &'static CStr = c"kunit";
    const HAS_PIN: bool = MOVES;
    const HAS_UNPIN: bool = MOVES;

    type Data = KBox<Mock>;
    type Attachment = Noted;

    fn attach(data: &Mock, attachment: &NewAttachment<'_>) -> Result<Noted> {
        data.counts.call(Op::Attach)?;

        let noted = Noted {
            revocable: attachment.is_revocable(),
            peer2peer: attachment.peer2peer(),
        };

        attachment.deny_peer2peer();
        data.counts.noted(&noted);
        Ok(noted)
    }

    fn detach(data: &Mock, noted: Noted) {
        data.counts.noted(&noted);
        data.counts.note(Op::Detach);
    }

    fn pin(data: &Mock, _at: &Attached<'_, Self>, _locked: &LockedResv) -> Result {
        data.counts.call(Op::Pin)
    }

    fn unpin(data: &Mock, _at: &Attached<'_, Self>, _locked: &LockedResv) {
        data.counts.note(Op::Unpin);
    }

    fn map<'a>(
        data: BorrowedData<'a, Self>,
        attachment: &Attached<'a, Self>,
        dir: DataDirection,
        locked: &LockedResv,
    ) -> Result<MappedTable<'a>> {
        data.counts.call(Op::Map)?;
        if attachment.peer2peer() || locked.resv().try_lock().is_some() {
            return Err(EDOM);
        }

        let dir = match data.counts.wrong.load(Relaxed) {
            true => DataDirection::Bidirectional,
            false => dir,
        };

        attachment.map(data.memory.clone(), dir)
    }

    fn unmap(data: &Mock, _at: &Attached<'_, Self>, _locked: &LockedResv) {
        data.counts.note(Op::Unmap);
    }

    fn release(data: KBox<Mock>) {
        data.counts.note(Op::Release);
    }

    fn begin_cpu_access(data: &Mock, _dir: DataDirection) -> Result {
        data.counts.call(Op::Begin)?;
        data.memory.begin_cpu_access();
        Ok(())
    }

    fn end_cpu_access(data: &Mock, _dir: DataDirection) -> Result {
        data.memory.end_cpu_access();
        data.counts.call(Op::End)
    }

    fn vmap<'a>(data: BorrowedData<'a, Self>, _locked: &LockedResv) -> Result<IoSysMap<'a, [u8]>> {
        data.counts.call(Op::Vmap)?;

        let view = data.memory.view();

        Ok(io_project!(view, [try: 0..data.vmap_size]).into())
    }

    fn vunmap(data: &Mock, _locked: &LockedResv) {
        data.counts.note(Op::Vunmap);
    }
}

fn mock<const MOVES: bool>(counts: &Arc<Counts>, vmap_size: usize) -> Result<ARef<DmaBuf>> {
    let memory = Memory::new(SIZE, GFP_KERNEL)?;
    let data = KBox::new(
        Mock {
            counts: counts.clone(),
            memory,
            vmap_size,
        },
        GFP_KERNEL,
    )?;

    Ok(export::<MockExporter<MOVES>>(data, SIZE, flags::O_RDWR)?)
}

/// A buffer that stays where it is.
pub(super) fn fixed(counts: &Arc<Counts>) -> Result<ARef<DmaBuf>> {
    mock::<false>(counts, SIZE)
}

/// A buffer that may move.
pub(super) fn movable(counts: &Arc<Counts>) -> Result<ARef<DmaBuf>> {
    mock::<true>(counts, SIZE)
}

/// A device that can do DMA. Tests run one after another, so its name is free.
pub(super) fn device() -> Result<faux::Registration> {
    faux::Registration::new_with_dma_mask(c"kunit_dma_buf", None, DmaMask::new::<64>())
}

pub(super) fn bound(registration: &faux::Registration) -> &Device<Bound> {
    registration.as_ref().as_ref()
}

/// Whether an exporter may fail to map for the kernel without a warning.
///
/// The core in C warns, so that part of a test is left out there, which the log tells.
fn vmap_may_fail() -> bool {
    if !cfg!(CONFIG_DMA_SHARED_BUFFER_RUST) {
        pr_info!("vmap() that fails is left out: the core in C warns of it\n");
        return false;
    }
    true
}

/// The mock importer.
pub(super) struct Follower {
    pub(super) counts: Arc<Counts>,
    pub(super) unmap: bool,
}

#[vtable]
impl DynamicImporter for Follower {
    const ALLOW_PEER2PEER: bool = true;

    fn invalidate_mappings(&self, invalidation: &Invalidation<'_, Self>) {
        self.counts.note(Op::Invalidate);
        if self.unmap {
            invalidation.unmap();
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.counts.note(Op::ImporterDrop);
    }
}

/// An object that has a reservation object for all buffers that are made of it, as GEM's do.
#[pin_data]
struct Object {
    #[pin]
    resv: OwnedResv,
    memory: Arc<Memory>,
    buffers: Atomic<u32>,
}

impl Object {
    fn new() -> Result<Arc<Self>> {
        let memory = Memory::new(SIZE, GFP_KERNEL)?;

        Arc::pin_init(
            pin_init!(Self {
                resv <- OwnedResv::new(),
                memory,
                buffers: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    fn export(self: &Arc<Self>) -> Result<ARef<DmaBuf>> {
        let buf = export::<ObjectExporter>(self.clone(), SIZE, flags::O_RDWR)?;

        self.buffers.fetch_add(1, Relaxed);
        Ok(buf)
    }
}

struct ObjectExporter;

#[vtable]
impl Exporter for ObjectExporter {
    const NAME: &'static CStr = c"object";

    type Data = Arc<Object>;
    type Attachment = ();

    fn attach(_data: ArcBorrow<'_, Object>, _attachment: &NewAttachment<'_>) -> Result {
        Ok(())
    }

    fn map<'a>(
        data: BorrowedData<'a, Self>,
        attachment: &Attached<'a, Self>,
        dir: DataDirection,
        _locked: &LockedResv,
    ) -> Result<MappedTable<'a>> {
        attachment.map(data.memory.clone(), dir)
    }

    fn resv<'a>(data: &'a ArcBorrow<'_, Object>) -> Option<&'a Resv> {
        Some(&data.resv)
    }

    fn release(data: Arc<Object>) {
        data.buffers.fetch_sub(1, Relaxed);
    }
}

const LOCKER_TURNS: u32 = 200;

/// A thread that takes all locks many times.
struct Locker {
    objects: [Arc<Object>; 3],
    turns: Arc<Atomic<u32>>,
    backwards: bool,
}

#[vtable]
impl kthread::Thread for Locker {
    fn run(self: KBox<Self>, _current: &kthread::Current) {
        for _ in 0..LOCKER_TURNS {
            let [a, b, c] = &self.objects;
            let order = match self.backwards {
                false => [&*a.resv, &*b.resv, &*c.resv],
                true => [&*c.resv, &*b.resv, &*a.resv],
            };
            let Ok(set) = ResvSet::lock_interruptible(order) else {
                return;
            };

            fsleep(Delta::from_micros(10));
            drop(set);
            self.turns.fetch_add(1, Relaxed);
        }
    }
}

/// An exporter that does not think of how a mapping can change.
struct Careless;

#[vtable]
impl Exporter for Careless {
    const NAME: &'static CStr = c"careless";

    type Data = KBox<Arc<Memory>>;
    type Attachment = ();

    fn attach(_data: &Arc<Memory>, _attachment: &NewAttachment<'_>) -> Result {
        Ok(())
    }

    fn map<'a>(
        data: BorrowedData<'a, Self>,
        attachment: &Attached<'a, Self>,
        dir: DataDirection,
        _locked: &LockedResv,
    ) -> Result<MappedTable<'a>> {
        attachment.map(data.clone(), dir)
    }

    fn mmap(_data: &Arc<Memory>, _vma: &VmaNew) -> Result {
        Ok(())
    }
}

#[kunit_tests(rust_dma_buf)]
mod suite {
    use super::*;

    #[test]
    fn no_mapping_can_be_expanded() -> Result {
        let memory = Memory::new(SIZE, GFP_KERNEL)?;
        let buf = export::<Careless>(KBox::new(memory, GFP_KERNEL)?, SIZE, flags::O_RDWR)?;
        let area: Opaque<bindings::vm_area_struct> = Opaque::zeroed();
        let fixed = vm_flags::DONTEXPAND | vm_flags::DONTDUMP;

        // SAFETY: The buffer is valid.
        let mmap = unsafe { (*(*buf.as_raw()).ops).mmap }.ok_or(ENOSYS)?;
        // SAFETY: The area is new, and nobody else has it.
        let (result, flags) = unsafe {
            let result = mmap(buf.as_raw(), area.get());

            (result, (*area.get()).__bindgen_anon_2.vm_flags)
        };

        assert_eq!(result, 0);
        assert_eq!(flags & fixed, fixed);
        Ok(())
    }

    #[test]
    fn export_and_release() -> Result {
        let counts = Counts::new()?;
        let buf = fixed(&counts)?;

        assert_eq!(buf.size(), SIZE);
        assert!(buf.exporter_name() == c"kunit");
        assert!(counts.are(&[]));

        let other = buf.clone();

        assert!(buf == other);
        assert!(fixed(&Counts::new()?)? != buf);
        drop(buf);
        assert!(counts.are(&[]));
        drop(other);
        assert!(eventually(|| counts.are(&[(Op::Release, 1)])));
        Ok(())
    }

    #[test]
    fn export_gives_the_data_back_when_it_fails() -> Result {
        let frame = Frame(Memory::new(SIZE, GFP_KERNEL)?);
        let memory = frame.0.clone();

        for size in [0, isize::MAX as usize + 1] {
            let data = KBox::new(Frame(memory.clone()), GFP_KERNEL)?;
            let result = export::<FrameExporter>(data, size, flags::O_RDWR);

            assert!(result.is_err());
            if let Err(failed) = result {
                assert!(failed.error == EINVAL);
                assert!(Arc::ptr_eq(&failed.data.0, &memory));
            }
        }
        Ok(())
    }

    #[test]
    fn get_of_what_is_not_open() -> Result {
        assert!(DmaBuf::get(-1).err() == Some(EBADF));
        assert!(DmaBuf::get(i32::MAX).err() == Some(EBADF));
        Ok(())
    }

    #[test]
    fn each_step_is_undone() -> Result {
        let counts = Counts::new()?;
        let device = device()?;
        let buf = fixed(&counts)?;
        let attachment = buf.attach(bound(&device))?;

        assert!(counts.are(&[(Op::Attach, 1)]));
        assert!(*attachment.buf() == *buf);

        let mapping = attachment.map(DataDirection::ToDevice)?;

        assert!(counts.are(&[(Op::Attach, 1), (Op::Map, 1)]));
        assert!(mapping.direction() == DataDirection::ToDevice);

        assert_eq!(bytes(mapping.table().iter()), SIZE);
        drop(mapping);
        assert!(counts.are(&[(Op::Attach, 1), (Op::Map, 1), (Op::Unmap, 1)]));
        drop(attachment);
        assert_eq!(counts.of(Op::Detach), 1);
        drop(buf);
        assert!(eventually(|| counts.of(Op::Release) == 1));
        Ok(())
    }

    #[test]
    fn what_is_needed_is_kept() -> Result {
        let counts = Counts::new()?;
        let device = device()?;
        let mapping = {
            let buf = fixed(&counts)?;

            buf.attach(bound(&device))?.map(DataDirection::FromDevice)?
        };

        // The buffer and the attachment are dropped, and still there.
        assert!(counts.are(&[(Op::Attach, 1), (Op::Map, 1)]));
        assert!(mapping.buf().size() == SIZE);
        drop(mapping);
        assert!(eventually(|| counts.are(&[
            (Op::Attach, 1),
            (Op::Map, 1),
            (Op::Unmap, 1),
            (Op::Detach, 1),
            (Op::Release, 1),
        ])));
        Ok(())
    }

    #[test]
    fn failures_of_the_exporter_are_passed_on() -> Result {
        let counts = Counts::new()?;
        let device = device()?;
        let buf = fixed(&counts)?;

        counts.fail_next(Op::Attach);
        assert!(buf.attach(bound(&device)).err() == Some(EREMOTEIO));
        assert!(counts.are(&[(Op::Attach, 1)]));

        let attachment = buf.attach(bound(&device))?;

        counts.fail_next(Op::Map);
        assert!(attachment.map(DataDirection::ToDevice).err() == Some(EREMOTEIO));
        assert!(attachment.map(DataDirection::None).err() == Some(EINVAL));
        assert!(counts.are(&[(Op::Attach, 2), (Op::Map, 1)]));
        drop(attachment);
        assert_eq!(counts.of(Op::Detach), 1);
        Ok(())
    }

    #[test]
    fn an_attachment_is_mapped_once() -> Result {
        let counts = Counts::new()?;
        let device = device()?;
        let buf = fixed(&counts)?;
        let attachment = buf.attach(bound(&device))?;
        let clone = attachment.clone();
        let mapping = attachment.map(DataDirection::ToDevice)?;
        let locked = buf.resv().lock();

        assert!(clone.map_locked(DataDirection::ToDevice, &locked).err() == Some(EBUSY));
        drop(locked);
        assert!(clone.map(DataDirection::FromDevice).err() == Some(EBUSY));
        assert_eq!(counts.of(Op::Map), 1);
        drop(mapping);
        drop(clone.map(DataDirection::FromDevice)?);
        // Failures give the right back.
        counts.fail_next(Op::Map);
        assert!(clone.map(DataDirection::FromDevice).err() == Some(EREMOTEIO));
        drop(clone.map(DataDirection::FromDevice)?);
        assert_eq!(counts.of(Op::Map), 4);
        assert_eq!(counts.of(Op::Unmap), 3);
        Ok(())
    }

    // What is leaked here is a leak for kmemleak, too, so there this is skipped.
    #[cfg(not(CONFIG_DEBUG_KMEMLEAK))]
    #[test]
    fn leaks_do_not_dangle_without_kmemleak() -> Result {
        let counts = Counts::new()?;
        let buf = movable(&counts)?;

        {
            let device = device()?;

            core::mem::forget(buf.attach(bound(&device))?.map(DataDirection::ToDevice)?);
        }
        // The device is gone, and so is its mapping; and its attachment, as exporters like those of
        // videobuf2 do not end DMA before that is.
        assert!(counts.are(&[
            (Op::Attach, 1),
            (Op::Pin, 1),
            (Op::Map, 1),
            (Op::Unmap, 1),
            (Op::Unpin, 1),
            (Op::Detach, 1)
        ]));
        {
            let device = device()?;
            let attachment = buf.attach(bound(&device))?;
            let locked = buf.resv().lock();

            core::mem::forget(attachment.map_locked(DataDirection::ToDevice, &locked)?);
            drop(locked);
        }
        assert_eq!((counts.of(Op::Unmap), counts.of(Op::Detach)), (2, 2));
        {
            let device = device()?;
            let follower = Follower {
                counts: counts.clone(),
                unmap: false,
            };
            let attachment = buf.attach_dynamic(bound(&device), follower)?;

            attachment.map(DataDirection::ToDevice, &buf.resv().lock())?;
            core::mem::forget(attachment);
        }
        assert_eq!((counts.of(Op::Unmap), counts.of(Op::Detach)), (3, 3));
        buf.invalidate_mappings::<MockExporter<true>>(&buf.resv().lock())?;
        assert_eq!(counts.of(Op::Invalidate), 0);

        core::mem::forget(buf.cpu_access::<cpu::Read>()?);
        drop(buf);
        assert_eq!(counts.of(Op::Release), 0);
        Ok(())
    }

    #[test]
    fn a_table_for_another_direction_is_refused() -> Result {
        let counts = Counts::new()?;
        let device = device()?;
        let buf = fixed(&counts)?;
        let attachment = buf.attach(bound(&device))?;

        counts.wrong.store(true, Relaxed);
        assert!(attachment.map(DataDirection::ToDevice).err() == Some(EINVAL));
        // It was unmapped again.
        assert!(counts.are(&[(Op::Attach, 1), (Op::Map, 1), (Op::Unmap, 1)]));
        drop(attachment.map(DataDirection::Bidirectional)?);
        assert_eq!(counts.of(Op::Unmap), 2);
        Ok(())
    }

    #[test]
    fn mapping_under_the_lock() -> Result {
        let counts = Counts::new()?;
        let device = device()?;
        let buf = fixed(&counts)?;
        let other = fixed(&Counts::new()?)?;
        let attachment = buf.attach(bound(&device))?;
        let locked = buf.resv().lock();

        {
            let mapping = attachment.map_locked(DataDirection::ToDevice, &locked)?;

            assert_eq!(counts.of(Op::Unmap), 0);
            assert!(mapping.table().iter().next().is_some());
        }
        assert_eq!(counts.of(Op::Unmap), 1);

        let mapping = attachment
            .map_locked(DataDirection::ToDevice, &locked)?
            .keep();

        drop(locked);
        assert_eq!(counts.of(Op::Unmap), 1);

        // The lock of another buffer will not do.
        let wrong = other.resv().lock();

        assert!(attachment
            .map_locked(DataDirection::ToDevice, &wrong)
            .is_err_and(|error| error == EINVAL));

        let result = mapping.unmap_locked(&wrong);

        drop(wrong);
        assert!(result.is_err());
        if let Err(mapping) = result {
            let locked = buf.resv().lock();

            assert_eq!(counts.of(Op::Unmap), 1);

            let rest = mapping.unmap_locked(&locked);

            assert_eq!(counts.of(Op::Unmap), 2);
            drop(locked);
            assert!(rest.is_ok());
        }
        drop(attachment);
        assert_eq!(counts.of(Op::Detach), 1);
        Ok(())
    }

    #[test]
    fn a_static_importer_pins() -> Result {
        let counts = Counts::new()?;
        let device = device()?;
        let buf = movable(&counts)?;
        let attachment = buf.attach(bound(&device))?;

        assert_eq!(counts.of(Op::Pin), 0);

        let mapping = attachment.map(DataDirection::ToDevice)?;

        assert_eq!(counts.of(Op::Pin), 1);
        assert_eq!(counts.of(Op::Unpin), 0);
        drop(mapping);
        assert_eq!(counts.of(Op::Unpin), 1);

        counts.fail_next(Op::Pin);
        assert!(attachment.map(DataDirection::ToDevice).err() == Some(EREMOTEIO));
        counts.fail_next(Op::Map);
        assert!(attachment.map(DataDirection::ToDevice).err() == Some(EREMOTEIO));
        assert_eq!(counts.of(Op::Pin), 3);
        assert_eq!(counts.of(Op::Unpin), 2);
        Ok(())
    }

    #[test]
    fn unbinding_detaches() -> Result {
        let counts = Counts::new()?;
        let device = device()?;
        let buf = fixed(&counts)?;
        let attachment = buf.attach(bound(&device))?;
        let mapping = attachment.map(DataDirection::ToDevice)?.into_devres();
        let attachment = attachment.into_devres();

        assert!(*attachment.buf() == *buf);
        assert_eq!(bytes(mapping.table(bound(&device))?.iter()), SIZE);
        assert!(
            attachment
                .map(bound(&device), DataDirection::ToDevice)
                .err()
                == Some(EBUSY)
        );
        assert!(counts.are(&[(Op::Attach, 1), (Op::Map, 1)]));
        drop(device);
        assert!(counts.are(ENDED));
        // What is left of them does nothing.
        drop(mapping);
        drop(attachment);
        assert!(counts.are(ENDED));
        Ok(())
    }

    /// A device that is bound again is attached anew, or not at all.
    #[test]
    fn binding_again_does_not_attach() -> Result {
        let counts = Counts::new()?;
        let device = device()?;
        let other = faux::Registration::new_with_dma_mask(c"other", None, DmaMask::new::<64>())?;
        let buf = fixed(&counts)?;
        let attachment = buf.attach(bound(&device))?;
        let mapping = attachment.map(DataDirection::ToDevice)?.into_devres();
        let attachment = attachment.into_devres();
        let raw = bound(&device).as_raw();

        assert!(mapping.table(bound(&other)).err() == Some(EINVAL));
        // SAFETY: The device is registered, and nothing but this test uses its being bound.
        unsafe { bindings::device_release_driver(raw) };
        assert!(counts.are(ENDED));
        // SAFETY: As above.
        assert_eq!(unsafe { bindings::device_attach(raw) }, 1);
        assert!(mapping.table(bound(&device)).err() == Some(ENODEV));
        assert!(
            attachment
                .map(bound(&device), DataDirection::ToDevice)
                .err()
                == Some(ENODEV)
        );
        assert!(attachment.map(bound(&other), DataDirection::ToDevice).err() == Some(EINVAL));
        assert!(counts.are(ENDED));
        Ok(())
    }

    #[test]
    fn a_dynamic_importer_follows() -> Result {
        for unmap in [false, true] {
            let counts = Counts::new()?;
            let device = device()?;
            let buf = movable(&counts)?;
            let attachment = buf.attach_dynamic(
                bound(&device),
                Follower {
                    counts: counts.clone(),
                    unmap,
                },
            )?;
            let locked = buf.resv().lock();

            let mapped =
                |locked: &LockedResv| attachment.with_table(locked, |table| bytes(table.iter()));

            assert!(mapped(&locked)?.is_none());
            attachment.map(DataDirection::Bidirectional, &locked)?;
            assert_eq!(mapped(&locked)?, Some(SIZE));
            // Nothing is pinned, and mapping again is nothing new.
            attachment.map(DataDirection::Bidirectional, &locked)?;
            assert!(counts.are(&[(Op::Attach, 1), (Op::Map, 1)]));

            buf.invalidate_mappings::<MockExporter<true>>(&locked)?;
            assert_eq!(counts.of(Op::Invalidate), 1);
            assert_eq!(counts.of(Op::Unmap), u32::from(unmap));
            assert!(mapped(&locked)?.is_none());

            attachment.map(DataDirection::Bidirectional, &locked)?;
            assert_eq!(mapped(&locked)?, Some(SIZE));
            assert_eq!(counts.of(Op::Unmap), 1);

            // Who is at reading the addresses may finish, whatever the others do.
            let seen = attachment.with_table(&locked, |table| -> Result<usize> {
                attachment.unmap(&locked)?;
                buf.invalidate_mappings::<MockExporter<true>>(&locked)?;
                if mapped(&locked)?.is_some()
                    || attachment.map(DataDirection::Bidirectional, &locked).err() != Some(EBUSY)
                    || counts.of(Op::Unmap) != 1
                {
                    return Err(EDOM);
                }
                Ok(table.iter().count())
            })?;

            assert!(seen.is_some_and(|seen| seen.is_ok_and(|count| count > 0)));
            assert_eq!(counts.of(Op::Unmap), 2);
            assert_eq!(counts.of(Op::Invalidate), 2);

            // Another direction is another mapping.
            attachment.map(DataDirection::ToDevice, &locked)?;
            attachment.map(DataDirection::FromDevice, &locked)?;
            assert_eq!(counts.of(Op::Map), 4);
            assert_eq!(counts.of(Op::Unmap), 3);
            drop(locked);

            // What is left is undone.
            assert_eq!(counts.of(Op::ImporterDrop), 0);
            drop(attachment);
            assert_eq!(counts.of(Op::Unmap), 4);
            assert_eq!(counts.of(Op::Detach), 1);
            assert_eq!(counts.of(Op::ImporterDrop), 1);

            let locked = buf.resv().lock();

            buf.invalidate_mappings::<MockExporter<true>>(&locked)?;
            assert_eq!(counts.of(Op::Invalidate), 2);
        }
        Ok(())
    }

    #[test]
    fn dynamic_failures_leave_nothing() -> Result {
        let counts = Counts::new()?;
        let device = device()?;
        let buf = movable(&counts)?;
        let other = movable(&Counts::new()?)?;
        let follower = || Follower {
            counts: counts.clone(),
            unmap: true,
        };

        counts.fail_next(Op::Attach);
        assert!(buf.attach_dynamic(bound(&device), follower()).err() == Some(EREMOTEIO));
        assert!(counts.are(&[(Op::Attach, 1), (Op::ImporterDrop, 1)]));

        let attachment = buf.attach_dynamic(bound(&device), follower())?;
        let locked = buf.resv().lock();

        counts.fail_next(Op::Map);
        assert!(attachment
            .map(DataDirection::ToDevice, &locked)
            .is_err_and(|error| error == EREMOTEIO));
        assert!(attachment.with_table(&locked, |_| ())?.is_none());
        counts.fail_next(Op::Pin);
        assert!(attachment
            .pin(&locked)
            .is_err_and(|error| error == EREMOTEIO));
        drop(locked);

        let wrong = other.resv().lock();

        assert!(attachment.with_table(&wrong, |_| ()).is_err());
        assert!(attachment.unmap(&wrong).is_err());
        assert!(attachment.pin(&wrong).is_err());
        assert!(attachment.map(DataDirection::ToDevice, &wrong).is_err());
        assert!(buf
            .invalidate_mappings::<MockExporter<true>>(&wrong)
            .is_err());
        drop(wrong);
        drop(attachment);
        assert!(counts.are(&[
            (Op::Attach, 2),
            (Op::Map, 1),
            (Op::Pin, 1),
            (Op::Detach, 1),
            (Op::ImporterDrop, 2),
        ]));
        Ok(())
    }

    /// What a driver keeps of an attachment in an object of its own may outlive the binding.
    #[test]
    fn unbinding_ends_a_stored_dynamic_attachment() -> Result {
        for leak in [false, cfg!(not(CONFIG_DEBUG_KMEMLEAK))] {
            let counts = Counts::new()?;
            let device = device()?;
            let buf = movable(&counts)?;
            let follower = Follower {
                counts: counts.clone(),
                unmap: true,
            };
            let attachment = buf.attach_dynamic(bound(&device), follower)?.into_devres();
            let other =
                faux::Registration::new_with_dma_mask(c"other", None, DmaMask::new::<64>())?;
            let raw = bound(&device).as_raw();
            let to_device = DataDirection::ToDevice;
            let (kept, dropped) = {
                let locked = buf.resv().lock();

                attachment.map(bound(&device), to_device, &locked)?;
                assert!(attachment.map(bound(&other), to_device, &locked) == Err(EINVAL));
                assert!(attachment.pin(bound(&other), &locked).err() == Some(EINVAL));
                // Where something fails under the lock, it is not taken again.
                drop(attachment.pin(bound(&device), &locked)?);

                let kept = attachment.pin(bound(&device), &locked)?.keep();
                let dropped = attachment.pin(bound(&device), &locked)?.keep();

                (kept, dropped)
            };

            drop(dropped);
            assert_eq!((counts.of(Op::Pin), counts.of(Op::Unpin)), (3, 2));
            // SAFETY: The device is registered, and nothing but this test uses its being bound.
            unsafe { bindings::device_release_driver(raw) };
            assert_eq!((counts.of(Op::Map), counts.of(Op::Unmap)), (1, 1));
            assert_eq!((counts.of(Op::Pin), counts.of(Op::Unpin)), (3, 3));
            assert_eq!((counts.of(Op::Attach), counts.of(Op::Detach)), (1, 1));

            // SAFETY: As above.
            assert_eq!(unsafe { bindings::device_attach(raw) }, 1);
            {
                let locked = buf.resv().lock();

                assert!(attachment.map(bound(&device), to_device, &locked) == Err(ENODEV));
                assert!(attachment.pin(bound(&device), &locked).err() == Some(ENODEV));
                assert!(attachment.with_table(&locked, |_| ())?.is_none());
                attachment.unmap(&locked)?;
            }
            if leak {
                core::mem::forget((kept, attachment));
            } else {
                drop(kept);
                drop(attachment);
                assert_eq!(counts.of(Op::ImporterDrop), 1);
            }
            assert_eq!((counts.of(Op::Pin), counts.of(Op::Unpin)), (3, 3));
            assert_eq!((counts.of(Op::Attach), counts.of(Op::Detach)), (1, 1));
        }
        Ok(())
    }

    /// Several buffers may have one reservation object, that of the object they are parts of.
    #[test]
    fn buffers_share_a_reservation_object() -> Result {
        let object = Object::new()?;
        let (one, two) = (object.export()?, object.export()?);
        let device = device()?;
        let attached = (one.attach(bound(&device))?, two.attach(bound(&device))?);

        assert_eq!(one.resv().as_raw(), object.resv.as_raw());
        {
            // One lock is that of either.
            let locked = object.resv.lock();

            assert!(two.resv().try_lock().is_none());
            drop(attached.0.map_locked(DataDirection::ToDevice, &locked)?);
            drop(attached.1.map_locked(DataDirection::ToDevice, &locked)?);
        }
        drop(attached);

        // The fences are those of the object, and it outlives the buffers.
        let work = FenceContext::new(c"kunit", c"kunit")?
            .new_fence(DriverFenceAllocation::new(GFP_KERNEL)?);

        one.resv().lock().add_fence(&work.fence(), Usage::Write)?;
        assert!(!two.resv().is_signaled(Usage::Write));
        drop((one, two));
        assert!(eventually(|| object.buffers.load(Relaxed) == 0));
        assert!(!object.resv.is_signaled(Usage::Write));
        work.signal(Ok(()));
        assert!(object.resv.is_signaled(Usage::Write));
        Ok(())
    }

    #[test]
    fn a_set_has_each_lock_once() -> Result {
        let (one, two) = (Object::new()?, Object::new()?);
        let other = Object::new()?;
        let set = ResvSet::lock_interruptible([&*one.resv, &*two.resv, &*one.resv])?;

        assert_eq!(set.iter().count(), 2);
        assert!(set.get(&one.resv).is_some() && set.get(&two.resv).is_some());
        assert!(set.get(&other.resv).is_none());
        assert!(one.resv.try_lock().is_none() && two.resv.try_lock().is_none());
        drop(set);
        assert!(one.resv.try_lock().is_some() && two.resv.try_lock().is_some());
        assert_eq!(ResvSet::lock_interruptible([])?.iter().count(), 0);
        Ok(())
    }

    /// Two threads that take the same locks in opposite order both come to their end.
    #[test]
    fn sets_do_not_deadlock() -> Result {
        let objects = [Object::new()?, Object::new()?, Object::new()?];
        let turns = Arc::new(Atomic::new(0u32), GFP_KERNEL)?;
        let mut threads = KVec::new();

        for backwards in [false, true] {
            let locker = KBox::new(
                Locker {
                    objects: objects.clone(),
                    turns: turns.clone(),
                    backwards,
                },
                GFP_KERNEL,
            )?;

            threads.push(kthread::spawn(c"kunit", locker)?, GFP_KERNEL)?;
        }
        assert!(eventually(|| turns.load(Relaxed) == 2 * LOCKER_TURNS));
        drop(threads);
        for object in &objects {
            assert!(object.resv.try_lock().is_some());
        }
        Ok(())
    }

    /// An exporter knows its own buffers.
    #[test]
    fn data_of_the_exporter() -> Result {
        let counts = Counts::new()?;
        let (fixed, movable) = (fixed(&counts)?, movable(&counts)?);
        let careless = export::<Careless>(
            KBox::new(Memory::new(SIZE, GFP_KERNEL)?, GFP_KERNEL)?,
            SIZE,
            flags::O_RDWR,
        )?;

        assert!(fixed
            .data::<MockExporter<false>>()
            .is_some_and(|mock| { core::ptr::eq(&*mock.counts, &*counts) }));
        assert!(fixed.data::<MockExporter<true>>().is_none());
        assert!(movable.data::<MockExporter<true>>().is_some());
        assert!(movable.data::<Careless>().is_none());
        assert!(careless.data::<Careless>().is_some());
        Ok(())
    }

    #[test]
    fn pins_are_undone() -> Result {
        let counts = Counts::new()?;
        let device = device()?;
        let buf = movable(&counts)?;
        let attachment = buf.attach_dynamic(
            bound(&device),
            Follower {
                counts: counts.clone(),
                unmap: true,
            },
        )?;
        let locked = buf.resv().lock();

        drop(attachment.pin(&locked)?);
        assert_eq!(counts.of(Op::Unpin), 1);

        let pinned = attachment.pin(&locked)?.keep();

        drop(locked);
        // Only the exporter may do this.
        assert!(buf
            .invalidate_mappings::<MockExporter<false>>(&buf.resv().lock())
            .is_err_and(|error| error == EINVAL));
        // The pin keeps the attachment.
        drop(attachment);
        assert_eq!(counts.of(Op::Unpin), 1);
        assert_eq!(counts.of(Op::Detach), 0);
        drop(pinned);
        assert_eq!(counts.of(Op::Pin), 2);
        assert_eq!(counts.of(Op::Unpin), 2);
        assert_eq!(counts.of(Op::Detach), 1);
        Ok(())
    }

    #[test]
    fn the_exporter_knows_its_importers() -> Result {
        let counts = Counts::new()?;
        let device = device()?;
        let buf = movable(&counts)?;

        drop(buf.attach(bound(&device))?);
        assert!(!counts.revocable.load(Relaxed));
        assert!(!counts.peer2peer.load(Relaxed));
        drop(buf.attach_dynamic(
            bound(&device),
            Follower {
                counts: counts.clone(),
                unmap: true,
            },
        )?);
        assert!(counts.revocable.load(Relaxed));
        assert!(counts.peer2peer.load(Relaxed));
        Ok(())
    }

    #[test]
    fn cpu_access_reads_what_was_written() -> Result {
        let counts = Counts::new()?;
        let buf = fixed(&counts)?;
        let data = [1, 2, 3, 4, 5];
        let mut read = [0; 5];
        let access = buf.cpu_access::<cpu::Write>()?;

        assert_eq!(access.size(), SIZE);
        access.copy_from_slice(SIZE - 5, &data)?;
        // All or nothing, and only what is there.
        assert!(access.copy_from_slice(SIZE - 4, &data).err() == Some(ERANGE));
        assert!(access.copy_from_slice(usize::MAX, &data).err() == Some(ERANGE));
        access.finish()?;
        assert!(counts.are(&[(Op::Vmap, 1), (Op::Begin, 1), (Op::End, 1), (Op::Vunmap, 1)]));

        let access = buf.cpu_access::<cpu::Read>()?;

        access.copy_to_slice(SIZE - 5, &mut read)?;
        assert!(read == data);
        assert!(access.copy_to_slice(SIZE - 4, &mut read).err() == Some(ERANGE));
        assert!(access.copy_to_slice(SIZE, &mut []).is_ok());
        drop(access);
        assert!(counts.are(&[(Op::Vmap, 2), (Op::Begin, 2), (Op::End, 2), (Op::Vunmap, 2)]));

        let access = buf.cpu_access::<cpu::ReadWrite>()?;
        let view = access.view()?;

        assert!(matches!(view, IoSysMap::Sys(_)));
        assert_eq!(io_project!(view, [try: SIZE - 5]).read_val(), 1);
        io_project!(view, [try: 0]).write_val(9);
        access.copy_to_slice(0, &mut read[..1])?;
        assert_eq!(read[0], 9);
        Ok(())
    }

    #[test]
    fn cpu_access_ends_whatever_fails() -> Result {
        let counts = Counts::new()?;
        let buf = fixed(&counts)?;

        counts.fail_next(Op::Begin);
        assert!(buf.cpu_access::<cpu::Read>().err() == Some(EREMOTEIO));
        assert!(counts.are(&[(Op::Vmap, 1), (Op::Begin, 1), (Op::Vunmap, 1)]));
        counts.fail_next(Op::End);
        assert!(buf.cpu_access::<cpu::Read>()?.finish().err() == Some(EREMOTEIO));
        assert!(counts.are(&[(Op::Vmap, 2), (Op::Begin, 2), (Op::End, 1), (Op::Vunmap, 2)]));
        if vmap_may_fail() {
            counts.fail_next(Op::Vmap);
            assert!(buf.cpu_access::<cpu::Read>().err() == Some(EREMOTEIO));
            assert!(counts.are(&[(Op::Vmap, 3), (Op::Begin, 2), (Op::End, 1), (Op::Vunmap, 2)]));
        }
        Ok(())
    }

    #[test]
    fn the_kernel_maps_once() -> Result {
        let counts = Counts::new()?;
        let buf = fixed(&counts)?;
        let first = buf.cpu_access::<cpu::Read>()?;
        let second = buf.cpu_access::<cpu::Read>()?;

        assert!(counts.are(&[(Op::Vmap, 1), (Op::Begin, 2)]));
        drop(first);
        assert_eq!(counts.of(Op::Vunmap), 0);
        drop(second);
        assert!(counts.are(&[(Op::Vmap, 1), (Op::Begin, 2), (Op::End, 2), (Op::Vunmap, 1)]));
        Ok(())
    }

    #[test]
    fn a_view_of_less_than_the_buffer_is_refused() -> Result {
        if !vmap_may_fail() {
            return Ok(());
        }

        let counts = Counts::new()?;
        let buf = mock::<false>(&counts, PAGE_SIZE)?;

        assert!(buf.cpu_access::<cpu::Read>().err() == Some(EINVAL));
        assert!(counts.are(&[(Op::Vmap, 1), (Op::Vunmap, 1)]));
        Ok(())
    }

    #[test]
    fn cpu_access_waits_for_devices() -> Result {
        let counts = Counts::new()?;
        let buf = fixed(&counts)?;
        let context = FenceContext::new(c"kunit", c"cpu")?;
        let fence = context.new_fence(DriverFenceAllocation::new(GFP_KERNEL)?);
        let locked = buf.resv().lock();

        locked.reserve_fences(1)?;
        locked.add_fence(&fence.fence(), Usage::Read)?;
        drop(locked);
        // A reader does not wait for readers.
        drop(buf.cpu_access::<cpu::Read>()?);
        fence.signal(Ok(()));
        drop(buf.cpu_access::<cpu::Write>()?);
        Ok(())
    }

    #[test]
    fn what_the_exporter_cannot_do() -> Result {
        let device = device()?;
        let memory = Memory::new(SIZE, GFP_KERNEL)?;
        let data = KBox::new(Frame(memory.clone()), GFP_KERNEL)?;
        let buf = export::<FrameExporter>(data, SIZE, flags::O_RDWR)?;

        assert!(buf.cpu_access::<cpu::Read>().err() == Some(EINVAL));

        // The buffer is larger than its memory.
        let data = KBox::new(Frame(memory), GFP_KERNEL)?;
        let buf = export::<FrameExporter>(data, SIZE + 1, flags::O_RDWR)?;
        let attachment = buf.attach(bound(&device))?;

        assert!(attachment.map(DataDirection::ToDevice).err() == Some(EINVAL));
        Ok(())
    }
}

/// The data of [`FrameExporter`] and, as a [`MemoryExporter`], of buffers of memory.
struct Frame(Arc<Memory>);

#[vtable]
impl MemoryExporter for Frame {
    const NAME: &'static CStr = c"kunit_memory";

    fn memory(&self) -> &Arc<Memory> {
        &self.0
    }
}

/// An exporter with nothing that is optional.
struct FrameExporter;

#[vtable]
impl Exporter for FrameExporter {
    const NAME: &'static CStr = c"kunit_frame";

    type Data = KBox<Frame>;
    type Attachment = ();

    fn attach(_data: &Frame, _attachment: &NewAttachment<'_>) -> Result {
        Ok(())
    }

    fn map<'a>(
        data: BorrowedData<'a, Self>,
        attachment: &Attached<'a, Self>,
        dir: DataDirection,
        _locked: &LockedResv,
    ) -> Result<MappedTable<'a>> {
        attachment.map(data.0.clone(), dir)
    }
}

#[kunit_tests(rust_dma_buf_memory)]
mod memory_suite {
    use super::*;

    #[test]
    fn memory_is_pages_of_zeroes() -> Result {
        assert!(Memory::new(0, GFP_KERNEL).err() == Some(EINVAL));
        assert!(Memory::new(usize::MAX, GFP_KERNEL).err() == Some(ENOMEM));

        let memory = Memory::new(PAGE_SIZE + 1, GFP_KERNEL)?;
        let mut data = KVec::from_elem(1u8, memory.size(), GFP_KERNEL)?;

        assert_eq!(memory.size(), 2 * PAGE_SIZE);
        memory.view().copy_to_slice(&mut data);
        assert!(data.iter().all(|byte| *byte == 0));
        Ok(())
    }

    #[test]
    fn export_memory_does_it_all() -> Result {
        let device = device()?;
        let memory = Memory::new(SIZE, GFP_KERNEL)?;
        let data = KBox::new(Frame(memory.clone()), GFP_KERNEL)?;
        let buf = export_memory(data, flags::O_RDWR)?;
        let attachment = buf.attach(bound(&device))?;
        let other = buf.attach(bound(&device))?;
        let to = attachment.map(DataDirection::ToDevice)?;
        let from = other.map(DataDirection::FromDevice)?;

        assert_eq!(buf.size(), SIZE);
        assert!(buf.exporter_name() == c"kunit_memory");

        // The two mappings are brought up to date on the way.
        let access = buf.cpu_access::<cpu::ReadWrite>()?;

        access.copy_from_slice(7, &[5])?;
        access.finish()?;
        drop(to);

        let access = buf.cpu_access::<cpu::Read>()?;
        let mut byte = [0];

        access.copy_to_slice(7, &mut byte)?;
        assert_eq!(byte[0], 5);
        drop(access);
        drop(from);
        assert_eq!(io_project!(memory.view(), [try: 7]).read_val(), 5);
        Ok(())
    }

    #[test]
    fn a_mapping_keeps_the_memory() -> Result {
        let device = device()?;
        let memory = Memory::new(SIZE, GFP_KERNEL)?;
        let data = KBox::new(Frame(memory), GFP_KERNEL)?;
        let mapping = {
            let buf = export_memory(data, flags::O_RDWR)?;

            buf.attach(bound(&device))?.map(DataDirection::ToDevice)?
        };
        assert_eq!(bytes(mapping.table().iter()), SIZE);
        Ok(())
    }

    #[test]
    fn segments_fit_the_device() -> Result {
        let device = device()?;

        // SAFETY: The device is registered, and nothing but this test uses it.
        unsafe { (*bound(&device).as_raw()).dma_parms = core::ptr::null_mut() };
        // More than the 64 KiB that a device takes which says nothing else.
        let memory = Memory::new(64 * PAGE_SIZE, GFP_KERNEL)?;
        let data = KBox::new(Frame(memory), GFP_KERNEL)?;
        let buf = export_memory(data, flags::O_RDWR)?;
        let mapping = buf.attach(bound(&device))?.map(DataDirection::ToDevice)?;

        assert!(mapping
            .table()
            .iter()
            .all(|entry| entry.dma_len() <= 0x10000));
        Ok(())
    }

    #[test]
    fn without_dma_nothing_is_mapped() -> Result {
        let device = faux::Registration::new(c"kunit_dma_buf_none", None)?;
        let memory = Memory::new(SIZE, GFP_KERNEL)?;
        let data = KBox::new(Frame(memory), GFP_KERNEL)?;
        let buf = export_memory(data, flags::O_RDWR)?;

        assert!(buf
            .attach(bound(&device))?
            .map(DataDirection::ToDevice)
            .is_err());
        Ok(())
    }
}

#[kunit_tests(rust_dma_resv)]
mod resv_suite {
    use super::*;

    fn fence(context: &FenceContext) -> Result<DriverFence> {
        Ok(context.new_fence(DriverFenceAllocation::new(GFP_KERNEL)?))
    }

    #[test]
    fn the_lock_is_exclusive() -> Result {
        let buf = fixed(&Counts::new()?)?;
        let other = fixed(&Counts::new()?)?;
        let resv = buf.resv();
        let locked = resv.lock();

        assert!(resv.try_lock().is_none());
        assert!(locked.is_of(resv));
        assert!(!locked.is_of(other.resv()));
        drop(locked);

        let locked = resv.try_lock();

        assert!(locked.is_some());
        drop(locked);
        drop(resv.lock_interruptible()?);
        assert!(resv.try_lock().is_some());
        Ok(())
    }

    #[test]
    fn fences_are_waited_for_by_usage() -> Result {
        let usages = [Usage::Kernel, Usage::Write, Usage::Read, Usage::Bookkeep];
        let context = FenceContext::new(c"kunit", c"resv")?;

        for added in usages {
            let buf = fixed(&Counts::new()?)?;
            let resv = buf.resv();
            let pending = fence(&context)?;
            let locked = resv.lock();

            locked.reserve_fences(1)?;
            locked.add_fence(&pending.fence(), added)?;
            drop(locked);
            for asked in usages {
                let waits = asked >= added;

                assert_eq!(resv.is_signaled(asked), !waits);
                assert_eq!(resv.fences(asked)?.len(), usize::from(waits));
                assert_eq!(resv.singleton(asked)?.is_some(), waits);
                assert_eq!(
                    resv.wait_timeout(asked, msecs_to_jiffies(1)).err(),
                    waits.then_some(ETIMEDOUT)
                );
                assert_eq!(
                    resv.wait_timeout(asked, 0).err(),
                    waits.then_some(ETIMEDOUT)
                );
            }
            pending.signal(Ok(()));
            assert!(resv.is_signaled(Usage::Bookkeep));
            resv.wait(Usage::Bookkeep)?;
            resv.wait_timeout(Usage::Bookkeep, 0)?;
            assert_eq!(resv.fences(Usage::Bookkeep)?.len(), 0);
        }
        assert_eq!(Usage::rw(true), Usage::Read);
        assert_eq!(Usage::rw(false), Usage::Write);
        Ok(())
    }

    #[test]
    fn fences_without_room_are_no_crash() -> Result {
        let buf = fixed(&Counts::new()?)?;
        let locked = buf.resv().lock();
        let mut pending = KVec::new();

        locked.reserve_fences(0)?;
        assert!(locked.reserve_fences(u32::MAX).err() == Some(ENOMEM));
        for _ in 0..40 {
            // Each of a context of its own, or one would replace the other.
            let context = FenceContext::new(c"kunit", c"resv")?;
            let fence = fence(&context)?;

            locked.add_fence(&fence.fence(), Usage::Read)?;
            pending.push(fence, GFP_KERNEL)?;
        }
        assert_eq!(buf.resv().fences(Usage::Read)?.len(), 40);

        // A snapshot that is left early gives all of it back.
        let mut fences = buf.resv().fences(Usage::Read)?;

        assert!(fences.next().is_some());
        drop(fences);
        Ok(())
    }

    #[test]
    fn containers_are_added_in_their_parts() -> Result {
        let first = fixed(&Counts::new()?)?;
        let second = fixed(&Counts::new()?)?;
        let (a, b) = (
            FenceContext::new(c"kunit", c"a")?,
            FenceContext::new(c"kunit", c"b")?,
        );
        let (a, b) = (fence(&a)?, fence(&b)?);
        let locked = first.resv().lock();

        locked.add_fence(&a.fence(), Usage::Read)?;
        locked.add_fence(&b.fence(), Usage::Read)?;
        drop(locked);

        let both = first.resv().singleton(Usage::Read)?.ok_or(ENOENT)?;

        assert_eq!(both.unwrapped().count(), 2);

        let locked = second.resv().lock();

        locked.add_fence(&both, Usage::Write)?;
        drop(locked);
        assert_eq!(second.resv().fences(Usage::Write)?.len(), 2);
        a.signal(Ok(()));
        assert!(!second.resv().is_signaled(Usage::Write));
        b.signal(Err(EIO));
        assert!(second.resv().is_signaled(Usage::Write));
        assert!(both.is_signaled());
        Ok(())
    }

    #[test]
    fn fences_outlive_the_buffer() -> Result {
        let buf = fixed(&Counts::new()?)?;
        let context = FenceContext::new(c"kunit", c"resv")?;
        let pending = fence(&context)?;
        let locked = buf.resv().lock();

        locked.add_fence(&pending.fence(), Usage::Write)?;
        drop(locked);

        let mut fences = buf.resv().fences(Usage::Write)?;

        drop(buf);
        drop(context);
        drop(pending);
        assert!(fences
            .next()
            .is_some_and(|fence| fence.status() == Some(Err(ECANCELED))));
        Ok(())
    }
}
