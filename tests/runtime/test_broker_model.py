"""A real broker beside a model of it: directories, mounts, children and the seal, in any order, and its end.

The model knows what is there. Whatever is asked, the answer is the model's: done, refused or failed; and
after each answer the file tree, the mounts, the processes and the journal on disk are the model's too.
However a sandbox ends, by `close`, by its shim's going or by a broker that is killed, nothing is left of it,
and the next one of its name can begin.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker_bed import Bed, make_bed
from kata_runtime.broker import cleanup, files, messages
from kata_runtime.broker import server as _loaded_before_forks  # noqa: F401
from kata_runtime.broker.process import fork_broker
from kata_runtime.broker.rollback import RollbackJournal

DIRECTORY, FILE = "directory", "file"
DONE, REFUSED = "done", "refused"
PATHS = ("shared/a", "shared/a/b", "shared/a/b/c", "shared/f", "rootfs", "rootfs/d")
"""Where the sandbox has its files, of which `rootfs` is there already."""
OUTSIDE = ("shared", "shared/../x", "shared/a//b", "other", "/etc/x")
SOURCES = {"tree": DIRECTORY, "plain": FILE, "unnamed": DIRECTORY, "missing": None}
SPEC = {
    "root": {"path": "rootfs"},
    "mounts": [
        {"destination": "/tree", "type": "bind", "source": "tree", "options": ["rbind", "ro"]},
        {"destination": "/plain", "type": "bind", "source": "plain", "options": ["bind", "rw"]},
    ],
}
MOST_STACKED = 4
SLEEP = ["/bin/sleep", "3600"]

paths = st.sampled_from(PATHS)


def above(path: str) -> list[str]:
    """What leads to a path, the top first: without the shared directory and the bundle themselves."""
    parts = path.split("/")
    whole = ["/".join(parts[:length]) for length in range(1, len(parts))]
    return [one for one in whole if one != "shared"]


@dataclass
class Model:
    """One sandbox. nodes: the kinds of its files. made: those of them that are the broker's. mounts: how many
    are on each. children: a descriptor of each process that was started and not killed, by its id.
    learned: whether SPEC was opened. like_learned: whether something was mounted from where all sources are.
    """

    nodes: dict[str, str] = field(default_factory=lambda: {"rootfs": DIRECTORY})
    made: set[str] = field(default_factory=set)
    mounts: Counter[str] = field(default_factory=Counter)
    children: dict[int, int] = field(default_factory=dict)
    sealed: bool = False
    learned: bool = False
    like_learned: bool = False

    def covered(self, path: str) -> bool:
        return any(self.mounts[one] for one in above(path))

    def make(self, path: str, kind: str) -> str:
        for one in (*above(path), path):
            wanted = kind if one == path else DIRECTORY
            if self.covered(one) or self.nodes.get(one, wanted) != wanted:
                return REFUSED
            if one not in self.nodes:
                self.nodes[one] = wanted
                self.made.add(one)
        return DONE

    def remove(self, path: str) -> str | int:
        if path not in self.made or self.covered(path):
            return REFUSED
        if self.mounts[path]:
            return errno.EBUSY
        if any(path in above(one) for one in self.nodes):
            return errno.ENOTEMPTY
        del self.nodes[path]
        self.made.remove(path)
        return DONE

    def bind(self, source: str, path: str, *, readonly: bool, recursive: bool) -> str | int:
        if self.sealed and not self.may_bind(source, readonly=readonly, recursive=recursive):
            return REFUSED
        if (kind := SOURCES[source]) is None:
            return errno.ENOENT
        if self.mounts[path] >= MOST_STACKED or self.make(path, kind) == REFUSED:
            return REFUSED
        self.mounts[path] += 1
        return DONE

    def may_bind(self, source: str, *, readonly: bool, recursive: bool) -> bool:
        """As SPEC has it."""
        return self.learned and {"tree": readonly, "plain": not recursive}.get(source, False)

    def mount(self, sources: list[str], path: str) -> str | int:
        if self.mounts[path] + len(sources) > MOST_STACKED or self.make(path, DIRECTORY) == REFUSED:
            return REFUSED
        if self.sealed and not self.like_learned:
            return REFUSED
        self.like_learned = True
        for source in sources:
            if SOURCES[source] is None:
                return errno.ENOENT
        self.mounts[path] += len(sources)
        return DONE

    def unmount(self, path: str) -> str:
        if not self.mounts[path] or self.covered(path):
            return REFUSED
        del self.mounts[path]
        return DONE


class Sandbox(RuleBasedStateMachine):
    """A shim that asks for anything, and a host that is looked at."""

    @initialize(learned=st.booleans(), sealed=st.booleans())
    def begin(self, learned: bool, sealed: bool) -> None:
        self.held = ExitStack()
        patch = self.held.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(files, "MAX_STACKED", MOST_STACKED)  # the broker is a fork of this process
        self.bed: Bed = self.held.enter_context(make_bed(patch))
        (self.bed.data / "tree").mkdir()
        (self.bed.data / "tree/inside").touch()
        (self.bed.data / "unnamed").mkdir()
        (self.bed.data / "plain").touch()
        spec = json.loads(json.dumps(SPEC))
        for mount in spec["mounts"]:
            mount["source"] = self.source(mount["source"])
        (self.bed.bundle / "config.json").write_text(json.dumps(spec))
        self.fork(learned=learned, sealed=sealed)

    def fork(self, *, learned: bool, sealed: bool) -> None:
        """Start a broker. learned, sealed: whether it opens SPEC at once, and is sealed then."""
        self.model = Model()
        self.exited: set[int] = set()
        self.running = True
        self.channel, self.broker = fork_broker(self.bed.identity, str(self.bed.bundle))
        if learned:
            self.open_spec()
        if sealed:
            self.seal()
        assert self.ask("oom_kills")[0] == DONE  # it has begun

    def source(self, name: str) -> str:
        return str(self.bed.data / name)

    def path(self, name: str) -> str:
        if name.startswith("/"):
            return name
        return str(self.bed.bundle if name.startswith("rootfs") else self.bed.directory) + "/" + name

    def ask(self, op: str, **arguments: object) -> tuple[str | int, Any]:
        """What came of a request, and its result or the sentence."""
        messages.send(self.channel, messages.encode({"id": 1, "op": op, **arguments}))
        while "id" not in (message := self.receive()):
            pass
        if "error" not in message:
            return DONE, message["result"]
        error = message["error"]
        return (REFUSED if error["kind"] == REFUSED else error["errno"]), error["message"]

    def receive(self) -> dict[str, Any]:
        message, descriptors = messages.receive(self.channel)
        messages.close_all(descriptors)
        if "exited" in message:
            self.exited.add(message["exited"])
        return message

    def teardown(self) -> None:
        if not hasattr(self, "held"):
            return
        with self.held:
            if self.running:
                self.channel.close()
                os.waitpid(self.broker, 0)
                for process in self.model.children.values():
                    os.close(process)

    # -- what is asked -------------------------------------------------------------------------------------

    @precondition(lambda self: self.running)
    @rule(path=paths)
    def make_directory(self, path: str) -> None:
        answer = self.ask("make_directory", path=self.path(path))
        assert answer[0] == self.model.make(path, DIRECTORY), answer

    @precondition(lambda self: self.running)
    @rule(path=paths)
    def remove(self, path: str) -> None:
        answer = self.ask("remove", path=self.path(path))
        assert answer[0] == self.model.remove(path), answer

    @precondition(lambda self: self.running)
    @rule(
        path=paths, source=st.sampled_from(sorted(SOURCES)), readonly=st.booleans(), recursive=st.booleans()
    )
    def bind(self, path: str, source: str, readonly: bool, recursive: bool) -> None:
        how = {"readonly": readonly, "recursive": recursive}
        answer = self.ask("bind", source=self.source(source), target=self.path(path), **how)
        assert answer[0] == self.model.bind(source, path, **how), answer

    @precondition(lambda self: self.running)
    @rule(
        path=paths,
        count=st.integers(1, MOST_STACKED + 1),
        last=st.sampled_from(["tree", "unnamed", "missing"]),
    )
    def mount(self, path: str, count: int, last: str) -> None:
        sources = [*["tree"] * (count - 1), last]
        wanted = [["bind", self.source(source), ["rbind", "ro"]] for source in sources]
        answer = self.ask("mount", target=self.path(path), mounts=wanted)
        assert answer[0] == self.model.mount(sources, path), answer

    @precondition(lambda self: self.running)
    @rule(path=paths)
    def unmount(self, path: str) -> None:
        answer = self.ask("unmount", target=self.path(path))
        assert answer[0] == self.model.unmount(path), answer

    @precondition(lambda self: self.running)
    @rule(path=st.sampled_from(OUTSIDE), op=st.sampled_from(["remove", "unmount", "bind", "mount"]))
    def reach_outside(self, path: str, op: str) -> None:
        tree = self.source("tree")
        arguments: dict[str, dict[str, Any]] = {
            "remove": {"path": self.path(path)},
            "unmount": {"target": self.path(path)},
            "bind": {"source": tree, "target": self.path(path), "readonly": True, "recursive": True},
            "mount": {"target": self.path(path), "mounts": [["bind", tree, ["ro"]]]},
        }
        answer = self.ask(op, **arguments[op])
        assert answer[0] == REFUSED, answer

    @precondition(lambda self: self.running)
    @rule()
    def open_spec(self) -> None:
        assert self.ask("open_spec", bundle=str(self.bed.bundle))[0] == DONE
        self.model.learned = True

    @precondition(lambda self: self.running)
    @rule(there=st.booleans())
    def spawn(self, there: bool) -> None:
        arguments = dict.fromkeys(("environment", "gate", "seccomp", "privileges"))
        argv = SLEEP if there else ["/no/such/program"]
        state, result = self.ask("spawn", name="virtiofsd", argv=argv, fds=[], **arguments)
        if self.model.sealed:
            assert state == REFUSED, result
        elif not there:
            assert state == errno.ENOENT, result
        else:
            assert state == DONE, result
            self.model.children[result["pid"]] = os.pidfd_open(result["pid"])

    @precondition(lambda self: self.running and self.model.children)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        pid = data.draw(st.sampled_from(sorted(self.model.children)))
        assert self.ask("kill", pid=pid, signal=signal.SIGKILL)[0] == DONE
        while pid not in self.exited:
            self.receive()
        os.close(self.model.children.pop(pid))

    @precondition(lambda self: self.running)
    @rule()
    def kill_a_stranger(self) -> None:
        assert self.ask("kill", pid=os.getpid(), signal=signal.SIGKILL)[0] == DONE

    @precondition(lambda self: self.running)
    @rule()
    def seal(self) -> None:
        answer = self.ask("announce_seal", mode="enforce", policy="p", within=3600)
        assert answer[0] == (REFUSED if self.model.sealed else DONE), answer
        self.model.sealed = True

    # -- how it ends ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.running)
    @rule(how=st.sampled_from(["close", "go", "kill"]))
    def end(self, how: str) -> None:
        self.running = False
        if how == "close":
            state, result = self.ask("close")
            assert (state, result["left"]) == (DONE, [])
        elif how == "kill":
            os.kill(self.broker, signal.SIGKILL)
        self.channel.close()
        _, status = os.waitpid(self.broker, 0)
        assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if how == "kill" else 0)
        assert self.bed.directory.exists() == (how == "kill")
        assert cleanup.clean_up(self.bed.identity) == []
        assert not self.bed.directory.exists()
        assert os.listdir(self.bed.bundle / "rootfs") == []
        assert os.listdir(self.bed.data / "tree") == ["inside"]
        for process in self.model.children.values():
            assert select.select([process], [], [], 0)[0], "a child has not exited"
            os.close(process)

    @precondition(lambda self: not self.running)
    @rule(learned=st.booleans(), sealed=st.booleans())
    def begin_anew(self, learned: bool, sealed: bool) -> None:
        self.fork(learned=learned, sealed=sealed)

    # -- what is there -------------------------------------------------------------------------------------

    @invariant()
    def the_host_has_what_the_model_has(self) -> None:
        if not getattr(self, "running", False):
            return
        model = self.model
        seen = {name: kind for name in PATHS if (kind := self.look(name)) and not model.covered(name)}
        assert seen == {name: kind for name, kind in model.nodes.items() if not model.covered(name)}
        assert self.mounted() == {name: count for name, count in model.mounts.items() if count}
        alive = {int(pid) for pid in self.read(f"task/{self.broker}/children").split()}
        assert alive >= model.children.keys()
        assert not alive & self.exited

    @invariant()
    def the_journal_undoes_what_is_there_and_no_more(self) -> None:
        if not getattr(self, "running", False):
            return
        descriptor = os.open(self.bed.directory, os.O_RDONLY)
        try:
            journal = RollbackJournal.load(descriptor)
        finally:
            os.close(descriptor)
        assert journal is not None
        assert journal.unreadable == 0
        found = Counter(
            (one["undo"], str(one.get("path", one.get("pid")))) for one in journal.entries.values()
        )
        wanted = Counter({("unmount", self.path(name)): n for name, n in self.model.mounts.items() if n})
        wanted.update(("remove", self.path(name)) for name in self.model.made)
        wanted.update(("process", str(pid)) for pid in self.model.children)
        assert found == wanted

    def look(self, name: str) -> str | None:
        place = Path(f"/proc/{self.broker}/root{self.path(name)}")
        return None if not place.exists() else DIRECTORY if place.is_dir() else FILE

    def mounted(self) -> dict[str, int]:
        """How many mounts the broker has on each path."""
        points = Counter(line.split(" ")[4] for line in self.read("mountinfo").splitlines())
        there = {name: points[self.path(name)] for name in PATHS if points[self.path(name)]}
        # The shared directory is mounted twice over, and each mount in it reaches both.
        assert not any(count % 2 for name, count in there.items() if name.startswith("shared/"))
        return {name: count // (2 if name.startswith("shared/") else 1) for name, count in there.items()}

    def read(self, name: str) -> str:
        return Path(f"/proc/{self.broker}/{name}").read_text()


TestSandbox = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount namespace")(
    Sandbox.TestCase
)
TestSandbox.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
