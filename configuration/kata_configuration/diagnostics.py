"""What is reported about a configuration file: the codes, and one diagnostic with its place.

The codes are stable: a number is never reused for another meaning. The first digit is the family:
0 the file, 1 the syntax, 2 names, 3 values, 4 values against each other, 5 confinement, 6 this host,
7 annotations of pods, 8 containerd's own configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

__all__ = ["Code", "Diagnostic", "Edit", "Finding", "Fix", "Loss", "Severity", "key_name", "quoted"]

KeyPath = tuple[str | int, ...]


class Severity(Enum):
    """How much a diagnostic weighs: an error stops loading, a warning and a note do not."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Code(Enum):
    """Every code, with its severity, whether it concerns the VMM's confinement, and what it means."""

    UNREADABLE = ("KATA001", Severity.ERROR, False, "the file cannot be read")
    NOT_FOUND = ("KATA002", Severity.ERROR, False, "there is no such configuration file")
    UNTRUSTED = ("KATA003", Severity.ERROR, True, "others may change the file")
    TOO_LARGE = ("KATA004", Severity.ERROR, False, "the file is larger than a configuration can be")
    ENCODING = ("KATA005", Severity.ERROR, False, "the file is not plain UTF-8")
    WRITABLE = ("KATA006", Severity.ERROR, True, "others may put files into the file's directory")
    SKIPPED = ("KATA007", Severity.NOTE, False, "a file beside the drop-ins is not read")

    SYNTAX = ("KATA101", Severity.ERROR, False, "this is not TOML")
    DUPLICATE = ("KATA102", Severity.ERROR, False, "a key or table is defined twice")
    TOML_1_1 = ("KATA103", Severity.ERROR, False, "this is TOML 1.1, which other parsers of this file refuse")

    UNKNOWN_KEY = ("KATA201", Severity.ERROR, False, "the key is unknown")
    UNKNOWN_TABLE = ("KATA202", Severity.ERROR, False, "the table is unknown")
    UNSUPPORTED = ("KATA203", Severity.ERROR, False, "Kata knows this, this version does not honour it")
    FOREIGN_KEY = ("KATA204", Severity.ERROR, False, "this key is written or placed otherwise here")
    MISSING_KEY = ("KATA205", Severity.ERROR, False, "a required key is missing")
    MISSING_TABLE = ("KATA206", Severity.ERROR, False, "a required table is missing")
    ALIAS_CONFLICT = ("KATA207", Severity.ERROR, False, "a key and its alias differ")
    ALIAS_REPEATED = ("KATA208", Severity.NOTE, False, "a key and its alias have the same value")
    FOREIGN_CONFINEMENT = ("KATA209", Severity.ERROR, True, "this key of confinement is not this driver's")
    INERT = ("KATA210", Severity.NOTE, False, "a key that is not honoured has a value that changes nothing")
    OTHER_NAME = ("KATA211", Severity.NOTE, False, "a hypervisor's other name is used")
    UNAVAILABLE = ("KATA212", Severity.ERROR, False, "the hypervisor has no driver in this version")
    UNPROTECTED = (
        "KATA213",
        Severity.ERROR,
        True,
        "a protection is configured that this version does not have",
    )

    TYPE = ("KATA301", Severity.ERROR, False, "the value has the wrong type")
    RANGE = ("KATA302", Severity.ERROR, False, "the value is out of range")
    CHOICE = ("KATA303", Severity.ERROR, False, "the value is none of those allowed")
    FORM = ("KATA304", Severity.ERROR, False, "the value is malformed")
    UNIT = ("KATA305", Severity.WARNING, False, "the value looks like one in another unit")

    RELATION = ("KATA401", Severity.ERROR, False, "two values contradict each other")
    ARRAY_REPLACED = ("KATA402", Severity.NOTE, False, "a drop-in replaces an array, and drops elements")
    DEBUG = ("KATA403", Severity.NOTE, False, "a switch for debugging is on")
    UNUSED = ("KATA404", Severity.WARNING, False, "another key takes this one's effect away")
    NO_KERNEL = ("KATA405", Severity.NOTE, False, "the table runs unikernels only")
    OVERRIDDEN = ("KATA406", Severity.NOTE, False, "a drop-in sets a key that another drop-in sets too")

    SANDBOX_VALUE = ("KATA501", Severity.ERROR, True, "the value is no -sandbox option of QEMU")
    UNCONFINED = ("KATA502", Severity.WARNING, True, "the VMM runs without a seccomp filter")
    WEAKENED = ("KATA503", Severity.NOTE, True, "the VMM's seccomp filter leaves a group of calls open")
    GUEST_UNCONFINED = ("KATA504", Severity.WARNING, True, "containers run without their seccomp profile")
    SHIM_UNCONFINED = (
        "KATA505",
        Severity.WARNING,
        True,
        "the runtime's process runs without a seccomp filter",
    )
    SHIM_UNENFORCED = ("KATA506", Severity.WARNING, True, "the runtime's seccomp filter stops nothing")

    ARGUMENT = (
        "KATA507",
        Severity.ERROR,
        True,
        "an argument of the VMM or of virtiofsd is not one of those allowed",
    )
    BOOT_CHANGED = ("KATA508", Severity.WARNING, True, "the guest boots something else than is configured")
    HOST_NETWORK = ("KATA509", Severity.WARNING, True, "the VMM runs in the host's network namespace")

    HOST_PATH = ("KATA601", Severity.ERROR, False, "a path is missing on this host, or of the wrong kind")
    HOST_EXECUTABLE = ("KATA602", Severity.ERROR, False, "a program cannot be executed on this host")
    HOST_KVM = ("KATA603", Severity.ERROR, False, "this host has no KVM")
    HOST_LIMIT = ("KATA604", Severity.WARNING, False, "the value is more than this host has")
    HOST_WRITABLE = ("KATA605", Severity.WARNING, True, "others than root may change what the VMM runs")
    HOST_JIT = ("KATA606", Severity.WARNING, False, "this host interprets seccomp filters, which is slow")
    HOST_KERNEL = ("KATA607", Severity.WARNING, False, "the file is no kernel")
    HOST_ENTROPY = ("KATA608", Severity.ERROR, True, "the guest's random numbers would not be random")
    HOST_KVM_GUESTS = ("KATA609", Severity.WARNING, False, "this host's KVM runs no unmodified guests")

    ANNOTATION_REFUSED = ("KATA701", Severity.ERROR, True, "the configuration does not allow this annotation")
    ANNOTATION_UNKNOWN = ("KATA702", Severity.ERROR, False, "the annotation names no key")
    ANNOTATION_PREFIX = ("KATA703", Severity.WARNING, False, "the annotation's name is almost one of Kata's")
    ANNOTATION_PATH = ("KATA704", Severity.ERROR, True, "an annotation names a path that is not allowed")
    ANNOTATION_TWICE = ("KATA705", Severity.ERROR, False, "two annotations set the same key")
    ENTRY_MALFORMED = ("KATA711", Severity.ERROR, True, "an entry of enable_annotations is no pattern")
    ENTRY_DEAD = (
        "KATA712",
        Severity.WARNING,
        False,
        "an entry of enable_annotations allows nothing",
    )
    ENTRY_WIDE = ("KATA713", Severity.WARNING, True, "an entry of enable_annotations allows all")
    ENTRY_UNANCHORED = ("KATA714", Severity.NOTE, True, "other runtimes allow more by this entry")
    ENTRY_LOOSENS = ("KATA715", Severity.WARNING, True, "an entry lets pods change what confines them")

    HANDLER_ABSENT = ("KATA801", Severity.WARNING, False, "no runtime of containerd's is this one")
    HANDLER_TYPE = ("KATA802", Severity.ERROR, True, "a runtime that is named kata runs something else")
    HANDLER_UNREAD = ("KATA803", Severity.ERROR, False, "containerd does not read this table or key")
    HANDLER_PATH = ("KATA804", Severity.ERROR, False, "a path in containerd's configuration is wrong")
    HANDLER_ANNOTATIONS = ("KATA805", Severity.WARNING, False, "annotations of pods do not reach the runtime")
    HANDLER_DEVICES = ("KATA806", Severity.WARNING, True, "privileged containers get the host's devices")
    HANDLER_SNAPSHOTTER = ("KATA807", Severity.NOTE, False, "the snapshotter fits the hypervisor badly")
    HANDLER_NO_SNAPSHOTTER = ("KATA808", Severity.WARNING, False, "containerd has no such snapshotter")

    def __init__(self, number: str, severity: Severity, security: bool, meaning: str) -> None:
        self.number = number
        self.severity = severity
        self.security = security
        self.meaning = meaning


