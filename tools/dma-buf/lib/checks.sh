# SPDX-License-Identifier: GPL-2.0
# What can be checked without booting. Each prints TAP.

CORE=drivers/dma-buf/rust

# The objects of which the Rust files of the series are a part.
RUST_OBJECTS=(rust/kernel $CORE/dma_buf drivers/dma-buf/tests/dma_buf_{kunit,test}
	samples/rust/rust_{dma_buf,vivid,vim2m})

# rust_tool OUT OBJECT TOOL OPTION...: run another tool with the options that the build in OUT gave
# to rustc for an object.
rust_tool() {
	local out=$1 object=$2 tool=$3 cmd
	shift 3
	cmd=$(sed -n 's/^savedcmd_[^ ]* := //p' "$out/$(dirname "$object")/.$(basename "$object").o.cmd" |
		sed -E "s/ (clippy-driver|rustc) / $tool /; s/--emit=[^ ]*//g; s/--out-dir [^ ]*//; s/;.*//")
	[ -n "$cmd" ] || { echo "error: $object was not built"; return 1; }
	(cd "$out" && in_tools nice -n 19 sh -c "RUSTC_BOOTSTRAP=1 CLIPPY_CONF_DIR=$TREE $cmd $*")
}

rust_files() {
	series_files | grep '\.rs$'
}

# compile_checks: rustfmt, clippy, rustdoc and sparse for what the series adds.
compile_checks() {
	local n=0 bad log=$CACHE/log out=$CACHE/build/arm64-debug object

	bad=()
	(cd "$TREE" && rust_files >"$CACHE/rust-files" &&
		in_tools rustfmt --check --edition 2021 --config-path .rustfmt.toml \
			$(grep -E 'dma_buf(_kunit|_test)?\.rs$|rust/kernel|samples' "$CACHE/rust-files")) \
		>"$log/rustfmt.log" 2>&1 || bad=("see $log/rustfmt.log")
	report $((n += 1)) rustfmt "${bad[@]}"

	# The folder may have been used for the other core since.
	configure "$out" "$BENCH"/config/{arm64,debug,core-rust}.config
	bad=()
	kmake "$out" prepare "$CORE/" drivers/dma-buf/tests/ samples/rust/ >"$log/rust.log" 2>&1 || bad=("see $log/rust.log")
	! grep -qE '^(warning|error)' "$log/rust.log" || bad=("see $log/rust.log")
	report $((n += 1)) "rustc" "${bad[@]}"

	for object in "${RUST_OBJECTS[@]}"; do
		bad=()
		rm -rf "$CACHE/clippy"
		mkdir -p "$CACHE/clippy"
		rust_tool "$out" "$object" clippy-driver "--emit=metadata=$CACHE/clippy/out.rmeta" \
			>"$log/clippy.log" 2>&1 || bad=("see $log/clippy.log")
		! grep -qE '^(warning|error)' "$log/clippy.log" || bad=("see $log/clippy.log")
		[ -e "$CACHE/clippy/out.rmeta" ] || bad=("nothing was compiled: see $log/clippy.log")
		[ ${#bad[@]} = 0 ] || cp "$log/clippy.log" "$log/clippy-${object//\//-}.log"
		report $((n += 1)) "clippy: $object" "${bad[@]//clippy.log/clippy-${object//\//-}.log}"
	done

	# What is private is part of the core's documentation; the crate "kernel" is not all ours.
	for object in "${RUST_OBJECTS[@]}"; do
		bad=()
		rm -rf "$CACHE/rustdoc"
		mkdir -p "$CACHE/rustdoc"
		rust_tool "$out" "$object" rustdoc --out-dir "$CACHE/rustdoc" \
			-Drustdoc::broken_intra_doc_links \
			"$([ "$object" = rust/kernel ] || echo --document-private-items)" \
			>"$log/rustdoc.log" 2>&1 || bad=("see $log/rustdoc.log")
		! grep -qE '^(warning|error)' "$log/rustdoc.log" || bad=("see $log/rustdoc.log")
		[ -n "$(find "$CACHE/rustdoc" -path '*/dma_buf*/index.html' -o -path '*/rust_*/index.html')" ] ||
			bad=("nothing was documented: see $log/rustdoc.log")
		[ ${#bad[@]} = 0 ] || cp "$log/rustdoc.log" "$log/rustdoc-${object//\//-}.log"
		report $((n += 1)) "rustdoc: $object" "${bad[@]//rustdoc.log/rustdoc-${object//\//-}.log}"
	done

	bad=()
	rm -f "$out/$CORE/shim.o"
	kmake "$out" C=1 CHECK=sparse "$CORE/shim.o" >"$log/sparse.log" 2>&1 || bad=("see $log/sparse.log")
	[ -e "$out/$CORE/shim.o" ] || bad=("nothing was compiled: see $log/sparse.log")
	! grep -E 'shim\.[ch]:[0-9]+:[0-9]+: (warning|error)' "$log/sparse.log" || bad=("see $log/sparse.log")
	report $((n += 1)) "sparse" "${bad[@]}"
	echo "1..$n"
}
