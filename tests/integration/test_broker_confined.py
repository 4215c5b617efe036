"""The broker after its seal: its filter and its capabilities, and that all of its work is still done."""

from __future__ import annotations

import base64
import errno
import os
import shutil
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import broker_cgroup
from broker_bed import Bed, Shim, ask, make_bed, wait_for_end
from forked import in_child
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.seccomp import named_refusal, seal
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.policy import load_policy
from kata_runtime import syscalls
from kata_runtime.broker import cgroups, cleanup, device_rules, image_cache, rootfs_image, self_confinement
from kata_runtime.broker.client import Broker
from kata_runtime.broker.log_sink import take_fatal_message
from kata_runtime.broker.process import fork_broker
from kata_runtime.broker.self_confinement import CAPABILITIES, Capability
from kata_runtime.network import exchange
from kata_runtime.resource.block_rootfs import run_maker
from network_bed import PodNetwork, ip

pytestmark = [
    pytest.mark.integration,
    pytest.mark.rig,  # for its kernel and its cgroups, which are not every host's
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts and cgroups need root"),
]
UNIFIED = next((found.mountpoint for found in cgroups.hierarchies() if found.version == 2), "")
OTHER = 54321
"""A user that is nobody's."""
FILE_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""VFS_CAP_REVISION_2: a program has CAP_NET_BIND_SERVICE (linux/capability.h)."""
LATE = f"kt{os.getpid()}"
"""An interface that somebody puts into the VMM's network namespace."""


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    with make_bed(monkeypatch) as made:
        os.mkfifo(made.bundle / "log")
        (made.data / "plain").write_text("precious")
        (made.data / "inner").mkdir()
        made.bundle.joinpath("config.json").write_text("{}")
        yield made


