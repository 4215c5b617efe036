"""enable_annotations: which annotations of pods an operator lets in.

Each entry is a regular expression that must match a whole name. The name of a key of the hypervisor is the
key, as in "default_memory"; the name of another table's key has the table's kind before it, as in
"agent.kernel_modules". What could loosen the confinement, or names a file of the host, is let in by an entry
that is its name, letter by letter, and by nothing else.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from kata_configuration.diagnostics import Code, Finding, Fix, quoted
from kata_configuration.layer.pattern_cost import is_slow
from kata_configuration.suggestions import closest, unmistakable

KEY = "enable_annotations"
PREFIX = "io.katacontainers.config."

# Longer ones are no list of names.
MAX_PATTERN = 200

# Annotation of the hypervisor -> key, where they differ.
# Source: Kata Containers 4.1.0, runtime-rs, the constants KATA_ANNO_CFG_HYPERVISOR_*.
ANNOTATION_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "default_max_vcpus": "default_maxvcpus",
        "blk_logical_sector_size": "block_device_logical_sector_size",
        "blk_physical_sector_size": "block_device_physical_sector_size",
        "block_device_num_queues": "num_queues",
        "block_device_queue_size": "queue_size",
        "prefetch_files.list": "prefetch_list_path",
        "cc_init_data": "initdata",
    }
)

# No annotation sets these: they say what annotations may do, or what the host runs.
CLOSED = frozenset({KEY, "refused_annotations", "agent_name", "name", "sandbox_bind_mounts", "dan_conf"})
CLOSED_PREFIX = "valid_"

# Beside all keys that hold a path of the host.
GUARDED = frozenset(
    {
        "disable_guest_seccomp",
        "disable_guest_selinux",
        "disable_nested_virtualization",
        "disable_new_netns",
        "disable_seccomp",
        "disable_selinux",
        "extra_monitor_socket",
        "honor_unconfined",
        "hypervisor_name",
        "jaeger_endpoint",  # the host connects to it
        "kernel_verity_params",
        "machine_accelerators",  # properties of -machine name files: dumpdtb=FILE, firmware=FILE
        "pflashes",
        "rootless",
        "sandbox_cgroup_only",
        "seccompsandbox",
        "selinux_label",
        "shim_seccomp",
        "virtio_fs_extra_args",
    }
)


def names_of(family: str, name: str) -> tuple[str, ...]:
    """Return the names that an entry may match: of the annotation, and of its key where that differs."""
    names = (name, ANNOTATION_KEYS.get(name, name)) if family == "hypervisor" else (name,)
    qualified = tuple(f"{family}.{item}" for item in dict.fromkeys(names))
    return (*dict.fromkeys(names), *qualified) if family == "hypervisor" else qualified


def opens(entries: Iterable[str], names: Iterable[str], *, literally: bool) -> bool:
    """Whether an entry lets in an annotation of one of these names; `literally` when by name only."""
    wanted = set(names)
    if literally:
        return any(_literal(entry) in wanted for entry in entries)
    return any(pattern.fullmatch(name) for pattern in _compiled(entries) for name in wanted)


def check_entries(
    entries: tuple[str, ...], known: Mapping[str, bool], is_unhonoured: Callable[[str], bool]
) -> Iterator[Finding]:
    """Yield what is wrong with the entries, by their positions.

    known: the name of each annotation that there is -> whether only its literal name lets it in.
    is_unhonoured: whether an entry that is none of these names a key that this version does not act on.
    """
    for number, entry in enumerate(entries):
        yield from _check_entry((KEY, number), entry, known, is_unhonoured)


def _check_entry(
    path: tuple[str, int], entry: str, known: Mapping[str, bool], is_unhonoured: Callable[[str], bool]
) -> Iterator[Finding]:
    if base := _base_name(entry):
        message = f"{quoted(entry)} is an annotation's whole name, of which only the end counts here"
        yield Finding(Code.GATE_DEAD, path, message, f"write {quoted(base)}", fix=Fix(value=base))
        return
    try:
        pattern = _compile(entry)
    except ValueError as error:
        hint = 'write the annotation\'s name, such as "default_memory"'
        yield Finding(Code.GATE_MALFORMED, path, f"{quoted(entry)} is no pattern: {error}", hint)
        return
    if _literal(entry) in known:
        wider = [name for name in known if entry in name and name != entry and "." not in name]
        if wider:
            message = f"{quoted(entry)} opens this name only; runtimes that search also open {_some(wider)}"
            yield Finding(Code.GATE_UNANCHORED, path, message, f'for them, write "^{re.escape(entry)}$"')
        return
    opened = [name for name in known if pattern.fullmatch(name)]
    if len(opened) > len(known) // 2:
        message = f"{quoted(entry)} lets every pod set almost every key"
        yield Finding(Code.GATE_WIDE, path, message, "list the names that pods need")
    elif not opened and is_unhonoured(_literal(entry)):
        message = f"{quoted(entry)} is the name of a key that is not honoured here"
        yield Finding(Code.GATE_DEAD, path, message, "remove it")
    elif not opened:
        found = closest(entry, known)
        hint = f"did you mean {quoted(found)}?" if found else "remove it"
        fix = Fix(value=found) if unmistakable(entry, known) else None
        yield Finding(Code.GATE_DEAD, path, f"{quoted(entry)} is the name of no annotation", hint, fix=fix)
    elif all(known[name] for name in opened):
        message = f"{quoted(entry)} opens nothing: {_some(opened)} must be listed by name"
        yield Finding(Code.GATE_DEAD, path, message, f"write {quoted(opened[0])}")


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
    """Compile the entries; those that are no patterns let nothing in, and are reported as faults."""
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
