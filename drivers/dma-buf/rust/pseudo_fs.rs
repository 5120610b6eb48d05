// SPDX-License-Identifier: GPL-2.0

//! The `dmabuf` pseudo filesystem, in which each buffer has a file, a dentry and an inode.
//!
//! Buffer, embedded reservation object and inode are one object of the filesystem's inode cache.
//! Their lives differ in two ways, and both are served:
//!
//! - The buffer is released when its dentry gives up the inode: with its last file reference and
//!   its last mapping, or with the last `O_PATH` descriptor, which keeps the dentry but not the
//!   file. Whoever else keeps the inode, such as an inotify watch, has no influence.
//! - The memory is freed with the inode, an RCU grace period after.

use crate::{
    buffer::{
        self,
        Buffer, //
    },
    file, //
};

use kernel::{
    bindings,
    error::from_err_ptr,
    ffi::{
        c_char,
        c_int,
        c_void, //
    },
    fs::File,
    prelude::*,
    str::CStr,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        }, //
    },
    types::Opaque, //
};

use core::ptr::{
    null_mut,
    NonNull, //
};

/// An object of the inode cache.
///
/// The reservation object follows the buffer directly: that address is how
/// [`Buffer`] tells its own reservation object from one of the exporter's.
#[repr(C)]
pub(crate) struct BufferInode {
    inode: Opaque<bindings::inode>,
    buf: Opaque<bindings::dma_buf>,
    resv: Opaque<bindings::dma_resv>,
}

// The exporter's reservation object can never have the address of the embedded one, and no padding
// comes between the two.
const _: () = assert!(
    core::mem::offset_of!(BufferInode, resv)
        == core::mem::offset_of!(BufferInode, buf) + size_of::<bindings::dma_buf>()
);

/// The cache that [`alloc_inode`] takes from; set before the filesystem is mounted.
static INODE_CACHE: Atomic<*mut bindings::kmem_cache> = Atomic::new(null_mut());

/// The mount, or NULL before [`init()`].
static MOUNT: Atomic<*mut bindings::vfsmount> = Atomic::new(null_mut());

/// The number of the last inode. The numbers of the generic allocator are not unique.
static LAST_INO: Atomic<i64> = Atomic::new(0);

/// A structure in a static that is written by C code, or by Rust code under a lock.
#[repr(transparent)]
pub(crate) struct Shared<T>(Opaque<T>);

// SAFETY: `as_ptr()` only takes the address; the rest is promised to `new()`.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// # Safety
    ///
    /// All users must follow rules that exclude data races.
    pub(crate) const unsafe fn new(value: T) -> Self {
        Self(Opaque::new(value))
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.0.get()
    }
}

/// A table of operations in a static, for C code that only reads it.
#[repr(transparent)]
pub(crate) struct Table<T>(T);

// SAFETY: Nobody writes the table, by the promise to `new()`.
unsafe impl<T> Sync for Table<T> {}

impl<T> Table<T> {
    /// # Safety
    ///
    /// `value` must be plain data that nobody writes.
    pub(crate) const unsafe fn new(value: T) -> Self {
        Self(value)
    }

    pub(crate) fn as_ptr(&self) -> *const T {
        &self.0
    }
}

static FS_TYPE: Shared<bindings::file_system_type> =
    // SAFETY: Only the VFS uses it, with its locks.
    unsafe {
        Shared::new(bindings::file_system_type {
            name: c"dmabuf".to_bytes_with_nul().as_ptr().cast(),
            init_fs_context: Some(init_fs_context),
            kill_sb: Some(bindings::kill_anon_super),
            ..pin_init::zeroed()
        })
    };

static SUPER_OPS: Table<bindings::super_operations> =
    // SAFETY: Function pointers, which nobody writes.
    unsafe {
        Table::new(bindings::super_operations {
            alloc_inode: Some(alloc_inode),
            free_inode: Some(free_inode),
            statfs: Some(bindings::simple_statfs),
            ..pin_init::zeroed()
        })
    };

static DENTRY_OPS: Table<bindings::dentry_operations> =
    // SAFETY: Function pointers, which nobody writes.
    unsafe {
        Table::new(bindings::dentry_operations {
            d_dname: Some(d_dname),
            d_iput: Some(d_iput),
            ..pin_init::zeroed()
        })
    };

