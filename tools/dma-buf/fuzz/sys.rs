// SPDX-License-Identifier: GPL-2.0

//! System calls: the C library's, made safe by what they are given.
//!
//! All return what the call returns, or the negated errno. Pointers that the kernel writes through
//! are slices, which are borrowed for the call, or an [`Addr`].

use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void, CStr};

/// An address to give to the kernel: of memory in which no object of this program lives, or of no
/// memory at all. So it is safe for the kernel to do with it what it likes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Addr(usize);

pub const O_RDONLY: i32 = 0;
pub const O_WRONLY: i32 = 1;
pub const O_RDWR: i32 = 2;
pub const O_NONBLOCK: i32 = 0o4000;
pub const O_CLOEXEC: i32 = 0o2000000;

/// Commands of fcntl(), none of which takes a pointer.
#[derive(Clone, Copy)]
pub enum Fcntl {
    GetFd = 1,
    SetFd = 2,
    GetFlags = 3,
    SetFlags = 4,
    DupFd = 1030,
    AddSeals = 1033,
    GetSeals = 1034,
}

pub const PROT_READ: i32 = 1;
pub const PROT_WRITE: i32 = 2;
pub const PROT_EXEC: i32 = 4;
pub const MAP_SHARED: i32 = 1;
pub const MAP_PRIVATE: i32 = 2;
const MAP_FIXED: i32 = 0x10;
const MAP_ANONYMOUS: i32 = 0x20;
const MAP_NORESERVE: i32 = 0x4000;

pub const POLLNVAL: i16 = 0x20;
pub const EBADF: i32 = 9;

const MSG_DONTWAIT: c_int = 0x40;
const MSG_CMSG_CLOEXEC: c_int = 0x4000_0000;
const AT_EMPTY_PATH: c_int = 0x1000;
const STATX_BASIC_STATS: c_uint = 0x7ff;

/// As many descriptors as one message carries here.
pub const MAX_PASSED: usize = 4;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PollFd {
    pub fd: i32,
    pub events: i16,
    pub revents: i16,
}

#[cfg_attr(target_arch = "x86_64", repr(C, packed))]
#[cfg_attr(not(target_arch = "x86_64"), repr(C))]
#[derive(Clone, Copy)]
pub struct EpollEvent {
    pub events: u32,
    pub data: u64,
}

#[repr(C)]
struct IoVec {
    base: *mut c_void,
    len: usize,
}

#[repr(C)]
struct MsgHdr {
    name: *mut c_void,
    namelen: c_uint,
    iov: *mut IoVec,
    iovlen: usize,
    control: *mut c_void,
    controllen: usize,
    flags: c_int,
}

/// The header and the data of a message with descriptors.
#[repr(C)]
struct Rights {
    len: usize,
    level: c_int,
    kind: c_int,
    fds: [c_int; MAX_PASSED],
}

const CMSG_HDR: usize = 16;
const SOL_SOCKET: c_int = 1;
const SCM_RIGHTS: c_int = 1;

