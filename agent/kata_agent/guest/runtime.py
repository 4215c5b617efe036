"""The container runtime of the guest: crun, run as a program for each operation."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from kata_agent.guest.errors import ExistsError, GuestError
from kata_agent.guest.reaper import Reaper
from kata_agent.ttrpc.blocking import caller_timeout

PROGRAM = "/usr/bin/crun"


class SilentError(GuestError):
    """crun failed without a reason: what it started was killed before it could say one."""


_NAMES = itertools.count()


class Crun:
    """crun's commands. Each raises GuestError with crun's own message when it fails.

    scratch: a directory for the files that an operation needs while it runs.
    cgroup_manager: "cgroupfs"; "disabled" where the caller may not manage cgroups.
    """

    def __init__(
        self,
        reaper: Reaper,
        *,
        state: str = "/run/crun",
        scratch: str = "/run/kata-agent",
        cgroup_manager: str = "cgroupfs",
        program: str = PROGRAM,
    ) -> None:
        self._reaper = reaper
        self._scratch = scratch
        self._command = [
            program,
            f"--cgroup-manager={cgroup_manager}",
            f"--root={state}",
            "--log-format=json",
        ]

    def create(
        self, cid: str, bundle: str, program: str, stdio: tuple[int, int, int], console: str | None
    ) -> int:
        """Set a container up, short of starting its program; returns the pid of its first process."""
        with _named(program):
            return self._launch("create", ["--bundle", bundle], [cid], stdio, console)

    def execute(
        self, cid: str, process: dict[str, Any], stdio: tuple[int, int, int], console: str | None
    ) -> int:
        """Start another process (an OCI process object) in a container; returns its pid."""
        path = self._name("process.json")
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(process, file)
            with _named(process["args"][0]):
                return self._launch("exec", ["--detach", "--process", path], [cid], stdio, console)
        finally:
            _remove(path)

    def _launch(
        self,
        command: str,
        options: list[str],
        operands: list[str],
        stdio: tuple[int, int, int],
        console: str | None,
    ) -> int:
        pid_file = self._name("pid")
        if console is not None:
            options = [*options, "--console-socket", console]
        try:
            self._run(command, [*options, "--pid-file", pid_file], operands, stdio)
            with open(pid_file, encoding="ascii") as file:
                return int(file.read())
        finally:
            _remove(pid_file)

    def start(self, cid: str) -> None:
        """Let the program of a container that was set up begin."""
        self._run("start", [], [cid])

    def pause(self, cid: str) -> None:
        """Freeze all processes of a container."""
        self._run("pause", [], [cid])

    def resume(self, cid: str) -> None:
        """Undo `pause`."""
        self._run("resume", [], [cid])

    def delete(self, cid: str) -> None:
        """Forget a container, and kill what is left of it."""
        self._run("delete", ["--force"], [cid])

    def update(self, cid: str, resources: dict[str, Any]) -> None:
        """Change the limits of a running container (an OCI linux.resources object)."""
        path = self._name("resources.json")
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(resources, file)
            self._run("update", ["--resources", path], [cid])
        finally:
            _remove(path)

    def _run(
        self,
        command: str,
        options: list[str],
        operands: list[str],
        stdio: tuple[int, int, int] | None = None,
    ) -> None:
        log = self._name("log")
        arguments = [*self._command, f"--log={log}", command, *options, "--", *operands]
        try:
            if stdio is not None:
                status = self._reaper.run(arguments, stdio, patience())
            else:
                null = os.open(os.devnull, os.O_RDWR)
                try:
                    status = self._reaper.run(arguments, (null, null, null), patience())
                finally:
                    os.close(null)
            if status != 0:
                raise _failure(command, operands[0], status, _read(log))
        except TimeoutError as error:
            raise GuestError(f"crun {command} {operands[0]}: {error}") from None
        except OSError as error:
            raise GuestError(f"run {arguments[0]} {command}: {error}") from error
        finally:
            _remove(log)

    def _name(self, suffix: str) -> str:
        return f"{self._scratch}/crun-{next(_NAMES)}.{suffix}"


def patience() -> float | None:
    """Seconds that a command of crun may take: until its caller has given up, and as long again."""
    timeout = caller_timeout()
    return None if timeout is None else 2 * timeout


def _failure(command: str, cid: str, status: int, log: str) -> GuestError | ExistsError:
    message = last_error(log)
    if message is None:
        return SilentError(f"crun {command} {cid} ended with status {status} and gave no reason")
    if command == "create" and message.endswith("already exists"):
        return ExistsError(message)
    return GuestError(message)


@contextlib.contextmanager
def _named(program: str) -> Iterator[None]:
    """Say of a program that cannot be run what runc says of it."""
    try:
        yield
    except GuestError as error:
        if (message := program_error(program, error.message)) is not None:
            raise GuestError(message) from None
        raise


def program_error(program: str, message: str) -> str | None:
    """The sentence for crun's error about a program that cannot be run; None if it is about something else.

    Clients find "executable file not found in $PATH" and "permission denied" in it, and make the exit codes
    127 and 126 of them.
    """
    if re.fullmatch(r"executable file `.*` not found in \$PATH(: .*)?", message, re.DOTALL):
        return f'exec "{program}": executable file not found in $PATH: no such file or directory'
    if not message.startswith("open executable"):
        return None
    if not program:
        return 'exec "": executable file not found in $PATH: the command is empty'
    return f'exec "{program}": permission denied: it is not a file that this user may execute'


def last_error(log: str) -> str | None:
    """The message of the last error in crun's log (JSON objects, one a line); None if there is none."""
    for line in reversed(log.splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:
            return line  # not from crun itself: better than nothing
        if isinstance(entry, dict) and entry.get("level") == "error" and isinstance(entry.get("msg"), str):
            return str(entry["msg"])
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
