"""virtiofsd as a pod has it: what the kernel says of it, and what it does for the guest all the same."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker_bed import Bed
from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor.children import Children
from kata_hypervisor.errors import LaunchError
from kata_hypervisor.privileges import Privileges
from kata_hypervisor.seccomp.confinement import inherited_filters
from kata_hypervisor.virtiofsd import NAME, FileServer, rendezvous
from kata_runtime.broker.client import Broker
from kata_runtime.broker.confined_child import SERVER_CAPABILITIES
from oci_bundle import bind
from process_facts import CAPABILITIES, limit_of, shared_namespaces, status_of
from shim_pod import Pod
from tables import make_table

DAEMON = Path(os.environ.get("KATA_TEST_VIRTIOFSD", "/usr/lib/qemu/virtiofsd"))

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not DAEMON.exists(), reason=f"needs {DAEMON}, or KATA_TEST_VIRTIOFSD"),
]


@pytest.fixture
async def children(bed: Bed, broker: Broker) -> AsyncIterator[Children]:
    """A virtiofsd that is connected, and its filter verified."""
    children = Children(broker, None)
    table = make_table(QemuHypervisor, kernel=Path("/none"), virtio_fs_daemon=DAEMON)
    server = FileServer(table, children, broker)
    listener, connection = rendezvous(bed.directory)
    with connection:
        with listener:
            await server.start(bed.directory / "shared", listener)
        try:
            assert await server.verify(10) == ()
            await server.check()
            yield children
        finally:
            await children.kill()
            await children.wait()
            await children.drain_outputs()
            await children.ours.aclose()


def mask(*names: str) -> str:
    return f"{sum(1 << SERVER_CAPABILITIES[name] for name in names):016x}"


async def test_it_has_nothing_of_the_host_but_the_shared_directory(
    children: Children, broker: Broker, bed: Bed
) -> None:
    pid = children[NAME].pid
    status = status_of(pid)
    files = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "SETFCAP")
    assert {name: status[name] for name in CAPABILITIES} == {
        "CapInh": mask(),
        "CapPrm": mask(*files),
        "CapEff": mask(*files),
        "CapBnd": mask(),
        "CapAmb": mask(),
    }
    assert (status["NoNewPrivs"], status["Groups"]) == ("1", "")
    assert shared_namespaces(pid, broker.pid) == set()
    assert limit_of(pid, "core file size") == ("0", "0")
    assert os.path.samefile(f"/proc/{pid}/root", f"/proc/{broker.pid}/root{bed.directory}/shared")
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        options = set(line.split()[5].split(","))
        assert {"ro", "nosuid", "nodev"} <= options, line


async def test_its_capabilities_are_those_of_a_user_namespace_of_its_own(children: Children) -> None:
    pid = children[NAME].pid
    assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
    for name in ("uid_map", "gid_map"):
        assert Path(f"/proc/{pid}/{name}").read_text().split() == ["0", "0", "4294967295"]
    for task in Path(f"/proc/{pid}/task").iterdir():
        # One thread of the older program keeps what the process began with.
        most = int(mask(*SERVER_CAPABILITIES), 16)
        assert int(status_of(int(task.name))["CapEff"], 16) & ~most == 0


async def test_each_of_its_threads_is_filtered(children: Children) -> None:
    pid = children[NAME].pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        assert status_of(int(task.name))["Seccomp"] == "2"
    own = inherited_filters()
    assert int(status_of(pid)["Seccomp_filters"]) == own + 2


async def test_only_the_shared_directory_is_served(broker: Broker, bed: Bed) -> None:
    with pytest.raises(LaunchError, match="/etc is not the sandbox's shared directory"):
        await broker.spawn(NAME, ["/bin/true"], fds={}, privileges=Privileges(serves=Path("/etc")))


async def test_what_is_mounted_later_is_served_too_and_its_end(
    children: Children, broker: Broker, bed: Bed
) -> None:
    place = bed.directory / "shared" / "c1" / "v"
    (bed.data / "plain").write_text("precious")
    seen = Path(f"/proc/{children[NAME].pid}/root/c1/v")
    await broker.bind(str(bed.data), str(place), readonly=False)
    assert (seen / "plain").read_text() == "precious"
    (seen / "new").write_text("x")
    assert (bed.data / "new").read_text() == "x"
    await broker.unmount(str(place))
    assert list(seen.iterdir()) == []


ATTEMPTS = {
    "mount a file system": "mount -t tmpfs none /tmp",
    "mount the host's disk": "mknod {shared}/c1/v/d b 1 0",
    "read the host's files": "cat /etc/shadow",
    "read the kernel's memory": "dd if=/proc/kcore of=/dev/null count=1",
    "change a kernel setting": "echo x > /proc/sys/kernel/core_pattern",
    "reboot by SysRq": "echo h > /proc/sysrq-trigger",
    "name the host": "hostname mine",
    "see another process": "ls /proc/{broker}",
    "end the broker": "kill -0 {broker}",
    "make a device for all": "mknod /dev/mem c 1 1",
    "change its own root": "touch /usr/new",
}


async def test_who_owns_it_gains_nothing(broker: Broker, bed: Bed) -> None:
    """A shell in its place, without its filters: what the namespaces and capabilities alone refuse."""
    tool, shared = Path("/bin/busybox"), bed.directory / "shared"
    if not tool.exists():
        pytest.skip("needs busybox")
    await broker.bind(str(bed.data), str(shared / "c1" / "v"), readonly=False)
    owned = "touch {shared}/c1/v/f && chown 1234:5678 {shared}/c1/v/f && chmod 6755 {shared}/c1/v/f"
    attempts = {"serve files": owned, **ATTEMPTS}
    known = {"shared": shared, "broker": broker.pid}
    lines = [f"({line.format(**known)}) 2>/dev/null && echo {what}" for what, line in attempts.items()]
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        child = await broker.spawn(
            *(NAME, [str(tool), "sh", "-c", "\n".join(line.replace("'", "_") for line in lines)]),
            fds={1: writer},
            privileges=Privileges(proc=True, serves=shared, network=False),
        )
    finally:
        os.close(writer)
    with os.fdopen(reader) as output:
        text = await asyncio.to_thread(output.read)
    await child.wait()
    assert text == "serve files\n"
    found = (bed.data / "f").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 5678, 0o6755)


# -- in a pod ------------------------------------------------------------------------------------------------

AS_ROOT = """cd /data
touch f && chown 1234:5678 f && chmod 6755 f && ln f g && mv g h && mkfifo p && ln -s f s
mkdir d && chown 42:43 d && cat theirs && mv theirs d/ && echo x > d/theirs && rm before
mknod b b 1 0 2>/dev/null || echo no device"""


@pytest.fixture
def directory(shim_pod: Pod) -> Path:
    """A directory of the host, with a file that is another user's alone."""
    path = shim_pod.shim.lab.directory / shim_pod.shim.lab.new_id("served")
    path.mkdir()
    path.chmod(0o777)
    for name in ("theirs", "before"):
        (path / name).write_text(name)
        (path / name).chmod(0o600)
        os.chown(path / name, 1000, 1000)
    return path


