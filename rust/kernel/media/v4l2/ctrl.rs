// SPDX-License-Identifier: GPL-2.0

//! Controls.

use super::IoctlOps;

use crate::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    media::lock_name,
    prelude::*,
    static_lock_class,
    types::Opaque, //
};

use core::{
    pin::Pin,
    ptr, //
};

/// Numbers of controls. C source: `V4L2_CID_*`.
pub mod id {
    use crate::bindings;

    /// Brightness.
    pub const BRIGHTNESS: u32 = bindings::V4L2_CID_BRIGHTNESS;
    /// Left and right change places.
    pub const HFLIP: u32 = bindings::V4L2_CID_HFLIP;
    /// Top and bottom change places.
    pub const VFLIP: u32 = bindings::V4L2_CID_VFLIP;
    /// The pattern of a device that can make one.
    pub const TEST_PATTERN: u32 = bindings::V4L2_CID_TEST_PATTERN;
}

/// A standard control, which has its name and its type by its number.
#[derive(Clone, Copy)]
pub enum Control {
    /// Off or on, 0 or 1.
    Boolean {
        /// The number.
        id: u32,
        /// The value at first.
        default: bool,
    },
    /// A number.
    Integer {
        /// The number of the control.
        id: u32,
        /// The least value.
        min: i32,
        /// The largest value.
        max: i32,
        /// The distance from one value to the next.
        step: u32,
        /// The value at first.
        default: i32,
    },
    /// One of several choices.
    Menu {
        /// The number.
        id: u32,
        /// The names of the choices.
        items: &'static [&'static CStr],
        /// The choice at first.
        default: u8,
    },
}

impl Control {
    /// Whether it is of the type that its number has. The C side takes that on trust.
    fn check(&self) -> Result {
        let (id, wanted) = match *self {
            Self::Boolean { id, .. } => (id, bindings::v4l2_ctrl_type_V4L2_CTRL_TYPE_BOOLEAN),
            Self::Integer { id, .. } => (id, bindings::v4l2_ctrl_type_V4L2_CTRL_TYPE_INTEGER),
            Self::Menu { id, items, .. } => {
                if !(1..=256).contains(&items.len()) {
                    return Err(EINVAL);
                }
                (id, bindings::v4l2_ctrl_type_V4L2_CTRL_TYPE_MENU)
            }
        };
        let mut name = ptr::null();
        let mut found = 0;
        let (mut min, mut max, mut step, mut default, mut flags) = (0, 0, 0, 0, 0);

        // SAFETY: All pointers are valid for the call.
        unsafe {
            bindings::v4l2_ctrl_fill(
                id,
                &mut name,
                &mut found,
                &mut min,
                &mut max,
                &mut step,
                &mut default,
                &mut flags,
            )
        };
        if name.is_null() || found != wanted {
            return Err(EINVAL);
        }
        Ok(())
    }
}

/// The controls of a device or a file.
///
/// # Invariants
///
/// `handler` is initialised. `data` is valid while it is. `menus` has the menus of its controls.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub(in crate::media) struct Controls<T: IoctlOps> {
    // First, so that a pointer to it is one to all.
    #[pin]
    handler: Opaque<bindings::v4l2_ctrl_handler>,
    data: *const T,
    menus: KVec<KVec<*const c_char>>,
}

// SAFETY: The handler has its own lock, and the menus are only read. What the pointer is to can be
// shared by the bound of the trait.
unsafe impl<T: IoctlOps> Send for Controls<T> {}

// SAFETY: As above.
unsafe impl<T: IoctlOps> Sync for Controls<T> {}

impl<T: IoctlOps> Controls<T> {
    const OPS: bindings::v4l2_ctrl_ops = bindings::v4l2_ctrl_ops {
        s_ctrl: if T::HAS_S_CTRL {
            Some(Self::s_ctrl)
        } else {
            None
        },
        ..pin_init::zeroed()
    };

    /// The controls that `data` has.
    ///
    /// # Safety
    ///
    /// `data` must be valid, or be so before [`Self::setup`] is called or the handler is given to
    /// a device, and until this is dropped.
    pub(in crate::media) unsafe fn new(data: *const T) -> impl PinInit<Self, Error> {
        try_pin_init!(&this in Self {
            menus: Self::menus()?,
            data,
            handler <- Opaque::try_ffi_init(
                move |handler: *mut bindings::v4l2_ctrl_handler| {
                    // SAFETY: The field is initialised already; nobody else has a reference.
                    let menus = unsafe { &(*this.as_ptr()).menus };

                    // SAFETY: The handler is valid, and so are the menus.
                    unsafe { Self::fill(handler, menus) }
                }
            ),
        })
    }

