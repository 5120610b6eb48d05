#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Runs in the guest: every suite, each with a log of its own in /bench/out.
#
# A suite prints TAP, or what v4l2-compliance prints; the host reads the logs.

out=/bench/out
programs=/bench/programs
mkdir -p $out

# suite NAME SECONDS COMMAND...; with $only, just those that it names; with $until_failure, none after
# one that failed
suite() {
	local name=$1 limit=$2 began=$SECONDS rc
	shift 2
	[ -z "${only:-}" ] || [[ " $only " = *" $name "* ]] || return 0
	echo "guest: suite $name"
	timeout -k 10 "$limit" "$@" >$out/"$name".log 2>&1 </dev/null
	rc=$?
	echo "$rc" >$out/"$name".rc
	echo "guest: suite $name ended with $rc after $((SECONDS - began)) s"
	[ -z "${until_failure:-}" ] || [ $rc = 0 ] || only=none
}

# node NAME-OF-DEVICE [NUMBER]: the /dev/video* of the first device, or the given one, of that name.
node() {
	grep -lx "$1" /sys/class/video4linux/*/name 2>/dev/null | sort -V |
		sed -n "${2:-1}s|.*/\(video[0-9]*\)/name|/dev/\1|p"
}

# ok/not ok lines for shell suites
n=0
check() {
	local name=$1
	shift
	n=$((n + 1))
	if "$@"; then echo "ok $n $name"; else echo "not ok $n $name"; fi
}

