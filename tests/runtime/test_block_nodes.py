"""The block devices that a specification gives, and which of them a sandbox may have."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kata_runtime import device_names, syscalls
from kata_runtime.block_nodes import block_nodes
from kata_runtime.broker import block_devices
from kata_runtime.broker.block_devices import BlockDevices, GivenDevices
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from loop_devices import SIZE, loop_device, number_of

DENY = {"allow": False, "access": "rwm"}


def spec(*rules: dict[str, Any], **node: Any) -> dict[str, Any]:
    disk = {"path": "/dev/xda", "type": "b", "major": 7, "minor": 1, **node}
    return {"linux": {"devices": [disk], "resources": {"devices": [DENY, *rules]}}}


@pytest.mark.parametrize(
    ("rules", "write"),
    [
        ((), False),
        (({"allow": True, "type": "b", "major": 7, "minor": 1, "access": "rwm"},), True),
        (({"allow": True, "type": "b", "major": 7, "minor": 1, "access": "r"},), False),
        (({"allow": True, "type": "b", "major": 7, "minor": 2, "access": "rwm"},), False),
        (({"allow": True, "type": "c", "major": 7, "minor": 1, "access": "rwm"},), False),
        (({"allow": True, "access": "rwm"},), True),
        (({"allow": True, "type": "b", "major": -1, "minor": -1},), True),
        (({"allow": True, "access": "rwm"}, {"allow": False, "type": "b", "major": 7, "access": "w"}), False),
    ],
)
def test_a_device_is_written_where_the_last_rules_allow_it(rules: tuple[Any, ...], write: bool) -> None:
    (found,) = block_nodes(spec(*rules))
    assert (found.path, found.device, found.numbers, found.write) == ("/dev/xda", "7:1", (7, 1), write)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"linux": []},
        {"linux": {"devices": {}, "resources": 7}},
        {"linux": {"devices": [None, [], {"type": "b"}]}},
        spec(major="7"),
        spec(major=True),
        spec(minor=-1),
        spec(minor=1 << 20),
        spec(path=["/dev/xda"]),
        spec(type="c"),
    ],
)
def test_what_is_malformed_gives_nothing(given: dict[str, Any]) -> None:
    assert list(block_nodes(given)) == []


def learn(given: GivenDevices, spec: dict[str, Any], bundle: str) -> None:
    """Take a specification of a file that nobody has read before."""
    given.learn(spec, bundle, file(next(_FILES)))


def file(number: int) -> os.stat_result:
    """What is known of a file, by which it is not another."""
    return os.stat_result((0, number, *(0,) * 8))


_FILES = itertools.count(1)


class Host(dict[str, str]):
    """By the number of a device, the disk that has it; none where that is empty."""

    def __missing__(self, device: str) -> str:
        return "1" if device.startswith(("7:", "8:")) else ""

    def path_of(self, kind: str, device: str) -> str:
        return f"/dev/disk-{device}" if kind == "block" and self[device] else ""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host whose disks are the test's."""
    made = Host()
    monkeypatch.setattr(device_names, "disk_of", made.__getitem__)
    monkeypatch.setattr(device_names, "path_of", made.path_of)
    return made


@pytest.fixture
def given(host: Host) -> GivenDevices:
    """7:1 to be read, by a specification; 7:2 to be written, by a mount."""
    found = GivenDevices()
    learn(found, spec(), "/one")
    learn(found, {"linux": {"resources": {"devices": [DENY, rule(2, "rw")]}}}, "/two")
    assert found.add_mounted("7:2", write=True)
    assert found.add_mounted("7:2", write=False)
    return found


def rule(minor: int, letters: str) -> dict[str, Any]:
    return {"allow": True, "type": "b", "major": 7, "minor": minor, "access": letters}


def test_a_mounted_node_gives_what_rules_allow_and_nothing_by_itself(given: GivenDevices) -> None:
    """Who fills a volume may have made the node: of a file system of his own, of any number."""
    learn(given, {"linux": {"resources": {"devices": [DENY, rule(3, "r"), rule(4, "m")]}}}, "/three")
    assert given.add_mounted("7:3", write=True)
    given.check("7:3", write=False)
    with pytest.raises(RequestRefusedError, match="to write"):
        given.check("7:3", write=True)
    for device in ("7:1", "7:4", "8:0"):
        assert not given.add_mounted(device, write=False)
    with pytest.raises(RequestRefusedError):
        given.check("8:0", write=False)