extern "C" {
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn close(fd: c_int) -> c_int;
    fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int;
    fn fcntl(fd: c_int, cmd: c_int, ...) -> c_int;
    fn ioctl(fd: c_int, cmd: c_ulong, ...) -> c_int;
    fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
    fn read(fd: c_int, buf: *mut c_void, len: usize) -> isize;
    fn write(fd: c_int, buf: *const c_void, len: usize) -> isize;
    fn pread(fd: c_int, buf: *mut c_void, len: usize, offset: i64) -> isize;
    fn pwrite(fd: c_int, buf: *const c_void, len: usize, offset: i64) -> isize;
    fn ftruncate(fd: c_int, len: i64) -> c_int;
    fn fallocate(fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int;
    fn fsync(fd: c_int) -> c_int;
    fn statx(dir: c_int, path: *const c_char, flags: c_int, mask: c_uint, buf: *mut u8) -> c_int;
    fn fstatfs(fd: c_int, buf: *mut u64) -> c_int;
    fn readlink(path: *const c_char, buf: *mut u8, len: usize) -> isize;
    fn memfd_create(name: *const c_char, flags: c_uint) -> c_int;
    fn mmap(
        at: *mut c_void,
        len: usize,
        prot: c_int,
        how: c_int,
        fd: c_int,
        off: i64,
    ) -> *mut c_void;
    fn munmap(at: *mut c_void, len: usize) -> c_int;
    fn mprotect(at: *mut c_void, len: usize, prot: c_int) -> c_int;
    fn mremap(at: *mut c_void, old: usize, new: usize, flags: c_int, ...) -> *mut c_void;
    fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int;
    fn msync(at: *mut c_void, len: usize, flags: c_int) -> c_int;
    fn poll(fds: *mut PollFd, len: c_ulong, timeout: c_int) -> c_int;
    fn epoll_create1(flags: c_int) -> c_int;
    fn epoll_ctl(epoll: c_int, op: c_int, fd: c_int, event: *mut EpollEvent) -> c_int;
    fn epoll_wait(epoll: c_int, events: *mut EpollEvent, max: c_int, timeout: c_int) -> c_int;
    fn socketpair(domain: c_int, kind: c_int, protocol: c_int, fds: *mut c_int) -> c_int;
    fn sendmsg(fd: c_int, msg: *const MsgHdr, flags: c_int) -> isize;
    fn recvmsg(fd: c_int, msg: *mut MsgHdr, flags: c_int) -> isize;
    fn getpagesize() -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn siginterrupt(number: c_int, flag: c_int) -> c_int;
    fn setitimer(which: c_int, new: *const [c_long; 4], old: *mut [c_long; 4]) -> c_int;
    fn getpid() -> c_int;
    fn gettid() -> c_int;
    fn tgkill(group: c_int, thread: c_int, number: c_int) -> c_int;
}

fn errno() -> i64 {
    i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

fn ret(value: impl Into<i64>) -> i64 {
    match value.into() {
        -1 => -errno(),
        value => value,
    }
}

fn ret_size(value: isize) -> i64 {
    ret(value as c_long)
}

pub fn page() -> usize {
    // SAFETY: Takes nothing.
    unsafe { getpagesize() as usize }
}

/// The name of the task, which timelines of sw_sync have.
pub fn set_name(name: &CStr) {
    // SAFETY: PR_SET_NAME reads up to 16 bytes, and stops at the end of the string.
    unsafe { prctl(15, name.as_ptr()) };
}

pub fn sys_open(path: &CStr, flags: i32) -> i64 {
    // SAFETY: The path is a string.
    ret(unsafe { open(path.as_ptr(), flags, 0) })
}

pub fn sys_close(fd: i32) -> i64 {
    // SAFETY: The program uses no descriptors but by number.
    ret(unsafe { close(fd) })
}

pub fn sys_dup3(old: i32, new: i32, flags: i32) -> i64 {
    // SAFETY: As for `sys_close`.
    ret(unsafe { dup3(old, new, flags) })
}

pub fn sys_fcntl(fd: i32, cmd: Fcntl, arg: i32) -> i64 {
    // SAFETY: The argument of all these is a number.
    ret(unsafe { fcntl(fd, cmd as c_int, arg) })
}

pub fn sys_ioctl(fd: i32, cmd: u32, arg: Addr) -> i64 {
    // SAFETY: By what an address is.
    ret(unsafe { ioctl(fd, c_ulong::from(cmd), arg.0) })
}

/// The same, interrupted if it sleeps for long: until a fence that nobody signals, for one.
///
/// Only for the only thread.
pub fn sys_ioctl_limited(fd: i32, cmd: u32, arg: Addr) -> i64 {
    set_timer(PATIENCE);

    let result = sys_ioctl(fd, cmd, arg);

    set_timer(0);
    result
}

/// In microseconds. The results do not depend on it, as nobody else does anything meanwhile.
const PATIENCE: c_long = 5000;

/// Again and again, as the first time may be before the call sleeps.
fn set_timer(microseconds: c_long) {
    let timer = [0, microseconds, 0, microseconds];

    // SAFETY: ITIMER_REAL, whose signal has a handler, see `init_signals`.
    unsafe { setitimer(0, &timer, std::ptr::null_mut()) };
}

const SIGALRM: c_int = 14;

extern "C" fn ignore(_: c_int) {}

/// Signals do nothing but interrupt.
pub fn init_signals() {
    // SAFETY: The handler does nothing.
    unsafe {
        signal(SIGALRM, ignore);
        siginterrupt(SIGALRM, 1);
    }
}

pub fn thread_id() -> i32 {
    // SAFETY: Takes nothing.
    unsafe { gettid() }
}

/// Interrupts what another thread sleeps in.
pub fn interrupt(thread: i32) {
    // SAFETY: The signal has a handler, see `init_signals`. A thread that has ended is an error.
    unsafe { tgkill(getpid(), thread, SIGALRM) };
}

pub fn sys_lseek(fd: i32, offset: i64, whence: i32) -> i64 {
    // SAFETY: Takes no pointer.
    ret(unsafe { lseek(fd, offset, whence) })
}

pub fn sys_read(fd: i32, buf: &mut [u8]) -> i64 {
    // SAFETY: The slice is borrowed.
    ret_size(unsafe { read(fd, buf.as_mut_ptr().cast(), buf.len()) })
}

pub fn sys_write(fd: i32, buf: &[u8]) -> i64 {
    // SAFETY: The slice is borrowed.
    ret_size(unsafe { write(fd, buf.as_ptr().cast(), buf.len()) })
}

pub fn sys_pread(fd: i32, buf: &mut [u8], offset: i64) -> i64 {
    // SAFETY: The slice is borrowed.
    ret_size(unsafe { pread(fd, buf.as_mut_ptr().cast(), buf.len(), offset) })
}

pub fn sys_pwrite(fd: i32, buf: &[u8], offset: i64) -> i64 {
    // SAFETY: The slice is borrowed.
    ret_size(unsafe { pwrite(fd, buf.as_ptr().cast(), buf.len(), offset) })
}

pub fn sys_ftruncate(fd: i32, len: i64) -> i64 {
    // SAFETY: Takes no pointer.
    ret(unsafe { ftruncate(fd, len) })
}

pub fn sys_fallocate(fd: i32, mode: i32, offset: i64, len: i64) -> i64 {
    // SAFETY: Takes no pointer.
    ret(unsafe { fallocate(fd, mode, offset, len) })
}

pub fn sys_fsync(fd: i32) -> i64 {
    // SAFETY: Takes no pointer.
    ret(unsafe { fsync(fd) })
}

/// The mode, the size, and the number of blocks.
pub fn sys_fstat(fd: i32) -> Result<(u16, u64, u64), i64> {
    let mut buf = [0u8; 256];
    let path = c"".as_ptr();
    // SAFETY: A struct statx has 256 bytes.
    let result =
        ret(unsafe { statx(fd, path, AT_EMPTY_PATH, STATX_BASIC_STATS, buf.as_mut_ptr()) });

    if result < 0 {
        return Err(result);
    }

    let word = |at: usize| u64::from_ne_bytes(buf[at..at + 8].try_into().unwrap());

    Ok((u16::from_ne_bytes([buf[28], buf[29]]), word(40), word(48)))
}

/// The magic number and the size of a block of the file system.
pub fn sys_fstatfs(fd: i32) -> Result<(u64, u64), i64> {
    let mut buf = [0u64; 32];
    // SAFETY: A struct statfs is smaller.
    let result = ret(unsafe { fstatfs(fd, buf.as_mut_ptr()) });

    if result < 0 {
        return Err(result);
    }
    Ok((buf[0], buf[1]))
}

pub fn sys_readlink(path: &CStr, buf: &mut [u8]) -> i64 {
    // SAFETY: The path is a string, the slice is borrowed.
    ret_size(unsafe { readlink(path.as_ptr(), buf.as_mut_ptr(), buf.len()) })
}

pub fn sys_memfd(name: &CStr, flags: u32) -> i64 {
    // SAFETY: The name is a string.
    ret(unsafe { memfd_create(name.as_ptr(), flags) })
}

pub fn sys_poll(fds: &mut [PollFd]) -> i64 {
    // SAFETY: The slice is borrowed. Nothing is waited for.
    ret(unsafe { poll(fds.as_mut_ptr(), fds.len() as c_ulong, 0) })
}

pub fn sys_epoll_create(flags: i32) -> i64 {
    // SAFETY: Takes no pointer.
    ret(unsafe { epoll_create1(flags) })
}

pub fn sys_epoll_ctl(epoll: i32, op: i32, fd: i32, mut event: EpollEvent) -> i64 {
    // SAFETY: The event is a local variable.
    ret(unsafe { epoll_ctl(epoll, op, fd, &mut event) })
}

pub fn sys_epoll_wait(epoll: i32, events: &mut [EpollEvent]) -> i64 {
    // SAFETY: The slice is borrowed. Nothing is waited for.
    ret(unsafe { epoll_wait(epoll, events.as_mut_ptr(), events.len() as c_int, 0) })
}

/// A pair of sockets that never block.
pub fn sys_socketpair(fds: &mut [i32; 2]) -> i64 {
    let kind = 2 | O_NONBLOCK | O_CLOEXEC;

    // SAFETY: There is room for two. These are AF_UNIX and SOCK_DGRAM.
    ret(unsafe { socketpair(1, kind, 0, fds.as_mut_ptr()) })
}

/// Sends one byte, and up to [`MAX_PASSED`] descriptors.
pub fn sys_send(fd: i32, fds: &[i32]) -> i64 {
    let mut rights = Rights {
        len: CMSG_HDR + 4 * fds.len(),
        level: SOL_SOCKET,
        kind: SCM_RIGHTS,
        fds: [0; MAX_PASSED],
    };

    rights.fds[..fds.len()].copy_from_slice(fds);
    with_message(&mut rights, |msg| {
        msg.controllen = (CMSG_HDR + 4 * fds.len()).next_multiple_of(8);
        // SAFETY: All that the header points to lives until this returns.
        ret_size(unsafe { sendmsg(fd, msg, MSG_DONTWAIT) })
    })
}

/// Receives the same. The second value is how many descriptors there were.
pub fn sys_receive(fd: i32, fds: &mut [i32; MAX_PASSED]) -> (i64, usize) {
    let mut rights = Rights {
        len: 0,
        level: 0,
        kind: 0,
        fds: [0; MAX_PASSED],
    };
    let result = with_message(&mut rights, |msg| {
        // SAFETY: As above.
        ret_size(unsafe { recvmsg(fd, msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) })
    });
    let count = rights.len.saturating_sub(CMSG_HDR) / 4;

    *fds = rights.fds;
    (result, if result < 0 { 0 } else { count.min(MAX_PASSED) })
}

fn with_message(rights: &mut Rights, call: impl FnOnce(&mut MsgHdr) -> i64) -> i64 {
    let mut byte = 0u8;
    let mut iov = IoVec {
        base: (&raw mut byte).cast(),
        len: 1,
    };

    call(&mut MsgHdr {
        name: std::ptr::null_mut(),
        namelen: 0,
        iov: &mut iov,
        iovlen: 1,
        control: (rights as *mut Rights).cast(),
        controllen: size_of::<Rights>(),
        flags: 0,
    })
}

/// A mapping that this program never has a reference into. It is not unmapped by itself.
pub struct Map {
    at: usize,
    len: usize,
}

impl Map {
    pub fn new(len: usize, prot: i32, how: i32, fd: i32, offset: i64) -> Result<Self, i64> {
        let how = how & !MAP_FIXED;
        // SAFETY: Nothing is mapped over anything.
        let at = unsafe { mmap(std::ptr::null_mut(), len, prot, how, fd, offset) };

        match ret(at as c_long) {
            error @ -4095..=-1 => Err(error),
            at => Ok(Self {
                at: at as usize,
                len,
            }),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    fn addr(&self, offset: usize) -> Addr {
        assert!(offset < self.len);
        Addr(self.at + offset)
    }

    /// Reads a file into it. Faults are errors, not signals.
    pub fn fill(&self, from: usize, len: usize, fd: i32) -> i64 {
        assert!(from <= self.len && len <= self.len - from);
        // SAFETY: Nothing refers to it.
        ret_size(unsafe { pread(fd, (self.at + from) as *mut c_void, len, 0) })
    }

    /// The other way.
    pub fn save(&self, from: usize, len: usize, fd: i32) -> i64 {
        assert!(from <= self.len && len <= self.len - from);
        // SAFETY: Nothing refers to it.
        ret_size(unsafe { pwrite(fd, (self.at + from) as *const c_void, len, 0) })
    }

    /// Unmaps all from `from` on.
    pub fn unmap_from(&mut self, from: usize) -> i64 {
        assert!(from <= self.len);
        // SAFETY: Nothing refers to it.
        let result = ret(unsafe { munmap((self.at + from) as *mut c_void, self.len - from) });

        if result == 0 {
            self.len = from;
        }
        result
    }

    pub fn protect(&self, prot: i32) -> i64 {
        // SAFETY: Nothing refers to it.
        ret(unsafe { mprotect(self.at as *mut c_void, self.len, prot) })
    }

    pub fn resize(&mut self, len: usize) -> i64 {
        // SAFETY: Nothing refers to it. The flag is MREMAP_MAYMOVE.
        let at = unsafe { mremap(self.at as *mut c_void, self.len, len, 1) };

        match ret(at as c_long) {
            error @ -4095..=-1 => error,
            at => {
                *self = Self {
                    at: at as usize,
                    len,
                };
                0
            }
        }
    }

    pub fn advise(&self, advice: i32) -> i64 {
        // SAFETY: Nothing refers to it.
        ret(unsafe { madvise(self.at as *mut c_void, self.len, advice) })
    }

    pub fn sync(&self, flags: i32) -> i64 {
        // SAFETY: Nothing refers to it.
        ret(unsafe { msync(self.at as *mut c_void, self.len, flags) })
    }
}

/// Where the argument of an ioctl is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Good,
    Odd,
    Null,
    Unmapped,
    ReadOnly,
    Kernel,
    /// So that as many bytes at its end are not mapped.
    Cross(usize),
}

/// Memory for arguments: pages, and after them some that are not mapped.
pub struct Arena {
    fd: i32,
    reserved: Map,
    read_only: Map,
    size: usize,
}

/// More than the largest size that an ioctl can tell.
const CLEARED: usize = 20 << 10;

impl Arena {
    pub fn new() -> Self {
        let size = 64 << 10;
        let fd = sys_memfd(c"arena", 1) as i32;

        assert!(fd >= 0 && sys_ftruncate(fd, size as i64) == 0, "no memory");

        let how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        let reserved = Map::new(2 * size, 0, how, -1, 0).expect("no room");
        let read_only = Map::new(size, PROT_READ, MAP_SHARED, fd, 0).expect("no room");
        // SAFETY: This is in what was reserved above, for this.
        let at = unsafe {
            mmap(
                reserved.at as *mut c_void,
                size,
                PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_FIXED,
                fd,
                0,
            )
        };

        assert!(at as usize == reserved.at, "no memory");
        Self {
            fd,
            reserved,
            read_only,
            size,
        }
    }

    fn offset(&self, place: Place, len: usize) -> Option<usize> {
        match place {
            Place::Good | Place::ReadOnly => Some(0),
            Place::Odd => Some(1),
            Place::Cross(beyond) => Some(self.size - len.saturating_sub(beyond)),
            Place::Null | Place::Unmapped | Place::Kernel => None,
        }
    }

    /// Puts the data there, as much as there is room for, with zeros after it.
    pub fn put(&self, place: Place, data: &[u8]) -> Addr {
        if let Some(at) = self.offset(place, data.len()) {
            let len = CLEARED.min(self.size - at);
            let mut copy = [0; CLEARED];
            let data = &data[..data.len().min(len)];

            copy[..data.len()].copy_from_slice(data);
            sys_pwrite(self.fd, &copy[..len], at as i64);
        }
        match place {
            Place::Null => Addr(0),
            Place::Kernel => Addr(0xffff_8000_0000_1000),
            Place::Unmapped => self.reserved.addr(self.size + 64),
            Place::ReadOnly => self.read_only.addr(0),
            _ => self.reserved.addr(self.offset(place, data.len()).unwrap()),
        }
    }

    /// What is there now. What is not there is left as it was.
    pub fn get(&self, place: Place, data: &mut [u8]) {
        if let Some(at) = self.offset(place, data.len()) {
            let len = data.len().min(self.size - at);

            sys_pread(self.fd, &mut data[..len], at as i64);
        }
    }
}

impl Addr {
    pub fn as_u64(self) -> u64 {
        self.0 as u64
    }
}
