"""The value of QEMU's option -sandbox, as an operator writes it in `seccompsandbox`.

Grammar, from qemu(1) and QEMU's system/qemu-seccomp.c: `on` or `off`, then for `on` any of the groups below,
separated by commas, without spaces. A group that is left out is allowed, except `obsolete`, which is denied.

No value contradicts how QEMU is run here: in the foreground, as a user that it keeps. (A QEMU with -daemonize
dies of spawn=deny and of elevateprivileges=deny or =children; one with -runas of the latter two.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kata_configuration.diagnostics import quoted
from kata_configuration.suggestions import closest, unmistakable

GROUPS = {
    "obsolete": ("deny", "allow"),
    "elevateprivileges": ("deny", "allow", "children"),
    "spawn": ("deny", "allow"),
    "resourcecontrol": ("deny", "allow"),
}
DENY_ALL = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# The form of a valid value for a JSON Schema, which cannot say that a group stands once.
_GROUP = "|".join(f"{group}=({'|'.join(settings)})" for group, settings in GROUPS.items())
FORM = f"^(off|on(,({_GROUP}))*)?$"


@dataclass(frozen=True, slots=True)
class SandboxFault:
    """What QEMU would refuse or misread. offset: characters from the value's start.

    fixed: the whole value without this fault, where there is exactly one right answer.
    """

    offset: int
    message: str
    hint: str
    fixed: str = ""


def is_on(value: str) -> bool:
    """Tell whether this (valid) value asks QEMU for a seccomp filter."""
    return value not in ("", "off")


def open_groups(value: str) -> dict[str, str]:
    """Return what a valid value leaves open: each group that is not denied, with its setting."""
    given = dict(item.split("=", 1) for item in value.split(",")[1:])
    settings = {group: given.get(group, "deny" if group == "obsolete" else "allow") for group in GROUPS}
    return {group: setting for group, setting in settings.items() if setting != "deny"}


def find_faults(value: str) -> list[SandboxFault]:
    """Return every fault of a value, in order; none means that QEMU takes it as it stands."""
    if not is_on(value):
        return []
    return list(_faults(value))


def _faults(value: str) -> Iterator[SandboxFault]:
    switch, *items = value.split(",")
    if switch == "off":
        yield SandboxFault(3, 'nothing may follow "off"', f'write "off", or begin with "on": "{DENY_ALL}"')
    elif switch != "on":
        yield SandboxFault(0, f'begins with {quoted(switch)}, must begin with "on"', f'such as "{DENY_ALL}"')
    offset = len(switch) + 1
    seen: set[str] = set()
    for item in items:
        group, equals, setting = item.partition("=")
        fault = _group_fault(group, bool(equals), setting, seen)
        if fault is not None:
            at_setting = group in GROUPS and group not in seen and equals
            start = offset + (len(group) + 1 if at_setting else 0)
            word, known = (setting, GROUPS[group]) if at_setting else (group, tuple(GROUPS))
            yield SandboxFault(start, *fault, _corrected(value, start, word, known))
        seen.add(group)
        offset += len(item) + 1


def _group_fault(group: str, has_setting: bool, setting: str, seen: set[str]) -> tuple[str, str] | None:
    """Judge one `group=setting`: None when it is right, else what is wrong and what to do."""
    if not group and not has_setting:
        return "an empty item", "remove the extra comma"
    if group not in GROUPS:
        return f"unknown group {quoted(group)}", _suggest(group, GROUPS)
    if group in seen:
        return f'group "{group}" is given twice', "keep one"
    if not has_setting:
        return f'group "{group}" has no value', f'write "{group}=deny"'
    if setting not in GROUPS[group]:
        return f"unknown value {quoted(setting)} for {group}", _suggest(setting, GROUPS[group])
    return None


def _corrected(value: str, start: int, word: str, known: tuple[str, ...]) -> str:
    """Return the value with a misspelled word corrected, or "" when the word is not just misspelled."""
    best = closest(word, known) if word not in known else None
    if best is None or not unmistakable(word, known):
        return ""
    return value[:start] + best + value[start + len(word) :]


def _suggest(word: str, known: dict[str, tuple[str, ...]] | tuple[str, ...]) -> str:
    best = closest(word, known)
    return f'did you mean "{best}"?' if best else "use one of " + ", ".join(known)
