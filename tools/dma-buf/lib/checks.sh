# SPDX-License-Identifier: GPL-2.0
# What can be checked without booting. Each prints TAP.

CORE=drivers/dma-buf/rust

rust_files() {
	series_files | grep '\.rs$'
}

# compile_checks: rustfmt, clippy, rustdoc and sparse for what the series adds.
compile_checks() {
	local n=0 bad log=$CACHE/log out=$CACHE/build/arm64-debug cmd

	bad=()
	(cd "$TREE" && rust_files >"$CACHE/rust-files" &&
		in_tools rustfmt --check --edition 2021 --config-path .rustfmt.toml \
			$(grep -E 'dma_buf\.rs$|rust/kernel|samples' "$CACHE/rust-files")) \
		>"$log/rustfmt.log" 2>&1 || bad=("see $log/rustfmt.log")
	report $((n += 1)) rustfmt "${bad[@]}"

	# The folder may have been used for the other core since.
	configure "$out" "$BENCH"/config/{arm64,debug,core-rust}.config

	bad=()
	rm -f "$out/$CORE"/*.o
	kmake "$out" CLIPPY=1 "$CORE/" >"$log/clippy.log" 2>&1 || bad=("see $log/clippy.log")
	! grep -qE '^(warning|error)' "$log/clippy.log" || bad=("see $log/clippy.log")
	[ -e "$out/$CORE/dma_buf.o" ] || bad=("nothing was compiled: see $log/clippy.log")
	report $((n += 1)) "clippy" "${bad[@]}"

	# The kernel's rustdoc target is for rust/ alone, so the command of the build is asked.
	bad=()
	rm -rf "$CACHE/rustdoc"
	cmd=$(sed -n 's/^savedcmd_[^ ]* := //p' "$out/$CORE/.dma_buf.o.cmd" |
		sed -E 's/(clippy-driver|rustc) /rustdoc /; s/--emit=[^ ]* *[^ ]*//g; s/ -o [^ ]*//; s/;.*//' |
		sed -E 's/-Cincremental[^ ]*//; s/--out-dir [^ ]*//')
	(cd "$out" && in_tools sh -c "RUSTC_BOOTSTRAP=1 $cmd \
		--document-private-items -Drustdoc::broken_intra_doc_links --out-dir $CACHE/rustdoc") \
		>"$log/rustdoc.log" 2>&1 || bad=("see $log/rustdoc.log")
	! grep -qE '^(warning|error)' "$log/rustdoc.log" || bad=("see $log/rustdoc.log")
	[ -e "$CACHE/rustdoc/dma_buf/index.html" ] || bad=("nothing was documented: see $log/rustdoc.log")
	report $((n += 1)) "rustdoc" "${bad[@]}"

	bad=()
	rm -f "$out/$CORE/shim.o"
	kmake "$out" C=1 CHECK=sparse "$CORE/shim.o" >"$log/sparse.log" 2>&1 || bad=("see $log/sparse.log")
	[ -e "$out/$CORE/shim.o" ] || bad=("nothing was compiled: see $log/sparse.log")
	! grep -E 'shim\.[ch]:[0-9]+:[0-9]+: (warning|error)' "$log/sparse.log" || bad=("see $log/sparse.log")
	report $((n += 1)) "sparse" "${bad[@]}"
	echo "1..$n"
}
