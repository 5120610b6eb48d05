# SPDX-License-Identifier: GPL-2.0
# The verbs.

help_text() {
	cat <<'HELP'
usage: tools/dma-buf/run VERB [OPTION...]

  demo     build Linux with the Rust core, boot it, and share buffers between devices
  test     all tests, with the Rust core and with the C core
  build    build a kernel
  boot     a shell in the guest
  kunit    the KUnit suites: on User Mode Linux for quick turns, or on arm64
  matrix   other architectures and options: whether they build
  stress   threads and processes that share buffers, for a long time, on a kernel that checks itself
  fuzz     random calls; the same seed must give the same results on both cores
  mutate   faults in the Rust core, which the tests have to find
  coverage which lines of the core in C the tests run
  series   make and check the patches: refresh, check, bisect, edit, import
  clean    remove what is in the cache

Each verb has its own --help. Options of all verbs:

  --cache DIR        where everything lands (default: $XDG_CACHE_HOME/rust-dma-buf)
  --mirror URL       the Debian mirror (default: that of this machine's packages)
  --kernel DIR       a git tree of your own to put the series on, instead of Linux 7.3.
                     The series is applied on its HEAD with git am; your tree gets a branch
                     "rust-dma-buf", and nothing else in it is written
  --host-toolchain   use this machine's toolchain, or fail and say what is missing (also: --llvm)
HELP
}

verb_help() {
	case $1 in
	demo) cat <<'HELP'
usage: run demo [--core rust|c] [--out DIR]

Gets a toolchain, Linux and a small arm64 Debian, applies patches/, builds the kernel and boots it
in QEMU. There, frames go from a capture device (rust_vivid) through a memory-to-memory device
(rust_vim2m) in shared buffers, each compared byte by byte, and its number read from its pixels; then
between these and the drivers in C. Prints what was shared, what it cost compared with a copy, and the
paths of the first frame before and after as PNG files (in --out DIR, default: a folder in the cache).
HELP
		;;
	test) cat <<'HELP'
usage: run test [--core rust|c] [--only NAME] [--again]

Runs every suite on both cores (or one of them) and says where they differ. --only: series, compile,
kunit (on UML), matrix or guest. Exits with 0 if nothing failed. Logs are in the cache folder.

Says first what it builds, boots and runs, and what each took the last time that it was not there
already. All of it is to take no more than 60 minutes; what takes longer is a verb of its own.
HELP
		;;
	build) cat <<'HELP'
usage: run build [--core rust|c] [--config debug|perf]

Builds an arm64 kernel and its modules and prints the folder that they are in.
HELP
		;;
	boot) cat <<'HELP'
usage: run boot [--core rust|c] [--config debug|perf]

Boots the kernel with a shell on the console. "exit" powers the guest off; Ctrl-A X ends QEMU.
HELP
		;;
	kunit) cat <<'HELP'
usage: run kunit [--core rust|c] [--arch um|arm64]

Runs the KUnit suites of dma-buf with kunit.py.
HELP
		;;
	matrix) cat <<'HELP'
usage: run matrix [--again] [NAME...]

Builds what the series touches for other architectures and options: each kernel of config/matrix, or
the ones with these names; before that, sees whether the options of the perf kernel survive. A warning
in Rust, in a folder that the series touches, or of objtool is a failure. What was built already from
the same content is not built again. Prints TAP; "run test" does it, too.
HELP
		;;
	stress) cat <<'HELP'
usage: run stress [--core rust|c] [--minutes N] [--sanitizer none|kasan|kcsan] [--again]

Runs the stress program of the kselftests for N minutes (default: 30) in a kernel with lockdep,
kmemleak and KASAN, or KCSAN instead, or neither. Prints operations per second. Fails for any splat,
leak, stuck task or byte that is not what it was. KCSAN's reports about other parts of the kernel are
listed, and do not count. It watches the accesses of C alone: with the Rust core those of its drivers,
fences and reservations, not those of the core.

It runs in rounds of at most ten minutes, each with a boot of its own. A round that ended well is stored,
and not run again for the same kernel and programs, unless --again is given.
HELP
		;;
	fuzz) cat <<'HELP'
usage: run fuzz [--core rust|c] [--seed N] [--calls N] [--again]

Makes N random calls (default: 1000000) of the ioctls of dma-buf, the heaps, udmabuf, sync files and the
sample drivers. The same seed gives the same calls; without --core both cores must give the same
results. Fails for any splat or leak.

