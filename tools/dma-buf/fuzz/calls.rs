// SPDX-License-Identifier: GPL-2.0

//! The calls that programs are made of, but for those of video devices.

use crate::sys::*;
use crate::v4l2;
use crate::values::*;
use crate::world::Kind::{self, *};
use crate::world::{c_string, Line, Mapping, World};

/// A kind of call.
pub struct Call {
    pub name: &'static str,
    pub weight: u32,
    /// The less than [`GROUPS`] groups are those that programs like more or less.
    pub group: usize,
    /// Returns what the call returned, or the negated errno.
    pub run: fn(&mut World, &mut Line) -> i64,
}

pub const GROUPS: usize = 7;

const BUF: usize = 0;
const SYNC: usize = 1;
const ALLOC: usize = 2;
const FILE: usize = 3;
const MAP: usize = 4;
const WAIT: usize = 5;
pub const VIDEO: usize = 6;

type Run = fn(&mut World, &mut Line) -> i64;

pub const fn call(name: &'static str, group: usize, weight: u32, run: Run) -> Call {
    Call {
        name,
        weight,
        group,
        run,
    }
}

#[rustfmt::skip]
static CALLS: [Call; 47] = [
    call("device.open", ALLOC, 1, device_open),
    call("heap.alloc", ALLOC, 8, heap_alloc),
    call("udmabuf.create", ALLOC, 5, udmabuf_create),
    call("udmabuf.list", ALLOC, 5, udmabuf_list),
    call("memfd.new", ALLOC, 2, memfd_new),
    call("rust.alloc", ALLOC, 4, rust_alloc),
    call("rust.sum", ALLOC, 4, rust_sum),
    call("rust.fill", ALLOC, 4, rust_fill),
    call("test.hold", ALLOC, 1, test_hold),
    call("buf.sync", BUF, 8, buf_sync),
    call("buf.name", BUF, 6, buf_name),
    call("buf.export", BUF, 6, buf_export),
    call("buf.import", BUF, 8, buf_import),
    call("timeline.open", SYNC, 2, timeline_open),
    call("timeline.fence", SYNC, 5, timeline_fence),
    call("timeline.inc", SYNC, 5, timeline_inc),
    call("timeline.deadline", SYNC, 2, timeline_deadline),
    call("sync.merge", SYNC, 5, sync_merge),
    call("sync.info", SYNC, 6, sync_info),
    call("sync.deadline", SYNC, 2, sync_deadline),
    call("fd.dup", FILE, 4, fd_dup),
    call("fd.close", FILE, 5, fd_close),
    call("fd.fcntl", FILE, 4, fd_fcntl),
    call("fd.stat", FILE, 3, fd_stat),
    call("fd.statfs", FILE, 2, fd_statfs),
    call("fd.link", FILE, 3, fd_link),
    call("fd.info", FILE, 4, fd_info),
    call("fd.seek", FILE, 5, fd_seek),
    call("fd.read", FILE, 2, fd_read),
    call("fd.write", FILE, 2, fd_write),
    call("fd.resize", FILE, 2, fd_resize),
    call("fd.ioctl", FILE, 4, fd_ioctl),
    call("fd.poll", WAIT, 8, fd_poll),
    call("epoll.new", WAIT, 1, epoll_new),
    call("epoll.ctl", WAIT, 5, epoll_control),
    call("epoll.wait", WAIT, 5, epoll_get),
    call("socket.new", WAIT, 1, socket_new),
    call("socket.send", WAIT, 3, socket_send),
    call("socket.receive", WAIT, 3, socket_receive),
    call("map.new", MAP, 8, map_new),
    call("map.read", MAP, 6, map_read),
    call("map.write", MAP, 5, map_write),
    call("map.free", MAP, 3, map_free),
    call("map.protect", MAP, 3, map_protect),
    call("map.resize", MAP, 3, map_resize),
    call("map.advise", MAP, 3, map_advise),
    call("map.sync", MAP, 2, map_sync),
];

pub fn all() -> impl Iterator<Item = &'static Call> {
    CALLS.iter().chain(v4l2::CALLS.iter())
}

pub fn named(name: &str) -> &'static Call {
    all().find(|call| call.name == name).expect("no such call")
}

