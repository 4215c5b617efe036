"""Volumes as a kubelet makes them: in memory, which is the guest's, and such as it brings up to date."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kata_agent.ttrpc.status import RpcError
from oci_bundle import bind
from shared_files_program import compile_into
from shim_pod import Pod
from shim_process import Process
from volume_fixtures import AtomicVolume, mounted

pytestmark = [pytest.mark.integration, pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")]


@pytest.fixture(scope="module", autouse=True)
async def program(shim_pod: Pod) -> None:
    compile_into(shim_pod.shim.lab.rootfs / "bin")


@pytest.fixture
def kubelet(shim_pod: Pod) -> Path:
    """The directory of a pod, as a kubelet has it."""
    return shim_pod.shim.lab.directory / shim_pod.shim.lab.new_id("kubelet")


@pytest.fixture
async def started(shim_pod: Pod) -> AsyncIterator[list[Process]]:
    """Containers that are ended after the test."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        with contextlib.suppress(RpcError):  # it has exited already
            await process.kill()
        await process.wait()
        await process.delete()


async def until(process: Process, mark: str) -> str:
    assert process.streams.stdout is not None
    return (await process.streams.stdout.read_until(mark.encode())).decode()


# -- in memory -----------------------------------------------------------------------------------------------


@pytest.fixture
def part(memory: Path) -> Iterator[Path]:
    """A directory of it, as a kubelet gives a subPath."""
    at = memory.parents[2] / "volume-subpaths/cache/web/0"
    (memory / "part").mkdir()
    at.mkdir(parents=True)
    subprocess.run(["mount", "--bind", memory / "part", at], check=True)
    yield at
    subprocess.run(["umount", at], check=True)
    (memory / "part").rmdir()


@pytest.fixture
def memory(kubelet: Path) -> Iterator[Path]:
    """An emptyDir of medium Memory, with a size and a group."""
    at = kubelet / "volumes/kubernetes.io~empty-dir/cache"
    with mounted(at, "size=3m", "mode=2770", "gid=2000"):
        yield at


async def test_an_empty_dir_in_memory_is_a_tmpfs_of_the_guest(shim_pod: Pod, memory: Path) -> None:
    mounts = [bind(memory, "/cache", "rw")]
    script = (
        "grep ' /cache ' /proc/mounts; stat -c %a:%u:%g /cache; dd if=/dev/zero of=/cache/x bs=1M count=4"
    )
    finished = await shim_pod.run("sh", "-c", script, mounts=mounts)
    line, owner = finished.stdout.decode().splitlines()
    assert line.startswith("tmpfs /cache tmpfs rw")
    assert "size=3072k" in line
    assert owner == "2770:0:2000"
    assert b"No space left on device" in finished.stderr
    assert list(memory.iterdir()) == []


async def test_it_is_one_for_all_containers_and_outlives_them(
    shim_pod: Pod, memory: Path, part: Path, started: list[Process]
) -> None:
    """Also for one that has a part of it, and one that may only read."""
    whole = [bind(memory, "/c", "rw")]
    finished = await shim_pod.run("sh", "-c", "echo first >/c/kept", mounts=whole)
    listens = await shim_pod.start_container("meet", "listen", "/c/socket", mounts=whole)
    started.append(listens)
    assert await until(listens, "\n") == "ready\n"
    await shim_pod.run("meet", "connect", "/c/socket", mounts=whole)
    assert await until(listens, "\n") == "hello\n"
    script = "echo second >/p/file; stat -c %a:%g /p"
    finished = await shim_pod.run("sh", "-c", script, mounts=[bind(part, "/p", "rw")])
    assert finished.text == "2770:2000\n"
    script = "cat /c/kept /c/part/file; touch /c/new"
    finished = await shim_pod.run("sh", "-c", script, mounts=[bind(memory, "/c", "ro")])
    assert finished.stdout == b"first\nsecond\n"
    assert b"Read-only file system" in finished.stderr


async def test_what_is_mounted_after_one_went_is_another(shim_pod: Pod, kubelet: Path) -> None:
    """The host's kernel gives a number of a file system again when that is gone."""
    found = []
    for name in ("first", "second"):
        with mounted(kubelet / f"volumes/kubernetes.io~empty-dir/{name}") as at:
            finished = await shim_pod.run("sh", "-c", "ls /c; touch /c/x", mounts=[bind(at, "/c", "rw")])
            found.append(finished.text)
    assert found == ["", ""]


async def test_a_link_that_a_container_has_made_leads_nowhere(shim_pod: Pod, memory: Path) -> None:
    (memory / "part").mkdir()
    mounts = [bind(memory, "/c", "rw")]
    await shim_pod.run("ln", "-s", "/etc", "/c/part", mounts=mounts)
    with pytest.raises(RpcError, match="a symbolic link"):
        await shim_pod.run("ls", "/p", mounts=[bind(memory / "part", "/p", "rw")])


