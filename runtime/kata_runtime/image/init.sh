#!/bin/busybox sh
# From power-on to the root filesystem that the kernel's command line names (root=, rootfstype=, rootflags=,
# init=), mounted read-only. Every failure is one line on the console and the end of the machine.
set -f
export PATH=/bin

fatal() {
    echo "kata-initramfs: fatal: $*" >/dev/console
    poweroff -f
    exit 1
}

error=$(mount -t devtmpfs devtmpfs /dev 2>&1) || fatal "cannot mount /dev: $error"
error=$(mount -t proc proc /proc 2>&1) || fatal "cannot mount /proc: $error"

root='' type=erofs flags=ro init=/sbin/init
read -r line </proc/cmdline
for word in $line; do
    case $word in
    root=*) root=${word#root=} ;;
    rootfstype=*) type=${word#rootfstype=} ;;
    rootflags=*) flags=ro,${word#rootflags=} ;;
    init=*) init=${word#init=} ;;
    esac
done
case $root in
/dev/*) ;;
'') fatal "the kernel's command line has no root=" ;;
*) fatal "root=$root is not the path of a device" ;;
esac

while read -r module; do
    error=$(insmod "/modules/$module.ko" 2>&1) || fatal "cannot load module $module: $error"
done </modules/order

tries=0
until [ -b "$root" ]; do
    [ $tries -lt 500 ] || fatal "root device $root did not appear within 10 seconds"
    tries=$((tries + 1))
    usleep 20000
done
error=$(mount -r -t "$type" -o "$flags" "$root" /root 2>&1) || fatal "cannot mount $root as $type: $error"
[ -x "/root$init" ] || fatal "$init in $root is not executable"
mount -o move /dev /root/dev || fatal "cannot move /dev"
mount -o move /proc /root/proc || fatal "cannot move /proc"
exec switch_root /root "$init"
