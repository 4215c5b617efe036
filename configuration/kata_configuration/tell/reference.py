"""What there is to know of each key, from the models: for `config explain`, and the page in docs/.

`kata-ctl config reference` prints the page; a test holds docs/configuration.md to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kata_configuration.diagnostics import key_name
from kata_configuration.judge import removed_keys
from kata_configuration.judge.removed_keys import RemovedKey
from kata_configuration.layer.pod_annotations import annotation_of
from kata_configuration.models import AVAILABLE, HYPERVISORS, OTHER_NAMES, TABLES, own_path
from kata_configuration.models.base import About, Access, Annotation, Instead
from kata_configuration.parse.toml_text import value_text
from kata_configuration.suggestions import closest
from kata_configuration.tell import facts
from kata_configuration.tell.facts import HONOURED, NO_EFFECT, NOT_YET, Key

HEADING = """\
# Configuration reference

Every key of `configuration.toml`, generated from the models that also check it: `kata-ctl config reference`
writes this page, `kata-ctl config explain KEY` tells the same of one key, and `kata-ctl config schema` prints
it as a JSON Schema for editors.

A key that is not here is an error. So is one that the driver of its table does not honour, unless its value
changes nothing. Only the selected hypervisor's table has to be complete; faults in the others are warnings.

For an editor with taplo or tombi, write the schema beside the file, and name it in the file's first line:

    kata-ctl config schema > configuration.schema.json

    #:schema ./configuration.schema.json
"""


ANNOTATIONS = """\
No annotation of a pod sets a key unless `enable_annotations` allows it. A key is guarded: an entry that is
its name allows it, and no pattern does. The tables below say "by name" of those, and "no" of a key that no
annotation sets. The exceptions, "by pattern", are allowed by a pattern such as `default_.*` too:
"""


def explain(name: str) -> list[str]:
    """Return the facts of a table, or of a key with its table or alone: a text for each meaning.

    Empty when there is none of that name.
    """
    wanted = own_path(name.split("."))
    if wanted in TABLES:
        return [_explain_table(wanted)]
    found = [key for key in facts.every_key() if _is_meant(key, wanted)]
    blocks: dict[tuple[str, ...], list[str]] = {}
    for key in found:
        blocks.setdefault(_lines(key), []).append(key_name(key.path))
    for place, key_alone, removed in _removed(wanted):
        blocks.setdefault((removed.story, _advice(removed)), []).append(f"{_place(place)}{key_alone}")
    return ["\n".join([*names, *(f"    {line}" for line in lines)]) for lines, names in blocks.items()]


def suggest(name: str) -> str | None:
    """Return the name of a key that resembles one that there is not, or None."""
    table, _, key = name.rpartition(".")
    known = {item.name for item in facts.every_key()} | {key for _, key in removed_keys.KEYS}
    best = closest(key, sorted(known))
    return best and (f"{table}.{best}" if explain(f"{table}.{best}") else best)


def page() -> str:
    """Write the reference page."""
    everything = list(facts.every_key())
    blocks = [HEADING, _open_keys(everything), _matrix(everything)]
    for path, model in TABLES.items():
        there = [key for key in everything if key.path[: len(path)] == path]
        blocks.append(f"## [{key_name(path)}]\n\n{_introduction(path)}{facts.sentence(model)}\n")
        blocks.append(_table([key for key in there if key.status not in (NOT_YET, NO_EFFECT)], path))
        if planned := [key for key in there if key.status == NOT_YET]:
            blocks.append(f"Known, and not supported by this version:\n\n{_table(planned, path)}")
    blocks.append(_ineffective(everything))
    blocks.append(_removed_keys())
    return "\n".join(blocks)


def _is_meant(key: Key, wanted: tuple[str, ...]) -> bool:
    """Whether a name is a key's path or an end of it, also by an alias."""
    names = [key.path, *((*key.path[:-1], alias) for alias in key.aliases)]
    return any(path[-len(wanted) :] == wanted for path in names)


def _lines(key: Key) -> tuple[str, ...]:
    """Return the facts of a key, but for where it is."""
    field, about = key.field, About.of(key.field)
    values = {
        "type": _kind(key),
        "default": facts.default(field),
        "range": facts.span(field),
        "choices": ", ".join(value_text(choice) for choice in facts.choices(field)),
        "drivers": _drivers(key),
        "since": about.since,
        "aliases": ", ".join(key.aliases),
        "annotation": _annotation(key),
        "effect in": about.takes_effect_in.value if about.takes_effect_in and key.status == HONOURED else "",
        "status": key.status,
        "instead": _instead(key),
    }
    return (about.sentence, *(f"{word:<11}{value}" for word, value in values.items() if value))


def _annotation(key: Key) -> str:
    """Return the name of the annotation that sets a key, and what allows it."""
    name, how = annotation_of(key.path[:-1], key.name, key.field), Annotation.of(key.field)
    if name is None:
        return "none" + (f": {how.reason}" if how.reason else "")
    if how.access is Access.OPEN:
        return f"{name}, open to patterns: {how.reason}"
    return f"{name}, guarded"


def _instead(key: Key) -> str:
    """Return what happens in place of a key that is not honoured, where its declaration says it."""
    found = [item.clause for item in key.field.metadata if isinstance(item, Instead)]
    return found[0] if found and key.status != HONOURED else ""


def _with_instead(key: Key) -> str:
    """Return a key's sentence, and what happens in its place."""
    clause = _instead(key)
    return f"{About.of(key.field).sentence}{f' Instead: {clause}.' if clause else ''}"


def _access(key: Key) -> str:
    if annotation_of(key.path[:-1], key.name, key.field) is None:
        return "no"
    return "by pattern" if Annotation.of(key.field).access is Access.OPEN else "by name"


