"""The rig gives a terminal a shell: keys go in, Ctrl-C reaches what runs there, its exit status comes out."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

RUN = Path(__file__).parents[1] / "rig/run.py"
PATIENCE = 120.0


class Terminal:
    """The other side of a terminal on which the rig runs."""

    def __init__(self, master: int) -> None:
        self._master = master

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str) -> str:
        """Read until a text shows. Raises AssertionError with all that was read."""
        seen, deadline = b"", time.monotonic() + PATIENCE
        while text.encode() not in seen:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(OSError):  # the terminal's last user has gone
                if ready and (data := os.read(self._master, 4096)):
                    seen += data
                    continue
            raise AssertionError(f"{text!r} is not in {seen.decode(errors='replace')!r}")
        return seen.decode(errors="replace")


@pytest.fixture
def master() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


def test_a_shell_in_the_rig(master: tuple[int, int], guest_image: Path) -> None:
    ours, theirs = master
    rig = subprocess.Popen(
        [sys.executable, RUN, "--image", guest_image], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        terminal = Terminal(ours)
        terminal.until("# ")
        terminal.type("echo kvm-$((40 + 2)) $(ls /dev/kvm)\n")
        terminal.until("kvm-42 /dev/kvm")
        terminal.type("echo asleep-$((1 + 1)); sleep 1000\n")
        terminal.until("asleep-2")
        terminal.type("\x03")
        terminal.until("# ")
        terminal.type("exit 3\n")
        assert rig.wait(PATIENCE) == 3
    finally:
        rig.kill()
        rig.wait()


def test_without_a_terminal_there_is_no_shell(guest_image: Path) -> None:
    done = subprocess.run(
        [sys.executable, RUN, "--image", guest_image],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "run.py: a shell needs a terminal; else name a command\n"
