#!/bin/sh
# Installs what the quickstart needs and this machine lacks, from its distribution's packages: Debian 12 or
# newer, Ubuntu 22.04 or newer. Removes nothing, starts no service, and does nothing where all is there.
# containerd's package enables its service for the next boot, as the distribution does for every service.
#
# usage: install-packages.sh [tests]     with "tests" also what only the tests use
set -eu

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
POLICY=/usr/sbin/policy-rc.d
SAVED=$POLICY.kata-saved

fail() {
    echo "install-packages: $*" >&2
    exit 1
}

# Sets virtiofsd and python to the names of the packages that have them.
choose_packages() {
    id='' version=''
    [ ! -r /etc/os-release ] || . /etc/os-release
    id=${ID:-unknown} version=${VERSION_ID:-}
    python='python3 python3-venv' virtiofsd=virtiofsd
    case $id:$version in
    debian:12) virtiofsd=qemu-system-common ;;
    ubuntu:22.04) virtiofsd=qemu-system-common python='python3.11 python3.11-venv' ;;
    debian:1[3-9] | debian:[2-9][0-9] | debian: | ubuntu:2[4-9].* | ubuntu:[3-9][0-9].*) ;;
    *) fail "cannot install on $id ${version:-without a version}: this is for Debian 12 and Ubuntu 22.04 or" \
        "newer; on others, install QEMU, virtiofsd, containerd, erofs-utils and Python 3.11 by hand" ;;
    esac
}

# Prints the packages of which the program or file is missing. A program from elsewhere is as good: Docker's
# containerd, say, would be removed if the distribution's were installed.
list_missing() {
    any_of "$(command -v qemu-system-x86_64)" || echo qemu-system-x86
    any_of /usr/lib/qemu/virtiofsd /usr/libexec/virtiofsd || echo "$virtiofsd"
    any_of "$(command -v containerd)" || echo containerd
    any_of "$(command -v mkfs.erofs)" || echo erofs-utils
    any_of "$(command -v zstd)" || echo zstd
    any_of "$(command -v gcc)" || echo gcc
    any_of /usr/lib/*/libseccomp.so.2 || echo libseccomp2
    is_static_busybox || echo busybox-static
    has_python || echo "$python"
    [ "$purpose" != tests ] || list_missing_of_tests
}

# What tests skip without: the guest agent's tests run crun on this host, others compile small programs against
# two C libraries and compare structures with the kernel's headers, and some make network devices.
list_missing_of_tests() {
    any_of "$(command -v crun)" || echo crun
    any_of "$(command -v musl-gcc)" || echo musl-tools
    any_of "$(command -v ip)" || echo iproute2
    any_of "$(command -v iptables)" || echo iptables
    any_of /usr/lib/cni/bridge || echo containernetworking-plugins
    any_of "$(command -v git)" || echo git
    any_of /usr/include/linux/kvm.h || echo linux-libc-dev
    any_of /usr/include/stdio.h || echo libc6-dev
}

any_of() {
    for file in "$@"; do
        [ ! -x "$file" ] && [ ! -f "$file" ] || return 0
    done
    return 1
}

is_static_busybox() {
    [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1
}

has_python() {
    for program in /usr/bin/python3 /usr/bin/python3.11; do
        "$program" -IS -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return 0
    done
    return 1
}

# While packages are installed, invoke-rc.d asks this and learns that no service may be started.
hold_services() {
    restore_services
    [ ! -e $POLICY ] || mv $POLICY $SAVED
    trap restore_services EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\n# kata quickstart: removed when the packages are installed\nexit 101\n' >$POLICY
    chmod 755 $POLICY
}

# Also mends what a killed run left behind.
restore_services() {
    if [ -f $POLICY ] && grep -q 'kata quickstart' $POLICY; then rm -f $POLICY; fi
    [ ! -e $SAVED ] || mv $SAVED $POLICY
}

# Runs apt-get, quietly unless it fails.
apt() {
    if ! output=$(DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" 2>&1 </dev/null); then
        echo "$output" | tail -n 5 >&2
        fail "apt-get $1 failed: see the lines above"
    fi
}

purpose=${1:-run}
case $purpose in
run | tests) ;;
*) fail "unknown argument $purpose: give \"tests\", or nothing" ;;
esac
choose_packages
missing=$(list_missing | tr '\n' ' ')
if [ -z "$missing" ]; then
    echo "packages: all there"
    exit 0
fi
if [ "$(id -u)" != 0 ] && [ "$purpose" = tests ] && [ "$missing" = "$(list_missing_of_tests | tr '\n' ' ')" ]; then
    echo "packages: tests that need $missing are skipped; root could install that"
    exit 0
fi
[ "$(id -u)" = 0 ] || fail "installing $missing needs root: run as root"
echo "packages: fetching the package lists"
apt update
echo "packages: installing $missing"
hold_services
# shellcheck disable=SC2086 # one word for each package
apt install --yes --no-install-recommends --no-remove $missing
missing=$(list_missing | tr '\n' ' ')
[ -z "$missing" ] || fail "still missing after the installation: $missing"
echo "packages: installed"
