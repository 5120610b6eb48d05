#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Runs in the guest: frames from a capture device through a mem2mem device in shared buffers.

out=/bench/out
node() {
	grep -lx "$1" /sys/class/video4linux/*/name | sed -n '1s|.*/\(video[0-9]*\)/name|/dev/\1|p'
}

# run HEADLINE ARGUMENT...: one pair of devices. A failure does not keep the others from running.
run() {
	local headline=$1
	shift
	echo
	echo "== $headline"
	if /bench/programs/dmabuf-pipe "$@"; then
		summary+=("ok      $headline")
	else
		summary+=("FAILED  $headline")
		failed=1
	fi
}

demo() {
	local capture m2m vivid contig vim2m cma summary=() failed=0
	capture=$(node rust_vivid)
	m2m=$(node rust_vim2m)
	vivid=$(node vivid-001-vid-cap)
	contig=$(node vivid-000-vid-cap)
	vim2m=$(node vim2m)
	cma=$(find /dev/dma_heap -type c ! -name 'system*' | sort | head -n 1)

	echo "$(uname -srm), dma-buf core: $(core)"

	local rust=(--capture "$capture" --m2m "$m2m" --counters --fps 15)
	run "rust_vivid exports, rust_vim2m imports" "${rust[@]}" --export capture \
		--bufinfo --attached rust_vim2m --out $out/capture-exports
	run "rust_vim2m exports, rust_vivid imports" "${rust[@]}" --export m2m \
		--bufinfo --attached rust_vivid --flip --out $out/m2m-exports
	run "the system heap exports to both" "${rust[@]}" --export heap \
		--bufinfo --attached rust_vivid,rust_vim2m
	run "udmabuf exports to both" "${rust[@]}" --export udmabuf \
		--attached rust_vivid,rust_vim2m

	# With the drivers in C. The one without contiguous memory does not attach, it only asks where
	# the buffer is in the memory of the kernel.
	run "vivid (C) exports, rust_vim2m imports" --capture "$contig" --m2m "$m2m" \
		--export capture --attached rust_vim2m
	run "rust_vim2m exports, vivid (C) imports" --capture "$vivid" --m2m "$m2m" --export m2m
	run "rust_vivid exports, vim2m (C) imports" --capture "$capture" --m2m "$vim2m" \
		--export capture --counters --fps 15
	run "vim2m (C) exports, rust_vivid imports" --capture "$capture" --m2m "$vim2m" \
		--export m2m --counters --fps 15 --attached rust_vivid
	run "a heap exports to vivid (C) and rust_vim2m" --capture "$contig" --m2m "$m2m" \
		--export heap --heap "$cma" --attached vivid.0,rust_vim2m
	run "a heap exports to vivid and vim2m, both in C" --capture "$contig" --m2m "$vim2m" \
		--export heap --heap "$cma" --flip --attached vivid.0

	# The same frames at the same rate, so what the CPUs do is what differs.
	local cost=(--capture "$capture" --m2m "$m2m" --counters --fps 5 --size 1280x720 --frames 50
		--cost)
	run "what it costs: shared" "${cost[@]}" --export capture
	run "what it costs: copied by user space" "${cost[@]}" --copy
	run "what it costs: shared, again" "${cost[@]}" --export capture
	run "what it costs: copied by user space, again" "${cost[@]}" --copy

	echo
	echo "== Summary"
	printf '%s\n' "${summary[@]}"
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
