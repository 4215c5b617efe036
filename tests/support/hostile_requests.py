"""What a shim that a guest owns asks of its broker: of each operation, attacks and what must come of them.

The arguments are well formed: what is malformed is in `test_broker_operations.py`.
"""

from __future__ import annotations

import os
from typing import Any

from attack_bed import IS_ROOT, World
from kata_runtime.broker.hook_kinds import STATUS
from kata_runtime.broker.operations import OPERATIONS
from kata_runtime.broker.operations.declaration import Operation
from kata_runtime.broker.phase import BEFORE_SEAL
from kata_runtime.broker.rollback import NAME as JOURNAL

# Arguments, and what the answer must say; None where it says nothing and must have no effect.
Attack = tuple[dict[str, Any], str | None]

SEALED = "is refused after the seal"
OUTSIDE = "is not below the sandbox's"


def targets(world: World) -> list[str]:
    """Paths that are not the sandbox's, as targets."""
    bed = world.bed
    return [
        *("/", "/etc/x", "/dev/shm/x", str(world.host), f"{world.host}/new", str(bed.bundle)),
        *(f"{bed.shared}/../x", f"{bed.shared}/c/../../x", f"{bed.shared}//x", f"{bed.shared}x/y"),
        *(f"{bed.directory}/{JOURNAL}", f"{bed.directory}/new", f"{bed.bundle}/config.json"),
        *(f"{bed.bundle}/rootfs/../config.json", f"{world.neighbour}/rootfs", f"{world.neighbour}/rootfs/x"),
    ]


def sources(world: World) -> list[str]:
    """Paths that containerd did not name for this pod."""
    volume, layer = world.volume, world.snapshots / "2" / "fs"
    return [
        *("/", "/etc", "/etc/shadow", "/proc", "/sys", "/dev", "/dev/mem", "/run/containerd/containerd.sock"),
        *map(str, (world.host, world.host / "secret", world.host / "api.sock", world.neighbour / "rootfs")),
        *(f"{volume}/{name}" for name in ("out", "root", "secret", "fifo", "..", "out/secret", ".", "disk")),
        *(f"{layer}/{name}" for name in ("out", "root", "secret", "disk", "kmem", "image")),
        *(
            f"{world.bed.bundle}/../neighbour/rootfs",
            f"{world.host}/readonly/..",
            f"{world.host}/readonly/file",
        ),
    ]


def mounts(world: World) -> list[Attack]:
    """File systems that would show the host's files or devices, or let its kernel read what a guest wrote."""
    layer, lower = f"{world.snapshots}/2/fs", f"{world.snapshots}/1/fs"
    target = {"target": f"{world.bed.shared}/m"}
    found: list[Attack] = []

    def add(says: str, kind: str, source: str, *options: str) -> None:
        found.append(mount(world, says, kind, source, *options))

    for source in ("/", "/etc", "/dev", str(world.host), str(world.neighbour / "rootfs"), str(world.volume)):
        add("not among containerd's snapshots", "bind", source, "rbind", "rw")
        add("not among containerd's snapshots", "overlay", "overlay", f"lowerdir={source}")
        add(
            "not among containerd's snapshots",
            "overlay",
            "overlay",
            f"lowerdir={lower}",
            f"upperdir={source}",
        )
    for name in ("out", "root", "out/cron.d"):
        add("symbolic links", "bind", f"{layer}/{name}", "rbind")
        add("symbolic links", "overlay", "overlay", f"lowerdir={lower}:{layer}/{name}")
    for name in ("image", "fifo", "disk") if IS_ROOT else ("image", "fifo"):
        add("it is not a directory", "bind", f"{layer}/{name}", "bind")
    for kind in ("ext4", "xfs", "btrfs", "erofs", "squashfs", "zfs"):
        for source in (f"{layer}/disk", f"{layer}/image", "/dev/sda", "/dev/vda", "/dev/loop0", "pool/data"):
            add("the sandbox is sealed", kind, source, "ro")
    for kind, option in (
        ("erofs", "device=/etc/shadow"),
        ("btrfs", "device=/dev/sda"),
        ("xfs", "logdev=/dev/sda"),
        ("xfs", "rtdev=/dev/sda"),
        ("ext4", "journal_path=/dev/sda"),
        ("ext4", "errors=panic"),
        ("ext4", "sb=1"),
        ("overlay", "lowerdir=/,upperdir=/etc"),
        ("overlay", "override_creds=on"),
    ):
        add(f"the mount option .* of {kind} is not allowed", kind, "/dev/vda", option)
    add("no mount of its first container has this option", "overlay", "overlay", "redirect_dir=on")
    add("no mount of its first container has this option", "overlay", "overlay", "metacopy=on")
    for option in ("remount", "move", "loop", "shared", "rshared", "unbindable"):
        add("is not possible here", "bind", layer, option)
    found += [({"target": path, "mounts": [["bind", lower, ["ro"]]]}, OUTSIDE) for path in targets(world)]
    whole = [["bind", lower, ["ro"]]] * 16
    found.append(({**target, "mounts": [*whole[:15], ["bind", "/etc", ["ro"]]]}, "not among containerd's"))
    return found


