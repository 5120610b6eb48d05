# SPDX-License-Identifier: GPL-2.0
# What takes longer than "test": stress, fuzz, mutate, coverage.

# boot_job CORE LOG SECONDS COMMAND [KERNEL-ARGUMENT...]: boot IMAGE, run a command there, and fail
# if it did or if the console shows trouble. What it leaves in /bench/out is in $WORK/out.
boot_job() {
	local log=$2 limit=$3 command=$4
	build_programs
	build_fuzz
	get_rootfs
	prepare_work "$1" debug
	printf '%s\n' "$command" >"$WORK/job"
	shift 4
	boot_guest "$log" "$limit" "$@" || return 1
	[ -z "$(splats "$log")" ] || {
		splats "$log" | sort | uniq -c >&2
		say "the console shows trouble: $log"
		return 1
	}
}

# verb_stress CORE MINUTES SANITIZER
verb_stress() {
	local core=$1 minutes=$2 config=debug+$3 log
	[ "$3" != none ] || config=debug
	log=$CACHE/log/stress-$core-$3.log
	get_toolchain
	series_tree
	build "$core" "$config"
	say "stress: $minutes minutes, $core core, $config"
	boot_job "$core" "$log" $((minutes * 60 + 1200)) ". /bench/long.sh stress $((minutes * 60))" \
		kunit.enable=0 || die "the stress did not end well" "the console is $log"
	cat "$WORK/out/stress.log"
	[ "$(cat "$WORK/out/stress.rc")" = 0 ] || die "the stress program found something" \
		"its output is above, the console is $log"
	[ "$3" != kcsan ] || {
		races "$log" others | sort | uniq -c | sed 's/BUG: KCSAN: /not of dma-buf: /'
		[ "$core" = c ] || say "stress: KCSAN sees what C does, such as fences and heaps, not the core in Rust"
	}
	say "stress: no splat, no leak; the console is $log"
}

# verb_fuzz CORES SEED CALLS
verb_fuzz() {
	local seed=$2 calls=$3 core log
	get_toolchain
	series_tree
	mkdir -p "$CACHE/fuzz-calls"
	for core in $1; do
		log=$CACHE/log/fuzz-$core.log
		build "$core" debug
		say "fuzz: $calls calls, seed $seed, $core core"
		# udmabuf, the heaps and videobuf2 break rules of the DMA API, see dmabuf_defects.c; and
		# its checks take eight mappings of a page for a leak.
		boot_job "$core" "$log" $((calls / 50 + 1200)) ". /bench/long.sh fuzz $seed $calls" \
			kunit.enable=0 dma_debug=off || die "the fuzzing did not end well" "the console is $log"
		[ "$(cat "$WORK/out/fuzz.rc")" = 0 ] || { tail -n 20 "$WORK/out/fuzz.log" >&2
			die "the fuzzer found something" "its output is $WORK/out/fuzz.log"; }
		tail -n 60 "$WORK/out/fuzz.log"
		cp "$WORK/out/fuzz.calls" "$CACHE/fuzz-calls/$seed-$core"
	done
	[ "$1" = "rust c" ] || return 0
	cmp "$CACHE/fuzz-calls/$seed-rust" "$CACHE/fuzz-calls/$seed-c" >&2 || {
		{ diff "$CACHE/fuzz-calls/$seed-c" "$CACHE/fuzz-calls/$seed-rust" || true; } | head -n 20 >&2
		die "the cores differ for seed $seed (above: < C, > Rust)" \
			"the calls are in $CACHE/fuzz-calls/$seed-{rust,c}"
	}
	say "fuzz: the cores do not differ for seed $seed"
}

