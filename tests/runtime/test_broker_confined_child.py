"""The root of a confined child, as it is planned; and the users of pods."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from broker_bed import Bed, make_bed
from kata_runtime.broker import claims, confined_child, pod_identity
from kata_runtime.broker.confined_child import resolve
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.broker.pod_identity import PodIdentity
from kata_runtime.broker.rollback import RollbackJournal
from kata_runtime.identity import SandboxIdentity

USER = 1_900_000_007
LINKS = {
    "/lib": "usr/lib",
    "/opt/vmm": "../usr/bin/vmm-7",
    "/usr/bin/vmm-7": "/lib/vmm/../vmm/vmm",
    "/loop": "/loop",
}


@pytest.mark.parametrize(
    ("path", "real", "links"),
    [
        ("/usr/lib/x.so", "/usr/lib/x.so", []),
        ("/lib/x.so", "/usr/lib/x.so", ["/lib"]),
        ("/opt/vmm", "/usr/lib/vmm/vmm", ["/opt/vmm", "/usr/bin/vmm-7", "/lib"]),
        ("/a/./b//../c", "/a/c", []),
        ("/../..", "/", []),
    ],
)
def test_a_path_is_resolved_with_the_links_on_its_way(path: str, real: str, links: list[str]) -> None:
    assert resolve(path, LINKS.get) == (real, {link: LINKS[link] for link in links})


def test_links_that_lead_nowhere_end() -> None:
    with pytest.raises(OSError, match="more than 40 links"):
        resolve("/loop", LINKS.get)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that is none of the system's."""
    path = tmp_path / "bin" / "vmm"
    path.parent.mkdir()
    path.write_bytes(b"\x7fELF")
    path.chmod(0o755)
    return path


def plan(program: Path, **fields: Any) -> confined_child.Plan:
    defaults = {
        "files": [],
        "data": [],
        "devices": [],
        "proc": False,
        "written": [],
        "serves": None,
        "network": True,
        "open_files": 64,
        "file_size": 0,
        "disks": {},
        "run_directory": None,
        "writable": [],
        "jailer": False,
    }
    return confined_child.plan("vmm", str(program), {**defaults, **fields}, USER, "/place")


def test_the_root_holds_the_program_libraries_and_what_was_listed(program: Path, tmp_path: Path) -> None:
    kernel, firmware = tmp_path / "vmlinuz", tmp_path / "firmware"
    kernel.touch(0o644)
    firmware.mkdir()
    link = tmp_path / "link"
    link.symlink_to("vmlinuz")
    made = plan(program, files=[str(link)], data=[str(firmware), "/nowhere"], devices=["/dev/null"])
    listed = {path: how for path, how in made.shown.items() if path.startswith(str(tmp_path))}
    assert listed == {str(program): (False, True), str(kernel): (False, False), str(firmware): (True, False)}
    assert made.links[str(link)] == "vmlinuz"
    assert set(made.shown) - set(listed) <= {os.path.realpath(path) for path in confined_child.LIBRARIES}
    assert made.devices == {"/dev/null": (stat.S_IFCHR | 0o600, os.makedev(1, 3))}
    assert not {"/etc", "/usr", "/usr/bin", "/home", "/"} & set(made.shown)


def test_what_a_shown_directory_holds_is_shown_once(program: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    inside = tmp_path / "data" / "kernel"
    inside.touch(0o644)
    made = plan(program, data=[str(tmp_path / "data")], files=[str(inside)])
    assert str(inside) not in made.shown


def test_a_script_has_its_interpreter(program: Path) -> None:
    program.write_text("#! /bin/sh -e\n")
    assert os.path.realpath("/bin/sh") in plan(program).shown


@pytest.mark.parametrize("key", ["files", "data"])
def test_what_the_user_could_not_read_is_refused_with_what_to_do(
    program: Path, tmp_path: Path, key: str
) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.touch()
    kernel.chmod(0o600)
    with pytest.raises(RequestFailedError) as caught:
        plan(program, **{key: [str(kernel)]})
    assert str(caught.value) == (
        f"cannot start vmm: {kernel} has mode 0600, and vmm runs as user {USER} of its pod, which cannot "
        f"read it: chmod o+r {kernel}"
    )


def test_a_program_for_its_owner_is_refused(program: Path) -> None:
    program.chmod(0o700)
    with pytest.raises(RequestFailedError, match=f"chmod o\\+rx {program}"):
        plan(program)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"files": ["/nowhere"]}, "/nowhere: No such file or directory"),
        ({"files": ["/"]}, "/ is neither a file nor a directory of its own"),
        ({"files": ["/dev/null"]}, "/dev/null is neither a file"),
        ({"devices": ["/dev"]}, "/dev is not a character device"),
        ({"disks": {"/dev/null": True}}, "/dev/null is not a block device"),
    ],
)
def test_what_cannot_be_shown_is_refused(program: Path, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestFailedError, match=reason):
        plan(program, **fields)


# -- users -------------------------------------------------------------------------------------------------


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Any:
    with make_bed(monkeypatch) as made:
        yield made


def pod_of(bed: Bed, sandbox: str) -> tuple[PodIdentity, RollbackJournal]:
    identity = SandboxIdentity(bed.identity.address, "test", sandbox)
    os.makedirs(bed.root / "journals" / sandbox)
    directory = os.open(bed.root / "journals" / sandbox, os.O_RDONLY)
    journal = RollbackJournal.create(directory, {"sandbox": sandbox})
    return PodIdentity(identity, journal), journal


def undo(journal: RollbackJournal) -> None:
    for entry in journal.entries.values():
        assert entry["undo"] == pod_identity.UNDO
        claims.release(entry["path"], entry["key"])


def test_each_pod_has_a_user_of_its_own_until_its_end(bed: Bed) -> None:
    pods = [pod_of(bed, f"pod{number}") for number in range(3)]
    users = {pod.take(5000, 3) for pod, _ in pods}
    assert users == {5000, 5001, 5002}
    fourth, journal = pod_of(bed, "pod3")
    with pytest.raises(RequestFailedError, match=r"all 3 users from 5000 on are taken .*sandbox_uid_count"):
        fourth.take(5000, 3)
    assert not journal.entries
    undo(pods[1][1])
    assert fourth.take(5000, 3) == pods[1][0].user
    undo(pods[1][1])  # once more: it is another's by now, and stays
    with pytest.raises(RequestFailedError):
        pod_of(bed, "pod4")[0].take(5000, 3)
    for _, of in (*pods, (fourth, journal)):
        undo(of)


def test_a_pod_takes_one_user_and_has_none_before(bed: Bed) -> None:
    pod, journal = pod_of(bed, "pod")
    with pytest.raises(RequestRefusedError, match="has no user yet"):
        _ = pod.user
    pod.take(5000, 1)
    with pytest.raises(RequestRefusedError, match="has its user already"):
        pod.take(5000, 1)
    undo(journal)