class Fix(NamedTuple):
    """The one right answer to a finding, as a change of the statement that the finding's path names.

    rename: the key's new name, or "". value: the new value, or None. table: the table that the statement
    belongs in, or (). remove: whether it goes altogether.
    """

    rename: str = ""
    value: Any = None
    table: KeyPath = ()
    remove: bool = False


class Loss(Enum):
    """What a statement did for the runtime that the file was written for: what is lost without it."""

    NOTHING = "nothing"
    SOMETHING = "something"
    PROTECTION = "a protection"
    UNDECIDED = "something, unless it is moved: which of these, the file does not say"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found in the parsed tree, not yet placed in the text.

    path: keys and array indexes from the root; it need not exist in the file (a missing key).
    on_key: whether the key is at fault rather than its value.
    offset: characters into the value, when the value is a plain one-line string.
    fix: where there is exactly one right answer, that answer. loss: of dropping the statement.
    """

    code: Code
    path: KeyPath
    message: str
    hint: str = ""
    on_key: bool = False
    offset: int = 0
    fix: Fix | None = None
    loss: Loss = Loss.SOMETHING


class Edit(NamedTuple):
    """A replacement of the characters from `start` to `end` of a file's text with plain newlines."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One statement about a configuration file.

    line, column: counted from 1, columns in characters; both 0 when the file as a whole is meant.
    key: dotted key, or "" . hint: what to do, or "". security: whether it concerns confinement.
    excerpt: the line, and length: how many of its characters from `column` are meant; "" and 0 when unknown.
    edits: what fixes it, where there is exactly one right answer.
    """

    path: str
    line: int
    column: int
    severity: Severity
    code: str
    key: str
    message: str
    hint: str = ""
    security: bool = False
    excerpt: str = ""
    length: int = 0
    edits: tuple[Edit, ...] = ()

    @classmethod
    def of(
        cls,
        code: Code,
        path: str,
        message: str,
        hint: str = "",
        *,
        key: str = "",
        line: int = 0,
        column: int = 0,
        severity: Severity | None = None,
    ) -> Diagnostic:
        """Build a diagnostic with the tag, and unless given the severity, that its code prescribes."""
        return cls(
            path, line, column, severity or code.severity, code.number, key, message, hint, code.security
        )

    def __str__(self) -> str:
        """Render on one line: FILE:LINE:COL: error[CODE] key: what is wrong (what to do)."""
        place = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        key = f"{self.key}: " if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        tag = " [security]" if self.security else ""
        return _one_line(f"{place}: {self.severity.value}[{self.code}] {key}{self.message}{hint}{tag}")


def key_name(path: KeyPath) -> str:
    """Write a path as a dotted key: ("agent", "kata", "modules", 0) is agent.kata.modules[0]."""
    name = ""
    for part in path:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += ("." if name else "") + (part if _is_bare(part) else quoted(part))
    return name


_LONGEST_DECIMAL = 10_000
"""Bits of an integer that Python still writes in decimal digits, of which it writes some thousands only."""


def quoted(value: object, limit: int = 80) -> str:
    """Quote a value of the file for a message, shortened to `limit` characters."""
    if isinstance(value, int) and value.bit_length() > _LONGEST_DECIMAL:
        text = hex(value)
    else:
        text = str(value) if not isinstance(value, bool) else str(value).lower()
    shown = text if len(text) <= limit else text[: limit - 3] + "..."
    return f'"{shown}"' if isinstance(value, str) else shown


def _is_bare(part: str) -> bool:
    return part != "" and part.isascii() and all(char.isalnum() or char in "-_" for char in part)


def _one_line(text: str) -> str:
    # The file may hold anything: a newline or an escape sequence in a key must not forge a line of a log.
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
