"""The seccomp tools on real programs: QEMU's own filter read back, and QEMU traced and profiled."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import containerd_versions
from kata_hypervisor.seccomp import bpf, readback
from kata_hypervisor.seccomp import trace as traces
from kata_hypervisor.seccomp.confinement import inherited_filters, read_threads
from kata_hypervisor.seccomp.score import PUBLISHED, surface_of
from kata_hypervisor.seccomp.survey import survey, union
from node import FOREVER, Node

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        inherited_filters() > 0, reason="every process here is under a filter, so nothing can be read back"
    ),
]

DENIED = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
HEADLESS = ["-nodefaults", "-display", "none", "-sandbox", DENIED]
MONITORED = ["qemu-system-x86_64", "-M", "none", *HEADLESS, "-monitor", "stdio"]
BLOCKED_BY_QEMU = ["execve", "execveat", "fork", "vfork", "mount", "unshare", "setns", "setuid"]


def kata_ctl(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kata_runtime.ctl.main", "seccomp", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


@pytest.fixture
def confined_qemu() -> Iterator[subprocess.Popen[bytes]]:
    """A QEMU with all four groups denied; its monitor has answered, so its filter is on."""
    with subprocess.Popen(MONITORED, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"QEMU" in process.stdout.readline()
        yield process
        process.kill()


def test_qemus_filter_is_what_is_published_of_it(confined_qemu: subprocess.Popen[bytes]) -> None:
    threads = read_threads(confined_qemu.pid)
    programs = {tuple(readback.read_filters(thread.tid)) for thread in threads}
    ((program,),) = programs
    found = survey([program])
    for call in BLOCKED_BY_QEMU:
        assert found.calls[call].access == "closed"
    assert found.calls["clone3"].refusals == ("errno ENOSYS",)
    assert found.calls["sched_setaffinity"].refusals == ("errno EPERM",)
    assert found.named("conditional") == ["clone", "sched_setscheduler"]
    assert found.gaps == ("calls without a name",)
    surface = surface_of(found)
    published = next(vmm for vmm in PUBLISHED if vmm.name == "QEMU, all four groups denied")
    # The published figure counts 362 names; later kernels' calls are all open to a list of what is denied.
    newer = [name for name in found.allowed if name not in survey_of_its_day()]
    assert surface.allowed - len(newer) == published.allowed
    assert surface.unfiltered - len(newer) == published.unfiltered
    assert surface.escape
    assert "ret kill process" in [bpf.render(instruction) for instruction in bpf.decode(program)]
    assert union([found, survey([])]).allowed == survey([]).allowed


def survey_of_its_day() -> set[str]:
    """The names of Linux 6.1's headers, which the publication counted."""
    from kata_hypervisor.seccomp import syscalls

    later = ("uretprobe", "uprobe")
    return {name for name, number in syscalls.numbers().items() if number <= 450 and name not in later}


def test_it_goes_on_after_being_read(confined_qemu: subprocess.Popen[bytes]) -> None:
    for thread in read_threads(confined_qemu.pid):
        readback.read_filters(thread.tid)
    assert confined_qemu.stdin is not None
    confined_qemu.stdin.write(b"quit\n")
    confined_qemu.stdin.flush()
    assert confined_qemu.wait() == 0


def test_qemu_traced_profiled_and_run_under_its_profile(tmp_path: Path) -> None:
    records = [str(tmp_path / f"{number}.json") for number in range(3)]
    for record in records:  # a program does not make the very same calls each time
        traced = kata_ctl("trace", "--output", record, "--", *MONITORED, text="quit\n")
        assert traced.returncode == 0, traced.stderr
    first = traces.load(Path(records[0]))
    assert {"execve", "seccomp", "ppoll", "mmap", "exit_group"} <= first.calls.keys()
    for form, file in (("policy", "p.toml"), ("oci", "p.json"), ("solo5-hvt", "p.names")):
        path = str(tmp_path / file)
        written = kata_ctl("profile", *records, "--format", form, "--output", path)
        assert written.returncode == 0, written.stderr
        assert kata_ctl("diff", records[0], path).returncode == 0
    names = tmp_path / "p.names"
    run = kata_ctl("run", "--profile", str(names), "--", *MONITORED, text="quit\n")
    assert (run.returncode, run.stderr) == (0, "")
    names.write_text(names.read_text().replace("eventfd2\n", ""))
    run = kata_ctl("run", "--profile", str(names), "--", *MONITORED, text="quit\n")
    assert run.returncode == 1
    assert f"called eventfd2 (290), which {names} does not allow" in run.stderr


def test_a_machine_that_boots_is_traced_thread_by_thread(guest_image: Path, tmp_path: Path) -> None:
    """A kernel without a root file system: it boots, finds none, and its panic ends QEMU."""
    record = tmp_path / "boot.json"
    kernel = ["-kernel", str(guest_image / "vmlinuz"), "-append", "panic=-1 quiet"]
    machine = ["-M", "q35", "-accel", "tcg", "-m", "256", "-name", "boot,debug-threads=on", "-no-reboot"]
    command = ["qemu-system-x86_64", *machine, *HEADLESS, *kernel]
    traced = kata_ctl("trace", "--output", str(record), "--", *command)
    assert traced.returncode == 0, traced.stderr
    found = traces.load(record)
    threads = {seen.thread for seen in found.observations}
    assert any(thread.startswith("CPU 0") for thread in threads)
    of_cpu = found.of(thread="CPU 0")
    assert set(of_cpu.calls) < set(found.calls)
    assert "execve" not in of_cpu.calls


def test_a_whole_pod_is_traced_with_the_containerd_that_starts_it(guest_image: Path, tmp_path: Path) -> None:
    """Shim and QEMU run without our filters then: a traced process cannot have a listener of its own."""
    record, containerd = tmp_path / "pod.json", tmp_path / "containerd"
    real = containerd_versions.find(containerd_versions.SYSTEM)
    tracing = ["seccomp", "trace", "--quiet", "--output", str(record)]
    arguments = [sys.executable, "-m", "kata_runtime.ctl.main", *tracing]
    containerd.write_text(f'#!/bin/sh\nexec {shlex.join(arguments)} -- {real.containerd} "$@"\n')
    containerd.chmod(0o755)
    node = Node(replace(real, containerd=containerd), guest_image)
    try:
        node.start()
        unsealed = node.configuration("unsealed", shim_seccomp="off", seccompsandbox="off")
        with node.running(*FOREVER, options=("--runtime-config-path", unsealed)):
            pass
    finally:
        node.close()
    programs = {seen.program for seen in traces.load(record).observations}
    assert {"containerd", "qemu-system-x86_64", "virtiofsd"} <= programs


def test_verify_passes_here_with_every_rule() -> None:
    answer = kata_ctl("verify", "--json")
    found: dict[str, Any] = json.loads(answer.stdout)
    assert answer.returncode == 0, [case for case in found["cases"] if not case["ok"]]
    assert found["ok"] is True
