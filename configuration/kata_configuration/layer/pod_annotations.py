"""Annotations of pods that set keys: io.katacontainers.config.{hypervisor,agent,runtime}.NAME = VALUE.

Their values are one more layer over the files, and are judged with them. What is not allowed, or names no
key, or a path outside of the operator's lists, is a diagnostic that says which line allows it.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic.fields import FieldInfo

from kata_configuration.diagnostics import Code, Diagnostic, Finding, KeyPath, Severity, key_name, quoted
from kata_configuration.layer import annotation_allowlist
from kata_configuration.layer.annotation_allowlist import PREFIX, Known
from kata_configuration.layer.layers import annotation_place
from kata_configuration.layer.merging import spellings
from kata_configuration.models import (
    AGENTS,
    HYPERVISORS,
    INEFFECTIVE,
    OTHER_NAMES,
    PLANNED,
    TABLES,
    Runtime,
    Table,
)
from kata_configuration.models.base import Access, Annotation, Instead, RoundedUp, Unit
from kata_configuration.suggestions import closest

Tree = dict[str, Any]

ROOT = "io.katacontainers."
FAMILIES = ("hypervisor", "agent", "runtime")
# Kata's annotations that set no key: of the OCI layer, and of single containers.
OTHER_PREFIXES = ("io.katacontainers.pkg.", "io.katacontainers.container.")

_MEBIBYTES = {"Mi": 1, "Gi": 2**10, "Ti": 2**20}


@dataclass(frozen=True, slots=True)
class Target:
    """The key that an annotation sets: the path of its table, the field, and the names that allow it."""

    table: tuple[str, ...]
    key: str
    field: FieldInfo
    names: tuple[str, ...]

    @property
    def annotation(self) -> Annotation:
        """How an annotation sets the key."""
        return Annotation.of(self.field)

    @property
    def guarded(self) -> bool:
        """Whether only an entry that is its name, letter by letter, allows it."""
        return self.annotation.access is not Access.OPEN


@dataclass(slots=True)
class Applied:
    """What annotations result in: a tree for each that is allowed, by its whole name, and the diagnostics."""

    trees: dict[str, Tree] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)


def apply(tree: Tree, annotations: Mapping[str, str], where: Callable[[KeyPath], str]) -> Applied:
    """Turn annotations into trees. tree: of the files. where: the place of a key in them, for messages."""
    return _Application(tree, where).run(annotations)


def path_of(tree: Tree, name: str) -> KeyPath | None:
    """Return the path of the key that an annotation names, allowed or not; None when it names none."""
    return _Application(tree, str).path_of(name)


def check_entries(table: Any) -> Iterator[Finding]:
    """Yield what is wrong with the enable_annotations of a hypervisor's table, by their positions."""
    model: type[Table] = type(table)
    known = _names(model, "hypervisor", table)
    for family, models in (("agent", AGENTS.values()), ("runtime", (Runtime,))):
        for other in models:
            known |= _names(other, family)
    path = next(path for path, each in TABLES.items() if each is model)

    def is_unhonoured(entry: str) -> bool:
        family, _, rest = entry.partition(".")
        owner = {"agent": ("agent", "kata"), "runtime": ("runtime",)}.get(family, path)
        return _is_unhonoured(owner, rest if family in FAMILIES else entry)

    yield from annotation_allowlist.check_entries(table.enable_annotations, known, is_unhonoured)


def _is_unhonoured(table: tuple[str, ...], name: str) -> bool:
    """Whether a name that allows nothing is that of a key that another table has, or another version."""
    return name in _names_of_family(table[0])


def _instead_of(table: tuple[str, ...], name: str) -> Instead:
    """Return what happens in place of a table's key that is not honoured; no clause where none says it."""
    for model in (PLANNED.get(table), INEFFECTIVE[table[0]]):
        if model is not None and (key := _key_of(model, name)):
            metadata = model.model_fields[key].metadata
            return next((item for item in metadata if isinstance(item, Instead)), Instead(""))
    return Instead("")


@functools.cache
def _names_of_family(family: str) -> frozenset[str]:
    """Return every name that annotations have for keys of a family, honoured or not."""
    models = [model for part in (TABLES, PLANNED) for path, model in part.items() if path[0] == family]
    every = (INEFFECTIVE[family], *models)
    return frozenset(name for model in every for key in model.model_fields for name in _names_of(model, key))


