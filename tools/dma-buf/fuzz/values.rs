// SPDX-License-Identifier: GPL-2.0

//! Values to try, and the numbers that choose among them.

use crate::sys::Place;

/// The generator splitmix64. It depends on its seed alone.
pub struct Rng(u64);

impl Rng {
    /// A sequence of its own for each pair.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut rng = Self(seed);
        let base = rng.next();

        Self(base ^ number.wrapping_mul(0xd134_2543_de82_ef95))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);

        let mut z = self.0;

        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// FNV-1a.
#[derive(Clone, Copy)]
pub struct Hash(pub u64);

impl Hash {
    pub const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// The number of an ioctl, as of `_IOC()`.
pub const fn ioc(dir: u32, kind: u8, nr: u32, size: usize) -> u32 {
    (dir << 30) | ((size as u32) << 16) | ((kind as u32) << 8) | nr
}

/// Spoils the number of an ioctl: its size, its direction, its type, or its number.
pub fn wrong_command(rng: &mut Rng, cmd: u32, only_size: bool) -> u32 {
    let size = (cmd >> 16) & 0x3fff;

    match rng.below(if only_size { 2 } else { 4 }) {
        0 => {
            let size = rng.pick(&[0, 1, size.wrapping_sub(1), size + 1, size + 8, 0x3fff]);

            cmd & !(0x3fff << 16) | ((size & 0x3fff) << 16)
        }
        1 => cmd ^ (rng.pick(&[1, 2, 3]) << 30),
        2 => cmd ^ (rng.pick(&[0x01, 0x20, 0xff]) << 8),
        _ => cmd & !0xff | (cmd.wrapping_add(rng.pick(&[1, 0x40, 0xff])) & 0xff),
    }
}

/// Where the argument is if it is not where it should be.
pub fn wrong_place(rng: &mut Rng) -> Place {
    let beyond = rng.pick(&[0, 1, 4, 8]);

    rng.pick(&[
        Place::Odd,
        Place::Null,
        Place::Unmapped,
        Place::ReadOnly,
        Place::Kernel,
        Place::Cross(beyond),
        Place::Cross(beyond),
    ])
}

pub fn place_name(place: Place) -> String {
    match place {
        Place::Good => "ok".into(),
        Place::Odd => "odd".into(),
        Place::Null => "null".into(),
        Place::Unmapped => "unmapped".into(),
        Place::ReadOnly => "read-only".into(),
        Place::Kernel => "kernel".into(),
        Place::Cross(n) => format!("cross-{n}"),
    }
}

/// Sizes of buffers that there may be memory for, in bytes.
pub fn good_size(rng: &mut Rng, page: u64) -> u64 {
    rng.pick(&[
        1,
        page - 1,
        page,
        page,
        page + 1,
        2 * page,
        4 * page,
        5 * page,
        16 * page,
        1 << 20,
    ])
}

/// Sizes that are zero, or become it when they are rounded up to pages.
pub fn wrapping_size(rng: &mut Rng, page: u64) -> u64 {
    rng.pick(&[0, u64::MAX, u64::MAX - 1, u64::MAX - page + 2])
}

/// Sizes of which there is never enough memory, and which must fail before it is all taken.
pub fn huge_size(rng: &mut Rng, page: u64) -> u64 {
    rng.pick(&[
        1 << 52,
        1 << 62,
        1 << 63,
        (1 << 63) - page,
        u64::MAX - page + 1,
        u64::MAX - 2 * page + 1,
    ])
}

/// Numbers at the limits of their types.
pub const ODD_WORDS: [u32; 10] = [
    0,
    1,
    2,
    3,
    0x7fff_fffe,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xffff_fffe,
    0xffff_ffff,
];

/// One bit that is not to be set, or all of them.
pub fn bad_bit(rng: &mut Rng, bits: u32) -> u64 {
    match rng.below(bits as usize + 1) {
        bit if bit < bits as usize => 1 << bit,
        _ => u64::MAX >> (64 - bits),
    }
}

/// Names of buffers, without what ends them.
pub fn name(rng: &mut Rng) -> Vec<u8> {
    let fixed: &[&[u8]] = &[
        b"",
        b"a",
        b"two words",
        b"new\nline",
        b"\nsize:\t7",
        b"\ncount:\t99\nexp_name:\tforged",
        b"tab\tand\\back",
        b"%s%n%p",
        b"\xff\xfe\x80",
        b"\x01\x1b[31m",
        b"../../etc",
        b"gr\xc3\xbc\xc3\x9fe",
    ];

    match rng.below(3) {
        0 => {
            let len = rng.pick(&[29, 30, 31, 32, 33, 64, 300]);

            (0..len).map(|i| b'a' + (i % 26) as u8).collect()
        }
        _ => rng.pick(fixed).to_vec(),
    }
}

/// Text for the log, one line.
pub fn escape(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| std::ascii::escape_default(*byte))
        .map(char::from)
        .collect()
}

/// Text with each run of digits as one mark: numbers of fences and of inodes.
pub fn without_numbers(text: &str) -> String {
    let mut out = String::new();

    for c in text.chars() {
        match c {
            '0'..='9' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            _ => out.push(c),
        }
    }
    out
}

pub fn errno_name(errno: i64) -> String {
    let names = [
        (1, "EPERM"),
        (2, "ENOENT"),
        (4, "EINTR"),
        (5, "EIO"),
        (6, "ENXIO"),
        (7, "E2BIG"),
        (9, "EBADF"),
        (11, "EAGAIN"),
        (12, "ENOMEM"),
        (13, "EACCES"),
        (14, "EFAULT"),
        (16, "EBUSY"),
        (17, "EEXIST"),
        (19, "ENODEV"),
        (20, "ENOTDIR"),
        (22, "EINVAL"),
        (24, "EMFILE"),
        (25, "ENOTTY"),
        (26, "ETXTBSY"),
        (27, "EFBIG"),
        (28, "ENOSPC"),
        (29, "ESPIPE"),
        (32, "EPIPE"),
        (34, "ERANGE"),
        (38, "ENOSYS"),
        (40, "ELOOP"),
        (53, "EBADR"),
        (75, "EOVERFLOW"),
        (77, "EBADFD"),
        (88, "ENOTSOCK"),
        (95, "EOPNOTSUPP"),
        (105, "ENOBUFS"),
        (107, "ENOTCONN"),
        (109, "ETOOMANYREFS"),
        (111, "ECONNREFUSED"),
    ];

    names
        .iter()
        .find(|(number, _)| *number == errno)
        .map_or_else(|| format!("E{errno}"), |(_, name)| (*name).into())
}