def _drivers(key: Key) -> str:
    """Name the hypervisors that honour a key of theirs, or will as soon as they have a driver."""
    if key.path[0] != "hypervisor" or len(key.path) != 3:
        return ""
    names = [name for name, model in HYPERVISORS.items() if key.name in model.model_fields]
    now = ", ".join(name for name in names if name in AVAILABLE)
    later = ", ".join(name for name in names if name not in AVAILABLE)
    return "; ".join(filter(None, [now, later and f"without a driver in this version: {later}"]))


def _explain_table(path: tuple[str, ...]) -> str:
    model = TABLES[path]
    others = [other for other, own in OTHER_NAMES.items() if path == ("hypervisor", own)]
    lines = [f"[{key_name(path)}]", f"    {facts.sentence(model)}"]
    lines += [f"    may also be written [hypervisor.{other}]" for other in others]
    width = max(len(name) for name in model.model_fields)
    lines += [
        f"    {name:<{width}}  {About.of(field).sentence}" for name, field in model.model_fields.items()
    ]
    return "\n".join(lines)


def _removed(wanted: tuple[str, ...]) -> Iterator[tuple[str, str, RemovedKey]]:
    *table, key = wanted
    for (place, name), removed in removed_keys.KEYS.items():
        if name == key and (not table or place == table[0] or place == ".".join(table)):
            yield place, name, removed
    for path, removed in removed_keys.TABLES.items():
        if path == wanted:
            yield ".".join(path[:-1]), path[-1], removed


def _advice(removed: RemovedKey) -> str:
    return removed.advice or f"write {removed.becomes}"


def _place(place: str) -> str:
    return "" if not place else f"{place}." if "." in place or place == "runtime" else f"{place}.*."


def _kind(key: Key) -> str:
    unit = facts.unit(key.field)
    return facts.kind(key.field) + (f", in {unit}" if unit else "")


def _introduction(path: tuple[str, ...]) -> str:
    if path[0] == "hypervisor" and path[1] not in AVAILABLE:
        return "There is no driver for it in this version: the table is checked, and cannot be selected. "
    return ""


def _table(keys: list[Key], path: tuple[str, ...]) -> str:
    honoured = any(key.status == HONOURED for key in keys)
    places = ("By annotation", "Takes effect in") if honoured else ()
    rows = [("Key", "Type", "Default", "Allowed", *places, "Since", "Meaning")]
    for key in keys:
        allowed = " ".join(f"`{value_text(choice)}`" for choice in facts.choices(key.field)) or facts.span(
            key.field
        )
        name = key_name(key.path[len(path) :])
        about = About.of(key.field)
        aliases = f" Also written {', '.join(f'`{alias}`' for alias in key.aliases)}." if key.aliases else ""
        where = about.takes_effect_in.value if about.takes_effect_in else ""
        shown = (_access(key), where) if honoured else ()
        rows.append(
            (
                f"`{name}`",
                _kind(key),
                _default(key),
                allowed,
                *shown,
                about.since,
                f"{_with_instead(key)}{aliases}",
            )
        )
    return _markdown(rows)


def _default(key: Key) -> str:
    default = facts.default(key.field)
    return default if default in ("required", "none", "see its keys") else f"`{default}`"


def _open_keys(keys: list[Key]) -> str:
    """List the keys that a pattern of enable_annotations may open, each with the reason."""
    reasons: dict[str, dict[str, None]] = {}
    for key in keys:
        if key.status == HONOURED and _access(key) == "by pattern":
            reasons.setdefault(Annotation.of(key.field).reason, {})[f"`{key.name}`"] = None
    rows = [("Keys", "Why"), *((", ".join(names), reason) for reason, names in reasons.items())]
    return f"## What annotations may set\n\n{ANNOTATIONS}\n{_markdown(rows)}"


def _matrix(keys: list[Key]) -> str:
    """Show which hypervisor honours which key."""
    names = list(HYPERVISORS)
    own = dict.fromkeys(key.name for key in keys if key.path[0] == "hypervisor" and len(key.path) == 3
                        and key.status != NO_EFFECT)  # fmt: skip
    rows: list[tuple[str, ...]] = [("Key", *names)]
    status = {key.path: key.status for key in keys}
    for name in sorted(own):
        marks = (status.get(("hypervisor", driver, name)) for driver in names)
        rows.append((f"`{name}`", *(_mark(mark) for mark in marks)))
    legend = "yes: honoured; table: checked, no driver in this version; later: known, not supported yet"
    return f"## Which hypervisor honours what\n\n{legend}.\n\n{_markdown(rows)}"


def _mark(status: str | None) -> str:
    return {None: "", HONOURED: "yes", NOT_YET: "later", NO_EFFECT: ""}.get(status, "table")


def _ineffective(keys: list[Key]) -> str:
    seen = {(key.path[0], key.name): key for key in keys if key.status == NO_EFFECT}
    rows = [("Key", "Of", "Meaning to Kata")]
    rows += [(f"`{name}`", family, _with_instead(key)) for (family, name), key in seen.items()]
    text = "Kata reads these and acts on none of them; neither does this runtime, which says so."
    return f"## Keys without effect\n\n{text}\n\n{_markdown(rows)}"


def _removed_keys() -> str:
    rows = [("Key or table", "What became of it", "What to do")]
    for (place, key), removed in removed_keys.KEYS.items():
        rows.append((f"`{_place(place)}{key}`", removed.story, _advice(removed)))
    for path, removed in removed_keys.TABLES.items():
        rows.append((f"`[{key_name(path)}]`", removed.story, removed.advice))
    return f"## Other versions' keys and tables\n\n{_markdown(rows)}"


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"
