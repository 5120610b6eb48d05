// SPDX-License-Identifier: GPL-2.0

//! The calls for video devices: rust_vivid and rust_vim2m, or others by the environment.
//!
//! When frames come and go is up to threads of the drivers. So once a program that is compared has
//! started to stream, it makes no call that would tell.

use crate::calls::{call, Call, Put, VIDEO};
use crate::sys::*;
use crate::values::*;
use crate::world::Kind::{self, *};
use crate::world::{c_string, Line, World};
use std::env;
use std::ffi::CString;

#[rustfmt::skip]
pub static CALLS: [Call; 15] = [
    call("v4l2.open.vivid", VIDEO, 1, open_vivid),
    call("v4l2.open.m2m", VIDEO, 1, open_m2m),
    call("v4l2.capability", VIDEO, 1, capability),
    call("v4l2.format", VIDEO, 3, format),
    call("v4l2.request", VIDEO, 4, request),
    call("v4l2.create", VIDEO, 2, create),
    call("v4l2.remove", VIDEO, 1, remove),
    call("v4l2.query", VIDEO, 3, query),
    call("v4l2.queue", VIDEO, 5, queue),
    call("v4l2.prepare", VIDEO, 2, prepare),
    call("v4l2.dequeue", VIDEO, 2, dequeue),
    call("v4l2.export", VIDEO, 5, export),
    call("v4l2.start", VIDEO, 2, start),
    call("v4l2.stop", VIDEO, 2, stop),
    call("v4l2.import", VIDEO, 5, import),
];

/// What is known of video devices in a program.
pub struct State {
    /// Whether frames may come and go.
    pub streamed: bool,
    /// What the last buffer that was asked for is mapped with.
    pub map_offset: i64,
    pub map_len: usize,
    pub last: Kind,
    /// The type and the memory of the buffers that were last asked for.
    buffers: (u32, u32),
    has_vivid: bool,
    large: bool,
    nodes: [Option<CString>; 2],
}

impl Default for State {
    fn default() -> Self {
        Self {
            streamed: false,
            map_offset: 0,
            map_len: 0,
            last: Vivid,
            buffers: (0, 0),
            has_vivid: false,
            large: false,
            nodes: names().map(|name| find_node(&name)),
        }
    }
}

/// The names of the devices to capture and to convert with.
fn names() -> [String; 2] {
    let name = |var, default: &str| env::var(var).unwrap_or_else(|_| default.into());

    [
        name("RUST_V4L2_CAPTURE", "rust_vivid"),
        name("RUST_V4L2_M2M", "rust_vim2m"),
    ]
}

/// The names of those that are not there.
pub fn missing() -> Vec<String> {
    let mut names = Vec::from(names());

    names.retain(|name| find_node(name).is_none());
    names
}

impl State {
    pub fn reset(&mut self) {
        self.streamed = false;
        self.map_len = 0;
        self.last = Vivid;
        self.buffers = (0, 0);
        self.has_vivid = false;
        self.large = false;
    }
}

fn find_node(name: &str) -> Option<CString> {
    (0..64)
        .find(|n| {
            std::fs::read_to_string(format!("/sys/class/video4linux/video{n}/name"))
                .is_ok_and(|text| text.trim() == name)
        })
        .map(|n| c_string(&format!("/dev/video{n}")))
}

const QUERYCAP: u32 = ioc(2, b'V', 0, 104);
const G_FMT: u32 = ioc(3, b'V', 4, 208);
const S_FMT: u32 = ioc(3, b'V', 5, 208);
const TRY_FMT: u32 = ioc(3, b'V', 64, 208);
const REQBUFS: u32 = ioc(3, b'V', 8, 20);
const QUERYBUF: u32 = ioc(3, b'V', 9, 88);
const QBUF: u32 = ioc(3, b'V', 15, 88);
const EXPBUF: u32 = ioc(3, b'V', 16, 64);
const DQBUF: u32 = ioc(3, b'V', 17, 88);
const STREAMON: u32 = ioc(1, b'V', 18, 4);
const STREAMOFF: u32 = ioc(1, b'V', 19, 4);
const CREATE_BUFS: u32 = ioc(3, b'V', 92, 256);
const PREPARE_BUF: u32 = ioc(3, b'V', 93, 88);
const REMOVE_BUFS: u32 = ioc(3, b'V', 104, 64);

const MMAP: u32 = 1;
const DMABUF: u32 = 4;

/// The bits of a buffer's flags that do not tell of frames.
const STEADY_FLAGS: u32 = 0xffff_e000;

