"""A compiled filter: what `compiler` makes, `compiled` keeps and `filter` installs."""

from __future__ import annotations

INSTRUCTION = 8
"""Bytes of one BPF instruction (struct sock_filter)."""

PROCESS, VCPU = "process", "vcpu"
"""The kinds of threads that have a filter: all, and those of virtual CPUs, which have a second one."""


class Program:
    """A compiled filter.

    code: an array of struct sock_filter. skipped: calls that it does not answer as its rules say, because
    this architecture does not have them or libseccomp refuses what it does not know.
    """

    __slots__ = ("code", "skipped")

    def __init__(self, code: bytes, skipped: tuple[str, ...] = ()) -> None:
        self.code = code
        self.skipped = skipped

    def __len__(self) -> int:
        """Number of instructions."""
        return len(self.code) // INSTRUCTION
