// SPDX-License-Identifier: GPL-2.0

//! The device that video devices belong to.

use crate::{
    bindings,
    container_of,
    device::{
        self,
        Bound,
        Core, //
    },
    devres,
    error::to_result,
    new_mutex,
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
        Mutex,
        Srcu, //
    },
    types::Opaque, //
};

use core::{
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    },
};

/// A V4L2 device: what the video devices of one device have in common.
///
/// It has a notifier of its bus, because what depends on the device being bound has to end before
/// the driver core releases the first of the device's resources; and those are released in the
/// order in which they were made, backwards.
///
/// # Invariants
///
/// `inner` is a registered `v4l2_device`. Unless `unbound` is set, `parent` is bound, and none of
/// its resources has been released. After it was set, and then all readers of `readers` were waited
/// for, that may happen.
#[pin_data(PinnedDrop)]
pub struct Device {
    #[pin]
    inner: Opaque<bindings::v4l2_device>,
    #[pin]
    notifier: Opaque<bindings::notifier_block>,
    #[pin]
    readers: Srcu,
    unbound: Atomic<bool>,
    parent: ARef<device::Device>,
    /// The video devices, or none when there cannot be any more.
    #[pin]
    nodes: Mutex<Option<KVec<RegisteredNode>>>,
    /// Those that are not registered any more. What drivers drop with them may remove other devices
    /// of the bus, so that is done outside of the notifier.
    #[pin]
    gone: Mutex<KVec<RegisteredNode>>,
}

/// A video device that is registered. Its kind is known to the function alone.
pub(super) struct RegisteredNode {
    pub(super) node: NonNull<c_void>,
    /// Unregisters the video device.
    pub(super) unregister: unsafe fn(NonNull<c_void>),
    /// Drops the reference that `node` is.
    pub(super) drop: unsafe fn(NonNull<c_void>),
}

// SAFETY: Video devices belong to no task.
unsafe impl Send for RegisteredNode {}

// SAFETY: A `v4l2_device` belongs to no task.
unsafe impl Send for Device {}

// SAFETY: The C side locks what it changes, and the other fields may be shared.
unsafe impl Sync for Device {}

impl Device {
    /// Makes a device for `parent`, which is being probed. May sleep.
    ///
    /// C source: `v4l2_device_register()`. The data of `parent` is left alone.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `name` is empty or longer than 35 bytes, [`EBUSY`] if the probe is over,
    /// [`ENOMEM`].
    pub fn new(parent: &device::Device<Core<'_>>, name: &CStr) -> Result<Arc<Self>> {
        // Later, the device might be about to be unbound, and the notifier come too late.
        //
        // SAFETY: The device is valid, and in a callback of its bus it is locked.
        if unsafe { bindings::device_is_bound(parent.as_raw()) } {
            return Err(EBUSY);
        }

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
                notifier: Opaque::new(bindings::notifier_block {
                    notifier_call: Some(Self::notify),
                    ..pin_init::zeroed()
                }),
                readers <- new_srcu!(),
                // INVARIANT: The parent is bound; `notify` and `Binding` tell when that ends.
                unbound: Atomic::new(false),
                parent: parent.into(),
                nodes <- new_mutex!(Some(KVec::new())),
                gone <- new_mutex!(KVec::new()),
            }),
            GFP_KERNEL,
        )?;

        // SAFETY: A device that is probed has a bus. The notifier is there until `Binding` is
        // dropped, which unregisters it.
        to_result(unsafe {
            bindings::bus_register_notifier((*parent.as_raw()).bus, this.notifier.get())
        })?;
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

    /// Has `register` make a video device, which is unregistered before the device is unbound.
    pub(super) fn add_node(&self, register: impl FnOnce() -> Result<RegisteredNode>) -> Result {
        let mut guard = self.nodes.lock();
        let nodes = Option::as_mut(&mut *guard).ok_or(ENODEV)?;

        nodes.reserve(1, GFP_KERNEL)?;
        nodes.push(register()?, GFP_KERNEL)?;
        Ok(())
    }

    pub(super) fn as_raw(&self) -> *mut bindings::v4l2_device {
        self.inner.get()
    }

    /// The device that may not be bound any more.
    pub(in crate::media) fn parent(&self) -> &device::Device {
        &self.parent
    }

    /// Called for all devices of the bus.
    ///
    /// # Safety
    ///
    /// `notifier` must be that of a `Device`, and `dev` a valid device.
    unsafe extern "C" fn notify(
        notifier: *mut bindings::notifier_block,
        event: c_ulong,
        dev: *mut c_void,
    ) -> c_int {
        // SAFETY: By the safety requirements.
        let this = unsafe { &*container_of!(Opaque::cast_from(notifier), Self, notifier) };

        let is_end = matches!(
            u32::try_from(event),
            Ok(bindings::bus_notifier_event_BUS_NOTIFY_UNBIND_DRIVER
                | bindings::bus_notifier_event_BUS_NOTIFY_DRIVER_NOT_BOUND)
        );

        if is_end && ptr::eq(dev, this.parent.as_raw().cast()) {
            // Here and below there are references in use: that of `Binding`.
            this.unbind();
        }
        // There is nothing to say to the others.
        0
    }

    /// Ends all that needs the device to be bound.
    fn unbind(&self) {
        if let Some(nodes) = self.nodes.lock().take() {
            for node in nodes.iter() {
                // SAFETY: The function is for the node, which was taken off the list.
                unsafe { (node.unregister)(node.node) };
            }
            *self.gone.lock() = nodes;
        }
        self.unbound.store(true, Release);
        self.readers.synchronize();
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

/// Dropped by the driver core when the parent is not bound any more.
struct Binding(Arc<Device>);

impl Drop for Binding {
    fn drop(&mut self) {
        // The notifier has done it, unless there was none. Where the core unbinds without telling,
        // for `CONFIG_DEBUG_TEST_DRIVER_REMOVE`, there is none of this.
        self.0.unbind();
        // SAFETY: It was registered in `Device::new`.
        unsafe {
            bindings::bus_unregister_notifier((*self.0.parent.as_raw()).bus, self.0.notifier.get())
        };

        let gone = core::mem::take(&mut *self.0.gone.lock());

        for node in gone {
            // SAFETY: The function is for the node, which was taken off the list.
            unsafe { (node.drop)(node.node) };
        }
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