def confine(channel: socket.socket, features: list[str]) -> dict[str, Any]:
    """Ask the broker at the other end of a channel to confine itself, as the shim does."""
    broker = int.from_bytes(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
    code = seal.build_broker(features, "enforce", broker).code
    return ask(channel, "confine_broker", features=features, code=base64.b64encode(code).decode())


def do(channel: socket.socket, op: str, **arguments: object) -> Any:
    reply = ask(channel, op, **arguments)
    assert "result" in reply, reply
    return reply["result"]


def work(bed: Bed, features: list[str]) -> Callable[[socket.socket], dict[str, Any]]:
    """All that a broker does for a pod, the second half of it confined."""
    streams, image = bed.root / "streams", bed.root / "image"
    for directory in (streams, image, bed.root / "upper", bed.root / "work"):
        directory.mkdir()
        os.chown(directory, OTHER, OTHER)
    os.mkfifo(streams / "early")
    os.mkfifo(streams / "late", 0o600)
    os.chown(streams / "late", OTHER, OTHER)

    def act(channel: socket.socket) -> dict[str, Any]:
        do(channel, "prepare", cgroup=f"/{broker_cgroup.NAME}/confined", pinning=True)
        do(channel, "take_user", base=60000, count=1000)
        init = do(channel, "learn_network", path=None, outside=False)["pid"]
        optional = dict.fromkeys(("environment", "gate", "seccomp"))
        privileges = Privileges(devices=(), proc=True, open_files=64).to_json()
        argv = ["/bin/sh", "-c", "while :; do sleep 100; done"]
        child = do(channel, "spawn", name="qemu", argv=argv, fds=[], privileges=privileges, **optional)["pid"]
        # As a client of containerd would put one there late.
        ip("link", "add", LATE, "netns", str(init), "type", "bridge")
        do(channel, "open_fifo", path=str(streams / "early"), mode="rw")
        do(channel, "open_log", path=str(bed.root / "early.log"))
        do(channel, "make_directory", path=f"{bed.shared}/early")
        if "vsock" in features:
            do(channel, "register_guest", address=4711)
        do(channel, "bind", source=str(bed.data), target=f"{bed.shared}/c1/a", readonly=True, recursive=True)
        assert confine(channel, features) == {"id": 1, "result": {"lacking": ""}}
        late: dict[str, dict[str, Any]] = {
            "open_spec": {"bundle": str(bed.bundle)},
            "open_fifo": {"path": str(streams / "late"), "mode": "rw"},
            "open_log": {"path": str(bed.root / "late.log")},
            "make_directory": {"path": f"{bed.shared}/c2"},
            "bind": {
                "source": str(bed.data / "plain"),
                "target": f"{bed.shared}/c2/plain",
                "readonly": False,
                "recursive": False,
            },
            "find_memory": {"source": str(bed.data)},
            "share": {
                "source": str(bed.data),
                "readonly": True,
                "recursive": True,
                "readonly_below": True,
            },
            "mount": {
                "target": f"{bed.shared}/c2/root",
                "mounts": [
                    [
                        "overlay",
                        "overlay",
                        [f"lowerdir={image}", f"upperdir={bed.root}/upper", f"workdir={bed.root}/work"],
                    ]
                ],
            },
            "connect_guest": {"port": 1024},
            "connect_events": {},
            "oom_kills": {},
            "pin_vcpus": {"cpus": []},
            "late_interfaces": {},
            "confinement": {"pid": child},
            "kill": {"pid": child, "signal": 15},
        }
        replies = {op: ask(channel, op, **arguments) for op, arguments in late.items()}
        # Writable now, and then a directory in it.
        again = {"source": str(bed.data), "readonly": False, "recursive": True, "readonly_below": False}
        replies["share again"] = ask(channel, "share", **again)
        inner = ask(channel, "share", **again | {"source": str(bed.data / "inner")})
        replies["share in it"] = inner
        if inner.get("result", {}).get("place") != ".volumes/0/inner":
            replies["share in it"]["error"] = "it is another volume"
        for place in (".volumes/0", ".volumes/0/inner", ".volumes/0"):
            replies[f"unshare {place}"] = ask(channel, "unshare", place=place)
        for target in ("c2/root", "c2/plain"):
            replies[f"unmount {target}"] = ask(channel, "unmount", target=f"{bed.shared}/{target}")
        replies["remove"] = ask(channel, "remove", path=f"{bed.shared}/c2/root")
        with open(f"/proc/{os.getpid()}/cgroup", encoding="ascii") as file:
            assert f"/{broker_cgroup.NAME}/confined" in file.read()
        if replies["late_interfaces"].get("result") != {"names": [LATE]}:
            replies["late_interfaces"]["error"] = "it was not seen"
        return {op: reply.get("error") for op, reply in replies.items()}

    return act


OF_OVERLAY = {"CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID", "CAP_SETFCAP"}
"""Needed for the copies that an overlay makes when it is written: `mounted_overlay` is one."""
NOT_CONNECTED = {"connect_guest", "connect_events"}
HAS_VSOCK = os.path.exists("/dev/vsock")


@pytest.mark.parametrize("features", [[], ["images", "kvm", "loading", "network", "vsock"]])
@pytest.mark.parametrize("end", ["shim", "broker", "shim delete"])
def test_all_of_its_work_is_done_confined(bed: Bed, features: list[str], end: str) -> None:
    shim = Shim(bed, work(bed, features), namespace=True)
    failed = {op: error for op, error in shim.result.items() if error}
    assert failed.keys() | {"connect_guest"} == NOT_CONNECTED
    # No guest has this number; that is found out later.
    assert ("connect_guest" in failed) != ("vsock" in features and HAS_VSOCK), failed
    assert "seccomp" not in str(failed)
    if end == "shim":
        os.kill(shim.pid, 9)
        wait_for_end(shim.broker)
        assert not bed.directory.exists()
    elif end == "broker":
        os.kill(shim.broker, 9)
        wait_for_end(shim.broker)
    assert cleanup.clean_up(bed.identity) == []
    os.kill(shim.pid, 9)
    os.waitpid(shim.pid, 0)
    assert take_fatal_message(str(bed.bundle)) == ""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        assert str(bed.root) not in file.read()
    for hierarchy in cgroups.hierarchies():
        assert not os.path.exists(f"{hierarchy.mountpoint}/{broker_cgroup.NAME}")


# -- what it is then -----------------------------------------------------------------------------------------


@asynccontextmanager
async def broker_of(bed: Bed, left: int = 0) -> AsyncIterator[Broker]:
    """A broker. left: how many things it could not undo in the end."""
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle)))
    try:
        yield broker
    finally:
        assert len(await broker.close()) == left