const DMA_BUF_SYNC: u32 = ioc(1, b'b', 0, 8);
const DMA_BUF_SET_NAME_A: u32 = ioc(1, b'b', 1, 4);
const DMA_BUF_SET_NAME_B: u32 = ioc(1, b'b', 1, 8);
const DMA_BUF_EXPORT: u32 = ioc(3, b'b', 2, 8);
const DMA_BUF_IMPORT: u32 = ioc(1, b'b', 3, 8);
const HEAP_ALLOC: u32 = ioc(3, b'H', 0, 24);
const UDMABUF_CREATE: u32 = ioc(1, b'u', 0x42, 24);
const UDMABUF_CREATE_LIST: u32 = ioc(1, b'u', 0x43, 8);
const SYNC_MERGE: u32 = ioc(3, b'>', 3, 48);
const SYNC_INFO: u32 = ioc(3, b'>', 4, 56);
const SYNC_DEADLINE: u32 = ioc(1, b'>', 5, 16);
const SW_SYNC_FENCE: u32 = ioc(3, b'W', 0, 40);
const SW_SYNC_INC: u32 = ioc(1, b'W', 1, 4);
const SW_SYNC_DEADLINE: u32 = ioc(3, b'W', 2, 16);
const RUST_ALLOC: u32 = ioc(1, b'|', 0x90, 8);
const RUST_SUM: u32 = ioc(3, b'|', 0x91, 8);
const RUST_FILL: u32 = ioc(1, b'|', 0x92, 16);
const TEST_HOLD: u32 = ioc(1, b'|', 0x93, 16);

/// Writes a number of any size into a structure.
pub trait Put {
    fn put(&mut self, at: usize, value: impl AsRef<[u8]>);
    fn get32(&self, at: usize) -> u32;
    fn get64(&self, at: usize) -> u64;
}

impl Put for [u8] {
    fn put(&mut self, at: usize, value: impl AsRef<[u8]>) {
        let value = value.as_ref();

        self[at..at + value.len()].copy_from_slice(value);
    }

    fn get32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self[at..at + 4].try_into().unwrap())
    }

    fn get64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self[at..at + 8].try_into().unwrap())
    }
}

impl World {
    /// A size for a call that makes a buffer.
    fn size(&mut self, line: &mut Line, name: &str, huge: bool) -> u64 {
        let page = self.page;
        let size = if huge && self.odd(12) {
            huge_size(&mut self.rng, page)
        } else if self.odd(12) {
            wrapping_size(&mut self.rng, page)
        } else {
            good_size(&mut self.rng, page)
        };

        line.arg(name, format_args!("{size:#x}"));
        size
    }

    /// Flags of a buffer that are right, or have bits that are not.
    fn flags(&mut self, line: &mut Line, name: &str, right: &[u64], bits: u32) -> u64 {
        let mut flags = self.rng.pick(right);

        if self.odd(10) {
            flags ^= bad_bit(&mut self.rng, bits);
        }
        line.arg(name, format_args!("{flags:#x}"));
        flags
    }

    /// Takes note of the descriptor at `at` of a structure, if the kernel put one there.
    pub fn add_written(&mut self, line: &mut Line, kind: Kind, ret: i64, data: &[u8], at: usize) {
        let fd = data.get32(at) as i32;
        let known = self.slots.iter().any(|slot| slot.live && slot.fd == fd);

        if ret == 0 && fd > 2 && !known && sys_fcntl(fd, Fcntl::GetFd, 0) >= 0 {
            let label = self.add(kind, i64::from(fd));

            line.out("fd", label);
        }
    }
}

fn device_open(w: &mut World, line: &mut Line) -> i64 {
    let kinds = [System, Cma, Udmabuf, Rust, Test];
    let any = w.rng.pick(&kinds);
    let kind = w.wanted.filter(|kind| kinds.contains(kind)).unwrap_or(any);
    let path = kind.path().unwrap_or_default();
    let mode = if w.odd(8) {
        w.rng.pick(&[O_RDONLY, O_WRONLY])
    } else {
        O_RDWR
    };

    line.arg("path", path.to_string_lossy());
    line.arg("mode", mode);

    let ret = sys_open(path, mode | O_CLOEXEC);

    w.add_result(line, kind, ret)
}

fn heap_alloc(w: &mut World, line: &mut Line) -> i64 {
    let kind = w.rng.pick(&[System, System, Cma]);
    let fd = w.fd(line, "heap", kind);
    let len = w.size(line, "len", kind == Cma);
    let fd_flags = w.flags(line, "fd_flags", &[0, 2, 2, 2, 0o2000002], 32);
    let heap_flags = w.flags(line, "heap_flags", &[0], 64);
    let in_fd = w.word(16, 0);
    let mut data = [0; 24];

    line.arg("in_fd", in_fd);
    data.put(0, len.to_ne_bytes());
    data.put(8, in_fd.to_ne_bytes());
    data.put(12, (fd_flags as u32).to_ne_bytes());
    data.put(16, heap_flags.to_ne_bytes());

    let ret = w.ioctl(line, fd, HEAP_ALLOC, &mut data);

    w.add_written(line, Buf, ret, &data, 8);
    ret
}

