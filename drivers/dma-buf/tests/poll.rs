// SPDX-License-Identifier: GPL-2.0

//! Poll: the fences of a buffer, as the VFS asks for them.

#[kernel::macros::kunit_tests(dma_buf_core_poll)]
mod tests {
    use crate::mock::*;

    use core::{
        marker::PhantomPinned,
        ptr::null_mut, //
    };

    use kernel::{
        bindings,
        dma_buf::dma_fence::DriverFence,
        ffi::{
            c_int,
            c_uint,
            c_void, //
        },
        prelude::*,
        sync::atomic::{
            Atomic,
            Relaxed, //
        },
        types::Opaque, //
    };

    const IN: u32 = 0x1;
    const PRI: u32 = 0x2;
    const OUT: u32 = 0x4;
    const ERR: u32 = 0x8;

    /// One who polls: an entry in the wait queue of a buffer.
    #[repr(C)]
    struct Poller {
        table: bindings::poll_table,
        entry: Opaque<bindings::wait_queue_entry>,
        head: *mut bindings::wait_queue_head,
        woken: Atomic<u32>,
        events: Atomic<u32>,
        for_writing: Atomic<u32>,
        _pin: PhantomPinned,
    }

    unsafe extern "C" fn queue(
        _file: *mut bindings::file,
        head: *mut bindings::wait_queue_head,
        table: *mut bindings::poll_table,
    ) {
        unsafe {
            let poller = table.cast::<Poller>();

            if (*poller).head.is_null() {
                (*poller).head = head;
                bindings::add_wait_queue(head, (*poller).entry.get());
            }
        }
    }

    unsafe extern "C" fn wake(
        entry: *mut bindings::wait_queue_entry,
        _mode: c_uint,
        _flags: c_int,
        key: *mut c_void,
    ) -> c_int {
        unsafe {
            let poller = (*entry).private.cast::<Poller>();

            (*poller).woken.fetch_add(1, Relaxed);
            if key as u32 & OUT != 0 {
                (*poller).for_writing.fetch_add(1, Relaxed);
            }
            (*poller)
                .events
                .store((*poller).events.load(Relaxed) | key as u32, Relaxed);
        }
        0
    }

    impl Poller {
        fn new() -> Result<KBox<Self>> {
            let mut poller = KBox::new(
                Self {
                    table: bindings::poll_table {
                        _qproc: Some(queue),
                        _key: 0,
                    },
                    entry: Opaque::zeroed(),
                    head: null_mut(),
                    woken: Atomic::new(0),
                    events: Atomic::new(0),
                    for_writing: Atomic::new(0),
                    _pin: PhantomPinned,
                },
                GFP_KERNEL,
            )?;
            let ptr: *mut Self = &mut *poller;

            unsafe {
                let entry = (*ptr).entry.get();
                (*entry).func = Some(wake);
                (*entry).private = ptr.cast();
            }
            Ok(poller)
        }

        /// What is ready of `events`.
        fn poll(&mut self, buf: &Buf, events: u32) -> Result<u32> {
            let poll = buf.fops().poll.ok_or(ENOTSUPP)?;

            self.table._key = events;
            Ok(unsafe { poll(buf.file(), (&raw mut *self).cast()) })
        }

        fn woken(&self) -> u32 {
            self.woken.load(Relaxed)
        }
    }

    impl Drop for Poller {
        fn drop(&mut self) {
            if !self.head.is_null() {
                unsafe { bindings::remove_wait_queue(self.head, self.entry.get()) };
            }
        }
    }

    /// What is ready right now, without a queue.
    fn ready(buf: &Buf, events: u32) -> Result<u32> {
        let poll = buf.fops().poll.ok_or(ENOTSUPP)?;
        let mut table = bindings::poll_table {
            _qproc: None,
            _key: events,
        };

        Ok(unsafe { poll(buf.file(), &mut table) })
    }

