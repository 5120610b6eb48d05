// SPDX-License-Identifier: GPL-2.0

//! The trace events of `include/trace/events/dma_buf.h`.
//!
//! The events read the exporter's name, the size and the inode number, none of which changes while
//! a buffer is referenced, so no lock is taken around them. The C core takes the lock of the name
//! that user space gave, which no event prints.

use crate::{
    attachment::Attachment,
    buffer::Buffer, //
};

use kernel::{
    bindings,
    ffi::c_int,
    tracepoint::declare_trace, //
};

declare_trace! {
    unsafe fn dma_buf_export(dmabuf: *mut bindings::dma_buf);
    unsafe fn dma_buf_mmap_internal(dmabuf: *mut bindings::dma_buf);
    unsafe fn dma_buf_mmap(dmabuf: *mut bindings::dma_buf);
    unsafe fn dma_buf_put(dmabuf: *mut bindings::dma_buf);
    unsafe fn dma_buf_dynamic_attach(
        dmabuf: *mut bindings::dma_buf,
        attach: *mut bindings::dma_buf_attachment,
        is_dynamic: bool,
        dev: *mut bindings::device,
    );
    unsafe fn dma_buf_detach(
        dmabuf: *mut bindings::dma_buf,
        attach: *mut bindings::dma_buf_attachment,
        is_dynamic: bool,
        dev: *mut bindings::device,
    );
    unsafe fn dma_buf_fd(dmabuf: *mut bindings::dma_buf, fd: c_int);
    unsafe fn dma_buf_get(dmabuf: *mut bindings::dma_buf, fd: c_int);
}

#[inline]
pub(crate) fn export(buf: &Buffer) {
    // SAFETY: The event reads fields of a live buffer only.
    unsafe { dma_buf_export(buf.as_raw()) };
}

#[inline]
pub(crate) fn mmap_internal(buf: &Buffer) {
    // SAFETY: The event reads fields of a live buffer only.
    unsafe { dma_buf_mmap_internal(buf.as_raw()) };
}

#[inline]
pub(crate) fn mmap(buf: &Buffer) {
    // SAFETY: The event reads fields of a live buffer only.
    unsafe { dma_buf_mmap(buf.as_raw()) };
}

#[inline]
pub(crate) fn put(buf: &Buffer) {
    // SAFETY: The event reads fields of a live buffer only.
    unsafe { dma_buf_put(buf.as_raw()) };
}

#[inline]
pub(crate) fn attach(attach: &Attachment) {
    // SAFETY: The event reads fields of a live buffer and the name of a device, which the importer
    // keeps for as long as the attachment exists.
    unsafe {
        dma_buf_dynamic_attach(
            attach.buffer().as_raw(),
            attach.as_raw(),
            attach.is_dynamic(),
            attach.device(),
        )
    };
}

#[inline]
pub(crate) fn detach(attach: &Attachment) {
    // SAFETY: As for `attach()`.
    unsafe {
        dma_buf_detach(
            attach.buffer().as_raw(),
            attach.as_raw(),
            attach.is_dynamic(),
            attach.device(),
        )
    };
}

#[inline]
pub(crate) fn fd(buf: &Buffer, fd: c_int) {
    // SAFETY: The event reads fields of a live buffer only.
    unsafe { dma_buf_fd(buf.as_raw(), fd) };
}

#[inline]
pub(crate) fn get(buf: &Buffer, fd: c_int) {
    // SAFETY: The event reads fields of a live buffer only.
    unsafe { dma_buf_get(buf.as_raw(), fd) };
}