def test_a_device_whose_name_another_gets_meanwhile_is_the_one_that_was_looked_at(
    given: GivenDevices, disk: Disk, tmp_path: Path
) -> None:
    (tmp_path / "other").write_bytes(b"another's")
    ioctl = disk.ioctl

    def swap(*arguments: object) -> bytes:
        (tmp_path / "other").rename(disk.path)
        return ioctl(*arguments)

    disk.ioctl = swap  # type: ignore[method-assign]
    descriptor = opener(given).open("7:2", write=True)
    assert os.pread(descriptor, 100, 0) == b"content"
    os.close(descriptor)


class Cgroup:
    """Notes what is admitted, and what is allowed now."""

    def __init__(self) -> None:
        self.admitted: list[str] = []
        self.allowed: list[object] = []

    def admit(self, rule: object, action: Callable[[], int]) -> int:
        self.admitted.append(str(rule))
        return action()

    def allow(self, rule: object) -> None:
        self.allowed.append(rule)

    def forbid(self, rule: object) -> None:
        self.allowed.remove(rule)


class Vmm:
    """Shows disks, or refuses."""

    def __init__(self) -> None:
        self.shown: dict[str, tuple[int, bool]] = {}
        self.refuses = False

    def show_device(self, name: str, number: int, *, write: bool) -> str:
        if self.refuses:
            raise RequestRefusedError("no room")
        self.shown[name] = number, write
        return f"/disks/{name}"

    def hide_disk(self, name: str) -> None:
        del self.shown[name]


def opener(given: GivenDevices, cgroup: Cgroup | None = None, vmm: Vmm | None = None) -> BlockDevices:
    return BlockDevices(given, cgroup or Cgroup(), vmm or Vmm())  # type: ignore[arg-type]


