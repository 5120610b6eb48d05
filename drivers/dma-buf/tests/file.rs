// SPDX-License-Identifier: GPL-2.0

//! The file of a buffer: its operations as the VFS calls them, but for poll.

#[kernel::macros::kunit_tests(dma_buf_core_file)]
mod tests {
    use crate::mock::*;

    use kernel::{
        bindings,
        error::from_err_ptr,
        ffi::{
            c_int,
            c_uint,
            c_ulong, //
        },
        ioctl::{
            _IOR,
            _IOW,
            _IOWR, //
        },
        page::PAGE_SIZE,
        prelude::*,
        sync::atomic::Relaxed,
        types::Opaque, //
    };

    use core::ptr::null_mut;

    const SEEK_SET: c_int = 0;
    const SEEK_CUR: c_int = 1;
    const SEEK_END: c_int = 2;

    const BASE: u32 = 'b' as u32;
    const SYNC: c_uint = _IOW::<u64>(BASE, 0);
    const SET_NAME_A: c_uint = _IOW::<u32>(BASE, 1);
    const SET_NAME_B: c_uint = _IOW::<u64>(BASE, 1);
    const EXPORT_SYNC_FILE: c_uint = _IOWR::<[u32; 2]>(BASE, 2);
    const IMPORT_SYNC_FILE: c_uint = _IOW::<[u32; 2]>(BASE, 3);

    #[test]
    fn llseek_tells_the_size() -> Result {
        for size in [0, 1, SIZE, (isize::MAX as usize) & !0xfff] {
            let buf = Export::new(&FIXED)?.sized(size).export()?;
            let llseek = |offset, whence| unsafe {
                buf.fops()
                    .llseek
                    .ok_or(ENOTSUPP)
                    .map(|f| f(buf.file(), offset, whence))
            };

            assert_eq!(llseek(0, SEEK_END)?, size as i64);
            assert_eq!(llseek(0, SEEK_SET)?, 0);
            for (offset, whence) in [
                (0, SEEK_CUR),
                (1, SEEK_SET),
                (-1, SEEK_END),
                (1, SEEK_END),
                (0, 3),
                (0, -1),
            ] {
                assert_eq!(llseek(offset, whence)?, i64::from(EINVAL.to_errno()));
            }
        }
        Ok(())
    }

    /// Maps `pages` pages of the file, from page `pgoff` on.
    fn mmap(buf: &Buf, pages: usize, pgoff: usize) -> Result<c_int> {
        let vma = KBox::new(Opaque::<bindings::vm_area_struct>::zeroed(), GFP_KERNEL)?;

        unsafe {
            let vma = vma.get();
            (*vma).vm_file = buf.file();
            (*vma).vm_pgoff = pgoff;
            (*vma).__bindgen_anon_1.__bindgen_anon_1.vm_start = PAGE_SIZE;
            (*vma).__bindgen_anon_1.__bindgen_anon_1.vm_end = (pages + 1) * PAGE_SIZE;
            Ok(buf.fops().mmap.ok_or(ENOTSUPP)?(buf.file(), vma))
        }
    }

    #[test]
    fn mmap_stays_inside() -> Result {
        let buf = Buf::new(&FIXED)?;

        for (pages, pgoff) in [(3, 0), (1, 2), (2, 1)] {
            assert_eq!(mmap(&buf, pages, pgoff)?, 0);
            assert!(buf.mock.called(&[Op::Mmap]));
            assert_eq!(buf.mock.pgoff.load(Relaxed), pgoff);
        }
        for (pages, pgoff) in [(4, 0), (3, 1), (1, 3), (1, usize::MAX - 1)] {
            assert_eq!(mmap(&buf, pages, pgoff)?, EINVAL.to_errno());
            assert!(buf.mock.called(&[]));
        }
        buf.mock.fail(Op::Mmap, EAGAIN);
        assert_eq!(mmap(&buf, 1, 0)?, EAGAIN.to_errno());

        let buf = Export::new(&FIXED)?.sized(SIZE - 1).export()?;
        assert_eq!(mmap(&buf, 3, 0)?, EINVAL.to_errno());
        assert_eq!(mmap(&buf, 2, 0)?, 0);

        assert_eq!(mmap(&Buf::new(&LEAST)?, 1, 0)?, EINVAL.to_errno());
        Ok(())
    }

