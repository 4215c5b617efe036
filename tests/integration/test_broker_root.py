"""The broker with root: its mount namespace, real mounts and cgroups, a user's data through every end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import broker_cgroup
from broker_bed import Bed, Shim, ask, make_bed, wait_for_end
from kata_hypervisor.errors import HostUnfitError
from kata_hypervisor.host import ExitStatus
from kata_runtime import syscalls
from kata_runtime.broker import cgroups, cleanup, mounts
from kata_runtime.broker.client import Broker
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.path_scope import PathScope
from kata_runtime.broker.process import fork_broker
from kata_runtime.broker.rollback import RollbackJournal

pytestmark = [
    pytest.mark.integration,
    pytest.mark.rig,  # for its kernel and its cgroups, which are not every host's
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts and cgroups need root"),
]


def remains(bed: Bed) -> list[str]:
    """Mounts and cgroups of this test that the host has; other sandboxes may come and go meanwhile."""
    names = (broker_cgroup.NAME, f"{broker_cgroup.OUTER}.slice", bed.identity.key)
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        found = [line for line in file if str(bed.root) in line]
    for hierarchy in cgroups.hierarchies():
        for directory, _, _ in os.walk(hierarchy.mountpoint):
            found += [directory for name in names if name in directory]
    return found


def contents(directory: Path) -> dict[str, str]:
    """The files below a directory, by their relative path."""
    return {
        str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    """A sandbox with data of a user's; afterwards the data is whole, and the host as it was."""
    membership = Path("/proc/self/cgroup").read_text()
    with make_bed(monkeypatch) as made:
        for path in (made.data / "plain", made.data / "deep" / "below"):
            path.parent.mkdir(exist_ok=True)
            path.write_text("precious")
        yield made
        assert contents(made.data) == {"plain": "precious", "deep/below": "precious"}
        assert remains(made) == []
    assert Path("/proc/self/cgroup").read_text() == membership


@asynccontextmanager
async def broker_of(bed: Bed) -> AsyncIterator[Broker]:
    broker = Broker(*fork_broker(bed.identity, str(bed.bundle)))
    try:
        yield broker
    finally:
        assert await broker.close() == []


async def run(broker: Broker, script: str) -> str:
    """What a shell says in the broker's namespace, where virtiofsd would be."""
    read, write = os.pipe()
    child = await broker.spawn("virtiofsd", ["/bin/sh", "-c", script], fds={1: write, 2: write})
    os.close(write)
    await child.wait()
    return _drain(read).strip()


def _drain(fd: int) -> str:
    with open(fd, encoding="utf-8") as pipe:
        return pipe.read()


# -- mounts ------------------------------------------------------------------------------------------------


