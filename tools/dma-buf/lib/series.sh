# SPDX-License-Identifier: GPL-2.0
# The series: patches/ and the files in the repository, against a kernel tree.
#
# A file that the series adds is edited in the repository; an edit of a file that Linux has lives
# in a patch only. Patches are made anew from both.

# Where the files that the series adds are.
SERIES_DIRS=(Documentation drivers include rust samples tools/testing)

series_files() {
	cat "$CACHE/series-files"
}

# list_series_files: look what series_files has to tell.
list_series_files() {
	git -C "$REPO" ls-files -co --exclude-standard -- "${SERIES_DIRS[@]}" >"$CACHE/series-files.new" ||
		die "$REPO is not a git checkout"
	while read -r f; do
		[ ! -e "$REPO/$f" ] || echo "$f"
	done <"$CACHE/series-files.new" | sort >"$CACHE/series-files"
	[ -s "$CACHE/series-files" ] || die "$REPO has none of the files of the series"
	[ -n "$(series_patches)" ] || die "there are no patches in $REPO/patches"
}

series_patches() {
	find "$REPO/patches" -maxdepth 1 -name '[0-9]*.patch' | sort
}

# added_by PATCH: the files that a patch adds.
added_by() {
	awk '/^diff --git /{f=substr($4,3)} /^new file mode /{print f}' "$1"
}

# base_tree: the repository of the kernel and what the series goes on; sets TREE and BASE.
#
# A user's tree is cloned (sharing its objects), so that nothing is written there.
base_tree() {
	list_series_files
	if [ -z "$KERNEL" ]; then
		get_source
		TREE=$CACHE/linux
		BASE=$(git -C "$TREE" rev-parse base^0)
	else
		git -C "$KERNEL" rev-parse --verify -q HEAD >/dev/null ||
			die "$KERNEL is not a git tree with a commit" "use --kernel with a clone of Linux"
		[ -f "$KERNEL/drivers/dma-buf/dma-buf.c" ] || die "$KERNEL is not a Linux tree"
		[ -z "$(git -C "$KERNEL" status --porcelain -uno | head -n 1)" ] ||
			say "kernel: changes in $KERNEL that are not committed are left out"
		BASE=$(git -C "$KERNEL" rev-parse HEAD)
		TREE=$CACHE/tree-$(key "$KERNEL")
		if [ ! -e "$TREE.key" ]; then
			rm -rf "$TREE"
			git clone -q -s -n "$KERNEL" "$TREE"
			git -C "$TREE" config gc.auto 0
			: >"$TREE.key"
		fi
		git -C "$TREE" fetch -q "$KERNEL" "$BASE"
	fi
	# The cache is locked, so this is left over from a run that was killed.
	rm -f "$TREE/.git/index.lock"
}

# scratch_tree DIR REV: a work tree in DIR that has only the files which the series touches.
scratch_tree() {
	local dir=$1 rev=$2
	rm -rf "$dir"
	git -C "$TREE" worktree prune
	git -C "$TREE" worktree add -q --no-checkout --detach "$dir" "$rev"
	{
		series_patches | xargs -r sed -n 's|^diff --git a/\(.*\) b/.*|/\1|p'
		series_files | sed 's|^|/|'
		printf '%s\n' /MAINTAINERS /scripts/checkpatch.pl /scripts/const_structs.checkpatch \
			/scripts/spelling.txt /Documentation/dev-tools/checkpatch.rst
	} | sort -u >"$CACHE/sparse-paths"
	git -C "$dir" sparse-checkout set --no-cone --stdin <"$CACHE/sparse-paths"
	git -C "$dir" checkout -q
}

drop_scratch_tree() {
	git -C "$TREE" worktree remove --force "$1"
}

