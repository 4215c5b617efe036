"""nerdctl: a network that comes by hooks, logs, terminals, copies of files, two services composed.

KATA_TEST_NERDCTL names its program, 2.0 or later: `go build ./cmd/nerdctl` in nerdctl's sources makes one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import shutil
import struct
import subprocess
import termios
from collections.abc import Iterator, Sequence
from fcntl import ioctl
from pathlib import Path

import pytest

from namespaced_node import NamespacedNode
from node import IMAGE, RUNTIME, Client
from patience import PATIENCE

pytestmark = pytest.mark.integration

PROGRAM = os.environ.get("KATA_TEST_NERDCTL", "")
PLUGINS = Path("/usr/lib/cni")
PAGE = "a page of the guest"
BUDGET = max(100.0, PATIENCE)
"""Seconds that a command may take: a machine in an emulated machine takes longer to start."""
ROWS, COLUMNS = 33, 77

SERVICES = """\
services:
  web:
    image: {image}
    pull_policy: never
    runtime: {runtime}
    command: [sh, -c, "mkdir /tmp/w; echo '{page}' > /tmp/w/index.html; exec httpd -f -h /tmp/w"]
  reader:
    image: {image}
    pull_policy: never
    runtime: {runtime}
    depends_on: [web]
    command: [sh, -c, "until wget -qO- http://web/index.html; do sleep 1; done; exec sleep 3600"]
"""


class Terminal:
    """A command at a terminal of ROWS and COLUMNS."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", ROWS, COLUMNS, 0, 0))
        os.set_blocking(self._ours, False)
        self._process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self._shown = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    @property
    def shown(self) -> str:
        """All that it has written, with what was typed."""
        with contextlib.suppress(BlockingIOError):
            try:
                while chunk := os.read(self._ours, 4096):
                    self._shown += chunk
            except OSError as error:
                if error.errno != errno.EIO:  # nobody has the terminal open any more
                    raise
        return self._shown.decode(errors="replace")

    def type(self, text: str) -> None:
        """Type text."""
        os.write(self._ours, text.encode())

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()


class Nerdctl:
    """nerdctl for a node."""

    def __init__(self, directory: Path, bed: NamespacedNode) -> None:
        self.bed = bed
        (directory / "net.d").mkdir()
        self._prefix = [
            *bed.inside,
            *("env", f"PATH={bed.node.root}/bin:{os.environ['PATH']}", PROGRAM),
            *("--address", str(bed.node.containerd.address), "--namespace", bed.node.namespace),
            *("--data-root", str(directory / "data"), "--cgroup-manager", "cgroupfs"),
            *("--cni-path", str(PLUGINS), "--cni-netconfpath", str(directory / "net.d")),
        ]

    def command(self, *arguments: str) -> list[str]:
        """The argv of a command."""
        return [*self._prefix, *arguments]

    def run(self, *arguments: str) -> str:
        """Run a command to its end; returns what it prints."""
        argv = self.command(*arguments)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=BUDGET, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def inspect(self, container: str, field: str) -> str:
        """A field of what it says of a container, as a Go template names it."""
        return self.run("inspect", "--format", "{{" + field + "}}", container).strip()


@pytest.fixture
def nerdctl(tmp_path: Path, guest_image: Path) -> Iterator[Nerdctl]:
    if not PROGRAM:
        pytest.skip("no nerdctl: name its program in KATA_TEST_NERDCTL")
    for program in (PLUGINS / "bridge", "nsenter", "iptables-save"):
        if not shutil.which(program):
            pytest.skip(f"{program} is missing: run make packages")
    bed = NamespacedNode(tmp_path, guest_image)
    try:
        yield Nerdctl(tmp_path, bed)
    finally:
        bed.close()


def test_a_published_port_serves_a_page(nerdctl: Nerdctl) -> None:
    bed = nerdctl.bed
    script = f"mkdir /tmp/w; echo '{PAGE}' > /tmp/w/index.html; httpd -h /tmp/w; echo up; exec sleep 3600"
    options = ("--rm", "--name", "web", "--pull", "never", "--runtime", RUNTIME, "-p", "8080:80")
    with Client(nerdctl.command("run", *options, IMAGE, "sh", "-c", script)) as client:
        bed.node.until(lambda: client.output == "up\n" or client.ended, "its output")
        assert not client.ended, client.errors
        for address in ("127.0.0.1", "10.4.0.1"):
            assert bed.fetch(f"{address}:8080/index.html") == PAGE
        assert "to-destination 10.4.0." in bed.nat()
        nerdctl.run("rm", "-f", "web")
        client.wait()
    bed.check_empty()
    assert "to-destination" not in bed.nat(), "the poststop hook did not run"


