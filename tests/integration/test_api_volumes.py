"""Volumes that several containers of a pod have: one file system to all of them, and gone with the last."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from kata_agent.ttrpc.status import Code, RpcError
from oci_bundle import bind
from shared_files_program import compile_into
from shim_pod import Pod
from shim_process import Process

pytestmark = [pytest.mark.integration, pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")]


@pytest.fixture(scope="module", autouse=True)
async def program(shim_pod: Pod) -> None:
    compile_into(shim_pod.shim.lab.rootfs / "bin")


@pytest.fixture
def directory(shim_pod: Pod) -> Path:
    """A directory of the host."""
    path = shim_pod.shim.lab.directory / shim_pod.shim.lab.new_id("volume")
    path.mkdir()
    (path / "below").mkdir()
    (path / "page").write_bytes(bytes(4096))
    return path


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


async def until_ready(process: Process) -> Process:
    assert process.streams.stdout is not None
    assert await process.streams.stdout.read_until(b"\n") == b"ready\n"
    return process


async def line_of(process: Process) -> str:
    assert process.streams.stdout is not None
    with anyio.fail_after(50):
        return (await process.streams.stdout.read_until(b"\n")).decode()


WAYS = {
    "both writable": ("rw", "rw"),
    "the second only reads": ("rw", "ro"),
    "the first only reads": ("ro", "rw"),
}


@pytest.mark.parametrize("how", WAYS)
async def test_a_unix_socket_connects_containers(
    shim_pod: Pod, directory: Path, started: list[Process], how: str
) -> None:
    """Whoever only reads may connect, and who listens needs to write."""
    first, second = (bind(directory, "/data", "rbind", option) for option in WAYS[how])
    if WAYS[how][0] == "ro":  # it is there before, and looks at the volume
        looks = await shim_pod.start_container("sh", "-c", "ls -d /data/b*; sleep 1000", mounts=[first])
        started.append(looks)
        assert await line_of(looks) == "/data/below\n"
    writes = second if WAYS[how][0] == "ro" else first
    reads = first if WAYS[how][0] == "ro" else second
    listens = await shim_pod.start_container("meet", "listen", "/data/socket", mounts=[writes])
    started.append(await until_ready(listens))
    finished = await shim_pod.run("meet", "connect", "/data/socket", mounts=[reads])
    assert finished.text == ""
    assert await line_of(listens) == "hello\n"


@pytest.mark.parametrize("kind", ["flock", "fcntl", "ofd"])
async def test_a_lock_holds_for_every_container(
    shim_pod: Pod, directory: Path, started: list[Process], kind: str
) -> None:
    mounts = [bind(directory, "/data", "rbind", "rw")]
    holds = await shim_pod.start_container("meet", "hold", "/data/lock", kind, mounts=mounts)
    started.append(await until_ready(holds))
    assert (await shim_pod.run("meet", "try", "/data/lock", kind, mounts=mounts)).text == "taken\n"
    await holds.kill()
    await holds.wait()
    assert (await shim_pod.run("meet", "try", "/data/lock", kind, mounts=mounts)).text == "free\n"


async def test_shared_memory_of_a_file_is_the_same_memory(
    shim_pod: Pod, directory: Path, started: list[Process]
) -> None:
    mounts = [bind(directory, "/data", "rbind", "rw")]
    waits = await shim_pod.start_container("meet", "await", "/data/page", mounts=mounts)
    started.append(await until_ready(waits))
    assert (await shim_pod.run("meet", "poke", "/data/page", mounts=mounts)).text == "answered\n"


async def test_inotify_tells_of_what_another_container_makes(
    shim_pod: Pod, directory: Path, started: list[Process]
) -> None:
    watches = await shim_pod.start_container(
        "meet", "watch", "/data", mounts=[bind(directory, "/data", "ro")]
    )
    started.append(await until_ready(watches))
    await shim_pod.run("touch", "/other/new", mounts=[bind(directory, "/other", "rw")])
    assert await line_of(watches) == "new\n"


@pytest.mark.parametrize("order", [("ro", "rw"), ("rw", "ro")])
async def test_a_container_that_may_only_read_cannot_write(
    shim_pod: Pod, directory: Path, started: list[Process], order: tuple[str, str]
) -> None:
    """Also after another has made the pod's volume writable; and twice in one container."""
    script = "while ! test -e /data/go; do usleep 20000; done; touch /data/mine; echo $?; sleep 1000"
    for option in order:
        mounts = [bind(directory, "/data", option)]
        started.append(await shim_pod.start_container("sh", "-c", script, mounts=mounts))
    (directory / "go").touch()
    said = [await line_of(process) for process in started]
    assert said == [{"ro": "1\n", "rw": "0\n"}[option] for option in order]
    both = [bind(directory, "/one", order[0]), bind(directory, "/two", order[1])]
    finished = await shim_pod.run("sh", "-c", "touch /one/x; echo $?; touch /two/x; echo $?", mounts=both)
    assert finished.stdout.decode() == "".join(said)
    both_names = await shim_pod.run("stat", "-c", "%d:%i", "/one/below", "/two/below", mounts=both)
    assert len(set(both_names.text.split())) == 1