fn memfd_new(w: &mut World, line: &mut Line) -> i64 {
    let pages = w.rng.pick(&[1, 2, 4, 16, 256]);
    let size = if w.odd(8) {
        w.rng.pick(&[0, 1, w.page as i64 + 1])
    } else {
        pages * w.page as i64
    };
    let sealing = if w.odd(12) { 0 } else { 2 };
    // F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, F_SEAL_SEAL.
    let seals = if w.odd(6) {
        w.rng.pick(&[0, 4, 2 | 8, 2 | 16, 1, 8])
    } else {
        w.rng.pick(&[2, 2 | 4, 2 | 4 | 1])
    };
    let fd = sys_memfd(c"fuzz", 1 | sealing);

    line.arg("size", size);
    line.arg("seals", seals);
    line.arg("sealing", sealing);
    if fd >= 0 {
        sys_ftruncate(fd as i32, size);
        for at in 0..size / w.page as i64 {
            sys_pwrite(fd as i32, &[at as u8 ^ 0x5a; 64], at * w.page as i64);
        }
        line.out("sealed", sys_fcntl(fd as i32, Fcntl::AddSeals, seals));
    }
    w.add_result(line, Memfd, fd)
}

impl World {
    fn udmabuf_item(&mut self, line: &mut Line) -> [u8; 24] {
        let mut item = [0; 24];
        let memfd = self.fd(line, "memfd", Memfd);
        let page = self.page;
        let offset = if self.odd(8) {
            self.rng
                .pick(&[1, page - 1, 1 << 20, 1 << 40, 1 << 63, u64::MAX - page + 1])
        } else {
            self.rng.pick(&[0, 0, 0, page])
        };
        let size = if self.odd(8) {
            self.size(line, "any_size", true)
        } else {
            self.rng.pick(&[page, page, 2 * page, 4 * page, 16 * page])
        };

        line.arg("offset", format_args!("{offset:#x}"));
        line.arg("size", format_args!("{size:#x}"));
        item.put(0, memfd.to_ne_bytes());
        item.put(8, offset.to_ne_bytes());
        item.put(16, size.to_ne_bytes());
        item
    }
}

fn udmabuf_create(w: &mut World, line: &mut Line) -> i64 {
    let dev = w.fd(line, "dev", Udmabuf);
    let mut data = w.udmabuf_item(line);
    let flags = w.flags(line, "flags", &[0, 1], 32);

    data.put(4, (flags as u32).to_ne_bytes());

    let ret = w.ioctl(line, dev, UDMABUF_CREATE, &mut data);

    w.add_result(line, Buf, ret)
}

fn udmabuf_list(w: &mut World, line: &mut Line) -> i64 {
    let dev = w.fd(line, "dev", Udmabuf);
    let items = 1 + w.rng.below(3);
    let count = if w.odd(6) {
        w.rng.pick(&[0, 1024, 1025, u32::MAX, 0x0aaa_aaab])
    } else {
        items as u32
    };
    let flags = w.flags(line, "flags", &[0, 1], 32);
    let mut data = vec![0; 8 + 24 * items];

    line.arg("count", count);
    data.put(0, (flags as u32).to_ne_bytes());
    data.put(4, count.to_ne_bytes());
    for at in 0..items {
        let item = w.udmabuf_item(line);

        data.put(8 + 24 * at, item);
    }

    let ret = w.ioctl(line, dev, UDMABUF_CREATE_LIST, &mut data);

    w.add_result(line, Buf, ret)
}

fn rust_alloc(w: &mut World, line: &mut Line) -> i64 {
    let dev = w.fd(line, "dev", Rust);
    let mut data = w.size(line, "size", true).to_ne_bytes();
    let ret = w.ioctl(line, dev, RUST_ALLOC, &mut data);

    w.add_result(line, Buf, ret)
}

fn rust_sum(w: &mut World, line: &mut Line) -> i64 {
    let dev = w.fd(line, "dev", Rust);
    let fd = w.fd(line, "fd", Buf);
    let high = if w.odd(12) { 1 << 32 } else { 0 };
    let mut data = (u64::from(fd as u32) | high).to_ne_bytes();

    line.arg("high", high >> 32);

    let ret = w.ioctl(line, dev, RUST_SUM, &mut data);

    if ret == 0 && !w.video.streamed {
        line.out("sum", data.get64(0));
    }
    ret
}

fn rust_fill(w: &mut World, line: &mut Line) -> i64 {
    let dev = w.fd(line, "dev", Rust);
    let fd = w.fd(line, "fd", Buf);
    let byte = w.rng.pick(&[0, 1, 0x7f, 0xff, 0x100, u64::MAX]);
    let mut data = [0; 16];

    line.arg("byte", byte);
    data.put(0, u64::from(fd as u32).to_ne_bytes());
    data.put(8, byte.to_ne_bytes());
    w.ioctl(line, dev, RUST_FILL, &mut data)
}

/// The reservation lock is held for no longer than it takes others to wait for it.
fn test_hold(w: &mut World, line: &mut Line) -> i64 {
    let dev = w.fd(line, "dev", Test);
    let fd = w.fd(line, "fd", Buf);
    let millis = w.rng.pick(&[0, 1, 2, 10_001, u64::MAX]);
    let mut data = [0; 16];

    line.arg("ms", millis);
    data.put(0, u64::from(fd as u32).to_ne_bytes());
    data.put(8, millis.to_ne_bytes());
    w.ioctl(line, dev, TEST_HOLD, &mut data)
}

