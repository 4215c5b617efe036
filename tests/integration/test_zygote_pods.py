"""Shims from the node's zygote: each is what one is that the launcher starts, and has nothing of another."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from confinement_reports import KATA_CTL, report_of
from kata_runtime.ctl import confinement_page
from kata_runtime.identity import SandboxIdentity
from kata_runtime.shim import zygote_call
from kata_runtime.shim.setup import FIELDS
from oci_bundle import make_process, make_spec
from patience import PATIENCE
from shim_harness import Lab, Shim
from zygote_process import Zygote, await_file, patched, state_patch

pytestmark = [pytest.mark.integration, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

ONLY_THE_ZYGOTES = (
    "kata_runtime.zygote.server",  # which no launcher imports
    "kata_runtime.zygote.heap._fillers",  # constant objects, which nothing reads
    "sys.modules",  # and its name there
    "kata_runtime.syscalls._shown",  # the command line in /proc
    "sys.path_importer_cache",  # and its directory
    "re._cache",  # patterns, of which the rehearsal has left some
    "threading._",  # Python 3.11 leaves the native_id of the thread that forked, which nothing here reads
    "logging._startTime",  # the zygote's: it is used for durations that no line of the log has
    "tokenize.",  # patterns and a name that are made from sets, whose order is the hash seed's
    "pydantic._internal._known_annotated_metadata.c",
)
"""What modules of a shim hold differently when it is the zygote's fork."""

SPEC = make_spec(make_process("sleep", "1000"))


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    one = Zygote()
    yield one
    one.close()


@pytest.fixture
def telling() -> Iterator[Zygote]:
    """A zygote whose shims write their state, instead of serving."""
    one = Zygote(state_patch())
    yield one
    one.close()


@pytest.fixture
async def quiet(lab: Lab) -> AsyncIterator[Lab]:
    """The lab; nothing of a test is left in it."""
    before = lab.leftovers()
    yield lab
    await lab.close()
    assert before.settle() == []


def origin_of(shim: Shim) -> str:
    """What a shim that was started with -debug has logged of its start."""
    lines = [line for line in shim.log.splitlines() if "the shim was" in line]
    return lines[0].partition('msg="the shim was ')[2].partition('"')[0]


async def started(lab: Lab, **environment: str) -> Shim:
    """A shim that has answered a request."""
    name = lab.new_id("z")
    lab.identity(name)
    bundle = lab.bundle(name, SPEC)
    answer = await lab.launch("start", bundle, name, "-debug", environment=environment)
    assert (answer.returncode, answer.stderr) == (0, b""), answer
    shim = await Shim.connect(lab, name, bundle, answer.stdout.decode())
    await shim.sandbox("PingSandbox")
    return shim


async def state_of(lab: Lab, number: int, environment: dict[str, str], launcher: Path) -> dict[str, Any]:
    """What a shim says of itself that writes its state; see `shim_state`."""
    name = lab.new_id("state")
    lab.identity(name)
    bundle = lab.bundle(name, SPEC)
    marked = {"POD": f"of-one-pod-only-{number}-", "TZ": "UTC"}
    answer = await lab.launch("start", bundle, name, environment=marked | environment, launcher=launcher)
    assert (answer.returncode, answer.stderr) == (0, b""), answer
    state: dict[str, Any] = json.loads(await_file(bundle / "state.json"))
    # What a test names anew each time.
    text = json.dumps(state).replace(name, "NAME").replace(f"of-one-pod-only-{number}-", "MARK")
    return {**json.loads(text), "marks": state["marks"]}


async def test_the_shim_is_the_zygotes_fork(quiet: Lab, zygote: Zygote) -> None:
    shim = await started(quiet, **zygote.environment)
    assert origin_of(shim) == f"forked by the zygote, process {zygote.process.pid}"
    pid = int((shim.bundle / "shim.pid").read_text())
    assert Path(f"/proc/{pid}/comm").read_text() == "kata-shim\n"
    assert zygote.report()["forks"] == 1