@pytest.fixture
def readonly_view(directory: Path) -> Iterator[Path]:
    """The directory by another mount of the host, which is read-only."""
    view = directory.parent / f"{directory.name}-view"
    view.mkdir()
    subprocess.run(["mount", "--bind", directory, view], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", view], check=True)
    yield view
    subprocess.run(["umount", view], check=True)


@pytest.mark.parametrize("first", ["the view", "the directory"])
async def test_a_mount_of_the_host_that_is_read_only_is_so_in_the_guest(
    shim_pod: Pod, directory: Path, readonly_view: Path, first: str
) -> None:
    mounts = [bind(readonly_view, "/view", "rw"), bind(directory, "/data", "rw")]
    if first == "the directory":
        mounts.reverse()
    script = "touch /view/new; echo $?; touch /data/new; echo $?; stat -c %d:%i /view /data | uniq | wc -l"
    finished = await shim_pod.run("sh", "-c", script, mounts=mounts)
    assert finished.stdout == b"1\n0\n1\n"


@pytest.fixture
def subpath(directory: Path) -> Iterator[Path]:
    """A directory in the directory, by another mount: as the kubelet gives a subPath."""
    view = directory.parent / f"{directory.name}-subpath"
    view.mkdir()
    subprocess.run(["mount", "--bind", directory / "below", view], check=True)
    yield view
    subprocess.run(["umount", view], check=True)


async def test_a_directory_of_a_volume_is_the_same_directory(
    shim_pod: Pod, directory: Path, subpath: Path, started: list[Process]
) -> None:
    whole = await shim_pod.start_container(
        *("meet", "listen", "/data/below/socket"), mounts=[bind(directory, "/data", "rw")]
    )
    started.append(await until_ready(whole))
    for source in (subpath, directory / "below"):
        mounts = [bind(source, "/part", "ro"), bind(directory / "page", "/page", "ro")]
        script = "ls -A /part; touch /part/x; stat -c %d /part /page | uniq | wc -l"
        finished = await shim_pod.run("sh", "-c", script, mounts=mounts)
        assert finished.stdout == b"socket\n1\n"
        assert b"Read-only file system" in finished.stderr
    finished = await shim_pod.run("meet", "connect", "/p/socket", mounts=[bind(subpath, "/p", "rw")])
    assert finished.text == ""
    assert await line_of(whole) == "hello\n"


async def test_a_source_above_one_that_is_shared_is_another_file_system(
    shim_pod: Pod, directory: Path, started: list[Process]
) -> None:
    """See docs/limits.md: what is shared first cannot become a part of something later."""
    part = await shim_pod.start_container(
        *("sh", "-c", "stat -c %d /part; sleep 1000"), mounts=[bind(directory / "below", "/part", "rw")]
    )
    started.append(part)
    finished = await shim_pod.run("stat", "-c", "%d", "/data/below", mounts=[bind(directory, "/data", "rw")])
    assert finished.text != await line_of(part)


@pytest.fixture
def nested(directory: Path) -> Iterator[Path]:
    """The directory, with a mount of its own in it."""
    subprocess.run(["mount", "-t", "tmpfs", "inner", directory / "below"], check=True)
    yield directory
    subprocess.run(["umount", "-l", directory / "below"], check=True)


async def test_a_mount_below_a_source_is_one_file_system_for_all_containers(
    shim_pod: Pod, nested: Path, started: list[Process]
) -> None:
    listens = await shim_pod.start_container(
        *("meet", "listen", "/data/below/socket"), mounts=[bind(nested, "/data", "rbind", "rw")]
    )
    started.append(await until_ready(listens))
    for option in ("rw", "ro"):
        mounts = [bind(nested, "/data", "rbind", option)]
        finished = await shim_pod.run("ls", "-A", "/data/below", mounts=mounts)
        assert finished.text == "socket\n"
    finished = await shim_pod.run("meet", "connect", "/data/below/socket", mounts=mounts)
    assert finished.text == ""
    assert await line_of(listens) == "hello\n"


@pytest.mark.parametrize(
    ("options", "written"),
    [
        (["rbind", "rw"], [0, 0]),
        (["rbind", "ro"], [1, 0]),
        (["rbind", "rro"], [1, 1]),
        (["bind", "ro"], [1, 1]),
    ],
)
async def test_what_is_mounted_below_is_read_only_where_that_is_asked_for(
    shim_pod: Pod, nested: Path, options: list[str], written: list[int]
) -> None:
    """As with runc: "ro" is of the source's own mount, "rro" of those below it too."""
    script = "touch /data/top 2>/dev/null; echo $?; touch /data/below/in 2>/dev/null; echo $?"
    finished = await shim_pod.run("sh", "-c", script, mounts=[bind(nested, "/data", *options)])
    assert [int(line) for line in finished.text.split()] == written


async def test_it_is_so_whichever_container_comes_first(shim_pod: Pod, nested: Path) -> None:
    script = "touch /data/below/in 2>/dev/null; echo $?"
    for option, written in (("rro", "1\n"), ("ro", "0\n"), ("rro", "1\n"), ("rw", "0\n"), ("rro", "1\n")):
        finished = await shim_pod.run("sh", "-c", script, mounts=[bind(nested, "/data", "rbind", option)])
        assert finished.text == written


async def test_a_link_in_the_place_of_a_directory_of_a_volume_leads_nowhere(
    shim_pod: Pod, directory: Path, started: list[Process]
) -> None:
    """A container that owns a volume does not decide what another gets."""
    owner = await shim_pod.start_container(
        *("sh", "-c", "rmdir /data/below; ln -s /etc /data/below; echo done; sleep 1000"),
        mounts=[bind(directory, "/data", "rw")],
    )
    started.append(owner)
    assert await line_of(owner) == "done\n"
    with pytest.raises(RpcError, match="a symbolic link"):
        await shim_pod.run("ls", "/part", mounts=[bind(directory / "below", "/part", "rw")])


async def test_a_source_that_was_made_anew_is_another(
    shim_pod: Pod, directory: Path, started: list[Process]
) -> None:
    mounts = [bind(directory, "/data", "rw")]
    old = await shim_pod.start_container("sh", "-c", "ls -d /data/b*; sleep 1000", mounts=mounts)
    started.append(old)
    assert await line_of(old) == "/data/below\n"
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "newer").touch()
    assert (await shim_pod.run("ls", "/data", mounts=mounts)).text == "newer\n"