    fn ioctl(buf: &Buf, cmd: c_uint, arg: usize) -> Result<isize> {
        let f = buf.fops().unlocked_ioctl.ok_or(ENOTSUPP)?;

        Ok(unsafe { f(buf.file(), cmd, arg as c_ulong) })
    }

    fn errno(e: Error) -> isize {
        e.to_errno() as isize
    }

    #[test]
    fn unknown_ioctls() -> Result {
        let buf = Buf::new(&FIXED)?;

        for cmd in [
            0,
            _IOW::<u64>(BASE, 5),
            _IOW::<[u64; 2]>(BASE, 0),
            _IOR::<u64>(BASE, 0),
            _IOW::<u8>(BASE, 1),
            u32::MAX,
        ] {
            assert_eq!(ioctl(&buf, cmd, 0)?, errno(ENOTTY));
        }
        if cfg!(not(CONFIG_SYNC_FILE)) {
            assert_eq!(ioctl(&buf, EXPORT_SYNC_FILE, 0)?, errno(ENOTTY));
            assert_eq!(ioctl(&buf, IMPORT_SYNC_FILE, 0)?, errno(ENOTTY));
        }
        assert!(buf.mock.called(&[]));
        Ok(())
    }

    /// Memory of a user, for the test to give to ioctls.
    struct User(usize);

    impl User {
        /// Two pages, of which the second one is not there.
        fn new() -> Result<Self> {
            let (read_write, private_anonymous) = (3, 0x22);
            let addr = unsafe {
                bindings::kunit_vm_mmap(
                    bindings::kunit_get_current_test(),
                    null_mut(),
                    0,
                    PAGE_SIZE,
                    read_write,
                    private_anonymous,
                    0,
                )
            } as usize;

            if addr == 0 || addr as isize <= 0 {
                return Err(ENOMEM);
            }
            Ok(Self(addr))
        }

        fn write(&self, at: usize, data: &[u8]) -> Result<usize> {
            let left = unsafe {
                bindings::copy_to_user((self.0 + at) as *mut _, data.as_ptr().cast(), data.len())
            };
            if left == 0 {
                Ok(self.0 + at)
            } else {
                Err(EFAULT)
            }
        }
    }

    #[test]
    fn sync() -> Result {
        let buf = Buf::new(&FIXED)?;
        let user = User::new()?;
        let sync = |flags: u64| -> Result<isize> {
            ioctl(&buf, SYNC, user.write(0, &flags.to_ne_bytes())?)
        };
        let (read, write, end) = (1, 2, 4);

        for (flags, op, direction) in [
            (read, Op::Begin, FROM_DEVICE),
            (write, Op::Begin, TO_DEVICE),
            (read | write, Op::Begin, BIDIRECTIONAL),
            (read | end, Op::End, FROM_DEVICE),
            (write | end, Op::End, TO_DEVICE),
            (read | write | end, Op::End, BIDIRECTIONAL),
        ] {
            assert_eq!(sync(flags)?, 0);
            assert!(buf.mock.was_for(direction));
            assert!(buf.mock.called(&[op]));
        }
        for flags in [0, end, 8, read | 8, 1 << 63 | write, u64::MAX] {
            assert_eq!(sync(flags)?, errno(EINVAL));
        }
        assert_eq!(ioctl(&buf, SYNC, 0)?, errno(EFAULT));
        // The argument ends where there is no memory any more.
        assert_eq!(ioctl(&buf, SYNC, user.0 + PAGE_SIZE - 4)?, errno(EFAULT));
        assert!(buf.mock.called(&[]));

        buf.mock.fail(Op::Begin, ENXIO);
        assert_eq!(sync(write)?, errno(ENXIO));
        buf.mock.fail(Op::End, EIO);
        assert_eq!(sync(write | end)?, errno(EIO));
        Ok(())
    }

    /// What a show function writes into a `seq_file`.
    fn fdinfo(buf: &Buf, text: &mut [u8; 256]) -> Result<usize> {
        let seq = Opaque::<bindings::seq_file>::zeroed();

        unsafe {
            (*seq.get()).buf = text.as_mut_ptr().cast();
            (*seq.get()).size = text.len();
            buf.fops().show_fdinfo.ok_or(ENOTSUPP)?(seq.get(), buf.file());
            Ok((*seq.get()).count)
        }
    }