The results of a core are stored, and not made again for the same kernel, seed, calls and fuzzer, unless
--again is given.
HELP
		;;
	mutate) cat <<'HELP'
usage: run mutate [--again] [NUMBER|FIRST-[LAST]]...

Puts each fault of tools/dma-buf/mutants, or the ones with these numbers, into the Rust core, and runs
the tests: KUnit on User Mode Linux, then the kselftests on arm64 for what KUnit lets pass. Names the
survivors, and fails if less than 95 % were caught. Takes two hours for all.

Each verdict is stored, and not made again for the same series, fault and tests, unless --again is
given. So a run that was interrupted is continued by the next one.
HELP
		;;
	coverage) cat <<'HELP'
usage: run coverage [--again]

Builds the core in C with counters, runs KUnit and the kselftests of the core, and tells how many lines
and branches of dma-buf.c they ran. Fails below 95 % of the lines, and for a line that did not run and
is not in tools/dma-buf/uncovered with a reason. What the guest counted is stored, and not counted again
for the same kernel and tests, unless --again is given.
HELP
		;;
	series) cat <<'HELP'
usage: run series refresh [FILE=NUMBER...]   make patches/ anew from patches/ and the files here;
                                             FILE=NUMBER says which patch adds a new file
       run series check                      the series applies, equals the files here, and passes
                                             checkpatch
       run series bisect [--again]           build after every patch, with each core there is; what
                                             was built already is not built again without --again
       run series edit | import              edit hunks, messages and order with git in a work
                                             tree; take the result back
HELP
		;;
	clean) cat <<'HELP'
usage: run clean [--all]

Removes builds, images, logs and stored results from the cache; with --all the toolchain, the kernel
source, downloads and the times that steps took, too.
HELP
		;;
	*) help_text ;;
	esac
}

main() {
	CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/rust-dma-buf
	MIRROR='' KERNEL='' HOST_TOOLCHAIN='' TOOLS=''
	local core='' config=debug arch=um only='' out='' all='' verb='' words=()
	local minutes=30 sanitizer=kasan seed=1 calls=1000000

	while [ $# -gt 0 ]; do
		case $1 in
		--cache | --mirror | --kernel | --core | --config | --arch | --only | --out | --minutes | \
			--sanitizer | --seed | --calls)
			[ $# -ge 2 ] || usage_error "$1 wants a value"
			case $1 in
			--cache) CACHE=$2 ;;
			--mirror) MIRROR=$2 ;;
			--kernel) KERNEL=$2 ;;
			--core) core=$2 ;;
			--config) config=$2 ;;
			--arch) arch=$2 ;;
			--only) only=$2 ;;
			--out) out=$2 ;;
			--minutes) minutes=$2 ;;
			--sanitizer) sanitizer=$2 ;;
			--seed) seed=$2 ;;
			--calls) calls=$2 ;;
			esac
			shift
			;;
		--host-toolchain | --llvm) HOST_TOOLCHAIN=y ;;
		--all) all=y ;;
		--again) AGAIN=y ;;
		-h | --help)
			verb_help "${verb:-none}"
			exit 0
			;;
		-*) usage_error "no option $1" ;;
		*)
			if [ -z "$verb" ]; then verb=$1; else words+=("$1"); fi
			;;
		esac
		shift
	done
	[ -n "$verb" ] || { help_text >&2; exit 2; }
	case $core in '' | rust | c) ;; *) usage_error "--core is rust or c, not \"$core\"" ;; esac
	case $config in debug | perf) ;; *) usage_error "--config is debug or perf, not \"$config\"" ;; esac
	case $arch in um | arm64) ;; *) usage_error "--arch is um or arm64, not \"$arch\"" ;; esac
	case $only in '' | series | compile | kunit | matrix | guest) ;;
	*) usage_error "--only is series, compile, kunit, matrix or guest, not \"$only\"" ;; esac
	case $sanitizer in none | kasan | kcsan) ;;
	*) usage_error "--sanitizer is none, kasan or kcsan, not \"$sanitizer\"" ;; esac
	local number
	for number in "$minutes" "$seed" "$calls"; do
		[[ $number =~ ^[0-9]{1,9}$ ]] || usage_error "\"$number\" is not a number"
	done
	[ "$minutes" -gt 0 ] && [ "$calls" -gt 0 ] || usage_error "0 minutes or calls are none"
	case $verb in series | mutate | matrix) ;; *)
		[ ${#words[@]} = 0 ] || usage_error "$verb takes no \"${words[0]}\"" ;; esac
	case $verb in demo | test | build | boot | kunit | series | clean) ;;
	matrix | stress | fuzz | mutate | coverage) ;;
	*) usage_error "no verb \"$verb\"" ;; esac
	case $verb-$core in mutate-c | coverage-rust)
		usage_error "$verb is of the other core" ;; esac
	if [ -n "$KERNEL" ]; then
		[ -d "$KERNEL" ] || die "there is no folder $KERNEL"
		KERNEL=$(cd "$KERNEL" && pwd)
	fi
	open_cache

	case $verb in
	demo) verb_demo "${core:-rust}" "$out" ;;
	test) verb_test "$core" "$only" ;;
	build) verb_build "${core:-rust}" "$config" ;;
	boot) verb_boot "${core:-rust}" "$config" ;;
	kunit) verb_kunit "${core:-rust}" "$arch" ;;
	stress) verb_stress "${core:-rust}" "$minutes" "$sanitizer" ;;
	fuzz) verb_fuzz "${core:-rust c}" "$seed" "$calls" ;;
	matrix) verb_matrix "${words[@]}" ;;
	mutate)
		for number in "${words[@]}"; do
			[[ $number =~ ^[0-9]+(-[0-9]*)?$ ]] ||
				usage_error "mutate takes numbers, 7 or 7-9 or 7-, not \"$number\""
		done
		verb_mutate "${words[@]}"
		;;
	coverage) verb_coverage ;;
	series) verb_series "${words[@]}" ;;
	clean) verb_clean "$all" ;;
	esac
}

