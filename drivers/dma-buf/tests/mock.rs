// SPDX-License-Identifier: GPL-2.0

//! The mocks: an exporter that notes what it is called for, and what goes with it.

use kernel::{
    bindings,
    dma_buf::dma_fence::{
        DriverFence,
        DriverFenceAllocation,
        Fence,
        FenceContext, //
    },
    error::{
        from_err_ptr,
        to_result, //
    },
    ffi::{
        c_int,
        c_void, //
    },
    page::PAGE_SIZE,
    prelude::*,
    str::CString,
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
    },
    types::Opaque, //
};

use core::{
    ops::Deref,
    ptr::{
        addr_of_mut,
        null,
        null_mut, //
    }, //
};

pub(crate) const SIZE: usize = 3 * PAGE_SIZE;

pub(crate) const BIDIRECTIONAL: bindings::dma_data_direction =
    bindings::dma_data_direction::DMA_BIDIRECTIONAL;
pub(crate) const TO_DEVICE: bindings::dma_data_direction =
    bindings::dma_data_direction::DMA_TO_DEVICE;
pub(crate) const FROM_DEVICE: bindings::dma_data_direction =
    bindings::dma_data_direction::DMA_FROM_DEVICE;

pub(crate) const NONE: bindings::dma_data_direction = bindings::dma_data_direction::DMA_NONE;

pub(crate) const KERNEL: bindings::dma_resv_usage = bindings::dma_resv_usage_DMA_RESV_USAGE_KERNEL;
pub(crate) const WRITE: bindings::dma_resv_usage = bindings::dma_resv_usage_DMA_RESV_USAGE_WRITE;
pub(crate) const READ: bindings::dma_resv_usage = bindings::dma_resv_usage_DMA_RESV_USAGE_READ;
pub(crate) const BOOKKEEP: bindings::dma_resv_usage =
    bindings::dma_resv_usage_DMA_RESV_USAGE_BOOKKEEP;

/// What was called, or happened.
#[derive(Copy, Clone, PartialEq)]
#[repr(u32)]
pub(crate) enum Op {
    Attach,
    Detach,
    Pin,
    Unpin,
    Map,
    Unmap,
    Begin,
    End,
    Mmap,
    Vmap,
    Vunmap,
    Release,
    Invalidate,
    /// A fence has signalled.
    Signalled,
}

impl Op {
    /// Whether the reservation lock is held in this call, by the locking convention.
    fn locked(self) -> bool {
        matches!(
            self,
            Op::Pin | Op::Unpin | Op::Map | Op::Unmap | Op::Vmap | Op::Vunmap | Op::Invalidate
        )
    }
}

const CALLS: usize = 32;

/// An exporter's object: what `priv` of a buffer points to.
pub(crate) struct Mock {
    calls: [Atomic<u32>; CALLS],
    count: Atomic<u32>,
    /// Which operation fails, and how.
    fail: Atomic<u32>,
    errno: Atomic<i32>,
    /// The table that is mapped, unless none is.
    table: Opaque<bindings::sg_table>,
    pub(crate) no_table: Atomic<bool>,
    /// What was not as it has to be in some call; a sentence for the log goes with it.
    broken: Atomic<bool>,
    /// The arguments of the last calls.
    direction: Atomic<i32>,
    pub(crate) attached: Atomic<usize>,
    pub(crate) listed: Atomic<bool>,
    /// The file that the buffer had when it was released.
    pub(crate) file: Atomic<usize>,
    pub(crate) peer2peer: Atomic<bool>,
    /// Whether the device of an importer cannot reach the memory.
    pub(crate) out_of_reach: Atomic<bool>,
    pub(crate) importer: Atomic<usize>,
    /// The references to the module when the buffer was released.
    pub(crate) module: Atomic<usize>,
    pub(crate) owner_refs: Atomic<i32>,
    /// The offset of the last mapping, in pages.
    pub(crate) pgoff: Atomic<usize>,
    /// What vmap gives, and whether it says that this is memory of a device.
    memory: [Atomic<u32>; 8],
    pub(crate) is_iomem: Atomic<bool>,
}

// SAFETY: The memory of the table is the mock's, and bound to no thread.
unsafe impl Send for Mock {}
// SAFETY: Nobody writes into the table once a buffer is exported; all else is atomic.
unsafe impl Sync for Mock {}

