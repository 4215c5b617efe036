"""A small container image, made on this machine from Debian's busybox-static: no registry is asked.

The archive is the OCI image layout in a tar file, as `ctr image import` reads it. Source: OCI image
specification, image-layout.md, manifest.md, config.md, layer.md.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

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


def write_image(path: Path, name: str = NAME) -> None:
    """Write the image as an OCI archive; the same busybox gives the same bytes."""
    layer = _layer()
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["sh"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        }
    )
    entry = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
    entry["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [entry]}),
    }
    for blob in (layer, config, manifest):
        files[f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}"] = blob
    with tarfile.open(path, "w") as archive:
        for member, data in sorted(files.items()):
            _add_file(archive, member, data, 0o644)


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
        _add_file(tar, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        _add_file(tar, "etc/passwd", _PASSWD.encode(), 0o644)
        _add_file(tar, "etc/group", _GROUP.encode(), 0o644)
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


def _add_file(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = mode
    tar.addfile(info, io.BytesIO(data))


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {
        "mediaType": media_type,
        "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "size": len(data),
    }


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
