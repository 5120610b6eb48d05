// SPDX-License-Identifier: GPL-2.0

//! Video devices.

use super::{
    device::{
        copy_name,
        Device,
        RegisteredNode, //
    },
    ioctl::{
        ioctl_ops,
        Host, //
    },
    Controls,
    IoctlOps, //
};

use crate::{
    bindings,
    error::to_result,
    media::lock_name,
    module::module_of,
    prelude::*,
    static_lock_class,
    sync::Arc,
    types::Opaque, //
};

use core::{
    ops::Deref,
    ptr::NonNull, //
};

/// What all kinds of video devices begin with.
///
/// # Invariants
///
/// `vdev` is initialised as far as `video_register_device()` wants it, but for `release`, and
/// `lock` is an initialised mutex.
#[pin_data(PinnedDrop)]
#[repr(C)]
#[doc(hidden)]
pub struct Node {
    // First, so that a pointer to it is one to the video device of which this is the first field.
    #[pin]
    vdev: Opaque<bindings::video_device>,
    #[pin]
    lock: Opaque<bindings::mutex>,
    // As the owner depends on where the operations are.
    fops: bindings::v4l2_file_operations,
    device: Arc<Device>,
}

// SAFETY: A `video_device` belongs to no task.
unsafe impl Send for Node {}

// SAFETY: The C side locks what it changes.
unsafe impl Sync for Node {}

impl Node {
    /// A video device with the ioctls of `H`.
    ///
    /// # Safety
    ///
    /// The open files of `fops` must be what `H` takes them for. The result must be the first field
    /// of an `H`.
    pub(in crate::media) unsafe fn new<'a, H: Host>(
        device: Arc<Device>,
        name: &'a CStr,
        fops: &'static bindings::v4l2_file_operations,
        caps: u32,
    ) -> impl PinInit<Self, Error> + use<'a, H> {
        try_pin_init!(&this in Self {
            lock <- Opaque::ffi_init(|lock: *mut bindings::mutex| {
                // SAFETY: The mutex is valid for writes, the name and the class are static.
                unsafe {
                    bindings::__mutex_init(
                        lock,
                        lock_name::NODE.as_char_ptr(),
                        static_lock_class!().as_ptr(),
                    )
                }
            }),
            vdev <- Opaque::try_ffi_init(|vdev: *mut bindings::video_device| {
                // SAFETY: All of it may be zero. There is nothing else that points to it yet.
                let vdev = unsafe {
                    vdev.write_bytes(0, 1);
                    &mut *vdev
                };

                copy_name(name, &mut vdev.name)?;
                // SAFETY: This only makes a pointer to a field.
                vdev.fops = unsafe { &raw const (*this.as_ptr()).fops };
                vdev.ioctl_ops = ioctl_ops::<H>();
                vdev.device_caps = caps;
                vdev.vfl_dir = if H::M2M {
                    bindings::vfl_devnode_direction_VFL_DIR_M2M
                } else {
                    bindings::vfl_devnode_direction_VFL_DIR_RX
                };
                vdev.v4l2_dev = device.as_raw();
                vdev.dev_parent = device.parent().as_raw();
                // SAFETY: This only makes a pointer to a field.
                vdev.lock = unsafe { Opaque::cast_into(&raw const (*this.as_ptr()).lock) };
                Ok::<(), Error>(())
            }),
            fops: bindings::v4l2_file_operations {
                owner: module_of(fops),
                ..*fops
            },
            device,
        })
    }

    pub(in crate::media) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(in crate::media) fn as_raw(&self) -> *mut bindings::video_device {
        self.vdev.get()
    }

    pub(in crate::media) fn lock(&self) -> *mut bindings::mutex {
        self.lock.get()
    }

    /// # Safety
    ///
    /// The video device must not be registered yet. `controls` must live as long as this.
    pub(in crate::media) unsafe fn set_controls<T: IoctlOps>(&self, controls: &Controls<T>) {
        // SAFETY: Nobody else uses the video device yet.
        unsafe { (*self.vdev.get()).ctrl_handler = controls.as_raw() };
    }

    /// # Safety
    ///
    /// The video device must not be registered yet. `queue` must live as long as this.
    pub(in crate::media) unsafe fn set_queue(&self, queue: *mut bindings::vb2_queue) {
        // SAFETY: Nobody else uses the video device yet.
        unsafe { (*self.vdev.get()).queue = queue };
    }
}

