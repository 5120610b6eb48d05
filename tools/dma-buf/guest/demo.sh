#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Runs in the guest: frames from a capture device through a mem2mem device in shared buffers.

out=/bench/out
node() {
	grep -lx "$1" /sys/class/video4linux/*/name | sed -n '1s|.*/\(video[0-9]*\)/name|/dev/\1|p'
}

# run HEADLINE ARGUMENT...: one pair of devices. A failure does not keep the others from running. The
# output is in /tmp/run, too.
run() {
	local headline=$1 result=ok
	shift
	echo
	echo "== $headline"
	/bench/programs/dmabuf-pipe "$@" 2>&1 | tee /tmp/run
	if [ "${PIPESTATUS[0]}" != 0 ]; then
		result=FAILED
		failed=1
	fi
	summary+=("$(printf '%-7s %9s  %s' "$result" "$(grep -o '[0-9.]* fps' /tmp/run)" "$headline")")
}

# cost shared|copied ARGUMENT...: as run(), at a rate that both manage.
cost() {
	local way=$1
	shift
	run "what a frame costs: $way" --capture "$capture" --m2m "$m2m" --counters --fps 5 \
		--size 1280x720 --frames 40 --cost "$@"
	sed -n "s/.* \([0-9.]*\) ms of CPU per frame, \([0-9.]*\) .*/$way \1 \2/p" /tmp/run >>/tmp/costs
}

# What cost() found: the lowest and the highest of its runs, for the machine below does other things.
costs() {
	awk '
		!n[$1]++ { min[$1] = max[$1] = $2; own_min[$1] = own_max[$1] = $3 }
		$2 < min[$1] { min[$1] = $2 }
		$2 > max[$1] { max[$1] = $2 }
		$3 < own_min[$1] { own_min[$1] = $3 }
		$3 > own_max[$1] { own_max[$1] = $3 }
		function line(way) {
			printf "%-7s %8.1f to %5.1f %12.2f to %5.2f\n", way, min[way], max[way],
				own_min[way], own_max[way]
		}
		END {
			if (!n["shared"] || !n["copied"] || !min["copied"] || !own_min["copied"]) exit 1
			print "ms         whole machine         dmabuf-pipe"
			line("shared")
			line("copied")
			printf "By the lowest, shared is %.2f of copied in the whole machine, ",
				min["shared"] / min["copied"]
			printf "%.2f in dmabuf-pipe.\n", own_min["shared"] / own_min["copied"]
			if (min["shared"] <= max["copied"] && min["copied"] <= max["shared"])
				print "The runs differ by as much as the ways: the whole machine tells no winner."
		}' /tmp/costs
}

demo() {
	local capture m2m vivid contig vim2m cma summary=() failed=0
	capture=$(node rust_vivid)
	m2m=$(node rust_vim2m)
	vivid=$(node vivid-001-vid-cap)
	contig=$(node vivid-000-vid-cap)
	vim2m=$(node vim2m)
	: >/tmp/costs
	cma=$(find /dev/dma_heap -type c ! -name 'system*' | sort | head -n 1)

	echo "$(uname -srm), dma-buf core: $(core)"

	local rust=(--capture "$capture" --m2m "$m2m" --counters --fps 15)
	run "rust_vivid exports, rust_vim2m imports" "${rust[@]}" --export capture \
		--bufinfo --attached rust_vim2m --out $out/capture-exports
	run "rust_vim2m exports, rust_vivid imports" "${rust[@]}" --export m2m \
		--bufinfo --attached rust_vivid --out $out/m2m-exports
	run "the system heap exports to both" "${rust[@]}" --export heap \
		--bufinfo --attached rust_vivid,rust_vim2m
	run "udmabuf exports to both" "${rust[@]}" --export udmabuf \
		--attached rust_vivid,rust_vim2m

	# With the drivers in C. The one without contiguous memory does not attach, it only asks where
	# the buffer is in the memory of the kernel.
	run "vivid (C) exports, rust_vim2m imports" --capture "$contig" --m2m "$m2m" \
		--export capture --attached rust_vim2m
	run "rust_vim2m exports, vivid (C) imports" --capture "$vivid" --m2m "$m2m" --export m2m --flip
	run "rust_vivid exports, vim2m (C) imports" --capture "$capture" --m2m "$vim2m" \
		--export capture --counters --fps 15
	run "vim2m (C) exports, rust_vivid imports" --capture "$capture" --m2m "$vim2m" \
		--export m2m --counters --fps 15 --attached rust_vivid
	run "a CMA heap exports to vivid (C) and rust_vim2m" --capture "$contig" --m2m "$m2m" \
		--export heap --heap "$cma" --attached vivid.0,rust_vim2m
	run "the system heap exports to vivid (C) and rust_vim2m" --capture "$vivid" --m2m "$m2m" \
		--export heap --attached rust_vim2m
	run "udmabuf exports to vivid (C) and rust_vim2m" --capture "$vivid" --m2m "$m2m" \
		--export udmabuf --attached rust_vim2m
	run "the system heap exports to rust_vivid and vim2m (C)" --capture "$capture" --m2m "$vim2m" \
		--export heap --counters --fps 15 --attached rust_vivid
	run "udmabuf exports to rust_vivid and vim2m (C)" --capture "$capture" --m2m "$vim2m" \
		--export udmabuf --counters --fps 15 --attached rust_vivid
	run "a CMA heap exports to vivid and vim2m, both in C" --capture "$contig" --m2m "$vim2m" \
		--export heap --heap "$cma" --flip --attached vivid.0

	# The same frames at the same rate, so what the CPUs do is what differs.
	local i
	for ((i = 0; i < 4; i++)); do
		cost shared --export capture
		cost copied --copy
	done

	echo
	echo "== Summary"
	printf '%s\n' "${summary[@]}"
	echo
	echo "What the CPUs did for a frame of 1280x720:"
	costs || failed=1
	return $failed
}

core() {
	if grep -q ' dma_buf_rust_init$' /proc/kallsyms; then echo Rust; else echo C; fi
}

modprobe vivid n_devs=2 allocators=1,0
modprobe vim2m
modprobe rust_vivid
modprobe rust_vim2m
demo >$out/demo.txt 2>&1
echo $? >$out/demo.rc
true
