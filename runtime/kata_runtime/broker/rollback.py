"""The rollback journal: what reverses each effect, written down before the effect is made.

One JSON object per line of <sandbox directory>/rollback.jsonl. The first is the header:

    {"sandbox": id, "owner": containerd's namespace, "broker": [pid, start], "shim": [pid, start],
     "namespace": inode, "bundle": path, "socket": path}

then entries {"n": 7, "undo": kind, ...} and {"done": 7} for those that were undone since. A line that is none
of these is counted, and hides no other. Kinds:

    process  pid, start, name   a child; with `patience`, one that may exit by itself, see `processes.retire`
    cgroup   path, origin       a leaf with the sandbox's processes; `origin` is where the shim came from
    threads  path, origin       a group of single threads in a leaf, which go back to the leaf, `origin`
    rmgroup  path               a parent of it, removed when it is empty
    unmount  path               a mount in the namespace of the header
    remove   path               an empty directory or a file
    uid      path, key          a file that takes a user for the sandbox of this key
    claim    path, key          the same of a directory that it alone may write
    poststop path               hooks that are due, in the file at `path`; run when all else is undone
    network  path, namespace, device, inode
                                what the record at `path` names in this network namespace
"""

from __future__ import annotations

import errno
import json
import os

from kata_runtime.broker.errors import RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    Entry = dict[str, Any]

NAME = "rollback.jsonl"
MAX_PID = 1 << 22
"""PID_MAX_LIMIT of the kernel's threads.h."""
COMPACT_AFTER = 1000
"""Entries undone since the file was last written anew."""
MAX_ENTRIES = 4096
"""Things that a sandbox may have on the host at a time: mounts, directories, files, children."""
MAX_BYTES = 4 << 20
"""Bytes of the entries of them, which lie in the host's /run."""


class RollbackJournal:
    """The journal of one sandbox, in memory and on disk. The caller holds the directory's lock."""

    def __init__(self, directory: int, header: Entry) -> None:
        self._directory = directory
        self._file = -1
        self._next = 1
        self._done = 0
        self.header = header
        self.entries: dict[int, Entry] = {}
        self._bytes = 0
        # Lines that nobody could read: what they would have undone stays.
        self.unreadable = 0

    @classmethod
    def create(cls, directory: int, header: Entry) -> RollbackJournal:
        """Start an empty journal in place of any other."""
        journal = cls(directory, header)
        journal._rewrite()
        return journal

    @classmethod
    def load(cls, directory: int) -> RollbackJournal | None:
        """Read the journal that a broker left, or None when there is none.

        A torn last line is an effect that was never made: the line is complete before the effect begins.
        """
        text = _read(directory)
        return None if text is None else cls._of(directory, text)

    @classmethod
    def _of(cls, directory: int, text: bytes) -> RollbackJournal:
        journal = cls(directory, {})
        for line in text.split(b"\n")[:-1]:
            journal._take(line)
        return journal

    def _take(self, line: bytes) -> None:
        entry = _parse(line)
        match entry:
            case {"done": int(number)}:
                self.entries.pop(number, None)
            case {"n": int(number), "undo": str()}:
                self.entries[number] = entry
            case {"sandbox": str()}:
                self.header = entry
            case _:
                self.unreadable += 1

    def process(self, role: str) -> tuple[int, int] | None:
        """The process id and start time of "shim" or "broker"; None when the header does not have them."""
        match self.header.get(role):
            case [int(pid), int(start)] if 0 < pid <= MAX_PID:
                return pid, start
        return None

    def path(self, name: str) -> str:
        """The path of "bundle" or "socket"; empty when the header does not have it."""
        path = self.header.get(name)
        return path if isinstance(path, str) and "\0" not in path else ""

    def push(self, undo: str, **fields: object) -> int:
        """Write down how to undo what is about to be done.

        Raises:
            RequestRefusedError: the sandbox has as much on the host as it may have; it must not be done.
            OSError: it cannot be written, and must not be done.
        """
        number = self._next
        entry = {"n": number, "undo": undo, **fields}
        size = len(_line(entry))
        if len(self.entries) >= MAX_ENTRIES or self._bytes + size > MAX_BYTES:
            raise RequestRefusedError(
                f"the sandbox has {len(self.entries)} mounts, directories, files and processes on the host, "
                f"whose record has {self._bytes >> 10} KiB; at most {MAX_ENTRIES}, and {MAX_BYTES >> 10} KiB"
            )
        _write(self._file, entry)
        self._next += 1
        self._bytes += size
        self.entries[number] = entry
        return number

    def drop(self, number: int) -> None:
        """Forget an entry: its effect was undone, or never came to be. Nothing once the journal is closed."""
        if self._file < 0 or (entry := self.entries.pop(number, None)) is None:
            return
        self._bytes -= len(_line(entry))
        self._done += 1
        try:
            if self._done > COMPACT_AFTER:
                self._rewrite()
            else:
                _write(self._file, {"done": number})
        except OSError:
            pass  # the file system is full: the entry stays on disk, and undoing it once more does no harm

    def withhold(self, kinds: Collection[str]) -> list[Entry]:
        """Take the entries of some kinds out, for the caller to undo; on disk they stay until then."""
        taken = [number for number, entry in self.entries.items() if entry["undo"] in kinds]
        return [self.entries.pop(number) for number in taken]

    def find(self, undo: str, path: str) -> list[int]:
        """Numbers of the entries of this kind for this path, in order."""
        return [n for n, entry in self.entries.items() if entry["undo"] == undo and entry.get("path") == path]

    def _rewrite(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fresh = os.open(NAME + ".new", flags, 0o600, dir_fd=self._directory)
        try:
            for entry in (self.header, *self.entries.values()):
                _write(fresh, entry)
            os.rename(NAME + ".new", NAME, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException:
            os.close(fresh)
            raise
        self.close()
        self._file, self._done = fresh, 0

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def is_recorded(root: str, undo: str, path: str) -> bool:
    """Whether the journal of any sandbox below this directory has an entry of this kind for this path."""
    for name in os.listdir(root):
        try:
            directory = os.open(os.path.join(root, name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            text = _read(directory)
            # Most do not name it, and to parse all journals of a node takes longer than all else of a start.
            if text and _text(path) in text and RollbackJournal._of(directory, text).find(undo, path):
                return True
        finally:
            os.close(directory)
    return False


def _read(directory: int) -> bytes | None:
    """The journal's file in a sandbox's directory; None when there is none."""
    try:
        file = os.open(NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    except FileNotFoundError:
        return None
    with open(file, "rb") as content:
        return content.read()


def _parse(line: bytes) -> Entry:
    """The object of a line; an empty one when it holds none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _line(entry: Entry) -> bytes:
    return _text(entry) + b"\n"


def _text(value: object) -> bytes:
    """A value as it is written into a journal."""
    return json.dumps(value, separators=(",", ":")).encode()


def _write(file: int, entry: Entry) -> None:
    """Append one line, or nothing."""
    line = _line(entry)
    size = os.fstat(file).st_size
    if (written := os.write(file, line)) != len(line):
        os.ftruncate(file, size)
        raise OSError(errno.ENOSPC, f"cannot write {NAME}: {written} of {len(line)} bytes were written")
