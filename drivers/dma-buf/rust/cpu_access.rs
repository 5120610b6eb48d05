// SPDX-License-Identifier: GPL-2.0

//! CPU access: begin and end, and mappings into the kernel's address space.

use crate::{
    buffer::{
        Buffer,
        Locked, //
    },
    mapping::Direction,
    resv, //
};

use kernel::{
    bindings,
    dma_buf::Usage,
    error::to_result,
    prelude::*,
    warn_on, //
};

/// Prepares a buffer for access by the CPU, and waits for the fences that are in its way.
pub(crate) fn begin(buf: &Buffer, direction: Direction) -> Result {
    resv::might_lock(buf.resv());

    if let Some(op) = buf.ops().begin_cpu_access {
        // SAFETY: The buffer is valid, and no lock is held.
        to_result(unsafe { op(buf.as_raw(), direction) })?;
    }

    let write = direction == Direction::DMA_BIDIRECTIONAL || direction == Direction::DMA_TO_DEVICE;
    buf.resv().wait(Usage::rw(write))
}

/// Ends access by the CPU.
pub(crate) fn end(buf: &Buffer, direction: Direction) -> Result {
    resv::might_lock(buf.resv());

    if let Some(op) = buf.ops().end_cpu_access {
        // SAFETY: The buffer is valid, and no lock is held.
        to_result(unsafe { op(buf.as_raw(), direction) })?;
    }
    Ok(())
}

/// Where a buffer is in the kernel's address space; corresponds to `struct iosys_map`.
#[derive(Copy, Clone)]
#[repr(transparent)]
pub(crate) struct Map(pub(crate) bindings::iosys_map);

impl Map {
    pub(crate) fn none() -> Self {
        Self(pin_init::zeroed())
    }

    /// The address, and whether it is one of I/O memory. Both kinds of pointer share their place.
    fn key(&self) -> (bool, *mut core::ffi::c_void) {
        // SAFETY: Both fields of the union are pointers.
        (self.0.is_iomem, unsafe { self.0.__bindgen_anon_1.vaddr })
    }
}

impl PartialEq for Map {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Locked<'_> {
    /// Maps the buffer into the kernel's address space, or counts one more user of the mapping.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an exporter that cannot, otherwise what the exporter returns.
    pub(crate) fn vmap(self) -> Result<Map> {
        let buf = self.buffer().as_raw();
        let op = self.buffer().ops().vmap.ok_or(EINVAL)?;

        // SAFETY: The number of users changes only under the reservation lock, which is held.
        let users = unsafe { (*buf).vmapping_counter };
        if users == 0 {
            let mut map = Map::none();

            // SAFETY: The buffer is valid, its reservation lock is held, and `map` is valid for a
            // write.
            to_result(unsafe { op(buf, &mut map.0) })?;
            // SAFETY: The mapping changes only under the reservation lock, which is held.
            unsafe { (*buf).vmap_ptr = map.0 };
        }
        let users = users.checked_add(1).ok_or(EOVERFLOW)?;
        // SAFETY: As above.
        unsafe {
            (*buf).vmapping_counter = users;
            Ok(Map((*buf).vmap_ptr))
        }
    }

    /// Undoes one [`Self::vmap`].
    ///
    /// Some exporters clear `map` when the last user is gone.
    ///
    /// Warns, and does nothing, if there is none or it is not `map`.
    pub(crate) fn vunmap(self, map: &mut Map) {
        let buf = self.buffer().as_raw();
        // SAFETY: Both change only under the reservation lock, which is held.
        let (users, current) = unsafe { ((*buf).vmapping_counter, Map((*buf).vmap_ptr)) };

        if warn_on!(current != *map) {
            return;
        }
        let Some(left) = users.checked_sub(1) else {
            warn_on!(true);
            return;
        };
        if left == 0 {
            if let Some(op) = self.buffer().ops().vunmap {
                // SAFETY: The buffer is valid, its reservation lock is held, and `map` is the
                // result of its `vmap`.
                unsafe { op(buf, &mut map.0) };
            }
            // SAFETY: The mapping changes only under the reservation lock, which is held.
            unsafe { (*buf).vmap_ptr = Map::none().0 };
        }
        // SAFETY: As above.
        unsafe { (*buf).vmapping_counter = left };
    }
}
