// SPDX-License-Identifier: GPL-2.0

//! `/sys/kernel/debug/dma_buf/bufinfo`.
//!
//! Nothing but a reference to one buffer at a time, and its reservation lock, is held while the
//! text is made. So a reader that waits for a reservation holds up no export, and no release but
//! that of the buffer it waits for, whose `count` in fdinfo is one higher meanwhile.

use crate::{
    buffer::Buffer,
    pseudo_fs::Table,
    registry,
    seq::Seq, //
};

use kernel::{
    bindings,
    error::from_err_ptr,
    ffi::{
        c_int,
        c_void, //
    },
    prelude::*,
    seq_file::seq_print,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

use core::ptr::null_mut;

static FOPS: Table<bindings::file_operations> =
    // SAFETY: Function pointers, which nobody writes.
    unsafe {
        Table::new(bindings::file_operations {
            open: Some(open),
            read: Some(bindings::seq_read),
            llseek: Some(bindings::seq_lseek),
            release: Some(bindings::single_release),
            ..pin_init::zeroed()
        })
    };

/// The directory, or NULL.
static DIR: Atomic<*mut bindings::dentry> = Atomic::new(null_mut());

/// Makes the file. Without it the core works just as well.
pub(crate) fn init() {
    // SAFETY: The name is a string; no parent is the root of debugfs.
    let dir = unsafe { bindings::debugfs_create_dir(c"dma_buf".as_char_ptr(), null_mut()) };
    let Ok(dir) = from_err_ptr(dir) else {
        return;
    };
    DIR.store(dir, Relaxed);

    // SAFETY: The name is a string, the parent a directory of debugfs, the operations are static.
    let file = from_err_ptr(unsafe {
        bindings::debugfs_create_file_full(
            c"bufinfo".as_char_ptr(),
            0o444,
            dir,
            null_mut(),
            core::ptr::null(),
            FOPS.as_ptr(),
        )
    });
    if file.is_err() {
        pr_debug!("debugfs: failed to create node bufinfo\n");
        exit();
    }
}

/// Removes the file and its directory.
pub(crate) fn exit() {
    // SAFETY: The directory is ours, or NULL.
    unsafe { bindings::debugfs_remove(DIR.xchg(null_mut(), Relaxed)) };
}

/// # Safety
///
/// Called by debugfs, with a file that is being opened.
unsafe extern "C" fn open(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: The file is being opened.
    unsafe { bindings::single_open(file, Some(show), null_mut()) }
}

/// # Safety
///
/// Called by the seq file that [`open`] made.
unsafe extern "C" fn show(m: *mut bindings::seq_file, _unused: *mut c_void) -> c_int {
    // SAFETY: The caller has the file to itself while it is shown.
    match show_all(&unsafe { Seq::from_raw(m) }) {
        Ok(()) => 0,
        Err(e) => e.to_errno(),
    }
}

fn show_all(m: &Seq<'_>) -> Result {
    let mut count = 0u32;
    let mut size = 0usize;

    seq_print!(m, "\nDma-buf Objects:\n");
    seq_print!(
        m,
        "{:<8}\t{:<8}\t{:<8}\t{:<8}\texp_name\t{:<8}\tname\n",
        "size",
        "flags",
        "mode",
        "count",
        "ino"
    );

    let mut next = registry::first();
    while let Some(buf) = next {
        show_one(m, &buf)?;
        count = count.wrapping_add(1);
        size = size.wrapping_add(buf.size());
        next = registry::after(buf);
    }

    seq_print!(m, "\nTotal {} objects, {} bytes\n", count, size);
    Ok(())
}

fn show_one(m: &Seq<'_>, buf: &Buffer) -> Result {
    let guard = buf.lock_interruptible()?;
    let file = buf.file();

    // SAFETY: The file lives as long as the buffer, and its inode as long as the file. One
    // reference is that of this function's caller.
    let (flags, mode, refs, ino) = unsafe {
        (
            (*file).f_flags,
            (*file).f_mode,
            bindings::file_count(file).wrapping_sub(1),
            (*(*file).f_inode).i_ino,
        )
    };

    seq_print!(
        m,
        "{:08}\t{:08x}\t{:08x}\t{:08}\t",
        buf.size(),
        flags,
        mode,
        refs
    );
    m.text(buf.exp_name());
    seq_print!(m, "\t{:08}\t", ino);
    buf.with_name(|name| match name {
        Some(name) => m.user_text(name),
        None => m.text(c"<none>"),
    });
    seq_print!(m, "\n");

    guard.held().describe(m);

    let mut attached = 0u32;
    seq_print!(m, "\tAttached Devices:\n");
    for attach in guard.held().attachments() {
        seq_print!(m, "\t");
        m.text(attach.device_name());
        seq_print!(m, "\n");
        attached = attached.wrapping_add(1);
    }
    drop(guard);

    seq_print!(m, "Total {} devices attached\n\n", attached);
    Ok(())
}
