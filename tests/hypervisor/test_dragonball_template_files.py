"""Templates on the disk: who may have written them, and for which machines they are good."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from kata_hypervisor import registry
from kata_hypervisor.contract import VmSpec
from kata_hypervisor.dragonball import boot_source, template
from kata_hypervisor.dragonball.machine import Board, Machine
from kata_hypervisor.dragonball.saved_state import decode
from kata_hypervisor.dragonball.template import Saving, Template, identity_of
from kata_hypervisor.errors import NotSupportedError, SnapshotError

LINE = "console=ttyS0"
DEVICES = ("virtio-blk, read-only", "Socket")
ANEW = "make it anew: kata-ctl factory init"


class FakeMachine:
    """A machine that has a state, and a word in its memory."""

    def save(self, memory: int) -> dict[str, Any]:
        os.pwrite(memory, b"memory", 4096)
        return {"state": 1}


@pytest.fixture
def spec(tmp_path: Path) -> VmSpec:
    """A machine with a kernel and an image."""
    for name in ("kernel", "image"):
        (tmp_path / name).write_text(name)
    return VmSpec("pod", tmp_path, 1, 2, tmp_path / "kernel", image=tmp_path / "image")


@pytest.fixture
def saved(spec: VmSpec) -> VmSpec:
    """The same with a template."""
    directory = spec.directory / "template"
    directory.mkdir(mode=0o700)
    saving = Saving(directory, spec, identity_of(spec, LINE, DEVICES))
    saving.write(cast(Machine, FakeMachine()))
    saving.close()
    saving.close()
    return replace(spec, template=directory)


def check(spec: VmSpec, line: str = LINE, devices: tuple[str, ...] = DEVICES) -> str | None:
    """What the template's check says; it leaves nothing open."""
    before = len(os.listdir("/proc/self/fd"))
    assert spec.template is not None
    try:
        opened = Template(spec.template)
        try:
            assert os.pread(opened.memory, 6, 4096) == b"memory"
            return opened.check(spec, identity_of(spec, line, devices))
        finally:
            opened.close()
            opened.close()
    finally:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_template_is_good_for_the_machine_that_it_was(saved: VmSpec) -> None:
    assert check(saved) is None
    assert saved.template is not None
    assert {path.stat().st_mode & 0o777 for path in saved.template.iterdir()} == {0o600}
    assert registry.describe_template("dragonball", saved) == {
        "number of vCPUs": "1",
        "memory in MiB": "2",
        "kernel command line": LINE,
        "devices": "virtio-blk, read-only; Socket",
    }
    with pytest.raises(NotSupportedError, match="has no templates"):
        registry.describe_template("qemu", saved)


def test_another_size_is_told(saved: VmSpec) -> None:
    assert check(replace(saved, vcpus=2)) == "its number of vCPUs is '2', the template's '1'"
    assert check(replace(saved, memory_mib=4)) == "its memory in MiB is '4', the template's '2'"
    assert check(saved, line="x") == f"its kernel command line is 'x', the template's '{LINE}'"
    assert check(saved, devices=("Socket",)) == (
        "its devices is 'Socket', the template's 'virtio-blk, read-only; Socket'"
    )


def test_a_file_that_was_copied_or_touched_is_the_same(saved: VmSpec) -> None:
    os.utime(saved.kernel)
    copy = saved.directory / "copy"
    copy.write_text("kernel")
    assert check(replace(saved, kernel=copy)) is None


