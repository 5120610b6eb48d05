# SPDX-License-Identifier: GPL-2.0
# What comes from outside: host packages, the toolchain, the kernel source, the guest's root.

SUITE=trixie
LINUX_VERSION=7.3.4
LINUX_SERIES=7.3

TOOLCHAIN_PACKAGES=ca-certificates,make,clang,lld,llvm,rustc,rust-src,rustfmt,rust-clippy,bindgen
TOOLCHAIN_PACKAGES+=,ccache,flex,bison,bc,perl,python3,git,patch,diffutils,file,kmod,cpio,rsync
TOOLCHAIN_PACKAGES+=,xz-utils,zstd,libelf-dev,libssl-dev,libc6-dev,gcc,libdw-dev,pahole,sparse
TOOLCHAIN_PACKAGES+=,gcc-aarch64-linux-gnu,libc6-dev-arm64-cross,qemu-system-arm

GUEST_PACKAGES=bash,coreutils,util-linux,mount,grep,sed,mawk,kmod,procps,findutils,diffutils
GUEST_PACKAGES+=,v4l-utils,libc-bin

# need_host COMMAND PACKAGE...: install packages if a command is missing.
need_host() {
	local cmd=$1
	shift
	have "$cmd" && return
	have apt-get || die "this machine has no $cmd" "install it by hand"
	[ "$(id -u)" = 0 ] || die "this machine has no $cmd, and only root can install it" \
		"run: apt-get install $*"
	say "installing $* on this machine"
	logged "$CACHE/log/apt.log" apt-get update ||
		die "apt-get update failed" "check the network and /etc/apt; the log is $CACHE/log/apt.log"
	logged "$CACHE/log/apt.log" env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends "$@" ||
		die "apt-get could not install $*" "the log is $CACHE/log/apt.log"
}

# The Debian mirror: what --mirror says, else what the packages of this machine come from.
mirror() {
	local uri
	if [ -n "$MIRROR" ]; then
		echo "$MIRROR"
		return
	fi
	have apt-get || die "this machine is not a Debian, so there is no mirror to take from it" \
		"name one with --mirror URL"
	uri=$(host_mirror)
	if [ -z "$uri" ] && [ "$(id -u)" = 0 ]; then
		# Without package lists apt does not tell.
		logged "$CACHE/log/apt.log" apt-get update ||
			die "apt-get update failed" "check the network and /etc/apt; the log is $CACHE/log/apt.log"
		uri=$(host_mirror)
	fi
	[ -n "$uri" ] || die "no Debian mirror in this machine's package configuration" \
		"name one with --mirror URL"
	echo "$uri"
}

host_mirror() {
	apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' |
		sed -nE '/security/!s/^Debian ([^ ]*debian\/?)$/\1/p' | head -n 1 || true
}

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# apt_get_from SUITE DIR ARGUMENT...: apt-get with an apt configuration of its own in DIR.
apt_get_from() {
	local suite=$1 dir=$2
	shift 2
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	printf '%s [signed-by=%s] %s %s main\n' \
		deb "$KEYRING" "$(mirror)" "$suite" deb-src "$KEYRING" "$(mirror)" "$suite" \
		>"$dir/sources.list"
	apt-get -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=- \
		-o Dir::State::lists="$dir/lists" -o Dir::Cache="$dir/cache" \
		-o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
		-o APT::Sandbox::User=root -o Acquire::Retries=3 "$@"
}

# host_toolchain_ok: whether this machine has all that the builds, checks and boots want.
host_toolchain_ok() {
	local cmd
	for cmd in make clang ld.lld llvm-objcopy rustc rustfmt clippy-driver bindgen flex bison bc \
		perl python3 git sparse ccache aarch64-linux-gnu-gcc qemu-system-aarch64 depmod; do
		have "$cmd" || { echo "no $cmd"; return 1; }
	done
	[ -e "$(rustc --print sysroot)/lib/rustlib/src/rust/library/core/src/lib.rs" ] ||
		{ echo "rustc has no rust-src"; return 1; }
	python3 - "$(rustc --version)" "$(bindgen --version)" "$(clang --version | head -n 1)" <<-'PY' ||
		import re, sys
		want = ((1, 85, 0), (0, 71, 1), (17, 0, 0))
		for text, least in zip(sys.argv[1:], want):
		    if tuple(map(int, re.search(r"(\d+)\.(\d+)\.(\d+)", text).groups())) < least:
		        sys.exit(1)
	PY
		{ echo "rustc, bindgen or clang is too old"; return 1; }
}