fn open_node(w: &mut World, line: &mut Line, kind: Kind, at: usize) -> i64 {
    let Some(path) = w.video.nodes[at].clone() else {
        return -2;
    };
    let fd = sys_open(&path, O_RDWR | O_NONBLOCK | O_CLOEXEC);

    w.add_result(line, kind, fd);
    if kind == Vivid && fd >= 0 && !w.video.has_vivid {
        // Its format is that of the device, which programs before this one have changed.
        let ret = set_small(w, fd as i32, 1);

        w.video.has_vivid = true;
        line.out("reset", ret);
    }
    fd.min(0)
}

/// Sets a format of which four pages hold a frame.
fn set_small(w: &mut World, fd: i32, queue: u32) -> i64 {
    let mut data = [0; 208];

    data.put(0, queue.to_ne_bytes());
    data.put(8, 64u32.to_ne_bytes());
    data.put(12, 48u32.to_ne_bytes());
    data.put(16, b"RGB3");
    sys_ioctl(fd, S_FMT, w.arenas[1].put(Place::Good, &data))
}

fn open_vivid(w: &mut World, line: &mut Line) -> i64 {
    open_node(w, line, Vivid, 0)
}

fn open_m2m(w: &mut World, line: &mut Line) -> i64 {
    let ret = open_node(w, line, M2m, 1);

    if ret == 0 {
        let fd = w.slots[w.slots.len() - 1].fd;

        line.out("small", set_small(w, fd, 1));
        line.out("small", set_small(w, fd, 2));
    }
    ret
}

impl World {
    fn video_fd(&mut self, line: &mut Line) -> (i32, Kind) {
        let other = self.rng.pick(&[Vivid, M2m]);
        // Mostly that of the call before, so that calls come after what they need.
        let kind = if self.video.buffers.1 == 0 || self.rng.one_in(4) {
            other
        } else {
            self.video.last
        };

        if kind != self.video.last {
            self.video.buffers = (0, 0);
        }
        self.video.last = kind;
        (self.fd(line, "video", kind), kind)
    }

    /// The type of a queue: capture, or output.
    fn queue_type(&mut self, line: &mut Line, kind: Kind) -> u32 {
        let any = self.rng.pick(&[1, 2]);
        let right = match self.video.buffers {
            _ if kind == Vivid => 1,
            (0, _) => any,
            _ if self.rng.one_in(4) => any,
            (queue, _) => queue,
        };
        let queue = if self.odd(12) {
            self.rng.pick(&[0, 1, 2, 3, 9, 10, 13, u32::MAX])
        } else {
            right
        };

        line.arg("type", queue);
        queue
    }

    fn memory(&mut self, line: &mut Line) -> u32 {
        let any = self.rng.pick(&[MMAP, DMABUF, DMABUF]);
        let right = match self.video.buffers {
            (_, 0) => any,
            _ if self.rng.one_in(6) => any,
            (_, memory) => memory,
        };
        let memory = self.word(12, right);

        line.arg("memory", memory);
        memory
    }

    fn index(&mut self, line: &mut Line) -> u32 {
        let right = self.rng.pick(&[0, 0, 0, 1, 2]);
        let index = if self.odd(10) {
            self.rng.pick(&[3, 31, 32, 64, u32::MAX])
        } else {
            right
        };

        line.arg("index", index);
        index
    }

    /// A struct v4l2_buffer.
    fn buffer(&mut self, line: &mut Line, kind: Kind, memory: u32) -> [u8; 88] {
        let mut data = [0; 88];
        let index = self.index(line);
        let queue = self.queue_type(line, kind);

        data.put(0, index.to_ne_bytes());
        data.put(4, queue.to_ne_bytes());
        data.put(60, memory.to_ne_bytes());
        data
    }
}

fn capability(w: &mut World, line: &mut Line) -> i64 {
    let (fd, _) = w.video_fd(line);
    let mut data = [0; 104];
    let ret = w.ioctl(line, fd, QUERYCAP, &mut data);

    if ret == 0 {
        line.out("driver", escape(&data[..16]).replace("\\x00", ""));
        line.out("caps", format_args!("{:#x}", data.get32(88)));
    }
    ret
}

fn put_format(w: &mut World, line: &mut Line, pix: &mut [u8]) -> u64 {
    let sides = [0, 1, 15, 16, 17, 64, 65, 640, 1920, 1921, u32::MAX];
    let right = w.rng.pick(&[(64, 48), (64, 48), (32, 32), (320, 240)]);
    let (width, height) = if w.odd(3) {
        (w.rng.pick(&sides), w.rng.pick(&sides))
    } else {
        right
    };
    let code = w.rng.pick(&[
        b"RGB3",
        b"RGB3",
        b"BX24",
        b"YUYV",
        b"NV12",
        b"GREY",
        b"\xff\0\0?",
    ]);
    let field = if w.odd(6) { w.rng.pick(&ODD_WORDS) } else { 0 };
    // No more than there is memory for.
    let size = if w.odd(4) {
        w.rng.pick(&[0, 1, 4096, 9216, 16384, 1 << 20])
    } else {
        0u32
    };

    line.arg("size", format_args!("{width}x{height}"));
    line.arg("format", escape(code));
    line.arg("field", field);
    line.arg("sizeimage", size);
    pix.put(0, width.to_ne_bytes());
    pix.put(4, height.to_ne_bytes());
    pix.put(8, code);
    pix.put(12, field.to_ne_bytes());
    pix.put(20, size.to_ne_bytes());
    u64::from(width) * u64::from(height)
}