def mount(world: World, says: str, kind: str, source: str, *options: str) -> Attack:
    """One mount on a target of the sandbox's own."""
    return {"target": f"{world.bed.shared}/m", "mounts": [[kind, source, list(options)]]}, says


def mounts_to_write(world: World) -> list[Attack]:
    """Another container's files, or a layer of an image, which other pods run, to be written."""
    layer, lower, other = (f"{world.snapshots}/{name}" for name in ("2/fs", "1/fs", "9"))
    found: list[Attack] = []

    def add(says: str, kind: str, source: str, *options: str) -> None:
        found.append(mount(world, says, kind, source, *options))

    # Of the other: what it has written, and an empty directory in it.
    for theirs in (lower, f"{other}/fs", f"{other}/./fs", f"{other}/fs/empty", f"{other}/fs/../fs/empty"):
        add("may be another container's", "bind", theirs, "rbind", "rw")
        add("may be another container's", "bind", theirs)
        work = f"workdir={os.path.dirname(theirs)}/work"
        add(
            r"may be another container's|not beside",
            "overlay",
            "overlay",
            f"lowerdir={layer}",
            f"upperdir={theirs}",
            work,
        )
    add("not beside", "overlay", "overlay", f"lowerdir={lower}", f"upperdir={layer}", f"workdir={other}/fs")
    up = f"upperdir={layer}"
    add("not beside", "overlay", "overlay", f"lowerdir={lower}", up, f"workdir={os.path.dirname(layer)}/..")
    return found


def binds(world: World) -> list[Attack]:
    ways = [{"readonly": read, "recursive": whole} for read in (False, True) for whole in (False, True)]
    to = f"{world.bed.shared}/b"
    only, readonly = f"{world.host}/only", f"{world.host}/readonly"
    own = {"source": str(world.volume), "readonly": False, "recursive": True}
    return [
        *(({"source": s, "target": to, **way}, "names it") for s in sources(world) for way in ways),
        *(({**own, "target": target}, OUTSIDE) for target in targets(world)),
        # What the pod may only read, or without what is mounted below it.
        ({**own, "source": readonly, "target": to}, "cannot share .* writable"),
        ({**own, "source": f"{readonly}/", "target": to}, "cannot share .* writable"),
        ({**own, "source": only, "target": to, "readonly": True}, "with what is mounted below it"),
        # A directory of a volume that the guest has replaced by a link.
        ({**own, "source": f"{world.volume}/below", "target": to}, "a symbolic link is in the way"),
        ({**own, "source": f"{world.volume}/below/", "target": to}, "a symbolic link is in the way"),
    ]


def shares(world: World) -> list[Attack]:
    """As `binds`, but that the broker says where."""
    elsewhere = set(targets(world))
    found = [
        ({**asked, "readonly_below": asked["readonly"]}, says)
        for asked, says in binds(world)
        if asked.pop("target") not in elsewhere
    ]
    return [(asked, says) for asked, says in found if says != OUTSIDE]


def specs(world: World) -> list[Attack]:
    bundle, neighbour = world.bed.bundle, world.neighbour
    elsewhere = "it is not where containerd makes the bundles"
    return [
        ({"bundle": str(neighbour)}, "is not of a container of the sandbox"),
        ({"bundle": f"{bundle}/../neighbour"}, "is not of a container of the sandbox"),
        *(({"bundle": str(path)}, elsewhere) for path in (world.volume, world.snapshots / "2" / "fs", "/")),
        *(({"bundle": path}, elsewhere) for path in ("/etc", f"{bundle}/rootfs", f"{bundle}/work/../../..")),
        ({"bundle": f"{bundle}/../../k8s.io/../../../data"}, elsewhere),
    ]


