# SPDX-License-Identifier: GPL-2.0
# Booting in QEMU, and reading what the suites said.

# prepare_work CORE CONFIG: the folder that the guest sees as /work. Sets WORK.
prepare_work() {
	WORK=$CACHE/work-$1-$2
	rm -rf "$WORK"
	mkdir -p "$WORK/out"
	cp -a "$CACHE/programs" "$WORK/programs"
	cp -a "$IMAGE/lib/modules" "$WORK/modules"
	cp "$BENCH"/guest/*.sh "$WORK/"
}

# boot_guest LOG SECONDS [KERNEL-ARGUMENT...]: boot IMAGE with WORK, until its job is done.
boot_guest() {
	local log=$1 limit=$2 rc=0
	shift 2
	qemu "$limit" "$@" </dev/null >"$log" 2>&1 &
	local pid=$! last=$SECONDS began=$SECONDS
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		if [ $((SECONDS - last)) -ge 30 ]; then
			last=$SECONDS
			say "    ... $((SECONDS - began)) s: $(tr -d '\r' <"$log" | grep -a . | tail -n 1 | cut -c1-90)"
		fi
	done
	wait "$pid" || rc=$?
	if ! grep -qa '^guest: job ended with' "$log"; then
		printf '%s\n' "---- end of the console ($log) ----" >&2
		tail -n 40 "$log" | tr -d '\r' >&2
		printf '%s\n' "----" >&2
		if [ $rc = 124 ]; then
			say "guest: no end after $limit s: the machine was stopped"
		else
			say "guest: the machine ended ($rc) before its job did"
		fi
		return 1
	fi
}

qemu() {
	local limit=$1
	shift
	in_tools timeout --foreground "$limit" qemu-system-aarch64 -M virt -cpu max,pauth-impdef=on -smp 2 \
		-m 2G -nographic -no-reboot -nic none -kernel "$IMAGE/Image" \
		-fsdev local,id=root,path="$CACHE/rootfs",security_model=none,readonly=on \
		-device virtio-9p-pci,fsdev=root,mount_tag=/dev/root \
		-fsdev local,id=work,path="$WORK",security_model=none \
		-device virtio-9p-pci,fsdev=work,mount_tag=work \
		-append "console=ttyAMA0 root=/dev/root rootfstype=9p ro panic=-1 oops=panic
rootflags=trans=virtio,version=9p2000.L,msize=524288 init=/usr/sbin/guest-init
sysctl.kernel.hung_task_timeout_secs=60 printk.devkmsg=on $*"
}

# What no console may show.
SPLAT='WARNING: |BUG: |Oops|Kernel panic|Call trace:|DMA-API: .*(error|warning|device driver)'
SPLAT+='|possible (recursive|circular) locking|inconsistent lock state|sleeping function called'
SPLAT+='|blocked for more than|refcount_t: |Unable to handle kernel|INFO: (rcu|trying)|rust_kernel: panicked'

# splats LOG: the lines of a console that show trouble. KUnit announces the WARNs it provokes.
splats() {
	tr -d '\r' <"$1" | grep -aE "$SPLAT" || true
}

# Reading a suite's log: lines "STATUS<tab>TEST", STATUS one of pass, fail, skip.

# TAP, as of kselftest and KUnit: only the innermost results count.
read_tap() {
	tr -d '\r' <"$1" | awk '
		function flush() { if (pending != "") print pending; pending = "" }
		/^[# ]*(not )?ok [0-9]+/ {
			line = $0
			match(line, /^[# ]*/); depth = RLENGTH
			status = line ~ /^[# ]*not ok/ ? "fail" : "pass"
			if (line ~ /# *SKIP/) status = "skip"
			name = line
			sub(/^[# ]*(not )?ok [0-9]+ *(- )?/, "", name)
			sub(/ *# *SKIP.*/, "", name)
			# A result that closes deeper ones is their summary.
			if (!(last > depth && last != "")) print status "\t" prefix name
			last = depth
			next
		}
		/^# [A-Za-z0-9_-]+$/ { prefix = substr($0, 3) "."; last = "" }
	'
}

# v4l2-compliance: "<tab>test NAME: OK". Tests that come again, for each input, are numbered.
read_compliance() {
	tr -d '\r' <"$1" | sed 's/\x1b\[[0-9;]*m//g' | awk '
		/^[ \t]*test .*: (OK|FAIL)/ {
			status = /: FAIL/ ? "fail" : "pass"
			name = $0
			sub(/^[ \t]*test /, "", name)
			sub(/: (OK|FAIL).*/, "", name)
			n = ++seen[name]
			print status "\t" name (n > 1 ? " #" n : "")
		}'
}

# warnings LOG: the number that v4l2-compliance gives at its end.
compliance_warnings() {
	sed -n 's/.*Warnings: \([0-9]*\).*/\1/p' "$1" | tail -n 1
}

# read_suites DIR RESULTS: read every log that tests.sh wrote.
read_suites() {
	local dir=$1 results=$2 log suite rc
	mkdir -p "$results"
	for log in "$dir"/*.log; do
		suite=$(basename "$log" .log)
		rc=$(cat "$dir/$suite.rc" 2>/dev/null || echo none)
		case $suite in
		vivid* | vim2m*) read_compliance "$log" ;;
		*) read_tap "$log" ;;
		esac >"$results/$suite"
		[ -s "$results/$suite" ] || printf 'fail\t(no results, exit code %s)\n' "$rc" >"$results/$suite"
		# A suite that ended badly without a result that says so.
		if [ "$rc" != 0 ] && ! grep -q '^fail' "$results/$suite"; then
			[ "$suite:$rc" = "sync:0" ] ||
				printf 'fail\t(exit code %s)\n' "$rc" >>"$results/$suite"
		fi
	done
}

# known_failures RESULTS: turn failures that are not the project's into skips with their reason.
known_failures() {
	local results=$1 suite test why
	while IFS=$'\t' read -r suite test why; do
		case $suite in '' | '#'*) continue ;; esac
		[ -e "$results/$suite" ] || continue
		if grep -qxF "fail	$test" "$results/$suite"; then
			awk -F '\t' -v t="$test" -v OFS='\t' \
				'$2 == t && $1 == "fail" { $1 = "skip" } { print }' \
				"$results/$suite" >"$results/.new"
			mv "$results/.new" "$results/$suite"
			printf '%s: %s: %s\n' "$suite" "$test" "$why" >>"$results/.skips"
		fi
	done <"$BENCH/known-failures"
}
