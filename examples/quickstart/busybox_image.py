"""A small container image, made on this machine from Debian's busybox-static: no registry is asked."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from oci_archive import add_file, write_archive

NAME = "localhost/kata-quickstart/busybox:1"
BUSYBOX = Path("/bin/busybox")

_PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nbin:x:2:2:bin:/bin:/bin/false\nuser:x:1000:1000:user:/home/user:/bin/sh\n"
)
_GROUP = "root:x:0:\nbin:x:2:\nuser:x:1000:\naudio:x:29:user\nextra:x:2000:user\n"
_DIRECTORIES = (
    "bin",
    "dev",
    "etc",
    "home",
    "home/user",
    "mnt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "var",
)


def write_image(path: Path, name: str = NAME, command: Sequence[str] = ("sh",)) -> None:
    """Write the image as an OCI archive; the same busybox gives the same bytes. command: what it runs."""
    config = {"Env": ["PATH=/usr/bin:/bin"], "Cmd": list(command), "WorkingDir": "/"}
    write_archive(path, name, _layer(), config)


def _layer() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in _DIRECTORIES:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            info.mode = 0o1777 if name == "tmp" else 0o755
            if name == "home/user":
                info.uid = info.gid = 1000
            tar.addfile(info)
        add_file(tar, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        add_file(tar, "etc/passwd", _PASSWD.encode(), 0o644)
        add_file(tar, "etc/group", _GROUP.encode(), 0o644)
        for applet in _applets():
            info = tarfile.TarInfo(f"bin/{applet}")
            info.type = tarfile.SYMTYPE
            info.linkname = "busybox"
            tar.addfile(info)
    return buffer.getvalue()


def _applets() -> list[str]:
    listed = subprocess.run(
        [str(BUSYBOX), "--list"], check=True, capture_output=True, text=True
    ).stdout.split()
    return sorted({Path(name).name for name in listed} - {"busybox"})