def streams(world: World) -> list[dict[str, Any]]:
    volume = world.volume
    return [
        {"path": path}
        for path in (
            *("/dev/null", "/dev/mem", "/dev/kvm", "/etc/passwd", "/run/initctl", "/proc/sysrq-trigger"),
            *(f"{world.host}/{name}" for name in ("fifo", "secret", "api.sock", "cron.d/job", "cron.d/new")),
            *(f"{volume}/{name}" for name in ("fifo", "secret", "out/fifo", "out/secret", "kmem")),
            *(f"{world.neighbour}/log", f"{world.neighbour}/app-stdout", f"{world.sandbox}/log"),
            *(f"{world.host}/open-stdin", f"{volume}/out/open-stdin", f"{world.host}/../host/-stdin"),
        )
    ]


EARLY = [operation for operation in OPERATIONS if operation.phases == BEFORE_SEAL]
"""What a shim asks before the guest runs: afterwards it is refused, whatever the arguments are."""

# Something of each kind that an argument can be.
VALUES: list[Any] = [
    *("/etc/shadow", "qemu", "log", "0" * 64, "x86_64 [base]", 2000, 7, 1, True, [], {}, None),
    *(["/bin/sh"], {"shadow": "/etc/shadow"}, "BgAAAAAA/38="),
]


def some_arguments(operation: Operation[...]) -> dict[str, Any]:
    """Arguments that pass every check of their form."""
    return {key: next(filter(allowed, VALUES)) for key, allowed in operation.arguments.items()}


def hostile(world: World, bystander: int) -> dict[str, list[Attack]]:
    """Attacks by operation, on a sealed sandbox. One that is refused after the seal needs no entry."""
    bed = world.bed
    others = ("other/its.log", "its.log", "other/../its.log")
    logs = [*streams(world), *({"path": f"{world.state}/logs/{name}"} for name in others)]
    return {
        **{operation.name: [(some_arguments(operation), SEALED)] for operation in EARLY},
        "supervise": [({}, "the shim is supervised already")],
        "oom_kills": [({}, None)],
        "pin_vcpus": [({"cpus": cpus}, "enable_vcpus_pinning is not set") for cpus in ([], [0], [0, 99])],
        "kill": [({"pid": bystander, "signal": number}, None) for number in (9, 15, 19)],
        "confinement": [({"pid": pid}, "has exited") for pid in (bystander, os.getppid(), 2)],
        "end_loading": [({"pid": pid}, "has no filter of ours") for pid in (bystander, os.getppid(), 2)],
        "open_spec": specs(world),
        "make_directory": [({"path": path}, OUTSIDE) for path in targets(world) if path != str(bed.bundle)],
        "mount": [*mounts(world), *mounts_to_write(world)],
        "bind": binds(world),
        "find_memory": [({"source": source}, "names it") for source in sources(world)],
        "share": shares(world),
        "unshare": [
            ({"place": place}, "is not shared")
            for place in (*targets(world), ".volumes/0", ".volumes/0/..", "..", "c/volume", ".volumes/999")
        ],
        "unmount": [({"target": path}, "was not mounted by this broker") for path in targets(world)],
        "remove": [({"path": path}, "was not made by this broker") for path in targets(world)],
        "open_fifo": [
            ({**arguments, "mode": mode}, "the sandbox is sealed|is not a FIFO")
            for arguments in streams(world)
            for mode in ("r", "w", "rw")
        ],
        "open_log": [(arguments, "the sandbox is sealed|is not a regular file") for arguments in logs],
        "make_image": [
            ({"root": path}, "was not mounted by this broker|" + OUTSIDE) for path in targets(world)
        ],
        "open_image": [({"name": f"{number:064x}"}, "No such file") for number in (0, 1)],
        "give_device": [
            ({"device": device, "write": write}, "there is no monitor for it|no config.json of the sandbox")
            for device in ("7:0", "8:0", "1:1")
            for write in (False, True)
        ],
        "open_device": [
            ({"device": device, "write": write}, "no config.json of the sandbox")
            for device in ("7:0", "8:0", "1:1")
            for write in (False, True)
        ],
        "show_device": [
            ({"disk": "x", "device": device, "write": write}, "no config.json of the sandbox")
            for device in ("7:0", "8:0", "1:1")
            for write in (False, True)
        ],
        "show_image": [({"disk": "x", "image": f"{number:064x}"}, "No such file") for number in (0, 1)],
        "hide_image": [({"disk": name}, None) for name in ("x", "rootfs_1")],
        "connect_guest": [({"port": port}, "No such file") for port in (1, 1024)],
        "connect_events": [({}, "cannot connect to no event socket")],
        "probe_kvm": [({}, None)] * 3,
        "late_interfaces": [({}, "No such file")],  # this pod has no init
        "run_hooks": [({"kind": kind}, "hooks are refused after|hooks are left to run") for kind in STATUS],
        "relay_log": [({}, SEALED)],
        "close": [({}, None)],
    }
