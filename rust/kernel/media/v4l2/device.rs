// SPDX-License-Identifier: GPL-2.0

//! The device that video devices belong to.

use crate::{
    bindings,
    device::{
        self,
        Bound, //
    },
    devres,
    error::to_result,
    new_srcu,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        srcu,
        Arc,
        Srcu, //
    },
    types::Opaque, //
};

use core::{
    ops::Deref,
    ptr, //
};

/// A V4L2 device: what the video devices of one device have in common.
///
/// # Invariants
///
/// `inner` is a registered `v4l2_device`. Unless `unbound` is set, `parent` is bound. After it was
/// set, and then all readers of `readers` were waited for, `parent` may be unbound.
#[pin_data(PinnedDrop)]
pub struct Device {
    #[pin]
    inner: Opaque<bindings::v4l2_device>,
    #[pin]
    readers: Srcu,
    unbound: Atomic<bool>,
    parent: ARef<device::Device>,
}

// SAFETY: A `v4l2_device` belongs to no task.
unsafe impl Send for Device {}

// SAFETY: The C side locks what it changes, and the other fields may be shared.
unsafe impl Sync for Device {}

impl Device {
    /// Makes a device for the bound device `parent`. May sleep.
    ///
    /// C source: `v4l2_device_register()`. The data of `parent` is left alone.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `name` is empty or longer than 35 bytes, [`ENOMEM`].
    pub fn new(parent: &device::Device<Bound>, name: &CStr) -> Result<Arc<Self>> {
        let this = Arc::pin_init(
            try_pin_init!(Self {
                inner <- Opaque::try_ffi_init(|inner: *mut bindings::v4l2_device| {
                    // SAFETY: All of it may be zero. There is nothing else that points to it yet.
                    let to = unsafe {
                        inner.write_bytes(0, 1);
                        &mut (*inner).name
                    };

                    copy_name(name, to)?;
                    // Without the device, whose driver data it would set.
                    //
                    // SAFETY: It is zeroed but for a name.
                    to_result(unsafe { bindings::v4l2_device_register(ptr::null_mut(), inner) })
                }),
                readers <- new_srcu!(),
                // INVARIANT: The parent is bound, and `Binding` tells when that ends.
                unbound: Atomic::new(false),
                parent: parent.into(),
            }),
            GFP_KERNEL,
        )?;

        devres::register(parent, Binding(this.clone()), GFP_KERNEL)?;
        Ok(this)
    }

    /// The device, if it is bound, and for as long as the guard lives. May sleep while it does.
    ///
    /// Unbinding waits for it; so it must not be kept.
    #[inline]
    pub fn enter(&self) -> Option<BoundGuard<'_>> {
        let reader = self.readers.read_lock();

        if self.unbound.load(Acquire) {
            return None;
        }
        // INVARIANT: This is a reader since before the test.
        Some(BoundGuard {
            device: self,
            _reader: reader,
        })
    }

    pub(super) fn as_raw(&self) -> *mut bindings::v4l2_device {
        self.inner.get()
    }

    /// The device that may not be bound any more.
    pub(in crate::media) fn parent(&self) -> &device::Device {
        &self.parent
    }
}

#[pinned_drop]
impl PinnedDrop for Device {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: It is registered by the type invariants, and there are no video devices, which
        // have a reference.
        unsafe { bindings::v4l2_device_unregister(self.inner.get()) };
    }
}

/// Dropped by the driver core when the parent is unbound.
struct Binding(Arc<Device>);

impl Drop for Binding {
    fn drop(&mut self) {
        self.0.unbound.store(true, Release);
        self.0.readers.synchronize();
    }
}

/// Keeps a device bound.
///
/// # Invariants
///
/// `device` was not unbound when `_reader` was there already.
pub struct BoundGuard<'a> {
    device: &'a Device,
    _reader: srcu::Guard<'a>,
}

impl Deref for BoundGuard<'_> {
    type Target = device::Device<Bound>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        // SAFETY: By the type invariants of this and of the device, it is bound until the reader
        // is gone.
        unsafe { self.device.parent.as_bound() }
    }
}

/// Copies a name with its terminating zero; the rest of `to` is left as it is.
pub(in crate::media) fn copy_name(name: &CStr, to: &mut [c_char]) -> Result {
    let name = name.to_bytes_with_nul();

    if name.len() == 1 {
        return Err(EINVAL);
    }
    for (to, from) in to.get_mut(..name.len()).ok_or(EINVAL)?.iter_mut().zip(name) {
        *to = *from;
    }
    Ok(())
}