async def test_a_pod_of_the_zygotes_outlives_it(quiet: Lab, zygote: Zygote) -> None:
    shim = await started(quiet, **zygote.environment)
    zygote.kill()
    process = await shim.create(container_id=shim.id)
    await process.start()
    await process.kill()
    assert await process.wait() == 137
    await process.delete()
    later = await started(quiet, **zygote.environment)
    # The socket is systemd's, and nobody answers there: the launcher does not wait for ever.
    assert origin_of(later).startswith(f"started without the zygote: {zygote.socket}: ")


async def test_state_of_two_pods_and_of_one_without_a_zygote(lab: Lab, telling: Zygote) -> None:
    launcher = lab.directory / "containerd-shim-kata-v2-telling"
    launcher.write_text(patched(lab.launcher.read_text(), state_patch()))
    launcher.chmod(0o755)
    cold = await state_of(lab, 1, {"KATA_ZYGOTE": "off"}, launcher)
    first = await state_of(lab, 2, {"KATA_ZYGOTE": str(telling.socket)}, launcher)
    second = await state_of(lab, 3, {"KATA_ZYGOTE": str(telling.socket)}, launcher)
    assert cold["origin"] == "started without the zygote: KATA_ZYGOTE is off"
    assert first["origin"] == second["origin"] == f"forked by the zygote, process {telling.process.pid}"
    assert [state["marks"] for state in (cold, first, second)] == [
        [f"of-one-pod-only-{number}-"] for number in (1, 2, 3)
    ]
    assert len({state["random"] for state in (cold, first, second)}) == 3
    for state in (cold, first, second):
        state["process"]["environment"].pop("KATA_ZYGOTE")
        # Python puts LC_CTYPE into its own environment (PEP 538), which the zygote's shim is given whole.
        own = ("KATA_ZYGOTE=", "LC_CTYPE=")
        state["process"]["environ"] = [w for w in state["process"]["environ"] if not w.startswith(own)]
    assert differences(first["process"], second["process"]) == {}
    assert differences(first["process"], cold["process"]) == {}
    assert differences(first["globals"], second["globals"]) == {}
    found = differences(first["globals"], cold["globals"])
    assert {name for name in found if not name.startswith(ONLY_THE_ZYGOTES)} == set()


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two processes have differently."""
    names = one.keys() | other.keys()
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


async def test_confinement_is_the_same(lab: Lab, zygote: Zygote) -> None:
    """What the kernel says of each process of a pod and of its filters, and what a guest gains by them."""
    reports = []
    for environment in ({"KATA_ZYGOTE": "off"}, zygote.environment):
        shim = await started(lab, **environment)
        process = await shim.create(container_id=shim.id)
        await process.start()
        report = report_of(shim.id)
        assert confinement_page.differences(report) == []
        status = await anyio.run_process([KATA_CTL, "seccomp", "status", "--json", shim.id])
        reports.append(comparable({"confinement": report, "seccomp": json.loads(status.stdout)}, lab, shim))
        await process.kill()
        await process.wait()
        await process.delete()
        await shim.close()
    assert zygote.report()["forks"] == 1
    assert list(_flat(reports[0])) == list(_flat(reports[1]))


def _flat(value: Any, path: str = "") -> Iterator[str]:
    """A line for each value in a document."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            yield from _flat(item, f"{path}.{key}")
    else:
        yield f"{path}: {value}"


def comparable(report: Any, lab: Lab, shim: Shim) -> Any:
    """A report without what names the pod: ids, process ids, users, inodes."""
    text = json.dumps(without_processes(report))
    key = SandboxIdentity(lab.address, lab.namespace, shim.id).key
    for name, word in ((key, "KEY"), (key[:32], "KEY"), (shim.id, "ID")):
        text = text.replace(name, word)
    return json.loads(re.sub(r"[0-9]{4,}", "0", text))