impl Mock {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Self::with_segments(2)
    }

    /// A mock whose table has as many segments, of a page each but for the last, of two.
    ///
    /// There is one entry more, as if an IOMMU had merged two of them, and the entries have pages.
    /// Nobody but the exporter may look at those, so they may be anything.
    pub(crate) fn with_segments(segments: u32) -> Result<Arc<Self>> {
        let mock = Arc::new(
            Self {
                calls: [const { Atomic::new(u32::MAX) }; CALLS],
                count: Atomic::new(0),
                fail: Atomic::new(u32::MAX),
                errno: Atomic::new(0),
                table: Opaque::zeroed(),
                no_table: Atomic::new(false),
                broken: Atomic::new(false),
                direction: Atomic::new(-1),
                attached: Atomic::new(0),
                listed: Atomic::new(false),
                file: Atomic::new(0),
                peer2peer: Atomic::new(false),
                out_of_reach: Atomic::new(false),
                importer: Atomic::new(0),
                module: Atomic::new(0),
                owner_refs: Atomic::new(-1),
                pgoff: Atomic::new(0),
                memory: [const { Atomic::new(0) }; 8],
                is_iomem: Atomic::new(false),
            },
            GFP_KERNEL,
        )?;

        to_result(unsafe {
            bindings::sg_alloc_table(mock.table(), segments + 1, bindings::GFP_KERNEL)
        })?;
        unsafe {
            (*mock.table()).nents = segments;
            let mut sg = (*mock.table()).sgl;
            for i in 0..=segments as usize {
                (*sg).page_link |= PAGE_SIZE;
                (*sg).offset = 16;
                (*sg).length = 32;
                set_dma(sg, Self::segment(i, segments));
                sg = bindings::sg_next(sg);
            }
        }
        Ok(mock)
    }

    /// A mock whose first segment is not at the start of a page.
    pub(crate) fn unaligned() -> Result<Arc<Self>> {
        let mock = Self::new()?;
        let (addr, len) = Self::segment(0, 2);

        unsafe { set_dma((*mock.table()).sgl, (addr + 16, len)) };
        Ok(mock)
    }

    /// Address and length for the device of a segment.
    pub(crate) fn segment(i: usize, segments: u32) -> (u64, u32) {
        let pages = if i + 1 == segments as usize { 2 } else { 1 };

        (
            ((i as u64 + 1) * 16) * PAGE_SIZE as u64,
            pages * PAGE_SIZE as u32,
        )
    }

    /// # Safety
    ///
    /// `buf` must be a buffer of a mock, that is not released.
    unsafe fn of<'a>(buf: *mut bindings::dma_buf) -> &'a Self {
        unsafe { &*(*buf).priv_.cast::<Mock>() }
    }

    /// Notes a call. Who finds it there sees all that the caller did before.
    pub(crate) fn note(&self, op: Op) {
        let n = self.count.fetch_add(1, Relaxed) as usize;

        match self.calls.get(n) {
            Some(call) => call.store(op as u32, Release),
            None => self.broken("there are more calls than expected"),
        }
    }

    /// Has the test fail; at once if it is the test's thread, else in [`Self::called`].
    fn broken(&self, why: &str) {
        let test = unsafe { bindings::kunit_get_current_test() };

        pr_err!("{}\n", why);
        self.broken.store(true, Relaxed);
        if !test.is_null() {
            unsafe { (*test).status = bindings::kunit_status_KUNIT_FAILURE };
        }
    }

    /// Makes the next call for an operation, and all after it, fail.
    pub(crate) fn fail(&self, op: Op, error: Error) {
        self.errno.store(error.to_errno(), Relaxed);
        self.fail.store(op as u32, Relaxed);
    }

    pub(crate) fn succeed(&self) {
        self.fail.store(u32::MAX, Relaxed);
    }

    /// Whether exactly these were called, in this order, and all was as it has to be; since the
    /// last time, or [`Self::forget_calls`].
    pub(crate) fn called(&self, expected: &[Op]) -> bool {
        let count = self.count.load(Relaxed) as usize;
        let equal = count == expected.len()
            && expected
                .iter()
                .zip(&self.calls)
                .all(|(op, call)| call.load(Acquire) == *op as u32);

        if !equal {
            for call in self.calls.iter().take(count) {
                pr_err!("called: operation {}\n", call.load(Relaxed));
            }
        }
        self.forget_calls();
        equal && !self.broken.load(Relaxed)
    }

    /// Forgets what was called so far.
    pub(crate) fn forget_calls(&self) {
        for call in &self.calls {
            call.store(u32::MAX, Relaxed);
        }
        self.count.store(0, Relaxed);
    }

    /// Whether what was called last is this.
    pub(crate) fn ends_with(&self, op: Op) -> bool {
        match (self.count.load(Relaxed) as usize).checked_sub(1) {
            Some(n) => self.calls.get(n).map(|c| c.load(Acquire)) == Some(op as u32),
            None => false,
        }
    }

    /// Notes a call, and tells how it ends.
    ///
    /// # Safety
    ///
    /// `buf` must be a buffer of this mock.
    unsafe fn call(&self, op: Op, buf: *mut bindings::dma_buf) -> Result {
        if unsafe { is_locked((*buf).resv) } != op.locked() {
            self.broken("the locking convention is broken");
        }
        self.note(op);
        if self.fail.load(Relaxed) == op as u32 {
            return Err(Error::from_errno(self.errno.load(Relaxed)));
        }
        Ok(())
    }

    /// The same for a call about an attachment.
    ///
    /// # Safety
    ///
    /// `attach` must be an attachment to a buffer of a mock.
    unsafe fn call_attached<'a>(
        op: Op,
        attach: *mut bindings::dma_buf_attachment,
    ) -> (&'a Self, Result) {
        unsafe {
            let mock = Self::of((*attach).dmabuf);

            if (*attach).priv_ != (*(*attach).dmabuf).priv_ {
                mock.broken("the exporter's data of the attachment is lost");
            }
            (mock, mock.call(op, (*attach).dmabuf))
        }
    }

    /// Whether the last call was for this direction.
    pub(crate) fn was_for(&self, direction: bindings::dma_data_direction) -> bool {
        self.direction.load(Relaxed) == direction.0
    }

    pub(crate) fn table(&self) -> *mut bindings::sg_table {
        self.table.get()
    }

    pub(crate) fn memory(&self) -> *mut c_void {
        self.memory.as_ptr().cast_mut().cast()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        unsafe { bindings::sg_free_table(self.table.get()) };
    }
}

