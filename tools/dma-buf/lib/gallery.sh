# SPDX-License-Identifier: GPL-2.0
# The gallery: per CVE a program that makes the mistake and must not compile, because of one error, in
# the line that ends with "//~ mistake"; and the same program without the mistake, which must. What
# compiles with the mistake in it is in gallery/possible. Prints TAP.

# gallery_rustc OUT FILE OPTION...: compile a program as far as its metadata, with the options that
# the build in OUT gave to rustc for the core. GALLERY_LIB is the folder of the kernel crate.
gallery_rustc() {
	local out=$1 file=$2 name cmd
	shift 2
	name=$(basename "$file" .rs)
	name=${name,,}
	cmd=$(sed -n 's/^savedcmd_[^ ]* := //p' "$out/$CORE/.dma_buf.o.cmd" |
		sed -E "s/;.*//; s/ (clippy-driver|rustc) / rustc /; s/--emit=[^ ]*//g; s/--out-dir [^ ]*//
			s#--extern kernel #--extern kernel=$GALLERY_LIB/libkernel.rmeta #
			s# [^ ]*/dma_buf\.rs( |\$)# #")
	rm -f "$CACHE/gallery/out.rmeta"
	(cd "$out" && in_tools nice -n 19 sh -c "RUSTC_BOOTSTRAP=1 $cmd --crate-name ${name//-/_} \
		--error-format=short --emit=metadata=$CACHE/gallery/out.rmeta $* $file")
}

# gallery_fails OUT FILE CODE LOG: a line for each thing that is wrong with how a program fails.
gallery_fails() {
	local out=$1 file=$2 code=$3 log=$4 marked errors
	[[ $code =~ ^E[0-9]{4}$ ]] || echo "it does not have one line \"//@ error: ECODE\""
	marked=$(grep -nE '//~ mistake$' "$file" | cut -d: -f1)
	[[ $marked =~ ^[0-9]+$ ]] || echo "it does not have one line that ends with \"//~ mistake\""
	if gallery_rustc "$out" "$file" --cfg mistake >"$log" 2>&1; then
		echo "it compiles"
		return
	fi
	# FILE:LINE:CODE for each error; what has no code is "error".
	errors=$(sed -nE '/^error: aborting/d
		s#^(([^ ]*/)?([^/ ]+:[0-9]+:)[0-9]+: )?error(\[(E[0-9]+)\])?: .*#\3error\5#p' "$log" |
		sed 's/errorE/E/' | xargs)
	[ "$errors" = "${file##*/}:$marked:$code" ] ||
		echo "its errors are: ${errors:-none}, and not ${file##*/}:$marked:$code; see $log"
}

# gallery_compiles OUT FILE LOG: a line for each thing that is wrong with how a program compiles.
gallery_compiles() {
	local out=$1 file=$2 log=$3
	if ! gallery_rustc "$out" "$file" >"$log" 2>&1; then
		echo "see $log"
	elif [ ! -e "$CACHE/gallery/out.rmeta" ]; then
		echo "nothing was compiled: see $log"
	fi
	! grep -q 'warning: ' "$log" || echo "warnings: see $log"
	! grep -v '^ *//' "$file" | grep -qw unsafe || echo "it has unsafe code"
}

# gallery_code FILE: the code of the error that a program is to fail with.
gallery_code() {
	sed -nE 's,^//@ error: (E[0-9]{4})$,\1,p' "$1"
}

# gallery_table: what the chapter for driver authors says of each CVE, and gallery_found: what there
# is. A line "CVE E-CODE", "CVE TEST" or "CVE possible".
gallery_table() {
	sed -nE 's/^(CVE-[0-9]+-[0-9]+) .* does not compile \((E[0-9]{4})\).*/\1 \2/p
		s/^(CVE-[0-9]+-[0-9]+) .* cannot leak: Drop \(test ([a-z0-9_]+)\).*/\1 \2/p
		s/^(CVE-[0-9]+-[0-9]+) .* still possible: .*/\1 possible/p' "$1" | sort
}
gallery_found() {
	local file name
	for file in "$BENCH"/gallery/CVE-*.rs; do
		name=$(basename "$file" .rs)
		# One half of a mistake has a word behind the number. It does not count.
		[[ $name =~ [a-z]$ ]] || echo "$name $(gallery_code "$file")"
	done
	for file in "$BENCH"/gallery/possible/CVE-*.rs; do
		echo "$(basename "$file" .rs) possible"
	done
	sed -nE 's/^ *fn (cve_([0-9]+)_([0-9]+))\(.*/CVE-\2-\3 \1/p' "$1"
}

# gallery_checks: two results for each program, one for each that is possible, one for the table.
gallery_checks() {
	local n=0 bad log=$CACHE/log/gallery out=$CACHE/build/arm64-debug
	local GALLERY_LIB=${GALLERY_LIB:-$CACHE/build/arm64-debug/rust}
	local file name code

	bad=()
	[ -e "$out/$CORE/.dma_buf.o.cmd" ] || bad+=("$out/$CORE/dma_buf.o was not built")
	[ -e "$GALLERY_LIB/libkernel.rmeta" ] || bad+=("there is no $GALLERY_LIB/libkernel.rmeta")
	compgen -G "$BENCH/gallery/CVE-*.rs" >/dev/null || bad+=("$BENCH/gallery has no programs")
	if [ ${#bad[@]} != 0 ]; then
		report 1 gallery "${bad[@]}"
		echo "1..1"
		return
	fi
	rm -rf "$log"
	mkdir -p "$log" "$CACHE/gallery"

	for file in "$BENCH"/gallery/CVE-*.rs; do
		name=$(basename "$file" .rs)
		code=$(gallery_code "$file")
		mapfile -t bad < <(gallery_fails "$out" "$file" "$code" "$log/$name-mistake.log")
		report $((n += 1)) "$name: the mistake does not compile (${code:-no code})" "${bad[@]}"
		mapfile -t bad < <(gallery_compiles "$out" "$file" "$log/$name.log")
		report $((n += 1)) "$name: corrected, it compiles" "${bad[@]}"
	done

	for file in "$BENCH"/gallery/possible/CVE-*.rs; do
		name=$(basename "$file" .rs)
		mapfile -t bad < <(gallery_compiles "$out" "$file" "$log/$name-possible.log")
		report $((n += 1)) "$name: the mistake is still possible" "${bad[@]}"
	done

	mapfile -t bad < <(diff \
		<(gallery_table "$REPO/Documentation/driver-api/dma-buf-rust-drivers.rst") \
		<(gallery_found "$REPO/rust/kernel/dma_buf/leak_tests.rs" | sort))
	report $((n += 1)) "the chapter for driver authors says so" "${bad[@]}"
	echo "1..$n"
}
