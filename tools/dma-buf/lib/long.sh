# SPDX-License-Identifier: GPL-2.0
# What takes longer than "test": stress, fuzz, mutate, coverage.

# boot_job CORE LOG SECONDS COMMAND [KERNEL-ARGUMENT...]: boot IMAGE, run a command there, and fail
# if it did or if the console shows trouble. What it leaves in /bench/out is in $WORK/out.
boot_job() {
	local log=$2 limit=$3 command=$4
	build_programs
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
	say "stress: no splat, no leak; the console is $log"
}

# verb_fuzz CORES SEED CALLS
verb_fuzz() {
	local seed=$2 calls=$3 core log
	get_toolchain
	series_tree
	mkdir -p "$CACHE/fuzz"
	for core in $1; do
		log=$CACHE/log/fuzz-$core.log
		build "$core" debug
		say "fuzz: $calls calls, seed $seed, $core core"
		boot_job "$core" "$log" $((calls / 50 + 1200)) ". /bench/long.sh fuzz $seed $calls" \
			kunit.enable=0 || die "the fuzzing did not end well" "the console is $log"
		[ "$(cat "$WORK/out/fuzz.rc")" = 0 ] || { tail -n 20 "$WORK/out/fuzz.log" >&2
			die "the fuzzer found something" "its output is $WORK/out/fuzz.log"; }
		tail -n 60 "$WORK/out/fuzz.log"
		cp "$WORK/out/fuzz.calls" "$CACHE/fuzz/$seed-$core"
	done
	[ "$1" = "rust c" ] || return 0
	cmp "$CACHE/fuzz/$seed-rust" "$CACHE/fuzz/$seed-c" >&2 || {
		diff "$CACHE/fuzz/$seed-c" "$CACHE/fuzz/$seed-rust" | head -n 20 >&2
		die "the cores differ for seed $seed (above: < C, > Rust)" \
			"the calls are in $CACHE/fuzz/$seed-{rust,c}"
	}
	say "fuzz: the cores do not differ for seed $seed"
}

# verb_mutate [FIRST[-LAST]]: each fault of "mutants" into the Rust core, to be found by KUnit on User
# Mode Linux, else by the kselftests on arm64.
verb_mutate() {
	local range=${1:-1-} list=$BENCH/mutants core i what first last caught=0 survived=() log=$CACHE/log/mutate
	local results=$CACHE/results/mutate
	get_toolchain
	series_tree
	core=$TREE/drivers/dma-buf/rust
	python3 "$BENCH/lib/mutants.py" "$list" check "$core" || die "a mutant does not fit the core" \
		"mend $list"
	# "7" is one, "7-9" are three, "7-" are the rest.
	first=${range%-*} last=${range#*-}
	[ -n "$last" ] || last=$(python3 "$BENCH/lib/mutants.py" "$list" list | wc -l)
	rm -rf "$log" "$results"
	mkdir -p "$log" "$results"
	say "mutate: without a fault first"
	KUNIT_GLOB='dma_buf_core*' run_kunit rust um >"$log/none.log" 2>&1 ||
		die "the tests fail without any fault" "see $log/none.log"
	while IFS=$'\t' read -r i what; do
		[ "$i" -ge "$first" ] && [ "$i" -le "$last" ] || continue
		git -C "$TREE" checkout -q -- drivers/dma-buf/rust
		python3 "$BENCH/lib/mutants.py" "$list" apply "$i" "$core"
		if mutant_dies "$i" "$log/$i"; then
			caught=$((caught + 1))
			printf 'caught by %s\t%s\n' "$BY" "$what"
		elif [ "$BY" = compiler ]; then
			die "this fault does not compile, so it shows nothing: $what" "see $log/$i.um.log"
		else
			survived+=("$what")
			printf 'SURVIVED\t%s\n' "$what"
		fi
	done < <(python3 "$BENCH/lib/mutants.py" "$list" list) | tee "$results/all"
	git -C "$TREE" checkout -q -- drivers/dma-buf/rust
	caught=$(grep -c '^caught' "$results/all" || true)
	i=$(wc -l <"$results/all")
	[ "$i" -gt 0 ] || die "no mutant was tried"
	echo "$caught of $i faults were caught ($((caught * 100 / i)) %)"
	[ $((caught * 100)) -ge $((i * 95)) ] || die "less than 95 % were caught" "the survivors are above"
}

# mutant_dies NUMBER LOG: whether the tests find what is wrong. Sets BY.
mutant_dies() {
	local log=$2 out=$CACHE/build/arm64-debug results=$CACHE/results/mutate/suites
	BY=KUnit
	if ! KUNIT_GLOB='dma_buf_core*' run_kunit rust um >"$log.um.log" 2>&1; then
		! grep -qE '^(error|.*: error)[:[]' "$log.um.log" || { BY=compiler; return 1; }
		return 0
	fi
	[ -z "$(splats "$CACHE/build/kunit-um/test.log")" ] || return 0
	BY=kselftest
	configure "$out" "$BENCH"/config/{arm64,debug,core-rust}.config
	kmake "$out" Image >"$log.build.log" 2>&1 || { BY=compiler; return 1; }
	IMAGE=$CACHE/images/mutant
	mkdir -p "$IMAGE"
	ln -sfn ../rust-debug/lib "$IMAGE/lib"
	cp "$out/arch/arm64/boot/Image" "$IMAGE/"
	SUITES="$CORE_SUITES kmemleak" boot_job mutant "$log.console" 900 \
		"only='$CORE_SUITES kmemleak' . /bench/tests.sh" kunit.enable=0 2>"$log.trouble" || return 0
	rm -rf "$results"
	GUEST_SUITES=($CORE_SUITES kmemleak) read_suites "$WORK/out" "$results"
	grep -h '^fail' "$results"/* >"$log.failed" || return 1
}

# The suites that are about the core alone.
CORE_SUITES="dma-buf dma-buf-fence dma-buf-text dma-buf-user rust-dma-buf faults"

# verb_coverage: which lines of dma-buf.c the suites run.
verb_coverage() {
	local out=$CACHE/build/arm64-coverage folder=$CACHE/coverage fragments percent bad=()
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
	sed -n 's/^ *#####: *\([0-9]*\):\(.*\)/\1\t\2/p' "$folder/dma-buf.c.gcov" | while IFS=$'\t' read -r n line; do
		line=$(sed 's/^[ \t]*//; s/[ \t]*$//' <<<"$line")
		printf '  %5s  %-60s %s\n' "$n" "$line" \
			"$(L=$line awk -F '\t' '$1 == ENVIRON["L"] { print $2; exit }' "$BENCH/uncovered")"
	done | tee "$folder/missed"
	mapfile -t bad < <(grep -E '^ +[0-9]+  .* $' "$folder/missed" || true)
	[ ${#bad[@]} = 0 ] || die "${#bad[@]} lines did not run and nobody says why" \
		"test them, or name them in $BENCH/uncovered"
	[ "${percent%.*}" -ge 95 ] || die "$percent % of the lines of dma-buf.c ran, which is less than 95 %"
	say "coverage: $percent % of the lines; the annotated source is $folder/dma-buf.c.gcov"
}
