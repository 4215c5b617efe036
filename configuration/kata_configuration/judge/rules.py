"""What single values cannot tell: keys against each other, and units.

A rule names the keys that it reads. It is applied to each table of its family that has them all, when none of
them is at fault: so one mistake is reported once, also in a table that has others.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kata_configuration.bind_mount import BindMount
from kata_configuration.diagnostics import Code, Finding, Fix, KeyPath, Loss, quoted
from kata_configuration.judge import confinement
from kata_configuration.judge.names import did_you_mean
from kata_configuration.judge.rule import Check, Rule
from kata_configuration.models import AGENTS, AVAILABLE, HYPERVISORS, OTHER_NAMES, Table
from kata_configuration.models.base import Needs, Plausible, Unit
from kata_configuration.suggestions import closest, unmistakable


def apply(
    table: Table, path: KeyPath, faulty: frozenset[str], host_rules: tuple[Rule, ...]
) -> Iterator[Finding]:
    """Yield what the rules find in a table whose keys in `faulty` hold placeholders.

    host_rules: those that look at this host, none where they shall not.
    """
    for rule in (*RULES, *host_rules):
        if rule.concerns(table, path, faulty):
            yield from (_below(path, found) for found in rule.check(table))
    yield from (_below(path, found) for found in _units(table) if found.path[0] not in faulty)
    yield from (_below(path, found) for found in _without_effect(table, faulty))


def across(table: Table, path: KeyPath, tables: Mapping[KeyPath, Table]) -> Iterator[Finding]:
    """Yield what a table's keys are against the keys of other tables. tables: all that are valid."""
    for key, needs in _needs(table):
        other = tables.get((needs.table,)) if needs.table else None
        if other is not None and _is_off(other, needs):
            yield _below(path, _no_effect(key, needs, other))
    if path == ("runtime",):
        yield from (_below(path, found) for found in _mounts_can_be_shared(table, tables))
        yield from (_below(path, found) for found in _vcpus_can_be_pinned(table, tables))


def _mounts_can_be_shared(table: Any, tables: Mapping[KeyPath, Any]) -> Iterator[Finding]:
    hypervisor = tables.get(("hypervisor", table.hypervisor_name))
    if table.sandbox_bind_mounts and hypervisor is not None and not hypervisor.shares_files:
        message = f"cannot be: {table.hypervisor_name} is configured to share no files with its guests"
        yield Finding(Code.RELATION, ("sandbox_bind_mounts",), message, "remove it")


def _vcpus_can_be_pinned(table: Any, tables: Mapping[KeyPath, Any]) -> Iterator[Finding]:
    hypervisor = tables.get(("hypervisor", table.hypervisor_name))
    if not table.enable_vcpus_pinning or hypervisor is None:
        return
    if not hypervisor.boots_linux:
        message = f"cannot be: {table.hypervisor_name} is configured to run unikernels only"
        yield Finding(Code.RELATION, ("enable_vcpus_pinning",), message, "remove it")
    elif hypervisor.overhead_vcpus and table.static_sandbox_resource_mgmt:
        message = (
            "has no effect on pods with a limit of whole CPUs: by overhead_vcpus = "
            f"{hypervisor.overhead_vcpus:g} their machines have one virtual CPU more than their cpusets name"
        )
        hint = f"set overhead_vcpus = 0 in [hypervisor.{table.hypervisor_name}]"
        yield Finding(Code.UNUSED, ("enable_vcpus_pinning",), message, hint)


def _below(path: KeyPath, found: Finding) -> Finding:
    return replace(found, path=(*path, *found.path))


def _units(table: Table) -> Iterator[Finding]:
    """Warn of values that are allowed, and that somebody wrote who had another unit in mind."""
    for key in table.model_fields_set:
        metadata = type(table).model_fields[key].metadata
        least = next((item.least for item in metadata if isinstance(item, Plausible)), 0)
        value = getattr(table, key)
        if least and 0 < value < least:
            unit = next(item.symbol for item in metadata if isinstance(item, Unit))
            message = f"{value} is unusually small: the unit is {unit}"
            yield Finding(Code.UNIT, (key,), message, _other_unit(value, unit))


def _other_unit(value: int, unit: str) -> str:
    if unit == "milliseconds":
        return f"for {value} seconds write {value * 1000}"
    return f"for {value} KiB write {value * 1024}"


