#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Runs in the guest: what takes longer than tests.sh. The host reads what it leaves in /bench/out.

out=/bench/out
programs=/bench/programs
mkdir -p $out

modprobe -a vgem vivid vim2m rust_dma_buf dma_buf_test rust_vivid rust_vim2m || exit 1

# leaks: what kmemleak finds, in three scans. It ends itself when it is out of memory.
leaks() {
	local file=/sys/kernel/debug/kmemleak i scans=0
	for i in 1 2 3; do
		sleep 6
		echo scan >$file && scans=$((scans + 1))
	done
	[ $scans = 3 ] || echo "kmemleak has given up"
	cat $file
}

case $1 in
stress)
	# All errors of the DMA API are to be told, not only the first.
	for i in all_errors num_errors; do
		[ ! -e /sys/kernel/debug/dma-api/$i ] || echo 1 >/sys/kernel/debug/dma-api/$i
	done
	$programs/dma-buf/dmabuf_stress -t "$2" 2>&1 | tee $out/stress.log
	rc=${PIPESTATUS[0]}
	leaks >$out/leaks
	[ ! -s $out/leaks ] || { sed 's/^/# leaked: /' $out/leaks >>$out/stress.log; rc=1; }
	# How many accesses were watched: no report means nothing without them.
	[ ! -e /sys/kernel/debug/kcsan ] || sed 's/^/# KCSAN /' /sys/kernel/debug/kcsan >>$out/stress.log
	echo "$rc" >$out/stress.rc
	;;
fuzz)
	$programs/dmabuf-fuzz --seed "$2" --calls "$3" --log $out/fuzz.calls >$out/fuzz.log 2>&1
	rc=$?
	leaks >$out/leaks
	[ ! -s $out/leaks ] || { sed 's/^/# leaked: /' $out/leaks >>$out/fuzz.log; rc=1; }
	echo "$rc" >$out/fuzz.rc
	;;
coverage)
	find /sys/kernel/debug/gcov -name dma-buf.gcda -exec cat {} \; >$out/dma-buf.gcda
	;;
esac
true
