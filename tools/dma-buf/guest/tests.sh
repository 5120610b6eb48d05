#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Runs in the guest: every suite, each with a log of its own in /work/out.
#
# A suite prints TAP, or what v4l2-compliance prints; the host reads the logs.

out=/work/out
programs=/work/programs
mkdir -p $out

# suite NAME SECONDS COMMAND...
suite() {
	local name=$1 limit=$2 began=$SECONDS rc
	shift 2
	echo "guest: suite $name"
	timeout -k 10 "$limit" "$@" >$out/"$name".log 2>&1 </dev/null
	rc=$?
	echo "$rc" >$out/"$name".rc
	echo "guest: suite $name ended with $rc after $((SECONDS - began)) s"
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
	echo 64 >/proc/sys/vm/nr_hugepages
	cd $programs/drivers/dma-buf && ./udmabuf
	echo 0 >/proc/sys/vm/nr_hugepages
}
sync_suite() { cd $programs/sync && ./sync_test; }
iommufd() { cd $programs/iommu && ./iommufd -r iommufd_ioas.no_domain.dmabuf_simple \
	-r iommufd_ioas.mock_domain.dmabuf_simple -r iommufd_ioas.mock_domain.dmabuf_revoke; }

# What a user sees of a buffer: bufinfo, fdinfo, the trace events.
text() {
	local t=/sys/kernel/tracing
	echo 1 >$t/events/dma_buf/enable
	$programs/dmabuf-hold --heap /dev/dma_heap/system --name "frame" --hold 2 >/tmp/hold &
	sleep 1
	check "fdinfo" grep -qx "exp_name:	system" /tmp/hold
	check "fdinfo counts one reference" grep -qx "count:	1" /tmp/hold
	check "fdinfo shows the name" grep -qx "name:	frame" /tmp/hold
	check "maps shows the name" grep -q "/dmabuf:frame" /tmp/hold
	cat /sys/kernel/debug/dma_buf/bufinfo >/tmp/bufinfo
	check "bufinfo lists the buffer" grep -qP '^00004096\t[0-9a-f]{8}\t[0-9a-f]{8}\t0000000[0-9]\tsystem\t[0-9]{8}\tframe$' /tmp/bufinfo
	check "bufinfo counts" grep -qx "Total 1 objects, 4096 bytes" /tmp/bufinfo
	wait
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
	# The node is found by its driver, and the fd stays open in the background.
	$programs/dmabuf-hold --drm vgem --hold 3 >/tmp/hold &
	sleep 1
	check "a buffer is exported" grep -q '^exp_name:' /tmp/hold
	check "the module is in use" [ "$(cat /sys/module/vgem/refcnt)" -gt 0 ]
	check "the module does not unload" eval '! rmmod vgem 2>/tmp/rmmod'
	check "for it is in use" grep -q "in use" /tmp/rmmod
	wait
	check "the module unloads when the buffer is gone" rmmod vgem
	sed 's/^/# /' /tmp/hold /tmp/rmmod
	echo "1..$n"
}

# Frames from vivid through vim2m, by every way to share the buffers.
pipelines() {
	local contig vmalloc m2m
	contig=$(node vivid-000-vid-cap)
	vmalloc=$(node vivid-001-vid-cap)
	m2m=$(node vim2m)
	local pipe="$programs/dmabuf-pipe --m2m $m2m --frames 30"
	check "vivid (dma-contig) exports" $pipe --capture "$contig" --export capture
	check "vivid (vmalloc) exports" $pipe --capture "$vmalloc" --export capture
	check "vim2m exports" $pipe --capture "$vmalloc" --export m2m
	check "CMA heap exports, vivid attaches and maps" \
		$pipe --capture "$contig" --export heap --heap "$(cma_heap)"
	check "system heap exports" \
		$pipe --capture "$vmalloc" --export heap --heap /dev/dma_heap/system
	check "vim2m flips" $pipe --capture "$contig" --export capture --flip
	# The well-known tool, both directions of export.
	check "v4l2-ctl: vivid exports to vivid output" v4l2_ctl_pipe "$contig" \
		"$(node vivid-000-vid-out)"
	check "v4l2-ctl: vivid exports to vim2m" v4l2_ctl_m2m "$contig" "$m2m"
	check "v4l2-ctl: vim2m exports to vivid" v4l2-ctl -d "$vmalloc" --stream-dmabuf=4 \
		--stream-count=20 --set-fmt-video=width=640,height=360,pixelformat=RGB3 -e "$m2m" \
		--export-device "$m2m"
	echo "1..$n"
}

cma_heap() { ls /dev/dma_heap/* | grep -v /system | head -n 1; }

v4l2_ctl_pipe() {
	v4l2-ctl -d "$1" --set-fmt-video=width=640,height=360,pixelformat=RGB3 &&
		v4l2-ctl -d "$2" --set-fmt-video-out=width=640,height=360,pixelformat=RGB3 &&
		v4l2-ctl -d "$1" --stream-mmap=4 --stream-out-dmabuf --stream-count=20 \
			--out-device "$2"
}

v4l2_ctl_m2m() {
	v4l2-ctl -d "$2" --set-fmt-video-out=width=640,height=360,pixelformat=RGB3 &&
		v4l2-ctl -d "$2" --export-device "$1" --stream-out-dmabuf --stream-mmap \
			--stream-count=20 --stream-poll
}

modprobe vivid n_devs=3 allocators=1,0,1
modprobe vim2m
modprobe vgem
for s in /work/known-suites; do [ ! -e "$s" ] || . "$s"; done
export -f kunit heaps udmabuf sync_suite iommufd text module pipelines check node cma_heap \
	v4l2_ctl_pipe v4l2_ctl_m2m
export programs n

suite kunit 60 bash -c kunit
suite dmabuf-heaps 300 bash -c heaps
suite udmabuf 120 bash -c udmabuf
suite sync 300 bash -c sync_suite
suite iommufd 120 bash -c iommufd
suite text 60 bash -c text
suite pipelines 300 bash -c pipelines
suite vivid 300 v4l2-compliance -s -d "$(node vivid-000-vid-cap)"
suite vivid-dmabuf 300 v4l2-compliance -s -d "$(node vivid-000-vid-cap)" \
	-e "$(node vivid-002-vid-cap)"
suite vim2m 300 v4l2-compliance -s -d "$(node vim2m)"
suite vim2m-dmabuf 300 v4l2-compliance -s -d "$(node vim2m)" -e "$(node vivid-001-vid-cap)"
suite module 60 bash -c module
modprobe -r vivid vim2m vkms
cat /sys/kernel/debug/dma_buf/bufinfo >$out/bufinfo-at-the-end
