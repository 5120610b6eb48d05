# SPDX-License-Identifier: GPL-2.0
# The fuzzer of fuzz/: a static arm64 program in Rust.

FUZZ_TARGET=aarch64-unknown-linux-gnu

# get_std: Rust's standard library for the guest at $CACHE/std-arm64, a sysroot of its own, of the
# same version as the toolchain's rustc.
get_std() {
	local version want tmp dir=$CACHE/apt-arm64 out=$CACHE/download
	local arm64=(-o APT::Architecture=arm64 -o APT::Architectures=arm64)
	# shellcheck disable=SC2016
	version=$(in_tools dpkg-query -W -f '${Version}' rustc) ||
		die "rustc is not Debian's, so there is no standard library for arm64 that fits it" \
			"leave --host-toolchain out"
	want=$(key "$version")
	made std-arm64 "$want" && return
	say "fuzzer: fetching Rust's standard library for arm64, $version"
	mkdir -p "$out"
	rm -f "$out"/libstd-rust-dev_*_arm64.deb
	logged "$CACHE/log/std.log" apt_get_from "$SUITE" "$dir" "${arm64[@]}" update ||
		die "cannot read the package lists of $SUITE for arm64" \
			"check the network and the mirror; the log is $CACHE/log/std.log"
	(cd "$out" && logged "$CACHE/log/std.log" apt_get_from "$SUITE" "$dir" "${arm64[@]}" -qq \
		download "libstd-rust-dev=$version") ||
		die "the mirror has no libstd-rust-dev $version for arm64" \
			"the toolchain may be out of date: remove $CACHE/toolchain.key, and start again"
	tmp=$(begin std-arm64)
	mkdir -p "$tmp"
	dpkg-deb -x "$out"/libstd-rust-dev_*_arm64.deb "$tmp" || die "the package is damaged"
	finish std-arm64 "$want"
}

# build_fuzz: the fuzzer at $CACHE/fuzz/dmabuf-fuzz.
#
# With the machine's own toolchain there may be none; then the suite is skipped and says so.
build_fuzz() {
	local want tmp src=$BENCH/fuzz
	if [ "$TOOLS" = / ] && ! have dpkg-query; then
		say "fuzzer: this machine's Rust is not Debian's, so it is not built"
		rm -rf "${CACHE:?}/fuzz" "${CACHE:?}/fuzz.key"
		return
	fi
	get_std
	want=$(key "$(cat "$src"/*.rs "$BENCH/lib/fuzz.sh")" "$(cat "$CACHE/std-arm64.key")")
	made fuzz "$want" && return
	say "fuzzer: building"
	tmp=$(begin fuzz)
	mkdir -p "$tmp"
	logged "$CACHE/log/fuzz.log" in_tools rustc --edition 2021 -O -D warnings -C panic=abort \
		-C strip=symbols --target "$FUZZ_TARGET" --sysroot "$CACHE/std-arm64/usr" \
		-C linker=aarch64-linux-gnu-gcc -C target-feature=+crt-static \
		-o "$tmp/dmabuf-fuzz" "$src/main.rs" || die "the fuzzer does not build"
	finish fuzz "$want"
}
