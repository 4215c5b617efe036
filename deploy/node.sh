#!/bin/sh
# Installs the runtime on the node whose root directory is $HOST, or takes it off again.
#
# usage: node.sh install | remove | serve     serve: install, wait for SIGTERM, remove
#
# What is the operator's is left alone: a configuration that is there, and what is in containerd's own beside our block.
# Nothing is removed while pods run in virtual machines, and the configuration and the guest's image stay.
set -eu

HOST=${HOST:-/host}
SOURCE=${SOURCE:-/opt/kata-runtime-py}
PREFIX=/opt/kata-runtime-py
IMAGE=/var/lib/kata-containers/image
CONFIGURATION=/etc/kata-containers/configuration.toml
CONTAINERD=/etc/containerd/config.toml
STATE=/run/kata-containers
JUDGED=/run/kata-configuration
LAUNCHERS='/usr/local/bin/containerd-shim-kata-v2 /usr/local/bin/containerd-shim-containerd-kata'

fail() {
    echo "node.sh: $*" >&2
    exit 1
}

on_host() {
    chroot "$HOST" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        SYSTEMD_IGNORE_CHROOT=1 "$@"
}

# What a node must bring: the kernel's part and programs of its distribution, which are not ours to install.
check_node() {
    for program in containerd qemu-system-x86_64 python3; do
        on_host sh -c "command -v $program" >/dev/null ||
            fail "the node has no $program: install it from its distribution's packages"
    done
    on_host sh -c 'test -x /usr/lib/qemu/virtiofsd || test -x /usr/libexec/virtiofsd' ||
        fail "the node has no virtiofsd: install it from its distribution's packages"
    on_host python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "the node's python3 is older than 3.11"
    on_host python3 -c 'import ensurepip, venv' 2>/dev/null ||
        fail "the node's python3 has no venv: install python3-venv from its distribution's packages"
}

install() {
    check_node
    rm -rf "$HOST$PREFIX.new"
    mkdir -p "$HOST$PREFIX.new"
    cp -R "$SOURCE/wheels" "$SOURCE/runtime.txt" "$HOST$PREFIX.new"
    # Made in its place, because its programs name their interpreter; the one before is kept for pods that run.
    version=$(date +%s)-$$
    on_host python3 -m venv "$PREFIX/$version"
    on_host "$PREFIX/$version/bin/pip" install --quiet --disable-pip-version-check --no-index \
        --find-links "$PREFIX.new/wheels" --require-hashes --requirement "$PREFIX.new/runtime.txt"
    on_host sh -c "$PREFIX/$version/bin/pip install --quiet --disable-pip-version-check --no-index --no-deps \
        $PREFIX.new/wheels/kata_runtime_py-*.whl"
    rm -rf "$HOST$PREFIX.new"
    ctl="$PREFIX/$version/bin/kata-ctl"
    mkdir -p "$HOST$IMAGE" "$HOST${CONFIGURATION%/*}"
    for file in "$SOURCE"/image/*; do
        cp "$file" "$HOST$IMAGE/.new"
        mv "$HOST$IMAGE/.new" "$HOST$IMAGE/${file##*/}"
    done
    if [ ! -e "$HOST$CONFIGURATION" ]; then
        on_host sh -c "cp $PREFIX/$version/lib/python3*/site-packages/kata_configuration/shipped/configuration-qemu.toml \
            $CONFIGURATION"
    fi
    on_host "$ctl" config lint "$CONFIGURATION"
    on_host "$ctl" shim install /usr/local/bin
    on_host ln -sfn "$version" "$PREFIX/current"
    if ! pods_run; then
        find "$HOST$PREFIX" -mindepth 1 -maxdepth 1 ! -name current ! -name "$version" -exec rm -rf {} +
    fi
    configure_containerd --handler "kata=$CONFIGURATION"
    echo "node.sh: installed"
}

# Whether a pod runs in a virtual machine: its shim, and what ends it, run from where they were installed.
pods_run() {
    [ -n "$(ls "$HOST$STATE" 2>/dev/null)" ]
}

remove() {
    [ -x "$HOST$PREFIX/current/bin/kata-ctl" ] || fail "the runtime is not installed on this node"
    if pods_run; then
        fail "pods run in virtual machines on this node: nothing was removed; drain it, and remove it then"
    fi
    configure_containerd --remove
    for launcher in $LAUNCHERS; do
        rm -f "$HOST$launcher"
    done
    rm -rf "$HOST$PREFIX" "$HOST$JUDGED"
    echo "node.sh: removed; $CONFIGURATION and $IMAGE are left"
}

# Restarts containerd where its configuration is another afterwards.
configure_containerd() {
    before=$(cat "$HOST$CONTAINERD" 2>/dev/null || true)
    on_host "$PREFIX/current/bin/kata-ctl" containerd configure --config "$CONTAINERD" "$@"
    if [ "$before" != "$(cat "$HOST$CONTAINERD" 2>/dev/null || true)" ]; then
        on_host systemctl restart containerd
    fi
}

case ${1:-} in
install) install ;;
remove) remove ;;
serve)
    trap 'remove; exit 0' TERM INT
    install
    while :; do
        sleep 3600 &
        wait $!
    done
    ;;
*) fail "usage: node.sh install | remove | serve" ;;
esac