async def seal_it(broker: Broker, *features: str) -> None:
    await broker.confine(seal.build_broker(features, "enforce", broker.pid).code, features)


def status_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


async def test_the_kernel_reports_what_it_is(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        await seal_it(broker)
        status = status_of(broker.pid)
        kept = {found.name for found in CAPABILITIES if not found.features}
        assert kept == {"CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SYS_CHROOT", "CAP_SYS_ADMIN", *OF_OVERLAY}
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert int(status[name], 16) == self_confinement.kept([])
        assert (int(status["CapInh"], 16), int(status["CapAmb"], 16)) == (0, 0)
        assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
        limits = Path(f"/proc/{broker.pid}/limits").read_text()
        assert "Max core file size        0                    0 " in limits


def test_a_call_that_its_filter_refuses_is_named_and_ends_the_pod(bed: Bed) -> None:
    """An unmount, by a broker whose filter lacks that one call; its cleanup cannot do without it either."""
    rules = load_policy(program="broker").bind(pid=1).select(())
    fewer = [replace(rule, calls=tuple(set(rule.calls) - {"umount2"})) for rule in rules]
    code = named_refusal.name_refusals(compile_rules(fewer, named_refusal.UNNAMED).code)

    def act(channel: socket.socket) -> dict[str, Any]:
        target = f"{bed.shared}/c"
        do(channel, "bind", source=str(bed.data), target=target, readonly=True, recursive=True)
        do(channel, "confine_broker", features=[], code=base64.b64encode(code).decode())
        return ask(channel, "unmount", target=target)

    log = os.open(bed.bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    shim = Shim(bed, act, namespace=True)
    sentence = (
        "seccomp: the broker called umount2 (166), which its policy does not allow: the call was refused"
    )
    assert shim.result["error"]["errno"] == named_refusal.FIRST + 166
    os.waitpid(shim.pid, 0)  # it takes no notice, and is killed for it
    wait_for_end(shim.broker)
    assert os.read(log, 4096).decode().count(sentence) == 1
    assert take_fatal_message(str(bed.bundle)).startswith(sentence)
    assert cleanup.clean_up(bed.identity) == []


def test_what_it_lacks_is_refused_when_the_filter_is_none(bed: Bed) -> None:
    """A program that the kernel does not take: the broker is not confined, and says so."""

    def act(channel: socket.socket) -> dict[str, Any]:
        code = base64.b64encode(bytes(8)).decode()
        return ask(channel, "confine_broker", features=[], code=code)

    shim = Shim(bed, act, namespace=True)
    assert shim.result["error"]["message"].startswith("the broker cannot be sealed: cannot install")
    os.kill(shim.pid, 9)
    os.waitpid(shim.pid, 0)
    wait_for_end(shim.broker)


def of_feature(feature: str) -> list[Capability]:
    return [found for found in CAPABILITIES if feature in (found.features or ("",))]


def without(capability: Capability, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let brokers that are forked from here on keep one less."""
    fewer = tuple(found for found in CAPABILITIES if found is not capability)
    monkeypatch.setattr(self_confinement, "CAPABILITIES", fewer)


OF_ALL = [found for found in of_feature("") if found.name not in OF_OVERLAY]


@pytest.mark.parametrize("capability", OF_ALL, ids=lambda found: found.name)
def test_each_capability_is_needed(bed: Bed, capability: Capability, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, something that a broker does after the seal is not possible any more."""
    without(capability, monkeypatch)
    shim = Shim(bed, work(bed, []), namespace=True)
    failed = {op for op, error in shim.result.items() if error} - NOT_CONNECTED
    os.kill(shim.pid, 9)
    os.waitpid(shim.pid, 0)
    wait_for_end(shim.broker)
    left = bed.directory.exists()
    assert cleanup.clean_up(bed.identity) == []
    assert failed or left


def mounted_overlay(bed: Bed) -> Callable[[socket.socket], str]:
    """Have a broker that is confined mount an overlay on an image whose files others own."""
    for name in ("image", "upper", "work"):
        (bed.root / name).mkdir()
    for name, mode in (("group", 0o2755), ("capable", 0o755)):
        file = bed.root / "image" / name
        file.write_text("before")
        os.chown(file, OTHER, OTHER)
        file.chmod(mode)
    os.setxattr(bed.root / "image" / "capable", "security.capability", FILE_CAPABILITY)
    lower, upper, work = (f"{bed.root}/{name}" for name in ("image", "upper", "work"))
    options = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}"]

    def act(channel: socket.socket) -> str:
        assert confine(channel, []) == {"id": 1, "result": {"lacking": ""}}
        root = f"{bed.shared}/c/root"
        do(channel, "mount", target=root, mounts=[["overlay", "overlay", options]])
        return root

    return act


def change_and_describe(file: Path) -> list[object]:
    """Have the overlay copy a file, change the copy, and say what it is then; an errno instead."""
    try:
        os.utime(file, (2000, 2000))
        file.chmod(file.stat().st_mode & 0o7777 | 0o020)
        facts = file.stat()
        attributes = sorted(os.listxattr(file))
    except OSError as error:
        return [error.errno]
    return [facts.st_uid, facts.st_gid, oct(facts.st_mode & 0o7777), int(facts.st_mtime), attributes]


KEPT_IN_A_COPY = {
    "group": [OTHER, OTHER, "0o2775", 2000, []],
    "capable": [OTHER, OTHER, "0o775", 2000, ["security.capability"]],
}


@pytest.mark.parametrize("lacking", ["", *sorted(OF_OVERLAY)])
def test_an_overlay_keeps_what_a_file_is_and_needs_each_capability_for_it(
    bed: Bed, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for capability in CAPABILITIES:
        if capability.name == lacking:
            without(capability, monkeypatch)
    shim = Shim(bed, mounted_overlay(bed), namespace=True)
    root = Path(f"/proc/{shim.broker}/root{shim.result}")
    found = {name: change_and_describe(root / name) for name in KEPT_IN_A_COPY}
    shim.kill()
    wait_for_end(shim.broker)
    assert cleanup.clean_up(bed.identity) == []
    assert (found == KEPT_IN_A_COPY) == (not lacking), found


# -- programs ---------------------------------------------------------------------------------------------


def make_tree(data: Path) -> None:
    """Files with all that takes a privilege to copy."""
    (data / "link").symlink_to("plain")
    os.link(data / "plain", data / "again")
    os.mknod(data / "node", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (data / "owned").mkdir()
    secret = data / "owned" / "secret"
    secret.write_text("secret")
    os.chown(secret, OTHER, OTHER)
    secret.chmod(0o2710)
    os.setxattr(secret, "user.kata", b"x")
    os.setxattr(secret, "security.capability", FILE_CAPABILITY)
    os.chown(data / "owned", OTHER, OTHER)
    (data / "owned").chmod(0o2700)


async def make_image(bed: Bed, broker: Broker) -> bool:
    """Whether an image of all in the tree can be made."""
    make_tree(bed.data)
    root = f"{bed.shared}/c/rootfs"
    await broker.bind(str(bed.data), root, readonly=False)
    await seal_it(broker, "images")
    output, status = await run_maker(broker, root)
    path = Path(output.strip().rpartition("\n")[2].rpartition(" ")[0])
    if status.code != 0:
        return False
    descriptor, size = await broker.open_disk(path, write=False)
    os.close(descriptor)
    assert size == path.stat().st_size
    # The copy that the image is of has the same identity as the tree.
    return Path(image_cache.CACHE, rootfs_image.identity(str(bed.data)) + rootfs_image.LINK).is_symlink()


with_maker = pytest.mark.skipif(
    shutil.which(rootfs_image.MAKER) is None, reason=f"{rootfs_image.MAKER} is missing: install erofs-utils"
)


@with_maker
async def test_an_image_is_made_confined(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "CACHE", str(bed.root / "cache"))
    async with broker_of(bed) as broker:
        assert await make_image(bed, broker)


@with_maker
@pytest.mark.parametrize("capability", of_feature("images"), ids=lambda found: found.name)
async def test_each_capability_is_needed_for_an_image(
    bed: Bed, capability: Capability, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache, "CACHE", str(bed.root / "cache"))
    without(capability, monkeypatch)
    async with broker_of(bed) as broker:
        assert not await make_image(bed, broker)


async def test_kvm_is_probed_confined(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        before = await broker.missing_kvm_support()
    async with broker_of(bed) as broker:
        await seal_it(broker, "kvm")
        assert await broker.missing_kvm_support() == before


@pytest.mark.skipif(not shutil.which("ip") or not shutil.which("tc"), reason="needs iproute2 (ip and tc)")
@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun")
@pytest.mark.parametrize("needed", [[], of_feature("network")], ids=["enough", "too little"])
async def test_a_network_is_taken_down_confined(
    bed: Bed, needed: list[Capability], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(PodNetwork(bed.root)) as network:
        network.wire("eth0", "10.9.0.2/24", "fd00:9::2/64")
        before = network.pod.ip("link")
        for capability in needed:
            without(capability, monkeypatch)
        async with broker_of(bed, left=len(needed)) as broker:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                await broker.take_user(60000, 1000)
                await broker.learn_network(str(network.pod.path), outside=False)
                await broker.attach_network(theirs)
                theirs.close()
                attached = exchange.ask(ours, exchange.attach("tcfilter"))
            assert network.pod.ip("link") != before
            for fd in (fd for queues in attached.queues for fd in queues):
                os.close(fd)
            await seal_it(broker, "network")
        assert cleanup.clean_up(bed.identity) == []
        assert network.pod.ip("link") == before


# -- devices -------------------------------------------------------------------------------------------------


def opened(*paths: str) -> dict[str, int]:
    """The errno of opening each to read, 0 when it was opened."""
    found = {}
    for path in paths:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            found[path] = 0
        except OSError as error:
            found[path] = error.errno or -1
    return found


def make_kernel_log(directory: Path) -> str:
    """A node for a device that every kernel has, and no pod."""
    os.mknod(directory / "kmsg", 0o600 | stat.S_IFCHR, os.makedev(1, 11))
    return str(directory / "kmsg")


def test_a_pods_processes_open_its_devices_and_no_others(bed: Bed) -> None:
    disk, log = str(bed.root / "disk"), make_kernel_log(bed.root)
    os.mknod(disk, 0o600 | stat.S_IFBLK, os.makedev(7, 255))

    def act(channel: socket.socket) -> dict[str, int]:
        do(channel, "prepare", cgroup=f"/{broker_cgroup.NAME}/devices", pinning=False)
        do(channel, "take_user", base=60000, count=1000)
        before = opened(log)
        assert confine(channel, []) == {"id": 1, "result": {"lacking": ""}}
        # This process is in the pod's cgroup.
        return {"before": before[log], **opened("/dev/null", "/dev/urandom", log, disk)}

    shim = Shim(bed, act, namespace=True)
    os.kill(shim.pid, 9)
    os.waitpid(shim.pid, 0)
    wait_for_end(shim.broker)
    assert shim.result == {
        "before": 0,
        "/dev/null": 0,
        "/dev/urandom": 0,
        log: errno.EPERM,
        disk: errno.EPERM,
    }
    assert cleanup.clean_up(bed.identity) == []


@pytest.mark.skipif(not UNIFIED, reason="no hierarchy of version 2 is mounted")
def test_a_version_2_cgroup_gets_a_program(tmp_path: Path) -> None:
    leaf = f"{UNIFIED}/kata-test-{os.getpid()}"
    os.mkdir(leaf)
    try:
        log = make_kernel_log(tmp_path)
        found = in_child(lambda: _restricted(leaf, log))
    finally:
        os.rmdir(leaf)
    assert found == {"/dev/null": 0, log: errno.EPERM}


def _restricted(leaf: str, log: str) -> dict[str, int]:
    group = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY)
    syscalls.attach_device_program(group, device_rules.program(device_rules.of_node("/dev/null")))
    os.close(group)
    Path(leaf, "cgroup.procs").write_text("0")
    try:
        return opened("/dev/null", log)
    finally:
        Path(UNIFIED, "cgroup.procs").write_text("0")