def _names(model: type[Table], family: str, table: Table | None = None) -> dict[str, Known]:
    """Return the names that allow a table's keys -> what each allows. table: with its lists of paths."""
    names: dict[str, Known] = {}
    for key, info in model.model_fields.items():
        if is_settable(info):
            target = Target((), key, info, annotation_allowlist.names_of(family, _names_of(model, key)))
            listed_in = target.annotation.listed_in
            empty = listed_in if listed_in and not getattr(table, listed_in, ()) else ""
            known = Known(target.guarded, target.annotation.loosens, empty)
            names |= dict.fromkeys(target.names[:1], known)
    return names


def _names_of(model: type[Table], key: str) -> tuple[str, ...]:
    """Return every name that annotations have for a key, the one of Kata first."""
    aliases = (alias for alias, own in model.aliases.items() if own == key)
    names = (Annotation.of(model.model_fields[key]).name or key, key, *aliases)
    return tuple(dict.fromkeys(names))


def _key_of(model: type[Table], name: str) -> str | None:
    """Return the key that an annotation's last part names, or None."""
    return next((key for key in model.model_fields if name in _names_of(model, key)), None)


class _Application:
    def __init__(self, tree: Tree, where: Callable[[KeyPath], str]) -> None:
        self._tree = tree
        self._where = where
        runtime = _table(tree, ("runtime",))
        self._chosen = _name(runtime, "hypervisor_name", HYPERVISORS)
        self._hypervisor = self._chosen  # until an annotation that is allowed selects another
        self._agent = _name(runtime, "agent_name", AGENTS)
        lenient = runtime.get("refused_annotations") == "warn"
        self._refusal = Severity.WARNING if lenient else Severity.ERROR
        self._applied = Applied()
        self._set: dict[KeyPath, tuple[str, Any]] = {}

    def run(self, annotations: Mapping[str, str]) -> Applied:
        first = f"{PREFIX}runtime.hypervisor_name"
        for name in sorted(annotations, key=lambda name: (name != first, name)):
            if name.startswith(PREFIX):
                self._apply(name, annotations[name])
            elif (meant := near_miss(name)) is not None:
                self._say(Code.ANNOTATION_PREFIX, name, "", "sets nothing", f"did you mean {quoted(meant)}?")
        return self._applied

    def path_of(self, name: str) -> KeyPath | None:
        target = self._resolve(name)
        return (*target.table, target.key) if target else None

    def _apply(self, name: str, text: str) -> None:
        target = self._resolve(name)
        if target is None:
            self._say(Code.ANNOTATION_UNKNOWN, name, "", *self._unknown(name))
            return
        path = (*target.table, target.key)
        if not self._is_allowed(name, target) or _is_obstructed(self._tree, target.table):
            return
        value = _typed(text, target.field)
        if not self._names_valid_path(name, target, value):
            return
        other, previous = self._set.get(path, (name, value))
        if previous != value:
            message = f"is {quoted(text)}, and {other} has another value"
            self._say(Code.ANNOTATION_TWICE, name, key_name(path), message, "keep one of them")
            return
        self._set[path] = (name, value)
        if path == ("runtime", "hypervisor_name"):
            self._hypervisor = _own(value) if _own(value) in HYPERVISORS else self._chosen
        combined = _combine(target, self._current(target), value)
        leaf: Tree = {target.key: combined}
        for part in reversed(target.table):
            leaf = {part: leaf}
        self._applied.trees[name] = leaf

    def _resolve(self, name: str) -> Target | None:
        family, _, rest = name.removeprefix(PREFIX).partition(".")
        if not name.startswith(PREFIX) or family not in FAMILIES:
            return None
        table, model = self._model(family)
        key = _key_of(model, rest)
        if key is None or not _scalar(model.model_fields[key]):
            return None
        names = annotation_allowlist.names_of(family, (rest, *_names_of(model, key)))
        return Target(table, key, model.model_fields[key], names)

    def _model(self, family: str) -> tuple[tuple[str, ...], type[Table]]:
        if family == "hypervisor":
            return (family, self._hypervisor), HYPERVISORS[self._hypervisor]
        if family == "agent":
            return (family, self._agent), AGENTS[self._agent]
        return (family,), Runtime

    def _is_allowed(self, name: str, target: Target) -> bool:
        key = key_name((*target.table, target.key))
        if not is_settable(target.field):
            message = f"no annotation may set this key: {target.annotation.reason}"
            self._say(Code.ANNOTATION_REFUSED, name, key, message, "remove it")
            return False
        holder = target.table if target.table[0] == "hypervisor" else ("hypervisor", self._chosen)
        if annotation_allowlist.opens(
            self._entries(holder, annotation_allowlist.KEY), target.names, literally=target.guarded
        ):
            return True
        why = "it by its name" if target.guarded else "it"
        message = f"is refused: {annotation_allowlist.KEY} of [{key_name(holder)}] does not list {why}"
        self._say(
            Code.ANNOTATION_REFUSED,
            name,
            key,
            message,
            self._line(holder, annotation_allowlist.KEY, target.names[0]),
        )
        return False

    def _names_valid_path(self, name: str, target: Target, value: Any) -> bool:
        listing = target.annotation.listed_in
        if not listing:
            return True
        if any(_matches(str(value), glob) for glob in self._entries(target.table, listing)):
            return True
        message = f"{quoted(value)} is refused: {listing} of [{key_name(target.table)}] does not list it"
        hint = self._line(target.table, listing, str(value))
        self._say(Code.ANNOTATION_PATH, name, key_name((*target.table, target.key)), message, hint)
        return False

    def _line(self, table: tuple[str, ...], key: str, entry: str) -> str:
        """Say which line of the configuration allows something."""
        entries = json.dumps([*self._entries(table, key), entry], ensure_ascii=False)
        return f"write {key} = {entries} in [{key_name(table)}], {self._where((*table, key))}"

    def _entries(self, table: tuple[str, ...], key: str) -> list[str]:
        value = _table(self._tree, table).get(key)
        return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []

    def _current(self, target: Target) -> Any:
        """Return the value of a key in the files, by whichever of its names."""
        table = _table(self._tree, target.table)
        return next((table[key] for key in spellings(target.table, target.key) if key in table), None)

    def _unknown(self, name: str) -> tuple[str, str]:
        """Say what is wrong with a name that no key has, and what to do."""
        family, _, rest = name.removeprefix(PREFIX).partition(".")
        if family not in FAMILIES:
            found = closest(family, FAMILIES)
            hint = "the next word is hypervisor, agent or runtime"
            return (
                "names no key",
                f"did you mean {quoted(f'{PREFIX}{found}.{rest}')}?" if found and rest else hint,
            )
        table, model = self._model(family)
        if _is_unhonoured(table, rest):
            instead = _instead_of(table, rest)
            clause = f": {instead.clause}" if instead.clause else ""
            return f"names a key that is not honoured here{clause}", instead.advice
        found = closest(rest, model.model_fields)
        return (
            "names no key",
            f"did you mean {quoted(f'{PREFIX}{family}.{found}')}?" if found else "remove it",
        )

    def _say(self, code: Code, name: str, key: str, message: str, hint: str) -> None:
        softened = code in (Code.ANNOTATION_REFUSED, Code.ANNOTATION_PATH, Code.ANNOTATION_UNKNOWN)
        severity = self._refusal if softened else code.severity
        place = annotation_place(name)
        self._applied.diagnostics.append(
            Diagnostic.of(code, place, message, hint, key=key, severity=severity)
        )


