#!/bin/busybox sh
# From power-on to the root filesystem that the kernel's command line names (root=, rootfstype=, rootflags=,
# init=, and dm-mod.create= where its blocks are checked), mounted read-only. Every failure is one line on the
# console and the end of the machine.
set -f
export PATH=/bin:/sbin

fatal() {
    echo "kata-initramfs: fatal: $*" >/dev/console
    poweroff -f
    exit 1
}

error=$(mount -t devtmpfs devtmpfs /dev 2>&1) || fatal "cannot mount /dev: $error"
error=$(mount -t proc proc /proc 2>&1) || fatal "cannot mount /proc: $error"

root='' type=erofs flags=ro init=/sbin/init table=''
read -r line </proc/cmdline
case $line in
*'dm-mod.create="'*)
    table=${line#*dm-mod.create=\"}
    table=${table%%\"*}
    ;;
esac
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

await() {
    tries=0
    until [ -b "$1" ]; do
        [ $tries -lt 500 ] || fatal "root device $1 did not appear within 10 seconds"
        tries=$((tries + 1))
        usleep 20000
    done
}

# NAME,UUID,MINOR,FLAGS,TABLE, as the kernel has it that makes the device by itself; a table's fifth word is what is
# checked.
if [ -n "$table" ] && ! [ -b "$root" ]; then
    [ -x /sbin/dmsetup ] || fatal "dm-verity cannot be set up by this initrd: use kata-initrd-verity.img"
    table=${table#*,*,*,*,}
    set -- $table
    await "$5"
    error=$(dmsetup create verity --readonly --noudevsync --noudevrules --table "$table" 2>&1) ||
        fatal "cannot check $5: $error"
fi
await "$root"
error=$(mount -r -t "$type" -o "$flags" "$root" /root 2>&1) || fatal "cannot mount $root as $type: $error"
[ -x "/root$init" ] || fatal "$init in $root is not executable"
mount -o move /dev /root/dev || fatal "cannot move /dev"
mount -o move /proc /root/proc || fatal "cannot move /proc"
exec switch_root /root "$init"
