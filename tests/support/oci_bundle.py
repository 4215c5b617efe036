"""Bundles as containerd writes them: a busybox root file system and a usual container's specification."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BUSYBOX = Path("/bin/busybox")

_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE "
    "SYS_CHROOT KILL AUDIT_WRITE"
)
CAPABILITIES = [f"CAP_{name}" for name in _CAPABILITIES.split()]
"""containerd's default set."""

MASKED_PATHS = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
]
READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
NAMESPACES = ("pid", "ipc", "uts", "mount", "network", "cgroup")

_PASSWD = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n"
_GROUP = "root:x:0:\nuser:x:1000:\naudio:x:29:user\nextra:x:2000:user\n"
_DIRECTORIES = "bin dev etc home/user mnt proc root run sys tmp usr/bin var"


def write_rootfs(directory: Path) -> None:
    """Make a root file system of this machine's busybox-static."""
    for name in _DIRECTORIES.split():
        (directory / name).mkdir(parents=True)
    (directory / "tmp").chmod(0o1777)
    os.chown(directory / "home/user", 1000, 1000)
    (directory / "etc/passwd").write_text(_PASSWD)
    (directory / "etc/group").write_text(_GROUP)
    shutil.copy(BUSYBOX, directory / "bin/busybox")
    listed = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for applet in {Path(name).name for name in listed} - {"busybox"}:
        (directory / "bin" / applet).symlink_to("busybox")


def make_process(*args: str, **changes: Any) -> dict[str, Any]:
    """An OCI process: `args` as root with containerd's default capabilities. changes: fields to set."""
    capabilities = {name: list(CAPABILITIES) for name in ("bounding", "effective", "permitted")}
    return {
        "args": list(args),
        "env": ["PATH=/usr/bin:/bin"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
        "capabilities": capabilities,
        "noNewPrivileges": True,
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        **changes,
    }


def make_spec(
    process: dict[str, Any],
    *,
    mounts: Iterable[dict[str, Any]] = (),
    linux: dict[str, Any] | None = None,
    readonly: bool = False,
    cgroup: str = "",
    **changes: Any,
) -> dict[str, Any]:
    """An OCI specification as containerd's WithDefaultSpec makes it.

    mounts: further ones. linux: fields to set in that section. readonly: of the root. cgroup: the path of
    its group. changes: of the top.
    """
    return {
        "ociVersion": "1.0.2-dev",
        "process": process,
        "root": {"path": "rootfs", "readonly": readonly},
        "mounts": [*_default_mounts(), *mounts],
        "linux": {
            "namespaces": [{"type": name} for name in NAMESPACES],
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            **({"cgroupsPath": cgroup} if cgroup else {}),
            **(linux or {}),
        },
        **changes,
    }


def _default_mounts() -> list[dict[str, Any]]:
    return [
        _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"
        ),
        _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
        _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        _mount("/run", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/sys/fs/cgroup", "cgroup", "ro", "nosuid", "noexec", "nodev"),
    ]


def _mount(destination: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}


def bind(source: Path | str, destination: str, *options: str) -> dict[str, Any]:
    """A bind mount; recursive unless the options say `bind`."""
    kind = [] if {"bind", "rbind"} & set(options) else ["rbind"]
    return {"destination": destination, "type": "bind", "source": str(source), "options": [*kind, *options]}


def write_bundle(directory: Path, spec: dict[str, Any] | str) -> None:
    """Make a bundle's directory with its config.json and, as containerd has it, an empty rootfs."""
    (directory / "rootfs").mkdir(parents=True)
    text = spec if isinstance(spec, str) else json.dumps(spec)
    (directory / "config.json").write_text(text)
