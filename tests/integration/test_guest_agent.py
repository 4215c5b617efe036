"""The guest agent with the host's crun and the host's own client, in namespaces instead of a machine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypedDict

import pytest
from google.protobuf.empty_pb2 import Empty

from kata_agent import oci
from kata_agent.client import AGENT, AgentClient
from kata_agent.constants import FEATURE_STREAM_IO, STREAM_PORT
from kata_agent.protos import agent_pb2 as pb
from kata_agent.protos import csi_pb2, health_pb2, types_pb2
from kata_agent.transports import SerialTransport
from kata_agent.ttrpc.blocking import MAX_REQUESTS
from kata_agent.ttrpc.status import Code, RpcError

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("crun"), reason="needs crun"),
    pytest.mark.skipif(not Path("/bin/busybox").exists(), reason="needs busybox-static"),
]

ROOTFS = "/run/kata-containers/shared/containers/image/rootfs"
DEADLINE = 60  # seconds; a test that hangs in its own loop could not be cleaned up after
SERVER = Path(__file__).parents[1] / "support" / "local_guest.py"
APPLETS = ("sh", "cat", "sleep", "echo", "true", "id", "head", "dd", "stty", "hostname", "sha1sum", "ls")


class Ports(TypedDict):
    """The fields of a request that name a process's streams; 0 for none."""

    stdin_port: int
    stdout_port: int
    stderr_port: int