/// # Safety
///
/// `sg` must be an entry of a table.
unsafe fn set_dma(sg: *mut bindings::scatterlist, (addr, len): (u64, u32)) {
    unsafe {
        (*sg).dma_address = addr as bindings::dma_addr_t;
        #[cfg(CONFIG_NEED_SG_DMA_LENGTH)]
        {
            (*sg).dma_length = len;
        }
        #[cfg(not(CONFIG_NEED_SG_DMA_LENGTH))]
        {
            (*sg).length = len;
        }
    }
}

/// # Safety
///
/// `resv` must be a reservation object.
pub(crate) unsafe fn is_locked(resv: *mut bindings::dma_resv) -> bool {
    unsafe { bindings::mutex_is_locked(addr_of_mut!((*resv).lock.base)) }
}

/// # Safety
///
/// `head` must be initialised.
pub(crate) unsafe fn is_empty(head: *const bindings::list_head) -> bool {
    unsafe { (*head).next.cast_const() == head }
}

/// What may have to wait for a work item: files are released by one, where there is no user space
/// to return to.
pub(crate) fn eventually(condition: impl Fn() -> bool) -> bool {
    for _ in 0..500 {
        if condition() {
            return true;
        }
        fsleep(Delta::from_millis(10));
    }
    condition()
}

/*
 * The operations of the exporter
 */

