# SPDX-License-Identifier: GPL-2.0
# The compile matrix: kernels that nobody boots here, but that have to build. Only the folders that the
# series touches are built. config/matrix/NAME.config says what is different in a kernel.

MATRIX_FOLDERS=(drivers/dma-buf/ drivers/media/common/videobuf2/ drivers/media/v4l2-core/ samples/rust/)

matrix_names() {
	local file
	for file in "$BENCH"/config/matrix/*.config; do
		file=$(basename "$file" .config)
		[ "$file" = common ] || echo "$file"
	done
}

# matrix_config NAME: the options of a kernel; what its own file says of one comes last, and counts.
matrix_config() {
	awk '
		/^CONFIG_|^# CONFIG_.* is not set$/ {
			option = $0
			sub(/^# /, "", option)
			sub(/[= ].*/, "", option)
			if (!(option in last)) order[++n] = option
			last[option] = $0
		}
		END { for (i = 1; i <= n; i++) print last[order[i]] }
	' "$BENCH/config/matrix/common.config" "$BENCH/config/matrix/$1.config"
}

# matrix_warnings LOG: what compilers and objtool say of the series; of other files they say more.
matrix_warnings() {
	local of='drivers/dma-buf|drivers/media|rust|samples/rust'
	grep -E "^(warning|error)|: warning: objtool: |(^|/)($of)/[^ ]*: (warning|error): " "$1" || true
}

# matrix_build NAME: build one; it fails for warnings as well.
matrix_build() {
	local name=$1 out=$CACHE/build/matrix-$1 log=$CACHE/log/matrix-$1.log KARCH
	KARCH=$(sed -n 's/^# arch: //p' "$BENCH/config/matrix/$name.config")
	[ -n "$KARCH" ] || die "config/matrix/$name.config names no architecture" "it wants a line \"# arch: ARCH\""
	mkdir -p "$out"
	matrix_config "$name" >"$out/matrix.config"
	configure "$out" "$out/matrix.config"
	# What was built before says nothing any more of what it warned of.
	rm -rf "$out"/drivers/{dma-buf,media} "$out/samples" "$out/rust/kernel.o"
	logged "$log" kmake "$out" "${MATRIX_FOLDERS[@]}" || die "the kernel $name does not build" "the log is $log"
	[ -z "$(matrix_warnings "$log")" ] || {
		matrix_warnings "$log" >&2
		die "the kernel $name builds with warnings" "the log is $log"
	}
}

matrix_key() {
	key "$(git -C "$TREE" rev-parse 'HEAD^{tree}')" "$(matrix_config "$1")" "$(compilers)" \
		"$(cat "$BENCH/config/matrix/$1.config" "$BENCH/lib/"{matrix,build}.sh)"
}

matrix_stored() {
	stored matrix "$(matrix_key "$1")"
}

# matrix_suite NAME...: a result for each kernel, in TAP.
matrix_suite() {
	local n=0 name bad rc
	# Of the kernel for measuring, which is built when it is asked for: whether all of it can be had.
	bad=()
	(configure "$CACHE/build/matrix-perf" "$BENCH"/config/{arm64,perf,core-rust}.config) || bad=("see above")
	report $((n += 1)) "perf: its options survive" "${bad[@]}"

	for name in "$@"; do
		bad=()
		if matrix_stored "$name" >/dev/null; then
			say "matrix: $name: built already"
		else
			say "matrix: $name"
			# In a subshell, as it may end by die; and not as a condition, which would have it go on
			# after an error.
			set +e
			(
				set -e
				timed "matrix-$name" matrix_build "$name"
			)
			rc=$?
			set -e
			if [ $rc = 0 ]; then
				echo "built" | store matrix "$(matrix_key "$name")"
			else
				bad=("see $CACHE/log/matrix-$name.log and configure.log there")
			fi
		fi
		report $((n += 1)) "$name: it builds" "${bad[@]}"
	done
	echo "1..$n"
}

# verb_matrix [NAME]...
verb_matrix() {
	local name names
	mapfile -t names < <(matrix_names)
	for name in "$@"; do
		[ -e "$BENCH/config/matrix/$name.config" ] && [ "$name" != common ] ||
			usage_error "there is no kernel \"$name\": ${names[*]}"
	done
	get_toolchain
	series_tree
	[ $# -gt 0 ] || set -- "${names[@]}"
	matrix_suite "$@" | tee "$CACHE/log/matrix.tap"
	! grep -q '^not ok' "$CACHE/log/matrix.tap" || die "not all of the kernels build (above)"
}