class Guest:
    """A guest with a sandbox in it, and a root filesystem for containers."""

    def __init__(self, agent: AgentClient, transport: SerialTransport) -> None:
        self.agent = agent
        self.transport = transport
        self._count = 0

    async def prepare(self) -> None:
        """Create the sandbox, and copy busybox in."""
        await self.agent.create_sandbox(pb.CreateSandboxRequest(hostname="box", sandbox_id="sandbox-1"))
        data = Path("/bin/busybox").read_bytes()
        size = 1 << 20
        for offset in range(0, len(data), size):
            await self.copy("bin/busybox", data[offset : offset + size], offset=offset, size=len(data))
        for name in APPLETS:
            await self.copy(f"bin/{name}", b"busybox", mode=stat.S_IFLNK)
        for name in ("proc", "dev", "sys", "tmp"):
            await self.copy(name, b"", mode=stat.S_IFDIR | 0o755)

    async def copy(
        self, path: str, data: bytes, *, mode: int = stat.S_IFREG | 0o755, offset: int = 0, size: int = -1
    ) -> None:
        """Put a piece of a file into the root filesystem."""
        size = len(data) if size < 0 else size
        await self.agent.copy_file(
            pb.CopyFileRequest(
                path=f"{ROOTFS}/{path}",
                data=data,
                offset=offset,
                file_size=size,
                file_mode=mode,
                dir_mode=0o755,
            )
        )

    def new_id(self) -> str:
        self._count += 1
        return f"container-{self._count}"

    async def streams(self, *wanted: bool) -> tuple[list[socket.socket | None], Ports]:
        """Streams for stdin, stdout and stderr as wanted, and the fields of the request that name them."""
        socks: list[socket.socket | None] = []
        ports = []
        for want in wanted:
            sock, number = await self.transport.connect(STREAM_PORT) if want else (None, 0)
            socks.append(sock)
            ports.append(number)
        stdin, stdout, stderr = ports
        return socks, Ports(stdin_port=stdin, stdout_port=stdout, stderr_port=stderr)

    @contextlib.asynccontextmanager
    async def container(self, *args: str, **changes: Any) -> AsyncIterator[str]:
        """A container that was set up and whose output is fetched with calls; removed in the end."""
        cid = self.new_id()
        await self.agent.create_container(
            pb.CreateContainerRequest(container_id=cid, OCI=spec(*args, **changes))
        )
        try:
            yield cid
        finally:
            await self.agent.remove_container(pb.RemoveContainerRequest(container_id=cid))

    async def run(self, *args: str, stdin: bytes = b"", **changes: Any) -> tuple[int, bytes, bytes]:
        """Run a container to its end with raw streams; returns its exit status, stdout and stderr."""
        cid = self.new_id()
        socks, ports = await self.streams(True, True, not changes.get("terminal", False))
        request = pb.CreateContainerRequest(container_id=cid, OCI=spec(*args, **changes), **ports)
        try:
            await self.agent.create_container(request)
            await self.agent.start_container(pb.StartContainerRequest(container_id=cid))
            async with asyncio.TaskGroup() as group:
                sent = group.create_task(send(socks[0], stdin))
                out = group.create_task(receive(socks[1]))
                err = group.create_task(receive(socks[2]))
                status = group.create_task(self.wait(cid))
            del sent
            await self.agent.remove_container(pb.RemoveContainerRequest(container_id=cid))
            return status.result(), out.result(), err.result()
        finally:
            for sock in socks:
                if sock is not None:
                    sock.close()

    async def execute(
        self, cid: str, exec_id: str, *args: str, stdin: bytes = b"", terminal: bool = False
    ) -> tuple[int, bytes, bytes]:
        """Run a process in a container to its end with raw streams."""
        socks, ports = await self.streams(True, True, not terminal)
        process = oci.process_to_proto(process_of(args, terminal=terminal))
        try:
            await self.agent.exec_process(
                pb.ExecProcessRequest(container_id=cid, exec_id=exec_id, process=process, **ports)
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(send(socks[0], stdin))
                out = group.create_task(receive(socks[1]))
                err = group.create_task(receive(socks[2]))
                status = group.create_task(self.wait(cid, exec_id))
            return status.result(), out.result(), err.result()
        finally:
            for sock in socks:
                if sock is not None:
                    sock.close()

    async def start(self, cid: str) -> None:
        await self.agent.start_container(pb.StartContainerRequest(container_id=cid))

    async def wait(self, cid: str, exec_id: str = "") -> int:
        request = pb.WaitProcessRequest(container_id=cid, exec_id=exec_id)
        answer = await self.agent.wait_process(request, timeout=DEADLINE)
        return answer.status

    async def kill(self, cid: str, exec_id: str, number: int) -> None:
        await self.agent.signal_process(
            pb.SignalProcessRequest(container_id=cid, exec_id=exec_id, signal=number)
        )

    async def read_all(self, cid: str, exec_id: str = "") -> bytes:
        """All of stdout, fetched with calls."""
        data = b""
        while True:
            request = pb.ReadStreamRequest(container_id=cid, exec_id=exec_id, len=32768)
            answer = await self.agent.read_stdout(request)
            if not answer.data:
                return data
            data += answer.data


async def send(sock: socket.socket | None, data: bytes) -> None:
    assert sock is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        await asyncio.get_running_loop().sock_sendall(sock, data)
        sock.shutdown(socket.SHUT_WR)


async def receive(sock: socket.socket | None) -> bytes:
    if sock is None:
        return b""
    pieces = []
    async with asyncio.timeout(DEADLINE):
        while piece := await asyncio.get_running_loop().sock_recv(sock, 1 << 18):
            pieces.append(piece)
    return b"".join(pieces)


async def receive_until(sock: socket.socket, wanted: bytes) -> None:
    seen = b""
    try:
        async with asyncio.timeout(DEADLINE):
            while wanted not in seen:
                piece = await asyncio.get_running_loop().sock_recv(sock, 1)
                assert piece, f"the stream ended after {seen!r}"
                seen += piece
    except TimeoutError:
        pytest.fail(f"instead of {wanted!r} came {seen!r}")


async def type_in(sock: socket.socket, text: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, text)


def process_of(args: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    process: dict[str, Any] = {
        "args": list(args),
        "cwd": "/",
        "env": ["PATH=/bin", "TERM=linux"],
        "user": {"uid": 0, "gid": 0},
        "capabilities": {kind: ["CAP_KILL", "CAP_SETUID"] for kind in ("bounding", "effective", "permitted")},
    }
    process.update(changes)
    return process


def spec(*args: str, linux: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A spec as the host sends it: no network namespace, and the pid namespace left to the agent."""
    whole = {
        "ociVersion": "1.0.2",
        "process": process_of(args, **changes),
        "root": {"path": ROOTFS},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["ptmxmode=0666"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("mount", "ipc", "uts")], **(linux or {})},
    }
    return oci.spec_to_proto(whole)


def start_server(log: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The guest's process, and the host's end of its serial port."""
    ours, theirs = socket.socketpair()
    with theirs, log.open("wb") as output:
        command = [sys.executable, str(SERVER), str(theirs.fileno())]
        server = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdout=output,
            stderr=output,
            start_new_session=True,  # a signal that ends the tests' process group must not stop its clean-up
        )
    return server, ours


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[Guest]:
    log = tmp_path / "guest.log"
    server, port = start_server(log)
    transport = SerialTransport(port)
    try:
        agent = await AgentClient.connect(transport, deadline=20)
        found = Guest(agent, transport)
        await found.prepare()
        yield found
        await agent.aclose()
    finally:
        await transport.aclose()
        assert await asyncio.to_thread(server.wait, 20) == 0, log.read_text()


@pytest.mark.parametrize("code", [0, 1, 42])
async def test_exit_code(guest: Guest, code: int) -> None:
    assert await guest.run("sh", "-c", f"exit {code}") == (code, b"", b"")


async def test_output_of_both_kinds_and_hostname(guest: Guest) -> None:
    status, out, err = await guest.run("sh", "-c", "hostname; echo wrong >&2; exit 3")
    assert (status, out, err) == (3, b"box\n", b"wrong\n")


async def test_stdin_reaches_the_process_exactly(guest: Guest) -> None:
    data = os.urandom(10 << 20)
    status, out, _ = await guest.run("sha1sum", stdin=data)
    assert (status, out.split()[0].decode()) == (0, hashlib.sha1(data).hexdigest())


async def test_large_binary_output_arrives_exactly(guest: Guest) -> None:
    data = os.urandom(10 << 20)
    status, out, err = await guest.run("cat", stdin=data)
    assert (status, err) == (0, b"")
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


async def test_process_outlives_a_host_that_stops_listening(guest: Guest) -> None:
    cid = guest.new_id()
    socks, ports = await guest.streams(False, True, False)
    script = spec("sh", "-c", "dd if=/dev/zero bs=64k count=64 2>/dev/null; exit 7")
    await guest.agent.create_container(pb.CreateContainerRequest(container_id=cid, OCI=script, **ports))
    assert socks[1] is not None
    socks[1].close()
    await guest.start(cid)
    assert await guest.wait(cid) == 7


async def test_stalled_output_of_one_does_not_stop_another_and_can_be_killed(guest: Guest) -> None:
    cid = guest.new_id()
    socks, ports = await guest.streams(False, True, False)
    await guest.agent.create_container(
        pb.CreateContainerRequest(container_id=cid, OCI=spec("cat", "/dev/zero"), **ports)
    )
    await guest.start(cid)
    assert await guest.run("echo", "other") == (0, b"other\n", b"")
    await guest.kill(cid, "", signal.SIGKILL)
    assert await guest.wait(cid) == 137
    assert socks[1] is not None
    socks[1].close()
    await guest.agent.remove_container(pb.RemoveContainerRequest(container_id=cid))


async def test_every_waiter_gets_the_status_and_late_ones_too(guest: Guest) -> None:
    async with guest.container("sleep", "1000") as cid:
        await guest.start(cid)
        waiters = [asyncio.create_task(guest.wait(cid)) for _ in range(3)]
        await asyncio.sleep(0)
        await guest.kill(cid, cid, signal.SIGKILL)
        assert [await waiter for waiter in waiters] == [137] * 3
        assert await guest.wait(cid) == 137
        await guest.kill(cid, cid, signal.SIGTERM)  # of one that has ended: not an error


async def test_waits_beyond_the_requests_at_once_leave_room_for_the_rest(guest: Guest) -> None:
    async with guest.container("sleep", "1000") as cid:
        await guest.start(cid)
        waiters = [asyncio.create_task(guest.wait(cid)) for _ in range(MAX_REQUESTS + 44)]
        await asyncio.sleep(0)
        health = await guest.agent.check(health_pb2.CheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert await guest.execute(cid, "one", "echo", "room") == (0, b"room\n", b"")
        await guest.kill(cid, cid, signal.SIGKILL)
        assert set(await asyncio.gather(*waiters)) == {137}


async def test_handled_signal(guest: Guest) -> None:
    script = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done"
    async with guest.container("sh", "-c", script) as cid:
        await guest.start(cid)
        request = pb.ReadStreamRequest(container_id=cid, len=100)
        assert (await guest.agent.read_stdout(request)).data == b"ready\n"
        await guest.kill(cid, cid, signal.SIGUSR1)
        assert await guest.wait(cid) == 9


@pytest.mark.parametrize("everyone", [False, True])
async def test_a_signal_right_after_the_start_is_not_lost(guest: Guest, everyone: bool) -> None:
    for _ in range(5):
        async with guest.container("sh", "-c", "trap 'exit 143' TERM; while :; do sleep 0.01; done") as cid:
            await guest.start(cid)
            await guest.kill(cid, "" if everyone else cid, signal.SIGTERM)
            assert await guest.wait(cid) == 143


async def test_a_signal_waits_for_the_handler_of_a_program_that_begins(guest: Guest) -> None:
    script = "read go; trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.01; done"
    async with guest.container("sh", "-c", script) as cid:
        await guest.start(cid)
        await guest.kill(cid, cid, signal.SIGTERM)
        await guest.kill(cid, cid, signal.SIGTERM)
        await guest.agent.write_stdin(pb.WriteStreamRequest(container_id=cid, data=b"go\n"))
        assert await guest.wait(cid) == 9
        assert b"caught\n" in await guest.read_all(cid)


async def test_streams_with_calls(guest: Guest) -> None:
    async with guest.container("cat") as cid:
        await guest.start(cid)
        data = os.urandom(300_000)
        read = asyncio.create_task(guest.read_all(cid))
        written = await guest.agent.write_stdin(pb.WriteStreamRequest(container_id=cid, data=data))
        assert written.len == len(data)
        await guest.agent.write_stdin(pb.WriteStreamRequest(container_id=cid))
        assert await read == data
        assert await guest.wait(cid) == 0
        with pytest.raises(RpcError) as caught:
            await guest.agent.write_stdin(pb.WriteStreamRequest(container_id=cid, data=b"late"))
        assert caught.value.code == Code.FAILED_PRECONDITION


async def test_exec(guest: Guest) -> None:
    async with guest.container("sleep", "1000") as cid:
        await guest.start(cid)
        assert await guest.execute(cid, "one", "sh", "-c", "cat; exit 42", stdin=b"hello") == (
            42,
            b"hello",
            b"",
        )
        assert await guest.execute(cid, "one", "sh", "-c", "kill -9 $$") == (
            137,
            b"",
            b"",
        )  # the id is free again
        many = [guest.execute(cid, f"many-{n}", "sh", "-c", f"echo {n}; exit {n}") for n in range(10)]
        assert await asyncio.gather(*many) == [(n, f"{n}\n".encode(), b"") for n in range(10)]


async def test_exec_of_a_missing_executable(guest: Guest) -> None:
    async with guest.container("sleep", "1000") as cid:
        await guest.start(cid)
        with pytest.raises(RpcError, match=r"exec \"nothing\": executable file not found in \$PATH"):
            await guest.execute(cid, "one", "nothing")
        assert await guest.execute(cid, "one", "true") == (0, b"", b"")


async def test_missing_executable(guest: Guest) -> None:
    with pytest.raises(RpcError, match=r"exec \"nothing\": executable file not found in \$PATH"):
        await guest.run("nothing")
    assert await guest.run("true") == (0, b"", b"")


async def test_words_for_what_cannot_be_executed(guest: Guest) -> None:
    async with guest.container("sleep", "1000") as cid:
        await guest.start(cid)
        for program, words in (("/tmp", "permission denied"), ("", r"executable file not found in \$PATH")):
            with pytest.raises(RpcError, match=words):
                await guest.execute(cid, "one", program)
            with pytest.raises(RpcError, match=words):
                await guest.run(program)


async def test_missing_rootfs(guest: Guest) -> None:
    request = pb.CreateContainerRequest(container_id="absent", OCI=spec("true"))
    request.OCI.Root.Path = "/run/kata-containers/shared/containers/absent"
    with pytest.raises(RpcError, match="rootfs /run/kata-containers/shared/containers/absent does not exist"):
        await guest.agent.create_container(request)


async def test_terminal(guest: Guest) -> None:
    cid = guest.new_id()
    socks, ports = await guest.streams(True, True, False)
    await guest.agent.create_container(
        pb.CreateContainerRequest(container_id=cid, OCI=spec("sh", terminal=True), **ports)
    )
    await guest.agent.tty_win_resize(pb.TtyWinResizeRequest(container_id=cid, row=33, column=99))
    await guest.start(cid)
    stdin, stdout, _ = socks
    assert stdin is not None
    assert stdout is not None
    with stdin, stdout:
        await receive_until(stdout, b"# ")
        await type_in(stdin, b"stty size; cat\n")
        await receive_until(stdout, b"33 99\r\n")
        await type_in(stdin, b"typed\n")
        await receive_until(stdout, b"typed\r\ntyped\r\n")  # cat runs, and the terminal is its own
        await type_in(stdin, b"\x03")
        await receive_until(stdout, b"^C")
        await receive_until(stdout, b"# ")
        await type_in(stdin, b"exit 5\n")
        await receive(stdout)
    assert await guest.wait(cid) == 5
    with pytest.raises(RpcError) as caught:
        await guest.agent.tty_win_resize(pb.TtyWinResizeRequest(container_id=cid, row=1, column=1))
    assert caught.value.code == Code.FAILED_PRECONDITION


async def test_exec_with_a_terminal(guest: Guest) -> None:
    async with guest.container("sleep", "1000") as cid:
        await guest.start(cid)
        result = await guest.execute(cid, "one", "sh", "-c", "test -t 0 && echo yes; exit 4", terminal=True)
        assert result == (4, b"yes\r\n", b"")


async def test_user_umask_and_reopened_stdout(guest: Guest) -> None:
    user = {"uid": 1000, "gid": 100, "additionalGids": [7], "umask": 0o27}
    script = "id -u; id -G; umask; echo again > /dev/stdout"
    status, out, err = await guest.run("sh", "-c", script, user=user)
    assert (status, out, err) == (0, b"1000\n100 7\n0027\nagain\n", b"")


async def test_ids_and_states(guest: Guest) -> None:
    async def code_of(call: Any) -> Code:
        with pytest.raises(RpcError) as caught:
            await call
        return caught.value.code

    agent = guest.agent
    assert await code_of(agent.create_sandbox(pb.CreateSandboxRequest())) == Code.ALREADY_EXISTS
    async with guest.container("sleep", "1000") as cid:
        again = pb.CreateContainerRequest(container_id=cid, OCI=spec("true"))
        assert await code_of(agent.create_container(again)) == Code.ALREADY_EXISTS
        assert await code_of(guest.wait(cid, "nobody")) == Code.NOT_FOUND
        assert await code_of(guest.kill(cid, "nobody", 9)) == Code.NOT_FOUND
        assert await code_of(guest.kill(cid, "", 65)) == Code.INVALID_ARGUMENT
        stats = await agent.stats_container(pb.StatsContainerRequest(container_id=cid))
        assert "lo" in {entry.name for entry in stats.network_stats}
    assert await code_of(guest.wait(cid)) == Code.NOT_FOUND
    assert (
        await code_of(agent.remove_container(pb.RemoveContainerRequest(container_id=cid))) == Code.NOT_FOUND
    )
    bad = pb.CreateContainerRequest(container_id="../up", OCI=spec("true"))
    assert await code_of(agent.create_container(bad)) == Code.INVALID_ARGUMENT
    unserved = agent.client.call(AGENT, "SetPolicy", pb.SetPolicyRequest(), Empty)
    assert await code_of(unserved) == Code.UNIMPLEMENTED


async def test_storages(guest: Guest) -> None:
    base = "/run/kata-containers/sandbox"
    cid = guest.new_id()
    request = pb.CreateContainerRequest(
        container_id=cid, OCI=spec("sh", "-c", "cat /proc/mounts; ls -ld /data")
    )
    request.storages.add(
        driver="ephemeral", source="shm", fstype="tmpfs", options=["size=1m"], mount_point=f"{base}/shm"
    )
    request.storages.add(driver="local", options=["mode=0751"], mount_point=f"{base}/data")
    for source, target in (("shm", "/dev/shm"), ("data", "/data")):
        request.OCI.Mounts.add(destination=target, type="bind", source=f"{base}/{source}", options=["rbind"])
    await guest.agent.create_container(request)
    await guest.start(cid)
    out = await guest.read_all(cid)
    (shm,) = (line for line in out.splitlines() if b" /dev/shm " in line)
    assert b"size=1024k" in shm
    assert b"drwxr-x--x" in out
    await guest.agent.remove_container(pb.RemoveContainerRequest(container_id=cid))
    request.storages.add(driver="punch-cards", mount_point=f"{base}/cards")
    with pytest.raises(RpcError, match="'punch-cards' is not known") as caught:
        await guest.agent.create_container(request)
    assert caught.value.code == Code.INVALID_ARGUMENT


async def test_mounts_whose_destinations_lead_through_links_to_nothing(guest: Guest) -> None:
    await guest.copy("data", b"/var/lib/data", mode=stat.S_IFLNK)
    await guest.copy("out", b"../../../../../..", mode=stat.S_IFLNK)
    cid = guest.new_id()
    request = pb.CreateContainerRequest(container_id=cid, OCI=spec("cat", "/proc/mounts"))
    for destination in ("/data", "/data/inner", "/out/up"):
        request.OCI.Mounts.add(destination=destination, type="tmpfs", source="made")
    await guest.agent.create_container(request)
    await guest.start(cid)
    out = (await guest.read_all(cid)).decode()
    found = [line.split()[1] for line in out.splitlines() if line.startswith("made ")]
    assert found == ["/var/lib/data", "/var/lib/data/inner", "/up"]
    await guest.agent.remove_container(pb.RemoveContainerRequest(container_id=cid))


async def test_the_sandbox_s_pid_namespace_is_held_and_ends_with_its_first_process(guest: Guest) -> None:
    async def create(*args: str) -> str:
        cid = guest.new_id()
        request = pb.CreateContainerRequest(container_id=cid, OCI=spec(*args), sandbox_pidns=True)
        await guest.agent.create_container(request)
        await guest.start(cid)
        return cid

    async def remove(cid: str) -> None:
        await guest.agent.remove_container(pb.RemoveContainerRequest(container_id=cid))

    async def processes(cid: str) -> bytes:
        status, output, _ = await guest.execute(cid, "look", "sh", "-c", "cat /proc/[0-9]*/cmdline")
        assert status == 0
        return output

    first = await create("sleep", "1001")
    second = await create("sleep", "1002")
    assert b"1001" in await processes(second)
    await guest.kill(first, "", signal.SIGKILL)
    await guest.wait(first)
    await guest.wait(second)  # all that is in it ends with it
    with pytest.raises(RpcError, match="cannot fork"):  # and not into what has the pid by now
        await create("sleep", "1003")
    await remove(first)
    third = await create("sleep", "1004")
    assert b"1004" in await processes(third)
    for cid in (second, third):
        await remove(cid)


async def test_requests_of_clients_in_rust(guest: Guest) -> None:
    kinds = [{"type": kind} for kind in ("mnt", "net", "ipc", "uts")]
    assert await guest.run("echo", "here", linux={"namespaces": kinds}) == (0, b"here\n", b"")
    stats = await guest.agent.client.call(
        AGENT, "GetVolumeStats", pb.VolumeStatsRequest(volume_guest_path="/run"), csi_pb2.VolumeStatsResponse
    )
    assert stats.usage[0].total > 0
    metrics = await guest.agent.client.call(AGENT, "GetMetrics", pb.GetMetricsRequest(), pb.Metrics)
    assert "kata_guest_meminfo" in metrics.metrics


async def test_details_and_health(guest: Guest) -> None:
    details = await guest.agent.get_guest_details(pb.GuestDetailsRequest(mem_block_size=True))
    assert FEATURE_STREAM_IO in details.agent_details.extra_features
    assert "virtio-fs" in details.agent_details.storage_handlers


async def test_network(guest: Guest) -> None:
    """On the loopback of the guest's own network namespace, which has an address of zeros for hardware."""
    agent = guest.agent
    interface = types_pb2.Interface(
        name="lo",
        hwAddr="00:00:00:00:00:00",
        mtu=1400,
        IPAddresses=[
            types_pb2.IPAddress(address="10.1.2.3", mask="24"),
            types_pb2.IPAddress(family=types_pb2.v6, address="fd00::3", mask="64"),
        ],
    )
    await agent.update_interface(pb.UpdateInterfaceRequest(interface=interface))
    (found,) = (await agent.list_interfaces(pb.ListInterfacesRequest())).Interfaces
    assert (found.name, found.mtu) == ("lo", 1400)
    assert {f"{entry.address}/{entry.mask}" for entry in found.IPAddresses} >= {"10.1.2.3/24", "fd00::3/64"}
    routes = pb.Routes(
        Routes=[
            types_pb2.Route(dest="", gateway="10.9.0.1", device="lo"),
            types_pb2.Route(dest="10.9.0.0/16", device="lo", scope=253, mtu=1300),
        ]
    )
    listed = await agent.update_routes(pb.UpdateRoutesRequest(routes=routes))
    assert {(route.dest, route.gateway, route.device, route.mtu) for route in listed.Routes} >= {
        ("", "10.9.0.1", "lo", 0),
        ("10.9.0.0/16", "", "lo", 1300),
    }
    neighbor = types_pb2.ARPNeighbor(device="eth7", toIPAddress=types_pb2.IPAddress(address="10.1.2.9"))
    with pytest.raises(RpcError, match="no network interface 'eth7'"):
        await agent.add_arp_neighbors(
            pb.AddARPNeighborsRequest(neighbors=pb.ARPNeighbors(ARPNeighbors=[neighbor]))
        )