verb_build() {
	get_toolchain
	series_tree
	build "$1" "$2"
	echo "$IMAGE"
}

verb_boot() {
	get_toolchain
	series_tree
	build "$1" "$2"
	build_programs
	get_rootfs
	prepare_work "$1" "$2"
	echo 'modprobe -a vivid vim2m vgem rust_vivid rust_vim2m; setsid -c bash -i <>/dev/ttyAMA0 >&0 2>&1' >"$WORK/job"
	qemu 36000 kunit.enable=0
}

verb_series() {
	local what=${1:-}
	[ $# = 0 ] || shift
	case $what in
	refresh) series_refresh "$@" ;;
	edit) series_edit ;;
	import) series_import ;;
	check)
		get_toolchain
		series_check | tee "$CACHE/log/series.tap"
		! grep -q '^not ok' "$CACHE/log/series.tap" || die "the series is not in order (above)"
		;;
	bisect)
		get_toolchain
		series_bisect
		;;
	*) usage_error "series: refresh, check, bisect, edit or import" ;;
	esac
}

# Every commit builds, with each core that the tree has by then.
series_bisect() {
	local rev core want what fragments compilers old=0
	series_tree
	compilers=$(compilers)
	for rev in $(git -C "$TREE" rev-list --reverse "$BASE..$REV"); do
		for core in c rust; do
			fragments=("$BENCH"/config/{arm64,debug}.config)
			if git -C "$TREE" grep -q DMA_SHARED_BUFFER_RUST "$rev" -- drivers/dma-buf/Kconfig; then
				fragments+=("$BENCH/config/core-$core.config")
			elif [ "$core" = rust ]; then
				continue
			fi
			what="bisect: $core core at $(git -C "$TREE" log -1 --format=%s "$rev")"
			want=$(key "$(git -C "$TREE" rev-parse "$rev^{tree}")" "$core" "$(cat "${fragments[@]}")" \
				"$compilers")
			if stored bisect "$want" >/dev/null; then
				say "$what: builds, done already"
				old=$((old + 1))
				continue
			fi
			say "$what"
			git -C "$TREE" checkout -q -f --detach "$rev"
			if [ ${#fragments[@]} = 3 ]; then
				build "$core" debug >/dev/null
			else
				configure "$CACHE/build/arm64-debug" "${fragments[@]}"
				logged "$CACHE/log/bisect.log" kmake "$CACHE/build/arm64-debug" Image modules ||
					die "this commit does not build" "the log is $CACHE/log/bisect.log"
			fi
			echo builds | store bisect "$want"
		done
	done
	git -C "$TREE" checkout -q -f --detach "$REV"
	say "bisect: every patch builds; $old builds were done already"
}

verb_clean() {
	local mine=(build images "done" gallery fuzz fuzz.key fuzz-calls coverage log programs programs.key results)
	mine+=(rustdoc demo scratch patches.new)
	if [ -n "$1" ]; then
		[ ! -e "$CACHE/edit.ready" ] || die "$CACHE/edit has an edit that is not imported" \
			"finish with: run series import"
		! grep -q " $CACHE/toolchain" /proc/self/mounts ||
			die "something is mounted in $CACHE/toolchain" "unmount it first"
		mine+=(toolchain toolchain.key std-arm64 std-arm64.key apt-arm64 rootfs rootfs.key linux linux.key download apt ccache edit)
		mine+=(sparse-paths series-files series-files.new rust-files signed bisect.config)
		# What a step took is worth knowing when its result is gone, so these stay without --all.
		mine+=(times)
		rm -rf "${CACHE:?}"/tree-*
	fi
	rm -rf --one-file-system "${mine[@]/#/${CACHE:?}/}" "${CACHE:?}"/work-* "${CACHE:?}"/*.tmp
	say "clean: $CACHE"
}

# verb_kunit CORE ARCH: print the results, and TAP into $CACHE/results/kunit-ARCH-CORE.
verb_kunit() {
	get_toolchain
	series_tree
	run_kunit "$1" "$2"
}

# Without PROVE_LOCKING: User Mode Linux unlocks what lockdep does not know of while it starts, which
# turns lockdep off with a warning. The arm64 kernel has it.
run_kunit() {
	local core=$1 arch=$2 out=$CACHE/build/kunit-$2 args=()
	[ "$arch" = um ] || args=(--qemu_args "-cpu max,pauth-impdef=on")
	mkdir -p "$out"
	cat "$TREE/drivers/dma-buf/.kunitconfig" - "$BENCH/config/core-$core.config" \
		>"$out/workbench.kunitconfig" <<-'CONFIG'
		CONFIG_RUST=y
		CONFIG_SYNC_FILE=y
		CONFIG_SW_SYNC=y
		CONFIG_DEBUG_FS=y
		CONFIG_DEBUG_KERNEL=y
		CONFIG_MODULES=y
		CONFIG_MODULE_UNLOAD=y
		CONFIG_DEBUG_ATOMIC_SLEEP=y
		CONFIG_DMABUF_DEBUG=y
		CONFIG_KASAN=y
		CONFIG_RUST_KUNIT_TESTS=y
		CONFIG_RUST_DMA_BUF_KUNIT_TEST=y
		CONFIG_RUST_KTHREAD_KUNIT_TEST=y
		CONFIG_DMABUF_CORE_KUNIT_TEST=y
		CONFIG_RUST_KERNEL_DOCTESTS=y
	CONFIG
	# shellcheck disable=SC2086
	(cd "$TREE" && in_tools nice -n 19 ./tools/testing/kunit/kunit.py run --arch="$arch" \
		--kunitconfig "$out/workbench.kunitconfig" --build_dir "$out" --timeout "${KUNIT_TIMEOUT:-300}" \
		--make_options LLVM=1 "${args[@]}" --raw_output=kunit ${KUNIT_GLOB:+"$KUNIT_GLOB"})
}

verb_demo() {
	local core=$1 out=${2:-$CACHE/demo} frame
	get_toolchain
	series_tree
	build "$core" debug
	build_programs
	get_rootfs
	prepare_work "$core" debug
	echo '. /bench/demo.sh' >"$WORK/job"
	say "demo: booting"
	# The checks of the DMA API, which "test" runs with, would be most of what sharing costs.
	boot_guest "$CACHE/log/demo.log" 600 kunit.enable=0 dma_debug=off ||
		die "the guest did not end the demo" \
		"the console is in $CACHE/log/demo.log"
	cat "$WORK/out/demo.txt"
	[ "$(cat "$WORK/out/demo.rc")" = 0 ] || die "the demo failed" \
		"the console is in $CACHE/log/demo.log"
	[ -z "$(splats "$CACHE/log/demo.log")" ] ||
		{ splats "$CACHE/log/demo.log" >&2; die "the console shows trouble" "it is in $CACHE/log/demo.log"; }
	mkdir -p "$out"
	out=$(cd "$out" && pwd)
	for frame in "$WORK"/out/*.ppm; do
		in_tools python3 "$BENCH/lib/png.py" "$frame" "$WORK/$(basename "$frame" .ppm).png"
		cp "$WORK/$(basename "$frame" .ppm).png" "$out/"
		echo "frame: $out/$(basename "$frame" .ppm).png"
	done
	say "demo: done"
}

# A suite's results as "suite: N passed, ..." with its failures and skips.
tell() {
	local core=$1 results=$2 suite f p s
	for suite in "$results"/*; do
		[ -e "$suite" ] || continue
		p=$(grep -c '^pass' "$suite" || true)
		f=$(grep -c '^fail' "$suite" || true)
		s=$(grep -c '^skip' "$suite" || true)
		PASSED=$((PASSED + p)) FAILED=$((FAILED + f)) SKIPPED=$((SKIPPED + s))
		printf '%-6s %-14s %3d passed, %d failed, %d skipped\n' "$core" "$(basename "$suite")" \
			"$p" "$f" "$s"
		awk -F '\t' '
			$1 == "fail" { print "           FAILED: " $2 }
			$1 == "skip" { print "           skipped: " $2 ": " ($3 == "" ? "no reason given" : $3) }
		' "$suite"
	done
}

# attempt RESULTS NAME COMMAND...: a command that may end the run by die; then it counts as a failure of
# suite NAME, and the run goes on. Variables that it sets are lost.
attempt() {
	local results=$1 name=$2 rc
	shift 2
	mkdir -p "$results"
	set +e
	(
		set -e
		"$@"
	)
	rc=$?
	set -e
	[ $rc = 0 ] || printf 'fail\t(ended early, with %s)\n' "$rc" >>"$results/$name"
}

# tap_suite RESULTS NAME COMMAND...: a suite that runs here and prints TAP.
tap_suite() {
	local results=$1 name=$2 tap=$CACHE/log/$2.tap
	shift 2
	say "test: $name"
	attempt "$results" "$name" "$@" >"$tap"
	read_tap "$tap" >>"$results/$name"
	! grep -q '^fail' "$results/$name" || grep '^# ' "$tap" >&2 || true
}

# prepare_guest CORE: all that the guest with the suites wants. guest_suites boots it.
prepare_guest() {
	build "$1" debug
	build_programs
	build_fuzz
	get_rootfs
	prepare_work "$1" debug
	echo '. /bench/tests.sh' >"$WORK/job"
}

guest_suites() {
	local core=$1 results=$CACHE/results/$1 console=$CACHE/log/console-$1.log
	IMAGE=$CACHE/images/$core-debug
	WORK=$CACHE/work-$core-debug
	say "test: booting, $core core"
	if ! timed "guest-$core" boot_guest "$console" 2400; then
		printf 'fail\tthe guest ran to its end\n' >"$results/boot"
	fi
	read_suites "$WORK/out" "$results"
	splats "$console" | sort -u | sed 's/^/fail\t/' >"$results/console"
	[ -s "$results/console" ] || printf 'pass\tno splat\n' >"$results/console"
	known_failures "$results"
	cp -r "$WORK/out" "$CACHE/log/suites-$core"
}

compile_suite() {
	build rust debug
	timed compile compile_checks
}

kunit_um() {
	local core=$1 results=$CACHE/results/$1 out=$CACHE/build/kunit-um
	rm -f "$out/test.log"
	run_kunit "$core" um
	[ -z "$(splats "$out/test.log")" ] || { splats "$out/test.log" | sed 's/^/# /'; return 1; }
}

# The results of a core as lines "suite<tab>status<tab>test".
flat_results() {
	local suite
	for suite in "$1"/*; do
		[ ! -e "$suite" ] || cut -f 1,2 "$suite" | sed "s/^/$(basename "$suite")\t/"
	done
}

# compare_fuzz C RUST RESULTS: whether the fuzzer saw the same on both cores.
compare_fuzz() {
	[ -e "$1" ] || [ -e "$2" ] || return 0
	mkdir -p "$3"
	if ! [ -e "$1" ] || ! [ -e "$2" ]; then
		printf 'fail\tone of the cores has no results of random calls\n' >"$3/fuzz"
	elif diff "$1" "$2" >"$CACHE/log/fuzz.diff"; then
		printf 'pass\tthe same results for %s random calls\n' \
			"$(tail -n 1 "$1" | cut -d ' ' -f 1)" >"$3/fuzz"
	else
		printf 'fail\tthe results of random calls differ: see %s\n' "$CACHE/log/fuzz.diff" >"$3/fuzz"
	fi
}

# The seconds that a whole run of "test" may take.
BUDGET=3600

# planned WHAT NAME [COMMAND...]: a line of the plan: a step, and what it took. The command would do it.
planned() {
	local line="never measured"
	[ ! -s "$CACHE/times/$2" ] || line="last $(clock "$(cat "$CACHE/times/$2")")"
	[ $# -lt 3 ] || ! found "${@:3}" || line="built already, $line"
	say "$(printf 'plan: %-20s %s' "$1" "$line")"
}

# plan: what verb_test is about to do, in its order.
plan() {
	local core name
	[ -e "$CACHE/toolchain.key" ] || host_toolchain_ok >/dev/null || planned "fetch toolchain" toolchain
	[ -n "$KERNEL" ] || found get_source || planned "fetch Linux" linux
	! wanted series || planned series series
	for core in "${cores[@]}"; do
		case $only-$core in
		-* | guest-* | compile-rust)
			planned "kernel $core debug" "images-$core-debug" build "$core" debug ;;
		esac
		! wanted guest || planned "guest $core" "guest-$core"
		! wanted kunit || planned "kunit-um $core" "kunit-um-$core"
		[ "$core" != rust ] || ! wanted compile || {
			planned compile compile
			planned gallery gallery
		}
	done
	! wanted matrix || for name in $(matrix_names); do
		planned "matrix $name" "matrix-$name" matrix_stored "$name"
	done
	if [ -s "$CACHE/times/test" ]; then
		say "plan: the last whole run took $(clock "$(cat "$CACHE/times/test")")" \
			"of the $(clock $BUDGET) that a run may take"
	else
		say "plan: no whole run was measured yet; it may take $(clock $BUDGET)"
	fi
}

verb_test() {
	local core=$1 only=$2 whole=$1$2 told='' cores=(rust c) results=$CACHE/results
	[ -z "$core" ] || cores=("$core")
	rm -rf "${results:?}" "$CACHE"/log/suites-*
	mkdir -p "$results"

	wanted() { [ -z "$only" ] || [ "$only" = "$1" ]; }
	# Only with the tree can it be told what is built; but where nothing is, the plan comes before all else.
	[ -n "$KERNEL" ] || found get_source || { plan; told=y; }
	get_toolchain
	series_tree
	[ -n "$told" ] || plan

	! wanted series || tap_suite "$results/both" series timed series series_check
	# What else there is to build and to check is done beside a guest, which leaves most of the second
	# processor idle.
	for core in "${cores[@]}"; do
		if wanted guest; then
			attempt "$results/$core" guest prepare_guest "$core"
			wait
			[ -e "$results/$core/guest" ] || attempt "$results/$core" guest guest_suites "$core" &
		fi
		! wanted kunit || tap_suite "$results/$core" kunit-um timed "kunit-um-$core" kunit_um "$core"
		[ "$core" != rust ] || ! wanted compile || {
			tap_suite "$results/both" compile compile_suite
			tap_suite "$results/both" gallery timed gallery gallery_checks
		}
	done
	! wanted matrix || tap_suite "$results/both" matrix matrix_suite $(matrix_names)
	wait
	for core in "${cores[@]}"; do
		! wanted guest || [ -e "$results/$core/console" ] || [ -e "$results/$core/guest" ] ||
			printf 'fail\t(no results of this guest)\n' >"$results/$core/guest"
	done

	[ ${#cores[@]} = 1 ] || compare_fuzz "$CACHE"/log/suites-{c,rust}/fuzz.calls "$results/both"

	PASSED=0 FAILED=0 SKIPPED=0
	echo
	for core in both "${cores[@]}"; do
		tell "$core" "$results/$core"
	done
	if [ -d "$results/c" ] && [ -d "$results/rust" ]; then
		flat_results "$results/c" >"$results/c.txt"
		flat_results "$results/rust" >"$results/rust.txt"
		echo
		if diff -U0 "$results/c.txt" "$results/rust.txt" >"$results/differences"; then
			echo "The cores do not differ."
		else
			echo "The cores differ (- C, + Rust):"
			grep -E '^[-+][^-+]' "$results/differences"
		fi
	fi
	echo "Logs: $CACHE/log"
	echo "$PASSED passed, $FAILED failed, $SKIPPED skipped"
	say "test: this run took $(clock $((SECONDS - START))) of the $(clock $BUDGET) that a run may take"
	[ $((SECONDS - START)) -le $BUDGET ] || say "warning: that is more than a run may take"
	# One that failed may have left much out.
	[ -n "$whole" ] || [ "$FAILED" != 0 ] || took test "$START"
	[ "$FAILED" = 0 ] && [ "$PASSED" -gt 0 ]
}