async def test_owners_modes_links_and_fifos_are_as_the_guest_makes_them(
    shim_pod: Pod, directory: Path
) -> None:
    finished = await shim_pod.run("sh", "-c", AS_ROOT, mounts=[bind(directory, "/data")])
    assert (finished.text, finished.stderr) == ("theirsno device\n", b"")
    assert {path.name for path in directory.iterdir()} == {"f", "h", "p", "s", "d"}
    found = {path.name: path.lstat() for path in (*directory.iterdir(), directory / "d" / "theirs")}
    assert found["f"].st_ino == found["h"].st_ino
    assert (found["f"].st_uid, found["f"].st_gid, found["f"].st_nlink) == (1234, 5678, 2)
    assert found["f"].st_mode == stat.S_IFREG | 0o6755
    assert (found["d"].st_uid, found["d"].st_gid) == (42, 43)
    assert (stat.S_ISFIFO(found["p"].st_mode), os.readlink(directory / "s")) == (True, "f")
    assert (found["theirs"].st_uid, found["theirs"].st_size) == (1000, 2)


async def test_a_user_of_the_guest_has_that_users_rights(shim_pod: Pod, directory: Path) -> None:
    script = "cd /data; touch mine; cat theirs 2>&1; chown 0 mine 2>&1; :"
    user = {"uid": 1001, "gid": 1002}
    finished = await shim_pod.run(
        "sh", "-c", script, mounts=[bind(directory, "/data")], process={"user": user}
    )
    assert "denied" in finished.text
    assert "not permitted" in finished.text
    found = (directory / "mine").stat()
    assert (found.st_uid, found.st_gid) == (1001, 1002)