fn format(w: &mut World, line: &mut Line) -> i64 {
    let (fd, kind) = w.video_fd(line);
    let mut data = [0; 208];
    let queue = w.queue_type(line, kind);
    let cmd = w.rng.pick(&[G_FMT, S_FMT, S_FMT, TRY_FMT]);

    data.put(0, queue.to_ne_bytes());
    if cmd != G_FMT {
        let pixels = put_format(w, line, &mut data[8..]);

        w.video.large |= cmd == S_FMT && pixels > 320 * 240;
    }
    line.arg("which", cmd & 0xff);

    let ret = w.ioctl(line, fd, cmd, &mut data);

    if ret == 0 {
        let word = |at: usize| data.get32(8 + at);

        line.out("size", format_args!("{}x{}", word(0), word(4)));
        line.out("format", escape(&data[16..20]));
        line.out("field", word(12));
        line.out("bytesperline", word(16));
        line.out("sizeimage", word(20));
        line.out("colorspace", word(24));
    }
    ret
}

fn request(w: &mut World, line: &mut Line) -> i64 {
    let (fd, kind) = w.video_fd(line);
    let mut data = [0; 20];
    let right = w.rng.pick(&[0, 2, 2, 2, 3, 3]);
    // The core makes 32 of it, for which frames must be small.
    let count = if !w.video.large && w.compared() && w.odd(12) {
        w.rng.pick(&[33, u32::MAX])
    } else {
        right
    };
    let queue = w.queue_type(line, kind);
    let memory = w.memory(line);
    let flags = w.word(12, 0);

    line.arg("count", count);
    line.arg("flags", flags);
    data.put(0, count.to_ne_bytes());
    data.put(4, queue.to_ne_bytes());
    data.put(8, memory.to_ne_bytes());
    data.put(16, flags.to_ne_bytes());

    let ret = w.ioctl(line, fd, REQBUFS, &mut data);

    if ret == 0 {
        w.video.buffers = if data.get32(0) == 0 {
            (0, 0)
        } else {
            (queue, memory)
        };
        line.out("count", data.get32(0));
        line.out("caps", format_args!("{:#x}", data.get32(12)));
    }
    ret
}

fn create(w: &mut World, line: &mut Line) -> i64 {
    let (fd, kind) = w.video_fd(line);
    let mut data = [0; 256];
    let count = w.rng.pick(&[0u32, 1, 2]);
    let memory = w.memory(line);
    let queue = w.queue_type(line, kind);

    line.arg("count", count);
    data.put(4, count.to_ne_bytes());
    data.put(8, memory.to_ne_bytes());
    data.put(16, queue.to_ne_bytes());
    put_format(w, line, &mut data[24..]);

    let ret = w.ioctl(line, fd, CREATE_BUFS, &mut data);

    if ret == 0 {
        line.out("index", data.get32(0));
        line.out("count", data.get32(4));
    }
    ret
}

fn remove(w: &mut World, line: &mut Line) -> i64 {
    let (fd, kind) = w.video_fd(line);
    let mut data = [0; 64];
    let index = w.index(line);
    let count = w.word(6, 1);
    let queue = w.queue_type(line, kind);

    line.arg("count", count);
    data.put(0, index.to_ne_bytes());
    data.put(4, count.to_ne_bytes());
    data.put(8, queue.to_ne_bytes());
    w.ioctl(line, fd, REMOVE_BUFS, &mut data)
}

fn query(w: &mut World, line: &mut Line) -> i64 {
    let (fd, kind) = w.video_fd(line);
    let mut data = w.buffer(line, kind, 0);
    let ret = w.ioctl(line, fd, QUERYBUF, &mut data);

    if ret == 0 {
        let mask = if w.video.streamed {
            STEADY_FLAGS
        } else {
            u32::MAX
        };
        let memory = data.get32(60);

        line.out("flags", format_args!("{:#x}", data.get32(12) & mask));
        line.out("memory", memory);
        line.out("length", data.get32(72));
        if memory == MMAP {
            w.video.map_offset = i64::from(data.get32(64));
            w.video.map_len = data.get32(72) as usize;
            line.out("offset", w.video.map_offset);
        }
    }
    ret
}