# get_toolchain: a toolchain that "make rustavailable" takes. Sets TOOLS to its root, or to / .
get_toolchain() {
	local why tmp want
	if why=$(host_toolchain_ok); then
		TOOLS=/
		say "toolchain: this machine's ($(rustc --version))"
		return
	fi
	[ -z "$HOST_TOOLCHAIN" ] || die "this machine's toolchain does not do: $why" \
		"install what is missing, or leave --host-toolchain out"
	[ "$(id -u)" = 0 ] || die "this machine's toolchain does not do ($why), and making one needs root" \
		"run as root, or install what is missing"

	need_host mmdebstrap mmdebstrap
	TOOLS=$CACHE/toolchain
	want=$(key "$SUITE" "$TOOLCHAIN_PACKAGES")
	if ! made toolchain "$want"; then
		need_space 10
		say "toolchain: making a Debian $SUITE root (this machine's does not do: $why)"
		tmp=$(begin toolchain)
		logged "$CACHE/log/toolchain.log" mmdebstrap --variant=minbase --keyring="$KEYRING" \
			--include="$TOOLCHAIN_PACKAGES" "$SUITE" "$tmp" "$(mirror)" ||
			die "mmdebstrap could not make the toolchain" \
				"check the network and the mirror; the log is $CACHE/log/toolchain.log"
		finish toolchain "$want"
	fi
	in_tools true || die "cannot run a command in $TOOLS" \
		"making mount namespaces needs CAP_SYS_ADMIN: run as root outside of a restricted container"
	say "toolchain: $TOOLS ($(in_tools rustc --version))"
}

# in_tools COMMAND...: run a command of the toolchain in the current folder.
#
# In a root of its own, it sees the cache, the repository and the kernel at the paths they have.
in_tools() {
	local env=(CCACHE_DIR="$CACHE/ccache" CCACHE_COMPILERCHECK=content LANG=C.UTF-8 TERM=dumb)
	if [ "$TOOLS" = / ]; then
		env "${env[@]}" "$@"
		return
	fi
	env+=(HOME="$CACHE" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
	# shellcheck disable=SC2016
	unshare --mount --propagation private bash -c '
		set -e
		tools=$1 here=$2 n=$3
		shift 3
		while [ "$n" -gt 0 ]; do
			mkdir -p "$tools$1"
			mount --bind "$1" "$tools$1"
			shift
			n=$((n - 1))
		done
		mount -t proc proc "$tools/proc"
		mount --rbind /dev "$tools/dev"
		exec chroot "$tools" /usr/bin/env -i -C "$here" "$@"
	' in_tools "$TOOLS" "$PWD" 2 "$CACHE" "$REPO" "${env[@]}" "$@"
}

# get_source: the kernel as a git repository at $CACHE/linux, whose tag "base" is Linux as released.
get_source() {
	local want tmp dir=$CACHE/apt file
	want=$(key "$LINUX_VERSION")
	made linux "$want" && return
	need_host git git
	need_host xz xz-utils
	need_space 8
	mkdir -p "$CACHE/download"
	file=$(find "$CACHE/download" -name "linux_$LINUX_VERSION.orig.tar.xz" \
		-o -name "linux-source-*_$LINUX_VERSION-*.deb" | sort | head -n 1)
	if [ -z "$file" ]; then
		say "kernel: fetching Linux $LINUX_VERSION"
		logged "$CACHE/log/source.log" apt_get_from "$SUITE-backports" "$dir" update ||
			die "cannot read the package lists of $SUITE-backports" \
				"check the network and the mirror; the log is $CACHE/log/source.log"
		file=$(fetch_source "$dir")
	fi

	tmp=$(begin linux)
	mkdir -p "$tmp"
	say "kernel: unpacking ${file##*/}"
	case $file in
	*.tar.xz) tar -xJf "$file" -C "$tmp" --strip-components=1 ;;
	*.deb)
		dpkg-deb --fsys-tarfile "$file" |
			tar -xOf - --wildcards './usr/src/linux-source-*.tar.xz' |
			tar -xJf - -C "$tmp" --strip-components=1
		;;
	esac || { rm -f "$file"; die "$file is damaged; it was removed" "start again"; }
	logged "$CACHE/log/source.log" git_init "$tmp" || die "git could not take the source in"
	finish linux "$want"
}

