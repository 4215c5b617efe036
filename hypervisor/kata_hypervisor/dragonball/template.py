"""A template on the disk: a directory with a machine's state, its memory, and what machine it was.

One that differs in size or devices from the machine that is wanted is no template of it: that one is booted.
One of another kernel, image, host or version of this runtime is stale, and refused: it would run a guest that
nobody configured any more.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import file_digest, sha256
from pathlib import Path

from kata_hypervisor.contract import VmSpec
from kata_hypervisor.dragonball import saved_state
from kata_hypervisor.dragonball.layout import MIB
from kata_hypervisor.dragonball.machine import Machine
from kata_hypervisor.dragonball.saved_state import Document, Fields
from kata_hypervisor.errors import SnapshotError

STATE, MEMORY = "state", "memory"
REMEDY = "make it anew: kata-ctl factory init"

FILES = ("kernel", "initrd", "image")
HOST = {"program": "version of this runtime", "processor": "host's processor", "host_kernel": "host's kernel"}
SIZE = {
    "vcpus": "number of vCPUs",
    "memory_mib": "memory in MiB",
    "command_line": "kernel command line",
    "devices": "devices",
}
"""What is compared, with the name that it has in sentences."""

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
PROGRAM = Path(__file__).parents[1]
OURS = ("dragonball", "kvm")


def identity_of(spec: VmSpec, command_line: str, devices: Sequence[object]) -> Document:
    """For which machines a template of this one is good, but for the files. Reads the host's /proc."""
    return {
        "program": _digest_of_program(),
        "processor": _processor(),
        "host_kernel": os.uname().release,
        "vcpus": str(spec.vcpus),
        "memory_mib": str(spec.memory_mib),
        "command_line": command_line,
        "devices": "; ".join(map(str, devices)),
    }


