// SPDX-License-Identifier: GPL-2.0

// What is in every module, for programs that implement a trait of the kernel: a callback keeps the
// module that it is in. The programs include this file.

/// The driver.
pub struct Driver;

impl kernel::Module for Driver {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}

module! {
    type: Driver,
    name: "gallery",
    authors: ["Rust for Linux Contributors"],
    description: "A driver of the gallery",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
}
