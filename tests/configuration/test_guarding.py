"""Every key of every table is guarded from annotations, but for the few whose declarations open them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kata_configuration.diagnostics import Code
from kata_configuration.layer import pod_annotations
from kata_configuration.models import HYPERVISORS, TABLES
from kata_configuration.models.base import About, Access, Annotation

# The keys that a pattern of enable_annotations may allow. A key that is opened, or guarded again, changes
# this list too: what is not in it and can be set by way of a pattern is a fault.
OPEN = {
    "default_vcpus": "a pod's author chooses the size of its machine",
    "default_memory": "a pod's author chooses the size of its machine",
    "dial_timeout_ms": "patience with the pod's own guest",
    "reconnect_timeout_ms": "patience with the pod's own guest",
    "create_container_timeout": "patience with the pod's own guest",
    "health_check_request_timeout_ms": "patience with the pod's own guest",
    "container_pipe_size": "a size inside of the pod's own guest",
}

# The keys that no annotation sets, beside every valid_*.
CLOSED = {
    "enable_annotations",
    "refused_annotations",
    "agent_name",
    "name",
    "dan_conf",
    "sandbox_bind_mounts",
}

# What must never be open or lose its declaration by a slip: they confine, or name what the host runs.
CONFINING = {
    *("seccompsandbox", "disable_seccomp", "honor_unconfined", "shim_seccomp", "disable_guest_seccomp"),
    *("required_confinement", "sandbox_uid_base", "sandbox_uid_count"),
    *("virtio_fs_extra_args", "virtio_fs_daemon", "path", "jailer_path", "kernel", "initrd", "image"),
    *("kernel_params", "kernel_modules", "machine_accelerators", "hypervisor_name", "entropy_source"),
}

Place = tuple[tuple[str, ...], str]

KEYS: list[Place] = [(path, key) for path, model in TABLES.items() for key in model.model_fields]
PLAIN = [
    (path, key)
    for path, key in KEYS
    if pod_annotations._scalar(TABLES[path].model_fields[key])  # not a table
]
NAMES = {place: f"{'.'.join(place[0])}.{place[1]}" for place in KEYS}

# Every entry but the name itself that somebody might allow a key with.
PATTERNS = [".*", ".+", "[a-z_.]+", "(hypervisor|agent|runtime).*"]


def refusal(place: Place, entries: list[str]) -> str | None:
    """The message that an annotation which sets a key is refused with, or None where it is allowed."""
    path, key = place
    hypervisor = path[1] if path[0] == "hypervisor" else "qemu"
    table: dict[str, Any] = {**HYPERVISORS[hypervisor].example(), "enable_annotations": entries}
    tree = {"hypervisor": {hypervisor: table}, "runtime": {"hypervisor_name": hypervisor}}
    name = TABLES[path].model_fields[key].metadata
    written = next((item.name for item in name if isinstance(item, Annotation)), "") or key
    annotation = f"io.katacontainers.config.{path[0]}.{written}"
    applied = pod_annotations.apply(tree, {annotation: "x"}, str)
    refused = [found for found in applied.diagnostics if found.code == Code.ANNOTATION_REFUSED.number]
    return refused[0].message if refused else None


def access(place: Place) -> Access:
    """What the annotations do, and not what the declaration says, of a key."""
    path, key = place
    family = "" if path[0] == "hypervisor" else f"{path[0]}."
    broken = f"{family}{key[:-1]}[{key[-1]}]"
    if any(refusal(place, [pattern]) is None for pattern in (*PATTERNS, broken)):
        return Access.OPEN
    return Access.CLOSED if refusal(place, [f"{family}{key}"]) else Access.GUARDED


def expected(key: str) -> Access:
    if key in OPEN:
        return Access.OPEN
    return Access.CLOSED if key in CLOSED or key.startswith("valid_") else Access.GUARDED


@pytest.mark.parametrize("place", PLAIN, ids=NAMES.get)
def test_a_key_is_guarded_unless_the_list_says_otherwise(place: Place) -> None:
    assert access(place) is expected(place[1])
    without = refusal(place, [])
    assert without is not None
    if expected(place[1]) is Access.GUARDED:
        by_pattern = refusal(place, [".*"])
        assert by_pattern is not None
        assert "does not list it by its name" in by_pattern


@pytest.mark.parametrize("place", PLAIN, ids=NAMES.get)
def test_opening_a_declaration_is_noticed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests rest on: each guarded key, opened, would fail the test above."""
    path, key = place
    field = TABLES[path].model_fields[key]
    opened = Annotation.of(field)._replace(access=Access.OPEN)
    plain = [item for item in field.metadata if not isinstance(item, Annotation)]
    monkeypatch.setattr(field, "metadata", [*plain, opened])
    assert access(place) is Access.OPEN
    assert (access(place) is expected(key)) == (key in OPEN)


def test_the_lists_name_keys_that_there_are() -> None:
    keys = {key for _, key in KEYS}
    assert keys >= set(OPEN) | CLOSED | CONFINING
    assert CONFINING.isdisjoint(OPEN)


@pytest.mark.parametrize(("path", "key"), KEYS, ids=NAMES.values())
def test_a_reason_stands_where_a_key_is_not_guarded(path: tuple[str, ...], key: str) -> None:
    annotation = Annotation.of(TABLES[path].model_fields[key])
    assert bool(annotation.reason) == (annotation.access is not Access.GUARDED)


@pytest.mark.parametrize(("path", "key"), KEYS, ids=NAMES.values())
def test_a_path_that_an_annotation_may_name_is_limited_by_a_list(path: tuple[str, ...], key: str) -> None:
    model = TABLES[path]
    field = model.model_fields[key]
    annotation = Annotation.of(field)
    listed_in = annotation.listed_in
    may_name = pod_annotations._kind(field) is Path and annotation.access is not Access.CLOSED
    assert bool(listed_in) == may_name
    assert not listed_in or listed_in in model.model_fields


@pytest.mark.parametrize(("path", "key"), KEYS, ids=NAMES.values())
def test_a_honoured_key_names_where_it_takes_effect(path: tuple[str, ...], key: str) -> None:
    assert About.of(TABLES[path].model_fields[key]).takes_effect_in is not None