class Disk:
    """A file of the test's in place of a block device, and the calls that are made of one."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.read_only = False
        self.flags: list[int] = []
        self.busy = False
        path.write_bytes(b"content")
        self.number = os.makedev(7, 2)
        monkeypatch.setattr(block_devices, "_path_of", lambda _: str(path))
        monkeypatch.setattr(block_devices, "os", self)
        monkeypatch.setattr(block_devices, "fcntl", self)
        monkeypatch.setattr(syscalls, "clone_tree", lambda fd, recursive: os.dup(fd))
        monkeypatch.setattr(syscalls, "set_attributes", lambda *_, **__: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fstat(self, _: int) -> SimpleNamespace:
        return SimpleNamespace(st_mode=stat.S_IFBLK, st_rdev=self.number)

    def ioctl(self, *_: object) -> bytes:
        return bytes([self.read_only, 0, 0, 0])

    def open(self, name: str, flags: int) -> int:
        if self.busy and flags & os.O_EXCL:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self.flags.append(flags & (os.O_ACCMODE | os.O_EXCL))
        return os.open(name, flags & ~os.O_EXCL)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path / "disk", monkeypatch)


def test_only_what_was_given_is_opened_and_only_so(given: GivenDevices) -> None:
    devices = opener(given)
    for device, write in (("8:0", False), ("8:0", True), ("7:1", True), ("7:01", False)):
        with pytest.raises(RequestRefusedError, match=r"no config\.json of the sandbox names it"):
            devices.open(device, write=write)


def test_a_device_is_opened_for_one_pod_alone_and_admitted_meanwhile(given: GivenDevices, disk: Disk) -> None:
    cgroup = Cgroup()
    os.close(opener(given, cgroup).open("7:2", write=True))
    assert disk.flags[-1] == os.O_RDWR | os.O_EXCL
    assert cgroup.admitted == ["b 7:2 rw"]


def test_what_nobody_can_write_to_may_have_several_readers(given: GivenDevices, disk: Disk) -> None:
    disk.read_only = disk.busy = True
    os.close(opener(given).open("7:2", write=False))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"busy": True}, "it is in use: it is mounted, or another pod"),
        ({"read_only": True}, "it is read-only; give it to the container read-only"),
        ({"number": os.makedev(7, 3)}, "No such file"),
    ],
)
def test_what_cannot_be_given_is_refused_by_name(
    given: GivenDevices, disk: Disk, change: dict[str, Any], why: str
) -> None:
    for key, value in change.items():
        setattr(disk, key, value)
    with pytest.raises(RequestFailedError, match=f"^cannot open {disk.path}: {why}"):
        opener(given).open("7:2", write=True)


def test_a_device_without_content_is_refused(given: GivenDevices, disk: Disk) -> None:
    disk.path.write_bytes(b"")
    with pytest.raises(RequestFailedError, match="it has no content"):
        opener(given).open("7:2", write=True)


def test_a_device_that_is_gone_is_refused_by_its_number(given: GivenDevices) -> None:
    learn(given, spec(major=1048575), "/three")
    with pytest.raises(RequestFailedError, match="the host has no block device 1048575:1"):
        opener(given).open("1048575:1", write=False)


@pytest.mark.parametrize(("write", "access"), [(True, "rwm"), (False, "rm")])
def test_a_device_is_shown_to_a_vmm_until_it_is_hidden(
    given: GivenDevices, disk: Disk, write: bool, access: str
) -> None:
    cgroup, vmm = Cgroup(), Vmm()
    devices = opener(given, cgroup, vmm)
    assert devices.show("device_1", "7:2", write=write) == "/disks/device_1"
    assert vmm.shown == {"device_1": (os.makedev(7, 2), write)}
    assert list(map(str, cgroup.allowed)) == [f"b 7:2 {access}"]
    for name in ("another", "device_1", "device_1"):
        devices.hide(name)
    assert (vmm.shown, cgroup.allowed) == ({}, [])


def test_a_device_that_a_vmm_could_open_is_no_other_pods_before_this_one_ends(
    given: GivenDevices, disk: Disk
) -> None:
    """Attack: a guest owns its VMM, which says that the disk is gone, and keeps it open."""
    vmm = Vmm()
    devices = opener(given, vmm=vmm)
    before = len(os.listdir("/proc/self/fd"))
    for round_ in range(3):  # its containers may have it again, to read and to write
        write = round_ > 0
        devices.show("device_1", "7:2", write=write)
        assert vmm.shown == {"device_1": (os.makedev(7, 2), write)}
        with pytest.raises(RequestFailedError, match="it is in use"):
            devices.show("device_2", "7:2", write=write)
        devices.hide("device_1")
        assert len(os.listdir("/proc/self/fd")) == before + 1
        disk.busy = True  # by this sandbox's own claim
    with pytest.raises(RequestFailedError, match="it is in use"):
        opener(given).open("7:2", write=False)
    vmm.refuses = True
    with pytest.raises(RequestRefusedError, match="no room"):
        devices.show("device_1", "7:2", write=True)
    assert len(os.listdir("/proc/self/fd")) == before + 1


def test_a_claim_of_a_disk_that_has_gone_is_none_of_the_next(
    given: GivenDevices, host: Host, disk: Disk
) -> None:
    devices = opener(given)
    devices.show("device_1", "7:2", write=True)
    devices.hide("device_1")
    host["7:2"] = "2"
    learn(given, spec(rule(2, "rw"), minor=2), "/three")
    disk.busy = True  # the host has mounted it
    with pytest.raises(RequestFailedError, match="it is in use"):
        devices.show("device_1", "7:2", write=True)


def test_a_claim_gives_no_more_than_was_given(given: GivenDevices, disk: Disk) -> None:
    devices = opener(given)
    learn(given, spec(rule(1, "r")), "/one")
    disk.number = os.makedev(7, 1)
    devices.show("device_1", "7:1", write=False)
    devices.hide("device_1")
    with pytest.raises(RequestRefusedError, match="to write: no config"):
        devices.show("device_1", "7:1", write=True)
    learn(given, spec(rule(1, "rw")), "/two")
    disk.read_only = True
    with pytest.raises(RequestFailedError, match="it is read-only"):
        devices.show("device_1", "7:1", write=True)


def test_the_number_of_a_disk_that_has_gone_gives_no_other_disk(given: GivenDevices, host: Host) -> None:
    """Attack: the host takes a disk away, another gets its number, the config.json is read again."""
    allowed = {"linux": {"resources": {"devices": [DENY, rule(3, "rw")]}}}
    given.learn(spec(rule(1, "rw")), "/one", file(-1))
    given.learn(allowed, "/two", file(-2))
    given.add_assigned("8:5", file(-3), write=True)
    for device in ("7:1", "7:3", "8:5"):
        host[device] = "2"
    given.learn(spec(rule(1, "rw")), "/one", file(-1))
    given.learn(allowed, "/two", file(-2))
    assert given.add_mounted("7:3", write=True)
    given.add_assigned("8:5", file(-3), write=True)
    for device in ("7:1", "7:3", "8:5"):
        with pytest.raises(RequestRefusedError, match="it is not the disk that had the number"):
            given.check(device, write=False)
    host["7:1"] = ""
    with pytest.raises(RequestFailedError, match="the host has no block device 7:1"):
        given.check("7:1", write=False)


def test_what_was_given_of_one_disk_is_not_given_of_the_next(given: GivenDevices, host: Host) -> None:
    given.learn(spec(rule(1, "rw")), "/one", file(-1))
    host["7:1"] = "2"
    given.learn(spec(rule(1, "r")), "/one", file(-2))
    given.check("7:1", write=False)
    with pytest.raises(RequestRefusedError, match="to write: no config"):
        given.check("7:1", write=True)
    given.learn(spec(rule(1, "rw")), "/one", file(-3))
    given.check("7:1", write=True)


def test_a_host_that_does_not_tell_its_disks_apart_gives_none(
    given: GivenDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(given, spec(major=9), "/three")
    monkeypatch.setattr(device_names, "path_of", lambda kind, device: "/dev/md1")
    with pytest.raises(RequestRefusedError, match="it is not the disk"):
        given.check("9:1", write=False)


def test_a_disk_that_goes_while_it_is_opened_is_not_given(
    given: GivenDevices, host: Host, disk: Disk
) -> None:
    before = len(os.listdir("/proc/self/fd"))

    class Slow(Cgroup):
        def admit(self, rule: object, action: Callable[[], int]) -> int:
            host["7:2"] = "2"
            return action()

    with pytest.raises(RequestRefusedError, match="it is not the disk"):
        opener(given, Slow()).open("7:2", write=True)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_loop_device_with_another_file_is_another_disk(tmp_path: Path) -> None:
    found = GivenDevices()
    with loop_device(tmp_path / "file") as path:
        device = number_of(path)
        major, minor = map(int, device.split(":"))
        named = spec(rule(minor, "rw"), major=major, minor=minor)
        found.learn(named, "/one", file(-1))
        os.close(opener(found).open(device, write=True))
        (tmp_path / "another").write_bytes(bytes(SIZE))
        subprocess.run(["losetup", "--detach", str(path)], check=True)
        subprocess.run(["losetup", str(path), str(tmp_path / "another")], check=True)
        found.learn(named, "/one", file(-1))
        with pytest.raises(RequestRefusedError, match=f"cannot open {path}: it is not the disk"):
            opener(found).open(device, write=True)
        found.learn(named, "/two", file(-2))
        os.close(opener(found).open(device, write=True))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("options", [(), ("--read-only",)])
def test_an_opened_device_cannot_be_opened_again_by_root(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Attack: virtiofsd is sent a descriptor to read from, and opens the device to write by /proc/self/fd."""
    with loop_device(tmp_path / "file", *options) as path:
        found = GivenDevices()
        major, minor = map(int, number_of(path).split(":"))
        learn(found, spec(major=major, minor=minor), "/one")
        descriptor = opener(found).open(number_of(path), write=False)
        try:
            assert os.pread(descriptor, 1, 0) == b"\0"
            for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY):
                with pytest.raises(PermissionError):
                    os.open(f"/proc/self/fd/{descriptor}", flags)
            with pytest.raises(OSError, match="Read-only file system"):
                os.fchmod(descriptor, 0o666)
            with pytest.raises(OSError, match="Read-only file system"):
                os.fchown(descriptor, 1, 1)
        finally:
            os.close(descriptor)


def test_nothing_is_left_of_a_device_that_cannot_be_shown(given: GivenDevices, disk: Disk) -> None:
    cgroup, vmm = Cgroup(), Vmm()
    before = len(os.listdir("/proc/self/fd"))
    vmm.refuses = True
    with pytest.raises(RequestRefusedError, match="no room"):
        opener(given, cgroup, vmm).show("device_1", "7:2", write=True)
    with pytest.raises(RequestRefusedError, match=r"no config\.json of the sandbox names it"):
        opener(given, cgroup, vmm).show("device_1", "8:0", write=False)
    assert cgroup.allowed == []
    assert len(os.listdir("/proc/self/fd")) == before
