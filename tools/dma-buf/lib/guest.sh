# SPDX-License-Identifier: GPL-2.0
# Booting in QEMU, and reading what the suites said.

# prepare_work CORE CONFIG: the folder that the guest sees as /bench. Sets WORK.
prepare_work() {
	WORK=$CACHE/work-$1-$2
	rm -rf "$WORK"
	mkdir -p "$WORK/out"
	cp -a "$CACHE/programs" "$WORK/programs"
	[ ! -e "$CACHE/fuzz/dmabuf-fuzz" ] || cp "$CACHE/fuzz/dmabuf-fuzz" "$WORK/programs/"
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
			say "    ... $(basename "$log" .log), $((SECONDS - began)) s:" \
				"$(tr -d '\r' <"$log" | grep -a . | tail -n 1 | cut -c1-75)"
		fi
	done
	wait "$pid" || rc=$?
	if ! tr -d '\r' <"$log" | grep -qax 'guest: job ended with 0'; then
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

# 4 GiB of memory: a test of udmabuf wants 2 GiB of huge pages, and one of videobuf2 a buffer of almost 4
# GiB, which must not be possible. The contiguous memory is where a device with 32 address bits, such as
# vivid, gets at it.
qemu() {
	local limit=$1
	shift
	in_tools timeout --foreground -k 10 "$limit" qemu-system-aarch64 -M virt -cpu max,pauth-impdef=on -smp 2 \
		-m 4G -nographic -no-reboot -nic none -kernel "$IMAGE/Image" \
		-fsdev local,id=root,path="$CACHE/rootfs",security_model=none,readonly=on \
		-device virtio-9p-pci,fsdev=root,mount_tag=/dev/root \
		-fsdev local,id=work,path="$WORK",security_model=none \
		-device virtio-9p-pci,fsdev=work,mount_tag=work \
		-append "console=ttyAMA0 cma=64M@1G-3G root=/dev/root rootfstype=9p ro panic=-1 oops=panic
rootflags=trans=virtio,version=9p2000.L,msize=524288 init=/usr/sbin/guest-init
sysctl.kernel.hung_task_timeout_secs=60 printk.devkmsg=on $*"
}

# What no console may show.
SPLAT='WARNING: |BUG[: ]|Oops|Internal error: |Kernel panic|[Cc]all [Tt]race:|UBSAN: |KASAN: '
SPLAT+='|DMA-API: .*(error|warning|device driver|out of memory)|possible (recursive|circular) locking'
SPLAT+='|inconsistent lock state|lockdep is turned off|sleeping function called|blocked for more than'
SPLAT+='|refcount_t: |Unable to handle kernel|INFO: (rcu|trying|task)|panicked at'
SPLAT+='|Slab cache still has objects|Busy inodes after|printk messages dropped|kmemleak: .*disabled'

# splats LOG: the lines of a console that show trouble. A report, from "cut here" to "end trace", whose
# first lines match a known one is left out.
splats() {
	local known
	known=$(sed -n 's/^splat\t\([^\t]*\).*/\1/p' "$BENCH/known-failures" | paste -sd '|')
	tr -d '\r' <"$1" | known=$known awk '
		function flush() { if (in_report && !skip) printf "%s", text; in_report = 0 }
		/\[ cut here \]/ { flush(); in_report = 1; lines = skip = 0; text = ""; next }
		in_report {
			text = text $0 "\n"
			if (++lines <= 2) {
				if (ENVIRON["known"] != "" && $0 ~ ENVIRON["known"]) skip = 1
			} else if (/BUG|Oops|panic|WARNING: |INFO: /) {
				skip = 0
			}
			if (/end trace/ || lines == 80) flush()
			next
		}
		# What fails by fault injection may say so, with a trace.
		/: vmalloc error: / { told = 1 }
		/BUG: KCSAN: / { next }
		/[Cc]all [Tt]race:/ && told { told = 0; next }
		{ print }
		END { flush() }' | grep -aE "$SPLAT" || true
	races "$1" ours
}

# races LOG ours|others: the titles of KCSAN's reports. Ours are those where one of the two innermost
# functions of an access is one of those that share buffers: the rest of the kernel has races, too.
races() {
	tr -d '\r' <"$1" | which=$2 awk '
		function flush() {
			if (title != "" && ours == (ENVIRON["which"] == "ours")) print title
			title = ""
			frames = ours = 0
		}
		{ sub(/^\[ *[0-9.]+\] /, "") }
		/^=+$/ { flush() }
		/^BUG: KCSAN: / { flush(); title = $0 }
		/ to 0x[0-9a-f]+ of [0-9]+ bytes by / { frames = 2 }
		/^ [^ ]+\+0x/ && frames {
			frames--
			if (/dma_?buf|dma_resv|dma_fence|dma_heap|udmabuf|sync_file|sync_timeline|sync_pt|sw_sync/ ||
			    /system_heap|cma_heap|vb2_|v4l2_m2m|vgem|vivid|vim2m/) ours = 1
		}
		END { flush() }'
}

# Reading a suite's log: lines "STATUS<tab>TEST[<tab>WHY]", STATUS one of pass, fail, skip.

# TAP, as of kselftest and KUnit. Only the innermost results count, but a failing summary of passed ones
# is a failure, and so is a plan that was not kept.
read_tap() {
	tr -d '\r' <"$1" | awk '
		/^[# ]*1\.\.[0-9]+/ {
			match($0, /^[# ]*/)
			planned[RLENGTH] += substr($0, RLENGTH + 4) + 0
			plans++
			if (match($0, /1\.\.0 *# *SKIP */)) print "skip\t(all)\t" substr($0, RSTART + RLENGTH)
			next
		}
		/^[# ]*(not )?ok [0-9]+/ {
			match($0, /^[# ]*/)
			depth = RLENGTH
			n[depth]++
			status = $0 ~ /^[# ]*not ok/ ? "fail" : "pass"
			why = ""
			if (match($0, /# *(SKIP|XFAIL)/)) {
				status = "skip"
				why = substr($0, RSTART + RLENGTH)
				sub(/^ */, substr($0, RSTART, RLENGTH) ~ /XFAIL/ ? "\tknown defect: " : "\t", why)
			}
			name = $0
			sub(/^[# ]*(not )?ok [0-9]+ *(- )?/, "", name)
			sub(/ *# *(SKIP|XFAIL).*/, "", name)
			if (!(last != "" && last > depth) || (status == "fail" && !bad)) {
				again = ++seen[prefix name]
				print status "\t" prefix name (again > 1 ? " #" again : "") why
			}
			if (status == "fail") bad = 1
			if (!depth) bad = 0
			last = depth
			next
		}
		/^# [A-Za-z0-9_-]+$/ { prefix = substr($0, 3) "."; last = "" }
		END {
			if (!plans) print "fail\t(no plan)"
			for (d in planned)
				if (n[d] < planned[d]) print "fail\t(" n[d] + 0 " results of " planned[d] " planned)"
		}'
}

# v4l2-compliance: "<tab>test NAME: OK". Progress is on the same line, before a carriage return. Tests
# that come again, for each input, are numbered. What a device does not support is told apart, so that
# the cores can be compared.
read_compliance() {
	tr '\r' '\n' <"$1" | sed 's/\x1b\[[0-9;]*m//g' | awk '
		/^[ \t]*test .*: (OK|FAIL)/ {
			status = /: FAIL/ ? "fail" : "pass"
			name = $0
			sub(/^[ \t]*test /, "", name)
			sub(/: (OK|FAIL).*/, "", name)
			if (/Not Supported/) name = name " (not supported)"
			if (status == "fail") bad++
			n = ++seen[name]
			print status "\t" name (n > 1 ? " #" n : "")
		}
		/^Total for .*Failed: / {
			total = $0
			sub(/.*Failed: /, "", total)
			failed += total
			done = 1
		}
		/^Total for .*Warnings: / { warnings = $0; sub(/.*Warnings: /, "", warnings) }
		END {
			if (warnings + 0) print "pass\t(" warnings + 0 " warnings)"
			if (!done) print "fail\t(did not run to its end)"
			else if (failed + 0 != bad + 0)
				print "fail\t(" failed + 0 " failures in its total, " bad + 0 " read)"
		}'
}

# The suites of tests.sh. One without a log did not run.
GUEST_SUITES=(kunit dmabuf-heaps udmabuf sync dma-buf dma-buf-fence dma-buf-text dma-buf-user rust-dma-buf
	stress text rust-vivid-test rust-vim2m-test rust-v4l2-test rust-v4l2-memory vivid vivid-dmabuf vim2m vim2m-dmabuf
	rust-vivid rust-vivid-dmabuf rust-vim2m rust-vim2m-dmabuf pipelines module unload fuzz defects
	faults kmemleak)

# read_suites DIR RESULTS: read every log that tests.sh wrote.
read_suites() {
	local dir=$1 results=$2 suite rc
	mkdir -p "$results"
	for suite in "${GUEST_SUITES[@]}"; do
		if [ ! -s "$dir/$suite.log" ]; then
			printf 'fail\t(did not run)\n' >"$results/$suite"
			continue
		fi
		case $suite in
		*-test) read_tap "$dir/$suite.log" ;;
		vivid* | vim2m* | rust-vivid* | rust-vim2m*) read_compliance "$dir/$suite.log" ;;
		*) read_tap "$dir/$suite.log" ;;
		esac >"$results/$suite"
		grep -q . "$results/$suite" || printf 'fail\t(no results)\n' >"$results/$suite"
		# 1 is how a suite says that a test failed.
		rc=$(cat "$dir/$suite.rc" 2>/dev/null || echo none)
		case $rc in
		0) ;;
		1) grep -q '^fail' "$results/$suite" || printf 'fail\t(exit code 1)\n' >>"$results/$suite" ;;
		*) printf 'fail\t(exit code %s)\n' "$rc" >>"$results/$suite" ;;
		esac
	done
	for suite in vivid vivid-dmabuf vim2m vim2m-dmabuf; do
		[ -e "$results/$suite" ] || continue
		[ "$(warnings "$results/rust-$suite")" -le "$(warnings "$results/$suite")" ] ||
			printf 'fail\t(more warnings than %s)\n' "$suite" >>"$results/rust-$suite"
	done
}

# How many warnings v4l2-compliance had.
warnings() {
	local count
	count=$(sed -n 's/^pass\t(\([0-9]*\) warnings)$/\1/p' "$1")
	echo "${count:-0}"
}

# known_failures RESULTS: turn failures that are not the project's into skips with their reason.
known_failures() {
	local results=$1 suite test why
	while IFS=$'\t' read -r suite test why; do
		case $suite in '' | '#'* | splat) continue ;; esac
		[ -e "$results/$suite" ] || continue
		if grep -qxF "fail	$test" "$results/$suite"; then
			awk -F '\t' -v t="$test" -v why="$why" -v OFS='\t' \
				'$2 == t && $1 == "fail" { $1 = "skip"; $3 = why } { print }' \
				"$results/$suite" >"$results/.new"
			mv "$results/.new" "$results/$suite"
		else
			say "note: a known failure did not happen: $suite: $test"
		fi
	done <"$BENCH/known-failures"
}