unsafe extern "C" fn attach(
    buf: *mut bindings::dma_buf,
    attach: *mut bindings::dma_buf_attachment,
) -> c_int {
    unsafe {
        let mock = Mock::of(buf);

        if (*attach).dmabuf != buf || (*attach).dev.is_null() || !(*attach).priv_.is_null() {
            mock.broken("the attachment is not ready when the exporter sees it");
        }
        mock.attached.store(attach as usize, Relaxed);
        mock.listed
            .store(!is_empty(&raw const (*buf).attachments), Relaxed);
        mock.peer2peer.store((*attach).peer2peer, Relaxed);
        mock.importer
            .store((*attach).importer_priv as usize, Relaxed);
        if mock.out_of_reach.load(Relaxed) {
            (*attach).peer2peer = false;
        }
        (*attach).priv_ = (*buf).priv_;
        result(mock.call(Op::Attach, buf))
    }
}

unsafe extern "C" fn detach(
    buf: *mut bindings::dma_buf,
    attach: *mut bindings::dma_buf_attachment,
) {
    let (mock, _) = unsafe { Mock::call_attached(Op::Detach, attach) };

    mock.listed
        .store(unsafe { !is_empty(&raw const (*buf).attachments) }, Relaxed);
    if unsafe { (*attach).dmabuf != buf } {
        mock.broken("the attachment is that of another buffer");
    }
}

unsafe extern "C" fn pin(attach: *mut bindings::dma_buf_attachment) -> c_int {
    result(unsafe { Mock::call_attached(Op::Pin, attach) }.1)
}

unsafe extern "C" fn unpin(attach: *mut bindings::dma_buf_attachment) {
    let _ = unsafe { Mock::call_attached(Op::Unpin, attach) };
}

unsafe extern "C" fn map(
    attach: *mut bindings::dma_buf_attachment,
    direction: bindings::dma_data_direction,
) -> *mut bindings::sg_table {
    let (mock, result) = unsafe { Mock::call_attached(Op::Map, attach) };

    mock.direction.store(direction.0, Relaxed);
    match result {
        Err(e) => e.to_ptr(),
        Ok(()) if mock.no_table.load(Relaxed) => null_mut(),
        Ok(()) => mock.table.get(),
    }
}

unsafe extern "C" fn unmap(
    attach: *mut bindings::dma_buf_attachment,
    table: *mut bindings::sg_table,
    direction: bindings::dma_data_direction,
) {
    let (mock, _) = unsafe { Mock::call_attached(Op::Unmap, attach) };

    if table != mock.table.get() {
        mock.broken("what is unmapped is not what was mapped");
    }
    if !mock.was_for(direction) {
        mock.broken("the direction is another one than when it was mapped");
    }
}

unsafe extern "C" fn begin(
    buf: *mut bindings::dma_buf,
    direction: bindings::dma_data_direction,
) -> c_int {
    let mock = unsafe { Mock::of(buf) };

    mock.direction.store(direction.0, Relaxed);
    result(unsafe { mock.call(Op::Begin, buf) })
}

unsafe extern "C" fn end(
    buf: *mut bindings::dma_buf,
    direction: bindings::dma_data_direction,
) -> c_int {
    let mock = unsafe { Mock::of(buf) };

    mock.direction.store(direction.0, Relaxed);
    result(unsafe { mock.call(Op::End, buf) })
}

unsafe extern "C" fn mmap(
    buf: *mut bindings::dma_buf,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    let mock = unsafe { Mock::of(buf) };

    if unsafe { (*vma).vm_file != (*buf).file } {
        mock.broken("the mapping is not of the buffer");
    }
    mock.pgoff.store(unsafe { (*vma).vm_pgoff }, Relaxed);
    result(unsafe { mock.call(Op::Mmap, buf) })
}

unsafe extern "C" fn vmap(buf: *mut bindings::dma_buf, map: *mut bindings::iosys_map) -> c_int {
    let mock = unsafe { Mock::of(buf) };

    unsafe {
        (*map).__bindgen_anon_1.vaddr = mock.memory();
        (*map).is_iomem = mock.is_iomem.load(Relaxed);
    }
    result(unsafe { mock.call(Op::Vmap, buf) })
}

unsafe extern "C" fn vunmap(buf: *mut bindings::dma_buf, map: *mut bindings::iosys_map) {
    let mock = unsafe { Mock::of(buf) };

    if unsafe { (*map).__bindgen_anon_1.vaddr } != mock.memory()
        || unsafe { (*map).is_iomem } != mock.is_iomem.load(Relaxed)
    {
        mock.broken("what is unmapped is not what was mapped");
    }
    let _ = unsafe { mock.call(Op::Vunmap, buf) };
}

