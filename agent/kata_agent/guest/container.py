"""A container: its bundle, its processes, and everything the host may do with it."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from kata_agent.guest import destinations, files, log, mounts
from kata_agent.guest.cgroup import Cgroup, check_memory
from kata_agent.guest.errors import ExistsError, GuestError, NotFoundError, StateError
from kata_agent.guest.process import Process
from kata_agent.guest.reaper import Reaper
from kata_agent.guest.runtime import Crun, SilentError
from kata_agent.guest.signals import FirstSignals
from kata_agent.guest.stdio import Stdio
from kata_agent.guest.wiring import PIPE_SIZE, Wiring
from kata_agent.ttrpc.blocking import caller_patience

_MOST_ENDED = 256  # processes that ended and of which only the exit status is of interest
_END_BUDGET = 1.0  # seconds in which a container that has ended is seen to have

Start = Callable[[tuple[int, int, int], str | None], int]
"""Starts a process with these descriptors, or the terminal of this console socket; returns its pid."""

OCI_VERSION = "1.0.2"


class Container:
    """One container.

    cid: its id. spec: the OCI spec, complete but for root.path, which is set here. cgroup: where the spec
    puts it. init: its first process. All methods may be called from any thread.
    """

    def __init__(
        self,
        cid: str,
        spec: dict[str, Any],
        cgroup: Cgroup,
        *,
        crun: Crun,
        reaper: Reaper,
        base: str = "/run/kata-containers",
        pipe_size: int = PIPE_SIZE,
    ) -> None:
        self.cid = cid
        self.cgroup = cgroup
        self.init: Process | None = None
        self._spec = spec
        self._crun = crun
        self._reaper = reaper
        self._bundle = f"{base}/{cid}"
        self._pipe_size = pipe_size
        self._lock = threading.Lock()
        self._processes: dict[str, Process] = {}
        self._starting: set[str] = set()
        self._paused = False
        self._first_signals: FirstSignals | None = None

    def create(self, stdio: Stdio) -> None:
        """Set the container up, short of starting its program. On failure nothing of it is left.

        Raises:
            GuestError: crun's reason, such as an executable that does not exist.
        """
        try:
            self._prepare_bundle()
            process = self._spec["process"]
            self.init = self._launch(
                self.cid,
                stdio,
                bool(process.get("terminal")),
                lambda child, console: self._crun.create(
                    self.cid, self._bundle, process["args"][0], child, console
                ),
            )
        except BaseException:
            stdio.close()
            self._undo_creation()
            raise

    def _undo_creation(self) -> None:
        """Leave nothing; a step that fails is logged, for the caller is told why the creation failed."""
        steps: tuple[Callable[[], None], ...] = (lambda: self._crun.delete(self.cid), self._remove_bundle)
        for step in steps:
            try:
                step()
            except (GuestError, OSError) as error:
                log.info(f"undo the creation of container {self.cid}: {error}")

    def _prepare_bundle(self) -> None:
        rootfs = f"{self._bundle}/rootfs"
        os.makedirs(rootfs, mode=0o755, exist_ok=True)
        root = self._spec.setdefault("root", {})
        if rootfs not in mounts.mount_points():  # else one of the container's storages is mounted there
            source = mounts.check_target(root.get("path", ""), "rootfs")
            if not os.path.isdir(source):
                raise NotFoundError(f"rootfs {source} does not exist in the guest: is it shared?")
            mounts.bind(source, rootfs)
        root["path"] = rootfs
        planned = self._spec.get("mounts", [])
        found = destinations.resolve(rootfs, [mount.get("destination", "") for mount in planned])
        for mount, destination in zip(planned, found, strict=True):
            mount["destination"] = destination
        # Older releases of crun refuse the name of a newer version, whatever the document says.
        self._spec["ociVersion"] = OCI_VERSION
        with open(f"{self._bundle}/config.json", "w", encoding="utf-8") as file:
            json.dump(self._spec, file)

    def _remove_bundle(self) -> None:
        mounts.detach(f"{self._bundle}/rootfs")
        files.remove_tree(self._bundle)

    def _launch(self, process_id: str, stdio: Stdio, terminal: bool, start: Start) -> Process:
        """Wire a process up, start it, and watch it."""
        wiring = Wiring(terminal=terminal, wanted=stdio.wanted, pipe_size=self._pipe_size)
        process = Process(process_id, self._reaper, stdio)
        try:
            with self._reaper.expecting():
                pid = start(wiring.child, wiring.console)
                try:
                    ends = wiring.connect()
                except BaseException:
                    os.kill(pid, signal.SIGKILL)
                    raise
                process.attach(pid, ends)
        finally:
            wiring.close()
        return process

    def start(self) -> None:
        """Let the program begin.

        Raises:
            GuestError: crun's reason.
        """
        if (init := self.init) is not None and self._first_signals is None:
            self._first_signals = FirstSignals(init.pid, init.signal)
        self._crun.start(self.cid)

    def execute(self, exec_id: str, process: dict[str, Any], stdio: Stdio) -> None:
        """Start another process in the container.

        Raises:
            ExistsError: a process of that id runs. StateError: the container is paused or has ended.
            GuestError: crun's reason.
        """
        kills = self.cgroup.memory_kills()
        try:
            self._reserve(exec_id)
            try:
                started = self._launch(
                    exec_id,
                    stdio,
                    bool(process.get("terminal")),
                    lambda child, console: self._crun.execute(self.cid, process, child, console),
                )
                with self._lock:
                    self._processes[exec_id] = started
            finally:
                with self._lock:
                    self._starting.discard(exec_id)
        except BaseException as error:
            stdio.close()
            if isinstance(error, SilentError):
                raise GuestError(f"{error.message}: {self._silence(kills)}") from None
            raise

    def _reserve(self, exec_id: str) -> None:
        with self._lock:
            if self._paused:
                raise StateError(f"container {self.cid} is paused: resume it first")
            if self.init is None or self.init.status is not None:
                raise StateError(f"container {self.cid} is not running")
            old = self._processes.get(exec_id)
            running = old is not None and old.status is None
            if exec_id == self.cid or running or exec_id in self._starting:
                raise ExistsError(f"process {exec_id} exists in container {self.cid}")
            if old is not None:
                del self._processes[exec_id]
                old.close()
            self._forget_ended()
            self._starting.add(exec_id)

    def _forget_ended(self) -> None:
        ended = [process for process in self._processes.values() if process.status is not None]
        for process in ended[: max(0, len(ended) - _MOST_ENDED)]:
            del self._processes[process.id]
            process.close()

    def _silence(self, kills: int) -> str:
        """Why a process that was to be started was killed before it could say anything.

        kills: how many of the container's had been killed for its memory limit before.
        """
        if self.init is None or self.init.wait(_END_BUDGET) is not None:
            return "the container ended meanwhile, and all its processes with it"
        if self.cgroup.memory_kills() > kills:
            return "its process was killed for the container's memory limit"
        return "its process was killed, or had no room in the guest; try again"

    def process(self, exec_id: str) -> Process:
        """The process of that id; the first one for "" and for the container's own id.

        Raises:
            NotFoundError: there is none.
        """
        with self._lock:
            found = self.init if exec_id in ("", self.cid) else self._processes.get(exec_id)
        if found is None:
            raise NotFoundError(f"no process {exec_id} in container {self.cid}")
        return found

    def signal(self, exec_id: str, number: int) -> None:
        """Send a signal: to one process, or to all of the container if exec_id is empty.

        Processes that have ended do not mind.

        Raises:
            NotFoundError: there never was such a process.
        """
        if exec_id and (process := self.process(exec_id)) is not self.init:
            process.signal(number)
        elif exec_id:
            self._signal_init(number)
        elif number == signal.SIGKILL:
            self._kill()
        else:
            self._signal_all(number)

    def _signal_init(self, number: int) -> None:
        if self._first_signals is not None:
            self._first_signals.deliver(number)
        elif self.init is not None:
            self.init.signal(number)

    def _signal_all(self, number: int) -> None:
        self._signal_init(number)
        for pid in self.cgroup.processes():
            if self.init is not None and pid == self.init.pid:
                continue
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # it ended meanwhile

    def _kill(self) -> None:
        self.cgroup.kill()
        for (
            process
        ) in self._all():  # where no cgroup holds them, the first one's end takes its namespace along
            process.signal(signal.SIGKILL)

    def _all(self) -> list[Process]:
        with self._lock:
            return [process for process in (self.init, *self._processes.values()) if process is not None]

    def pause(self) -> None:
        """Freeze all processes."""
        self._crun.pause(self.cid)
        self._paused = True

    def resume(self) -> None:
        """Let frozen processes go on."""
        self._crun.resume(self.cid)
        self._paused = False

    def update(self, resources: dict[str, Any]) -> None:
        """Change limits (an OCI linux.resources object).

        Raises:
            InvalidRequestError: the guest has less memory.
        """
        check_memory((resources.get("memory") or {}).get("limit", 0))
        self._crun.update(self.cid, resources)

    def remove(self, timeout: float = 0) -> None:
        """End the container: kill what runs, and take away all that it had in the guest.

        Raises:
            GuestError: a process did not die in `timeout` seconds (0: the caller's patience).
        """
        self._kill()
        for process in self._all():
            if process.wait(timeout or caller_patience()) is None:
                raise GuestError(f"process {process.id} of container {self.cid} does not die")
        self._crun.delete(self.cid)
        self.cgroup.remove()
        for process in self._all():
            process.close()
        self._remove_bundle()
        log.debug(f"container {self.cid} removed")
