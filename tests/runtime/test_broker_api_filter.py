"""The broker passes to a VMM's REST interface what its driver declares, written anew, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor import registry, rest
from kata_hypervisor.api_request import DISK, LIMITS, NAME, Kind, Request, Saved
from kata_runtime.broker.api_filter import RequestFilter
from kata_runtime.broker.monitor import NotAllowedError

SHOWN = "/run/kata/x/disks/rootfs_1"
SAVED = "/var/lib/templates/one"
LIMITED = {"bandwidth": {"size": 1000, "refill_time": 1000}}
EXAMPLES: dict[Any, Any] = {DISK: SHOWN, NAME: "rootfs_1", bool: True, LIMITS: LIMITED}
PATHS = ("/etc/shadow", "/dev/sda", "/proc/1/mem", f"{SHOWN}/../../x", f"{SHOWN}/", "", "file:///etc")
NAMES = ("clh", "firecracker")


def requests(driver: str) -> tuple[Request, ...]:
    return registry.info_of(driver).api_requests


def filter_of(driver: str) -> RequestFilter:
    return RequestFilter(requests(driver), {SHOWN}, SAVED, LIMITED)


def written(method: str, path: str, body: object = None) -> bytes:
    """As the runtime's own client writes it."""
    return rest._encode(h11.Connection(h11.CLIENT), method, path, body)


def example(schema: Any) -> Any:
    """A value that fits, with everything that may be there."""
    if isinstance(schema, dict):
        return {key.removesuffix("?"): example(inner) for key, inner in schema.items()}
    if isinstance(schema, tuple):
        return example(schema[0])
    if isinstance(schema, range):
        return schema[-1]
    if isinstance(schema, Saved):
        return schema.form.format(SAVED)
    return EXAMPLES.get(schema, schema)


def wrong_values(schema: Any) -> list[Any]:
    """Values that do not fit in the place of one that does."""
    values: list[Any] = [None, [], {}, 7.5, *PATHS]
    if isinstance(schema, range):
        values += [schema.start - 1, schema.stop, True, "1"]
    elif schema is NAME:
        values = [*values[:3], "a/b", "..", "x" * 65, "\u00e4", ""]
    elif schema is bool:
        values += [0, 1, "true"]
    elif isinstance(schema, bool):
        values += [not schema, int(schema)]
    return values


ALL = [pytest.param(name, one, id=f"{name}-{one.path}") for name in NAMES for one in requests(name)]


@pytest.mark.parametrize(("name", "request_"), ALL)
def test_what_is_declared_passes_as_it_was_checked(name: str, request_: Request) -> None:
    body = None if request_.body is None else example(request_.body)
    passed = filter_of(name).take(written(request_.method, request_.path, body))
    server = h11.Connection(h11.SERVER)
    server.receive_data(passed)
    head = server.next_event()
    assert isinstance(head, h11.Request)
    assert (head.method, head.target) == (request_.method.encode(), request_.path.encode())
    if body is not None:
        data = server.next_event()
        assert isinstance(data, h11.Data)
        assert json.loads(bytes(data.data)) == body
    assert isinstance(server.next_event(), h11.EndOfMessage)


def _places(schema: Any, value: Any) -> list[tuple[Any, Any, list[str]]]:
    """Each leaf of a schema, with the keys that lead there."""
    if not isinstance(schema, dict):
        return [(schema, value, [])]
    return [
        (leaf, inside, [key.removesuffix("?"), *keys])
        for key, inner in schema.items()
        for leaf, inside, keys in _places(inner, value)
    ]


@pytest.mark.parametrize(("name", "request_"), ALL)
def test_every_other_value_is_refused(name: str, request_: Request) -> None:
    """Paths among them, wherever text may stand."""
    method, path, schema = request_.method, request_.path, request_.body
    if schema is None:
        with pytest.raises(NotAllowedError, match="has a body"):
            filter_of(name).take(written(method, path, {}))
        return
    for leaf, _, keys in _places(schema, None):
        for wrong in wrong_values(leaf):
            body = example(schema)
            inside = body
            for key in keys[:-1]:
                inside = inside[key]
            inside[keys[-1]] = wrong
            with pytest.raises(NotAllowedError, match="is not allowed"):
                filter_of(name).take(written(method, path, body))
    for body in ([], "x", {}, {**example(schema), "extra": 1}):
        with pytest.raises(NotAllowedError, match="is not allowed"):
            filter_of(name).take(written(method, path, body))
    with pytest.raises(NotAllowedError, match="has no body"):
        filter_of(name).take(written(method, path))


def test_no_text_is_free() -> None:
    """Each place of a declaration is a constant, a name, or a path that the broker knows."""
    for name in NAMES:
        for request in requests(name):
            for leaf, _, _ in _places(request.body, None):
                for one in leaf if isinstance(leaf, tuple) else (leaf,):
                    assert isinstance(one, Kind | Saved | range | str | bool) or one in (bool, None)


def test_what_is_missing_may_be_missing() -> None:
    size = next(one for one in requests("clh") if one.path.endswith("/vm.resize"))
    body = example(size.body)
    del body["desired_ram"]
    assert filter_of("clh").take(written("PUT", size.path, body))
    del body["desired_vcpus"]
    with pytest.raises(NotAllowedError, match="it has no 'desired_vcpus'"):
        filter_of("clh").take(written("PUT", size.path, body))