fn buf_sync(w: &mut World, line: &mut Line) -> i64 {
    let fd = w.fd(line, "fd", Buf);
    let flags = w.flags(line, "flags", &[1, 2, 3, 5, 6, 7, 0, 4], 64);

    w.ioctl(line, fd, DMA_BUF_SYNC, &mut flags.to_ne_bytes())
}

fn buf_name(w: &mut World, line: &mut Line) -> i64 {
    let fd = w.fd(line, "fd", Buf);
    let mut text = name(&mut w.rng);
    let cmd = w.rng.pick(&[DMA_BUF_SET_NAME_A, DMA_BUF_SET_NAME_B]);
    let cmd = w.command(line, cmd);
    // At the end of what is mapped, with or without the zero.
    let place = match w.rng.below(4) {
        0 => wrong_place(&mut w.rng),
        1 => Place::Cross(0),
        2 => Place::Cross(1),
        _ => Place::Good,
    };

    text.push(0);
    line.arg("name", escape(&text));
    line.arg("ptr", place_name(place));

    w.ioctl_at(line, fd, cmd, place, &text)
}

fn buf_export(w: &mut World, line: &mut Line) -> i64 {
    let fd = w.fd(line, "fd", Buf);
    let flags = w.flags(line, "flags", &[1, 2, 3, 3, 0], 32) as u32;
    let mut data = [0; 8];

    data.put(0, flags.to_ne_bytes());
    data.put(4, 7777u32.to_ne_bytes());

    let ret = w.ioctl(line, fd, DMA_BUF_EXPORT, &mut data);

    w.add_written(line, Sync, ret, &data, 4);
    ret
}

fn buf_import(w: &mut World, line: &mut Line) -> i64 {
    let fd = w.fd(line, "fd", Buf);
    let sync = w.fd(line, "sync", Sync);
    let flags = w.flags(line, "flags", &[1, 2, 3, 3, 0], 32) as u32;
    let mut data = [0; 8];

    data.put(0, flags.to_ne_bytes());
    data.put(4, sync.to_ne_bytes());
    w.ioctl(line, fd, DMA_BUF_IMPORT, &mut data)
}

fn timeline_open(w: &mut World, line: &mut Line) -> i64 {
    let ret = sys_open(Timeline.path().unwrap_or_default(), O_RDWR | O_CLOEXEC);

    w.add_result(line, Timeline, ret)
}

fn timeline_fence(w: &mut World, line: &mut Line) -> i64 {
    let fd = w.fd(line, "timeline", Timeline);
    let right = w.rng.pick(&[1, 1, 2, 2, 3, 5]);
    let value = w.word(8, right);
    let mut data = [0; 40];

    line.arg("value", value);
    data.put(0, value.to_ne_bytes());
    data.put(8, b"fence\n%s");

    let ret = w.ioctl(line, fd, SW_SYNC_FENCE, &mut data);

    w.add_written(line, Sync, ret, &data, 36);
    ret
}

fn timeline_inc(w: &mut World, line: &mut Line) -> i64 {
    let fd = w.fd(line, "timeline", Timeline);
    let right = w.rng.pick(&[0, 1, 1, 2, 3]);
    let value = w.word(12, right);

    line.arg("value", value);
    w.ioctl(line, fd, SW_SYNC_INC, &mut value.to_ne_bytes())
}

fn timeline_deadline(w: &mut World, line: &mut Line) -> i64 {
    let fd = w.fd(line, "timeline", Timeline);
    let sync = w.fd(line, "sync", Sync);
    let mut data = [0; 16];
    let pad = w.word(12, 0);

    line.arg("pad", pad);
    data.put(8, pad.to_ne_bytes());
    data.put(12, sync.to_ne_bytes());

    let ret = w.ioctl(line, fd, SW_SYNC_DEADLINE, &mut data);

    line.out("deadline", data.get64(0));
    ret
}

fn sync_merge(w: &mut World, line: &mut Line) -> i64 {
    let fd = w.fd(line, "fd", Sync);
    let other = w.fd(line, "fd2", Sync);
    let mut text = name(&mut w.rng);
    let flags = w.word(16, 0);
    let pad = w.word(16, 0);
    let mut data = [0; 48];

    // A name as long as the field is has no zero.
    text.truncate(32);
    line.arg("name", escape(&text));
    line.arg("flags", flags);
    line.arg("pad", pad);
    data.put(0, text);
    data.put(32, other.to_ne_bytes());
    data.put(36, 7777u32.to_ne_bytes());
    data.put(40, flags.to_ne_bytes());
    data.put(44, pad.to_ne_bytes());

    let ret = w.ioctl(line, fd, SYNC_MERGE, &mut data);

    w.add_written(line, Sync, ret, &data, 36);
    ret
}

fn text_of(data: &[u8]) -> String {
    let len = data
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(data.len());

    without_numbers(&escape(&data[..len]))
}