def test_a_network_of_none_is_none(nerdctl: Nerdctl) -> None:
    options = ("--rm", "--pull", "never", "--runtime", RUNTIME, "--network", "none")
    assert nerdctl.run("run", *options, IMAGE, "ls", "/sys/class/net").split() == ["lo"]


def test_a_detached_container_has_logs(nerdctl: Nerdctl) -> None:
    """Its logger is nerdctl itself, which also writes down what came last."""
    script = "echo begun; echo warned >&2; trap 'echo ended; exit 3' TERM; while :; do sleep 0.1; done"
    options = ("-d", "--name", "web", "--pull", "never", "--runtime", RUNTIME, "--network", "none")
    made = nerdctl.run("run", *options, IMAGE, "sh", "-c", script).strip()
    assert nerdctl.bed.node.sandboxes() == [made]
    nerdctl.bed.node.until(lambda: "begun" in nerdctl.run("logs", "web"), "its log")
    with Client(nerdctl.command("logs", "-f", "web")) as client:
        nerdctl.bed.node.until(lambda: "warned" in client.errors or client.ended, "what it wrote to stderr")
        assert nerdctl.run("exec", "web", "echo", "in it") == "in it\n"
        nerdctl.run("stop", "web")
        client.wait()
        assert client.output == "begun\nended\n"
    nerdctl.run("start", "web")
    nerdctl.bed.node.until(lambda: nerdctl.run("logs", "web").count("begun") == 2, "the second run's log")
    nerdctl.run("rm", "-f", "web")
    nerdctl.bed.check_empty()


@pytest.fixture
def served(nerdctl: Nerdctl, tmp_path: Path) -> Nerdctl:
    """One with a container `web`, which says what happens to it, with all that can be given to one."""
    init, volume = tmp_path / "first", tmp_path / "volume"
    init.write_text('#!/bin/sh\necho "by $0 $1"\nshift\nexec "$@"\n')
    init.chmod(0o755)
    volume.mkdir()
    (volume / "given").write_text("by the host\n")
    script = "trap 'echo told' USR1; trap 'echo ended; exit 3' TERM; echo begun; while :; do sleep 0.1; done"
    nerdctl.run(
        *("run", "-d", "--name", "web", "--pull", "never", "--runtime", RUNTIME, "--network", "none"),
        *("-v", f"{volume}:/volume", "--init", "--init-binary", str(init), "--memory", "64m"),
        *("--security-opt", "seccomp=unconfined", "--health-cmd", "test -e /well", "--health-retries", "1"),
        *(IMAGE, "sh", "-c", script),
    )
    nerdctl.bed.node.until(lambda: "begun" in nerdctl.run("logs", "web"), "its log")
    return nerdctl


def is_metered(nerdctl: Nerdctl) -> bool:
    """Whether the figures of the container are those of the guest."""
    form = "{{.MemUsage}} / {{.PIDs}}"
    used, limit, processes = nerdctl.run("stats", "--no-stream", "--format", form, "web").split(" / ")
    return used != "0B" and limit == "64MiB" and int(processes) >= 1


