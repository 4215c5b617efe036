"""What a fuzzer calls with bytes for a pod: what containerd and images say, and what the broker is asked."""

from __future__ import annotations

import base64
import json
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn
from unittest import mock

from google.protobuf.message import DecodeError

import fuzz_scratch
from kata_agent import oci
from kata_agent.protos import oci_pb2
from kata_hypervisor import registry
from kata_runtime.broker import cgroups, cleanup, messages, operations, processes
from kata_runtime.broker.api_filter import RequestFilter
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.monitor import CommandFilter, NotAllowedError
from kata_runtime.broker.rollback import NAME, RollbackJournal
from kata_runtime.container import bundle, devices, guest_spec, namespaces, propagation, resources
from kata_runtime.containerd_api import bootstrap_pb2
from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.resource import sizing
from kata_runtime.shim.bootstrap import read_call
from kata_runtime.shim.launcher import sandbox_of_bundle
from kata_runtime.unikernel import description

if TYPE_CHECKING:
    from collections.abc import Iterator

ID = "sandbox"
REFUSED = (InvalidRequestError, UnsupportedError, oci.SpecError)


def bootstrap(data: bytes) -> None:
    """The data is the standard input of `start`."""
    for api in (None, "3"):
        call = read_call(data, ID, api)
        assert call.dialect in (("plain", "json")[api == "3"], "protobuf")
        for value in (call.socket_root, call.ttrpc_address, call.config_path):
            assert value is None or (value and isinstance(value, str))
        if call.dialect != "protobuf":
            assert (call.socket_root, call.ttrpc_address) == (None, None)
            continue
        try:
            params = bootstrap_pb2.BootstrapParams.FromString(data)
        except DecodeError:
            continue
        assert params.instance_id == ID
        assert (call.ttrpc_address or "") == params.containerd_ttrpc_address
        assert (call.socket_root or "") == params.socket_dir


class _Table:
    """A hypervisor's table, as far as the size of a machine depends on it."""

    default_vcpus, default_maxvcpus, default_memory, overhead_vcpus, overhead_memory = 1, 0, 512, 0.5, 160


def oci_config(data: bytes) -> None:
    """The data is a bundle's config.json: whose sandbox it is, what is checked, what the guest gets."""
    place = fuzz_scratch.directory()
    (place / "config.json").write_bytes(data)
    sandbox = sandbox_of_bundle(str(place))
    assert sandbox is None or isinstance(sandbox, str)
    try:
        spec = bundle.parse_spec(data, "config.json")
        bundle.container_type(spec)
        message = oci.spec_to_proto(spec)
        guest_spec.left_out(spec)
        devices.check(ID, spec)
        propagation.check(spec, ID)
        namespaces.refuse(spec, ID, first=False)
        resources.check(f"create container {ID}", (spec.get("linux") or {}).get("resources") or {})
    except REFUSED as error:
        assert str(error)
        return
    before = json.dumps(spec)
    for volume in guest_spec.volumes_of(spec):
        assert volume.destination.startswith("/")
    for static in (True, False):
        size = sizing.size_of(spec, _Table(), static=static, host_cpus=4)
        assert 1 <= size.vcpus <= 4
        assert size.memory_mib >= sizing.MIN_MEMORY_MIB
    amended = guest_spec.amend(spec, ID, {}, disable_guest_seccomp=True)
    assert json.dumps(spec) == before
    oci.spec_to_proto(amended)
    guests = oci.spec_from_proto(oci_pb2.Spec.FromString(message.SerializeToString()))
    assert oci.spec_from_proto(oci.spec_to_proto(guests)) == guests


def urunc(data: bytes) -> None:
    """The first byte chooses: urunc.json, or annotations, whose values are apart by zero bytes."""
    which, content = (data[0] if data else 0), data[1:]
    try:
        if which & 1:
            unikernel = description.from_file(content)
        else:
            values = [base64.b64encode(part).decode() for part in content.split(b"\0")]
            keys = [description.PREFIX + key for key in description.KEYS]
            found = description.from_annotations(dict(zip(keys, values, strict=False)))
            if found is None:
                return
            unikernel = found
        assert unikernel.binary
        assert "\0" not in unikernel.command_line(["a", "b c", unikernel.block], ["NAME=a value"])
        for runner in ("qemu", "dragonball"):
            unikernel.check_runner(runner)
    except REFUSED as error:
        assert str(error)


def broker_messages(data: bytes) -> None:
    """The data is a packet on the broker's socket, as a shim may send it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(data[: messages.MAX_BYTES])
        try:
            message, descriptors = messages.receive(ours)
        except (messages.MessageError, messages.EndOfStream):
            return
    assert descriptors == []
    try:
        operation, arguments = operations.parse(message, 0)
    except RequestRefusedError as error:
        assert len(str(error)) < 1000
        return
    assert operation in operations.OPERATIONS
    assert arguments.keys() == operation.arguments.keys()
    assert messages.decode(messages.encode(message)) == message


def vmm_commands(data: bytes) -> None:
    """The data is what a sealed shim sends to its VMM's monitor, in two pieces; the first byte: which VMM."""
    info = registry.DRIVERS[data[0] % len(registry.DRIVERS)] if data else registry.DRIVERS[0]
    at, sent = len(data) // 2, data[1:]
    rules: CommandFilter | RequestFilter = CommandFilter(info.monitor_commands)
    if info.api_requests:
        rules = RequestFilter(info.api_requests, {"/disks/a"}, "/saved")
    try:
        passed = rules.take(sent[:at]) + rules.take(sent[at:])
    except NotAllowedError as error:
        assert len(str(error)) < 1000
        assert str(error).isprintable()
        return
    # What was passed is what passes.
    again = RequestFilter(info.api_requests, {"/disks/a"}, "/saved") if info.api_requests else None
    assert (again or CommandFilter(info.monitor_commands)).take(passed) == passed


class _Nowhere:
    """A scope in which no path is."""

    def __init__(self, shared: str, shared_fd: int, bundle: str, bundle_fd: int) -> None:
        self._held = (shared_fd, bundle_fd)

    def reach(self, path: str) -> NoReturn:
        os.fsencode(path)
        raise FileNotFoundError(2, "no such file", path)

    def close(self) -> None:
        for descriptor in self._held:
            if descriptor >= 0:
                os.close(descriptor)


def _is_process(pid: int, start: int) -> bool:
    return pid > 0 and start >= 0


@contextmanager
def _harmless() -> Iterator[None]:
    """Roll back nothing on this host: no process, no cgroup, no path."""
    with (
        mock.patch.object(processes, "end", _is_process),
        mock.patch.object(cgroups, "empty", return_value=[]),
        mock.patch.object(cgroups, "remove", os.fsencode),
        mock.patch.object(cgroups, "remove_parent", os.fsencode),
        mock.patch.object(cleanup, "PathScope", _Nowhere),
    ):
        yield


def rollback(data: bytes) -> None:
    """The data is a rollback journal: what a broker has left that was killed while it wrote."""
    path = str(fuzz_scratch.directory())
    with open(os.path.join(path, NAME), "wb") as file:
        file.write(data)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        journal = RollbackJournal.load(directory)
        assert journal is not None
        assert journal.unreadable + len(journal.entries) <= data.count(b"\n")
        for number in journal.find("remove", "/path"):
            assert number in journal.entries
        with _harmless():
            for line in cleanup.roll_back_dead(journal, path):
                assert line
    finally:
        os.close(directory)
