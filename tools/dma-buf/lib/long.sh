# SPDX-License-Identifier: GPL-2.0
# What takes longer than "test": stress, fuzz, mutate, coverage.

# boot_job CORE LOG SECONDS COMMAND [KERNEL-ARGUMENT...]: boot IMAGE, run a command there, and fail
# if it did or if the console shows trouble. What it leaves in /bench/out is in $WORK/out. Its programs
# and its root are there already.
boot_job() {
	local log=$2 limit=$3 command=$4
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

# What a guest depends on, but for its kernel and its job: what runs in it, boots it, and reads its logs.
guest_text() {
	cat "$CACHE"/{programs,rootfs}.key "$BENCH"/guest/{long,tests}.sh "$BENCH/lib/guest.sh" \
		"$BENCH/known-failures"
	in_tools qemu-system-aarch64 --version
}

# guest_key WORD...: the key of what a job does in a guest with IMAGE; the words are the job.
guest_key() {
	key "$(cd "$IMAGE" && find . -type f -exec sha256sum {} + | sort)" "$(guest_text)" "$@"
}

# verb_stress CORE MINUTES SANITIZER: in rounds of ten minutes, each with a boot of its own.
verb_stress() {
	local core=$1 left=$2 config=debug+$3 log want file files=() job round=0 old=0 minutes already
	[ "$3" != none ] || config=debug
	get_toolchain
	series_tree
	build "$core" "$config"
	build_programs
	get_rootfs
	say "stress: $left minutes, $core core, $config"
	while [ "$left" -gt 0 ]; do
		round=$((round + 1)) minutes=$((left < 10 ? left : 10)) already=
		left=$((left - minutes))
		log=$CACHE/log/stress-$core-$3-$round.log
		job=(". /bench/long.sh stress $((minutes * 60))" kunit.enable=0)
		want=$(guest_key "$core" "$3" "$round" "${job[@]}")
		if file=$(stored stress "$want"); then
			old=$((old + 1)) already=" done already:"
		else
			boot_job "$core" "$log" $((minutes * 60 + 1200)) "${job[@]}" ||
				die "the stress did not end well" "the console is $log"
			[ "$(cat "$WORK/out/stress.rc")" = 0 ] || { cat "$WORK/out/stress.log"
				die "the stress program found something" "its output is above, the console is $log"; }
			[ "$3" != kcsan ] || races "$log" others >>"$WORK/out/stress.log"
			store stress "$want" <"$WORK/out/stress.log"
			file=$CACHE/done/stress/$want
		fi
		files+=("$file")
		say "stress: round $round, $minutes minutes:$already" \
			"$(awk '/^# all / { print $3 " operations, " $4 " per s" }' "$file")"
	done
	stress_sum "${files[@]}"
	[ "$3 $core" != "kcsan rust" ] ||
		say "stress: KCSAN sees what C does, such as fences and heaps, not the core in Rust"
	say "stress: $round rounds, $old of them done already; no splat, no leak;" \
		"the consoles are $CACHE/log/stress-$core-$3-*.log"
}

# stress_sum LOG...: what several rounds of the stress program print, as that of one.
stress_sum() {
	awk '
		/^# KCSAN [a-z_]+: [0-9]+$/ {
			if (!($3 in watched)) counters[++num_counters] = $3
			watched[$3] = $3 == "enabled:" ? $4 : watched[$3] + $4
			next
		}
		sub(/^BUG: KCSAN: /, "not of dma-buf: ") || /^(not )?ok / {
			if (!count[$0]++) lines[++num_lines] = $0
			next
		}
		/ not on this machine$/ { if (!absent[$0]++) names[++num_names] = $0 }
		match($0, / +[0-9]+ +[0-9]+\.[0-9] +[0-9]+/) {
			name = substr($0, 1, RSTART - 1)
			why = substr($0, RSTART + RLENGTH)
			split(substr($0, RSTART), figures, " ")
			if (!(name in made)) names[++num_names] = name
			made[name] += figures[1]
			failed[name] += figures[3]
			if (why ~ /[^ ]/) error[name] = why
			# How long it ran it does not say.
			if (name == "# all" && figures[2]) seconds += figures[1] / figures[2]
		}
		END {
			printf "%-22s %10s %10s %10s  %s\n", "# operation", "done", "per s", "failed", "last error"
			for (i = 1; i <= num_names; i++) {
				name = names[i]
				if (name in made)
					name = sprintf("%-22s %10.0f %10.1f %10.0f%s", name, made[name],
						seconds ? made[name] / seconds : 0, failed[name], error[name])
				print name
			}
			for (i = 1; i <= num_counters; i++) print "# KCSAN", counters[i], watched[counters[i]]
			for (i = 1; i <= num_lines; i++) printf "%7d %s\n", count[lines[i]], lines[i]
		}' "$@"
}