def test_a_container_has_what_it_was_given(served: Nerdctl, tmp_path: Path) -> None:
    """An init of the host's, a volume, no seccomp profile, a limit; and its state is told and changed."""
    until, web = served.bed.node.until, ("exec", "web")
    assert "by /sbin/first --\nbegun\n" in served.run("logs", "web")
    assert served.run(*web, "cat", "/volume/given") == "by the host\n"
    served.run(*web, "sh", "-c", "echo by the guest > /volume/made")
    assert (tmp_path / "volume/made").read_text() == "by the guest\n"
    assert served.run(*web, "grep", "Seccomp:", "/proc/1/status").split() == ["Seccomp:", "0"]

    until(lambda: is_metered(served), "figures: 0 where they take more than 500 ms")
    assert "qemu-system" in served.run("top", "web")  # the process of it that the host has

    served.run("pause", "web")
    assert served.inspect("web", ".State.Status") == "paused"
    served.run("unpause", "web")
    assert served.inspect("web", ".State.Status") == "running"
    served.run("kill", "--signal", "USR1", "web")
    until(lambda: "told" in served.run("logs", "web"), "the signal")

    for script, health in (("touch /well", "healthy"), ("rm /well", "unhealthy")):
        served.run(*web, "sh", "-c", script)
        served.run("container", "healthcheck", "web")
        assert served.inspect("web", ".State.Health.Status") == health

    served.run("restart", "web")
    until(lambda: served.run("logs", "web").count("begun") == 2, "the second run's log")
    assert served.run("logs", "web").count("ended") == 1
    served.run("stop", "web")
    assert served.inspect("web", ".State.ExitCode") == "3"
    served.run("rm", "web")
    served.bed.check_empty()


def test_files_are_copied_both_ways(served: Nerdctl, tmp_path: Path) -> None:
    """Of a container that runs, in its volumes too, and of one that has ended."""
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep/file").write_text("of the host\n")
    read = ("exec", "web", "cat")
    served.run("cp", str(tree), "web:/tmp")
    served.bed.node.until(lambda: "deep" in served.run("exec", "web", "ls", "/tmp/tree"), "the guest sees it")
    assert served.run(*read, "/tmp/tree/deep/file") == "of the host\n"
    served.run("cp", str(tree / "deep/file"), "web:/volume/copied")
    assert (tmp_path / "volume/copied").read_text() == "of the host\n"

    served.run("exec", "web", "sh", "-c", "echo of the guest > /tmp/made; ln -s /tmp/made /led")
    served.run("cp", "web:/tmp/made", str(tmp_path / "made"))
    served.run("cp", "web:/led", str(tmp_path / "led"))
    served.run("cp", "web:/etc", str(tmp_path / "etc"))
    assert (tmp_path / "made").read_text() == (tmp_path / "led").read_text() == "of the guest\n"
    assert "user:x:1000" in (tmp_path / "etc/passwd").read_text()

    served.run("stop", "web")
    served.run("cp", str(tree / "deep/file"), "web:/tmp/later")
    served.run("cp", "web:/tmp/later", str(tmp_path / "later"))
    assert (tmp_path / "later").read_text() == "of the host\n"
    served.run("rm", "-f", "web")
    served.bed.check_empty()


def test_a_terminal_of_a_container_and_of_an_exec(nerdctl: Nerdctl) -> None:
    size, until = f"{ROWS} {COLUMNS}", nerdctl.bed.node.until
    options = ("--rm", "--name", "web", "--pull", "never", "--runtime", RUNTIME, "--network", "none")
    with Terminal(nerdctl.command("run", "-it", *options, IMAGE, "sh")) as first:
        until(lambda: "# " in first.shown or first.status is not None, "a prompt", BUDGET)
        first.type("stty size; grep Seccomp: /proc/self/status\n")
        until(lambda: size in first.shown and "Seccomp:\t2" in first.shown, f"its size: {first.shown}")
        with Terminal(nerdctl.command("exec", "-it", "web", "sh")) as second:
            until(lambda: "# " in second.shown or second.status is not None, "a prompt")
            second.type("stty size; exit 5\n")
            until(lambda: second.status is not None, "its end")
            assert size in second.shown
            assert "exit code 5" in second.shown  # nerdctl's own status is 1
        first.type("exit 7\n")
        until(lambda: first.status is not None, "its end")
        assert first.status == 7, first.shown
    nerdctl.bed.check_empty()


def test_two_services_are_composed(nerdctl: Nerdctl, tmp_path: Path) -> None:
    """One finds the other by its name."""
    file = tmp_path / "compose.yaml"
    file.write_text(SERVICES.format(image=IMAGE, runtime=RUNTIME, page=PAGE))
    compose = ("compose", "-f", str(file), "-p", "site")
    nerdctl.run(*compose, "up", "-d")
    assert len(nerdctl.bed.node.sandboxes()) == 2
    nerdctl.bed.node.until(lambda: PAGE in nerdctl.run(*compose, "logs", "--no-color", "reader"), "the page")
    nerdctl.run(*compose, "down")
    nerdctl.bed.check_empty()
    assert "site" not in nerdctl.run("ps", "-a")