fn sync_info(w: &mut World, line: &mut Line) -> i64 {
    let fd = w.fd(line, "fd", Sync);
    let right = w.rng.pick(&[0, 1, 2, 8, 8, 8]);
    let count = w.word(16, right);
    let place = w.place();
    let flags = w.word(16, 0);
    let pad = w.word(16, 0);
    let mut data = [0; 56];
    let mut fences = [0; 8 * 80];
    let addr = w.arenas[1].put(place, &fences);

    line.arg("count", count);
    line.arg("flags", flags);
    line.arg("pad", pad);
    line.arg("array", place_name(place));
    data.put(36, flags.to_ne_bytes());
    data.put(40, count.to_ne_bytes());
    data.put(44, pad.to_ne_bytes());
    data.put(48, addr.as_u64().to_ne_bytes());

    let ret = w.ioctl(line, fd, SYNC_INFO, &mut data);

    if ret == 0 {
        w.arenas[1].get(place, &mut fences);
        line.out("name", text_of(&data[..32]));
        line.out("status", data.get32(32) as i32);
        line.out("count", data.get32(40));
    }
    for fence in fences.chunks(80).filter(|fence| fence[32] != 0) {
        // When it was signalled differs.
        line.out(
            "fence",
            format_args!(
                "{}/{}/{}/{}",
                text_of(&fence[..32]),
                text_of(&fence[32..64]),
                fence.get32(64) as i32,
                fence.get64(72) != 0
            ),
        );
    }
    ret
}

fn sync_deadline(w: &mut World, line: &mut Line) -> i64 {
    let fd = w.fd(line, "fd", Sync);
    let time = w.rng.pick(&[0, 1, 1 << 40, 1 << 63, u64::MAX]);
    let pad = if w.odd(8) { 1u64 << 63 } else { 0 };
    let mut data = [0; 16];

    line.arg("time", time);
    line.arg("pad", pad);
    data.put(0, time.to_ne_bytes());
    data.put(8, pad.to_ne_bytes());
    w.ioctl(line, fd, SYNC_DEADLINE, &mut data)
}

fn fd_dup(w: &mut World, line: &mut Line) -> i64 {
    let (fd, kind) = w.any_fd(line, "fd");

    if w.odd(8) {
        let high = w.rng.pick(&[-1, fd, i32::MAX]);

        line.arg(
            "to",
            if high == fd {
                "same".into()
            } else {
                high.to_string()
            },
        );
        // Never onto a descriptor that is open.
        return sys_dup3(fd, high, O_CLOEXEC);
    }

    let ret = sys_fcntl(fd, Fcntl::DupFd, 0);

    w.add_result(line, kind, ret)
}

fn fd_close(w: &mut World, line: &mut Line) -> i64 {
    let found = w.live(None);

    if found.is_empty() || w.odd(16) {
        let fd = w.bad_fd(line, "fd");

        return sys_close(fd);
    }

    let at = w.rng.pick(&found);
    let slot = &mut w.slots[at];

    line.arg("fd", &slot.label);
    slot.live = false;
    sys_close(slot.fd)
}

fn fd_fcntl(w: &mut World, line: &mut Line) -> i64 {
    let (fd, kind) = w.any_fd(line, "fd");
    let (cmd, arg) = match w.rng.below(5) {
        0 => (Fcntl::GetFd, 0),
        1 => (Fcntl::SetFd, w.rng.pick(&[0, 1])),
        2 => (Fcntl::GetFlags, 0),
        // Sockets and video devices would begin to wait.
        3 if !kind.is_video() && kind != Socket => (
            Fcntl::SetFlags,
            w.rng.pick(&[0, O_NONBLOCK, O_RDWR, O_NONBLOCK | 0o2000]),
        ),
        _ => (Fcntl::GetSeals, 0),
    };

    line.arg("cmd", cmd as i32);
    line.arg("arg", format_args!("{arg:#o}"));
    sys_fcntl(fd, cmd, arg)
}

fn fd_stat(w: &mut World, line: &mut Line) -> i64 {
    let fd = any_or_buf(w, line);

    match sys_fstat(fd) {
        Ok((mode, size, blocks)) => {
            line.out("mode", format_args!("{mode:#o}"));
            line.out("size", size);
            line.out("blocks", blocks);
            0
        }
        Err(error) => error,
    }
}

fn any_or_buf(w: &mut World, line: &mut Line) -> i32 {
    if w.rng.one_in(3) {
        w.any_fd(line, "fd").0
    } else {
        w.fd(line, "fd", Buf)
    }
}

fn fd_statfs(w: &mut World, line: &mut Line) -> i64 {
    let fd = w.fd(line, "fd", Buf);

    match sys_fstatfs(fd) {
        Ok((magic, block)) => {
            line.out("magic", format_args!("{magic:#x}"));
            line.out("block", block);
            0
        }
        Err(error) => error,
    }
}

fn fd_link(w: &mut World, line: &mut Line) -> i64 {
    let fd = any_or_buf(w, line);

    match link(fd) {
        Ok(text) => {
            line.out("link", without_numbers(&escape(text.as_bytes())));
            0
        }
        Err(error) => error,
    }
}

