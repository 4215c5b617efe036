#!/bin/busybox sh
# The rig's init: the host's files, under a layer that takes what is written and forgets it; then what a host
# with KVM has. It runs /command, whose output goes to one virtio-serial port and whose exit status to another,
# and ends the machine.
set -f
export PATH=/bin

console=/dev/console
fatal() {
    echo "rig: fatal: $*" >"$console"
    poweroff -f
    exit 1
}

place() { # TYPE DIRECTORY [OPTIONS]
    error=$(mount -t "$1" ${3:+-o "$3"} "$1" "$2" 2>&1) || fatal "cannot mount $1 on $2: $error"
}

if [ "$1" = run ]; then
    set +f
    output=$(echo /dev/vport*p1) status=$(echo /dev/vport*p2)
    env -i HOME=/root TMPDIR=/run/tmp LANG=C.UTF-8 /bin/sh /run/rig/command </dev/null 1<>"$output" 2>&1
    echo $? >"$status"
    exec /run/rig/busybox poweroff -f
fi

place devtmpfs /dev
place proc /proc
while read -r module; do
    error=$(insmod "/modules/$module.ko" 2>&1) || fatal "cannot load module $module: $error"
done </modules/order

mkdir -p /host /top
error=$(mount -t virtiofs -o ro host /host 2>&1) || fatal "cannot mount the host's files: $error"
place tmpfs /top
mkdir /top/upper /top/work
place overlay /root lowerdir=/host,upperdir=/top/upper,workdir=/top/work
mount -o move /dev /root/dev || fatal "cannot move /dev"
console=/root/dev/console
mount -o move /proc /root/proc || fatal "cannot move /proc"
place sysfs /root/sys
echo advise >/root/sys/kernel/mm/transparent_hugepage/shmem_enabled
place cgroup2 /root/sys/fs/cgroup nsdelegate
# What is below these can be the upper layer of a container's overlay; what is below / cannot.
place tmpfs /root/run mode=755
mkdir -p /root/dev/pts /root/dev/shm /root/run/rig /root/run/tmp
place devpts /root/dev/pts gid=5,mode=620,ptmxmode=666
place tmpfs /root/dev/shm mode=1777
ln -s /proc/self/fd /root/dev/fd
ip link set lo up
cp /command /init /bin/busybox /root/run/rig
exec switch_root /root /run/rig/busybox sh /run/rig/init run