# am DIR PATCH: apply a patch in a work tree. The result depends on nothing but the inputs.
am() {
	local dir=$1 patch=$2
	git -C "$dir" "${GIT_ID[@]}" -c advice.mergeConflict=false am -q --committer-date-is-author-date \
		"$patch" >"$CACHE/log/am.log" 2>&1 && return
	git -C "$dir" am --abort >/dev/null 2>&1 || true
	cat "$CACHE/log/am.log" >&2
	if git -C "$dir" apply -R --check "$patch" 2>/dev/null; then
		die "the tree has patches/${patch##*/} already" "use a tree without the series"
	fi
	die "patches/${patch##*/} does not apply to $(make_version) (${BASE:0:12})" \
		"the series is for Linux $LINUX_SERIES: see \"git am\" above for the file, and rebase the patch"
}

# series_commit: a commit with the patches and the files of the repository; its hash to stdout.
series_commit() {
	local dir=$CACHE/scratch patch f differ=()
	local date="2026-01-01T00:00:00+00:00"
	scratch_tree "$dir" "$BASE"
	for patch in $(series_patches); do
		am "$dir" "$patch"
	done
	while read -r f; do
		if ! cmp -s "$REPO/$f" "$dir/$f"; then
			mkdir -p "$(dirname "$dir/$f")"
			cp "$REPO/$f" "$dir/$f"
			differ+=("$f")
		fi
	done < <(series_files)
	# A file that a patch adds, and that the repository no longer has.
	while read -r f; do
		[ -e "$REPO/$f" ] || { rm -f "$dir/$f"; differ+=("$f"); }
	done < <(for patch in $(series_patches); do added_by "$patch"; done)
	if [ ${#differ[@]} -gt 0 ]; then
		say "series: building the repository's files, which differ from patches/:" \
			"${differ[0]}$([ ${#differ[@]} = 1 ] || echo " and $((${#differ[@]} - 1)) more")" \
			"(see \"run series refresh\")"
		git -C "$dir" add -A -f --sparse
		GIT_AUTHOR_DATE=$date GIT_COMMITTER_DATE=$date \
			git -C "$dir" "${GIT_ID[@]}" commit -q -m "Files that differ from patches/"
	fi
	git -C "$dir" rev-parse HEAD
	drop_scratch_tree "$dir"
}

# series_tree: check the series out for building; sets REV.
series_tree() {
	base_tree
	REV=$(series_commit)
	git -C "$TREE" -c advice.detachedHead=false checkout -q -f --detach "$REV"
	say "kernel: $(make_version) with $(series_patches | wc -l) patches"
	[ -z "$KERNEL" ] || hand_over
}

# hand_over: give a user's tree a branch with the series.
hand_over() {
	local branch=rust-dma-buf there
	there=$(git -C "$KERNEL" rev-parse --verify -q "refs/heads/$branch" || true)
	if [ -n "$there" ] && [ "$there" != "$(cat "$TREE.branch" 2>/dev/null)" ]; then
		say "kernel: $KERNEL has a branch $branch of its own, which is left alone"
		return
	fi
	if [ "$(git -C "$KERNEL" symbolic-ref -q HEAD || true)" = "refs/heads/$branch" ]; then
		say "kernel: branch $branch is checked out in $KERNEL, and is left alone"
		return
	fi
	git -C "$KERNEL" fetch -q "$TREE" "+$REV:refs/heads/$branch"
	echo "$REV" >"$TREE.branch"
	say "kernel: branch $branch of $KERNEL has the series; it is built in $TREE"
}

make_version() {
	git -C "$TREE" show "$BASE:Makefile" |
		awk '/^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) =/{v[$1]=$3}
			END{print "Linux " v["VERSION"] "." v["PATCHLEVEL"] "." v["SUBLEVEL"] v["EXTRAVERSION"]}'
}

# series_refresh [FILE=NUMBER...]: make the patches anew.
series_refresh() {
	local dir=$CACHE/scratch patch f n missing=() new=$CACHE/patches.new
	local -A into=() home=()
	for f in "$@"; do
		[[ $f == *=* ]] || usage_error "series refresh: FILE=NUMBER, not \"$f\""
		into[${f%%=*}]=${f#*=}
	done
	base_tree
	scratch_tree "$dir" "$BASE"
	for patch in $(series_patches); do
		n=$(basename "$patch" | cut -c1-4)
		am "$dir" "$patch"
		while read -r f; do
			home[$f]=$n
		done < <(added_by "$patch"; for f in "${!into[@]}"; do
			[ "$((10#${into[$f]}))" != "$((10#$n))" ] || echo "$f"
		done)
		for f in "${!home[@]}"; do
			[ "${home[$f]}" = "$n" ] || continue
			if [ -e "$REPO/$f" ]; then
				mkdir -p "$(dirname "$dir/$f")"
				cp "$REPO/$f" "$dir/$f"
			else
				rm -f "$dir/$f"
			fi
		done
		git -C "$dir" add -A -f --sparse
		git -C "$dir" "${GIT_ID[@]}" commit -q --amend --no-edit \
			--date="$(git -C "$dir" log -1 --format=%aD)"
	done
	while read -r f; do
		[ -n "${home[$f]:-}" ] || missing+=("$f")
	done < <(series_files)
	if [ ${#missing[@]} -gt 0 ]; then
		drop_scratch_tree "$dir"
		printf '    %s\n' "${missing[@]}" >&2
		die "no patch adds the files above" "name one for each: run series refresh FILE=NUMBER"
	fi
	export_patches "$dir" HEAD "$new"
	drop_scratch_tree "$dir"
}

# export_patches DIR REV NEW: format BASE..REV as patches/.
export_patches() {
	local dir=$1 rev=$2 new=$3
	rm -rf "$new"
	git -C "$dir" format-patch -q -N --zero-commit --no-signature -o "$new" "$BASE..$rev"
	[ -e "$(find "$new" -name '0001-*' | head -n 1)" ] || die "no commits on the base: patches/ is left alone"
	find "$REPO/patches" -maxdepth 1 -name '[0-9]*.patch' -delete
	mkdir -p "$REPO/patches"
	mv "$new"/*.patch "$REPO/patches/"
	say "series: $(series_patches | wc -l) patches in patches/"
}

# series_edit: a work tree for editing hunks, messages and order with git.
series_edit() {
	base_tree
	local dir=$CACHE/edit patch f
	[ ! -e "$dir.ready" ] || die "$dir is being edited already" "finish with: run series import"
	scratch_tree "$dir" "$BASE"
	for patch in $(series_patches); do am "$dir" "$patch"; done
	while read -r f; do
		cmp -s "$REPO/$f" "$dir/$f" || die "$f differs from patches/" "first: run series refresh"
	done < <(series_files)
	git -C "$dir" rev-parse HEAD >"$dir.ready"
	echo "$dir"
	say "series: edit the commits there with git, then: run series import"
}

# series_import: take the patches, and the files that they add, from the edited work tree.
series_import() {
	base_tree
	local dir=$CACHE/edit f git_dir
	[ -e "$dir.ready" ] || die "nothing is being edited" "start with: run series edit"
	[ -z "$(git -C "$dir" status --porcelain)" ] || die "$dir has uncommitted changes" "commit them"
	git_dir=$(git -C "$dir" rev-parse --absolute-git-dir)
	[ ! -e "$git_dir/rebase-merge" ] && [ ! -e "$git_dir/rebase-apply" ] ||
		die "a rebase is under way in $dir" "finish it"
	[ -z "$(git -C "$REPO" status --porcelain -- "${SERIES_DIRS[@]}" patches)" ] ||
		die "the repository has changes that are not committed, which would be lost" "commit them"
	export_patches "$dir" HEAD "$CACHE/patches.new"
	while read -r f; do
		mkdir -p "$(dirname "$REPO/$f")"
		cp "$dir/$f" "$REPO/$f"
	done < <(git -C "$dir" diff --name-only --diff-filter=A "$BASE" HEAD)
	rm -f "$dir.ready"
	drop_scratch_tree "$dir"
}

# series_check: print "ok" or "not ok" lines (TAP) for what must hold of the series.
series_check() {
	base_tree
	local dir=$CACHE/scratch patch f n=0 bad ignore log=$CACHE/log/checkpatch.log
	scratch_tree "$dir" "$BASE"
	: >"$log"
	for patch in $(series_patches); do
		am "$dir" "$patch"
		n=$((n + 1))
		echo "ok $n applies: ${patch##*/}"
	done

	bad=()
	while read -r f; do
		cmp -s "$REPO/$f" "$dir/$f" || bad+=("$f")
	done < <(series_files)
	report $((n += 1)) "the files here are those of the series" "${bad[@]}"

	mapfile -t bad < <(git -C "$dir" diff --name-only --diff-filter=A "$BASE" HEAD |
		while read -r f; do [ -e "$REPO/$f" ] || echo "$f"; done)
	report $((n += 1)) "the series adds nothing else" "${bad[@]}"

	mapfile -t bad < <(git -C "$dir" log --format= --name-only "$BASE..HEAD" -- $(series_files) |
		sort | uniq -d)
	report $((n += 1)) "each file is added by one patch, in its final form" "${bad[@]}"

	bad=()
	in_tools python3 "$BENCH/lib/maintainers.py" "$REPO/MAINTAINERS" "$dir/MAINTAINERS" ||
		bad=(MAINTAINERS)
	report $((n += 1)) "MAINTAINERS has the entries of this repository's" "${bad[@]}"

	bad=()
	! grep -l '^Signed-off-by:' $(series_patches) >"$CACHE/signed" || mapfile -t bad <"$CACHE/signed"
	report $((n += 1)) "no patch carries a sign-off, which the submitter adds" "${bad[@]}"

	for patch in $(series_patches); do
		bad=()
		# The submitter signs off. What is exported here is defined in Rust, so never just above.
		# Programs in user space have no BIT(), no __printf(), and the macros of the harness.
		ignore=MISSING_SIGN_OFF,EXPORT_SYMBOL
		case $patch in
		*selftests*) ignore+=,BIT_MACRO,VOLATILE,PREFER_DEFINED_ATTRIBUTE_MACRO
			ignore+=,MULTISTATEMENT_MACRO_USE_DO_WHILE,MACRO_ARG_REUSE,SPACING ;;
		esac
		(cd "$dir" && in_tools perl scripts/checkpatch.pl --no-tree --strict --terse \
			--ignore "$ignore" \
			--summary-file "$patch") >>"$log" 2>&1 || bad=("see $log")
		report $((n += 1)) "checkpatch: ${patch##*/}" "${bad[@]}"
	done
	drop_scratch_tree "$dir"

	# They are for Linux as released, without the series, and each for itself.
	for patch in "$REPO"/patches/fixes/*.patch; do
		[ -z "$KERNEL" ] || break
		bad=()
		(
			export GIT_INDEX_FILE=$CACHE/fixes.index
			git -C "$TREE" read-tree "$BASE" &&
				git -C "$TREE" apply --cached --check "$patch" &&
				in_tools perl "$TREE/scripts/checkpatch.pl" --no-tree --strict --terse \
					--ignore MISSING_SIGN_OFF,UNKNOWN_COMMIT_ID "$patch"
		) >>"$log" 2>&1 || bad=("see $log")
		rm -f "$CACHE/fixes.index"
		report $((n += 1)) "proposed fix: ${patch##*/}" "${bad[@]}"
	done
	echo "1..$n"
}

# report NUMBER NAME [PROBLEM...]
report() {
	if [ $# -gt 2 ]; then
		echo "not ok $1 $2"
		shift 2
		printf '# %s\n' "$@"
	else
		echo "ok $1 $2"
	fi
}
