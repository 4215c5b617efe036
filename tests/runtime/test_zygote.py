"""The zygote's parts: what a launcher writes, what was loaded, what two processes must have in common."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from import_graph import modules
from kata_runtime.ctl import zygote as ctl
from kata_runtime.ctl.main import main
from kata_runtime.ctl.shim import launcher_text, module_roots, program_text
from kata_runtime.pod import preload
from kata_runtime.shim import zygote_call
from kata_runtime.shim.setup import FIELDS
from kata_runtime.shim.zygote_call import MalformedRequestError, Request
from kata_runtime.zygote import launcher_facts, loading
from kata_runtime.zygote.launcher_facts import Launcher

OTHERS = tuple(f"{room}.{name}" for room, names in loading.ROOMS.items() for name in names)
TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)
WORD = st.binary(max_size=20).filter(lambda word: b"\0" not in word)
NAME = st.binary(min_size=1, max_size=20).filter(lambda name: not {0, ord("=")} & set(name))
SHIM = dict.fromkeys(FIELDS, "x")


class TestMessages:
    @given(
        st.fixed_dictionaries(dict.fromkeys(FIELDS, TEXT)),
        st.lists(WORD, min_size=1, max_size=5),
        st.dictionaries(NAME, WORD, max_size=5),
    )
    def test_a_request_arrives(
        self, shim: dict[str, str], command: list[bytes], environment: dict[bytes, bytes]
    ) -> None:
        pairs = [name + b"=" + value for name, value in environment.items()]
        sent = Request(shim, command, len(command), pairs)
        action, request = zygote_call.decode(zygote_call.encode(zygote_call.START, sent))
        assert action == zygote_call.START
        assert request is not None
        assert (request.shim, request.command, request.words, request.environment) == (
            shim,
            command,
            len(command),
            pairs,
        )

    @given(st.binary(max_size=300))
    def test_anything_else_is_refused(self, message: bytes) -> None:
        with pytest.raises(MalformedRequestError):
            zygote_call.decode(message)

    @given(st.data())
    def test_a_part_of_a_request_is_one_or_is_refused(self, data: st.DataObject) -> None:
        whole = zygote_call.encode(zygote_call.START, Request(SHIM, [b"a", b"b"], 1, [b"A=1", b"B=2"]))
        cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
        try:
            _, request = zygote_call.decode(cut)
        except MalformedRequestError:
            return
        assert request is None or request.command == [b"a", b"b"] or cut.count(b"\0") >= 13

    def test_another_version_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(zygote_call, "PROTOCOL", b"kata-zygote 1 0.0.1")
        message = zygote_call.encode(zygote_call.STATUS)
        monkeypatch.undo()
        with pytest.raises(MalformedRequestError, match="another version or installation"):
            zygote_call.decode(message)


class TestInstallation:
    def test_launcher_and_zygote_find_each_other(self, tmp_path: Path) -> None:
        """By texts that `shim install` and `zygote install` write, and by an interpreter of another name."""
        other = tmp_path / "python-of-another-name"
        other.symlink_to(sys.executable)
        show = "from kata_runtime.shim import zygote_call\nprint(zygote_call.socket_path())\n"
        roots = module_roots()
        texts = [launcher_text(sys.executable, roots), program_text(sys.executable, roots, ctl.MODULE, "x")]
        found = set()
        for text in texts:
            beginning = text.partition("\nfrom ")[0]
            command = [sys.executable, "-IS", "-c", f"{beginning}\n{show}"]
            found.add(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert len(found) == 1

    def test_units_name_the_socket_that_launchers_ask_at(self, tmp_path: Path) -> None:
        assert main(["zygote", "install", str(tmp_path), "--units", str(tmp_path)]) == 0
        program = tmp_path / "kata-zygote"
        place = subprocess.run([program, "place"], capture_output=True, text=True, check=True).stdout.strip()
        assert f"ListenSequentialPacket={place}\n" in (tmp_path / "kata-zygote.socket").read_text()
        assert f"ExecStart={program}\n" in (tmp_path / "kata-zygote.service").read_text()

    def test_status_without_one(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv(zygote_call.VARIABLE, str(tmp_path / "none"))
        done = subprocess.run(
            [Path(sys.executable).parent / "kata-ctl", "zygote", "status"],
            capture_output=True,
            text=True,
            check=False,
        )
        if os.geteuid() == 0:
            assert (done.returncode, done.stdout) == (1, "")
            assert "shims start without it" in done.stderr


LOAD = """
import json, os, sys
from kata_runtime.zygote import loading
loading.load({})
before = set(sys.modules)
from kata_runtime.pod import preload
preload.load()
import anyio
async def nothing(): await anyio.sleep(0)
anyio.run(nothing)
print(json.dumps({"loaded": sorted(before), "later": sorted(set(sys.modules) - before)}))
"""


class TestLoading:
    def test_everything_of_the_rooms_but_what_runs_elsewhere_is_loaded(self) -> None:
        command = [sys.executable, "-c", LOAD]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        assert found["later"] == []
        loaded = set(found["loaded"])
        assert set(preload.MODULES) <= loaded
        missing = {name for name in modules() if name not in loaded}
        assert {name for name in missing if not name.startswith(OTHERS)} == set()
        assert not {"rich", "pyroute2", "tomli_w"} & loaded

    def test_what_is_not_loaded_exists(self) -> None:
        assert {name for name in OTHERS if name not in modules()} == set()

    def test_a_file_that_changes_is_seen(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "of_this_test_only.py"
        file.write_text("VALUE = 1\n")
        monkeypatch.syspath_prepend(tmp_path)
        __import__("of_this_test_only")
        try:
            code = loading.Code(loading.now() + 1)  # so that the file is older
            assert code.find_change() is None
            kept = file.stat()
            file.write_text("VALUE = 2\n")
            os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # as an archive's time would be
            assert code.find_change() == str(file)
            file.unlink()
            assert code.find_change() == str(file)
        finally:
            del sys.modules["of_this_test_only"]

    def test_a_file_that_changed_while_it_was_loaded_is_seen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started = loading.now()
        file = tmp_path / "of_this_test_too.py"
        file.write_text("VALUE = 1\n")
        monkeypatch.syspath_prepend(tmp_path)
        __import__("of_this_test_too")
        try:
            assert loading.Code(started).find_change() == str(file)
        finally:
            del sys.modules["of_this_test_too"]


GAPS = """
import gc
from kata_runtime.zygote import heap

