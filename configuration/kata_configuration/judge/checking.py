"""The one judgement of a parsed file: loading and linting both ask here, so they cannot disagree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from kata_configuration.diagnostics import Code, Finding, Fix, KeyPath, quoted
from kata_configuration.judge import host, names, rules
from kata_configuration.judge.context import Context, lookup
from kata_configuration.judge.rule import Rule
from kata_configuration.models import AVAILABLE, TABLES, Table, own_path
from kata_configuration.suggestions import closest


@dataclass(slots=True)
class Judgement:
    """The valid tables of a tree, by path, and everything found in it."""

    tables: dict[KeyPath, Table] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def judge(
    tree: Mapping[str, Any],
    *,
    check_host: bool,
    owner: Callable[[KeyPath], int] = lambda _: 0,
    host_rules: tuple[Rule, ...] = (),
) -> Judgement:
    """Judge a whole tree. `check_host` also looks at the paths and the hardware of this machine.

    owner: returns the number of the file that a path is from. Of the hypervisors' tables, those that are
    there are judged; of this machine, only what the selected one needs. host_rules: further rules for this
    machine.
    """
    context = Context(tree, owner)
    judgement = Judgement(findings=list(names.unknown_tables(context)))
    selected = ("hypervisor", context.selected)
    for path, raw in _tables(tree):
        own = own_path(path)
        on_host = check_host and (own[0] != "hypervisor" or own == selected)
        applied = (*host.RULES, *host_rules) if on_host else ()
        table, found = _judge_table(path, TABLES[own], raw, context, applied)
        judgement.findings += found
        if table is not None:
            judgement.tables[own] = table
    for path, _ in _tables(tree):
        if table := judgement.tables.get(own_path(path)):
            judgement.findings += rules.across(table, path, judgement.tables)
    judgement.findings += _selection(context)
    return judgement


def _tables(tree: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield the tables to judge, as the file names them; [runtime] and the agent's also when absent."""
    hypervisors = tree.get("hypervisor")
    for name, raw in hypervisors.items() if isinstance(hypervisors, dict) else ():
        if isinstance(raw, dict) and own_path(("hypervisor", name)) in TABLES:
            yield ("hypervisor", name), raw
    for path in TABLES:
        if path[0] != "hypervisor":
            raw = lookup(tree, path)
            raw = {} if raw is None else raw  # every key of these has a default
            if isinstance(raw, dict):
                yield path, raw


def _judge_table(
    path: KeyPath,
    model: type[Table],
    raw: Mapping[str, Any],
    context: Context,
    host_rules: tuple[Rule, ...],
) -> tuple[Table | None, list[Finding]]:
    values = dict(raw)
    repeated = list(_resolve_aliases(path, model, values))
    table, faults = _validate(path, model, values, context)
    faulty = frozenset(str(fault.path[len(path)]) for fault in faults)
    found = [*faults, *rules.apply(table, path, faulty, host_rules)]
    written = {name: alias for alias, name in model.aliases.items() if alias in raw and name not in raw}
    stopped = any(fault.code is not Code.INERT for fault in faults)
    return (None if stopped else table), repeated + [
        _as_written(finding, len(path), written) for finding in found
    ]


def _validate(
    path: KeyPath, model: type[Table], values: dict[str, Any], context: Context
) -> tuple[Table, list[Finding]]:
    """Validate a table. Faulty keys get their default or example, so that the rest can be judged."""
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        from kata_configuration.judge.findings import describe

        faults = list(describe(error, model, path, context))
    faulty = {fault.path[len(path)] for fault in faults}
    sound = {key: value for key, value in values.items() if key not in faulty}
    return model.model_validate(model.example() | sound), faults


def _resolve_aliases(path: KeyPath, model: type[Table], values: dict[str, Any]) -> Iterator[Finding]:
    """Replace aliases by their fields in `values`, and say so where both are there."""
    for alias, name in model.aliases.items():
        if alias not in values:
            continue
        value = values.pop(alias)
        if name not in values:
            values[name] = value
        elif values[name] == value:
            message = f"repeats {name}, of which it is another name"
            yield Finding(
                Code.ALIAS_REPEATED, (*path, alias), message, "remove it", on_key=True, fix=Fix(remove=True)
            )
        else:
            message = f"is another name of {name}; its value is {quoted(values[name])}"
            yield Finding(Code.ALIAS_CONFLICT, (*path, alias), message, "keep one of them", on_key=True)


def _as_written(finding: Finding, depth: int, written: Mapping[str, str]) -> Finding:
    """Name a field in a finding as the file spells it."""
    alias = written.get(str(finding.path[depth]))
    return (
        replace(finding, path=(*finding.path[:depth], alias, *finding.path[depth + 1 :]))
        if alias
        else finding
    )


def _selection(context: Context) -> Iterator[Finding]:
    """Demand the table of the selected hypervisor, the one table that has no defaults for all its keys."""
    tree, name = context.tree, context.selected
    if name is None or name not in AVAILABLE:
        return
    tables = tree.get("hypervisor")
    present = isinstance(tables, dict) and any(own_path(("hypervisor", other))[1] == name for other in tables)
    if not present and not _misspelled(tables, name):
        hint = f"add [hypervisor.{name}]"
        if "kernel" in TABLES["hypervisor", name].model_fields:
            hint += " with at least a kernel, and an image or initrd"
        there = [other for other in tables or {} if own_path(("hypervisor", other)) in TABLES]
        if there:
            hint += (
                f', or write hypervisor_name = "{there[0]}" in [runtime] to select the table that is there'
            )
        if lookup(tree, ("runtime", "hypervisor_name")) is None:
            message, path = "the selected table is missing", ("hypervisor", name)
        else:
            message, path = f"selects [hypervisor.{name}], which is missing", ("runtime", "hypervisor_name")
        yield Finding(Code.MISSING_TABLE, path, message, hint)


def _misspelled(family: Mapping[str, Any] | None, name: str) -> bool:
    """Whether a table's name resembles this one: then the misspelling is reported, and not the absence."""
    return any(closest(other, [name]) for other in family or {})
