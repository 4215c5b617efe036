"""Record which system calls the programs of pods make under our policies, while tests run.

    python tests/support/record_policy_use.py [--again] [ARGUMENTS OF PYTEST]

What was seen is added to tests/hypervisor/policy_use.json, or takes its place (--again). It needs root, and a
kernel that traces system calls (CONFIG_FTRACE_SYSCALLS).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from call_events import EVENTS, REFUSED, Follower
from call_marks import MARKER
from policy_use import load_record, save_record

BUFFER_KIB = 262144
SUPPORT = Path(__file__).parent


@contextmanager
def tracing() -> Iterator[Path]:
    """An instance of the kernel's tracer, for the processes that are named in it and their children."""
    with tempfile.TemporaryDirectory() as root:
        subprocess.run(["mount", "-t", "tracefs", "none", root], check=True)
        instance = Path(root, "instances", f"kata-{os.getpid()}")
        instance.mkdir()
        try:
            (instance / "trace_clock").write_text("mono")
            (instance / "buffer_size_kb").write_text(str(BUFFER_KIB))
            (instance / "options/event-fork").write_text("1")
            (instance / "options/record-tgid").write_text("1")
            (instance / "events/raw_syscalls/sys_exit/filter").write_text(REFUSED)
            yield instance
        finally:
            (instance / "events/enable").write_text("0")
            instance.rmdir()
            subprocess.run(["umount", root], check=True)


@contextmanager
def written(instance: Path, file: Path) -> Iterator[None]:
    """Write what is traced in the meantime to a file: nothing slower keeps up with it."""
    with file.open("wb") as target:
        reader = subprocess.Popen(["cat", instance / "trace_pipe"], stdout=target)
        try:
            yield
        finally:
            size = -1
            while size != (size := file.stat().st_size):
                time.sleep(1)
            reader.kill()
            reader.wait()


def run(instance: Path, arguments: list[str]) -> int:
    """Run pytest, traced from its first call on; its exit status."""

    def join() -> None:
        (instance / "set_event_pid").write_text(str(os.getpid()))
        for event in EVENTS:
            (instance / "events" / event / "enable").write_text("1")

    environment = {**os.environ, MARKER: str(instance / "trace_marker"), "PYTHONPATH": str(SUPPORT)}
    command = [sys.executable, "-m", "pytest", "-p", "call_marks", *arguments]
    return subprocess.run(command, env=environment, preexec_fn=join, check=False).returncode


def main() -> int:
    """Trace the tests and write the record; pytest's exit status."""
    arguments = sys.argv[1:]
    again = "--again" in arguments
    follower = Follower()
    with tempfile.TemporaryDirectory() as directory, tracing() as instance:
        file = Path(directory, "trace")
        with written(instance, file):
            status = run(instance, [one for one in arguments if one != "--again"])
        with file.open(encoding="utf-8", errors="replace") as lines:
            follower.take(lines)
    if follower.lost:
        print(f"events were lost {follower.lost} times: the record may lack some calls", file=sys.stderr)
    before = {} if again else load_record()
    save_record({name: seen | before.get(name, {}) for name, seen in follower.record.items()})
    print({name: len(seen) for name, seen in follower.record.items()})
    return status


if __name__ == "__main__":
    sys.exit(main())