fn link(fd: i32) -> Result<String, i64> {
    let mut buf = [0; 256];
    let len = sys_readlink(&c_string(&format!("/proc/self/fd/{fd}")), &mut buf);

    if len < 0 {
        return Err(len);
    }
    Ok(String::from_utf8_lossy(&buf[..len as usize]).into_owned())
}

fn kind_of(fd: i32) -> Kind {
    match link(fd).unwrap_or_default().as_str() {
        text if text.starts_with("/dmabuf:") => Buf,
        "anon_inode:sync_file" => Sync,
        text if text.starts_with("/memfd:") => Memfd,
        text if text.ends_with("/sw_sync") => Timeline,
        _ => Other,
    }
}

/// What /proc tells of a descriptor, without what differs from boot to boot.
///
/// A newline in the name of a buffer begins a line with the core in C, and is `\012` with that in
/// Rust, on purpose. Here both are a comma.
pub fn fdinfo(fd: i32) -> String {
    let text = std::fs::read(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    let differs = |line: &&[u8]| {
        [b"mnt_id:" as &[u8], b"ino:", b"tfd:", b"scm_fds:"]
            .iter()
            .any(|start| line.starts_with(start))
    };

    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty() && !differs(line))
        .map(|line| escape(line).replace("\\t", ""))
        .collect::<Vec<_>>()
        .join(",")
        .replace("\\\\012", ",")
}

fn fd_info(w: &mut World, line: &mut Line) -> i64 {
    let fd = any_or_buf(w, line);
    let text = fdinfo(fd);

    if text.is_empty() {
        return -i64::from(EBADF);
    }
    line.out("info", text);
    0
}

fn fd_seek(w: &mut World, line: &mut Line) -> i64 {
    let fd = any_or_buf(w, line);
    let offset = w
        .rng
        .pick(&[0, 0, 0, 1, -1, w.page as i64, i64::MAX, i64::MIN]);
    let whence = w.rng.pick(&[0, 0, 1, 2, 2, 3, 4, 5, -1, i32::MAX]);

    line.arg("offset", offset);
    line.arg("whence", whence);
    sys_lseek(fd, offset, whence)
}

fn fd_read(w: &mut World, line: &mut Line) -> i64 {
    let mut buf = [0; 64];
    let (fd, _) = w.any_fd(line, "fd");
    let len = w.rng.pick(&[0, 1, 8, 64]);

    line.arg("len", len);
    if w.rng.one_in(2) {
        line.arg("at", "0");
        sys_pread(fd, &mut buf[..len], 0)
    } else {
        sys_read(fd, &mut buf[..len])
    }
}

fn fd_write(w: &mut World, line: &mut Line) -> i64 {
    let (fd, _) = w.any_fd(line, "fd");
    let len = w.rng.pick(&[0, 1, 8, 64]);

    line.arg("len", len);
    if w.rng.one_in(2) {
        line.arg("at", "0");
        sys_pwrite(fd, &[0xa5; 64][..len], 0)
    } else {
        sys_write(fd, &[0xa5; 64][..len])
    }
}

fn fd_resize(w: &mut World, line: &mut Line) -> i64 {
    let fd = any_or_buf(w, line);
    let len = w.rng.pick(&[0, 1, w.page as i64, 4 * w.page as i64, -1]);
    let how = w.rng.below(4);

    line.arg("how", how);
    line.arg("len", len);
    match how {
        0 => sys_ftruncate(fd, len),
        // To punch a hole: FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE.
        1 => sys_fallocate(fd, 3, 0, len),
        2 => sys_fallocate(fd, 0, 0, len),
        _ => sys_fsync(fd),
    }
}

/// Any command for any descriptor. What it points to asks for nothing that takes memory.
fn fd_ioctl(w: &mut World, line: &mut Line) -> i64 {
    let (fd, _) = w.any_fd(line, "fd");
    let cmd = w.rng.pick(&[
        DMA_BUF_SYNC,
        DMA_BUF_EXPORT,
        DMA_BUF_IMPORT,
        UDMABUF_CREATE,
        UDMABUF_CREATE_LIST,
        SYNC_MERGE,
        SYNC_INFO,
        SYNC_DEADLINE,
        SW_SYNC_FENCE,
        SW_SYNC_INC,
        RUST_ALLOC,
        RUST_SUM,
        RUST_FILL,
        ioc(0, b'b', 0xff, 0),
        0,
        u32::MAX,
    ]);
    let mut data = [0; 64];

    for at in 2..16 {
        let word = w.rng.pick(&[0, 0, 0, 1, u32::MAX]);

        data.put(4 * at, word.to_ne_bytes());
    }
    line.arg("ioctl", format_args!("{cmd:#x}"));

    let good = w.set_good(true);
    let ret = w.ioctl(line, fd, cmd, &mut data);

    w.set_good(good);
    ret
}