def _without_effect(table: Table, faulty: frozenset[str]) -> Iterator[Finding]:
    """Yield the keys that have no effect, because another key of the table takes it away."""
    for key, needs in _needs(table):
        if not needs.table and faulty.isdisjoint((key, needs.key)) and _is_off(table, needs):
            yield _no_effect(key, needs, table)


def _needs(table: Table) -> Iterator[tuple[str, Needs]]:
    """Yield the keys whose values differ from their defaults, and without which key each has no effect."""
    for key in sorted(table.model_fields_set):
        field = type(table).model_fields[key]
        if getattr(table, key) != field.default:
            yield from ((key, item) for item in field.metadata if isinstance(item, Needs))


def _is_off(table: Table, needs: Needs) -> bool:
    value = getattr(table, needs.key, None)
    return value == needs.without if needs.without is not None else not value


def _no_effect(key: str, needs: Needs, other: Table) -> Finding:
    switch = f"{needs.key} = {quoted(needs.without)}" if needs.without is not None else needs.key
    message = f"has no effect {'without' if needs.without is None else 'with'} {switch}"
    message += f" in [{needs.table}]" if needs.table else ""
    choices = typing.get_args(type(other).model_fields[needs.key].annotation)
    only = needs.without is not None and choices == (needs.without,)
    hint = (
        "remove it" if only else f"remove it, or {'set' if needs.without is None else 'change'} {needs.key}"
    )
    return Finding(Code.UNUSED, (key,), message, hint, loss=Loss.NOTHING)


def _has_kernel(table: Any) -> Iterator[Finding]:
    if table.kernel is None:
        message = "is none: unikernels run, and no other containers"
        yield Finding(Code.NO_KERNEL, ("kernel",), message, "name a kernel to run them")


def _has_root(table: Any) -> Iterator[Finding]:
    if getattr(table, "kernel", "") is None:
        return
    if table.image is None and table.initrd is None:
        yield Finding(
            Code.MISSING_KEY, ("image",), "image or initrd is required", "add one of them", on_key=True
        )


def _initrd_mounts_the_image(table: Any) -> Iterator[Finding]:
    """Warn of an initrd of Kata's own beside an image: it is a whole guest, whose init is the agent."""
    if table.image and table.initrd and is_whole_guest_by_name(table.initrd):
        yield unused_image(f"{table.initrd.name} is by its name a whole guest")


def is_whole_guest_by_name(initrd: Path) -> bool:
    """Whether an initrd has a name that Kata's releases give theirs."""
    return _WHOLE_GUEST.fullmatch(initrd.name) is not None


def unused_image(why: str) -> Finding:
    """Return the finding about an image that an initrd does not mount. why: the initrd, and what it is."""
    message = f"is not used: {why}, which mounts no image"
    hint = 'remove image, or name an initrd that mounts it, such as that of "kata-ctl image build"'
    return Finding(Code.UNUSED, ("image",), message, hint)


def _vcpus_fit(table: Any) -> Iterator[Finding]:
    if 0 < table.default_maxvcpus < table.default_vcpus:
        message = (
            f"default_vcpus = {table.default_vcpus} is more than default_maxvcpus = {table.default_maxvcpus}"
        )
        yield _relation(table, ("default_vcpus", "default_maxvcpus"), message)


def _memory_fits(table: Any) -> Iterator[Finding]:
    most, start = table.default_maxmemory, table.default_memory
    if 0 < most < start:
        message = f"default_memory = {start} is more than default_maxmemory = {most}"
        yield _relation(table, ("default_memory", "default_maxmemory"), message)


def _sectors_fit(table: Any) -> Iterator[Finding]:
    logical, physical = table.block_device_logical_sector_size, table.block_device_physical_sector_size
    if 0 < physical < logical:
        keys = ("block_device_logical_sector_size", "block_device_physical_sector_size")
        yield _relation(table, keys, f"{keys[0]} = {logical} is more than {keys[1]} = {physical}")


def _timeouts_fit(table: Any) -> Iterator[Finding]:
    reconnect, dial = table.reconnect_timeout_ms, table.dial_timeout_ms
    if reconnect < dial:
        message = f"reconnect_timeout_ms = {reconnect} is less than dial_timeout_ms = {dial}"
        yield _relation(table, ("reconnect_timeout_ms", "dial_timeout_ms"), message)
    elif dial in LIKE_SECONDS and dial * 1000 > reconnect:
        message = f"{dial} is a long pause between two attempts: the unit is milliseconds"
        hint = f"if the guest has {dial} seconds to boot, write reconnect_timeout_ms = {dial * 1000}"
        yield Finding(Code.UNIT, ("dial_timeout_ms",), message, hint)


