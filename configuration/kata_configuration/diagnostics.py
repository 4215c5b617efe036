"""What can be said about a configuration file: the codes, and one statement with its place.

The codes are stable: a number is never reused for another meaning. The first digit is the family:
0 the file, 1 the syntax, 2 names, 3 values, 4 values against each other, 5 confinement, 6 this host.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Code", "Diagnostic", "Finding", "Severity", "key_name", "quoted"]

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
    UNTRUSTED = ("KATA003", Severity.ERROR, True, "others than root may change the file")
    TOO_LARGE = ("KATA004", Severity.ERROR, False, "the file is larger than a configuration can be")
    ENCODING = ("KATA005", Severity.ERROR, False, "the file is not plain UTF-8")

    SYNTAX = ("KATA101", Severity.ERROR, False, "this is not TOML")
    DUPLICATE = ("KATA102", Severity.ERROR, False, "a key or table is defined twice")
    TOML_1_1 = ("KATA103", Severity.ERROR, False, "this is TOML 1.1, which other parsers of this file refuse")

    UNKNOWN_KEY = ("KATA201", Severity.ERROR, False, "nobody knows this key")
    UNKNOWN_TABLE = ("KATA202", Severity.ERROR, False, "nobody knows this table")
    UNSUPPORTED = ("KATA203", Severity.ERROR, False, "Kata knows this, this version does not honour it")
    FOREIGN_KEY = ("KATA204", Severity.ERROR, False, "this key is spelt or placed otherwise here")
    MISSING_KEY = ("KATA205", Severity.ERROR, False, "a required key is missing")
    MISSING_TABLE = ("KATA206", Severity.ERROR, False, "a required table is missing")
    ALIAS_CONFLICT = ("KATA207", Severity.ERROR, False, "a key and its alias differ")
    ALIAS_REPEATED = ("KATA208", Severity.NOTE, False, "a key and its alias say the same")

    TYPE = ("KATA301", Severity.ERROR, False, "the value has the wrong type")
    RANGE = ("KATA302", Severity.ERROR, False, "the value is out of range")
    CHOICE = ("KATA303", Severity.ERROR, False, "the value is none of those allowed")
    FORM = ("KATA304", Severity.ERROR, False, "the value is malformed")

    RELATION = ("KATA401", Severity.ERROR, False, "two values contradict each other")

    SANDBOX_VALUE = ("KATA501", Severity.ERROR, True, "the sandbox value is not what QEMU understands")
    UNCONFINED = ("KATA502", Severity.WARNING, True, "the VMM runs without a seccomp filter")
    WEAKENED = ("KATA503", Severity.NOTE, True, "the VMM's seccomp filter leaves a group of calls open")
    GUEST_UNCONFINED = ("KATA504", Severity.WARNING, True, "containers run without their seccomp profile")

    HOST_PATH = ("KATA601", Severity.ERROR, False, "a path is missing on this host, or of the wrong kind")
    HOST_EXECUTABLE = ("KATA602", Severity.ERROR, False, "a program cannot be executed on this host")
    HOST_KVM = ("KATA603", Severity.ERROR, False, "this host has no KVM")
    HOST_LIMIT = ("KATA604", Severity.WARNING, False, "the value is more than this host has")

    def __init__(self, number: str, severity: Severity, security: bool, meaning: str) -> None:
        self.number = number
        self.severity = severity
        self.security = security
        self.meaning = meaning


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found in the parsed tree, not yet placed in the text.

    path: keys and array indexes from the root; it need not exist in the file (a missing key).
    on_key: whether the key is at fault rather than its value.
    offset: characters into the value, when the value is a plain one-line string.
    """

    code: Code
    path: KeyPath
    message: str
    hint: str = ""
    on_key: bool = False
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One statement about a configuration file.

    line, column: counted from 1, columns in characters; both 0 when the file as a whole is meant.
    key: dotted key, or "" . hint: what to do, or "". security: whether it concerns confinement.
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
    ) -> Diagnostic:
        """Build a diagnostic with the severity and tag that its code prescribes."""
        return cls(path, line, column, code.severity, code.number, key, message, hint, code.security)

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


def quoted(value: object, limit: int = 80) -> str:
    """Quote a value of the file for a message, shortened to `limit` characters."""
    if isinstance(value, int) and value.bit_length() > 64:
        text = hex(value)  # of decimal digits, Python writes some thousands only
    else:
        text = str(value) if not isinstance(value, bool) else str(value).lower()
    shown = text if len(text) <= limit else text[: limit - 3] + "..."
    return f'"{shown}"' if isinstance(value, str) else shown


def _is_bare(part: str) -> bool:
    return part != "" and part.isascii() and all(char.isalnum() or char in "-_" for char in part)


def _one_line(text: str) -> str:
    # The file may hold anything: a newline or an escape sequence in a key must not forge a line of a log.
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