async def test_a_container_sees_what_was_mounted_for_it_alone(shim_pod: Pod, directory: Path) -> None:
    (directory / "below" / "secret").write_text("secret\n")
    mounts = [bind(directory / "page", "/page", "ro")]
    script = (
        "grep -c virtiofs /proc/mounts; find / -xdev -name secret; cat /page/../secret /page/below/secret"
    )
    finished = await shim_pod.run("sh", "-c", script, mounts=mounts)
    assert finished.stdout == b"2\n"


# -- what has its other end on the host, see docs/limits.md --------------------------------------------------


@pytest.fixture
def listening(directory: Path) -> Iterator[Path]:
    """A Unix socket in the directory on which a process of the host listens, and a FIFO beside it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen()
        os.mkfifo(directory / "fifo")
        yield directory


@pytest.mark.parametrize(("name", "kind"), [("socket", "a Unix socket"), ("fifo", "a FIFO")])
async def test_a_socket_or_fifo_of_the_host_is_refused_as_a_mount(
    shim_pod: Pod, listening: Path, name: str, kind: str
) -> None:
    with pytest.raises(RpcError, match=f"/{name} is {kind} of the host") as caught:
        await shim_pod.run("true", mounts=[bind(listening / name, "/end", "rw")])
    assert caught.value.code is Code.FAILED_PRECONDITION


async def test_nobody_answers_at_a_socket_of_the_host_in_a_volume(shim_pod: Pod, listening: Path) -> None:
    finished = await shim_pod.run("meet", "connect", "/data/socket", mounts=[bind(listening, "/data", "rw")])
    assert (finished.status, finished.stderr) == (1, b"connect: Connection refused\n")


async def test_inotify_does_not_tell_of_what_the_host_makes(
    shim_pod: Pod, directory: Path, started: list[Process]
) -> None:
    mounts = [bind(directory, "/data", "rw")]
    watches = await shim_pod.start_container("meet", "watch", "/data", mounts=mounts)
    started.append(await until_ready(watches))
    (directory / "of-the-host").touch()
    await shim_pod.run("touch", "/data/of-the-guest", mounts=mounts)
    assert await line_of(watches) == "of-the-guest\n"


async def test_no_file_without_a_name_is_made(shim_pod: Pod, directory: Path) -> None:
    finished = await shim_pod.run("meet", "tmpfile", "/data", mounts=[bind(directory, "/data", "rw")])
    assert finished.text == "Operation not supported\n"


# -- after a container -------------------------------------------------------------------------------------


def held(pod: Pod) -> set[str]:
    """The files that the pod's virtiofsd holds open, but for those of its own work."""
    found = set()
    for pid in pod.pids("virtiofsd"):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found.add(f"{entry.name} {os.readlink(entry)}")
            except FileNotFoundError:
                pass
    return {entry for entry in found if " /" in entry}