    #[test]
    fn without_fences_all_is_ready() -> Result {
        let buf = Buf::new(&FIXED)?;

        for (events, expected) in [
            (IN | OUT, IN | OUT),
            (IN, IN),
            (OUT, OUT),
            (u32::MAX, IN | OUT),
            (PRI | ERR, 0),
            (0, 0),
        ] {
            assert_eq!(ready(&buf, events)?, expected);
            assert_eq!(Poller::new()?.poll(&buf, events)?, expected);
        }
        // Nobody keeps the buffer, and nobody was called.
        assert_eq!(buf.refs(), 1);
        assert!(buf.mock.called(&[]) && !buf.is_locked());
        Ok(())
    }

    /// What is ready with a fence that is pending, and when it has signalled.
    fn with_fence(usage: bindings::dma_resv_usage, pending: u32) -> Result<bool> {
        let buf = Buf::new(&FIXED)?;
        let fence = fence()?;
        let mut poller = Poller::new()?;

        buf.add(&fence, usage)?;
        let mut good = poller.poll(&buf, IN)? == pending & IN;
        good &= poller.poll(&buf, OUT)? == pending & OUT;
        good &= poller.poll(&buf, IN | OUT)? == pending;
        // Who asks for what is not ready sleeps on.
        let before = poller.woken();
        fence.signal(Ok(()));
        good &= (poller.woken() > before) == (pending != IN | OUT);
        good &= poller.poll(&buf, IN | OUT)? == IN | OUT;
        Ok(good)
    }

    #[test]
    fn reading_waits_for_writers_and_writing_for_all() -> Result {
        assert!(with_fence(KERNEL, 0)?);
        assert!(with_fence(WRITE, 0)?);
        assert!(with_fence(READ, IN)?);
        assert!(with_fence(BOOKKEEP, IN | OUT)?);
        Ok(())
    }

    #[test]
    fn who_is_woken_learns_for_what() -> Result {
        for (asked, usage) in [(IN, WRITE), (OUT, WRITE), (OUT, READ)] {
            let buf = Buf::new(&FIXED)?;
            let fence = fence()?;
            let mut poller = Poller::new()?;

            buf.add(&fence, usage)?;
            assert_eq!(poller.poll(&buf, asked)?, 0);
            assert_eq!(poller.woken(), 0);
            fence.signal(Ok(()));
            assert_eq!(poller.woken(), 1);
            assert_eq!(poller.events.load(Relaxed), asked);
        }
        Ok(())
    }

    /// An error is for those who ask the fence; for poll the work is over.
    #[test]
    fn a_fence_that_fails() -> Result {
        let buf = Buf::new(&FIXED)?;
        let mut poller = Poller::new()?;

        for result in [Err(EIO), Err(ECANCELED), Ok(())] {
            let fence = fence()?;
            buf.add(&fence, WRITE)?;
            assert_eq!(poller.poll(&buf, IN)?, 0);
            let before = poller.woken();
            fence.signal(result);
            assert_eq!(poller.woken(), before + 1);
            assert_eq!(poller.poll(&buf, IN)?, IN);
        }
        Ok(())
    }

    #[test]
    fn a_fence_that_has_signalled() -> Result {
        let buf = Buf::new(&FIXED)?;
        let fence = fence()?;

        buf.add(&fence, WRITE)?;
        fence.signal(Ok(()));
        assert_eq!(Poller::new()?.poll(&buf, IN | OUT)?, IN | OUT);
        assert_eq!(buf.refs(), 1);
        Ok(())
    }

    /// The callback has references to the fence and to the buffer, and gives them up.
    #[test]
    fn what_the_callback_keeps() -> Result {
        for asked in [IN, OUT] {
            let buf = Buf::new(&FIXED)?;
            let fence = fence()?;
            let seen = fence.fence();
            let mut poller = Poller::new()?;

            buf.add(&fence, WRITE)?;
            let before = fence_refs(&seen);
            assert_eq!(poller.poll(&buf, asked)?, 0);
            assert_eq!(fence_refs(&seen), before + 1);
            assert_eq!(buf.refs(), 2);
            // That of who signals goes, too.
            fence.signal(Ok(()));
            assert_eq!(fence_refs(&seen), before - 1);
            assert_eq!(buf.refs(), 1);
        }
        Ok(())
    }

