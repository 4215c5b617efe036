"""What the kernel reports of the processes of a sandbox, as `kata-ctl confinement --json` prints it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from kata_hypervisor import registry
from kata_hypervisor.errors import SealError
from kata_hypervisor.seccomp import syscalls
from kata_hypervisor.seccomp.score import surface_of
from kata_hypervisor.seccomp.survey import Survey, union
from kata_runtime.broker import cgroups, pod_confinement
from kata_runtime.confinement import facts, judging, reach, reading
from kata_runtime.confinement.facts import Facts, Place
from kata_runtime.confinement.rows import BROKER, CHILD_OF, SHIM, UNSEALED_BROKER, row_of
from kata_runtime.ctl.running import RecordedProcess, RecordedSandbox, read_seal
from kata_runtime.ctl.seccomp_status import Inspector

_VERIFIED = {
    "user": int,
    "outside": bool,
    "landlock": bool,
    "sealed": bool,
    "inherited": int,
    "filters": dict,
    "host": dict,
}


def read_verified(directory: str) -> dict[str, Any] | None:
    """What a broker found when it verified its pod; None before that."""
    try:
        with open(os.path.join(directory, pod_confinement.RECORD), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    good = isinstance(found, dict) and all(isinstance(found.get(k), kind) for k, kind in _VERIFIED.items())
    return found if good else None


def report(sandbox: RecordedSandbox, inspector: Inspector) -> dict[str, Any]:
    """Everything about one sandbox, as JSON has it."""
    verified = read_verified(sandbox.directory)
    host = _host(verified)
    processes, held = [], []
    for process in sandbox.processes:
        try:
            found, one = _process(process, host, verified, inspector)
        except ProcessLookupError:
            continue
        processes.append(found)
        held.append(one)
    return {
        "id": sandbox.id,
        "namespace": sandbox.namespace,
        "privileged": judging.names_of(reading.read(os.getpid()).capabilities("effective")),
        "verified": verified,
        "seal": read_seal(sandbox.directory),
        "processes": processes,
        "owned": [_owned(owner, held) for owner in _owners(held)],
    }


def _host(verified: dict[str, Any] | None) -> Place:
    """Where the runtime was started, by the broker's word; before that, where this process is."""
    if verified is None:
        return reading.read_place(os.getpid())
    device, inode = verified["host"]["root"]
    return Place(verified["host"]["namespaces"], (device, inode))


def _process(
    process: RecordedProcess,
    host: Place,
    verified: dict[str, Any] | None,
    inspector: Inspector,
) -> tuple[dict[str, Any], reach.Held]:
    found = reading.read(process.pid)
    role = process.name + CHILD_OF * process.by_child
    surveys, unread = _survey(found, inspector)
    together = union(list(surveys.values())) if surveys and not unread else None
    mounts = reading.read_mounts(process.pid)
    groups = reading.read_cgroups(process.pid)
    own = found.place.differs(host)
    own_root = found.place.root != host.root
    landlock = verified["landlock"] if verified is not None and role == SHIM else None
    document: dict[str, Any] = {
        "role": role,
        "title": row_of(role).title,
        "pid": process.pid,
        **_credentials(found),
        "seccomp": {
            "filters": found.filters,
            "threads": len(found.threads),
            "surface": asdict(surface_of(together)) if together else None,
            "unread": unread,
        },
        "threads": [_thread(thread, surveys.get(thread.tid)) for thread in found.threads],
        "landlock": landlock,
        "namespaces": {name: "own" if name in own else "host" for name in found.place.namespaces},
        "root": "own" if own_root else "host",
        "mounts": {
            "count": len(mounts),
            "writable": sorted({mount.point for mount in mounts if mount.writable}),
        },
        "cgroups": groups,
        "devices": _devices(groups),
        "limits": {name: list(limit) for name, limit in found.limits.items()},
        "descriptors": reading.read_descriptors(process.pid),
        "weaker": _weaker(role, found, host, verified) if verified is not None else [],
    }
    one = reach.Held(
        role=role,
        user=found.threads[0].users[3],
        calls=frozenset(together.named("open") if together else syscalls.numbers(syscalls.native())),
        conditional=frozenset(together.named("conditional") if together else ()),
        own_root=own_root,
        own_network="net" in own,
        landlocked=bool(landlock) and len(found.threads) == 1,  # it binds the thread that asked for it
        capabilities=frozenset(document["capabilities"]["effective"]),
        mounts=mounts,
    )
    return {**document, "reach": reach.alone(one)}, one


