// SPDX-License-Identifier: GPL-2.0

//! What a program has made so far, and how its calls get their arguments and are logged.

use crate::calls::{self, Call};
use crate::sys::*;
use crate::v4l2;
use crate::values::*;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::{thread, time};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Buf,
    Sync,
    Timeline,
    System,
    Cma,
    Udmabuf,
    Rust,
    Test,
    Vivid,
    M2m,
    Memfd,
    Epoll,
    Socket,
    Other,
}

use Kind::*;

impl Kind {
    const ALL: [Kind; 14] = [
        Buf, Sync, Timeline, System, Cma, Udmabuf, Rust, Test, Vivid, M2m, Memfd, Epoll, Socket,
        Other,
    ];

    /// The device that is always at the same place.
    pub fn path(self) -> Option<&'static CStr> {
        match self {
            System => Some(c"/dev/dma_heap/system"),
            Cma => Some(c"/dev/dma_heap/default_cma_region"),
            Udmabuf => Some(c"/dev/udmabuf"),
            Rust => Some(c"/dev/rust-dma-buf"),
            Test => Some(c"/dev/dma-buf-test"),
            Timeline => Some(c"/sys/kernel/debug/sync/sw_sync"),
            _ => None,
        }
    }

    /// Whether its files have frames come and go.
    pub fn is_video(self) -> bool {
        matches!(self, Vivid | M2m)
    }

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// The calls that make one, the more often the more likely.
    fn makers(self) -> &'static [&'static str] {
        match self {
            Buf => &[
                "heap.alloc",
                "heap.alloc",
                "heap.alloc",
                "udmabuf.create",
                "udmabuf.create",
                "rust.alloc",
                "rust.alloc",
            ],
            Sync => &[
                "timeline.fence",
                "timeline.fence",
                "timeline.fence",
                "buf.export",
            ],
            Timeline => &["timeline.open"],
            Memfd => &["memfd.new"],
            Epoll => &["epoll.new"],
            Socket => &["socket.new"],
            Vivid => &["v4l2.open.vivid"],
            M2m => &["v4l2.open.m2m"],
            System | Cma | Udmabuf | Rust | Test => &["device.open"],
            Other => &[],
        }
    }
}

/// A descriptor that the program has or had.
pub struct Slot {
    pub fd: i32,
    pub kind: Kind,
    pub label: String,
    pub live: bool,
}

pub struct Mapping {
    pub map: Map,
    pub label: String,
    pub writable: bool,
}

/// What one call logs.
pub struct Line {
    args: String,
    out: String,
    on: bool,
}

impl Line {
    pub fn arg(&mut self, name: &str, value: impl Display) {
        if self.on {
            self.args += &format!(" {name}={value}");
        }
    }

    pub fn out(&mut self, name: &str, value: impl Display) {
        if self.on {
            self.out += &format!(" {name}={value}");
        }
    }
}

/// Descriptors that the threads share: the number and the kind, or zero.
pub type Shared = Arc<[AtomicU64; 32]>;

/// How often each kind of call returned zero or more, or which error.
pub type Coverage = BTreeMap<&'static str, BTreeMap<i64, u64>>;

pub struct World {
    pub rng: Rng,
    /// Choose only what ought to work.
    good: bool,
    depth: u32,
    /// What a call is made for, if it is to make a descriptor.
    pub wanted: Option<Kind>,
    pub arenas: [Arena; 2],
    /// A file through which memory is read and written.
    pub scratch: i32,
    pub page: u64,
    pub slots: Vec<Slot>,
    pub maps: Vec<Mapping>,
    counts: BTreeMap<String, u32>,
    pub video: v4l2::State,
    shared: Option<Shared>,
    pub log: String,
    pub coverage: Coverage,
    pub calls: u64,
    program: u64,
    number: u32,
    first_fd: i32,
    /// As many buffers are there without this program's doing.
    base: i64,
    pub lost: i64,
    pub verbose: bool,
}