unsafe extern "C" fn release(buf: *mut bindings::dma_buf) {
    // The reference that the buffer had.
    let mock = unsafe { Arc::from_raw((*buf).priv_.cast::<Mock>()) };
    let module = mock.module.load(Relaxed) as *mut bindings::module;

    mock.listed.store(is_registered(buf), Relaxed);
    mock.file.store(unsafe { (*buf).file } as usize, Relaxed);
    if !module.is_null() {
        mock.owner_refs.store(module_refs(module), Relaxed);
    }
    let _ = unsafe { mock.call(Op::Release, buf) };
}

/// What C gets for a result.
fn result(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(e) => e.to_errno(),
    }
}

/// An exporter whose memory stays where it is.
pub(crate) static FIXED: bindings::dma_buf_ops = bindings::dma_buf_ops {
    attach: Some(attach),
    detach: Some(detach),
    map_dma_buf: Some(map),
    unmap_dma_buf: Some(unmap),
    release: Some(release),
    begin_cpu_access: Some(begin),
    end_cpu_access: Some(end),
    mmap: Some(mmap),
    vmap: Some(vmap),
    vunmap: Some(vunmap),
    ..pin_init::zeroed()
};

/// An exporter whose memory may move.
pub(crate) static MOVABLE: bindings::dma_buf_ops = bindings::dma_buf_ops {
    attach: Some(attach),
    detach: Some(detach),
    pin: Some(pin),
    unpin: Some(unpin),
    map_dma_buf: Some(map),
    unmap_dma_buf: Some(unmap),
    release: Some(release),
    begin_cpu_access: Some(begin),
    end_cpu_access: Some(end),
    mmap: Some(mmap),
    vmap: Some(vmap),
    vunmap: Some(vunmap),
};

/// An exporter with no more than it must have.
pub(crate) static LEAST: bindings::dma_buf_ops = bindings::dma_buf_ops {
    map_dma_buf: Some(map),
    unmap_dma_buf: Some(unmap),
    release: Some(release),
    ..pin_init::zeroed()
};

unsafe extern "C" fn map_any(
    attach: *mut bindings::dma_buf_attachment,
    direction: bindings::dma_data_direction,
) -> *mut bindings::sg_table {
    unsafe { (*attach).priv_ = (*(*attach).dmabuf).priv_ };
    unsafe { map(attach, direction) }
}

/// The same, for attachments: without `attach`, nobody gives them data.
pub(crate) static NO_ATTACH: bindings::dma_buf_ops = bindings::dma_buf_ops {
    map_dma_buf: Some(map_any),
    unmap_dma_buf: Some(unmap),
    release: Some(release),
    ..pin_init::zeroed()
};

/*
 * Importers
 */

unsafe extern "C" fn invalidate(attach: *mut bindings::dma_buf_attachment) {
    let (mock, _) = unsafe { Mock::call_attached(Op::Invalidate, attach) };

    mock.attached.store(attach as usize, Relaxed);
}

/// The operations of a dynamic importer that follows, and can do peer-to-peer DMA.
pub(crate) static FOLLOWS: bindings::dma_buf_attach_ops = bindings::dma_buf_attach_ops {
    allow_peer2peer: true,
    invalidate_mappings: Some(invalidate),
};

/// The operations of a dynamic importer that is not told when the memory moves.
pub(crate) static DEAF: bindings::dma_buf_attach_ops = bindings::dma_buf_attach_ops {
    allow_peer2peer: false,
    invalidate_mappings: None,
};

/// A device.
pub(crate) struct Device(*mut bindings::faux_device);

impl Device {
    pub(crate) fn new() -> Result<Self> {
        // Of a test that fails, the device stays.
        static NEXT: Atomic<u32> = Atomic::new(0);
        let name = CString::try_from_fmt(fmt!("dma-buf-kunit.{}", NEXT.fetch_add(1, Relaxed)))?;
        let ptr = unsafe { bindings::faux_device_create(name.as_char_ptr(), null_mut(), null()) };

        if ptr.is_null() {
            return Err(ENODEV);
        }
        Ok(Self(ptr))
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::device {
        unsafe { &raw mut (*self.0).dev }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        unsafe { bindings::faux_device_destroy(self.0) };
    }
}

/*
 * Buffers
 */

/// What is exported: a `struct dma_buf_export_info` with a mock as its object.
pub(crate) struct Export {
    pub(crate) info: bindings::dma_buf_export_info,
    pub(crate) mock: Arc<Mock>,
}

impl Export {
    pub(crate) fn new(ops: &'static bindings::dma_buf_ops) -> Result<Self> {
        Self::of(Mock::new()?, ops)
    }

