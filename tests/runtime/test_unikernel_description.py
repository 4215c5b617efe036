"""What an image says of its unikernel: what is understood, and that everything else is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.registry import unikernel_runners
from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.unikernel.description import (
    KEYS,
    MAX_FILE,
    PREFIX,
    Unikernel,
    from_annotations,
    from_file,
)
from unikernel_description import GOOD, described, encode

TEXT = st.text("ab/=+ é\0\n", max_size=12) | st.sampled_from(["hvt", "spt", "mirage"])


def test_a_container_without_such_annotations_is_none() -> None:
    assert from_annotations({"io.kubernetes.cri.container-type": "sandbox"}) is None
    assert from_annotations({PREFIX + "binary": "", PREFIX + "hypervisor": ""}) is None


def test_annotations_and_the_file_say_the_same() -> None:
    values = GOOD | described(unikernelType="mirage", block="/disk", useDMBlock="false")
    read = from_annotations(values | {"other": "text"})
    assert read == Unikernel("annotation", "/app.hvt", "hvt", "mirage", "/disk")
    from_json = from_file(json.dumps(values).encode())
    assert (from_json.origin, from_json.binary, from_json.block) == ("urunc.json", "/app.hvt", "/disk")


def test_keys_of_later_versions_are_told() -> None:
    read = from_annotations(GOOD | described(mountRootfs="true"))
    assert read is not None
    assert read.ignored == (PREFIX + "mountRootfs",)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"binary": ""}, InvalidRequestError, "com.urunc.unikernel.binary is missing"),
        ({"hypervisor": ""}, InvalidRequestError, "com.urunc.unikernel.hypervisor is missing"),
        ({"hypervisor": "xen"}, UnsupportedError, "is 'xen': it must be one of qemu, firecracker, hvt, spt"),
        (
            {"unikernelType": "mewz"},
            UnsupportedError,
            "Type is 'mewz': it must be one of mirage, rumprun, unikraft, linux",
        ),
        ({"initrd": "/initrd"}, UnsupportedError, "initrd names an initrd"),
        ({"binary": "a\0b"}, InvalidRequestError, "binary must not contain null characters"),
    ],
)
def test_what_cannot_run_is_named(changes: dict[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_annotations(GOOD | described(**changes))


@pytest.mark.parametrize("value", ["/app.hvt", "aGVsbG8", "====", "4pyT\n", "/w==", "ü"])
def test_a_value_that_is_not_base64_of_text_is_quoted(value: str) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"annotation com\.urunc\.unikernel\.binary is .* must be the base64"
    ):
        from_annotations(GOOD | {PREFIX + "binary": value})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "urunc.json of the image is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "must be an object of strings"),
        (b'{"com.urunc.unikernel.binary": 1}', "must be an object of strings"),
        (b"{}", "the urunc.json com.urunc.unikernel.binary is missing"),
        (b" " * (MAX_FILE + 1), "is larger than 1 MiB"),
    ],
)
def test_a_file_that_says_nothing_useful(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        from_file(raw)


@given(st.dictionaries(st.sampled_from([PREFIX + key for key in (*KEYS, "new")]), TEXT | TEXT.map(encode)))
def test_no_annotations_are_more_than_refused(annotations: dict[str, str]) -> None:
    try:
        read = from_annotations(annotations)
    except (InvalidRequestError, UnsupportedError) as error:
        assert PREFIX in str(error)
        assert "\n" not in str(error)
    else:
        assert read is None or (read.binary and read.hypervisor in unikernel_runners())


@given(st.binary(max_size=300))
def test_no_file_is_more_than_refused(raw: bytes) -> None:
    with pytest.raises((InvalidRequestError, UnsupportedError)):
        from_file(raw)


def test_command_lines_have_the_form_of_their_kind() -> None:
    assert Unikernel("annotation", "/a", "hvt").command_line(["/a", "-v", "b c"]) == "/a -v b c"
    assert Unikernel("annotation", "/a", "hvt", "mirage").command_line(["--port=1"]) == "--port=1"
    line = Unikernel("annotation", "/a", "hvt", "rumprun").command_line(["redis", '"x"'])
    assert json.loads(line)["cmdline"] == 'redis "x"'
    assert json.loads(line)["blk"]["mountpoint"] == "/data"


ENVIRONMENT = ("PATH=/bin", "A=b c")


@pytest.mark.parametrize(
    ("keys", "argv", "line"),
    [
        ({}, ["nginx"], "nginx env.vars=[ PATH=/bin A=b c ] --"),
        ({}, ["nginx", "-c", "/f"], "nginx env.vars=[ PATH=/bin A=b c ] -- -c /f"),
        ({"initrd": "/i"}, ["a"], 'a env.vars=[ PATH=/bin A=b c ] vfs.fstab=[ "initrd0:/:extract:::" ] --'),
        (
            {"initrd": "/i", "version": "0.16.1"},
            ["a"],
            'a env.vars=[ PATH=/bin A=b c ] vfs.fstab=[ "initrd0:/:extract:::" ] --',
        ),
        (
            {"initrd": "/i", "version": "0.16.0"},
            ["a"],
            "a env.vars=[ PATH=/bin A=b c ] vfs.rootfs=initrd --",
        ),
    ],
)
def test_unikrafts_command_line(keys: dict[str, Any], argv: list[str], line: str) -> None:
    unikernel = Unikernel("annotation", "/a", "qemu", "unikraft", **keys)
    assert unikernel.command_line(argv, ENVIRONMENT) == line


def test_unikrafts_command_line_without_an_environment() -> None:
    assert Unikernel("annotation", "/a", "qemu", "unikraft").command_line(["a", "b"]) == "a -- b"


@pytest.mark.parametrize(
    ("keys", "root", "init"),
    [
        ({}, "", "init"),
        ({"block": "/b"}, "root=/dev/vda rw ", "init"),
        ({"initrd": "/i"}, "root=/dev/ram0 rw ", "rdinit"),
        ({"block": "/b", "initrd": "/i"}, "root=/dev/vda rw ", "init"),
    ],
)
def test_linuxs_command_line(keys: dict[str, Any], root: str, init: str) -> None:
    unikernel = Unikernel("annotation", "/a", "qemu", "linux", **keys)
    assert unikernel.command_line(["/bin/sh", "-c", "two words"], ENVIRONMENT) == (
        f"panic=-1 console=ttyS0 {root}PATH=/bin A=\"b c\" {init}=/bin/sh -- -c 'two words'"
    )


@pytest.mark.parametrize("hypervisor", ["qemu", "firecracker"])
def test_an_initrd_beside_a_kernel(hypervisor: str) -> None:
    read = from_annotations(GOOD | described(hypervisor=hypervisor, initrd="/i", unikernelVersion="0.17"))
    assert read is not None
    assert (read.initrd, read.version) == ("/i", "0.17")
    read.check_runner(hypervisor)


def test_a_configuration_that_does_not_run_it_is_named() -> None:
    unikernel = Unikernel("annotation", "/a", "hvt")
    unikernel.check_runner("dragonball")
    message = r"\[hypervisor.dragonball\] or \[hypervisor.solo5-hvt\] runs; .* \[hypervisor.qemu\]"
    with pytest.raises(UnsupportedError, match=message):
        unikernel.check_runner("qemu")