kunit() {
	local d
	for d in /sys/kernel/debug/kunit/*/; do
		echo "# $(basename "$d")"
		cat "$d/results"
	done
}

# Each log of the kernel's own suites is TAP.
heaps() { cd $programs/dmabuf-heaps && ./dmabuf-heap; }
udmabuf() {
	local rc
	# Two of its tests want 2 GiB of huge pages.
	echo 1030 >/proc/sys/vm/nr_hugepages
	cd $programs/drivers/dma-buf && ./udmabuf
	rc=$?
	echo 0 >/proc/sys/vm/nr_hugepages
	return $rc
}
sync_suite() { cd $programs/sync && ./sync_test; }
selftest() { cd $programs/dma-buf && "./$@"; }

# What an ordinary user can do, given the devices.
ordinary_user() {
	local p rc=0
	chmod 666 /dev/dma_heap/* /dev/udmabuf /dev/dri/* /dev/rust-dma-buf /dev/dma-buf-test
	cd $programs/dma-buf || return 2
	for p in dmabuf dmabuf_fence dmabuf_text; do
		setpriv --reuid 65534 --regid 65534 --clear-groups ./$p || rc=1
	done
	return $rc
}

# hold ARGUMENT...: make a buffer and hold it in the background, until "kill $held".
hold() {
	local i
	$programs/dmabuf-hold "$@" --hold 60 >/tmp/hold &
	held=$!
	for i in $(seq 100); do
		! grep -q /dmabuf: /tmp/hold || return 0
		sleep 0.1
	done
	return 1
}

# let_go: end what hold() started. The file is released by its task, before it can be waited for.
let_go() {
	kill "$held"
	wait "$held" 2>/dev/null
	return 0
}

# Random calls, whose results the host compares with those of the other core.
fuzz() {
	if [ ! -e $programs/dmabuf-fuzz ]; then
		echo "1..0 # SKIP the fuzzer was not built"
		return
	fi
	check "random calls" $programs/dmabuf-fuzz --seed 1 --calls 5000 --log $out/fuzz.calls
	check "random calls of several threads" $programs/dmabuf-fuzz --seed 1 --threads 4 --seconds 10
	echo "1..$n"
}

# What a user sees of a buffer: bufinfo, fdinfo, the trace events.
text() {
	local t=/sys/kernel/tracing e
	echo 1 >$t/events/dma_buf/enable
	check "a buffer is made" hold --heap /dev/dma_heap/system --name "frame"
	cat /sys/kernel/debug/dma_buf/bufinfo >/tmp/bufinfo
	check "fdinfo" grep -qx "exp_name:	system" /tmp/hold
	check "fdinfo counts descriptor and mapping" grep -qx "count:	2" /tmp/hold
	check "fdinfo shows the name" grep -qx "name:	frame" /tmp/hold
	check "maps shows the name" grep -q "/dmabuf:frame" /tmp/hold
	check "bufinfo lists the buffer" grep -qP '^00004096\t[0-9a-f]{8}\t[0-9a-f]{8}\t00000002\tsystem\t[0-9]{8}\tframe$' /tmp/bufinfo
	check "bufinfo counts" grep -qx "Total 1 objects, 4096 bytes" /tmp/bufinfo
	sed 's/^/# /' /tmp/bufinfo
	let_go
	echo 0 >$t/events/dma_buf/enable
	cat $t/trace >/tmp/trace
	for e in dma_buf_export dma_buf_fd dma_buf_mmap_internal; do
		check "event $e" grep -q "$e: exp_name=system size=4096 ino=" /tmp/trace
	done
	cat /sys/kernel/debug/dma_buf/bufinfo >/tmp/bufinfo
	check "nothing is left" grep -qx "Total 0 objects, 0 bytes" /tmp/bufinfo
	sed 's/^/# /' /tmp/hold /tmp/bufinfo /tmp/trace
	echo "1..$n"
}

# A module whose buffer lives does not unload; without, it does.
module() {
	modprobe -r vgem 2>/dev/null
	check "module loads" modprobe vgem
	check "a buffer is exported" hold --drm vgem
	check "the module is in use" [ "$(cat /sys/module/vgem/refcnt)" -gt 0 ]
	check "the module does not unload" eval '! rmmod vgem 2>/tmp/rmmod'
	check "for it is in use" grep -q "in use" /tmp/rmmod
	let_go
	check "the module unloads when the buffer is gone" rmmod vgem
	sed 's/^/# /' /tmp/hold /tmp/rmmod
	echo "1..$n"
}

# How many buffers there are.
buffers() { sed -n 's/^Total \([0-9]*\) objects, .*/\1/p' /sys/kernel/debug/dma_buf/bufinfo; }

# At the end nothing is left, and all modules unload. When attaching fails, videobuf2 leaks a reference to
# the buffer; the tests that have it fail count all others themselves.
unload() {
	local m
	cat /sys/kernel/debug/dma_buf/bufinfo >/tmp/bufinfo
	check "no buffer is left but what videobuf2 leaked" [ "$(buffers)" = "$leaked" ]
	for m in vivid vim2m rust_dma_buf dma_buf_test rust_vivid rust_vim2m; do
		check "$m unloads" modprobe -r $m
	done
	sed 's/^/# /' /tmp/bufinfo
	echo "1..$n"
}

# Memory that nothing points to any more. What is younger than five seconds is not looked at, and
# what is found once may be found to be in use the next time.
kmemleak() {
	local file=/sys/kernel/debug/kmemleak i scans=0
	if [ ! -e $file ]; then
		echo "1..0 # SKIP needs CONFIG_DEBUG_KMEMLEAK"
		return
	fi
	for i in 1 2 3; do
		sleep 6
		echo scan >$file && scans=$((scans + 1))
	done
	# What is not ours to mend here: a test of fences leaks on its own; so do udmabuf, when two
	# threads begin its first access, as the defects suite shows, tables for memory of devices
	# when they are freed (see patches/fixes), and the user memory of KUnit tests.
	local known=' test_unwrap_merge_order\\+| begin_cpu_udmabuf\\+| dma_buf_phys_vec_to_sgt\\+'
	known+='| kunit_vm_mmap_init\\+| kunit_attach_mm\\+'
	awk -v RS='unreferenced object' -v known="$known" 'NR > 1 && $0 !~ known {print RS $0}' \
		$file >/tmp/leaks
	check "no memory has leaked" [ ! -s /tmp/leaks ]
	# Having given up, it does not scan.
	check "it was looked for" [ "$scans" = 3 ]
	sed 's/^/# /' /tmp/leaks
	echo "1..$n"
}

# Frames from a capture device through a mem2mem device, by every way to share the buffers: both of
# them in Rust, one of them, none.
pipelines() {
	local contig vmalloc m2m
	contig=$(node vivid-000-vid-cap)
	vmalloc=$(node vivid-001-vid-cap)
	m2m=$(node rust_vim2m)
	local pipe="$programs/dmabuf-pipe --m2m $m2m --frames 30"
	local rust="--capture $(node rust_vivid) --counters --fps 15"
	check "a frame lost, repeated or torn would be found" $programs/dmabuf-pipe --selftest
	check "Rust: capture exports" $pipe $rust --export capture --attached rust_vim2m
	check "Rust: mem2mem exports" $pipe $rust --export m2m --attached rust_vivid
	check "Rust: system heap exports" $pipe $rust --export heap --attached rust_vivid,rust_vim2m
	check "Rust: udmabuf exports" $pipe $rust --export udmabuf --attached rust_vivid,rust_vim2m
	check "Rust: the format is changed to RGB565" $pipe $rust --export capture --out-format RGB565
	check "Rust: the format is changed to XRGB32" $pipe $rust --export m2m --out-format XRGB32
	check "Rust: copied by user space" $pipe $rust --copy
	check "vivid (dma-contig) exports, Rust imports" \
		$pipe --capture "$contig" --export capture --attached rust_vim2m
	check "vivid (vmalloc) exports, Rust imports" \
		$pipe --capture "$vmalloc" --export capture --attached rust_vim2m
	# A frame of rust_vivid looks the same upside down; one of vivid does not.
	check "Rust turns the picture over" $pipe --capture "$vmalloc" --export capture --flip
	check "Rust exports, vivid imports" $pipe --capture "$vmalloc" --export m2m
	check "CMA heap exports, vivid and Rust import" $pipe --capture "$contig" --export heap \
		--heap "$(cma_heap)" --attached vivid.0,rust_vim2m
	check "system heap exports, vivid and Rust import" $pipe --capture "$vmalloc" --export heap \
		--attached rust_vim2m
	check "udmabuf exports, vivid and Rust import" $pipe --capture "$vmalloc" --export udmabuf \
		--attached rust_vim2m
	m2m=$(node vim2m)
	pipe="$programs/dmabuf-pipe --m2m $m2m --frames 30"
	check "Rust exports, vim2m imports" $pipe $rust --export capture
	check "vim2m exports, Rust imports" $pipe $rust --export m2m --attached rust_vivid
	check "system heap exports, Rust and vim2m import" $pipe $rust --export heap \
		--attached rust_vivid
	check "udmabuf exports, Rust and vim2m import" $pipe $rust --export udmabuf \
		--attached rust_vivid
	check "vivid (dma-contig) exports" $pipe --capture "$contig" --export capture
	check "vivid (vmalloc) exports" $pipe --capture "$vmalloc" --export capture
	check "vim2m exports" $pipe --capture "$vmalloc" --export m2m
	check "CMA heap exports, vivid attaches and maps" \
		$pipe --capture "$contig" --export heap --heap "$(cma_heap)"
	check "system heap exports" \
		$pipe --capture "$vmalloc" --export heap --heap /dev/dma_heap/system
	check "udmabuf exports" $pipe --capture "$vmalloc" --export udmabuf
	check "copied by user space" $pipe --capture "$vmalloc" --copy
	check "vim2m flips" $pipe --capture "$contig" --export capture --flip
	# v4l2-ctl ends with 0 whatever happens, so its frames are counted.
	local cap=$vmalloc out
	out=$(node vivid-001-vid-out)
	v4l2-ctl -d "$m2m" --set-fmt-video-out=width=640,height=360,pixelformat=RGB3 \
		--set-fmt-video=width=640,height=360,pixelformat=RGB3
	v4l2-ctl -d "$cap" --set-fmt-video=width=640,height=360,pixelformat=RGB3
	v4l2-ctl -d "$out" --set-fmt-video-out=width=640,height=360,pixelformat=RGB3
	check "v4l2-ctl: vivid exports, vim2m imports" frames 20 \
		-d "$m2m" --stream-dmabuf --stream-out-mmap -E "$cap"
	check "v4l2-ctl: vivid capture exports, vivid output imports" frames 20 \
		-d "$cap" -e "$out" --stream-mmap --stream-out-dmabuf
	check "v4l2-ctl: vivid output exports, vivid capture imports" frames 20 \
		-d "$cap" -e "$out" --stream-out-mmap --stream-dmabuf
	echo "1..$n"
}

cma_heap() { find /dev/dma_heap -type c ! -name 'system*' | sort | head -n 1; }

# frames COUNT ARGUMENT...: v4l2-ctl moves that many frames, told by a ">" for each.
frames() {
	local count=$1 text moved
	shift
	text=$(timeout 60 v4l2-ctl "$@" --stream-count "$count" 2>&1)
	moved=$(tr -cd '>' <<<"$text" | wc -c)
	echo "# $moved frames: v4l2-ctl $*"
	! grep -E 'returned -1|failed|error' <<<"$text" && [ "$moved" -ge $((count - 2)) ]
}

# v4l2-compliance wants an exporter whose buffers are large enough.
compliance() {
	local dev=$1 exporter=$2
	v4l2-ctl -d "$exporter" --set-fmt-video=width=1280,height=720,pixelformat=RGB3
	v4l2-compliance -s -d "$dev" -e "$exporter"
}

modprobe vivid n_devs=3 allocators=1,0,1
modprobe vim2m
modprobe vgem
modprobe -a rust_dma_buf dma_buf_test rust_vivid rust_vim2m
[ ! -e /sys/kernel/debug/dma-api/all_errors ] || echo 1 >/sys/kernel/debug/dma-api/all_errors
export -f fuzz kunit heaps udmabuf sync_suite selftest ordinary_user hold let_go text module
export -f unload pipelines buffers check node cma_heap frames compliance kmemleak
export programs out n leaked

suite kunit 60 bash -c kunit
suite dmabuf-heaps 300 bash -c heaps
suite udmabuf 120 bash -c udmabuf
suite sync 300 bash -c sync_suite
suite dma-buf 300 bash -c "selftest dmabuf"
suite dma-buf-fence 300 bash -c "selftest dmabuf_fence"
suite dma-buf-text 300 bash -c "selftest dmabuf_text"
suite dma-buf-user 300 bash -c ordinary_user
suite rust-dma-buf 300 bash -c "selftest rust_dma_buf"
suite stress 120 bash -c "selftest dmabuf_stress -t 30"
suite text 60 bash -c text
suite rust-vivid-test 300 bash -c "selftest rust_vivid"
suite rust-vim2m-test 300 bash -c "selftest rust_vim2m"
suite rust-v4l2-test 300 bash -c "selftest rust_v4l2"
suite rust-v4l2-memory 300 bash -c "selftest rust_v4l2_memory"
leaked=$(buffers)
suite vivid 300 v4l2-compliance -s -d "$(node vivid-000-vid-cap)"
suite vivid-dmabuf 300 bash -c "compliance $(node vivid-000-vid-cap) $(node vivid-002-vid-cap)"
suite vim2m 300 v4l2-compliance -s -d "$(node vim2m)"
suite vim2m-dmabuf 300 bash -c "compliance $(node vim2m) $(node vivid-001-vid-cap)"
suite rust-vivid 300 v4l2-compliance -s -d "$(node rust_vivid)"
suite rust-vivid-dmabuf 300 bash -c "compliance $(node rust_vivid) $(node vivid-001-vid-cap)"
suite rust-vim2m 300 v4l2-compliance -s -d "$(node rust_vim2m)"
suite rust-vim2m-dmabuf 300 bash -c "compliance $(node rust_vim2m) $(node rust_vivid)"
suite pipelines 300 bash -c pipelines
suite module 60 bash -c module
suite unload 60 bash -c unload
# Last: videobuf2, the heaps and udmabuf leak, and break rules of the DMA API, when they are treated like
# this, which "defects" has the figures of; and without memory the checks of the DMA API end themselves.
modprobe -a vivid vim2m vgem rust_dma_buf dma_buf_test rust_vivid rust_vim2m
for i in all_errors num_errors; do
	[ ! -e /sys/kernel/debug/dma-api/$i ] || echo 0 >/sys/kernel/debug/dma-api/$i
done
suite fuzz 300 bash -c fuzz
suite defects 300 bash -c "selftest dmabuf_defects"
suite faults 300 bash -c "selftest dmabuf_faults"
suite kmemleak 120 bash -c kmemleak
true
