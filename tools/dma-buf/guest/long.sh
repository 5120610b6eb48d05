#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Runs in the guest: what takes longer than tests.sh. The host reads what it leaves in /bench/out.

out=/bench/out
programs=/bench/programs
mkdir -p $out

modprobe -a vgem vivid vim2m rust_dma_buf rust_vivid rust_vim2m
[ ! -e /sys/kernel/debug/dma-api/all_errors ] || echo 1 >/sys/kernel/debug/dma-api/all_errors

# leaks: what kmemleak finds, in three scans.
leaks() {
	local file=/sys/kernel/debug/kmemleak i
	[ -e $file ] || return 0
	for i in 1 2 3; do
		sleep 6
		echo scan >$file
	done
	cat $file
}

case $1 in
stress)
	$programs/dma-buf/dmabuf_stress -t "$2" 2>&1 | tee $out/stress.log
	rc=${PIPESTATUS[0]}
	leaks >$out/leaks
	[ ! -s $out/leaks ] || { sed 's/^/# leaked: /' $out/leaks >>$out/stress.log; rc=1; }
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
