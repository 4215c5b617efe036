"""Bundles as containerd makes them, and as nobody should."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.container.bundle import (
    ContainerType,
    check_process,
    check_spec,
    container_type,
    parse_spec,
)
from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.identity import MAX_SPEC
from kata_runtime.pod.spec import load_spec

GOOD: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {"args": ["sh"], "cwd": "/"},
    "root": {"path": "rootfs"},
    "mounts": [{"destination": "/proc", "type": "proc"}],
}


def test_a_good_specification_is_read() -> None:
    assert parse_spec(json.dumps(GOOD).encode(), "config.json") == GOOD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be an object, not a list"),
        ('{"process": 3}', "process must be an object, not a number"),
        ("{}", "process is missing"),
        ('{"process": {"args": [], "cwd": "/"}}', "process.args"),
        ('{"process": {"args": ["a\\u0000b"], "cwd": "/"}}', "null characters"),
        ('{"process": {"args": ["a"], "cwd": "x"}}', "process.cwd"),
        ('{"process": {"args": ["a"], "cwd": "/"}}', "root.path is missing"),
        (
            '{"process": {"args": ["a"], "cwd": "/"}, "root": {"path": "r"}, "mounts": [{}]}',
            r"mounts\[0\].destination is missing",
        ),
        (
            '{"process": {"args": ["a"], "cwd":"/"}, "root": {"path":"r"}, "mounts": [{"destination": "x"}]}',
            "must be an absolute path",
        ),
        (
            '{"process": {"args": ["a"], "cwd": "/"}, "root": {"path": "r"}, "annotations": {"k": 1}}',
            "annotation 'k'",
        ),
        (
            '{"process": {"args": ["a"], "cwd": "/"}, "root": {"path": "r"}, "linux": {"namespaces": [{}]}}',
            r"linux.namespaces\[0\].type is missing",
        ),
    ],
)
def test_a_bad_bundle_names_its_fault(text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse_spec(text.encode(), "config.json")


@pytest.mark.parametrize(
    ("raw", "message"),
    [(b"x" * (MAX_SPEC + 1), "larger than 4 MiB"), (b"[" * 100_000, "is not JSON"), (b"\xff", "is not JSON")],
)
def test_a_file_that_is_no_specification(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse_spec(raw, "config.json")


async def test_a_missing_bundle_is_named() -> None:
    async def read(bundle: str) -> bytes:
        raise RequestFailedError(f"cannot read {bundle}/config.json: No such file or directory", 2)

    with pytest.raises(InvalidRequestError, match=r"cannot read /x/config.json: No such file"):
        await load_spec("/x", read)


def test_a_windows_container_is_not_for_us() -> None:
    with pytest.raises(UnsupportedError, match="'windows'"):
        check_spec(GOOD | {"windows": {"layerFolders": []}}, "config.json")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*GOOD, "args", "cwd", "path"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(_json)
def test_any_json_is_accepted_or_refused_by_name(spec: Any) -> None:
    try:
        check_spec(spec, "config.json")
    except (InvalidRequestError, UnsupportedError) as error:
        assert "config.json" in str(error)


@given(_json)
def test_any_process_is_accepted_or_refused(process: Any) -> None:
    try:
        assert check_process(process, "exec x")["args"]
    except InvalidRequestError as error:
        assert str(error).startswith("exec x")


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, ContainerType.SINGLE),
        ({"io.kubernetes.cri.container-type": "sandbox"}, ContainerType.POD_SANDBOX),
        ({"io.kubernetes.cri-o.ContainerType": "container"}, ContainerType.POD_CONTAINER),
    ],
)
def test_the_container_type(annotations: dict[str, str], expected: ContainerType) -> None:
    assert container_type({"annotations": annotations}) is expected


def test_an_unknown_container_type_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="'single'"):
        container_type({"annotations": {"io.kubernetes.cri.container-type": "single"}})