def _credentials(found: Facts) -> dict[str, Any]:
    first = found.threads[0]
    return {
        "name": first.name,
        "users": list(first.users),
        "groups": list(first.groups),
        "supplementary_groups": list(first.supplementary),
        "capabilities": {name: judging.names_of(found.capabilities(name)) for name in facts.CAPABILITY_SETS},
        "no_new_privs": all(thread.no_new_privs for thread in found.threads),
        "dumpable": found.dumpable,
    }


def _weaker(role: str, found: Facts, host: Place, verified: dict[str, Any]) -> list[dict[str, str]]:
    """What is weaker than the role's row, of a pod that was verified."""
    row = UNSEALED_BROKER if role == BROKER and not verified["sealed"] else row_of(role)
    weaker = judging.find_weaknesses(
        row,
        found,
        host,
        user=verified["user"],
        outside=verified["outside"],
        filters=_least_filters(role, verified),
    )
    return [{"cell": one.cell, "reason": one.reason} for one in weaker]


def _thread(thread: facts.Thread, survey: Survey | None) -> dict[str, Any]:
    return {
        "tid": thread.tid,
        "name": thread.name,
        "cpus": thread.cpus,
        "mode": thread.mode,
        "filters": thread.filters,
        "effective": judging.names_of(thread.capabilities["effective"]),
        "surface": asdict(surface_of(survey)) if survey else None,
    }


def _survey(found: Facts, inspector: Inspector) -> tuple[dict[int, Survey], str]:
    """What each thread of a process may call, by its id; and why that is unknown of one, or nothing."""
    surveys: dict[int, Survey] = {}
    for thread in found.threads:
        try:
            surveys[thread.tid] = inspector.survey(thread.tid)
        except SealError as error:
            return surveys, str(error)
        except ProcessLookupError:
            continue
    return surveys, "" if surveys else "it has exited"


def _devices(groups: dict[str, str]) -> list[str] | None:
    """The list of devices of a process's cgroup; None where the kernel shows none, as with version 2."""
    for hierarchy in cgroups.hierarchies():
        if "devices" in hierarchy.controllers:
            try:
                with open(
                    f"{hierarchy.mountpoint}{groups['devices']}/devices.list", encoding="ascii"
                ) as file:
                    return file.read().splitlines()
            except (OSError, KeyError):
                return None
    return None


def _least_filters(role: str, verified: dict[str, Any]) -> int | None:
    """How many filters each thread must be under: shim and broker as announced, others as they were found."""
    if role in (SHIM, BROKER):
        return int(verified["inherited"]) + 1 if verified["sealed"] else None
    found = verified["filters"].get(role)
    return found if isinstance(found, int) else None


def vmm_roles() -> frozenset[str]:
    """The roles of children that are a VMM."""
    return frozenset(info.children[0] for info in registry.DRIVERS if not info.in_process)


def _owners(held: Sequence[reach.Held]) -> Iterator[reach.Held]:
    """The processes that a guest may come to own, by what they read of it."""
    for one in held:
        if one.role == SHIM or one.role in vmm_roles():
            yield one


def _owned(owner: reach.Held, held: Sequence[reach.Held]) -> dict[str, Any]:
    shares = any(one.role.removesuffix(CHILD_OF) == "virtiofsd" for one in held)
    services = [reach.SHARED_FILES] if shares else []
    if owner.role == SHIM:
        services = [*reach.BROKER_SERVICES.values(), *services]
    return asdict(reach.unite(owner, services))
