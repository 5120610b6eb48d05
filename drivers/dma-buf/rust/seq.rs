// SPDX-License-Identifier: GPL-2.0

//! Text for user space: what fdinfo and bufinfo print beyond plain numbers.

use kernel::{
    bindings,
    prelude::*,
    seq_file::SeqFile, //
};

use core::marker::PhantomData;

/// A seq file that is being shown.
///
/// # Invariants
///
/// The file is valid for `'a`, and no other thread uses it meanwhile.
pub(crate) struct Seq<'a>(*mut bindings::seq_file, PhantomData<&'a SeqFile>);

impl<'a> Seq<'a> {
    /// # Safety
    ///
    /// `m` must be valid for `'a`, and no other thread may use it meanwhile.
    pub(crate) unsafe fn from_raw(m: *mut bindings::seq_file) -> Self {
        // INVARIANT: By the safety requirements.
        Self(m, PhantomData)
    }

    #[cfg(CONFIG_DEBUG_FS)]
    pub(crate) fn as_raw(&self) -> *mut bindings::seq_file {
        self.0
    }

    /// For `seq_print!`.
    pub(crate) fn call_printf(&self, args: core::fmt::Arguments<'_>) {
        // SAFETY: By the type invariant.
        unsafe { SeqFile::from_raw(self.0) }.call_printf(args);
    }

    /// Prints a string of the kernel's as it is, like `%s`.
    pub(crate) fn text(&self, text: &CStr) {
        // SAFETY: The file is valid by the type invariant, the bytes are those of a string.
        unsafe { bindings::seq_write(self.0, text.as_char_ptr().cast(), text.count_bytes()) };
    }

    /// Prints a string of user space's: like `%s`, but a newline in it comes out as `\012`, so that
    /// a name cannot pass for a line of the kernel's.
    pub(crate) fn user_text(&self, text: &CStr) {
        // SAFETY: The file is valid by the type invariant, the bytes are those of a string.
        unsafe {
            bindings::seq_escape_mem(
                self.0,
                text.as_char_ptr(),
                text.count_bytes(),
                bindings::ESCAPE_OCTAL,
                c"\n".as_char_ptr(),
            )
        };
    }
}
