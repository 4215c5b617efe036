"""What a saved machine is: written beside its state, and compared before another goes on from there.

Its origin must be the same, or the state means nothing: the VMM and its version, the host, the kernel and the
images. Its shape must be the same, or it is not the machine that is wanted: how the VMM is asked for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kata_hypervisor.contract import VmSpec
from kata_hypervisor.errors import SnapshotError

FILE = "machine.json"
LIMIT = 1 << 20
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Identity:
    """origin: by what it is. shape: JSON, without what is each machine's own, such as sockets."""

    origin: Mapping[str, Any]
    shape: Any

    def write(self, directory: Path) -> None:
        """Write it beside the state. Raises SnapshotError."""
        try:
            with (directory / FILE).open("x") as file:
                json.dump(asdict(self), file, indent=1)
        except OSError as error:
            raise SnapshotError(f"cannot save a machine in {directory}: {error.strerror}") from error

    def mismatch(self, directory: Path) -> str | None:
        """Why a machine of this shape is not what is saved there, as a sentence; None where it is.

        Raises:
            SnapshotError: it is damaged, or of another origin; the message says of which.
        """
        saved = _read(directory)
        for what, now in self.origin.items():
            if what not in saved.origin:
                raise SnapshotError(f"cannot start from {directory}: its {FILE} does not name {what}")
            if (then := saved.origin[what]) != now:
                raise SnapshotError(
                    f"cannot start from {directory}: it was saved with {what} {_shown(then)}, and this is "
                    f"{_shown(now)}; save a new one"
                )
        if saved.shape == self.shape:
            return None
        return (
            f"the machine is booted, and does not start from {directory}: that was saved of another size, "
            "command line or with other devices"
        )


def describe(directory: Path) -> dict[str, str]:
    """What a saved machine is one of, by name. Raises SnapshotError."""
    return {what: _shown(value) for what, value in _read(directory).origin.items()}


def _shown(value: object) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)


def _read(directory: Path) -> Identity:
    try:
        with (directory / FILE).open() as file:
            read = json.loads(file.read(LIMIT))
        return Identity(dict(read["origin"]), read["shape"])
    except OSError as error:
        raise SnapshotError(f"cannot start from {directory}: {FILE}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SnapshotError(
            f"cannot start from {directory}: its {FILE} is damaged; save a new one"
        ) from error


def identity(vmm: str, version: str, spec: VmSpec, described: object) -> Identity:
    """Identify a machine. described: JSON, all that the VMM is asked for.

    A file is known by its path, size and time: hashing it would take longer than going on from the state.

    Raises:
        SnapshotError: a file cannot be looked at.
    """
    host = os.uname()
    origin: dict[str, Any] = {"the VMM": f"{vmm} {version}"}
    own = [spec.directory, *(disk.path for disk in spec.disks)]
    try:
        origin["the host"] = f"{host.sysname} {host.release} on {_processor()}"
        for what, path in (("kernel", spec.kernel), ("initrd", spec.initrd), ("image", spec.image)):
            if path is not None:
                facts = path.stat()
                origin[f"the guest's {what}"] = [str(path), facts.st_size, facts.st_mtime_ns]
                own.append(path)
    except OSError as error:
        raise SnapshotError(f"cannot tell what the machine is: {error.filename}: {error.strerror}") from error
    return Identity(origin, _common(described, own))


def _processor() -> str:
    """The processor's model, as the kernel names it: state holds what only its like understands."""
    with CPUINFO.open() as file:
        lines = (line.partition(":") for line in file)
        models = (value.strip() for key, _, value in lines if key.strip() == "model name")
        return next(models, os.uname().machine)


def _common(described: object, own: Iterable[Path]) -> object:
    """Return a description without the paths that are one machine's own, or of its origin."""
    names = tuple(map(str, own))

    def without(value: object) -> object:
        if isinstance(value, dict):
            return {key: without(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [without(inner) for inner in value]
        if isinstance(value, str) and any(value == name or value.startswith(f"{name}/") for name in names):
            return "..."
        return value

    return without(described)