# verb_mutate [NUMBER|FIRST-[LAST]]...: each fault of "mutants" into the Rust core, to be found by KUnit
# on User Mode Linux, else by KUnit and the kselftests on arm64.
verb_mutate() {
	local list=$BENCH/mutants results=$CACHE/results/mutate rust range last caught total
	get_toolchain
	series_tree
	rust=$TREE/drivers/dma-buf/rust
	python3 "$BENCH/lib/mutants.py" "$list" check "$rust" || die "a mutant does not fit the core" \
		"mend $list"
	rm -rf "${results:?}"
	mkdir -p "$results"
	python3 "$BENCH/lib/mutants.py" "$list" list >"$results/all"
	[ $# -gt 0 ] || set -- 1-
	for range in "$@"; do
		# "7" is one, "7-9" are three, "7-" are the rest.
		last=${range#*-}
		awk -F '\t' -v first="${range%-*}" -v last="${last:-$(wc -l <"$results/all")}" \
			'$1 >= first && $1 <= last' "$results/all"
	done >"$results/list"
	total=$(wc -l <"$results/list")
	[ "$total" -gt 0 ] || die "there are no mutants $*"
	trap 'stop_all; git -C "$TREE" checkout -q -- drivers/dma-buf/rust' EXIT

	say "mutate: without a fault"
	in_kunit "$results/none"
	[ $VERDICT = survived ] || die "KUnit fails without any fault" "see $results/none.um.log"
	try_mutants "$results/list" "$results/um" in_kunit
	: >"$results/arm64"
	if [ -s "$results/um" ]; then
		say "mutate: $(wc -l <"$results/um") faults are left for arm64; first without one"
		build rust debug
		# Another core may have been configured there since this one was built.
		configure "$CACHE/build/arm64-debug" "$BENCH"/config/{arm64,debug,core-rust}.config
		build_programs
		get_rootfs
		in_guest "$results/none"
		[ $VERDICT = survived ] || die "the tests fail without any fault" "see $results/none.*"
		try_mutants "$results/um" "$results/arm64" in_guest
	fi
	sed 's/^[0-9]*\t/SURVIVED: /' "$results/arm64"
	caught=$((total - $(wc -l <"$results/arm64")))
	echo "$caught of $total faults were caught ($((caught * 100 / total)) %)"
	[ $((caught * 100)) -ge $((total * 95)) ] ||
		die "less than 95 % were caught" "the survivors are above"
}

# try_mutants LIST SURVIVORS TEST: put each fault of LIST into the core, and those that TEST does not
# find into SURVIVORS.
try_mutants() {
	local i what began
	: >"$2"
	while IFS=$'\t' read -r i what <&4; do
		began=$SECONDS
		git -C "$TREE" checkout -q -- drivers/dma-buf/rust
		python3 "$BENCH/lib/mutants.py" "$BENCH/mutants" apply "$i" "$TREE/drivers/dma-buf/rust"
		"$3" "$CACHE/results/mutate/$i"
		git -C "$TREE" checkout -q -- drivers/dma-buf/rust
		case $VERDICT in
		broken) die "this fault shows nothing, for its kernel does not build or start: $i $what" \
			"see $CACHE/results/mutate/$i.*" ;;
		survived) printf '%s\t%s\n' "$i" "$what" >>"$2" ;;
		esac
		say "$i $VERDICT ${3/_/ } after $((SECONDS - began)) s: $what"
	done 4<"$1"
}

# These set VERDICT: caught, survived, or broken if the test says nothing about the fault.

in_kunit() {
	local log=$CACHE/build/kunit-um/test.log
	rm -f "$log"
	VERDICT=broken
	# Whether it failed is in its log.
	KUNIT_GLOB="dma_buf_core*" KUNIT_TIMEOUT=60 run_kunit rust um >"$1.um.log" 2>&1 </dev/null || true
	[ -e "$log" ] || return 0
	cp "$log" "$1.um.console"
	read_tap "$log" >"$1.um"
	[ -z "$(splats "$log")" ] || VERDICT=caught
	! grep -q 'no plan' "$1.um" || return 0
	! grep -q '^fail' "$1.um" || VERDICT=caught
	[ $VERDICT = caught ] || VERDICT=survived
}