    pub(crate) fn of(mock: Arc<Mock>, ops: &'static bindings::dma_buf_ops) -> Result<Self> {
        Ok(Self {
            info: bindings::dma_buf_export_info {
                exp_name: c"kunit".as_char_ptr(),
                owner: null_mut(),
                ops,
                size: SIZE,
                flags: bindings::O_RDWR as c_int,
                resv: null_mut(),
                priv_: Arc::as_ptr(&mock).cast_mut().cast(),
            },
            mock,
        })
    }

    pub(crate) fn sized(mut self, size: usize) -> Self {
        self.info.size = size;
        self
    }

    pub(crate) fn flags(mut self, flags: u32) -> Self {
        self.info.flags = flags as c_int;
        self
    }

    /// Calls `dma_buf_export()`. On success the buffer has a reference to the mock.
    pub(crate) fn export(&self) -> Result<Buf> {
        let ptr = from_err_ptr(unsafe { bindings::dma_buf_export(&self.info) })?;

        let _ = Arc::into_raw(self.mock.clone());
        Ok(Buf {
            ptr,
            mock: self.mock.clone(),
        })
    }
}

/// A buffer of the mock exporter, and a reference to it.
pub(crate) struct Buf {
    pub(crate) ptr: *mut bindings::dma_buf,
    pub(crate) mock: Arc<Mock>,
}

impl Buf {
    pub(crate) fn new(ops: &'static bindings::dma_buf_ops) -> Result<Self> {
        Export::new(ops)?.export()
    }

    pub(crate) fn resv(&self) -> *mut bindings::dma_resv {
        unsafe { (*self.ptr).resv }
    }

    pub(crate) fn file(&self) -> *mut bindings::file {
        unsafe { (*self.ptr).file }
    }

    pub(crate) fn fops(&self) -> &bindings::file_operations {
        unsafe { &*(*self.file()).f_op }
    }

    /// How many references there are.
    pub(crate) fn refs(&self) -> usize {
        unsafe { bindings::file_count(self.file()) as usize }
    }

    /// One more reference, as by `get_dma_buf()`.
    pub(crate) fn get(&self) {
        unsafe { bindings::get_file(self.file()) };
    }

    /// Gives up the reference without putting it.
    pub(crate) fn forget(self) -> (*mut bindings::dma_buf, Arc<Mock>) {
        let this = core::mem::ManuallyDrop::new(self);

        // SAFETY: `this` is not dropped.
        (this.ptr, unsafe { core::ptr::read(&this.mock) })
    }

    /// Holds the reservation lock.
    pub(crate) fn lock(&self) -> Locked<'_> {
        unsafe { bindings::dma_resv_lock(self.resv(), null_mut()) };
        Locked(self)
    }

    pub(crate) fn is_locked(&self) -> bool {
        unsafe { is_locked(self.resv()) }
    }

    /// Adds a fence to the reservation object.
    pub(crate) fn add(&self, fence: &DriverFence, usage: bindings::dma_resv_usage) -> Result {
        let _lock = self.lock();

        to_result(unsafe { bindings::dma_resv_reserve_fences(self.resv(), 1) })?;
        unsafe { bindings::dma_resv_add_fence(self.resv(), fence.as_ref().as_raw(), usage) };
        Ok(())
    }

    /// Calls `dma_buf_attach()`.
    pub(crate) fn attach<'a>(&'a self, device: &'a Device) -> Result<Attachment<'a>> {
        let ptr = from_err_ptr(unsafe { bindings::dma_buf_attach(self.ptr, device.as_ptr()) })?;

        Ok(Attachment { ptr, buf: self })
    }

