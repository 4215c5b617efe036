"""Root file systems, bind mounts and memory-backed mounts."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_agent.ttrpc.status import Code, RpcError
from kata_runtime.containerd_api import types_pb2
from oci_bundle import bind
from shim_pod import Pod

pytestmark = pytest.mark.integration


@pytest.fixture
def directory(shim_pod: Pod) -> Path:
    """A directory of the host."""
    path = shim_pod.shim.lab.directory / shim_pod.shim.lab.new_id("data")
    path.mkdir()
    return path


@pytest.fixture
def nested(directory: Path) -> Iterator[Path]:
    """A directory with a mount of its own in it."""
    inner = directory / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "inner", inner], check=True)
    (inner / "file").write_text("nested\n")
    yield directory
    subprocess.run(["umount", inner], check=True)


# -- the root ----------------------------------------------------------------------------------------------


async def test_what_is_written_to_the_root_is_in_its_snapshot_alone(shim_pod: Pod) -> None:
    lab = shim_pod.shim.lab
    process = await shim_pod.start_container("sh", "-c", "echo mine > /new; rm /etc/group; stat -f -c %T /")
    assert (await process.finish()).status == 0
    upper = lab.snapshots / process.id / "upper"
    assert (upper / "new").read_text() == "mine\n"
    assert (lab.rootfs / "etc/group").exists()
    assert not (lab.rootfs / "new").exists()


KINDS = ("bounding", "effective", "permitted")
CAP_NET_RAW = 1 << 13
ATTRIBUTES = """
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
int main(int count, char **names) {
    char value[64];
    for (int i = 1; i < count; i++) {
        int set = setxattr("/file", names[i], "of the guest", 12, 0) ? errno : 0;
        ssize_t size = getxattr("/file", names[i], value, sizeof value);
        printf("%s %s %.*s\\n", names[i], set ? strerror(set) : "set", size < 0 ? 0 : (int)size, value);
    }
}
"""


def attributes_into(directory: Path) -> None:
    """Compile a program that sets the attributes that it is told."""
    command = ["gcc", "-static", "-x", "c", "-o", str(directory / "attributes"), "-"]
    subprocess.run(command, input=ATTRIBUTES.encode(), check=True)


async def test_file_capabilities_of_an_image_are_in_force(shim_pod: Pod) -> None:
    lab = shim_pod.shim.lab
    program = lab.rootfs / "capable" / "busybox"
    program.parent.mkdir()
    shutil.copy2("/bin/busybox", program)
    os.setxattr(program, "security.capability", struct.pack("<IIIII", 0x02000001, CAP_NET_RAW, 0, 0, 0))
    process = {"user": {"uid": 1000, "gid": 1000}, "capabilities": {kind: ["CAP_NET_RAW"] for kind in KINDS}}
    found = await shim_pod.run("/capable/busybox", "grep", "CapEff", "/proc/self/status", process=process)
    assert int(found.text.split()[1], 16) == CAP_NET_RAW


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
async def test_extended_attributes_of_the_guest_do_not_mean_the_hosts(shim_pod: Pod) -> None:
    lab = shim_pod.shim.lab
    attributes_into(lab.rootfs / "bin")
    (lab.rootfs / "file").write_text("")
    names = ("user.mine", "trusted.mine", "security.mine")
    process = {"capabilities": {kind: ["CAP_SYS_ADMIN"] for kind in KINDS}}
    started = await shim_pod.start_container("/bin/attributes", *names, "user.virtiofs.mine", process=process)
    finished = await started.finish()
    said = finished.text.splitlines()
    assert said[:3] == [f"{name} set of the guest" for name in names]
    assert said[3].startswith("user.virtiofs.mine Operation not permitted")
    upper = lab.snapshots / started.id / "upper" / "file"
    assert set(os.listxattr(upper)) >= {
        "user.mine",
        "user.virtiofs.trusted.mine",
        "user.virtiofs.security.mine",
    }
    assert not {"trusted.mine", "security.mine"} & set(os.listxattr(upper))


async def test_a_read_only_root(shim_pod: Pod) -> None:
    script = "touch /new; echo $?; touch /dev/shm/x /run/x && echo elsewhere"
    finished = await shim_pod.run("sh", "-c", script, readonly=True)
    assert finished.stdout == b"1\nelsewhere\n"
    assert b"Read-only file system" in finished.stderr


async def test_a_root_given_as_a_directory_of_the_bundle(shim_pod: Pod) -> None:
    lab = shim_pod.shim.lab
    spec = shim_pod.spec("sh", "-c", "cat /etc/passwd | head -n 1")
    spec["root"]["path"] = str(lab.rootfs)
    process = await shim_pod.shim.create(spec, rootfs=())
    await process.start()
    assert (await process.finish()).text.startswith("root:x:0:0")


async def test_a_read_only_bind_as_root(shim_pod: Pod) -> None:
    source = str(shim_pod.shim.lab.rootfs)
    mount = types_pb2.Mount(type="bind", source=source, options=["rbind", "ro"])
    finished = await shim_pod.run("sh", "-c", "touch /new", rootfs=[mount])
    assert finished.status == 1
    assert b"Read-only file system" in finished.stderr


async def test_a_root_that_does_not_exist(shim_pod: Pod) -> None:
    source = f"{shim_pod.shim.lab.snapshots}/no/such/rootfs"
    mount = types_pb2.Mount(type="bind", source=source, options=["rbind", "rw"])
    with pytest.raises(RpcError) as caught:
        await shim_pod.run("true", rootfs=[mount])
    assert f"cannot mount bind {source} on " in caught.value.message
    assert caught.value.message.endswith(": No such file or directory")
    spec = shim_pod.spec("true")
    spec["root"]["path"] = "absent"
    with pytest.raises(RpcError) as caught:
        await shim_pod.shim.create(spec, rootfs=())
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "absent" in caught.value.message


# -- bind mounts -------------------------------------------------------------------------------------------


async def test_a_writable_bind_mount_is_live_in_both_directions(shim_pod: Pod, directory: Path) -> None:
    (directory / "in").write_text("from the host\n")
    script = (
        "cat /data/in; echo from the guest > /data/out; "
        "while ! test -e /data/later; do usleep 20000; done; cat /data/later"
    )
    process = await shim_pod.start_container("sh", "-c", script, mounts=[bind(directory, "/data")])
    assert process.streams.stdout is not None
    assert await process.streams.stdout.read_until(b"\n") == b"from the host\n"
    partial = directory / ".later"
    partial.write_text("made meanwhile\n")
    partial.rename(directory / "later")
    finished = await process.finish()
    assert (finished.status, finished.stdout) == (0, b"made meanwhile\n")
    assert (directory / "out").read_text() == "from the guest\n"


async def test_a_read_only_bind_mount(shim_pod: Pod, directory: Path) -> None:
    (directory / "file").write_text("content\n")
    mounts = [bind(directory, "/data", "ro")]
    finished = await shim_pod.run(
        "sh", "-c", "cat /data/file; touch /data/new || echo x > /data/file", mounts=mounts
    )
    assert (finished.status, finished.stdout) == (1, b"content\n")
    assert finished.stderr.count(b"Read-only file system") == 2
    assert sorted(os.listdir(directory)) == ["file"]
    assert (directory / "file").read_text() == "content\n"


async def test_a_single_file(shim_pod: Pod, directory: Path) -> None:
    file = directory / "file"
    file.write_text("one\n")
    mounts = [bind(file, "/etc/single", "rw"), bind(file, "/etc/fixed", "ro")]
    script = "cat /etc/single; echo two > /etc/single; cat /etc/fixed; echo three > /etc/fixed"
    finished = await shim_pod.run("sh", "-c", script, mounts=mounts)
    assert (finished.status, finished.stdout) == (1, b"one\ntwo\n")
    assert file.read_text() == "two\n"


async def test_no_device_node_is_made_on_the_host(shim_pod: Pod, nested: Path) -> None:
    """A container has CAP_MKNOD, and a FIFO is no device."""
    script = "mknod /data/disk b 7 0; mknod /data/null c 1 3; mknod /data/fifo p && echo made"
    finished = await shim_pod.run("sh", "-c", script, mounts=[bind(nested, "/data", "rbind")])
    assert (finished.status, finished.stdout) == (0, b"made\n")
    assert finished.stderr.count(b"Operation not permitted") == 2
    assert not {"disk", "null"} & set(os.listdir(nested))


async def test_a_mount_below_a_recursive_bind_is_seen(shim_pod: Pod, nested: Path) -> None:
    finished = await shim_pod.run("cat", "/data/inner/file", mounts=[bind(nested, "/data", "rbind")])
    assert finished.text == "nested\n"
    finished = await shim_pod.run("ls", "/data/inner", mounts=[bind(nested, "/data", "bind")])
    assert finished.text == ""


async def test_permissions_and_owners_are_the_hosts(shim_pod: Pod, directory: Path) -> None:
    file = directory / "file"
    file.touch(mode=0o640)
    file.chmod(0o640)
    os.chown(file, 1000, 2000)
    script = "stat -c '%a %u:%g' /data/file; chmod 4711 /data/file; ln -s file /data/link; mkfifo /data/fifo"
    finished = await shim_pod.run("sh", "-c", script, mounts=[bind(directory, "/data")])
    assert finished.text == "640 1000:2000\n"
    assert file.stat().st_mode & 0o7777 == 0o4711
    assert os.readlink(directory / "link") == "file"


async def test_the_host_is_out_of_reach_of_a_link(shim_pod: Pod, directory: Path) -> None:
    secret = shim_pod.shim.lab.directory / "secret"
    secret.write_text("secret\n")
    (directory / "link").symlink_to(secret)
    finished = await shim_pod.run("cat", "/data/link", mounts=[bind(directory, "/data")])
    assert finished.status == 1
    assert b"No such file" in finished.stderr


async def test_a_source_that_does_not_exist(shim_pod: Pod) -> None:
    with pytest.raises(RpcError) as caught:
        await shim_pod.run("true", mounts=[bind("/no/such/source", "/data")])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "/no/such/source" in caught.value.message
    assert "\n" not in caught.value.message


async def test_nothing_of_a_container_stays_shared_after_it(shim_pod: Pod, directory: Path) -> None:
    pid = (await shim_pod.first.call("Connect")).shim_pid
    before = Path(f"/proc/{pid}/mountinfo").read_text()
    await shim_pod.run("true", mounts=[bind(directory, "/data")])
    assert Path(f"/proc/{pid}/mountinfo").read_text() == before


# -- memory-backed -----------------------------------------------------------------------------------------


async def test_a_tmpfs_has_its_size(shim_pod: Pod) -> None:
    mount = {
        "destination": "/scratch",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "size=1m", "mode=700"],
    }
    script = "stat -c %a /scratch; dd if=/dev/zero of=/scratch/x bs=64k count=17; stat -c %s /scratch/x"
    finished = await shim_pod.run("sh", "-c", script, mounts=[mount])
    assert finished.stdout == b"700\n1048576\n"
    assert b"No space left on device" in finished.stderr


@pytest.mark.parametrize("size", ["65536k", "1m"])
async def test_shared_memory_has_its_size(shim_pod: Pod, size: str) -> None:
    shm = {
        "destination": "/dev/shm",
        "type": "tmpfs",
        "source": "shm",
        "options": ["nosuid", "mode=1777", f"size={size}"],
    }
    spec = shim_pod.spec("sh", "-c", "df -k /dev/shm | tail -n 1; stat -c %a /dev/shm")
    spec["mounts"] = [shm if mount["destination"] == "/dev/shm" else mount for mount in spec["mounts"]]
    process = await shim_pod.shim.create(spec)
    await process.start()
    line, mode = (await process.finish()).text.splitlines()
    assert line.split()[1] == {"65536k": "65536", "1m": "1024"}[size]
    assert mode == "1777"