def test_a_disk_that_comes_later_is_limited_as_the_configuration_says() -> None:
    """Attack: a guest that owns its shim takes a disk out, and plugs it in without the limit."""
    disk = next(one for one in requests("clh") if one.path.endswith("/vm.add-disk"))
    limited = example(disk.body)
    free = {key: value for key, value in limited.items() if key != "rate_limiter_config"}
    wider = limited | {"rate_limiter_config": {"bandwidth": {"size": 10**9, "refill_time": 1000}}}
    assert filter_of("clh").take(written("PUT", disk.path, limited))
    for body, why in ((free, "it has no 'rate_limiter_config'"), (wider, "'rate_limiter_config' is")):
        with pytest.raises(NotAllowedError, match=why):
            filter_of("clh").take(written("PUT", disk.path, body))
    unlimited = RequestFilter(requests("clh"), {SHOWN}, SAVED)
    assert unlimited.take(written("PUT", disk.path, free))
    with pytest.raises(NotAllowedError, match="it has 'rate_limiter_config'"):
        unlimited.take(written("PUT", disk.path, limited))


@pytest.mark.parametrize("name", NAMES)
def test_without_disks_and_a_directory_to_save_in_no_path_passes(name: str) -> None:
    for request in requests(name):
        if "snapshot" in request.path or "add-disk" in request.path:
            sent = written(request.method, request.path, example(request.body))
            with pytest.raises(NotAllowedError, match="is not allowed"):
                RequestFilter(requests(name)).take(sent)


# What each VMM's interface can do besides, among it all that opens a file, a socket or a device.
FORBIDDEN = {
    "clh": [
        *("vm.create", "vm.delete", "vm.reboot", "vm.shutdown", "vm.power-button", "vm.add-device"),
        *("vm.add-user-device", "vm.add-fs", "vm.add-pmem", "vm.add-net", "vm.add-vdpa", "vm.add-vsock"),
        *("vm.restore", "vm.coredump", "vm.receive-migration", "vm.send-migration", "vm.resize-zone"),
        *("vm.resize-disk", "vm.nmi", "vm.counters", "vm.info", "vmm.ping", "vmm.nmi"),
    ],
    "firecracker": [
        *("/boot-source", "/machine-config", "/cpu-config", "/drives/image", "/drives/rootfs", "/logger"),
        *("/metrics", "/mmds", "/mmds/config", "/network-interfaces/net0", "/snapshot/load", "/vsock"),
        *("/balloon", "/entropy", "/pmem/p", "/serial", "/vm/config", "/version", "/hotplug/memory"),
    ],
}


@pytest.mark.parametrize(("name", "path"), [(name, path) for name in NAMES for path in FORBIDDEN[name]])
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH"])
def test_what_is_not_declared_is_refused(name: str, path: str, method: str) -> None:
    path = path if name == "firecracker" else f"/api/v1/{path}"
    with pytest.raises(NotAllowedError, match="is not allowed"):
        filter_of(name).take(written(method, path, {"path_on_host": "/etc/shadow"}))


PAUSE = written("PATCH", "/vm", {"state": "Paused"})


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\n\r\n",
        b"GET /? HTTP/1.1\r\n\r\n",
        b"GET /../ HTTP/1.1\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"\xffGET / HTTP/1.1\r\n\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PATCH /vm HTTP/1.1\r\nContent-Length: 0, 19\r\n\r\n",
        b"PATCH /vm HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"PATCH /vm HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
        b"PATCH /vm HTTP/1.1\r\nContent-Length: 5000\r\n\r\n",
        b"PATCH /vm HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"PATCH /vm HTTP/1.1\r\nContent-Length : 4\r\n\r\nnull",
        b"PATCH /vm HTTP/1.1\r\nContent-Length: 4\r\n\r\nnull",
        b"PATCH /vm HTTP/1.1\r\nContent-Length: 4\r\n\r\n{{{{",
        b"PATCH /vm HTTP/1.1\r\nContent-Length: 4000\r\n\r\n" + b"[" * 4000,
        b"x" * 5000,
        PAUSE + b"PUT /actions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        PAUSE + b"\r\n",
    ],
)
def test_what_is_no_request_of_ours_is_refused(sent: bytes) -> None:
    with pytest.raises(NotAllowedError):
        filter_of("firecracker").take(sent + b"\r\n\r\n")


def test_a_request_may_come_in_pieces_and_several_at_once() -> None:
    two = PAUSE + written("GET", "/")
    rules = filter_of("firecracker")
    assert b"".join(rules.take(bytes([byte])) for byte in two) == filter_of("firecracker").take(two)


@given(st.binary(max_size=200), st.integers(0, len(PAUSE)))
def test_whatever_is_sent_only_requests_pass(data: bytes, at: int) -> None:
    try:
        passed = filter_of("firecracker").take(PAUSE[:at] + data + PAUSE[at:])
    except NotAllowedError:
        return
    while passed:
        head, _, rest_ = passed.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        method, path, _ = lines[0].decode().split(" ")
        assert (method, path) in {(one.method, one.path) for one in requests("firecracker")}
        length = int(lines[-1].partition(b": ")[2]) if lines[-1].startswith(b"Content-Length") else 0
        passed = rest_[length:]
