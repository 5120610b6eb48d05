# SPDX-License-Identifier: GPL-2.0
# Messages, errors, the cache and its keys.

START=$SECONDS

# Progress goes to standard error, so that functions can return text.
say() {
	printf '[%3d:%02d] %s\n' $(((SECONDS - START) / 60)) $(((SECONDS - START) % 60)) "$*" >&2
}

# die MESSAGE [WHAT-TO-DO]: end with an error.
die() {
	printf 'run: error: %s\n' "$1" >&2
	[ $# -lt 2 ] || printf 'run: %s\n' "$2" >&2
	exit 1
}

usage_error() {
	printf 'run: %s\nrun: try "%s/run --help"\n' "$1" "tools/dma-buf" >&2
	exit 2
}

have() {
	command -v "$1" >/dev/null 2>&1
}

# key WORD...: a short hash of the words.
key() {
	printf '%s\n' "$@" | sha256sum | cut -c1-16
}

# logged LOG COMMAND...: run a command with its output in a log, and show the end of it on failure.
# A line tells every half minute how far it is.
logged() {
	local log=$1 pid began=$SECONDS last=$SECONDS
	shift
	mkdir -p "$(dirname "$log")"
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		if [ $((SECONDS - last)) -ge 30 ]; then
			last=$SECONDS
			say "    ... $((SECONDS - began)) s: $(tail -n 1 "$log" | tr -d '\r' | cut -c1-90)"
		fi
	done
	if ! wait "$pid"; then
		printf '%s\n' "---- end of $log ----" >&2
		tail -n 40 "$log" >&2
		printf '%s\n' "----" >&2
		return 1
	fi
}

ASKING=''
declare -A BEGAN=()

# made NAME KEY: whether the cache holds NAME, complete, for KEY. If not, it will be made now.
made() {
	[ ! -e "$CACHE/$1" ] || [ "$(cat "$CACHE/$1.key" 2>/dev/null)" != "$2" ] || return 0
	[ -z "$ASKING" ] || exit 1
	BEGAN[$1]=$SECONDS
	return 1
}

# found COMMAND...: whether the cache holds what a command would make, which then does nothing else.
found() {
	(ASKING=y; "$@") >/dev/null 2>&1
}

# begin NAME: remove what there is of NAME, and say where to make it anew.
begin() {
	rm -rf --one-file-system "${CACHE:?}/$1.key" "${CACHE:?}/$1" "${CACHE:?}/$1.tmp"
	echo "$CACHE/$1.tmp"
}

# finish NAME KEY: what was made at NAME.tmp is complete.
finish() {
	mv "$CACHE/$1.tmp" "$CACHE/$1"
	printf '%s\n' "$2" >"$CACHE/$1.key"
	[ -z "${BEGAN[$1]:-}" ] || took "$1" "${BEGAN[$1]}"
}

# took NAME SINCE: remember how long the step NAME took, in a file because steps run beside each other.
took() {
	mkdir -p "$CACHE/times"
	echo $((SECONDS - $2)) >"$CACHE/times/${1//\//-}"
}

# timed NAME COMMAND...: remember how long a command took, if it succeeds.
timed() {
	local name=$1 since=$SECONDS rc
	shift
	# Not "if", which would have the command go on after an error.
	"$@"
	rc=$?
	[ $rc != 0 ] || took "$name" "$since"
	return $rc
}

# clock SECONDS: as minutes and seconds.
clock() {
	printf '%d:%02d' $(($1 / 60)) $(($1 % 60))
}

# A long verb stores each result when it is complete, under a key of all that it depends on. So little is
# lost by an interruption, and nothing for a change elsewhere. A failure is not stored.

AGAIN=''

# stored VERB KEY: the file of a result, if there is one. With --again it is removed, as what is made
# instead may fail.
stored() {
	local file=$CACHE/done/$1/$2
	[ -z "$AGAIN" ] || rm -f "$file"
	# An empty file is what a crash of the machine may leave.
	[ -s "$file" ] && echo "$file"
}

# store VERB KEY: keep standard input, which is complete and not empty, as a result.
store() {
	local file=$CACHE/done/$1/$2
	mkdir -p "$CACHE/done/$1"
	cat >"$file.tmp" && mv "$file.tmp" "$file"
}

# compilers: what builds kernels, for keys.
compilers() {
	in_tools sh -c 'rustc --version; clang --version; bindgen --version'
}

# need_space GIB: fail early instead of in the middle.
need_space() {
	local free
	free=$(df --output=avail -BG "$CACHE" | tail -n 1 | tr -dc 0-9)
	[ "$free" -ge "$1" ] || die "$CACHE has $free GiB free, $1 GiB are needed" \
		"make room, or put the cache elsewhere with --cache DIR"
}

# open_cache: make the cache, or check that it is one, and see that one workbench at a time uses it.
open_cache() {
	mkdir -p "$CACHE" 2>/dev/null || die "cannot make $CACHE" "choose another folder with --cache DIR"
	CACHE=$(cd "$CACHE" && pwd)
	if [ ! -e "$CACHE/.dma-buf-workbench" ]; then
		[ -z "$(ls -A "$CACHE")" ] || die "$CACHE has files in it that are not the workbench's" \
			"choose an empty folder with --cache DIR"
		: >"$CACHE/.dma-buf-workbench" || die "cannot write to $CACHE" "choose another with --cache DIR"
	fi
	mkdir -p "$CACHE/log"
	exec 9>"$CACHE/lock"
	flock -n 9 || die "another run is using $CACHE" "wait for it, or use --cache DIR"
	LOCKED=$CACHE/lock
}

# stop_all: what runs in the background does not hear of Ctrl-C. All that has the lock open is of this run.
stop_all() {
	local fd pid
	trap '' TERM
	[ -n "${LOCKED:-}" ] || return 0
	for fd in /proc/[0-9]*/fd/9; do
		pid=${fd#/proc/}
		[ ! "$fd" -ef "$LOCKED" ] || kill "${pid%%/*}" 2>/dev/null || true
	done
}