def test_a_stale_template_is_refused_with_both_values(saved: VmSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    other = saved.directory / "other"
    other.write_text("other")
    for changed in ({"kernel": other}, {"image": other}, {"image": None}, {"initrd": other}):
        with pytest.raises(SnapshotError, match=f"the guest's {next(iter(changed))} was .*, is .*; {ANEW}"):
            check(replace(saved, **cast("dict[str, Any]", changed)))
    with pytest.raises(SnapshotError, match="kernel /gone cannot be read: No such file"):
        check(replace(saved, kernel=Path("/gone")))
    for name, value in (("_digest_of_program", "1.2"), ("_processor", "another")):
        with monkeypatch.context() as patch:
            patch.setattr(template, name, lambda value=value: value)
            with pytest.raises(SnapshotError, match=f"was '.*', is '{value}'; {ANEW}"):
                check(saved)


def test_without_a_template_it_is_said_how_to_make_one(spec: VmSpec) -> None:
    with pytest.raises(SnapshotError, match=r"there is no template in .*/none: run kata-ctl factory init"):
        check(replace(spec, template=spec.directory / "none"))
    (spec.directory / "empty").mkdir()
    with pytest.raises(SnapshotError, match="there is no template"):
        check(replace(spec, template=spec.directory / "empty"))


@pytest.mark.parametrize("name", [".", "state", "memory"])
def test_what_others_may_write_is_refused(saved: VmSpec, name: str) -> None:
    assert saved.template is not None
    path = saved.template / name
    mode = path.stat().st_mode
    for bit in (0o020, 0o002):
        path.chmod(mode | bit)
        with pytest.raises(SnapshotError, match="others may write it"):
            check(saved)
    path.chmod(mode)
    assert check(saved) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file to another user")
@pytest.mark.parametrize("name", [".", "state", "memory"])
def test_what_belongs_to_others_is_refused(saved: VmSpec, name: str) -> None:
    assert saved.template is not None
    os.chown(saved.template / name, 65534, -1)
    with pytest.raises(SnapshotError, match="belongs to user 65534"):
        check(saved)


def test_what_is_no_file_is_refused(saved: VmSpec) -> None:
    assert saved.template is not None
    for name in ("state", "memory"):
        path = saved.template / name
        kept = path.rename(saved.directory / "kept")
        path.symlink_to(kept)
        with pytest.raises(SnapshotError, match=r"cannot open the template in .*: Too many levels"):
            check(saved)
        path.unlink()
        os.mkfifo(path, 0o600)
        with pytest.raises(SnapshotError, match="no regular file"):
            check(saved)
        path.unlink()
        kept.rename(path)


def test_damage_is_refused(saved: VmSpec) -> None:
    assert saved.template is not None
    whole = (saved.template / "state").read_bytes()
    for damaged in (b"", whole[:-1], whole.replace(b"ttyS0", b"ttyS1"), whole + bytes(17 << 20)):
        (saved.template / "state").write_bytes(damaged)
        with pytest.raises(SnapshotError, match=f"cannot start from the template in .*; {ANEW}"):
            check(saved)
    (saved.template / "state").write_bytes(whole)
    os.truncate(saved.template / "memory", 1 << 20)
    with pytest.raises(SnapshotError, match=f"its memory file has another size than the machine; {ANEW}"):
        check(saved)


def test_nothing_is_written_over(saved: VmSpec) -> None:
    assert saved.template is not None
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SnapshotError, match=r"cannot save the machine in .*: File exists"):
        Saving(saved.template, saved, {})
    with pytest.raises(SnapshotError, match="No such file"):
        Saving(saved.directory / "none", saved, {})
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_machine_begins_with(saved: VmSpec) -> None:
    board = Board(1, 2 << 20)
    with ExitStack() as ours:
        begin, saving = boot_source.choose(saved, LINE, DEVICES, ours)
        assert isinstance(begin, boot_source.Restore)
        assert saving is None
        assert begin.prepare(board).private
        assert not begin.prepare(replace(board, huge=True)).private
        begin, _ = boot_source.choose(replace(saved, vcpus=2), LINE, DEVICES, ours)
        assert isinstance(begin, boot_source.Boot)
        assert begin.warnings[0].startswith("this machine is booted, not started from its template: ")
        begin, _ = boot_source.choose(replace(saved, template=None), LINE, DEVICES, ours)
        assert (type(begin), begin.warnings, begin.prepare(board)) == (boot_source.Boot, (), board)


def test_what_is_saved_is_one_document(saved: VmSpec) -> None:
    assert saved.template is not None
    document = decode((saved.template / "state").read_bytes())
    assert document.part("machine").integer("state", 1) == 1
    assert document.part("identity").text("command_line") == LINE
