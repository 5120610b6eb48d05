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
	races "$log" others | sort | uniq -c | sed 's/BUG: KCSAN: /not of dma-buf: /'
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
		boot_job "$core" "$log" $((calls / 50 + 1200)) ". /bench/long.sh fuzz $seed $calls" \
			kunit.enable=0 || die "the fuzzing did not end well" "the console is $log"
		[ "$(cat "$WORK/out/fuzz.rc")" = 0 ] || { tail -n 20 "$WORK/out/fuzz.log" >&2
			die "the fuzzer found something" "its output is $WORK/out/fuzz.log"; }
		tail -n 60 "$WORK/out/fuzz.log"
		cp "$WORK/out/fuzz.calls" "$CACHE/fuzz-calls/$seed-$core"
	done
	[ "$1" = "rust c" ] || return 0
	cmp "$CACHE/fuzz-calls/$seed-rust" "$CACHE/fuzz-calls/$seed-c" >&2 || {
		diff "$CACHE/fuzz-calls/$seed-c" "$CACHE/fuzz-calls/$seed-rust" | head -n 20 >&2
		die "the cores differ for seed $seed (above: < C, > Rust)" \
			"the calls are in $CACHE/fuzz-calls/$seed-{rust,c}"
	}
	say "fuzz: the cores do not differ for seed $seed"
}

# verb_mutate [FIRST[-LAST]]: each fault of "mutants" into the Rust core, to be found by KUnit on User
# Mode Linux, else by KUnit and the kselftests on arm64.
verb_mutate() {
	local range=${1:-1-} list=$BENCH/mutants rust results=$CACHE/results/mutate i what first last total
	get_toolchain
	series_tree
	rust=$TREE/drivers/dma-buf/rust
	python3 "$BENCH/lib/mutants.py" "$list" check "$rust" || die "a mutant does not fit the core" \
		"mend $list"
	# "7" is one, "7-9" are three, "7-" are the rest.
	first=${range%-*} last=${range#*-}
	[ -n "$last" ] || last=$(python3 "$BENCH/lib/mutants.py" "$list" list | wc -l)
	rm -rf "${results:?}"
	mkdir -p "$results"
	python3 "$BENCH/lib/mutants.py" "$list" list |
		awk -F '\t' -v first="$first" -v last="$last" '$1 >= first && $1 <= last' >"$results/list"
	total=$(wc -l <"$results/list")
	[ "$total" -gt 0 ] || die "there are no mutants $range"

	say "mutate: without a fault"
	! dies_in_kunit "$results/none" || die "KUnit fails without any fault" "see $results/none.um.log"
	: >"$results/um"
	try_mutants "$results/list" "$results/um" dies_in_kunit
	: >"$results/arm64"
	if [ -s "$results/um" ]; then
		say "mutate: $(wc -l <"$results/um") faults are left for arm64; first without one"
		dies_in_guest "$results/none" && die "the tests fail without any fault" \
			"see $results/none.*"
		try_mutants "$results/um" "$results/arm64" dies_in_guest
	fi
	sed 's/^[0-9]*\t/SURVIVED: /' "$results/arm64"
	i=$((total - $(wc -l <"$results/arm64")))
	echo "$i of $total faults were caught ($((i * 100 / total)) %)"
	[ $((i * 100)) -ge $((total * 95)) ] || die "less than 95 % were caught" "the survivors are above"
}

# try_mutants LIST SURVIVORS TEST: put each fault of LIST into the core, and those that TEST does not
# find into SURVIVORS.
try_mutants() {
	local i what rc
	while IFS=$'\t' read -r i what <&4; do
		git -C "$TREE" checkout -q -- drivers/dma-buf/rust
		python3 "$BENCH/lib/mutants.py" "$BENCH/mutants" apply "$i" "$TREE/drivers/dma-buf/rust"
		rc=0
		"$3" "$CACHE/results/mutate/$i" || rc=$?
		git -C "$TREE" checkout -q -- drivers/dma-buf/rust
		case $rc in
		0) say "caught: $what" ;;
		1)
			say "not caught (${3#dies_in_}): $what"
			printf '%s\t%s\n' "$i" "$what" >>"$2"
			;;
		*) die "this fault does not compile, so it shows nothing: $what" \
			"see $CACHE/results/mutate/$i.*" ;;
		esac
	done 4<"$1"
}

# Whether KUnit on User Mode Linux finds what is wrong; 2 if it does not compile.
dies_in_kunit() {
	local log=$CACHE/build/kunit-um/test.log
	rm -f "$log"
	KUNIT_GLOB="dma_buf_core*" KUNIT_TIMEOUT=60 run_kunit rust um >"$1.um.log" 2>&1 </dev/null || true
	! grep -qE '^error(\[|:)' "$1.um.log" || return 2
	[ -e "$log" ] || return 2
	read_tap "$log" >"$1.um"
	grep -q '^fail' "$1.um" || [ -n "$(splats "$log")" ]
}

# The same for KUnit and the kselftests on arm64.
dies_in_guest() {
	local out=$CACHE/build/arm64-debug results=$1.suites
	build rust debug
	kmake "$out" Image >"$1.build.log" 2>&1 </dev/null || return 2
	IMAGE=$CACHE/images/mutant
	mkdir -p "$IMAGE"
	ln -sfn ../rust-debug/lib "$IMAGE/lib"
	cp "$out/arch/arm64/boot/Image" "$IMAGE/"
	boot_job mutant "$1.console" 900 "only='$CORE_SUITES kmemleak' . /bench/tests.sh" \
		"kunit.filter_glob=dma_buf_core*" 2>"$1.trouble" || return 0
	read -ra GUEST_SUITES <<<"$CORE_SUITES kmemleak"
	read_suites "$WORK/out" "$results"
	known_failures "$results" 2>/dev/null
	grep -h '^fail' "$results"/* >"$1.failed"
}

# The suites that are about the core alone.
CORE_SUITES="kunit dma-buf dma-buf-fence dma-buf-text dma-buf-user rust-dma-buf faults"

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
				if (/^[0-9]/) { split($1, r, "-"); first[++n] = r[1]; last[n] = r[2] ? r[2] : r[1]; why[n] = $2 }
				next
			}
			{
				reason = "NOBODY SAYS WHY"
				for (i = 1; i <= n; i++)
					if ($1 >= first[i] && $1 <= last[i]) reason = why[i]
				printf "  %5d  %-50s  %s\n", $1, substr($2, 1, 50), reason
			}' "$BENCH/uncovered" - | tee "$folder/missed"
	! grep -q 'NOBODY SAYS WHY$' "$folder/missed" || die "lines did not run and nobody says why" \
		"test them, or name them in $BENCH/uncovered"
	[ "${percent%.*}" -ge 95 ] || die "$percent % of the lines of dma-buf.c ran, which is less than 95 %"
	say "coverage: $percent % of the lines; the annotated source is $folder/dma-buf.c.gcov"
}
