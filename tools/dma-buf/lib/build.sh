# SPDX-License-Identifier: GPL-2.0
# Kernels and guest programs.

# What is built is for arm64, unless KARCH says otherwise.

# kmake OUT ARGUMENT...: make in the series' tree, with output in OUT. A guest goes first.
kmake() {
	local out=$1
	shift
	(cd "$TREE" && in_tools nice -n 19 make -j "$(nproc)" ARCH="${KARCH:-arm64}" LLVM=1 LOCALVERSION= \
		CC="ccache clang" KBUILD_BUILD_USER=workbench KBUILD_BUILD_HOST=workbench \
		KBUILD_BUILD_TIMESTAMP=2026-01-01 KBUILD_BUILD_VERSION=1 O="$out" "$@")
}

# configure OUT FRAGMENT...: allnoconfig with fragments; every line of them must survive.
configure() {
	local out=$1 line option lost=()
	shift
	mkdir -p "$out"
	cat "$@" >"$out/workbench.config"
	(cd "$TREE" && in_tools env KCONFIG_ALLCONFIG="$out/workbench.config" \
		make ARCH="${KARCH:-arm64}" LLVM=1 CC="ccache clang" O="$out" allnoconfig) >"$CACHE/log/configure.log" 2>&1 ||
		{ tail -n 20 "$CACHE/log/configure.log" >&2; die "the kernel does not configure"; }
	while read -r line; do
		case $line in
		# What cannot be set is not set either.
		'#'*) option=${line#\# }; ! grep -q "^${option%% *}=" "$out/.config" || lost+=("$line") ;;
		*) grep -qxF "$line" "$out/.config" || lost+=("$line") ;;
		esac
	done < <(grep -E '^CONFIG_|^# CONFIG_.* is not set' "$@" -h)
	[ ${#lost[@]} = 0 ] || {
		printf '    %s\n' "${lost[@]}" >&2
		die "the options above did not survive: a dependency is missing" "see $out/.config"
	}
}

# build CORE CONFIG: a kernel with its modules; CONFIG may be several fragments, with "+" between
# them. Sets IMAGE to the folder of the result.
build() {
	local core=$1 config=$2 out=$CACHE/build/arm64-$2 want name=images/$1-$2 tmp part
	local fragments=("$BENCH/config/arm64.config")
	for part in ${config//+/ }; do fragments+=("$BENCH/config/$part.config"); done
	fragments+=("$BENCH/config/core-$core.config")
	IMAGE=$CACHE/$name
	want=$(key "$(git -C "$TREE" rev-parse 'HEAD^{tree}')" "$(cat "${fragments[@]}")" \
		"$(in_tools sh -c 'rustc --version; clang --version; bindgen --version')")
	made "$name" "$want" && { say "kernel: $core core, $config: built already"; return; }
	need_space 4
	say "kernel: building, $core core, $config (20 minutes on 2 cores when there is nothing yet)"
	configure "$out" "${fragments[@]}"
	(cd "$TREE" && in_tools make ARCH=arm64 LLVM=1 O="$out" rustavailable) \
		>"$CACHE/log/rustavailable.log" 2>&1 ||
		{ cat "$CACHE/log/rustavailable.log" >&2; die "the toolchain has no Rust for this kernel"; }
	logged "$CACHE/log/build-$core-$config.log" kmake "$out" Image modules ||
		die "the kernel does not build" "the log is $CACHE/log/build-$core-$config.log"
	tmp=$(begin "$name")
	mkdir -p "$tmp"
	cp "$out/arch/arm64/boot/Image" "$out/.config" "$out/System.map" "$tmp/"
	logged "$CACHE/log/modules-$core-$config.log" kmake "$out" INSTALL_MOD_PATH="$tmp" \
		INSTALL_MOD_STRIP=1 modules_install || die "the modules do not install"
	finish "$name" "$want"
	say "kernel: $IMAGE/Image ($(du -h "$IMAGE/Image" | cut -f1))"
}

# build_programs: what runs in the guest, at $CACHE/programs.
build_programs() {
	local want tmp out=$CACHE/build/arm64-debug t
	local tests=tools/testing/selftests
	want=$(key "$(git -C "$TREE" rev-parse "HEAD:$tests" HEAD:include/uapi)" \
		"$(cat "$BENCH"/guest/*.c "$BENCH/lib/build.sh"; in_tools aarch64-linux-gnu-gcc --version)")
	made programs "$want" && return
	say "guest: building the programs"
	tmp=$(begin programs)
	mkdir -p "$tmp"
	logged "$CACHE/log/headers.log" kmake "$out" headers || die "the kernel's headers do not build"
	for t in dmabuf-heaps sync drivers/dma-buf dma-buf; do
		mkdir -p "$tmp/$t"
		(cd "$TREE" && logged "$CACHE/log/selftest-${t//\//-}.log" in_tools make -C "$tests/$t" \
			ARCH=arm64 CC=aarch64-linux-gnu-gcc OUTPUT="$tmp/$t" \
			KHDR_INCLUDES="-isystem $out/usr/include") || die "selftest $t does not build"
	done
	for t in "$BENCH"/guest/*.c; do
		t=$(basename "$t" .c)
		logged "$CACHE/log/program-$t.log" in_tools aarch64-linux-gnu-gcc -static -O2 -Wall -Wextra \
			-Werror -o "$tmp/$t" "$BENCH/guest/$t.c" || die "$t.c does not build"
	done
	finish programs "$want"
}