def pages():
    return len({id(one) // 4096 for one in [bytes(60) for _ in range(1000)]})

made = [[bytes(60) for _ in range(8)] for _ in range(4000)]
kept = [several[::4] for several in made]
del made
gc.collect()
before = pages()
heap.fill_gaps()
print(before, pages(), sum(len(one) * heap.STEP * at for at, one in enumerate(heap._fillers, 1)))
"""


def test_new_objects_are_beside_each_other_once_gaps_are_filled() -> None:
    done = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True)
    before, after, filled = map(int, done.stdout.split())
    least = 1000 * 96 // 4096
    assert before > least + 8
    assert after <= least + 4
    assert 2 << 20 < filled < 8 << 20  # what was made and forgotten, and little more


class TestLauncherFacts:
    def difference(self, *more: bytes) -> str | None:
        environment = [name + b"=" + value for name, value in os.environb.items()]
        with Launcher(os.getpid(), os.pidfd_open(os.getpid())) as launcher:
            return launcher.find_difference([*environment, *more])

    def test_the_same_process_is_the_same(self) -> None:
        assert self.difference() is None

    def test_a_variable_that_libraries_read_when_they_are_loaded(self) -> None:
        assert self.difference(b"SOME=thing") is None
        assert (
            self.difference(b"LD_PRELOAD=/x.so") == "the launcher's environment differs in LD_PRELOAD=/x.so"
        )

    @pytest.mark.parametrize("name", launcher_facts.SAME_STATUS)
    def test_each_line_of_the_status_counts(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        real = launcher_facts._status

        def other(base: str) -> dict[str, str]:
            return {**real(base), **({} if base == "/proc/self" else {name: "other"})}

        monkeypatch.setattr(launcher_facts, "_status", other)
        found = self.difference()
        assert found is not None
        assert found.startswith(f"{name} in /proc/PID/status of the launcher is other, of the zygote ")

    def test_a_launcher_in_another_namespace(self) -> None:
        command = ["unshare", "--user", "--", "sleep", "1000"]
        with subprocess.Popen(command) as other:
            try:
                while os.readlink(f"/proc/{other.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
                    assert other.poll() is None, "this host lets nobody make user namespaces"
                with Launcher(other.pid, os.pidfd_open(other.pid)) as launcher:
                    found = launcher.find_difference([])
            finally:
                other.kill()
        assert found is not None
        assert found.startswith("the namespace user of the launcher is user:[")


class TestAsking:
    """What a launcher does with answers that no zygote gives."""

    def ask(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None) -> str:
        """Why there is no shim. answer: None to close at once."""
        path = tmp_path / "s"
        monkeypatch.setenv(zygote_call.VARIABLE, str(path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen()

            def serve() -> None:
                with listener.accept()[0] as connection:
                    if answer is not None:
                        connection.recv(1 << 16)
                        connection.send(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                with pytest.raises(zygote_call.RefusedError) as refused:
                    zygote_call.ask(SHIM, listener.fileno())
            finally:
                thread.join()
        return str(refused.value)

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whom alone a launcher believes")
    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (b"no it is a test", "it is a test"),
            (b"ready", "ready"),
            (b"ready \xb2", "ready"),
            (b"ready 1x", "ready 1x"),
            (b"what", "what"),
        ],
    )
    def test_an_answer_that_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, reason: str
    ) -> None:
        assert self.ask(tmp_path, monkeypatch, answer).startswith(reason)

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whom alone a launcher believes")
    def test_one_that_closes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.ask(tmp_path, monkeypatch, None)

    def test_nobody_is_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(zygote_call.VARIABLE, str(tmp_path / "none"))
        with pytest.raises(zygote_call.RefusedError, match="No such file"):
            zygote_call.ask(SHIM, 0)

    def test_one_that_does_not_answer_is_not_waited_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(zygote_call.VARIABLE, str(tmp_path / "s"))
        monkeypatch.setattr(zygote_call, "PATIENCE", 0.01)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(tmp_path / "s"))
            listener.listen()
            with pytest.raises(zygote_call.RefusedError):
                zygote_call.ask(SHIM, listener.fileno())

    def test_an_environment_that_is_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LARGE", "x" * zygote_call.MAX_MESSAGE)
        monkeypatch.delenv(zygote_call.VARIABLE, raising=False)
        with pytest.raises(zygote_call.RefusedError, match="the environment is too large"):
            zygote_call.ask(SHIM, 0)


def test_the_socket_of_another_user_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who binds it in another's name would get each pod's listening socket."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another user")
    serve = "import socket, sys\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
    serve += "s.bind(sys.argv[1])\ns.listen()\nprint(flush=True)\nsys.stdin.read()\n"
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    directory.chmod(0o777)
    path = directory / "s"
    command = ["/usr/bin/python3", "-c", serve, str(path)]
    monkeypatch.setenv(zygote_call.VARIABLE, str(path))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=65534, group=65534
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        with pytest.raises(zygote_call.RefusedError, match="its socket is not root's"):
            zygote_call.ask(SHIM, 0)
    path.unlink()
    directory.rmdir()