    /// Calls `dma_buf_dynamic_attach()`.
    pub(crate) fn attach_dynamic<'a>(
        &'a self,
        device: &'a Device,
        ops: &'static bindings::dma_buf_attach_ops,
        data: usize,
    ) -> Result<Attachment<'a>> {
        let ptr = from_err_ptr(unsafe {
            bindings::dma_buf_dynamic_attach(self.ptr, device.as_ptr(), ops, data as *mut c_void)
        })?;

        Ok(Attachment { ptr, buf: self })
    }
}

/// Releases the buffer here and now, if this is the last reference, unlike `dma_buf_put()`, which
/// has its own tests.
impl Drop for Buf {
    fn drop(&mut self) {
        unsafe { bindings::__fput_sync(self.file()) };
    }
}

/// The reservation lock, held.
pub(crate) struct Locked<'a>(&'a Buf);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        unsafe { bindings::dma_resv_unlock(self.0.resv()) };
    }
}

/// An attachment, detached when dropped.
pub(crate) struct Attachment<'a> {
    pub(crate) ptr: *mut bindings::dma_buf_attachment,
    pub(crate) buf: &'a Buf,
}

impl Attachment<'_> {
    /// Calls `dma_buf_map_attachment()`, with the lock held.
    pub(crate) fn map(
        &self,
        direction: bindings::dma_data_direction,
    ) -> Result<*mut bindings::sg_table> {
        let _lock = self.buf.lock();

        from_err_ptr(unsafe { bindings::dma_buf_map_attachment(self.ptr, direction) })
    }

    /// Calls `dma_buf_map_attachment_unlocked()`.
    pub(crate) fn map_unlocked(
        &self,
        direction: bindings::dma_data_direction,
    ) -> Result<*mut bindings::sg_table> {
        from_err_ptr(unsafe { bindings::dma_buf_map_attachment_unlocked(self.ptr, direction) })
    }

    /// Calls `dma_buf_unmap_attachment()`, with the lock held.
    pub(crate) fn unmap(
        &self,
        table: *mut bindings::sg_table,
        direction: bindings::dma_data_direction,
    ) {
        let _lock = self.buf.lock();

        unsafe { bindings::dma_buf_unmap_attachment(self.ptr, table, direction) };
    }
}

impl Deref for Attachment<'_> {
    type Target = bindings::dma_buf_attachment;

    fn deref(&self) -> &Self::Target {
        unsafe { &*self.ptr }
    }
}

impl Drop for Attachment<'_> {
    fn drop(&mut self) {
        unsafe { bindings::dma_buf_detach(self.buf.ptr, self.ptr) };
    }
}

/// Whether the iterators find a buffer. Takes references to the others, for as long as it looks.
pub(crate) fn is_registered(buf: *mut bindings::dma_buf) -> bool {
    let mut found = false;

    for_each_buffer(|other| found |= other == buf);
    found
}

/// Calls `dma_buf_iter_begin()` and `dma_buf_iter_next()` to the end.
pub(crate) fn for_each_buffer(mut f: impl FnMut(*mut bindings::dma_buf)) {
    let mut buf = unsafe { bindings::dma_buf_iter_begin() };

    while !buf.is_null() {
        f(buf);
        buf = unsafe { bindings::dma_buf_iter_next(buf) };
    }
}

/*
 * Modules
 */

/// A module that owns an exporter.
#[cfg(CONFIG_MODULE_UNLOAD)]
pub(crate) struct Module(KBox<Opaque<bindings::module>>);

#[cfg(CONFIG_MODULE_UNLOAD)]
impl Module {
    /// A module with as many references.
    pub(crate) fn new(refs: i32) -> Result<Self> {
        let module = KBox::new(Opaque::<bindings::module>::zeroed(), GFP_KERNEL)?;

        unsafe { (*module.get()).refcnt.counter = refs };
        Ok(Self(module))
    }

