#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Runs in the guest: frames from vivid through vim2m in shared buffers.

out=/bench/out
node() {
	grep -lx "$1" /sys/class/video4linux/*/name | sed -n '1s|.*/\(video[0-9]*\)/name|/dev/\1|p'
}

demo() {
	local pipe contig vmalloc heap failed=0
	pipe="/bench/programs/dmabuf-pipe --m2m $(node vim2m)"
	contig=$(node vivid-000-vid-cap)
	vmalloc=$(node vivid-001-vid-cap)
	heap=$(find /dev/dma_heap -type c ! -name 'system*' | sort | head -n 1)

	echo "$(uname -srm), dma-buf core: $(core)"
	echo
	echo "== vivid captures and exports, vim2m imports and processes"
	$pipe --capture "$contig" --export capture --bufinfo --out $out/vivid-exports || failed=1
	echo
	echo "== vim2m exports, vivid captures into its buffers"
	$pipe --capture "$vmalloc" --export m2m --out $out/vim2m-exports || failed=1
	echo
	echo "== a heap exports, vivid attaches and maps, vim2m reads, and turns the picture over"
	$pipe --capture "$contig" --export heap --heap "$heap" --bufinfo --flip \
		--out $out/heap-exports || failed=1
	echo
	return $failed
}

core() {
	if grep -q ' dma_buf_rust_init$' /proc/kallsyms; then echo Rust; else echo C; fi
}

modprobe vivid n_devs=2 allocators=1,0
modprobe vim2m
demo >$out/demo.txt 2>&1
echo $? >$out/demo.rc
true
