"""Every operation of the broker: declared whole, asked for by the client, refused when asked wrongly."""

from __future__ import annotations

import ast
import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_bed import Bed, Shim, make_bed, wait_for_end
from kata_runtime.broker import client, messages, operations
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.operations import OPERATIONS, lifecycle
from kata_runtime.broker.operations.declaration import Operation
from kata_runtime.broker.phase import AFTER_SEAL, ALWAYS, BEFORE_SEAL, Phase
from kata_runtime.ctl.shim import module_roots

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)

FILTER = {
    "policy": "solo5-hvt-x86_64 [glibc]",
    "advice": "another program",
    "code": "BgAAAAAA/38=",
    "loading": "BgAAAAAA/38=",
    "last": [16, 0x4090AE82],
    "readable": ["/proc/self/fd/4"],
    "writable": [],
    "until_told": False,
    "any_path": False,
}

PRIVILEGES = {
    "files": ["/boot/vmlinuz"],
    "data": [],
    "devices": ["/dev/kvm"],
    "proc": False,
    "written": [5],
    "serves": None,
    "network": False,
    "open_files": 64,
    "file_size": 0,
    "disks": {"/dev/dm-3": True},
    "run_directory": None,
    "writable": [],
    "jailer": False,
}

TEXTS: list[Any] = [None, 7, ["/a"], {}, "/a\0b", "/\ud800"]
PATHS: list[Any] = [*TEXTS, "", "a", "./a", "/" + "x" * 5000, "/a" * 129]
NAMES: list[Any] = [*TEXTS, "", "..", "a/b", "a.b", "\u00e4", "x" * 65]
LABELS: list[Any] = [*TEXTS, "", "two\nlines", "x" * 201]
DEVICES = [None, "", "7", "7:", ":0", "7:0:0", "7:-1", "/dev/loop0", ["7:0"], 7, "1" * 20 + ":1"]
FLAGS: list[Any] = [None, 0, 1, "true", []]
PIDS: list[Any] = [None, True, "100", -1, 0, 1, 100.0, 2**22 + 1]