# verb_fuzz CORES SEED CALLS
verb_fuzz() {
	local seed=$2 calls=$3 core log want file files=()
	# udmabuf, the heaps and videobuf2 break rules of the DMA API, see dmabuf_defects.c; and its checks
	# take eight mappings of a page for a leak.
	local job=(". /bench/long.sh fuzz $seed $calls" kunit.enable=0 dma_debug=off)
	get_toolchain
	series_tree
	for core in $1; do
		log=$CACHE/log/fuzz-$core.log
		build "$core" debug
		build_programs
		build_fuzz
		get_rootfs
		want=$(guest_key "$core" "$(cat "$CACHE/fuzz.key")" "${job[@]}")
		if file=$(stored fuzz "$want"); then
			say "fuzz: $calls calls, seed $seed, $core core: done already"
		else
			say "fuzz: $calls calls, seed $seed, $core core"
			boot_job "$core" "$log" $((calls / 50 + 1200)) "${job[@]}" ||
				die "the fuzzing did not end well" "the console is $log"
			[ "$(cat "$WORK/out/fuzz.rc")" = 0 ] || { tail -n 20 "$WORK/out/fuzz.log" >&2
				die "the fuzzer found something" "its output is $WORK/out/fuzz.log"; }
			tail -n 60 "$WORK/out/fuzz.log" | store fuzz "$want.log"
			store fuzz "$want" <"$WORK/out/fuzz.calls"
			file=$CACHE/done/fuzz/$want
		fi
		cat "$file.log"
		files+=("$file")
	done
	[ "$1" = "rust c" ] || return 0
	cmp "${files[@]}" >&2 || {
		{ diff "${files[@]}" || true; } | head -n 20 >&2
		die "the cores differ for seed $seed (above: < Rust, > C)" \
			"the calls are in ${files[*]}; with --again they are made anew"
	}
	say "fuzz: the cores do not differ for seed $seed"
}

# verb_mutate [NUMBER|FIRST-[LAST]]...: each fault of "mutants" into the Rust core, to be found by KUnit
# on User Mode Linux, else by KUnit and the kselftests on arm64.
verb_mutate() {
	local list=$BENCH/mutants results=$CACHE/results/mutate rust range last caught total um arm64 STORED=0
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

	# What the verdicts depend on, but for the fault.
	um=$(key "$(git -C "$TREE" rev-parse 'HEAD^{tree}')" "$(compilers)" "$(declare -f in_kunit run_kunit)" \
		"$(cat "$BENCH/config/core-rust.config" "$BENCH/lib/guest.sh" "$BENCH/known-failures")")
	try none in_kunit "$um" "without a fault"
	[ "$VERDICT" = survived ] || die "KUnit fails without any fault" "see $results/none.um.log"
	try_mutants "$results/list" "$results/um" in_kunit "$um"
	: >"$results/arm64"
	if [ -s "$results/um" ]; then
		say "mutate: $(wc -l <"$results/um") faults are left for arm64; first without one"
		build rust debug
		# Another core may have been configured there since this one was built.
		configure "$CACHE/build/arm64-debug" "$BENCH"/config/{arm64,debug,core-rust}.config
		build_programs
		get_rootfs
		arm64=$(key "$um" "$(guest_text)" "$MUTANT_SUITES $(declare -f in_guest)" \
			"$(cat "$BENCH"/config/{arm64,debug}.config)")
		try none in_guest "$arm64" "without a fault"
		[ "$VERDICT" = survived ] || die "the tests fail without any fault" "see $results/none.*"
		try_mutants "$results/um" "$results/arm64" in_guest "$arm64"
	fi
	awk -F '\t' '{ print "SURVIVED: " $2 $3 }' "$results/arm64"
	caught=$((total - $(wc -l <"$results/arm64")))
	STORED=$((STORED + $(grep -c '(done already)$' "$results/arm64" || true)))
	echo "$caught of $total faults were caught ($((caught * 100 / total)) %);" \
		"the verdicts of $STORED were stored by earlier runs"
	[ $((caught * 100)) -ge $((total * 95)) ] ||
		die "less than 95 % were caught" "the survivors are above"
}

