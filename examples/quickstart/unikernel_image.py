"""A container image with a unikernel in it, compiled on this machine from examples/unikernel.

The image says what it is as urunc's images do: in urunc.json, with values in base64.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from oci_archive import add_file, write_archive

NAME = "localhost/kata-quickstart/unikernel:1"
TOOLS = Path(__file__).resolve().parents[1] / "unikernel"
BINARY = "/unikernel.hvt"

FLAGS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-pic", "-mno-red-zone"),
    *(
        "-fno-stack-protector",
        "-fno-asynchronous-unwind-tables",
        "-fcf-protection=none",
        "-mgeneral-regs-only",
    ),
    *("-static", "-no-pie", "-nostdlib"),
    *("-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096"),
)


def compile_unikernel(source: Path, target: Path, *defines: str) -> None:
    """Compile a unikernel of one file with gcc. Raises subprocess.CalledProcessError."""
    command = ["gcc", *FLAGS, *(f"-D{name}" for name in defines), f"-I{TOOLS}"]
    script = TOOLS / "unikernel.lds"
    subprocess.run(
        [*command, f"-Wl,-T,{script}", "-o", target, source], check=True, capture_output=True, text=True
    )


def describe(**values: str) -> dict[str, str]:
    """Keys as urunc has them, such as binary="/unikernel.hvt", as annotations or as urunc.json."""
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {f"com.urunc.unikernel.{key}": value for key, value in encoded.items()}


def write_image(
    path: Path, unikernel: Path, name: str = NAME, files: Mapping[str, bytes] | None = None
) -> None:
    """Write the image of a compiled unikernel as an OCI archive. files: more of them, by path."""
    description = describe(binary=BINARY, hypervisor="hvt")
    content = {"urunc.json": json.dumps(description).encode(), BINARY[1:]: unikernel.read_bytes()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for member, data in (content | dict(files or {})).items():
            add_file(layer, member, data, 0o644)
    write_archive(path, name, buffer.getvalue(), {"Cmd": ["hello"], "WorkingDir": "/"})
