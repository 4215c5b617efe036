"""The arguments that an operator may add to virtiofsd's command line, as a list of what is allowed.

There are two programs of that name, whose options differ; an argument of either is allowed. Sources:
virtiofsd(1) of QEMU 7.2, in C; the README of virtiofsd 1.13, in Rust. What is not on the list is refused:
what confines the daemon (sandbox, seccomp filter, capabilities), and what the runtime itself sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from kata_configuration.diagnostics import quoted
from kata_configuration.suggestions import closest

_FLAG, _NUMBER, _LEVEL = "", r"\d{1,9}", "error|warn|info|debug|trace|off|err"

# Option -> the form of its value, "" for one that has none.
LONG: Mapping[str, str] = {
    **dict.fromkeys(("thread-pool-size", "rlimit-nofile"), _NUMBER),
    "log-level": _LEVEL,
    "inode-file-handles": "never",
    "seccomp": "kill|trap",
    **dict.fromkeys(
        (
            *("xattr", "posix-acl", "announce-submounts", "allow-direct-io", "allow-mmap"),
            *("killpriv-v2", "no-killpriv-v2", "security-label", "writeback", "no-readdirplus", "readonly"),
            "preserve-noatime",
        ),
        _FLAG,
    ),
}

# The same for what follows -o, separated by commas.
_SWITCHES = (
    *("xattr", "posix_acl", "flock", "posix_lock", "writeback", "killpriv_v2", "allow_direct_io"),
    *("readdirplus", "security_label"),
)
OPTIONS: Mapping[str, str] = {
    **dict.fromkeys(
        (*_SWITCHES, *(f"no_{name}" for name in _SWITCHES), "announce_submounts", "debug"), _FLAG
    ),
    "log_level": _LEVEL,
    "max_idle_threads": _NUMBER,
    "timeout": r"\d{1,9}(\.\d{1,9})?",
}
SHORT = ("-d", "-f")

# Why an option is not on the list, by its name without dashes and underscores.
REASONS: Mapping[str, str] = {
    "sandbox": "chooses the sandbox of virtiofsd, which the runtime makes",
    "syslog": "writes to the host's log, which virtiofsd does not see: what it writes is in the runtime's",
    "inodefilehandles": "opens files by handles, which lead out of the directory that the guest sees",
    "seccomp": "opens the seccomp filter of virtiofsd",
    "modcaps": "changes the capabilities of virtiofsd",
    "xattrmap": "changes which extended attributes of the host's files the guest may write",
    **dict.fromkeys(
        ("uidmap", "gidmap", "translateuid", "translategid"),
        "changes which users' files of the host are written",
    ),
    **dict.fromkeys(
        ("source", "shareddir"), "names the directory that the guest sees, which the runtime does"
    ),
    **dict.fromkeys(
        ("fd", "socket", "socketpath", "socketgroup", "vhostusersocket", "tag"),
        "names the connection to the machine, which the runtime makes",
    ),
    "cache": "is what virtio_fs_cache sets",
}


class ArgumentFault(NamedTuple):
    """An argument that is not allowed. number: its place in the list, from 0."""

    number: int
    message: str
    hint: str


class _Option(NamedTuple):
    """An option as it is written: its name, its value or None, and whether it follows -o."""

    name: str
    value: str | None
    after_o: bool


def find_faults(arguments: Sequence[str]) -> Iterator[ArgumentFault]:
    """Yield the arguments that are not allowed, in order."""
    index = 0
    while index < len(arguments):
        argument, following = arguments[index], arguments[index + 1 : index + 2]
        used = 1
        if argument in SHORT:
            index += 1
            continue
        if argument == "-o":
            options, used = [_split(item, True) for item in (following or [""])[0].split(",")], 2
        elif argument.startswith("-o"):
            options = [_split(item, True) for item in argument[2:].split(",")]
        elif argument.startswith("--"):
            option = _split(argument[2:], False)
            if option.value is None and LONG.get(option.name) and following:
                option, used = option._replace(value=following[0]), 2
            options = [option]
        else:
            options = [_Option(argument, None, False)]
        for option in options:
            if not _is_allowed(option):
                yield ArgumentFault(min(index + used - 1, len(arguments) - 1), *_refusal(option))
        index += used


def _split(text: str, after_o: bool) -> _Option:
    name, equals, value = text.partition("=")
    return _Option(name, value if equals else None, after_o)


def _is_allowed(option: _Option) -> bool:
    form = (OPTIONS if option.after_o else LONG).get(option.name)
    if form is None:
        return False
    return option.value is None if form == _FLAG else bool(re.fullmatch(form, option.value or ""))


def _refusal(option: _Option) -> tuple[str, str]:
    """Say why an option is not allowed, and what to do."""
    known = OPTIONS if option.after_o else LONG
    name = option.name if option.after_o or option.name.startswith("-") else f"--{option.name}"
    shown = quoted(name if option.value is None else f"{name}={option.value}")
    if reason := REASONS.get(re.sub("[-_]", "", option.name)):
        return f"{shown} {reason}", "remove it"
    form = known.get(option.name)
    if form:
        return (
            f"{shown} has none of the values that are allowed",
            f"use {form.replace('|', ', ')}" if "|" in form else "write a number",
        )
    if form is not None:
        return f"{shown} has a value, and the option takes none", f"write {quoted(name)}"
    found = closest(option.name, known)
    return (
        f"{shown} is none of the arguments that are allowed",
        f"did you mean {quoted(found)}?" if found else "remove it",
    )