# By operation: arguments that are taken, and for each argument what is not.
EXAMPLES: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "prepare": (
        {"cgroup": "/default/x", "pinning": False},
        {"cgroup": [7, "/a\0b", ["/a"], "/\ud800"], "pinning": FLAGS},
    ),
    "pin_vcpus": (
        {"cpus": [2, 0]},
        {"cpus": [None, 3, "0-1", [-1], ["0"], [True], [1, 1], [100_000], list(range(256)), {"0": 1}]},
    ),
    "oom_kills": ({}, {}),
    "verify_confinement": (
        {"landlock": True, "sealed": True, "required": ["landlock"]},
        {
            "landlock": FLAGS,
            "sealed": FLAGS,
            "required": [None, "landlock", [7], ["seccomp"], ["landlock"] * 3, {"landlock": 1}],
        },
    ),
    "take_user": (
        {"base": 1_900_000_000, "count": 65536},
        {"base": [None, True, "1", 0, -1, 2**32], "count": [None, True, "1", 0, -1, 2**32]},
    ),
    "spawn": (
        {
            "name": "qemu",
            "argv": ["/q"],
            "fds": [],
            "environment": None,
            "gate": None,
            "seccomp": None,
            "privileges": None,
        },
        {
            "name": [None, "", "bash", "rootfs-image", ["qemu"], "QEMU"],
            "argv": [None, [], "/q", ["qemu"], ["/q", "a\0b"], ["/q", 1], ["/q"] * 1025],
            "fds": [None, [256], [-1], ["1"], [True], [0, 0], list(range(65)), {"1": 1}],
            "environment": [7, [], {"A=B": "x"}, {"": "x"}, {"A": 1}, {"A": "\0"}],
            "gate": [True, "3", 2, 256, 3.0],
            "seccomp": [
                *(7, [], {}, {**FILTER, "more": 1}, {k: v for k, v in FILTER.items() if k != "last"}),
                *({**FILTER, "code": code} for code in ("", "BgAAAAAA", "not base64", None, "A" * 50000)),
                *({**FILTER, "loading": None}, {**FILTER, "policy": "two\nlines"}),
                *({**FILTER, "last": last} for last in ([16], [16, 2**32], [1, 2, 3], ["16", 1], None)),
                *({**FILTER, "writable": ["dev/kvm"]}, {**FILTER, "readable": "/a"}),
                *({**FILTER, "until_told": 1}, {**FILTER, "any_path": None}),
            ],
            "privileges": [
                *(7, [], {}, {**PRIVILEGES, "user": 0}, {k: v for k, v in PRIVILEGES.items() if k != "proc"}),
                *({**PRIVILEGES, key: value} for key in ("files", "data") for value in (None, "/a", ["a"])),
                *({**PRIVILEGES, "devices": value} for value in (["/etc/x"], ["/dev/../x"], ["kvm"], None)),
                *({**PRIVILEGES, "files": ["/a"] * 65}, {**PRIVILEGES, "proc": 1}),
                *({**PRIVILEGES, "written": value} for value in (None, 5, [-1], ["5"], [256])),
                *({**PRIVILEGES, "serves": value} for value in ("shared", 7, "")),
                {**PRIVILEGES, "network": None},
                *({**PRIVILEGES, "jailer": value} for value in (None, 0, "no")),
                *({**PRIVILEGES, "open_files": value} for value in (None, True, 0, "64", 2**21)),
                *({**PRIVILEGES, "file_size": value} for value in (True, -1, "0", 1.5, 2**63)),
                *({**PRIVILEGES, "disks": []}, {**PRIVILEGES, "disks": {"/a": True}}),
                *({**PRIVILEGES, "disks": {"/dev/a": 1}}, {**PRIVILEGES, "disks": {"/dev/../a": True}}),
                *({**PRIVILEGES, "run_directory": value} for value in ("a", 1, ["/a"])),
                *({**PRIVILEGES, "writable": value} for value in ("/a", ["a"], ["/a"] * 5)),
            ],
        },
    ),
    "kill": ({"pid": 100, "signal": 9}, {"pid": PIDS, "signal": [None, True, "9", 0, -9, 65]}),
    "confinement": ({"pid": 100}, {"pid": PIDS}),
    "filters_effective": (
        {"pid": 100, "tid": 100, "beyond": 0},
        {"pid": PIDS, "tid": PIDS, "beyond": [None, False, "0", -1, 1001]},
    ),
    "end_loading": ({"pid": 100}, {"pid": PIDS}),
    "make_jail": (
        {"root": "/j/root", "files": {"vmlinuz": "/boot/vmlinuz"}},
        {
            "root": PATHS,
            "files": [
                *(None, [], {"": "/a"}, {"..": "/a"}, {"a/b": "/a"}, {"a": "b"}, {"a": None}),
                *({"x" * 101: "/a"}, {f"f{number}": "/a" for number in range(65)}),
            ],
        },
    ),
    "open_spec": ({"bundle": "/b"}, {"bundle": PATHS}),
    "make_directory": ({"path": "/d"}, {"path": PATHS}),
    "mount": (
        {"target": "/t", "mounts": [["overlay", "overlay", ["lowerdir=/a:/b"]], ["bind", "/a", []]]},
        {
            "target": PATHS,
            "mounts": [
                *(None, [], {}, [["bind", "/a", []]] * 17, ["bind", "/a", []]),
                *([[kind, "x", []]] for kind in ("proc", "fuse.sshfs", "tmpfs", "", None, ["bind"])),
                *([["bind", source, []]] for source in ("", None, "/a\0b", 7)),
                *([["bind", "/a"]], [["bind", "/a", "ro"]], [["bind", "/a", [7]]], [["bind", "/a", [], 1]]),
                [["bind", "/a", ["ro"] * 1025]],
            ],
        },
    ),
    "bind": (
        {"source": "/a", "target": "/b", "readonly": True, "recursive": False},
        {"source": PATHS, "target": PATHS, "readonly": FLAGS, "recursive": FLAGS},
    ),
    "show_root": ({"target": "/t"}, {"target": PATHS}),
    "find_memory": ({"source": "/a"}, {"source": PATHS}),
    "share": (
        {"source": "/a", "readonly": True, "recursive": False, "readonly_below": True},
        {"source": PATHS, "readonly": FLAGS, "recursive": FLAGS, "readonly_below": FLAGS},
    ),
    "unshare": ({"place": ".volumes/0/x"}, {"place": [*TEXTS, "", "x" * 4200]}),
    "unmount": ({"target": "/t"}, {"target": PATHS}),
    "remove": ({"path": "/p"}, {"path": PATHS}),
    "start_logger": (
        {"uri": "binary:///bin/logger?a=b"},
        {"uri": [None, "", "binary:///a\0", "\ud800", ["x"], 1, "x" * (1 << 15)]},
    ),
    "open_fifo": ({"path": "/f", "mode": "rw"}, {"path": PATHS, "mode": [None, "", "x", "wr", ["r"], 0]}),
    "open_log": ({"path": "/l"}, {"path": PATHS}),
    "open_in_image": (
        {"root": "/r", "name": "boot/kernel", "write": False},
        {"root": PATHS, "name": [*TEXTS, "", "x" * 4096], "write": FLAGS},
    ),
    "make_image": ({"root": "/r"}, {"root": PATHS}),
    "give_device": (
        {"device": "259:1048575", "write": False},
        {"device": DEVICES, "write": FLAGS},
    ),
    "open_device": ({"device": "7:0", "write": True}, {"device": DEVICES, "write": FLAGS}),
    "show_device": (
        {"disk": "device_1", "device": "7:0", "write": True},
        {"disk": NAMES, "device": DEVICES, "write": FLAGS},
    ),
    "open_image": (
        {"name": "a" * 64},
        {"name": [None, "", "a" * 63, "a" * 65, "A" * 64, "../" + "a" * 61, "/" * 64, ["a"] * 64]},
    ),
    "show_image": (
        {"disk": "rootfs_1", "image": "a" * 64},
        {"disk": NAMES, "image": [None, "", "a" * 63, "A" * 64, "../" + "a" * 61]},
    ),
    "hide_image": ({"disk": "rootfs_1"}, {"disk": NAMES}),
    "register_guest": (
        {"address": 77},
        {"address": [None, True, 0, 1, 2, -1, 2**32 - 1, 3.0, *(path for path in PATHS if path != 7)]},
    ),
    "late_interfaces": ({}, {}),
    "listen_for_vmm": ({"path": "/p"}, {"path": PATHS}),
    "connect_vmm": ({"path": "/p"}, {"path": PATHS}),
    "hold_monitor": (
        {"driver": "qemu", "saved": None},
        {
            "driver": [None, "", "bash", ["qemu"], "QEMU"],
            "saved": PATHS[1:],
        },
    ),
    "connect_guest": ({"port": 1024}, {"port": [None, True, "1", 0, -1, 2**32 - 1, 1.0]}),
    "connect_events": ({}, {}),
    "relay_log": ({}, {}),
    "probe_kvm": ({}, {}),
    "learn_hooks": ({}, {}),
    "run_hooks": ({"kind": "poststop"}, {"kind": [None, "", "startContainer", ["poststop"], "prestart "]}),
    "learn_network": (
        {"path": "/run/netns/x", "outside": False},
        {"path": [path for path in PATHS if path is not None], "outside": FLAGS},
    ),
    "network_state": ({}, {}),
    "attach_network": ({}, {}),
    "open_tap": (
        {"tap": "tap0", "queues": 1},
        {
            "tap": [None, "", "a/b", "a b", "..", "tap%d", "a:b", "sixteen-letters-", "\ud800", "a\0"],
            "queues": [None, 0, 65, True, "1"],
        },
    ),
    "confine_broker": (
        {"features": ["network", "kvm"], "code": "AAAAAAAAAAA="},
        {
            "features": [None, "kvm", ["shell"], [None], ["kvm"] * (len(lifecycle.FEATURES) + 1)],
            "code": [None, "", "AAAA", "!", 7, ["AAAAAAAAAAA="]],
        },
    ),
    "announce_seal": (
        {"mode": "enforce", "policy": "x86_64 [base]", "within": 60},
        {
            "mode": [None, "", "off", ["log"]],
            "policy": LABELS,
            "within": [None, 0, 3601, 0.5, "60", [60], True],
        },
    ),
    "supervise": ({}, {}),
    "close": ({}, {}),
}


