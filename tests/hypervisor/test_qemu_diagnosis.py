"""From an exit status and an output tail to one line that says what to do."""

from __future__ import annotations

import pytest

from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor.host import ExitStatus
from kata_hypervisor.output_tail import Tail
from kata_hypervisor.qemu.diagnosis import Ending
from tables import make_table


def describe(
    process: str = "qemu",
    *,
    status: ExitStatus,
    stderr: str = "",
    console: str = "",
    shutdown: str | None = None,
) -> str:
    output, screen = Tail(), Tail()
    output.feed(stderr.encode())
    screen.feed(console.encode())
    table = make_table(QemuHypervisor, kernel="/k", seccompsandbox="on")
    return Ending(process, status, output, screen, shutdown, running=False).describe(table)


FAILED = ExitStatus(code=1)


@pytest.mark.parametrize(
    ("stderr", "hint"),
    [
        ("qemu: Could not access KVM kernel module: No such file or directory", 'set accelerator = "tcg"'),
        ("qemu: failed to initialize kvm: Permission denied", 'set accelerator = "tcg"'),
        ("qemu: cannot set up guest memory 'memory': Cannot allocate memory", "too little free memory"),
        ("qemu: There is no option group 'sandbox'", "built without seccomp"),
        (
            "qemu: linux kernel too old to load a ram disk",
            "kernel in [hypervisor.qemu] is not a Linux kernel",
        ),
        ("qemu: could not load PC BIOS 'qboot.rom'", "firmware files are missing"),
    ],
)
def test_frequent_causes_come_with_what_to_do(stderr: str, hint: str) -> None:
    line = describe(status=FAILED, stderr=f"{stderr}\n")
    assert line.startswith(f"qemu exited with status 1 before the guest was ready: {stderr} (")
    assert hint in line
    assert "\n" not in line


def test_virtiofsds_words_are_not_read_as_qemus() -> None:
    line = describe("virtiofsd", status=FAILED, stderr="Cannot allocate memory")
    assert line == "virtiofsd exited with status 1 before the guest was ready: Cannot allocate memory"


def test_a_program_that_says_nothing_is_named_by_its_path() -> None:
    line = describe(status=FAILED)
    assert line == "qemu exited with status 1 before the guest was ready, and wrote nothing to stderr"
    line = describe("virtiofsd", status=FAILED)
    assert line.endswith("exited with status 1 before the guest was ready, and wrote nothing to stderr")


def test_a_crash_does_not_hide_behind_the_guests_word() -> None:
    line = describe(status=ExitStatus(signal=6), stderr="assertion failed", shutdown="guest-shutdown")
    assert line == "qemu was killed by SIGABRT before the guest was ready: assertion failed"


def test_the_last_panic_of_the_guest_is_quoted() -> None:
    console = (
        "Kernel panic - not syncing: VFS: no root\r\n---[ end Kernel panic - not syncing: VFS: no root ]---\n"
    )
    line = describe(status=ExitStatus(code=0), console=console, shutdown="guest-panic")
    assert line == "the guest's kernel panicked: not syncing: VFS: no root"