def without_processes(value: Any) -> Any:
    """A document without process ids, how many threads of a kind there are, and the host's own mounts."""
    if isinstance(value, list):
        return [without_processes(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: without_processes(item) for key, item in value.items() if key not in ("pid", "tid")}
    if isinstance(found.get("threads"), list):
        found["threads"] = sorted({json.dumps({**one, "name": ""}) for one in found["threads"]})
    elif "threads" in found:
        del found["threads"]
    if found.get("root") == "host":
        del found["mounts"]
    return found


async def test_one_of_changed_code_is_not_used_and_begins_anew(quiet: Lab, tmp_path: Path) -> None:
    module = tmp_path / "of_the_zygote.py"
    module.write_text("VALUE = 1\n")
    load = f'importlib.util.spec_from_file_location("of_the_zygote", {str(module)!r})'
    lines = ["import importlib.util", f"spec = {load}", "module = importlib.util.module_from_spec(spec)"]
    zygote = Zygote("\n".join([*lines, "import sys", 'sys.modules["of_the_zygote"] = module']))
    try:
        assert origin_of(await started(quiet, **zygote.environment)).startswith("forked by the zygote")
        module.write_text("VALUE = 23\n")
        origin = origin_of(await started(quiet, **zygote.environment))
        assert origin == (
            f"started without the zygote: {module} is not what the zygote has loaded; it begins anew"
        )
        assert zygote.report()["forks"] == 0
        origin = origin_of(await started(quiet, **zygote.environment))
        assert origin == f"forked by the zygote, process {zygote.process.pid}"
        assert f"it begins anew: {module} has changed" in zygote.log.read_text()
    finally:
        zygote.close()


async def test_a_launcher_that_differs_starts_its_shim_itself(quiet: Lab, zygote: Zygote) -> None:
    shim = await started(quiet, MALLOC_ARENA_MAX="1", **zygote.environment)
    differs = "the launcher's environment differs in MALLOC_ARENA_MAX=1"
    assert origin_of(shim) == f"started without the zygote: {differs}"
    assert f"a launcher starts without it: {differs}" in zygote.log.read_text()


@pytest.fixture
def of_its_installation(zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process writes is as if it were of the zygote's installation."""
    name = zygote.report()["installation"]
    monkeypatch.setattr(zygote_call, "installation", lambda: name)


@pytest.mark.usefixtures("of_its_installation")
async def test_what_no_launcher_says_ends_nothing(quiet: Lab, zygote: Zygote) -> None:
    start = zygote_call.encode(zygote_call.START)
    request = zygote_call.Request(dict.fromkeys(FIELDS, "x"), [b"x"], 1, [])
    for message in (
        b"",
        b"x" * 100_000,
        start,
        start + b"\0" * 9,
        zygote_call.encode("something"),
        zygote_call.encode(zygote_call.START, request),
    ):
        answer = zygote.ask(message)
        assert answer == b"" or answer.startswith(zygote_call.NO), message[:50]
    assert origin_of(await started(quiet, **zygote.environment)).startswith("forked by the zygote")


@pytest.mark.usefixtures("of_its_installation")
async def test_a_launcher_that_goes_leaves_no_shim(quiet: Lab, zygote: Zygote) -> None:
    """Its request is complete, and it ends before it says that its child may go on."""
    name = quiet.new_id("gone")
    fields = {"namespace": quiet.namespace, "address": quiet.address, "sandbox": name}
    request = zygote_call.Request({**dict.fromkeys(FIELDS, "x"), **fields}, [b"x"], 1, [])
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
    ):
        connection.settimeout(PATIENCE)
        connection.connect(str(zygote.socket))
        directory = os.open("/", os.O_PATH)
        message = zygote_call.encode(zygote_call.START, request)
        socket.send_fds(connection, [message], [directory, listener.fileno()])
        os.close(directory)
        answer = connection.recv(100)
        assert answer.startswith(zygote_call.READY), answer
        child = os.pidfd_open(int(answer.removeprefix(zygote_call.READY)))
    try:
        await anyio.wait_readable(child)
    finally:
        os.close(child)


def test_nobody_but_root_asks(zygote: Zygote) -> None:
    zygote.socket.parent.chmod(0o755)
    zygote.socket.chmod(0o666)  # as if both were no hindrance
    ask = f"""
import socket
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect({str(zygote.socket)!r})
connection.send({zygote_call.encode(zygote_call.STOP)!r})
print(connection.recv(1000).decode())
"""
    done = subprocess.run(
        ["/usr/bin/python3", "-c", ask], capture_output=True, text=True, check=True, user=65534, group=65534
    )
    assert done.stdout == "no user 65534 may not ask for it\n"
    assert zygote.process.poll() is None