    /// As while it is unloaded.
    pub(crate) fn going(self) -> Self {
        unsafe { (*self.as_ptr()).state = bindings::module_state_MODULE_STATE_GOING };
        self
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::module {
        self.0.get()
    }

    pub(crate) fn refs(&self) -> i32 {
        module_refs(self.as_ptr())
    }
}

fn module_refs(module: *mut bindings::module) -> i32 {
    #[cfg(CONFIG_MODULE_UNLOAD)]
    return unsafe { (&raw const (*module).refcnt.counter).read_volatile() };
    #[cfg(not(CONFIG_MODULE_UNLOAD))]
    return if module.is_null() { 0 } else { 1 };
}

/*
 * Fences
 */

/// A fence that has not signalled.
pub(crate) fn fence() -> Result<DriverFence> {
    let context = FenceContext::new(c"kunit", c"dma-buf")?;

    Ok(context.new_fence(DriverFenceAllocation::new(GFP_KERNEL)?))
}

/// How many references a fence has.
pub(crate) fn fence_refs(fence: &Fence) -> i32 {
    unsafe { (&raw const (*fence.as_raw()).refcount.refcount.refs.counter).read_volatile() }
}

unsafe extern "C" fn run<F: FnOnce()>(f: *mut c_void) -> c_int {
    let f = unsafe { KBox::<F>::from_raw(f.cast()) };

    KBox::into_inner(f)();
    0
}

/// Runs `f` in another thread. The code is there for as long, as these tests are never a module.
///
/// # Safety
///
/// What `f` has addresses of, as numbers, must outlive it.
pub(crate) unsafe fn in_thread<F: FnOnce() + Send + 'static>(f: F) -> Result {
    let f = KBox::new(f, GFP_KERNEL)?;

    let data = KBox::into_raw(f);

    unsafe {
        let task = from_err_ptr(bindings::kthread_create_on_node(
            Some(run::<F>),
            data.cast(),
            bindings::NUMA_NO_NODE,
            c"dma-buf-kunit".as_char_ptr(),
        ))
        .inspect_err(|_| drop(KBox::from_raw(data)))?;
        bindings::wake_up_process(task);
    }
    Ok(())
}

/// Has a fence signalled by another thread, a little after the mock is called for `op`. The mock
/// notes it first.
pub(crate) fn signal_after(op: Op, fence: DriverFence, mock: &Arc<Mock>) -> Result {
    let mock = mock.clone();

    // SAFETY: It owns what it uses.
    unsafe {
        in_thread(move || {
            eventually(|| mock.ends_with(op));
            fsleep(Delta::from_millis(50));
            mock.note(Op::Signalled);
            fence.signal(Ok(()));
        })
    }
}

/// Runs `f` with a signal pending, so that it waits for nothing.
pub(crate) fn interrupted<T>(f: impl FnOnce() -> T) -> T {
    const SIGUSR1: c_int = bindings::SIGUSR1 as c_int;
    /// Lets a kernel thread have the signal (`SIG_KTHREAD`, as in `allow_signal()`).
    const ALLOW: usize = 2;

    unsafe {
        let task = bindings::get_current();

        bindings::kernel_sigaction(
            SIGUSR1,
            core::mem::transmute::<usize, bindings::__sighandler_t>(ALLOW),
        );
        bindings::send_sig(SIGUSR1, task, 1);
        let result = f();
        bindings::flush_signals(task);
        // SIG_IGN.
        bindings::kernel_sigaction(
            SIGUSR1,
            core::mem::transmute::<usize, bindings::__sighandler_t>(1),
        );
        result
    }
}

/// Runs `f`, with its warnings kept from the console, and tells how many there were.
pub(crate) fn warnings<T>(f: impl FnOnce() -> T) -> (T, i32) {
    unsafe {
        let test = bindings::kunit_get_current_test();
        let suppressed = bindings::kunit_start_suppress_warning(test);
        let result = f();

        if suppressed.is_null() {
            return (result, -1);
        }
        let count = bindings::kunit_suppressed_warning_count(suppressed);
        bindings::kunit_end_suppress_warning(test, suppressed);
        (result, count)
    }
}

/// Ends a test that this machine cannot do.
#[cfg(CONFIG_PCI_P2PDMA)]
pub(crate) fn skip(why: &CStr) -> Result {
    let test = unsafe { bindings::kunit_get_current_test() };

    unsafe {
        (*test).status = bindings::kunit_status_KUNIT_SKIPPED;
        for (to, from) in (*test).status_comment.iter_mut().zip(why.to_bytes()) {
            // CAST: The type of a character is the architecture's.
            *to = *from as kernel::ffi::c_char;
        }
    }
    Ok(())
}