pub fn poll_one(fd: i32, events: i16) -> String {
    let mut fds = [PollFd {
        fd,
        events,
        revents: 0,
    }];
    let ret = sys_poll(&mut fds);
    let PollFd { revents, .. } = fds[0];

    format!("{ret}/{revents:#x}")
}

fn fd_poll(w: &mut World, line: &mut Line) -> i64 {
    let kind = w.rng.pick(&[Buf, Buf, Sync]);
    let mut fds = Vec::new();

    for _ in 0..1 + w.rng.below(3) {
        let fd = w.fd(line, "fd", kind);
        let events = w.rng.pick(&[0, 1, 4, 5, 5, 2, 0x47]);

        line.arg("events", format_args!("{events:#x}"));
        fds.push(PollFd {
            fd,
            events,
            revents: 0,
        });
    }

    let ret = sys_poll(&mut fds);

    for PollFd { revents, .. } in fds {
        line.out("revents", format_args!("{revents:#x}"));
    }
    ret
}

fn epoll_new(w: &mut World, line: &mut Line) -> i64 {
    let flags = if w.odd(6) { 1 } else { O_CLOEXEC };
    let ret = sys_epoll_create(flags);

    line.arg("flags", flags);
    w.add_result(line, Epoll, ret)
}

fn epoll_control(w: &mut World, line: &mut Line) -> i64 {
    let epoll = w.fd(line, "epoll", Epoll);
    let kind = w.rng.pick(&[Buf, Buf, Sync]);
    let fd = w.fd(line, "fd", kind);
    let op = if w.odd(12) {
        w.rng.pick(&[0, 4])
    } else {
        w.rng.pick(&[1, 1, 1, 2, 3])
    };
    // Level-triggered, edge-triggered, once, and exclusive.
    let how = w.rng.pick(&[0, 0, 1 << 31, 1 << 30, 1 << 28]);
    let events = w.rng.pick(&[0, 1, 4, 5, 5]) | how;

    line.arg("op", op);
    line.arg("events", format_args!("{events:#x}"));
    sys_epoll_ctl(
        epoll,
        op,
        fd,
        EpollEvent {
            events,
            data: u64::from(fd as u32),
        },
    )
}

fn epoll_get(w: &mut World, line: &mut Line) -> i64 {
    let epoll = w.fd(line, "epoll", Epoll);
    let mut events = [EpollEvent { events: 0, data: 0 }; 16];
    let ret = sys_epoll_wait(epoll, &mut events);
    let mut found: Vec<_> = events[..ret.max(0) as usize]
        .iter()
        .map(|event| (event.data, event.events))
        .collect();

    // Their order is that of the wake-ups.
    found.sort_unstable();
    for (data, events) in found {
        line.out("event", format_args!("{data}:{events:#x}"));
    }
    ret
}

fn socket_new(w: &mut World, line: &mut Line) -> i64 {
    let mut fds = [0; 2];
    let ret = sys_socketpair(&mut fds);

    if ret == 0 {
        w.add_result(line, Socket, i64::from(fds[0]));
        w.add_result(line, Socket, i64::from(fds[1]));
    }
    ret
}

fn socket_send(w: &mut World, line: &mut Line) -> i64 {
    let socket = w.fd(line, "socket", Socket);
    let mut fds = Vec::new();

    // No sockets, which would make rings that are found some time later.
    for _ in 0..1 + w.rng.below(MAX_PASSED) {
        let kind = w.rng.pick(&[Buf, Buf, Sync, Memfd]);
        let fd = w.fd(line, "fd", kind);

        if w.compared()
            && w.slots
                .iter()
                .any(|s| s.fd == fd && s.live && s.kind == Socket)
        {
            continue;
        }
        fds.push(fd);
    }
    if fds.is_empty() {
        fds.push(-1);
    }
    sys_send(socket, &fds)
}

fn socket_receive(w: &mut World, line: &mut Line) -> i64 {
    let socket = w.fd(line, "socket", Socket);
    let mut fds = [0; MAX_PASSED];
    let (ret, count) = sys_receive(socket, &mut fds);

    for fd in &fds[..count] {
        w.add_result(line, kind_of(*fd), i64::from(*fd));
    }
    ret
}

