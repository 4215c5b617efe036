"""A container image with one layer or none, as `ctr image import` reads it: no registry is asked.

The archive is the OCI image layout in a tar file. Source: OCI image specification, image-layout.md,
manifest.md, config.md, layer.md.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path


def write_archive(path: Path, name: str, layer: bytes | None, config: Mapping[str, object]) -> None:
    """Write an image; the same layer gives the same bytes.

    name: with its tag. layer: a tar file, None for an image without one. config: of the image's containers,
    such as Cmd and Env.
    """
    layers = [] if layer is None else [layer]
    settings = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [_digest(one) for one in layers]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", settings),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", one) for one in layers],
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
    for blob in (*layers, settings, manifest):
        files[f"blobs/{_digest(blob).replace(':', '/')}"] = blob
    with tarfile.open(path, "w") as archive:
        for member, data in sorted(files.items()):
            add_file(archive, member, data, 0o644)


def add_file(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    """Put a file into a layer."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = mode
    tar.addfile(info, io.BytesIO(data))


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {
        "mediaType": media_type,
        "digest": _digest(data),
        "size": len(data),
    }


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
