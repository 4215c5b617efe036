"""enable_annotations: which annotations of pods an operator allows.

Each entry is a regular expression that must match a whole name. The name of a key of the hypervisor is the
key, as in "default_memory"; the name of another table's key has the table's kind before it, as in
"agent.kernel_modules". A key is guarded unless its declaration opens it: a guarded key is allowed by an entry
that is its name, letter by letter, and by no pattern.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from kata_configuration.diagnostics import Code, Finding, Fix, Loss, quoted
from kata_configuration.layer.pattern_cost import is_slow
from kata_configuration.suggestions import closest, unmistakable

KEY = "enable_annotations"
PREFIX = "io.katacontainers.config."

# Longer ones are no list of names.
MAX_PATTERN = 200


class Known(NamedTuple):
    """What an entry that is a key's name allows.

    guarded: whether no pattern does. loosens: what pods may do then to their confinement, or "". empty: the
    key with the list of paths that allows none, or "".
    """

    guarded: bool
    loosens: str = ""
    empty: str = ""


def names_of(family: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return what an entry may match for a key: its names with the family, the hypervisor's also without."""
    plain = tuple(dict.fromkeys(names))
    qualified = tuple(f"{family}.{name}" for name in plain)
    return (*plain, *qualified) if family == "hypervisor" else qualified


def opens(entries: Iterable[str], names: Iterable[str], *, literally: bool) -> bool:
    """Whether an entry allows an annotation of one of these names; `literally` when by name only."""
    wanted = set(names)
    if literally:
        return any(_literal(entry) in wanted for entry in entries)
    return any(pattern.fullmatch(name) for pattern in _compiled(entries) for name in wanted)


def check_entries(
    entries: tuple[str, ...], known: Mapping[str, Known], is_unhonoured: Callable[[str], bool]
) -> Iterator[Finding]:
    """Yield what is wrong with the entries, by their positions.

    known: the name of each annotation that there is -> what an entry that is this name allows.
    is_unhonoured: whether an entry that is none of these names a key that this version does not act on.
    """
    for number, entry in enumerate(entries):
        yield from _check_entry((KEY, number), entry, known, is_unhonoured)


def _check_entry(
    path: tuple[str, int], entry: str, known: Mapping[str, Known], is_unhonoured: Callable[[str], bool]
) -> Iterator[Finding]:
    if base := _base_name(entry):
        message = f"{quoted(entry)} is an annotation's whole name, of which only the end counts here"
        yield Finding(Code.ENTRY_DEAD, path, message, f"write {quoted(base)}", fix=Fix(value=base))
        return
    try:
        pattern = _compile(entry)
    except ValueError as error:
        hint = 'write the annotation\'s name, such as "default_memory"'
        message = f"{quoted(entry)} is no pattern: {error}"
        yield Finding(Code.ENTRY_MALFORMED, path, message, hint, loss=Loss.NOTHING)
        return
    if (named := known.get(_literal(entry))) is not None:
        yield from _named(path, entry, named)
        wider = [name for name in known if entry in name and name != entry and "." not in name]
        if wider:
            message = f"{quoted(entry)} allows this name only; runtimes that search also allow {_some(wider)}"
            yield Finding(Code.ENTRY_UNANCHORED, path, message, f'for them, write "^{re.escape(entry)}$"')
        return
    matched = [name for name in known if pattern.fullmatch(name)]
    opened = [name for name in matched if not known[name].guarded]
    if len(opened) > len([name for name in known if not known[name].guarded]) // 2:
        message = f"{quoted(entry)} allows almost every key that is not guarded: {_some(opened)}"
        yield Finding(Code.ENTRY_WIDE, path, message, "list the names that pods need")
    elif not matched and is_unhonoured(_literal(entry)):
        # A pod that sets it is refused by name, whether the entry stands there or not.
        message = f"{quoted(entry)} is the name of a key that is not honoured here"
        yield Finding(Code.ENTRY_DEAD, path, message, "remove it", loss=Loss.NOTHING)
    elif not matched:
        found = closest(entry, known)
        hint = f"did you mean {quoted(found)}?" if found else "remove it"
        fix = Fix(value=found) if unmistakable(entry, known) else None
        message = f"{quoted(entry)} is the name of no annotation"
        yield Finding(Code.ENTRY_DEAD, path, message, hint, fix=fix, loss=Loss.NOTHING)
    elif not opened:
        message = f"{quoted(entry)} allows nothing: {_some(matched)} must be listed by name"
        usable = [name for name in matched if not known[name].empty and not known[name].loosens]
        hint = f"write {quoted(usable[0])}" if usable else "remove it, or list what pods need by name"
        yield Finding(Code.ENTRY_DEAD, path, message, hint)


def _named(path: tuple[str, int], entry: str, named: Known) -> Iterator[Finding]:
    """Yield what an entry that is a key's name allows in vain, or allows that confines the pod."""
    if named.empty:
        message = f"{quoted(entry)} allows nothing: {named.empty} is empty"
        hint = f"remove it, or list paths in {named.empty}"
        yield Finding(Code.ENTRY_DEAD, path, message, hint, loss=Loss.NOTHING)
    elif named.loosens:
        message = f"{quoted(entry)} lets pods {named.loosens}"
        yield Finding(Code.ENTRY_LOOSENS, path, message, "remove it unless that is meant")


def _base_name(entry: str) -> str:
    """Return what counts of an annotation's whole name, or "" when the entry is none."""
    plain = _literal(entry)
    if not plain.startswith(PREFIX):
        return ""
    rest = plain.removeprefix(PREFIX)
    return rest.removeprefix("hypervisor.")


def _literal(entry: str) -> str:
    """Return the entry without the anchors and backslashes that a name may be written with."""
    return entry.removeprefix("^").removesuffix("$").replace("\\.", ".")


def _compiled(entries: Iterable[str]) -> Iterator[re.Pattern[str]]:
    """Compile the entries; those that are no patterns allow nothing, and are reported as faults."""
    for entry in entries:
        try:
            yield _compile(entry)
        except ValueError:
            continue


def _compile(entry: str) -> re.Pattern[str]:
    """Compile an entry.

    Raises:
        ValueError: it is no regular expression, or one that could take long to match.
    """
    if len(entry) > MAX_PATTERN:
        raise ValueError(f"it is longer than {MAX_PATTERN} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error", FutureWarning
            )  # of a pattern that will mean something else one day
            pattern = re.compile(entry)
    except (re.error, OverflowError, RecursionError, FutureWarning) as error:
        raise ValueError(str(error)) from None
    if is_slow(entry):
        raise ValueError("its repetitions and alternatives could take very long to match")
    return pattern


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