# try_mutants LIST SURVIVORS TEST KEY: try each fault of LIST, and put those that TEST does not find into
# SURVIVORS.
try_mutants() {
	local i what rest
	: >"$2"
	while IFS=$'\t' read -r i what rest <&4; do
		try "$i" "$3" "$4" "$what"
		case $VERDICT in
		broken) die "this fault shows nothing, for its kernel does not build or start: $i $what" \
			"see $CACHE/results/mutate/$i.*" ;;
		survived) printf '%s\t%s\t%s\n' "$i" "$what" "$ALREADY" >>"$2" ;;
		caught) [ -z "$ALREADY" ] || STORED=$((STORED + 1)) ;;
		esac
	done 4<"$1"
}

# try NUMBER|none TEST KEY WHAT: put a fault, or none, into the core, and see what TEST says, unless its
# verdict is stored. Sets VERDICT, and ALREADY to what to say of a stored one.
try() {
	local i=$1 what=$4 text='' want file began=$SECONDS
	[ "$i" = none ] || text=$(python3 "$BENCH/lib/mutants.py" "$BENCH/mutants" show "$i")
	want=$(key "$3" "$text")
	ALREADY=
	if file=$(stored mutate "$want"); then
		VERDICT=$(cut -f 1 "$file")
		ALREADY=" (done already)"
	else
		git -C "$TREE" checkout -q -- drivers/dma-buf/rust
		[ "$i" = none ] ||
			python3 "$BENCH/lib/mutants.py" "$BENCH/mutants" apply "$i" "$TREE/drivers/dma-buf/rust"
		"$2" "$CACHE/results/mutate/$i"
		git -C "$TREE" checkout -q -- drivers/dma-buf/rust
		case $i-$VERDICT in
		none-caught | *-broken) ;;
		*) printf '%s\t%s\n' "$VERDICT" "$what" | store mutate "$want" ;;
		esac
	fi
	say "$i $VERDICT ${2/_/ }${ALREADY:- after $((SECONDS - began)) s}: $what"
}

# These set VERDICT: caught, survived, or broken if the test says nothing about the fault.

in_kunit() {
	local log=$CACHE/build/kunit-um/test.log rc=0
	rm -f "$log"
	VERDICT=broken
	# Whether it failed is in its log; but that of one that was killed looks like a failure.
	KUNIT_GLOB="dma_buf_core*" KUNIT_TIMEOUT=60 run_kunit rust um >"$1.um.log" 2>&1 </dev/null || rc=$?
	[ $rc -lt 128 ] && [ -e "$log" ] || return 0
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
		[ -z "$(splats "$1.console")" ] || { ended=splat; break; }
	done
	grep -qa 'Linux version' "$1.console" || return 0
	# One that was killed says nothing.
	[ $ended != n ] || ! grep -q 'the machine ended (1[2-9][0-9])' "$1.trouble.$try" || return 0
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
	local out=$CACHE/build/arm64-coverage folder=$CACHE/coverage fragments percent want file already=''
	local job=("only='kunit $CORE_SUITES stress defects' . /bench/tests.sh; . /bench/long.sh coverage")
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
	build_programs
	get_rootfs
	want=$(guest_key "$(sha256sum <"$out/drivers/dma-buf/dma-buf.gcno")" "${job[@]}")
	if file=$(stored coverage "$want"); then
		already=" (done already)"
		say "coverage: the guest's run is done already"
	else
		boot_job coverage "$CACHE/log/coverage-console.log" 1800 "${job[@]}" ||
			die "the suites did not end well" "the console is $CACHE/log/coverage-console.log"
		file=$WORK/out/dma-buf.gcda
	fi
	rm -rf "$folder"
	mkdir -p "$folder"
	cp "$out/drivers/dma-buf/dma-buf.gcno" "$folder/"
	cp "$file" "$folder/dma-buf.gcda"
	(cd "$folder" && in_tools llvm-cov gcov -b -o . dma-buf.c) >"$folder/summary" ||
		die "llvm-cov cannot read the counters" "they are in $folder"
	percent=$(grep -A1 "^File.*/dma-buf\.c'" "$folder/summary" |
		sed -n 's/^Lines executed:\([0-9.]*\)% of.*/\1/p' | head -n 1)
	[ -n "$percent" ] || die "there are no figures for dma-buf.c" "see $folder/summary"
	[ -n "$already" ] || store coverage "$want" <"$file"
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
	say "coverage: $percent % of the lines$already; the annotated source is $folder/dma-buf.c.gcov"
}