def _mounts_have_names(table: Any) -> Iterator[Finding]:
    """Find a source that the guest could not tell from one before it."""
    names: set[str] = set()
    for number, text in enumerate(table.sandbox_bind_mounts):
        if (name := BindMount.parse(text).name) in names:
            message = f"has the last name {quoted(name)} of another entry, by which the guest finds each"
            yield Finding(Code.RELATION, ("sandbox_bind_mounts", number), message, "keep one of them")
        names.add(name)


def _relation(table: Table, keys: tuple[str, str], message: str) -> Finding:
    """Blame the first key that the file sets; the other may be a default."""
    key, other = keys if keys[0] in table.model_fields_set else (keys[1], keys[0])
    return Finding(Code.RELATION, (key,), message, f"change it or {other}")


def _hypervisor_is_there(table: Any) -> Iterator[Finding]:
    name = table.hypervisor_name
    if name in AVAILABLE:
        return
    from kata_configuration.judge import removed_keys

    hint = "use " + " or ".join(quoted(known) for known in AVAILABLE)
    if name in HYPERVISORS:
        message = f"there is no driver for {name} in this version"
        yield Finding(Code.UNAVAILABLE, ("hypervisor_name",), message, hint)
    elif removed := removed_keys.TABLES.get(("hypervisor", name)):
        yield Finding(Code.CHOICE, ("hypervisor_name",), f"{quoted(name)} {removed.story}", hint)
    else:
        yield _unsupported("hypervisor_name", name, [*HYPERVISORS, *OTHER_NAMES])


def _agent_is_there(table: Any) -> Iterator[Finding]:
    if table.agent_name not in AGENTS:
        yield _unsupported("agent_name", table.agent_name, AGENTS)


def _unsupported(key: str, name: str, known: Iterable[str]) -> Finding:
    best = closest(name, known)
    hint = did_you_mean(name, known)
    fix = Fix(value=best) if unmistakable(name, known) else None
    return Finding(Code.CHOICE, (key,), f"{quoted(name)} is not supported", hint, fix=fix)


def _debug(key: str, effect: str) -> Check:
    """Note a switch for debugging that is on."""

    def check(table: Any) -> Iterator[Finding]:
        if getattr(table, key):
            yield Finding(Code.DEBUG, (key,), f"is on: {effect}", "set it to false")

    return check


# Pauses in milliseconds that are rather the time in seconds that older runtimes had under almost this name.
LIKE_SECONDS = range(30, 100)
# The names of the initrds that Kata's releases have.
_WHOLE_GUEST = re.compile(r"kata-containers-initrd.*|kata-.*\.initrd")

RULES: tuple[Rule, ...] = (
    *confinement.RULES,
    Rule("hypervisor", ("kernel",), _has_kernel),
    Rule("hypervisor", ("image", "initrd"), _has_root),
    Rule("hypervisor", ("image", "initrd"), _initrd_mounts_the_image),
    Rule("hypervisor", ("default_vcpus", "default_maxvcpus"), _vcpus_fit),
    Rule("hypervisor", ("default_memory", "default_maxmemory"), _memory_fits),
    Rule(
        "hypervisor",
        ("block_device_logical_sector_size", "block_device_physical_sector_size"),
        _sectors_fit,
    ),
    Rule(
        "hypervisor",
        ("enable_debug",),
        _debug("enable_debug", "the log has the guest's console and the messages of the VMM"),
    ),
    Rule("agent", ("enable_debug",), _debug("enable_debug", "the guest's agent logs at debug level")),
    Rule("agent", ("dial_timeout_ms", "reconnect_timeout_ms"), _timeouts_fit),
    Rule(
        "runtime",
        ("enable_debug",),
        _debug(
            "enable_debug", "the runtime logs at debug level, and kata-ctl seccomp provoke may end the pod"
        ),
    ),
    Rule("runtime", ("sandbox_bind_mounts",), _mounts_have_names),
    Rule("runtime", ("hypervisor_name",), _hypervisor_is_there),
    Rule("runtime", ("agent_name",), _agent_is_there),
)