fn queue(w: &mut World, line: &mut Line) -> i64 {
    let memory = w.memory(line);

    queue_buffer(w, line, QBUF, memory)
}

fn prepare(w: &mut World, line: &mut Line) -> i64 {
    let memory = w.memory(line);

    queue_buffer(w, line, PREPARE_BUF, memory)
}

fn queue_buffer(w: &mut World, line: &mut Line, cmd: u32, memory: u32) -> i64 {
    let (fd, kind) = w.video_fd(line);

    queue_to(w, line, cmd, memory, (fd, kind))
}

fn queue_to(w: &mut World, line: &mut Line, cmd: u32, memory: u32, video: (i32, Kind)) -> i64 {
    let (fd, kind) = video;
    let mut data = w.buffer(line, kind, memory);
    let length = if w.odd(6) {
        w.rng.pick(&[1, 4096, 9216, 1 << 20, u32::MAX])
    } else {
        0
    };
    // Of the last, one is for requests, which there are not.
    let flags = if w.odd(8) {
        w.rng.pick(&[1, 2, 0x40, 0x800, 0x2000, 0x80_0000])
    } else {
        0u32
    };
    let used = w.word(8, 0);

    line.arg("length", length);
    line.arg("flags", format_args!("{flags:#x}"));
    line.arg("used", used);
    data.put(8, used.to_ne_bytes());
    data.put(12, flags.to_ne_bytes());
    data.put(72, length.to_ne_bytes());
    data.put(80, (-1i32).to_ne_bytes());
    if memory == DMABUF {
        let buf = w.fd(line, "buf", Buf);

        data.put(64, buf.to_ne_bytes());
    }
    w.ioctl(line, fd, cmd, &mut data)
}

/// Has the queue make buffers of this memory, if it has none. This fails when they are in use,
/// and then those do as well.
fn ask_for(w: &mut World, line: &mut Line, memory: u32) -> (i32, Kind) {
    let (fd, kind) = w.video_fd(line);
    let mut data = [0; 20];

    if w.video.buffers.1 == memory {
        return (fd, kind);
    }

    let queue: u32 = if kind == Vivid {
        1
    } else {
        w.rng.pick(&[1, 2])
    };

    data.put(0, 3u32.to_ne_bytes());
    data.put(4, queue.to_ne_bytes());
    data.put(8, memory.to_ne_bytes());
    line.arg("queue", queue);

    let ret = sys_ioctl(fd, REQBUFS, w.arenas[1].put(Place::Good, &data));

    line.out("request", ret);
    if ret == 0 {
        w.video.buffers = (queue, memory);
    }
    (fd, kind)
}

/// All that it takes to give a buffer to a device.
fn import(w: &mut World, line: &mut Line) -> i64 {
    let video = ask_for(w, line, DMABUF);

    queue_to(w, line, QBUF, DMABUF, video)
}

fn dequeue(w: &mut World, line: &mut Line) -> i64 {
    let (fd, kind) = w.video_fd(line);
    let memory = w.memory(line);
    let mut data = w.buffer(line, kind, memory);

    if w.compared() && w.video.streamed {
        line.arg("video", "-1");
        return w.ioctl(line, -1, DQBUF, &mut data);
    }
    w.ioctl(line, fd, DQBUF, &mut data)
}

fn export(w: &mut World, line: &mut Line) -> i64 {
    let (fd, kind) = if w.rng.one_in(2) {
        ask_for(w, line, MMAP)
    } else {
        w.video_fd(line)
    };
    let mut data = [0; 64];
    let queue = w.queue_type(line, kind);
    let index = w.index(line);
    let plane = w.word(12, 0);
    let right = w.rng.pick(&[0, 2, 0o2000002]);
    let flags = w.word(10, right);

    line.arg("plane", plane);
    line.arg("flags", format_args!("{flags:#x}"));
    data.put(0, queue.to_ne_bytes());
    data.put(4, index.to_ne_bytes());
    data.put(8, plane.to_ne_bytes());
    data.put(12, flags.to_ne_bytes());
    data.put(16, 7777u32.to_ne_bytes());

    let ret = w.ioctl(line, fd, EXPBUF, &mut data);

    w.add_written(line, Buf, ret, &data, 16);
    ret
}

fn start(w: &mut World, line: &mut Line) -> i64 {
    let (fd, kind) = w.video_fd(line);
    let queue = w.queue_type(line, kind);

    w.video.streamed = true;
    w.ioctl(line, fd, STREAMON, &mut queue.to_ne_bytes())
}

fn stop(w: &mut World, line: &mut Line) -> i64 {
    let (fd, kind) = w.video_fd(line);
    let queue = w.queue_type(line, kind);

    w.ioctl(line, fd, STREAMOFF, &mut queue.to_ne_bytes())
}