/// Makes the inode cache and mounts the filesystem.
pub(crate) fn init() -> Result {
    // SAFETY: `init_once` initialises the inode of the objects of this size, which starts the
    // object.
    let cache = unsafe {
        bindings::dma_buf_shim_create_inode_cache(
            // CAST: Some 900 bytes.
            size_of::<BufferInode>() as u32,
            Some(init_once),
        )
    };
    if cache.is_null() {
        return Err(ENOMEM);
    }
    INODE_CACHE.store(cache, Release);

    // SAFETY: `FS_TYPE` is a filesystem type that is never freed.
    let mount = from_err_ptr(unsafe { bindings::kern_mount(FS_TYPE.as_ptr()) })?;
    MOUNT.store(mount, Release);
    Ok(())
}

/// Unmounts the filesystem.
///
/// # Safety
///
/// Nobody may use the core from here on.
pub(crate) unsafe fn exit() {
    let mount = MOUNT.load(Acquire);

    if !mount.is_null() {
        // SAFETY: By the safety requirements the mount is not in use.
        unsafe { bindings::kern_unmount(mount) };
    }
}

/// # Safety
///
/// Called by the VFS, with a context that is being set up.
unsafe extern "C" fn init_fs_context(fc: *mut bindings::fs_context) -> c_int {
    // SAFETY: The caller passes a filesystem context that is being set up.
    let ctx = unsafe { bindings::init_pseudo(fc, bindings::DMA_BUF_MAGIC as usize) };

    if ctx.is_null() {
        return ENOMEM.to_errno();
    }
    // SAFETY: `init_pseudo()` returned a context that nobody else uses yet.
    unsafe {
        (*ctx).ops = SUPER_OPS.as_ptr();
        (*ctx).dops = DENTRY_OPS.as_ptr();
    }
    0
}

/// # Safety
///
/// Called by the slab allocator, with an object of the inode cache.
unsafe extern "C" fn init_once(object: *mut c_void) {
    // SAFETY: The slab allocator passes an object of the cache, which an inode starts.
    unsafe { bindings::inode_init_once(object.cast()) };
}

/// # Safety
///
/// Called by the VFS, with the superblock of the filesystem.
unsafe extern "C" fn alloc_inode(sb: *mut bindings::super_block) -> *mut bindings::inode {
    // SAFETY: The cache was made before the filesystem was mounted.
    let inode = unsafe { bindings::dma_buf_shim_alloc_inode(sb, INODE_CACHE.load(Acquire)) };

    if !inode.is_null() {
        let object: *mut BufferInode = inode.cast();

        // SAFETY: The object is from the cache and in nobody else's hands. Zeroes are what
        // `Buffer::init()` starts from; the inode keeps what `init_once()` made of it.
        unsafe {
            (&raw mut (*object).buf).write_bytes(0, 1);
            (&raw mut (*object).resv).write_bytes(0, 1);
        }
    }
    inode
}

/// # Safety
///
/// Called by the VFS, with an inode of this filesystem that nobody uses any more.
unsafe extern "C" fn free_inode(inode: *mut bindings::inode) {
    // SAFETY: `alloc_inode()` took it from this cache. Either nobody ever saw it, or a grace period
    // has passed since somebody could.
    unsafe { bindings::kmem_cache_free(INODE_CACHE.load(Acquire), inode.cast()) };
}

/// A file of the filesystem, with the memory for its buffer.
///
/// # Invariants
///
/// `buf` points to memory, zeroed or made a buffer by [`Buffer::export`], that is valid for as long
/// as the file is and not used by anybody else; `resv` to the same for a reservation object, which
/// follows it.
pub(crate) struct NewFile {
    pub(crate) file: ARef<File>,
    pub(crate) buf: NonNull<bindings::dma_buf>,
    pub(crate) resv: NonNull<bindings::dma_resv>,
}