async def test_nothing_of_a_removed_container_is_held(shim_pod: Pod, directory: Path) -> None:
    file = directory.parent / f"{directory.name}-file"
    script = "find / -xdev -type f >/dev/null; echo x >/deleted; ls -R /data >/dev/null; cat /etc/file"

    async def run() -> None:
        file.write_text("one\n")
        mounts = [bind(directory, "/data", "rw"), bind(file, "/etc/file", "ro")]
        assert (await shim_pod.run("sh", "-c", script, mounts=mounts)).text == "one\n"

    await run()
    before = held(shim_pod)
    for _ in range(5):
        await run()
    for _ in range(600):  # what the guest says to its file server needs no answer
        if len(held(shim_pod)) <= len(before):
            break
        await anyio.sleep(0.05)
    assert len(held(shim_pod)) <= len(before)
    assert not [name for name in held(shim_pod) if str(directory) in name or "snapshots" in name]


async def test_a_volume_outlives_one_of_its_containers(
    shim_pod: Pod, directory: Path, started: list[Process]
) -> None:
    mounts = [bind(directory, "/data", "rw")]
    script = "exec 3>/data/file; echo ready; read line; echo kept >&3; cat /data/file; sleep 1000"
    stays = await shim_pod.start_container("sh", "-c", script, mounts=mounts, stdin=True)
    started.append(await until_ready(stays))
    await shim_pod.run("ls", "/data", mounts=mounts)
    assert stays.streams.stdin is not None
    await stays.streams.stdin.write(b"go\n")
    assert await line_of(stays) == "kept\n"