    fn menus() -> Result<KVec<KVec<*const c_char>>> {
        let mut menus = KVec::new();

        for control in T::CONTROLS {
            if let Control::Menu { items, .. } = control {
                let mut menu = KVec::with_capacity(items.len(), GFP_KERNEL)?;

                for item in items.iter() {
                    menu.push(item.as_char_ptr(), GFP_KERNEL)?;
                }
                menus.push(menu, GFP_KERNEL)?;
            }
        }
        Ok(menus)
    }

    /// # Safety
    ///
    /// `handler` must be valid for writes. `menus` must be from [`Self::menus`], and outlive it.
    unsafe fn fill(
        handler: *mut bindings::v4l2_ctrl_handler,
        menus: &KVec<KVec<*const c_char>>,
    ) -> Result {
        let ops = const { &Self::OPS };
        let mut menus = menus.iter();

        // SAFETY: All of it may be zero; then it is initialised, without a lock class of its own.
        unsafe {
            handler.write_bytes(0, 1);
            bindings::v4l2_ctrl_handler_init_class(
                handler,
                T::CONTROLS.len().try_into()?,
                static_lock_class!().as_ptr(),
                lock_name::CONTROLS.as_char_ptr(),
            );
        }
        for control in T::CONTROLS {
            if let Err(e) = control.check() {
                // SAFETY: The handler is initialised.
                unsafe { (*handler).error = e.to_errno() };
                break;
            }
            // SAFETY: The handler is initialised, and what the pointers are to outlives it. An
            // error is noted in the handler.
            unsafe {
                match *control {
                    Control::Boolean { id, default } => {
                        bindings::v4l2_ctrl_new_std(handler, ops, id, 0, 1, 1, default.into())
                    }
                    Control::Integer {
                        id,
                        min,
                        max,
                        step,
                        default,
                    } => bindings::v4l2_ctrl_new_std(
                        handler,
                        ops,
                        id,
                        min.into(),
                        max.into(),
                        step.into(),
                        default.into(),
                    ),
                    Control::Menu { id, default, .. } => {
                        let menu = menus.next().map_or(&[][..], |menu| menu);
                        // As was checked.
                        let last = u8::try_from(menu.len().saturating_sub(1)).unwrap_or(0);

                        bindings::v4l2_ctrl_new_std_menu_items(
                            handler,
                            ops,
                            id,
                            last,
                            0,
                            default,
                            menu.as_ptr(),
                        )
                    }
                }
            };
        }

        // SAFETY: The handler is initialised.
        to_result(unsafe { (*handler).error }).inspect_err(|_| {
            // SAFETY: The handler is initialised, and not used any more.
            unsafe { bindings::v4l2_ctrl_handler_free(handler) };
        })
    }

    /// Tells the driver the values of all controls.
    ///
    /// # Safety
    ///
    /// The data must be valid by now.
    pub(in crate::media) unsafe fn setup(&self) -> Result {
        // SAFETY: The handler is initialised by the type invariants.
        to_result(unsafe { bindings::v4l2_ctrl_handler_setup(self.as_raw()) })
    }

    pub(in crate::media) fn as_raw(&self) -> *mut bindings::v4l2_ctrl_handler {
        self.handler.get()
    }

    /// # Safety
    ///
    /// `ctrl` must be a control of a handler of this type.
    unsafe extern "C" fn s_ctrl(ctrl: *mut bindings::v4l2_ctrl) -> c_int {
        // SAFETY: By the safety requirements. The handler is the first field of a `Controls`.
        let this = unsafe { &*(*ctrl).handler.cast::<Self>() };
        // SAFETY: By the type invariants the data is valid.
        let data = unsafe { &*this.data };

        // SAFETY: The C side holds the lock of the handler, and these do not change until it is
        // released. All controls that can be made here have a value of 32 bits.
        let (id, value) = unsafe { ((*ctrl).id, (*ctrl).val) };

        from_result(|| data.s_ctrl(id, value).map(|()| 0))
    }
}

#[pinned_drop]
impl<T: IoctlOps> PinnedDrop for Controls<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The handler is initialised by the type invariants.
        unsafe { bindings::v4l2_ctrl_handler_free(self.handler.get()) };
    }
}