impl NewFile {
    /// Makes a file whose mode is that of `flags`, all but `O_ACCMODE` and `O_NONBLOCK` left out.
    pub(crate) fn new(size: usize, flags: c_int) -> Result<Self> {
        let mount = MOUNT.load(Acquire);
        if mount.is_null() {
            return Err(ENODEV);
        }

        // SAFETY: The mount is never undone while anybody can export.
        let inode = from_err_ptr(unsafe { bindings::alloc_anon_inode((*mount).mnt_sb) })?;

        // CAST: Counts up from 1.
        let ino = LAST_INO.fetch_add(1, Relaxed).wrapping_add(1) as u64;
        // SAFETY: The inode is new and in nobody else's hands.
        unsafe {
            // CAST: As in C, a size past the largest file wraps.
            (*inode).i_size = size as i64;
            bindings::inode_set_bytes(inode, size as i64);
            (*inode).i_ino = ino;
        }

        let flags = flags & (bindings::O_ACCMODE | bindings::O_NONBLOCK) as c_int;
        // SAFETY: Inode and mount are valid, the name and the operations are static. The inode
        // reference passes to the file on success and stays ours on failure.
        let file = from_err_ptr(unsafe {
            bindings::alloc_file_pseudo(
                inode,
                mount,
                c"dmabuf".as_char_ptr(),
                flags,
                file::dma_buf_fops.as_ptr(),
            )
        })
        // SAFETY: As above.
        .inspect_err(|_| unsafe { bindings::iput(inode) })?;

        let object: *mut BufferInode = inode.cast();
        // INVARIANT: `alloc_inode()` made the object and zeroed these parts of it.
        // SAFETY: The file is new, and its one reference passes to the result; nobody has an fd for
        // it. The inode is part of an object of the cache.
        Ok(unsafe {
            Self {
                file: ARef::from_raw(NonNull::new_unchecked(file.cast())),
                buf: NonNull::new_unchecked((&raw mut (*object).buf).cast()),
                resv: NonNull::new_unchecked((&raw mut (*object).resv).cast()),
            }
        })
    }

    /// Ties the buffer to the file: from here on it is released with the file's dentry.
    ///
    /// # Safety
    ///
    /// The memory at `self.buf` must have become a buffer.
    pub(crate) unsafe fn publish(self) -> ARef<Buffer> {
        let file = ARef::into_raw(self.file);
        let raw: *mut bindings::file = file.as_ptr().cast();

        // SAFETY: The file is ours alone. Its dentry lives as long as it does.
        unsafe {
            (*raw).private_data = self.buf.as_ptr().cast();
            (*(*raw).__bindgen_anon_1.f_path.dentry).d_fsdata = self.buf.as_ptr().cast();
            (*self.buf.as_ptr()).file = raw;
        }
        // SAFETY: The file reference is that of the buffer, which is valid by the safety
        // requirements; `Buffer` is transparent.
        unsafe { ARef::from_raw(self.buf.cast()) }
    }
}

/// # Safety
///
/// Called by the VFS, with a dentry of this filesystem that is held, and a buffer of `len` bytes.
unsafe extern "C" fn d_dname(
    dentry: *mut bindings::dentry,
    buffer: *mut c_char,
    len: c_int,
) -> *mut c_char {
    // SAFETY: The caller holds the dentry.
    let buf: *mut bindings::dma_buf = unsafe { (*dentry).d_fsdata.cast() };
    let mut copy = [0u8; bindings::DMA_BUF_NAME_LEN as usize];

    let copy_name = |name: Option<&CStr>| {
        // The last byte stays NUL.
        for (to, from) in copy
            .iter_mut()
            .take(bindings::DMA_BUF_NAME_LEN as usize - 1)
            .zip(name.map_or(&b""[..], CStr::to_bytes))
        {
            *to = *from;
        }
    };

    // SAFETY: The dentry is held and can be seen by others, so it has a buffer, which has not been
    // released.
    unsafe { buffer::with_name(buf, copy_name) };
    // SAFETY: The buffer and its length are the caller's, the format takes one string.
    unsafe {
        bindings::dynamic_dname(
            buffer,
            len,
            c"/dmabuf:%s".as_char_ptr(),
            copy.as_ptr().cast::<c_char>(),
        )
    }
}

/// The dentry gives up its inode, for nobody uses it any more.
///
/// # Safety
///
/// Called by the VFS, with a dentry of this filesystem and its inode, whose reference passes on.
unsafe extern "C" fn d_iput(dentry: *mut bindings::dentry, inode: *mut bindings::inode) {
    // SAFETY: The caller passes a dentry of this filesystem. It has no buffer if making its file
    // failed.
    let buf = NonNull::new(unsafe { (*dentry).d_fsdata }.cast::<bindings::dma_buf>());

    // SAFETY: A buffer here has no reference left, and this runs once for it.
    if buf.is_none_or(|buf| unsafe { Buffer::release(buf) }) {
        // SAFETY: The reference of the dentry passes to this function.
        unsafe { bindings::iput(inode) };
    }
}