async def test_an_overlay_is_the_containers_root(bed: Bed, tmp_path: Path) -> None:
    for name in ("lower1", "lower2", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower1/one").write_text("1")
    (tmp_path / "lower2/two").write_text("2")
    options = [
        f"lowerdir={tmp_path}/lower1:{tmp_path}/lower2",
        f"upperdir={tmp_path}/upper",
        f"workdir={tmp_path}/work",
    ]
    async with broker_of(bed) as broker:
        target = f"{bed.shared}/c1/rootfs"
        await broker.mount(target, [("overlay", "overlay", ["index=off", *options])])
        assert await run(broker, f"cd {target}; cat one two; echo new >three") == "12"
        await broker.unmount(target)
        assert await run(broker, f"ls {target}") == ""
        await broker.remove(target)
        await broker.remove(f"{bed.shared}/c1")
    assert (tmp_path / "upper/three").read_text() == "new\n"


async def test_a_root_is_seen_where_clients_copy_its_files(bed: Bed, tmp_path: Path) -> None:
    """By the pid that containerd is told, both ways; a link of the guest's leads nobody out of it."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/one").write_text("1")
    (tmp_path / "lower/link").symlink_to(bed.data)
    directories = [f"{key}dir={tmp_path}/{key}" for key in ("lower", "upper", "work")]
    async with broker_of(bed) as broker:
        await broker.take_user(60000, 1000)
        root = Path(f"/proc/{await broker.learn_network(None, outside=False)}/root")
        assert list(root.iterdir()) == []
        target = f"{bed.shared}/c1/rootfs"
        with pytest.raises(RequestRefusedError, match="was not mounted by this broker"):
            await broker.show_root(target)
        await broker.mount(target, [("overlay", "overlay", directories)])
        await broker.show_root(target)
        assert (root / "one").read_text() == "1"
        (root / "two").write_text("2")
        assert await run(broker, f"cat {target}/two; echo 3 >{target}/three") == "2"
        assert (root / "three").read_text() == "3\n"
        assert (root / "link").readlink() == bed.data
        for reached in ("link/plain", "link"):
            with pytest.raises(OSError, match="Too many levels of symbolic links"):
                (root / reached).stat()
        await broker.unmount(target)
        assert await run(broker, f"ls {target}") == ""


async def test_an_overlay_of_very_many_layers(bed: Bed, tmp_path: Path) -> None:
    layers = [tmp_path / f"{number:03}" / "fs" for number in range(100)]
    for layer in layers:
        layer.mkdir(parents=True)
        (layer / layer.parent.name).touch()
    option = "lowerdir=" + ":".join(str(layer) for layer in layers)
    assert len(option) > mounts.MAX_DATA
    async with broker_of(bed) as broker:
        await broker.mount(f"{bed.shared}/c1", [("overlay", "overlay", [option])])
        assert len((await run(broker, f"ls {bed.shared}/c1")).split()) == 100


async def test_several_mounts_are_stacked_in_order_or_not_at_all(bed: Bed, tmp_path: Path) -> None:
    (tmp_path / "over").mkdir()
    (tmp_path / "over/top").write_text("top")
    target = str(bed.bundle / "rootfs")
    both = [("bind", str(bed.data), ["rbind", "ro"]), ("bind", str(tmp_path / "over"), ["bind"])]
    async with broker_of(bed) as broker:
        with pytest.raises(RequestFailedError, match=r"cannot mount bind /no/such on .*: No such file"):
            await broker.mount(target, [*both, ("bind", "/no/such", [])])
        assert await run(broker, f"ls {target}; grep -c {target} /proc/self/mounts") == "0"
        await broker.mount(target, both)
        assert await run(broker, f"ls {target}") == "top"
        await broker.unmount(target)
        assert await run(broker, f"ls {target}; grep -c {target} /proc/self/mounts") == "0"


@pytest.mark.parametrize("options", [["rbind", "ro"], ["bind", "ro", "nosuid"]])
async def test_a_readonly_root_is_readonly(bed: Bed, options: list[str]) -> None:
    async with broker_of(bed) as broker:
        await broker.mount(f"{bed.shared}/c1", [("bind", str(bed.data), options)])
        assert "Read-only file system" in await run(broker, f"touch {bed.shared}/c1/new")


async def test_a_file_system_that_refuses_says_what_was_tried(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        with pytest.raises(RequestFailedError, match=f"cannot mount ext4 /dev/null on {bed.shared}/c1: "):
            await broker.mount(f"{bed.shared}/c1", [("ext4", "/dev/null", ["ro"])])
        with pytest.raises(RequestRefusedError, match="fewer layers"):
            await broker.mount(f"{bed.shared}/c1", [("overlay", "overlay", ["lowerdir=/" + "x" * 5000])])


async def test_a_bind_follows_its_source_both_ways(bed: Bed, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    async with broker_of(bed) as broker:
        await broker.bind(str(tmp_path), f"{bed.shared}/c1/directory", readonly=False)
        await broker.bind(str(tmp_path / "file"), f"{bed.shared}/c1/file", readonly=False)
        (tmp_path / "file").write_text("live")
        assert (
            await run(broker, f"cat {bed.shared}/c1/file; echo back >{bed.shared}/c1/directory/new") == "live"
        )
        assert (tmp_path / "new").read_text() == "back\n"


async def test_a_readonly_bind_refuses_writes_in_every_namespace(bed: Bed) -> None:
    """virtiofsd has a mount namespace of its own, made before the mount: it must never see it writable."""
    ready, go = os.pipe(), os.pipe()
    home = f"{bed.shared}/c1"
    script = f"echo x >&3; read x <&4; touch {home}/v/new {home}/f; cat {home}/f; ls {bed.shared}"
    async with broker_of(bed) as broker:
        out, write = os.pipe()
        fds = {1: write, 2: write, 3: ready[1], 4: go[0]}
        command = ["/usr/bin/unshare", "--mount", "--propagation", "slave", "/bin/sh", "-c", script]
        child = await broker.spawn("virtiofsd", command, fds=fds)
        os.close(write)
        assert os.read(ready[0], 10) == b"x\n"
        await broker.bind(str(bed.data), f"{bed.shared}/c1/v", readonly=True)
        await broker.bind(str(bed.data / "plain"), f"{bed.shared}/c1/f", readonly=True)
        os.write(go[1], b"\n")
        await child.wait()
        text = _drain(out)
        assert text.count("Read-only file system") == 2
        assert text.splitlines()[2:] == ["preciousc1"]
    for fd in (*ready, *go):
        os.close(fd)


async def test_a_recursive_bind_is_readonly_all_the_way_down(bed: Bed, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    syscalls.mount("below", str(tmp_path / "below"), "tmpfs")
    try:
        async with broker_of(bed) as broker:
            await broker.bind(str(tmp_path), f"{bed.shared}/all", readonly=True)
            await broker.bind(str(tmp_path), f"{bed.shared}/top", readonly=False, recursive=False)
            assert "Read-only" in await run(broker, f"touch {bed.shared}/all/below/new")
            assert await run(broker, f"touch {bed.shared}/top/below/new") == ""
            await broker.unmount(f"{bed.shared}/all")
            # A copy's end reaches neither its source in the broker's namespace nor the host's.
            assert await run(broker, f"grep -c ' {tmp_path}/below ' /proc/self/mounts") == "1"
        assert os.path.ismount(tmp_path / "below")
        assert os.listdir(tmp_path / "below") == []
        assert os.listdir(tmp_path) == ["below"]
        assert os.listdir(tmp_path / "below") == []
    finally:
        syscalls.unmount(str(tmp_path / "below"))
    assert os.listdir(tmp_path / "below") == ["new"]


async def test_a_mount_in_use_is_detached(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        await broker.bind(str(bed.data), f"{bed.shared}/c1/v", readonly=False)
        ready, write = os.pipe()
        script = f"cd {bed.shared}/c1/v; exec 5<plain; echo x >&3; sleep 100"
        child = await broker.spawn("virtiofsd", ["/bin/sh", "-c", script], fds={3: write})
        os.close(write)
        assert os.read(ready, 10) == b"x\n"
        os.close(ready)
        await broker.unmount(f"{bed.shared}/c1/v")
        await broker.remove(f"{bed.shared}/c1/v")
        await broker.remove(f"{bed.shared}/c1")
        assert await run(broker, f"ls {bed.shared}") == ""
        await child.kill()


async def test_what_is_mounted_is_seen_in_the_namespace_and_not_on_the_host(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        await broker.bind(str(bed.data), f"{bed.shared}/c1/v", readonly=False)
        await broker.mount(str(bed.bundle / "rootfs"), [("bind", str(bed.data), [])])
        assert (
            await run(broker, f"cat {bed.shared}/c1/v/plain {bed.bundle}/rootfs/plain") == "preciousprecious"
        )
        assert os.listdir(bed.shared) == os.listdir(bed.bundle / "rootfs") == []
        assert str(bed.root) not in Path("/proc/self/mountinfo").read_text()


# -- what a guest may try ----------------------------------------------------------------------------------


async def test_a_guest_can_write_to_what_was_shared_and_to_nothing_else(bed: Bed, tmp_path: Path) -> None:
    async with broker_of(bed) as broker:
        await broker.bind(str(tmp_path), f"{bed.shared}/c1/v", readonly=False)
        output = await run(
            broker,
            f"cd {bed.shared}; touch a c1/a; mkdir b; ln -s /etc c; mv c1 d; touch c1/v/ok",
        )
        assert output.count("Read-only file system") == 5
        assert os.listdir(tmp_path) == ["ok"]


async def test_a_link_in_what_was_shared_leads_the_broker_nowhere(bed: Bed, tmp_path: Path) -> None:
    victim = bed.root / "victim"
    victim.mkdir()
    async with broker_of(bed) as broker:
        await broker.bind(str(tmp_path), f"{bed.shared}/c1/v", readonly=False)
        await run(broker, f"ln -s {victim} {bed.shared}/c1/v/link")
        for target in ("link", "link/x", "own", "own/x"):
            path = f"{bed.shared}/c1/v/{target}"
            with pytest.raises(RequestRefusedError, match="leads into the mount at 'v'"):
                await broker.bind(str(bed.data), path, readonly=False)
            with pytest.raises(RequestRefusedError, match="leads into the mount at 'v'"):
                await broker.make_directory(path)
        assert os.listdir(victim) == []
        assert os.listdir(tmp_path) == ["link"]


async def test_a_link_in_the_place_of_a_target_is_refused(bed: Bed) -> None:
    rootfs = bed.bundle / "rootfs"
    rootfs.rmdir()
    rootfs.symlink_to(bed.data)
    async with broker_of(bed) as broker:
        with pytest.raises(RequestRefusedError, match="is no directory"):
            await broker.mount(str(rootfs), [("bind", "/usr", [])])
        with pytest.raises(RequestRefusedError, match="is no directory"):
            await broker.bind("/usr", str(rootfs / "deep"), readonly=True)


# -- cgroups -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "path"),
    [
        (f"/{broker_cgroup.NAME}/one", f"/{broker_cgroup.NAME}/one"),
        (
            f"{broker_cgroup.NAME}.slice:kata:one",
            f"/{broker_cgroup.OUTER}.slice/{broker_cgroup.NAME}.slice/kata-one.scope",
        ),
    ],
    ids=["a path", "a slice"],
)
async def test_all_of_a_sandbox_is_in_its_cgroup(bed: Bed, given: str, path: str) -> None:
    async with broker_of(bed) as broker:
        assert await broker.prepare(given, pinning=False) == path
        child = await broker.spawn("qemu", ["/bin/sleep", "100"], fds={})
        for pid in (os.getpid(), broker.pid, child.pid):
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            mounted = {controller for h in cgroups.hierarchies() for controller in h.controllers or {""}}
            for line in lines:
                _, controllers, where = line.split(":", 2)
                if mounted & set(controllers.split(",")):
                    assert where == path
        with pytest.raises(RequestRefusedError, match="already"):
            await broker.prepare(given, pinning=False)
        assert await broker.oom_kills() == 0
        assert await broker.close() == []
        assert child.exited == ExitStatus(signal=signal.SIGKILL)


@pytest.mark.parametrize("given", ["/a/../b", "a:b:c"])
async def test_a_cgroup_path_that_leads_elsewhere_is_refused(bed: Bed, given: str) -> None:
    async with broker_of(bed) as broker:
        with pytest.raises(RequestRefusedError, match="cgroupsPath"):
            await broker.prepare(given, pinning=False)


async def test_a_process_killed_for_want_of_memory_is_told_apart(bed: Bed) -> None:
    leaf = next(
        f"{h.mountpoint}/{broker_cgroup.NAME}/oom"
        for h in cgroups.hierarchies()
        if "memory" in h.controllers or h.version == 2
    )
    async with broker_of(bed) as broker:
        await broker.prepare(f"/{broker_cgroup.NAME}/oom", pinning=False)
        below = Path(
            leaf, "memory.limit_in_bytes" if Path(leaf, "memory.limit_in_bytes").exists() else "memory.max"
        )
        script = "import os; b = bytearray(1 << 30)"
        child = await broker.spawn(
            "qemu", ["/usr/bin/python3", "-c", f"import time; time.sleep(0.3); {script}"], fds={}
        )
        # The shim here is the test itself: it must not be in the group that is made tight.
        for hierarchy in cgroups.hierarchies():
            Path(hierarchy.mountpoint, "cgroup.procs").write_text(str(os.getpid()))
        below.write_text(str(200 << 20))
        assert await child.wait() == ExitStatus(signal=signal.SIGKILL)
        assert await broker.oom_kills() == 1
    for hierarchy in cgroups.hierarchies():
        _restore(hierarchy.mountpoint)


def _restore(mountpoint: str) -> None:
    origin = _ORIGIN.get(mountpoint, mountpoint)
    Path(origin, "cgroup.procs").write_text(str(os.getpid()))


_ORIGIN = {hierarchy.mountpoint: cgroups.current(hierarchy) for hierarchy in cgroups.hierarchies()}


# -- every end ---------------------------------------------------------------------------------------------


def busy_sandbox(bed: Bed) -> Callable[[socket.socket], list[int]]:
    """Everything at once: cgroup, mounts in use, children before and after the mounts."""

    def act(channel: socket.socket) -> list[int]:
        def do(op: str, **arguments: object) -> Any:
            reply = ask(channel, op, **arguments)
            assert "result" in reply, reply
            return reply["result"]

        def spawn(name: str, script: str) -> int:
            argv = ["/bin/sh", "-c", script]
            optional = dict.fromkeys(("environment", "gate", "seccomp", "privileges"))
            reply = do("spawn", name=name, argv=argv, fds=[], **optional)
            return int(reply["pid"])

        do("prepare", cgroup=f"/{broker_cgroup.NAME}/busy", pinning=False)
        pids = [spawn("virtiofsd", "sleep 100 & sleep 100")]
        for name, readonly in (("rw", False), ("ro", True)):
            do(
                "bind",
                source=str(bed.data),
                target=f"{bed.shared}/c1/{name}",
                readonly=readonly,
                recursive=True,
            )
        do(
            "bind",
            source=str(bed.data / "plain"),
            target=f"{bed.shared}/c1/f",
            readonly=False,
            recursive=True,
        )
        do("mount", target=str(bed.bundle / "rootfs"), mounts=[["bind", str(bed.data), ["rbind"]]])
        pids.append(spawn("qemu", f"cd {bed.shared}/c1/rw; exec 5<deep/below; sleep 100"))
        return pids

    return act


@pytest.mark.parametrize(
    "dead", ["none", "shim", "broker", "shim then broker", "broker then shim", "children"]
)
@pytest.mark.parametrize("deleted", [True, False])
def test_data_survives_every_order_of_deaths(bed: Bed, dead: str, deleted: bool) -> None:
    shim = Shim(bed, busy_sandbox(bed), namespace=True)
    (bed.directory / "qmp.sock").touch()
    if dead == "children":
        for pid in shim.result:
            os.kill(pid, signal.SIGKILL)
    for who in ("shim", "broker") if dead == "shim then broker" else ("broker", "shim"):
        if who in dead:
            os.kill(getattr(shim, "pid" if who == "shim" else "broker"), signal.SIGKILL)
    if not deleted and dead in ("none", "children"):
        os.kill(shim.pid, signal.SIGKILL)
    if not deleted and "broker" not in dead:
        wait_for_end(shim.broker)  # it has undone everything by itself
        assert not bed.directory.exists()
    assert cleanup.clean_up(bed.identity) == []
    for pid in (shim.pid, shim.broker, *shim.result):
        wait_for_end(pid)
    os.waitpid(shim.pid, 0)
    assert not bed.directory.exists()
    # That the data is whole and the host as before is checked by the fixture, for every test here.


def test_nothing_is_removed_behind_a_mount_that_would_not_go(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cleanup in the namespace of the mounts, where every umount fails, leaves all that is below them."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(_roll_back_with_stuck_mounts(bed))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert cleanup.clean_up(bed.identity) == []


def _roll_back_with_stuck_mounts(bed: Bed) -> int:
    syscalls.unshare_mounts()
    os.makedirs(f"{bed.shared}/c1/v")
    bed.directory.chmod(0o700)
    directory = os.open(bed.directory, os.O_RDONLY)
    journal = RollbackJournal.create(directory, {"sandbox": "x"})
    for path in ("c1", "c1/v", "c1/v/plain", "c1/v/deep", "c1/v/deep/below"):
        journal.push("remove", path=f"{bed.shared}/{path}")
    journal.push("unmount", path=f"{bed.shared}/c1/v")
    syscalls.mount(str(bed.data), f"{bed.shared}/c1/v", flags=0x1000)

    def refuse(target: str, *, lazy: bool = False) -> None:
        raise OSError(16, "Device or resource busy")

    fds = [os.open(path, os.O_PATH) for path in (bed.shared, bed.bundle)]
    scope = PathScope(bed.shared, fds[0], str(bed.bundle), fds[1])
    really = syscalls.unmount
    syscalls.unmount = refuse
    left = cleanup.roll_back(journal, scope, {os.getpid()}, mounted=True)
    stuck = [line.split(":")[0].removeprefix("cannot undo ").replace(bed.shared + "/", "") for line in left]
    expected = [
        "unmount c1/v",
        *(f"remove c1/v/{name}" for name in ("deep/below", "deep", "plain")),
        "remove c1/v",
        "remove c1",
    ]
    if stuck != expected or not os.path.exists(f"{bed.shared}/c1/v/deep/below"):
        return 1
    syscalls.unmount = really
    left = cleanup.roll_back(journal, scope, {os.getpid()}, mounted=True)
    return 0 if left == [] and os.listdir(bed.shared) == [] else 2


async def test_close_brings_the_shim_back_to_where_it_came_from(bed: Bed) -> None:
    before = Path("/proc/self/cgroup").read_text()
    async with broker_of(bed) as broker:
        await broker.prepare(None, pinning=False)
        assert Path("/proc/self/cgroup").read_text() != before
        await broker.bind(str(bed.data), f"{bed.shared}/c1/v", readonly=False)
        assert await broker.close() == []
        assert Path("/proc/self/cgroup").read_text() == before


def test_what_the_host_mounts_later_is_seen(bed: Bed, tmp_path: Path) -> None:
    """Where the host's mounts are shared, as systemd makes them, a volume mounted later is found."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if _mounted_later(bed, tmp_path) == "here" else 1)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    cleanup.clean_up(bed.identity)


def _mounted_later(bed: Bed, volume: Path) -> str:
    syscalls.unshare_mounts()  # a "host" of our own, with shared mounts
    channel, broker = fork_broker(bed.identity, str(bed.bundle))
    ask(channel, "make_directory", path=bed.shared)
    syscalls.mount("later", str(volume), "tmpfs")
    (volume / "file").write_text("here")
    ask(channel, "bind", source=str(volume), target=f"{bed.shared}/v", readonly=True, recursive=True)
    return Path(f"/proc/{broker}/root{bed.shared}/v/file").read_text()


# -- jails -------------------------------------------------------------------------------------------------


async def test_a_jail_is_the_brokers_alone_and_shows_files_that_cannot_be_written(bed: Bed) -> None:
    jail = Path(bed.identity.directory) / "jail"
    root = jail / "firecracker/one/root"
    async with broker_of(bed) as broker:
        await broker.make_jail(root, {"kernel": bed.data / "plain", "disk-data_1": bed.data / "deep/below"})
        seen = await run(broker, f"cd {root}; cat kernel disk-data_1; echo no > kernel; mknod null c 1 3; ls")
        assert seen.startswith("preciousprecious")
        assert "Read-only file system" in seen
        assert seen.endswith("disk-data_1\nkernel\nnull")
        assert (
            await run(broker, f"cd {root}; echo yes > null && cp /bin/true own && ./own && echo ran") == "ran"
        )
        assert list(jail.iterdir()) == []  # in this process's view, the host's


async def test_a_jail_is_made_once_and_where_it_belongs(bed: Bed) -> None:
    jail = Path(bed.identity.directory) / "jail"
    async with broker_of(bed) as broker:
        for elsewhere in (jail, jail / "../shared/x", Path("/tmp/x"), Path(f"{jail}x/y")):
            with pytest.raises(RequestRefusedError, match="is not below"):
                await broker.make_jail(elsewhere, {})
        for name in ("", "../x", "a/b", ".", "\0"):
            with pytest.raises(RequestRefusedError):
                await broker.make_jail(jail / "x", {name: Path("/etc/passwd")})
        await broker.make_jail(jail / "x", {})
        with pytest.raises(RequestRefusedError, match="has its jail already"):
            await broker.make_jail(jail / "y", {})


async def test_a_jail_of_what_is_not_there(bed: Bed) -> None:
    async with broker_of(bed) as broker:
        with pytest.raises(HostUnfitError, match=r"cannot make the jail .* No such file or directory"):
            await broker.make_jail(Path(bed.identity.directory) / "jail/x", {"kernel": bed.data / "nothing"})