@pytest.fixture
def shm(kubelet: Path) -> Iterator[Path]:
    """The shared memory of a pod, as containerd and Docker make it."""
    with mounted(kubelet / "sandboxes/x/shm", "size=7m", "mode=1777", "nosuid,nodev,noexec") as at:
        yield at


async def test_the_pods_shared_memory_has_its_size_and_is_shared(
    shim_pod: Pod, shm: Path, started: list[Process]
) -> None:
    mounts = [bind(shm, "/dev/shm", "rw")]
    script = "grep ' /dev/shm ' /proc/mounts | tail -1; echo shared >/dev/shm/x; sleep 1000"
    first = await shim_pod.start_container("sh", "-c", script, mounts=mounts)
    started.append(first)
    line = await until(first, "\n")
    assert "size=7168k" in line
    assert {"nosuid", "nodev", "noexec"} < set(line.split()[3].split(","))
    assert (await shim_pod.run("cat", "/dev/shm/x", mounts=mounts)).text == "shared\n"
    assert list(shm.iterdir()) == []


async def test_a_directory_in_the_place_of_shared_memory_is_a_volume(shim_pod: Pod, kubelet: Path) -> None:
    kubelet.mkdir()
    (kubelet / "file").write_text("of the host\n")
    mounts = [bind(kubelet, "/dev/shm", "rw")]
    assert (await shim_pod.run("cat", "/dev/shm/file", mounts=mounts)).text == "of the host\n"


@pytest.fixture
def huge(kubelet: Path) -> Iterator[Path]:
    """An emptyDir of medium HugePages."""
    if "hugetlbfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("the host's kernel has no hugetlbfs")
    with mounted(kubelet / "volumes/kubernetes.io~empty-dir/huge", kind="hugetlbfs") as at:
        yield at


async def test_huge_pages_are_refused_by_name(shim_pod: Pod, huge: Path) -> None:
    with pytest.raises(RpcError, match="its volume /huge is of huge pages of the host"):
        await shim_pod.run("true", mounts=[bind(huge, "/huge", "rw")])


async def test_an_empty_dir_on_disk_is_the_hosts(shim_pod: Pod, kubelet: Path) -> None:
    at = kubelet / "volumes/kubernetes.io~empty-dir/disk"
    at.mkdir(parents=True)
    await shim_pod.run("touch", "/disk/new", mounts=[bind(at, "/disk", "rw")])
    assert os.listdir(at) == ["new"]


# -- brought up to date --------------------------------------------------------------------------------------

KINDS = ["configmap", "secret", "projected", "downward-api"]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_kubelet_updates_is_told_to_who_watches(
    shim_pod: Pod, kubelet: Path, started: list[Process], kind: str
) -> None:
    volume = AtomicVolume(kubelet / f"volumes/kubernetes.io~{kind}/v")
    volume.write({"key": "one\n", "dropped": "x"})
    mounts = [bind(volume.path, "/v", "ro")]
    script = (
        "cat /v/key; meet watch /v; while ! test -e /v/added; do usleep 50000; done; "
        "cat /v/key; ls /v; echo end; sleep 1000"
    )
    process = await shim_pod.start_container("sh", "-c", script, mounts=mounts)
    started.append(process)
    assert await until(process, "ready\n") == "one\nready\n"
    volume.write({"key": "two\n", "added": "y"})
    told, *others = (await until(process, "end\n")).splitlines()
    assert told.startswith("..")  # a new version, or the link to it
    assert others == ["two", "added", "key", "end"]


async def test_modes_and_owners_are_those_of_the_volume(shim_pod: Pod, kubelet: Path) -> None:
    volume = AtomicVolume(kubelet / "volumes/kubernetes.io~secret/v")
    volume.write({"key": "one\n"}, mode=0o440, group=2000)
    script = "stat -L -c %a:%u:%g /v/key; readlink /v/key; echo x 2>&1 >/v/new"
    finished = await shim_pod.run("sh", "-c", script, mounts=[bind(volume.path, "/v", "ro")])
    assert finished.stdout.decode().splitlines()[:2] == ["440:0:2000", "..data/key"]
    assert b"Read-only file system" in finished.stdout


async def test_a_large_one_is_shared_as_it_is(shim_pod: Pod, kubelet: Path) -> None:
    volume = AtomicVolume(kubelet / "volumes/kubernetes.io~configmap/v")
    volume.write({"key": "x" * (9 << 20)})
    script = "grep -c ' /v virtiofs ' /proc/mounts; stat -L -c %s /v/key"
    finished = await shim_pod.run("sh", "-c", script, mounts=[bind(volume.path, "/v", "ro")])
    assert finished.text == f"1\n{9 << 20}\n"
