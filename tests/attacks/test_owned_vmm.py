"""A VMM that a guest owns, and the monitor over which a shim that it owns would command one."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from attack_bed import World, make_world
from kata_hypervisor import registry
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.qemu.info import LATER_MEMORY, LATER_MEMORY_PATH
from kata_runtime.broker.client import Broker
from kata_runtime.broker.monitor import CommandFilter, NotAllowedError
from kata_runtime.broker.process import fork_broker

MONITORED = [info for info in registry.DRIVERS if info.monitor_commands]

# Commands of QEMU that open, write, connect, run or give away something. Source: qapi/*.json.
COMMANDS = [
    *("pmemsave", "memsave", "dump-guest-memory", "dump-skeys", "screendump", "xen-save-devices-state"),
    *("chardev-add", "chardev-change", "chardev-remove", "ringbuf-read", "add_client", "getfd", "closefd"),
    *("netdev_add", "netdev_del", "object-add", "object-del", "set_link"),
    *("blockdev-create", "blockdev-snapshot", "blockdev-snapshot-sync", "blockdev-mirror"),
    *("blockdev-backup", "drive-backup", "drive-mirror", "change-backing-file", "blockdev-change-medium"),
    *("block-export-add", "nbd-server-start", "nbd-server-add", "block-commit", "block-stream"),
    *("migrate", "migrate-incoming", "migrate-recover", "snapshot-save", "snapshot-load", "transaction"),
    *("human-monitor-command", "xen-load-devices-state", "rtc-reset-reinjection", "inject-nmi", "send-key"),
    *("display-reload", "set_password", "client_migrate_info", "trace-event-set-state", "dumpdtb"),
    *("x-exit-preconfig", "qmp_capabilities", "query-qmp-schema", "qom-get", "qom-list", "system_reset"),
]
PATHS = {"filename": "/etc/cron.d/x", "protocol": "file:/etc/x", "uri": "exec:/bin/sh", "path": "/etc/x"}


@pytest.mark.parametrize("info", MONITORED, ids=lambda info: str(info.name))
def test_no_command_with_an_effect_on_the_host_passes(info: Any) -> None:
    assert not set(COMMANDS) & set(info.monitor_commands)
    for command in (*COMMANDS, *(f"{name} " for name in info.monitor_commands)):
        for key in ("execute", "exec-oob"):
            for arguments in ({}, PATHS):
                message = {key: command, "arguments": arguments, "id": 1}
                with pytest.raises(NotAllowedError):
                    CommandFilter(info.monitor_commands).take(json.dumps(message).encode())


@pytest.mark.parametrize("info", MONITORED, ids=lambda info: str(info.name))
def test_an_allowed_command_carries_nothing(info: Any) -> None:
    for command in info.monitor_commands:
        for more in (
            {"arguments": PATHS},
            {"arguments": [PATHS]},
            {"arguments": {"": None}},
            {"control": {"run-oob": True}},
            {"exec-oob": "pmemsave"},
            {"id": {"execute": "pmemsave"}},
        ):
            with pytest.raises(NotAllowedError):
                CommandFilter(info.monitor_commands).take(json.dumps({"execute": command, **more}).encode())


CPU = {"driver": "host-x86_64-cpu", "id": "cpu-1", "socket-id": 1, "core-id": 0, "thread-id": 0}
DISK = {
    "driver": "virtio-blk-pci",
    "bus": "slot-0",
    "id": "disk-0",
    "drive": "disk-0",
    "serial": "device_1",
    "num-queues": 1,
    "queue-size": 128,
}
SIZE = {"path": LATER_MEMORY_PATH, "property": "requested-size", "value": 128 << 20}
FILE = {"driver": "host_device", "filename": "/dev/fdset/1", "locking": "off"}
CONTENT = {
    "driver": "raw",
    "node-name": "disk-0",
    "read-only": True,
    "cache": {"direct": False, "no-flush": False},
    "file": FILE,
}
NO_NUMBERS = (0, -1, True, None, "1", 1.0, [1])
NO_DISKS = ("image", "disk-8", "disk-", "", "/dev/sda", "disk-0 ", None)

ARGUMENTS: list[tuple[str, dict[str, Any], tuple[dict[str, Any], ...]]] = [
    (
        "device_add",
        CPU,
        (
            *(
                {"driver": name}
                for name in ("vfio-pci", "virtio-blk-pci", "loader", "pc-dimm", "ivshmem-plain")
            ),
            *({"id": name} for name in ("later-memory", "cpu-0", "cpu-255", "", "cpu-1 ", "disk-0")),
            *({"drive": "image"}, {"file": "/etc/shadow"}, {"memdev": "later"}, {"hv-passthrough": True}),
            *({"socket-id": value} for value in (0, 255, -1, True, "1", 1.0)),
            *({"core-id": 1}, {"thread-id": 1}, {"node-id": 0}, {"bus": "pcie.0"}),
        ),
    ),
    (
        "device_add",
        DISK,
        (
            *({"driver": name} for name in ("vfio-pci", "host-x86_64-cpu", "scsi-hd", "virtio-blk-pci ", 1)),
            *({"bus": name} for name in ("slot-8", "pcie.0", "slot-", "", None)),
            *({key: name} for key in ("id", "drive") for name in NO_DISKS),
            *({"serial": text} for text in ("", "/dev/sda", "x,y", "x" * 65, None)),
            *({"num-queues": value} for value in (257, *NO_NUMBERS)),
            *({"queue-size": value} for value in (2, 2048, *NO_NUMBERS)),
            *(
                {f"{kind}_block_size": value}
                for kind in ("logical", "physical")
                for value in (-1, 1 << 17, "1")
            ),
            *({"iothread": name} for name in ("block-9", "block-", "/objects/later", "", 1, None)),
            *({"socket-id": 1}, {"file": "/etc/shadow"}, {"write-cache": "on"}, {"opaque": "x"}),
        ),
    ),
    (
        "device_del",
        {"id": "cpu-1"},
        tuple({"id": name} for name in ("serial", LATER_MEMORY, "/machine/peripheral/cpu-1", *NO_DISKS)),
    ),
    ("device_del", {"id": "disk-0"}, ({"path": "/x"},)),
    (
        "qom-set",
        SIZE,
        (
            *(
                {"path": path}
                for path in ("/objects/later", "/machine", LATER_MEMORY, "/machine/peripheral/cpu-1")
            ),
            *({"property": name} for name in ("memdev", "block-size", "prealloc", "dump-guest-core")),
            *({"value": value} for value in (-1, 1, True, None, "128M", 1 << 46, 1.5, [0], {"x": 0})),
        ),
    ),
    ("add-fd", {"fdset-id": 1}, (*({"fdset-id": value} for value in NO_NUMBERS), {"opaque": "x"})),
    ("remove-fd", {"fdset-id": 1}, (*({"fdset-id": value} for value in NO_NUMBERS), {"fd": 3})),
    (
        "blockdev-add",
        CONTENT,
        (
            *({"driver": name} for name in ("qcow2", "file", "nbd", "raw ", None)),
            *({"node-name": name} for name in NO_DISKS),
            *({"read-only": value} for value in ("on", 1, None)),
            *({"cache": value} for value in ({}, {"direct": True}, {"direct": 1, "no-flush": True})),
            *({"file": value} for value in ("image", None, {}, {**FILE, "driver": "file"})),
            *(
                {"file": {**FILE, "filename": "/dev/fdset/" + end}}
                for end in ("", "x", "../sda", "1/", "\u0661")
            ),
            *({"file": {**FILE, "filename": path}} for path in ("/etc/shadow", "/dev/sda", 1)),
            *({"file": {**FILE, **more}} for more in ({"locking": "on"}, {"aio": "io_uring"})),
            {"offset": 512},
        ),
    ),
    ("blockdev-del", {"node-name": "disk-0"}, tuple({"node-name": name} for name in NO_DISKS)),
]
"""What the commands with arguments are for, and what is wrong with what: command, arguments, changes."""


@pytest.mark.parametrize("info", MONITORED, ids=lambda info: str(info.name))
def test_a_command_with_arguments_takes_those_of_its_purpose_only(info: Any) -> None:
    """A CPU or a disk is plugged, and no other device; of all properties of all objects, one is set.

    What is behind a disk is what the broker has opened, and no path.
    """

    def take(name: str, arguments: object) -> bytes:
        text = json.dumps({"execute": name, "arguments": arguments})
        return CommandFilter(info.monitor_commands).take(text.encode())

    named = {name for name, _, _ in ARGUMENTS}
    assert {name for name, schema in info.monitor_commands.items() if schema} == named
    for name, arguments, hostile in ARGUMENTS:
        assert json.loads(take(name, arguments)) == {"execute": name, "arguments": arguments}
        missing = [{key: value for key, value in arguments.items() if key != left} for left in arguments]
        for wrong in (*missing, *({**arguments, **change} for change in hostile)):
            with pytest.raises(NotAllowedError):
                take(name, wrong)


@pytest.mark.parametrize("info", MONITORED, ids=lambda info: str(info.name))
def test_what_two_parsers_might_read_differently_is_written_anew(info: Any) -> None:
    """A name twice, an escape, a comment, bytes behind the message: the VMM reads what was checked."""
    name = next(iter(info.monitor_commands))
    first = f'{{"execute": "pmemsave", "execute": "{name}"}}'
    escaped = f'{{"\\u0065xecute": "\\u00{ord(name[0]):02x}{name[1:]}"}}'
    for text in (first, escaped):
        assert (
            CommandFilter(info.monitor_commands).take(text.encode()) == b'{"execute": "%s"}' % name.encode()
        )
    for text in (f"// x\n{first}", f"{first}x", f"'{name}'", f"\0{first}"):
        with pytest.raises(NotAllowedError):
            CommandFilter(info.monitor_commands).take(text.encode())
    # What may still become a message is kept, and nothing of it passes.
    assert CommandFilter(info.monitor_commands).take(f"{{'execute': '{name}'}}".encode()) == b""


# -- as a process ------------------------------------------------------------------------------------------

BASE, COUNT = 1_900_000_000, 65536
BUSYBOX = "/bin/busybox"

needs_root = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs busybox"),
]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with make_world(monkeypatch) as made:
        for path in (made.bed.root, made.host, made.volume):
            path.chmod(0o777)  # what stops the attacker is not that the files are root's
        (made.host / "open").write_text("precious")
        (made.host / "open").chmod(0o666)
        (made.host / "api.sock").chmod(0o777)
        yield made


@pytest.fixture
async def broker(world: World) -> AsyncIterator[Broker]:
    broker = Broker(*fork_broker(world.bed.identity, str(world.bed.bundle)))
    await broker.take_user(BASE, COUNT)
    yield broker
    assert await broker.close() == []


def attempts(world: World, broker: int) -> list[str]:
    """Shell commands, each of which would be a gain."""
    host = world.host
    return [
        *(f"cat {host}/open", f"echo x >{host}/open", f"echo x >{host}/new", f"cat {host}/secret"),
        *("cat /etc/shadow", "cat /etc/passwd", "ls /root", "cat /dev/mem", "cat /dev/kmem", "ls /dev/disk"),
        *(f"ls {world.bed.directory}", f"cat {world.bed.directory}/rollback.jsonl", f"ls {world.snapshots}"),
        *("ls /proc/1/root/etc", f"ls /proc/{broker}/root", f"kill -0 {broker}", f"kill -0 {os.getpid()}"),
        *("mount -t tmpfs x /usr", "mount -t proc x /usr", "mount -o remount,rw /", "umount /usr"),
        *(
            "mknod /usr/d b 7 0",
            "mknod /dev/d c 1 1",
            "chroot /usr /bin/true",
            "echo x >/new",
            "mkdir /dev/x",
        ),
        *("hostname other", "ip link add a type dummy", "nc 127.0.0.1 22 </dev/null", "ping -c 1 127.0.0.1"),
        *(f"nc local:{host}/api.sock </dev/null", "dmesg", "modprobe loop"),
        *("ls /sys/fs/cgroup", "ls /run/containerd", "ulimit -c unlimited", "su -c true"),
    ]


@pytest.mark.parametrize("proc", [False, True], ids=["without proc", "with proc"])
class TestProcess:
    """What QEMU's privileges leave to arbitrary code in its place."""

    pytestmark = needs_root

    async def test_who_owns_the_vmm_has_nothing_of_the_host(
        self, world: World, broker: Broker, proc: bool
    ) -> None:
        before = world.snapshot()
        tries = attempts(world, broker.pid)
        script = "".join(f"({one}) >/dev/null 2>&1 && echo {number}\n" for number, one in enumerate(tries))
        reader, writer = os.pipe2(os.O_CLOEXEC)
        child = await broker.spawn(
            "qemu",
            [BUSYBOX, "sh", "-c", script + "echo done"],
            fds={1: writer, 2: writer},
            privileges=Privileges(proc=proc),
        )
        os.close(writer)
        with os.fdopen(reader, "r") as output:
            *gained, last = (await asyncio.to_thread(output.read)).split()
        await child.wait()
        assert last == "done"
        assert [tries[int(number)] for number in gained] == []
        assert world.snapshot() == before
        assert not world.api_was_asked()
        assert Path(f"/proc/{broker.pid}").exists()