    fn fdinfo_is(buf: &Buf, name: Option<&[u8]>) -> Result<bool> {
        let mut text = [0; 256];
        let len = fdinfo(buf, &mut text)?;
        let start = b"size:\t12288\ncount:\t0\nexp_name:\tkunit\n";
        let Some(rest) = text[..len].strip_prefix(start) else {
            return Ok(false);
        };

        Ok(match name {
            None => rest.is_empty(),
            Some(name) => {
                rest.strip_prefix(b"name:\t")
                    .and_then(|rest| rest.strip_suffix(b"\n"))
                    == Some(name)
            }
        })
    }

    /// Whether the path, as in maps of processes, is that of a buffer with this name.
    fn path_is(buf: &Buf, name: &[u8]) -> Result<bool> {
        let mut text = [0u8; 64];
        let path = unsafe { &raw mut (*buf.file()).__bindgen_anon_1.f_path };
        let start = from_err_ptr(unsafe {
            bindings::d_path(path, text.as_mut_ptr().cast(), text.len() as c_int)
        })?;
        let path = unsafe { CStr::from_char_ptr(start) };

        Ok(path.to_bytes().strip_prefix(b"/dmabuf:") == Some(name))
    }

    #[test]
    fn a_buffer_has_no_name_at_first() -> Result {
        let buf = Export::new(&FIXED)?.sized(12288).export()?;

        assert!(fdinfo_is(&buf, None)?);
        assert!(path_is(&buf, b"")?);
        Ok(())
    }

    #[test]
    fn names() -> Result {
        let buf = Export::new(&FIXED)?.sized(12288).export()?;
        let user = User::new()?;
        let longest = [b'x'; 31];

        for name in [b"a", &b"frame 1"[..], &longest, b"a\\b\t", b"\xff\x80", b""] {
            for cmd in [SET_NAME_A, SET_NAME_B] {
                let mut bytes = [0; 40];
                bytes[..name.len()].copy_from_slice(name);

                assert_eq!(ioctl(&buf, cmd, user.write(0, &bytes)?)?, 0);
                assert!(fdinfo_is(&buf, Some(name))?);
                assert!(path_is(&buf, name)?);
            }
        }
        // A newline must not begin a line of the kernel's; the core in C lets it.
        assert_eq!(ioctl(&buf, SET_NAME_B, user.write(0, b"two\nlines\0")?)?, 0);
        let shown = if cfg!(CONFIG_DMA_SHARED_BUFFER_RUST) {
            &b"two\\012lines"[..]
        } else {
            b"two\nlines"
        };
        assert!(fdinfo_is(&buf, Some(shown))?);
        assert!(path_is(&buf, b"two\nlines")?);
        // At the end of the memory, with nothing after it.
        let addr = user.write(PAGE_SIZE - 4, b"end\0")?;
        assert_eq!(ioctl(&buf, SET_NAME_B, addr)?, 0);
        assert!(fdinfo_is(&buf, Some(b"end"))?);
        Ok(())
    }

    #[test]
    fn names_that_are_refused() -> Result {
        let buf = Export::new(&FIXED)?.sized(12288).export()?;
        let user = User::new()?;

        assert_eq!(ioctl(&buf, SET_NAME_B, user.write(0, b"kept\0")?)?, 0);
        // One character too many; then without an end.
        let mut long = [b'x'; 64];
        long[32] = 0;
        assert_eq!(
            ioctl(&buf, SET_NAME_B, user.write(0, &long)?)?,
            errno(EINVAL)
        );
        long[32] = b'x';
        assert_eq!(
            ioctl(&buf, SET_NAME_A, user.write(0, &long)?)?,
            errno(EINVAL)
        );
        assert_eq!(ioctl(&buf, SET_NAME_B, 0)?, errno(EFAULT));
        let addr = user.write(PAGE_SIZE - 4, b"endl")?;
        assert_eq!(ioctl(&buf, SET_NAME_B, addr)?, errno(EFAULT));

        assert!(fdinfo_is(&buf, Some(b"kept"))?);
        Ok(())
    }

    /// The number of references leaves out that of who reads.
    #[test]
    fn fdinfo_counts() -> Result {
        let buf = Buf::new(&FIXED)?;
        let mut text = [0; 256];
        buf.get();
        buf.get();
        let len = fdinfo(&buf, &mut text)?;

        assert!(text[..len].windows(9).any(|w| w == b"count:\t2\n"));
        for _ in 0..2 {
            unsafe { bindings::__fput_sync(buf.file()) };
        }
        Ok(())
    }
}