def near_miss(name: str) -> str | None:
    """Return the annotation that a name of another prefix means, or None when it is not ours at all."""
    if "kata" not in name.lower() or name.startswith(OTHER_PREFIXES):
        return None
    match = re.search(r"(?:^|[./])(hypervisor|agent|runtime)[./]([\w.]+)$", name)
    return f"{PREFIX}{match[1]}.{match[2]}" if match else None


def is_settable(info: FieldInfo) -> bool:
    """Whether there is an annotation that sets a key."""
    return Annotation.of(info).access is not Access.CLOSED and _scalar(info)


def _scalar(info: FieldInfo) -> bool:
    """Whether a key holds one value or an array of strings, and not tables."""
    kind = _kind(info)
    return kind in (bool, int, float, str, Path) or kind is tuple


def _kind(info: FieldInfo) -> Any:
    """Return which of bool, int, float, str, Path and tuple (of strings) a key holds; None for another."""
    kinds = set(_kinds(info.annotation))
    for kind in (bool, Path, float, int, str):
        if kind in kinds:
            return tuple if tuple in kinds else kind
    return None


def _kinds(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        yield from {type(value) for value in typing.get_args(annotation)}
    elif origin is typing.Annotated:
        yield from _kinds(typing.get_args(annotation)[0])
    elif origin is None:
        yield annotation
    else:
        yield origin
        for argument in typing.get_args(annotation):
            yield from _kinds(argument)


def _typed(text: str, info: FieldInfo) -> Any:
    """Read an annotation's value as its key's type. What cannot be read stays text, which is judged later."""
    kind, plain = _kind(info), text.strip()
    if kind is bool and plain in ("true", "false"):
        return plain == "true"
    if kind is int and re.fullmatch(r"-?\d{1,18}", plain):
        return int(plain)
    if kind is int and _is_rounded_up(info) and re.fullmatch(r"\d{1,9}\.\d{1,9}", plain):
        return math.ceil(Decimal(plain))
    if kind is int and (match := re.fullmatch(r"(\d{1,12})(Mi|Gi|Ti)B?", plain)) and _in_mebibytes(info):
        return int(match[1]) * _MEBIBYTES[match[2]]
    if kind is float and re.fullmatch(r"-?\d{1,18}(\.\d{1,18})?", plain):
        return float(plain)
    if kind is tuple:
        return [entry.strip() for entry in text.split(Annotation.of(info).separator) if entry.strip()]
    return text


def _in_mebibytes(info: FieldInfo) -> bool:
    return any(isinstance(item, Unit) and item.symbol == "MiB" for item in info.metadata)


def _is_rounded_up(info: FieldInfo) -> bool:
    return any(isinstance(item, RoundedUp) for item in info.metadata)


def _combine(target: Target, current: Any, value: Any) -> Any:
    """Add to the value of the files: an array's elements, and parameters of the kernel's command line."""
    if isinstance(value, list) and isinstance(current, list):
        return [*current, *value]
    if target.annotation.by_parameter and isinstance(current, str):
        return " ".join(_replace_parameters(_parameters(current), _parameters(value)))
    return value


def _replace_parameters(current: list[str], new: list[str]) -> Iterator[str]:
    """New parameters replace those with the same NAME=. Source: runtime-rs, update_config_by_annotation."""
    names = {parameter.partition("=")[0] for parameter in new}
    yield from (parameter for parameter in current if parameter.partition("=")[0] not in names)
    yield from new


def _parameters(line: str) -> list[str]:
    return re.findall(r'(?:[^ "]|"[^"]*"?)+', line)


def _matches(path: str, glob: str) -> bool:
    """Whether a glob matches a whole path; its wildcards do not match "/", and no ".." gets past it.

    No path at all is matched by "".
    """
    if not path:
        return not glob
    parts, wanted = PurePosixPath(path).parts, PurePosixPath(glob).parts
    if ".." in parts or str(PurePosixPath(path)) != path:
        return False
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _table(tree: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    """Return a table, or an empty one where there is none."""
    node: Any = tree
    for depth, part in enumerate(path):
        if not isinstance(node, Mapping):
            return {}
        node = next((node[name] for name in spellings(path[:depth], part) if name in node), None)
    return node if isinstance(node, Mapping) else {}


def _is_obstructed(tree: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    """Whether the files have a value where a table belongs: a fault of theirs, which must not be covered."""
    above = [_table(tree, path[:depth]).get(path[depth], {}) for depth in range(len(path))]
    return not all(isinstance(node, Mapping) for node in above)


def _name(runtime: Mapping[str, Any], key: str, known: Mapping[str, Any]) -> str:
    """Return the name that [runtime] selects; where that is faulty, which is reported, the default."""
    name = _own(runtime.get(key))
    return name if isinstance(name, str) and name in known else Runtime.model_fields[key].default


def _own(name: Any) -> Any:
    return OTHER_NAMES.get(name, name) if isinstance(name, str) else name


def annotation_of(table: tuple[str, ...], key: str, info: FieldInfo) -> str | None:
    """Return the whole name of the annotation that sets a key of a table, or None when none does."""
    family = table[0]
    if len(table) != (1 if family == "runtime" else 2) or not is_settable(info):
        return None
    return f"{PREFIX}{family}.{Annotation.of(info).name or key}"