def wrong_arguments(operation: Operation[...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the refusal must say, and the arguments: each missing, one unknown, each malformed."""
    good, malformed = EXAMPLES[operation.name]
    for key in good:
        without = {name: value for name, value in good.items() if name != key}
        yield f"{operation.name}: missing or unknown argument: {key}", without
    yield f"{operation.name}: missing or unknown argument: extra", {**good, "extra": 1}
    for key, values in malformed.items():
        for value in values:
            yield f"{operation.name}: {key} may not be ", {**good, key: value}


# -- declared whole ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS, ids=repr)
def test_an_operation_is_declared_whole(operation: Operation[...]) -> None:
    context, *parameters = inspect.signature(operation.handler).parameters.values()
    assert context.name == "context"
    assert {parameter.kind for parameter in parameters} <= {inspect.Parameter.KEYWORD_ONLY}
    handed = {parameter.name for parameter in parameters}
    assert handed - {"descriptors"} == operation.arguments.keys(), "each argument has a check"
    assert ("descriptors" in handed) == bool(operation.descriptors)
    assert all(map(callable, operation.arguments.values()))
    assert operation.phases in (BEFORE_SEAL, AFTER_SEAL, ALWAYS)
    assert operation.__doc__
    assert getattr(inspect.getmodule(operation.handler), operation.name) is operation


WHILE_IT_RUNS = {"confinement", "connect_guest", "end_loading", "hide_image", "kill", "show_image"}
"""What drivers ask of their host from `run` on, which follows the seal."""


def test_what_a_driver_asks_for_a_machine_that_runs_is_allowed_after_the_seal() -> None:
    allowed = {operation.name for operation in OPERATIONS if Phase.SEALED in operation.phases}
    assert allowed >= WHILE_IT_RUNS


def test_no_two_operations_have_one_name() -> None:
    names = [operation.name for operation in OPERATIONS]
    assert len(set(names)) == len(names)


def test_every_operation_that_is_declared_is_listed() -> None:
    groups = [module for module in vars(operations).values() if inspect.ismodule(module)]
    declared = [value for group in groups for value in vars(group).values() if isinstance(value, Operation)]
    assert set(declared) == set(OPERATIONS)


def test_every_operation_has_a_method_of_the_client() -> None:
    source = ast.parse(inspect.getsource(client))
    asked = {
        getattr(getattr(client, call.args[0].value.id), call.args[0].attr)
        for call in ast.walk(source)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "_request"
        and isinstance(call.args[0], ast.Attribute)
        and isinstance(call.args[0].value, ast.Name)
    }
    assert asked == set(OPERATIONS)


def test_every_operation_and_argument_has_examples() -> None:
    assert EXAMPLES.keys() == {operation.name for operation in OPERATIONS}
    for operation in OPERATIONS:
        good, malformed = EXAMPLES[operation.name]
        assert operation.arguments.keys() == good.keys() == malformed.keys()
        operation.check(good, operation.descriptors if isinstance(operation.descriptors, int) else 0)


# -- asked wrongly -----------------------------------------------------------------------------------------


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    with make_bed(monkeypatch) as made:
        yield made


@pytest.mark.parametrize("phase", Phase)
def test_what_is_asked_wrongly_is_refused_by_a_broker_that_goes_on(
    bed: Bed, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(channel: socket.socket, number: int, op: str, arguments: dict[str, Any], fds: list[int]) -> Any:
        messages.send(channel, messages.encode({"id": number, "op": op, **arguments}), fds)
        reply, descriptors = messages.receive(channel)
        assert reply["id"] == number
        assert descriptors == []
        return reply.get("error", reply)

    def act(channel: socket.socket) -> object:
        surprises: list[object] = []
        if phase is Phase.SEALED:
            ask(channel, 0, "announce_seal", {"mode": "enforce", "policy": "p", "within": 3600}, [])
        null = os.open(os.devnull, os.O_RDONLY)
        number = 0
        for operation in OPERATIONS:
            count = operation.descriptors if isinstance(operation.descriptors, int) else 0
            cases = [(what, arguments, count) for what, arguments in wrong_arguments(operation)]
            good, _ = EXAMPLES[operation.name]
            many = f"{operation.name}: {count + 1} descriptors came with the request, {count} must"
            cases.append((many, good, count + 1))
            if phase not in operation.phases:
                cases.append((f"{operation.name} is refused {phase.value}: it is allowed ", good, count))
            for what, arguments, descriptors in cases:
                number += 1
                error = ask(channel, number, operation.name, arguments, [null] * descriptors)
                if error.get("kind") != "refused" or not error["message"].startswith(what):
                    surprises.append([what, error])
        return {"surprises": surprises[:5], "cases": number, "alive": ask(channel, 1, "oom_kills", {}, [])}

    shim = Shim(bed, act, namespace=False)
    assert shim.result["surprises"] == []
    assert shim.result["cases"] > 250
    assert shim.result["alive"] == {"id": 1, "result": {"count": 0}}
    shim.kill()
    wait_for_end(shim.broker)


@pytest.mark.parametrize("op", [None, ["close"], "exec", "_do_close", "handler", "OPERATIONS", ""])
def test_an_operation_that_is_not_declared_is_unknown(op: Any) -> None:
    with pytest.raises(RequestRefusedError, match="the broker knows no operation"):
        operations.parse({"id": 1, "op": op}, 0)


def test_descriptors_are_numbered_one_by_one() -> None:
    arguments = {**EXAMPLES["spawn"][0], "fds": [1, 2]}
    assert operations.parse({"id": 1, "op": "spawn", **arguments}, 2)[1] == arguments
    with pytest.raises(RequestRefusedError, match="3 descriptors came with the request, 2 must"):
        operations.parse({"id": 1, "op": "spawn", **arguments}, 3)


@pytest.mark.parametrize("change", [{"argv": ["/bin/true", ""]}, {"seccomp": FILTER}, {"gate": 3}])
def test_what_is_asked_rightly_is_taken(change: dict[str, Any]) -> None:
    arguments = {**EXAMPLES["spawn"][0], **change}
    assert operations.parse({"id": 1, "op": "spawn", **arguments}, 0)[1] == arguments


@given(
    st.dictionaries(st.text() | st.sampled_from(["op", "path", "fds"]), json_values),
    st.sampled_from([operation.name for operation in OPERATIONS]),
)
def test_whatever_is_asked_is_checked_or_refused(message: dict[str, Any], op: str) -> None:
    try:
        assert operations.parse({**message, "op": op}, 0)[0].name == op
    except RequestRefusedError:
        pass


# -- what it costs -----------------------------------------------------------------------------------------

# Each name is paid for by every pod: add one only with a measurement.
CHEAP = {
    *("__future__", "base64", "binascii", "copyreg", "ctypes", "_ctypes", "fcntl", "json", "_json"),
    *(
        "kata_agent",
        "kata_hypervisor",
        "kata_runtime",
        "re",
        "resource",
        "_sha2",
        "_sha256",
        "signal",
        "_sre",
        "struct",
        "_struct",
    ),
}
DECLARATIONS = {
    *("kata_runtime", "kata_runtime.broker", "kata_runtime.broker.errors", "kata_runtime.broker.messages"),
    *("kata_runtime.broker.hook_kinds", "kata_runtime.broker.phase", "kata_runtime.errors"),
    *("kata_runtime.confinement", "kata_runtime.confinement.mechanisms"),
}
# The drivers' declarations, for the roles of children: 1.9 ms.
DRIVERS = {
    *("kata_hypervisor", "kata_hypervisor.registry", "kata_hypervisor.driver_info", "kata_hypervisor.errors"),
    "kata_hypervisor.api_request",
    *(
        f"kata_hypervisor.{folder}{module}"
        for folder in ("cloud_hypervisor", "dragonball", "firecracker", "qemu", "solo5")
        for module in ("", ".info")
    ),
}


def loaded_by(module: str) -> set[str]:
    """The modules that an import loads beyond those that forking the broker has loaded already."""
    probe = (
        f"import sys\nsys.path += {module_roots()!r}\nimport os, socket, signal\nbefore = set(sys.modules)\n"
        f"import {module}\nprint(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_broker_loads_cheap_modules_only() -> None:
    loaded = loaded_by("kata_runtime.broker.server")
    assert {name.partition(".")[0] for name in loaded} <= CHEAP


def test_declarations_load_nothing_that_acts() -> None:
    ours = {name for name in loaded_by("kata_runtime.broker.operations") if name.startswith("kata_")}
    prefix = operations.__name__
    assert {
        name for name in ours if name != prefix and not name.startswith(prefix + ".")
    } == DECLARATIONS | DRIVERS