impl World {
    pub fn new(shared: Option<Shared>) -> Self {
        let arenas = [Arena::new(), Arena::new()];
        let scratch = sys_memfd(c"scratch", 1) as i32;
        let base = count_buffers().unwrap_or(0);
        let first_fd = sys_fcntl(scratch, Fcntl::DupFd, 0) as i32;

        assert!(scratch >= 0 && first_fd >= 0, "no descriptors");
        sys_close(first_fd);
        Self {
            rng: Rng::new(0, 0),
            good: false,
            depth: 0,
            wanted: None,
            arenas,
            scratch,
            page: page() as u64,
            slots: Vec::new(),
            maps: Vec::new(),
            counts: BTreeMap::new(),
            video: v4l2::State::default(),
            shared,
            log: String::new(),
            coverage: Coverage::new(),
            calls: 0,
            program: 0,
            number: 0,
            first_fd,
            base,
            lost: 0,
            verbose: false,
        }
    }

    /// Whether results are compared with those of another kernel.
    pub fn compared(&self) -> bool {
        self.shared.is_none()
    }

    /// Makes the calls of one program, and then closes all it has.
    pub fn run_program(&mut self, seed: u64, program: u64, calls: &[&'static Call], len: u32) {
        self.rng = Rng::new(seed, program);
        self.program = program;
        self.number = 0;
        self.video.reset();

        // Each program likes some groups of calls more than others.
        let likes = [self.rng.below(calls::GROUPS), self.rng.below(calls::GROUPS)];
        let weight = |call: &Call| {
            let factor = if likes.contains(&call.group) { 6 } else { 1 };

            (call.weight * factor) as usize
        };
        let total = calls.iter().map(|call| weight(call)).sum();

        while self.number < len {
            let mut at = self.rng.below(total);
            let call = calls.iter().find(|call| {
                let found = at < weight(call);

                at = at.wrapping_sub(weight(call));
                found
            });

            self.run(call.unwrap());
        }
        self.finish();
    }

    pub fn run(&mut self, call: &'static Call) {
        let mut line = Line {
            args: String::new(),
            out: String::new(),
            on: self.compared(),
        };

        if self.verbose {
            eprintln!("{}.{} {}", self.program, self.number, call.name);
        }

        let ret = (call.run)(self, &mut line);
        let key = if ret < 0 { -ret } else { 0 };

        self.calls += 1;
        *self
            .coverage
            .entry(call.name)
            .or_default()
            .entry(key)
            .or_default() += 1;
        if line.on {
            let ret = if ret < 0 {
                errno_name(-ret)
            } else {
                ret.to_string()
            };
            let Line { args, out, .. } = line;

            self.log += &format!(
                "{}.{} {}{args} = {ret}{out}\n",
                self.program, self.number, call.name
            );
        }
        self.number += 1;
    }

    /// Shows what there is, and gives it all up.
    fn finish(&mut self) {
        if self.compared() {
            for at in 0..self.slots.len() {
                let Slot { fd, kind, live, .. } = self.slots[at];

                if live && matches!(kind, Buf | Sync) {
                    let text = calls::fdinfo(fd);
                    let ready = calls::poll_one(fd, 5);
                    let label = &self.slots[at].label;

                    self.log += &format!("{}.end {label} {text} poll={ready}\n", self.program);
                }
            }
        }
        for mut mapping in std::mem::take(&mut self.maps) {
            mapping.map.unmap_from(0);
        }
        for slot in std::mem::take(&mut self.slots) {
            if slot.live {
                sys_close(slot.fd);
            }
        }
        self.counts.clear();
        if self.compared() {
            let stray = self.close_strays();
            let left = self.count_left();

            self.lost += left;
            self.log += &format!("{}.end stray={stray} left={left}\n", self.program);
        }
    }

    /// Descriptors that the program was not told of.
    fn close_strays(&self) -> u32 {
        let mut fds = [PollFd {
            fd: 0,
            events: 0,
            revents: 0,
        }; 64];
        let mut found = 0;

        for (at, entry) in fds.iter_mut().enumerate() {
            entry.fd = self.first_fd + at as i32;
        }
        sys_poll(&mut fds);
        for entry in fds.iter().filter(|entry| entry.revents & POLLNVAL == 0) {
            sys_close(entry.fd);
            found += 1;
        }
        found
    }

    /// How many buffers stay for good. Threads of drivers may give up the last ones a bit later.
    fn count_left(&mut self) -> i64 {
        let mut count = count_buffers().unwrap_or(0);

        // Few looks: the list is long when drivers have leaked buffers, and takes its time then.
        for wait in [2, 2, 4, 8, 16, 32, 64, 128, 256] {
            if count <= self.base {
                break;
            }
            thread::sleep(time::Duration::from_millis(wait));
            count = count_buffers().unwrap_or(0);
        }

        let left = count - self.base;

        self.base = count;
        left
    }

    pub fn set_good(&mut self, good: bool) -> bool {
        std::mem::replace(&mut self.good, good)
    }

    /// True once in `n` times, if something may go wrong at all.
    pub fn odd(&mut self, n: usize) -> bool {
        !self.good && self.rng.one_in(n)
    }

    /// A word that is right, or once in a while one that is not.
    pub fn word(&mut self, n: usize, right: u32) -> u32 {
        if self.odd(n) {
            self.rng.pick(&ODD_WORDS)
        } else {
            right
        }
    }

    /// Takes note of a new descriptor. Its name in the log is that of its kind, with a number.
    pub fn add(&mut self, kind: Kind, fd: i64) -> String {
        let count = self.counts.entry(kind.name()).or_default();
        let label = format!("{}{count}", kind.name());

        *count += 1;
        self.slots.push(Slot {
            fd: fd as i32,
            kind,
            label: label.clone(),
            live: true,
        });
        self.share(fd as i32, kind);
        label
    }

    /// Adds what a call returned, if it did.
    pub fn add_result(&mut self, line: &mut Line, kind: Kind, ret: i64) -> i64 {
        if ret < 0 {
            return ret;
        }

        let label = self.add(kind, ret);

        line.out("fd", label);
        0
    }

    /// Lets other threads have it, too.
    fn share(&mut self, fd: i32, kind: Kind) {
        let Some(shared) = self.shared.clone() else {
            return;
        };

        if !self.rng.one_in(3) {
            return;
        }

        let copy = sys_fcntl(fd, Fcntl::DupFd, 0);

        if copy >= 0 {
            let at = self.rng.below(shared.len());
            let old = shared[at].swap(((copy as u64) << 8) | kind as u64, Relaxed);

            if old != 0 {
                sys_close((old >> 8) as i32);
            }
        }
    }

    fn take_shared(&mut self, kind: Option<Kind>) -> Option<(i32, Kind)> {
        let shared = self.shared.clone()?;

        if self.rng.one_in(2) {
            return None;
        }

        let first = self.rng.below(shared.len());
        let all = (0..shared.len()).map(|at| shared[(first + at) % shared.len()].load(Relaxed));

        all.filter(|value| *value != 0)
            .map(|value| ((value >> 8) as i32, Kind::ALL[(value & 0xff) as usize]))
            .find(|(_, found)| kind.is_none() || kind == Some(*found))
    }

    pub fn live(&self, kind: Option<Kind>) -> Vec<usize> {
        let right = |slot: &Slot| slot.live && (kind.is_none() || kind == Some(slot.kind));

        (0..self.slots.len())
            .filter(|at| right(&self.slots[*at]))
            .collect()
    }

    /// A descriptor for an argument, mostly of this kind.
    pub fn fd(&mut self, line: &mut Line, name: &str, kind: Kind) -> i32 {
        if self.odd(24) {
            return self.bad_fd(line, name);
        }
        if self.odd(24) {
            return self.any_fd(line, name).0;
        }
        if let Some((fd, _)) = self.take_shared(Some(kind)) {
            return fd;
        }

        let mut found = self.live(Some(kind));
        let wants_more = found.len() < 3 && matches!(kind, Buf | Sync) && self.odd(3);

        if (found.is_empty() || wants_more) && self.depth < 4 {
            let makers = kind.makers();

            if !makers.is_empty() {
                let maker = calls::named(self.rng.pick(makers));
                let good = self.set_good(true);
                let wanted = self.wanted.replace(kind);

                self.depth += 1;
                self.run(maker);
                self.depth -= 1;
                self.wanted = wanted;
                self.set_good(good);
                found = self.live(Some(kind));
            }
        }
        if found.is_empty() {
            line.arg(name, "none");
            return -1;
        }

        let at = self.rng.pick(&found);

        line.arg(name, &self.slots[at].label);
        self.slots[at].fd
    }

    /// A descriptor of any kind, other than of video devices where frames would be in the way.
    pub fn any_fd(&mut self, line: &mut Line, name: &str) -> (i32, Kind) {
        if let Some(found) = self.take_shared(None) {
            return found;
        }

        let mut found = self.live(None);

        if self.compared() {
            found.retain(|at| !self.slots[*at].kind.is_video());
        }
        if found.is_empty() {
            return (self.fd(line, name, Buf), Buf);
        }

        let at = self.rng.pick(&found);

        line.arg(name, &self.slots[at].label);
        (self.slots[at].fd, self.slots[at].kind)
    }

    /// A descriptor that is not open.
    pub fn bad_fd(&mut self, line: &mut Line, name: &str) -> i32 {
        let fd = self.rng.pick(&[-1, -100, 1023, i32::MAX, i32::MIN]);

        line.arg(name, fd);
        fd
    }

    /// Calls an ioctl with a pointer to `data`, which is updated, once in a while with a wrong
    /// number or a bad pointer.
    pub fn ioctl(&mut self, line: &mut Line, fd: i32, cmd: u32, data: &mut [u8]) -> i64 {
        let place = self.place();
        let cmd = self.command(line, cmd);
        let before = data.to_vec();

        line.arg("ptr", place_name(place));

        let ret = self.ioctl_at(line, fd, cmd, place, data);

        self.arenas[0].get(place, data);
        if ret < 0 && data != before {
            line.out("wrote", "yes");
        }
        ret
    }

    pub fn ioctl_at(&self, line: &mut Line, fd: i32, cmd: u32, place: Place, data: &[u8]) -> i64 {
        let addr = self.arenas[0].put(place, data);

        if self.takes_all_memory(fd, cmd, data) {
            line.arg("fd", "-1");
            return sys_ioctl(-1, cmd, addr);
        }
        if self.compared() && (cmd >> 8) & 0xff != u32::from(b'V') {
            return sys_ioctl_limited(fd, cmd, addr);
        }
        sys_ioctl(fd, cmd, addr)
    }

    /// Whether it would make the system heap take all memory before it says that there is not
    /// enough: whatever the type and the size of the command, zero is to allocate. Such calls are
    /// made without a descriptor.
    fn takes_all_memory(&self, fd: i32, cmd: u32, data: &[u8]) -> bool {
        let mut len = [0; 8];

        len[..data.len().min(8)].copy_from_slice(&data[..data.len().min(8)]);

        let len = u64::from_ne_bytes(len);
        let slot = self.slots.iter().find(|slot| slot.live && slot.fd == fd);
        // With threads, a number may be another's by now.
        let is_heap = match slot {
            Some(slot) if self.compared() => slot.kind == System,
            _ => true,
        };

        is_heap && cmd & 0xff == 0 && (16 << 20..=u64::MAX - self.page + 1).contains(&len)
    }

    pub fn place(&mut self) -> Place {
        if self.odd(16) {
            wrong_place(&mut self.rng)
        } else {
            Place::Good
        }
    }

    pub fn command(&mut self, line: &mut Line, cmd: u32) -> u32 {
        // Other commands of video devices would tell of frames.
        let only_size = self.compared() && (cmd >> 8) & 0xff == u32::from(b'V');
        let cmd = if self.odd(20) {
            wrong_command(&mut self.rng, cmd, only_size)
        } else {
            return cmd;
        };

        line.arg("cmd", format_args!("{cmd:#x}"));
        cmd
    }
}

/// The devices that cannot be opened.
pub fn missing() -> Vec<String> {
    let opens = |path: &CStr| {
        let fd = sys_open(path, O_RDWR | O_CLOEXEC);

        fd >= 0 && sys_close(fd as i32) == 0
    };
    let mut missing = v4l2::missing();

    for path in Kind::ALL.iter().filter_map(|kind| kind.path()) {
        if !opens(path) {
            missing.push(path.to_string_lossy().into_owned());
        }
    }
    missing
}

pub const BUFINFO: &str = "/sys/kernel/debug/dma_buf/bufinfo";

/// The number in the last line of bufinfo: "Total %d objects, ...".
pub fn count_buffers() -> Option<i64> {
    let text = std::fs::read(BUFINFO).ok()?;
    let text = String::from_utf8_lossy(&text);
    let last = text
        .lines()
        .rfind(|line| line.starts_with("Total ") && line.contains(" objects"));

    last?.split(' ').nth(1)?.parse().ok()
}

/// Takes a descriptor from all threads.
pub fn close_shared(entry: &AtomicU64) {
    let old = entry.swap(0, Relaxed);

    if old != 0 {
        sys_close((old >> 8) as i32);
    }
}

pub fn c_string(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}