class Saving:
    """A template that is being made, whose files are open before the process is sealed.

    identity: the machine's `identity_of`.

    Raises:
        SnapshotError: the files cannot be made.
    """

    def __init__(self, directory: Path, spec: VmSpec, identity: Document) -> None:
        self.directory = directory
        self._ours = ExitStack()
        try:
            self._identity = identity | {name: _file_identity(getattr(spec, name)) for name in FILES}
            self._state, self._memory = (self._create(directory / name) for name in (STATE, MEMORY))
            os.ftruncate(self._memory, spec.memory_mib * MIB)
        except OSError as error:
            self.close()
            raise _cannot_write(directory, error) from error
        saved_state.encode({})  # loads what a sealed process could not

    def write(self, machine: Machine) -> None:
        """Write the state of a machine whose processors are held; blocks. Raises SnapshotError."""
        try:
            document = {"identity": self._identity, "machine": machine.save(self._memory)}
            left = memoryview(saved_state.encode(document))
            while left:
                left = left[os.write(self._state, left) :]
            for descriptor in (self._memory, self._state):
                os.fdatasync(descriptor)
        except OSError as error:
            raise _cannot_write(self.directory, error) from error
        except SnapshotError as error:
            raise SnapshotError(f"cannot save the machine: {error}") from error

    def close(self) -> None:
        """Close the files; idempotent."""
        self._ours.close()

    def _create(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._ours.callback(os.close, descriptor)
        return descriptor


class Template:
    """A template that is there. memory: descriptor of its memory file, open until `close`.

    Raises:
        SnapshotError: there is none, others than its owner may have written it, or it is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ours = ExitStack()
        try:
            with ExitStack() as undo:
                parent = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                undo.callback(os.close, parent)
                _check_owner(os.fstat(parent), str(directory))
                with os.fdopen(self._open(parent, STATE), "rb") as file:
                    document = saved_state.decode(file.read(saved_state.LARGEST))
                self._identity, self.machine = document.part("identity"), document.part("machine")
                self.memory = self._open(parent, MEMORY)
                self._ours.callback(os.close, self.memory)
        except FileNotFoundError as error:
            raise SnapshotError(f"there is no template in {directory}: run kata-ctl factory init") from error
        except OSError as error:
            self.close()
            raise SnapshotError(f"cannot open the template in {directory}: {error.strerror}") from error
        except SnapshotError as error:
            self.close()
            raise self.refusal(error) from error

    def check(self, spec: VmSpec, wanted: Document) -> str | None:
        """Return how a wanted machine differs from the saved one, in a sentence; None where it does not.

        wanted: its `identity_of`.

        Raises:
            SnapshotError: the template is stale.
        """
        described = self.describe(spec, wanted)
        for key, name in SIZE.items():
            if described[name] != wanted[key]:
                return f"its {name} is {wanted[key]!r}, the template's {described[name]!r}"
        return None

    def describe(self, spec: VmSpec, wanted: Document) -> dict[str, str]:
        """Return what the saved machine was, by the names of `SIZE`. Raises SnapshotError as `check` does."""
        try:
            for key, name in HOST.items():
                if (saved := self._identity.text(key)) != wanted[key]:
                    raise SnapshotError(f"the {name} was {saved!r}, is {wanted[key]!r}")
            for key in FILES:
                _check_file(key, self._identity.part(key), getattr(spec, key))
            described = {name: self._identity.text(key) for key, name in SIZE.items()}
            if described[SIZE["memory_mib"]] != str(os.fstat(self.memory).st_size // MIB):
                raise SnapshotError("it is damaged: its memory file has another size than the machine")
        except SnapshotError as error:
            raise self.refusal(error) from error
        return described

    def restore(self, machine: Machine) -> None:
        """Give a machine the saved state. Raises SnapshotError."""
        try:
            machine.restore(self.machine)
        except SnapshotError as error:
            raise self.refusal(error) from error

    def refusal(self, error: SnapshotError) -> SnapshotError:
        """The same with the template's name, and with what to do."""
        return SnapshotError(f"cannot start from the template in {self.directory}: {error}; {REMEDY}")

    def close(self) -> None:
        """Close what is open; idempotent. A machine that has its memory keeps it."""
        self._ours.close()

    def _open(self, parent: int, name: str) -> int:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
        try:
            status = os.fstat(descriptor)
            _check_owner(status, name)
            if not stat.S_ISREG(status.st_mode):
                raise SnapshotError(f"{name} is no regular file")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _check_owner(status: os.stat_result, name: str) -> None:
    if status.st_uid != os.geteuid() or status.st_mode & OTHERS_MAY_WRITE:
        mode = stat.S_IMODE(status.st_mode)
        raise SnapshotError(f"{name} belongs to user {status.st_uid} with mode {mode:o}: others may write it")


def _file_identity(path: Path | None) -> Document:
    """A file by its content, and by what shows without reading it that it is still the same one."""
    if path is None:
        return {"path": "", "sha256": "", "stamp": ""}
    with path.open("rb") as file:
        stamp = _stamp(os.fstat(file.fileno()))
        return {"path": str(path), "sha256": file_digest(file, "sha256").hexdigest(), "stamp": stamp}


def _check_file(key: str, saved: Fields, path: Path | None) -> None:
    was = saved.text("path")
    if path is None or not was:
        if str(path or "") != was:
            raise SnapshotError(f"the guest's {key} was {was or 'none'}, is {path or 'none'}")
        return
    try:
        if _stamp(os.stat(path)) == saved.text("stamp") and str(path) == was:
            return
        digest = _file_identity(path)["sha256"]
    except OSError as error:
        raise SnapshotError(f"the guest's {key} {path} cannot be read: {error.strerror}") from error
    if digest != saved.text("sha256"):
        was_digest = saved.text("sha256")[:12]
        raise SnapshotError(f"the guest's {key} was {was} ({was_digest}), is {path} ({digest[:12]})")


def _stamp(status: os.stat_result) -> str:
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return " ".join(map(str, parts))


def _digest_of_program() -> str:
    """The machine's own source: what was saved by other code may mean something else."""
    digest = sha256(b"%d" % saved_state.FORMAT)
    for path in sorted(path for name in OURS for path in (PROGRAM / name).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """The host's processor, by the fields of /proc/cpuinfo that name it."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "model name")
    found: dict[str, str] = {}
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
            if not line.strip():
                break
    return ", ".join(f"{name} {found.get(name, 'unknown')}" for name in wanted)


def _cannot_write(directory: Path, error: OSError) -> SnapshotError:
    return SnapshotError(f"cannot save the machine in {directory}: {error.strerror}")
