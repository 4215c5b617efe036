"""The confinement of a sandbox as text: a block for each process, and what a guest reaches that owns one.

Names and paths come from the processes: what a terminal would obey is printed as an escape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kata_runtime.confinement.facts import NAMESPACES, UNLIMITED
from kata_runtime.confinement.judging import CAPABILITIES
from kata_runtime.confinement.reach import VERBS
from kata_runtime.confinement.rows import SHIM
from kata_runtime.logging import printable

_LINE = "    {:<2}{:<14}{}"
_PARTS = {"open": "opens", "connect": "connects to", "mount": "mounts", "run": "runs"}


def text(found: dict[str, Any]) -> str:
    """Everything about one sandbox. found: as `confinement_report.report` returns it."""
    return printable("\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"sandbox {_one_line(found['id'])} (namespace {_one_line(found['namespace'])})"
    verified = found["verified"]
    if verified is None:
        yield "  not verified yet: the guest does not run"
    else:
        yield "  verified before the guest ran: each process is what it must be at least"
        yield from (f"  this host lacks {name}: {why}" for name, why in verified.get("lacking", {}).items())
    for process in found["processes"]:
        yield f"  {process['role']}, pid {process['pid']} ({_one_line(process['name'])})"
        yield from _process(process)
    for owned in found["owned"]:
        yield from _owned(owned)


def _process(process: dict[str, Any]) -> Iterator[str]:
    weaker: dict[str, list[str]] = {}
    for weakness in process["weaker"]:
        weaker.setdefault(weakness["cell"], []).append(weakness["reason"])
    for cell, title, what in _cells(process):
        mark = "! " if weaker.get(cell) else ""
        yield _LINE.format(mark, title, _one_line(what))
    for reasons in weaker.values():
        yield from (_LINE.format("! ", "weaker", _one_line(f"it {reason}")) for reason in reasons)


def _cells(process: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The cell, its title, and what is in it."""
    yield "user", "user", _user(process)
    sets = process["capabilities"]
    yield "capabilities", "capabilities", _sets(sets)
    yield "no_new_privs", "no_new_privs", "yes" if process["no_new_privs"] else "no"
    dumpable = {True: "by its own user", False: "by root only", None: "by root"}[process["dumpable"]]
    yield "dumpable", "dumped", dumpable
    yield "seccomp", "seccomp", _seccomp(process["seccomp"])
    for line in _thread_groups(process["threads"]):
        yield "threads", "", line
    yield "cpus", "runs on", _cpus(process["threads"])
    if process["role"] == SHIM:
        yield "landlock", "landlock", _LANDLOCK[process["landlock"]]
    yield "namespaces", "namespaces", _namespaces(process["namespaces"])
    yield "root", "root", _root(process)
    yield "cgroup", "cgroup", _cgroup(process)
    limits = process["limits"]
    yield "limits", "limits", ", ".join(f"{name} {_limit(limits[name])}" for name in limits)
    yield "descriptors", "descriptors", _counts(process["descriptors"])
    yield "reach", "by itself", "; ".join(f"{_PARTS[verb]} {process['reach'][verb]}" for verb in VERBS)


_LANDLOCK = {
    True: "denied the main thread to open a file, before the guest ran; no kernel reports it of others",
    False: "this kernel has none",
    None: "not tried yet",
}


def _user(process: dict[str, Any]) -> str:
    users, groups, others = process["users"], process["groups"], process["supplementary_groups"]
    more = f", groups {_numbers(others)}" if others else ""
    return f"uid {_numbers(users)}, gid {_numbers(groups)}{more}"


def _numbers(found: Sequence[int]) -> str:
    return " ".join(map(str, found if len(set(found)) > 1 else found[:1]))


def _sets(sets: Mapping[str, Sequence[str]]) -> str:
    """The sets of capabilities; those that are alike together."""
    alike: dict[str, list[str]] = {}
    for name, held in sets.items():
        alike.setdefault(capabilities(held), []).append(name)
    return "; ".join(f"{', '.join(names)}: {held}" for held, names in alike.items())