fn map_new(w: &mut World, line: &mut Line) -> i64 {
    let kind = if w.rng.one_in(12) { Memfd } else { Buf };
    let mut fd = w.fd(line, "fd", kind);
    let mut offset = if w.odd(6) {
        w.rng
            .pick(&[w.page as i64, 16 * w.page as i64, 1 << 40, 1 << 62, 1])
    } else {
        0
    };
    let mut len = if w.odd(8) {
        w.rng.pick(&[0, 1, w.page as usize + 1, 1 << 21])
    } else {
        w.page as usize * w.rng.pick(&[1, 1, 2, 4, 16])
    };

    if w.video.map_len != 0 && w.rng.one_in(4) {
        let kind = w.video.last;

        (offset, len) = (w.video.map_offset, w.video.map_len);
        fd = w.fd(line, "video", kind);
    }

    let prot = if w.odd(6) {
        w.rng.pick(&[0, PROT_WRITE, PROT_READ | PROT_EXEC, 7])
    } else {
        w.rng.pick(&[PROT_READ, 3, 3, 3])
    };
    let how = if w.odd(6) {
        // MAP_SHARED_VALIDATE, MAP_LOCKED with MAP_SHARED, MAP_POPULATE, none at all.
        w.rng.pick(&[MAP_PRIVATE, 3, 0x2001, 0x8001, 0])
    } else {
        MAP_SHARED
    };

    line.arg("offset", format_args!("{offset:#x}"));
    line.arg("len", format_args!("{len:#x}"));
    line.arg("prot", prot);
    line.arg("how", format_args!("{how:#x}"));
    match Map::new(len, prot, how, fd, offset) {
        Ok(map) => {
            let label = format!("map{}", w.maps.len());

            line.out("map", &label);
            w.maps.push(Mapping {
                map,
                label,
                writable: prot & PROT_WRITE != 0,
            });
            0
        }
        Err(error) => error,
    }
}

impl World {
    /// A mapping, the first of them made if need be. None if that did not work.
    fn map(&mut self, line: &mut Line) -> Option<usize> {
        if self.maps.is_empty() {
            let good = self.set_good(true);

            self.run(named("map.new"));
            self.set_good(good);
        }
        if self.maps.is_empty() {
            line.arg("map", "none");
            return None;
        }

        let at = self.rng.below(self.maps.len());

        line.arg("map", &self.maps[at].label);
        Some(at)
    }
}

/// What a call without a mapping returns. No call of these gives it.
const NO_MAP: i64 = -(19);

/// As much of a mapping is looked at.
const LOOK: usize = 64 << 10;

/// The kernel copies, so that what is not there is an error.
fn map_read(w: &mut World, line: &mut Line) -> i64 {
    let Some(at) = w.map(line) else { return NO_MAP };
    let len = w.maps[at].map.len().min(LOOK);
    let mut buf = vec![0; len];
    let ret = w.maps[at].map.save(0, len, w.scratch);

    if ret > 0 && !w.video.streamed {
        let buf = &mut buf[..ret as usize];
        let mut hash = Hash::new();

        sys_pread(w.scratch, buf, 0);
        hash.add(buf);
        line.out("hash", format_args!("{:016x}", hash.0));
    }
    ret
}

fn map_write(w: &mut World, line: &mut Line) -> i64 {
    let Some(at) = w.map(line) else { return NO_MAP };
    let size = w.maps[at].map.len();
    let from = w.rng.below(size.max(1));
    let len = w.rng.pick(&[1, 8, 100]).min(size - from);
    let byte = w.rng.next() as u8;

    line.arg("from", from);
    line.arg("len", len);
    line.arg("byte", byte);
    line.arg("writable", w.maps[at].writable);
    sys_pwrite(w.scratch, &[byte; 100], 0);
    w.maps[at].map.fill(from, len, w.scratch)
}

fn map_free(w: &mut World, line: &mut Line) -> i64 {
    let Some(at) = w.map(line) else { return NO_MAP };
    let pages = w.maps[at].map.len() / w.page as usize;
    // Or the latter half of it.
    let keep = if w.odd(3) { pages / 2 } else { 0 };

    line.arg("keep", keep);

    let ret = w.maps[at].map.unmap_from(keep * w.page as usize);

    if w.maps[at].map.len() == 0 {
        w.maps.remove(at);
    }
    ret
}

fn map_protect(w: &mut World, line: &mut Line) -> i64 {
    let Some(at) = w.map(line) else { return NO_MAP };
    let prot = w.rng.pick(&[0, 1, 2, 3, 3, 5, 7]);

    line.arg("prot", prot);
    w.maps[at].map.protect(prot)
}

fn map_resize(w: &mut World, line: &mut Line) -> i64 {
    let Some(at) = w.map(line) else { return NO_MAP };
    let page = w.page as usize;
    let pages = w.maps[at].map.len() / page;
    let pages = w.rng.pick(&[1, pages, pages + 1, 2 * pages + 1, 0]);

    line.arg("pages", pages);
    w.maps[at].map.resize(pages * page)
}

fn map_advise(w: &mut World, line: &mut Line) -> i64 {
    let Some(at) = w.map(line) else { return NO_MAP };
    let advice = w
        .rng
        .pick(&[0, 1, 3, 4, 8, 9, 10, 11, 16, 17, 20, 21, 22, 23, 99]);

    line.arg("advice", advice);
    w.maps[at].map.advise(advice)
}

fn map_sync(w: &mut World, line: &mut Line) -> i64 {
    let Some(at) = w.map(line) else { return NO_MAP };
    let flags = w.rng.pick(&[1, 2, 4, 5, 8]);

    line.arg("flags", flags);
    w.maps[at].map.sync(flags)
}