# fetch_source DIR: download the source; its path on standard output.
fetch_source() {
	local dir=$1 out=$CACHE/download version
	version=$(apt_get_from "$SUITE-backports" "$dir" --print-uris source --tar-only linux \
		2>/dev/null | grep -oE 'linux_[0-9.~a-z]+\.orig\.tar\.xz' | head -n 1 || true)
	if [ "$version" = "linux_$LINUX_VERSION.orig.tar.xz" ] &&
		(cd "$out" && apt_get_from "$SUITE-backports" "$dir" -qq --download-only --tar-only \
			source linux >>"$CACHE/log/source.log" 2>&1); then
		echo "$out/linux_$LINUX_VERSION.orig.tar.xz"
		return
	fi
	rm -f "$out"/*.orig.tar.xz
	# The archive's pool may lack the upstream tarball of a version that its lists still name. The
	# binary package has the same source with Debian's patches applied.
	say "kernel: the mirror does not have the tarball as released;" \
		"taking linux-source-$LINUX_SERIES, which has Debian's patches in it"
	(cd "$out" && apt_get_from "$SUITE-backports" "$dir" -qq download \
		"linux-source-$LINUX_SERIES" >>"$CACHE/log/source.log" 2>&1) ||
		die "the mirror has neither the tarball of Linux $LINUX_VERSION nor linux-source-$LINUX_SERIES" \
			"name another mirror with --mirror URL, or a tree of your own with --kernel DIR"
	version=$(find "$out" -name "linux-source-${LINUX_SERIES}_*.deb" | sort | tail -n 1)
	case $version in
	*_"$LINUX_VERSION"-*) ;;
	*) say "kernel: the mirror has ${version##*/} instead of $LINUX_VERSION" ;;
	esac
	echo "$version"
}

GIT_ID=(-c user.name=workbench -c user.email=workbench@localhost -c commit.gpgsign=false)

git_init() {
	# Forced: Debian's .gitignore hides everything.
	cd "$1" && git init -q -b base-branch && git config gc.auto 0 && git add -A -f . &&
		git "${GIT_ID[@]}" commit -q -m "Linux $LINUX_VERSION" && git tag base
}

# get_rootfs: a small arm64 Debian at $CACHE/rootfs, unpacked but not configured.
get_rootfs() {
	local want tmp
	want=$(key "$SUITE" "$GUEST_PACKAGES" "$(cat "$BENCH/guest/init")")
	made rootfs "$want" && return
	[ "$(id -u)" = 0 ] || die "making the guest's root needs root" "run as root"
	need_host mmdebstrap mmdebstrap
	say "guest: making an arm64 root of Debian packages"
	tmp=$(begin rootfs)
	logged "$CACHE/log/rootfs.log" mmdebstrap --variant=extract --architectures=arm64 \
		--keyring="$KEYRING" --include="$GUEST_PACKAGES" "$SUITE" "$tmp" "$(mirror)" ||
		die "mmdebstrap could not make the guest's root" \
			"check the network and the mirror; the log is $CACHE/log/rootfs.log"
	# No maintainer script ran.
	ln -sf bash "$tmp/usr/bin/sh"
	ln -sf mawk "$tmp/usr/bin/awk"
	mkdir -p "$tmp"/{proc,sys,dev,tmp,run,bench} "$tmp/usr/lib"
	rm -rf "$tmp/usr/lib/modules"
	ln -s /bench/modules "$tmp/usr/lib/modules"
	install -m 755 "$BENCH/guest/init" "$tmp/usr/sbin/guest-init"
	finish rootfs "$want"
}