def capabilities(names: Sequence[str]) -> str:
    """A set in words: none, all, all but a few, or their names."""
    missing = [name for name in CAPABILITIES if name not in names]
    if not names:
        return "none"
    if not missing:
        return "all"
    return f"all but {' '.join(missing)}" if len(missing) < len(names) else " ".join(names)


def _seccomp(seccomp: dict[str, Any]) -> str:
    filters = f"{_number(seccomp['filters'], 'filter')} on each of {_number(seccomp['threads'], 'thread')}"
    surface = seccomp["surface"]
    if surface is None:
        return f"{filters}; programs not read: {seccomp['unread']}"
    gaps = f", and {', '.join(surface['gaps'])}" if surface["gaps"] else ""
    return f"{filters}; {surface['allowed']} calls{gaps}, score {surface['score']:g}"


def _thread_groups(threads: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each kind of thread, where they differ."""
    groups: dict[tuple[object, ...], int] = {}
    for thread in threads:
        surface = thread["surface"] or {"allowed": "?", "score": "?"}
        key = (
            thread["name"],
            thread["filters"],
            surface["allowed"],
            surface["score"],
            len(thread["effective"]),
        )
        groups[key] = groups.get(key, 0) + 1
    if len({key[1:] for key in groups}) < 2:
        return
    for (name, filters, calls, score, held), number in groups.items():
        yield (
            f"{_number(number, 'thread')} {name}: {filters} filters, {calls} calls, score {score}, "
            f"{held} effective capabilities"
        )


def _cpus(threads: Sequence[Mapping[str, Any]]) -> str:
    """The CPUs of the host; where threads differ, those of each one that has others than the first."""
    first = threads[0]["cpus"]
    kept = [f"{thread['name']} on {thread['cpus']}" for thread in threads if thread["cpus"] != first]
    return f"CPUs {first} of the host" + "".join(f"; {one}" for one in kept)


def _number(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _namespaces(found: Mapping[str, str]) -> str:
    parts = []
    for whose, title in (("own", "own"), ("host", "the host's")):
        if names := [name for name in NAMESPACES if found.get(name) == whose]:
            parts.append(f"{title}: {' '.join(names)}")
    return "; ".join(parts)


def _root(process: dict[str, Any]) -> str:
    mounts = process["mounts"]
    whose = "its own" if process["root"] == "own" else "the host's"
    writable = (
        f"{len(mounts['writable'])} of them writable" if mounts["writable"] else "none of them writable"
    )
    return f"{whose}, with {_number(mounts['count'], 'mount')}, {writable}"


def _cgroup(process: dict[str, Any]) -> str:
    by_path: dict[str, list[str]] = {}
    for name, path in process["cgroups"].items():
        by_path.setdefault(path, []).append(name or "version 2")
    places = "; ".join(f"{path} ({', '.join(names)})" for path, names in by_path.items())
    devices = process["devices"]
    listed = "not shown by this kernel" if devices is None else ", ".join(devices) or "none"
    return f"{places}; devices: {listed}"


def _limit(pair: Sequence[int]) -> str:
    soft, hard = ("unlimited" if number == UNLIMITED else str(number) for number in pair)
    return soft if soft == hard else f"{soft} (hard {hard})"


def _counts(found: Mapping[str, int]) -> str:
    listed = ", ".join(f"{number} {kind}" for kind, number in found.items())
    return f"{sum(found.values())}: {listed}" if found else "none"


def _owned(owned: dict[str, Any]) -> Iterator[str]:
    yield (
        f"  a guest that owns {owned['role']}: {owned['calls']} calls, score {owned['score']:g} with what "
        f"others do for it, {owned['alone']:g} by itself"
    )
    for verb in VERBS:
        yield f"    {_PARTS[verb]}: {_one_line('; '.join(owned['reach'].get(verb, ['nothing'])))}"


def _one_line(found: str) -> str:
    return found.replace("\n", "\\n").replace("\t", "\\t")