    #[test]
    fn all_who_wait_are_woken() -> Result {
        let buf = Buf::new(&FIXED)?;
        let fence = fence()?;
        let mut pollers = [Poller::new()?, Poller::new()?, Poller::new()?];

        buf.add(&fence, WRITE)?;
        for poller in &mut pollers {
            assert_eq!(poller.poll(&buf, IN)?, 0);
        }
        fence.signal(Ok(()));
        assert!(pollers.iter().all(|poller| poller.woken() == 1));
        Ok(())
    }

    /// Whoever is woken asks again, and sleeps for the next fence, until there is none.
    #[test]
    fn several_fences() -> Result {
        const FENCES: usize = 4;
        let buf = Buf::new(&FIXED)?;
        let mut poller = Poller::new()?;
        let mut fences: [Option<DriverFence>; FENCES] = [const { None }; FENCES];

        for fence in &mut fences {
            let new = crate::mock::fence()?;
            buf.add(&new, READ)?;
            *fence = Some(new);
        }
        // In an order that is not theirs. Who polls for something else is ready, and wakes nobody
        // for writing.
        for i in [2, 0, 3, 1] {
            assert_eq!(poller.poll(&buf, OUT)?, 0);
            assert_eq!(ready(&buf, IN)?, IN);
            if let Some(fence) = fences[i].take() {
                fence.signal(Ok(()));
            }
        }
        assert!((1..=FENCES as u32).contains(&poller.for_writing.load(Relaxed)));
        assert_eq!(poller.poll(&buf, IN | OUT)?, IN | OUT);
        Ok(())
    }

    /// Reading and writing are waited for at once, each until it is ready.
    #[test]
    fn both_directions() -> Result {
        let buf = Buf::new(&FIXED)?;
        let (write, read) = (fence()?, fence()?);
        let mut poller = Poller::new()?;

        buf.add(&write, WRITE)?;
        buf.add(&read, READ)?;
        assert_eq!(poller.poll(&buf, IN | OUT)?, 0);
        write.signal(Ok(()));
        assert!(poller.woken() >= 1);
        assert!(poller.events.load(Relaxed) & IN != 0);
        assert_eq!(poller.poll(&buf, IN | OUT)?, IN);
        poller.events.store(0, Relaxed);
        read.signal(Ok(()));
        assert_eq!(poller.events.load(Relaxed), OUT);
        assert_eq!(poller.poll(&buf, IN | OUT)?, IN | OUT);
        Ok(())
    }

    /// A fence that comes after the one that is waited for is waited for next.
    #[test]
    fn a_fence_that_comes_later() -> Result {
        let buf = Buf::new(&FIXED)?;
        let (first, second) = (fence()?, fence()?);
        let mut poller = Poller::new()?;

        buf.add(&first, WRITE)?;
        assert_eq!(poller.poll(&buf, IN)?, 0);
        buf.add(&second, WRITE)?;
        assert_eq!(poller.poll(&buf, IN)?, 0);
        first.signal(Ok(()));
        assert_eq!(poller.woken(), 1);
        assert_eq!(poller.poll(&buf, IN)?, 0);
        second.signal(Ok(()));
        assert_eq!(poller.woken(), 2);
        assert_eq!(poller.poll(&buf, IN)?, IN);
        Ok(())
    }

    /// The buffer is there until the callbacks have run, and goes then.
    #[test]
    fn released_while_polled() -> Result {
        for usage in [WRITE, READ] {
            let buf = Buf::new(&FIXED)?;
            let fence = fence()?;
            let mut poller = Poller::new()?;

            buf.add(&fence, usage)?;
            poller.poll(&buf, IN | OUT)?;
            // Who polls has a reference to the file, and leaves the queue before it goes.
            drop(poller);
            let mock = buf.mock.clone();
            drop(buf);
            fence.signal(Ok(()));
            assert!(eventually(|| mock.ends_with(Op::Release)));
            assert!(mock.called(&[Op::Release]));
        }
        Ok(())
    }
}