# A kernel that does not come to its end, and does not say why, gets a second chance: it may be the
# machine's fault.
in_guest() {
	local out=$CACHE/build/arm64-debug results=$1.suites ended=n try
	VERDICT=broken
	kmake "$out" Image >"$1.build.log" 2>&1 </dev/null || return 0
	IMAGE=$CACHE/images/mutant
	rm -rf "$IMAGE"
	mkdir -p "$IMAGE"
	ln -s ../rust-debug/lib "$IMAGE/lib"
	cp "$out/arch/arm64/boot/Image" "$IMAGE/"
	for try in 1 2; do
		prepare_work mutant debug
		printf "until_failure=y only='%s' . /bench/tests.sh\n" "$MUTANT_SUITES" >"$WORK/job"
		if boot_guest "$1.console" 1800 "kunit.filter_glob=dma_buf_core*" 2>"$1.trouble.$try"; then
			ended=y
			break
		fi
		[ -z "$(splats "$1.console")" ] || break
	done
	grep -qa 'Linux version' "$1.console" || return 0
	VERDICT=caught
	[ $ended = y ] && [ -z "$(splats "$1.console")" ] || return 0
	rm -rf "$results"
	read -ra GUEST_SUITES <<<"$MUTANT_SUITES"
	read_suites "$WORK/out" "$results"
	known_failures "$results" 2>/dev/null
	cat "$results"/* >"$1.results"
	grep -q '^fail' "$1.results" || VERDICT=survived
}

# The suites that are about the core alone.
CORE_SUITES="kunit dma-buf dma-buf-fence dma-buf-text dma-buf-user rust-dma-buf faults"

# Without what is the same for another user, and with leaks. The first that fails is the last.
MUTANT_SUITES="kunit dma-buf-fence dma-buf-text dma-buf rust-dma-buf faults kmemleak"

# verb_coverage: which lines of dma-buf.c the suites run.
verb_coverage() {
	local out=$CACHE/build/arm64-coverage folder=$CACHE/coverage fragments percent
	fragments=("$BENCH"/config/{arm64,debug,coverage,core-c}.config)
	get_toolchain
	series_tree
	say "coverage: building the core in C with counters (20 minutes when there is nothing yet)"
	need_space 4
	configure "$out" "${fragments[@]}"
	logged "$CACHE/log/build-coverage.log" kmake "$out" GCOV_PROFILE_dma-buf.o=y Image modules ||
		die "the kernel does not build" "the log is $CACHE/log/build-coverage.log"
	IMAGE=$CACHE/images/coverage
	rm -rf "$IMAGE"
	mkdir -p "$IMAGE"
	cp "$out/arch/arm64/boot/Image" "$IMAGE/"
	logged "$CACHE/log/modules-coverage.log" kmake "$out" INSTALL_MOD_PATH="$IMAGE" \
		INSTALL_MOD_STRIP=1 modules_install || die "the modules do not install"
	boot_job coverage "$CACHE/log/coverage-console.log" 1800 \
		"only='kunit $CORE_SUITES stress defects' . /bench/tests.sh; . /bench/long.sh coverage" ||
		die "the suites did not end well" "the console is $CACHE/log/coverage-console.log"
	rm -rf "$folder"
	mkdir -p "$folder"
	cp "$out/drivers/dma-buf/dma-buf.gcno" "$WORK/out/dma-buf.gcda" "$folder/"
	(cd "$folder" && in_tools llvm-cov gcov -b -o . dma-buf.c) >"$folder/summary" ||
		die "llvm-cov cannot read the counters" "they are in $folder"
	percent=$(grep -A1 "^File.*/dma-buf\.c'" "$folder/summary" |
		sed -n 's/^Lines executed:\([0-9.]*\)% of.*/\1/p' | head -n 1)
	[ -n "$percent" ] || die "there are no figures for dma-buf.c" "see $folder/summary"
	grep -A4 "^File.*/dma-buf\.c'" "$folder/summary"
	echo "Lines that did not run:"
	sed -n 's/^ *#####: *\([0-9]*\):[ \t]*\(.*\)/\1\t\2/p' "$folder/dma-buf.c.gcov" |
		awk -F '\t' '
			FNR == NR {
				why[$1 FS $2] = $3
				next
			}
			{
				sub(/[ \t\r]+$/, "", $2)
				reason = ($1 FS $2) in why ? why[$1 FS $2] : "NOBODY SAYS WHY"
				printf "  %5d  %-50s  %s\n", $1, substr($2, 1, 50), reason
			}' "$BENCH/uncovered" - | tee "$folder/missed"
	! grep -q 'NOBODY SAYS WHY$' "$folder/missed" || die "lines did not run and nobody says why" \
		"test them, or name them in $BENCH/uncovered"
	[ "${percent%.*}" -ge 95 ] || die "$percent % of the lines of dma-buf.c ran, which is less than 95 %"
	say "coverage: $percent % of the lines; the annotated source is $folder/dma-buf.c.gcov"
}
