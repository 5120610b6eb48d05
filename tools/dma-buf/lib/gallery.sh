# SPDX-License-Identifier: GPL-2.0
# The gallery: per CVE a program that makes the mistake and must not compile, and the same program
# without the mistake, which must. Prints TAP.

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
	(cd "$out" && in_tools nice -n 19 sh -c "RUSTC_BOOTSTRAP=1 $cmd --crate-name ${name//-/_} \
		--error-format=short --emit=metadata=$CACHE/gallery/out.rmeta $* $file")
}

# gallery_checks: two results for each program.
gallery_checks() {
	local n=0 bad log=$CACHE/log/gallery out=$CACHE/build/arm64-debug
	local GALLERY_LIB=${GALLERY_LIB:-$CACHE/build/arm64-debug/rust}
	local file name code codes

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
		code=$(sed -nE 's,^//@ error: (E[0-9]{4})$,\1,p' "$file")

		bad=()
		[[ $code =~ ^E[0-9]{4}$ ]] || bad+=("it does not have one line \"//@ error: ECODE\"")
		if gallery_rustc "$out" "$file" --cfg mistake >"$log/$name-mistake.log" 2>&1; then
			bad+=("it compiles")
		else
			# One word for each error; what has no code is "error".
			codes=$(sed -nE '/^error: aborting/d; s/^(.*: )?error(\[(E[0-9]+)\])?: .*/error\3/p' \
				"$log/$name-mistake.log" | sed 's/^errorE/E/' | xargs)
			[ "$codes" = "$code" ] ||
				bad+=("its errors are: ${codes:-none}; see $log/$name-mistake.log")
		fi
		report $((n += 1)) "$name: the mistake does not compile (${code:-no code})" "${bad[@]}"

		bad=()
		rm -f "$CACHE/gallery/out.rmeta"
		gallery_rustc "$out" "$file" >"$log/$name.log" 2>&1 || bad+=("see $log/$name.log")
		[ ${#bad[@]} != 0 ] || [ -e "$CACHE/gallery/out.rmeta" ] ||
			bad+=("nothing was compiled: see $log/$name.log")
		! grep -q 'warning: ' "$log/$name.log" || bad+=("warnings: see $log/$name.log")
		! grep -v '^ *//' "$file" | grep -qw unsafe || bad+=("it has unsafe code")
		report $((n += 1)) "$name: corrected, it compiles" "${bad[@]}"
	done
	echo "1..$n"
}