#[pinned_drop]
impl PinnedDrop for Node {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The mutex is initialised by the type invariants, and nobody uses it any more.
        unsafe { bindings::mutex_destroy(self.lock.get()) };
    }
}

mod private {
    use super::Node;

    /// # Safety
    ///
    /// The implementing type must be `repr(C)`, and [`Node`] its first field.
    pub unsafe trait Sealed: Send + Sync + Sized + 'static {
        #[doc(hidden)]
        fn node(&self) -> &Node;

        /// Unregisters the video device, ends streaming, and has all wake up that wait for buffers.
        ///
        /// # Safety
        ///
        /// The video device must be registered, and this be called once.
        #[doc(hidden)]
        unsafe fn unregister(&self);
    }
}
pub(in crate::media) use private::Sealed;

/// A kind of video device: [`Capture`](crate::media::capture::Capture) or
/// [`m2m::Device`](crate::media::m2m::Device).
pub trait VideoNode: private::Sealed {
    /// The V4L2 device that this belongs to.
    #[inline]
    fn device(&self) -> &Device {
        &self.node().device
    }
}

/// A video device that nobody can open yet.
pub struct Unregistered<N: VideoNode>(Arc<N>);

impl<N: VideoNode> Deref for Unregistered<N> {
    type Target = N;

    #[inline]
    fn deref(&self) -> &N {
        &self.0
    }
}

impl<N: VideoNode> Unregistered<N> {
    pub(in crate::media) fn new(node: Arc<N>) -> Self {
        Self(node)
    }

    /// Makes the video device known to user space, until the device is unbound. May sleep.
    ///
    /// C source: `video_register_device()`.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is not bound any more; [`ENFILE`] if there are as many video
    /// devices as there can be; [`ENOMEM`].
    pub fn register(self) -> Result<Arc<N>> {
        let node = self.0;
        let vdev = node.node().as_raw();

        // SAFETY: It is not registered yet, as this is the only value of its kind for it.
        unsafe { (*vdev).release = Some(release::<N>) };

        node.node().device.add_node(|| {
            let owned = Arc::into_raw(node.clone());

            // SAFETY: The video device is set up, and a reference is there for `release`.
            to_result(unsafe {
                bindings::__video_register_device(
                    vdev,
                    bindings::vfl_devnode_type_VFL_TYPE_VIDEO,
                    -1,
                    1,
                    (*(*vdev).fops).owner,
                )
            })
            .inspect_err(|_| {
                // SAFETY: The reference of above; `release` is not called for what is not
                // registered.
                drop(unsafe { Arc::from_raw(owned) })
            })?;

            Ok(RegisteredNode {
                node: NonNull::new(Arc::into_raw(node.clone()).cast_mut().cast()).ok_or(EINVAL)?,
                unregister: unregister::<N>,
                drop: drop_node::<N>,
            })
        })?;
        Ok(node)
    }
}

/// # Safety
///
/// `node` must be an `N` that is registered, and this be called once.
unsafe fn unregister<N: VideoNode>(node: NonNull<c_void>) {
    // SAFETY: By the safety requirements.
    unsafe { node.cast::<N>().as_ref().unregister() };
}

/// # Safety
///
/// `node` must be from [`Arc::into_raw`] of an `Arc<N>`, which is consumed.
unsafe fn drop_node<N: VideoNode>(node: NonNull<c_void>) {
    // SAFETY: By the safety requirements.
    drop(unsafe { Arc::<N>::from_raw(node.as_ptr().cast()) });
}

/// # Safety
///
/// `vdev` must be the first field of an `N`, of which it has a reference, which is consumed.
unsafe extern "C" fn release<N: VideoNode>(vdev: *mut bindings::video_device) {
    // SAFETY: By the safety requirements and those of `Sealed`.
    drop(unsafe { Arc::from_raw(vdev.cast::<N>()) });
}
