"""kata-ctl confinement: its text, its exit status, and the tables that docs/threat-model.md has of it."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kata_hypervisor.seccomp.policy import PROCESS, load_policy
from kata_runtime.broker import pod_confinement
from kata_runtime.confinement import reach
from kata_runtime.confinement.judging import CAPABILITIES
from kata_runtime.confinement.rows import ROWS, Row
from kata_runtime.ctl import confinement_page, confinement_report, confinement_text, running
from kata_runtime.ctl.main import main
from kata_runtime.ctl.running import RecordedProcess, RecordedSandbox
from kata_runtime.ctl.seccomp_policy import measure
from kata_runtime.ctl.seccomp_status import Inspector

PAGE = Path(__file__).parents[2] / "docs" / "threat-model.md"
HERE = {"namespaces": {}, "root": [0, 0]}


def sandbox(directory: Path, name: str = "cloud-hypervisor") -> RecordedSandbox:
    """A sandbox whose one process is this one."""
    return RecordedSandbox("web", "default", str(directory), "/s", (RecordedProcess(name, os.getpid()),))


@pytest.fixture
def verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a broker has recorded in `tmp_path`: nothing of this process must be anything."""
    found = {
        "user": 1_900_000_000,
        "landlock": True,
        "sealed": False,
        "outside": False,
        "host": HERE,
        "inherited": 0,
        "filters": {"cloud-hypervisor": 0},
        "lacking": {"cgroup": "the pod's cgroup has no controller for pids"},
    }
    (tmp_path / pod_confinement.RECORD).write_text(json.dumps(found))
    monkeypatch.setitem(ROWS, "cloud-hypervisor", Row("Cloud Hypervisor", seccomp="its own"))
    return found


def run(monkeypatch: pytest.MonkeyPatch, found: list[RecordedSandbox], *arguments: str) -> int:
    monkeypatch.setattr(running, "running_sandboxes", lambda: iter(found))
    return main(["confinement", *arguments])


def test_a_process_that_is_enough(
    verified: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, [sandbox(tmp_path)], "--json") == 0
    (report,) = json.loads(capfd.readouterr().out)
    assert report["verified"] == verified
    (process,) = report["processes"]
    assert (process["pid"], process["users"][0]) == (os.getpid(), os.getuid())
    assert process["weaker"] == []
    assert sum(process["descriptors"].values()) > 2
    (owned,) = report["owned"]
    assert owned["role"] == "cloud-hypervisor"


def test_a_weaker_process_is_marked_and_is_a_fault(
    verified: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, [sandbox(tmp_path, "qemu")]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert "  this host lacks cgroup: the pod's cgroup has no controller for pids" in lines
    assert any(line.startswith("    ! user          uid ") for line in lines)
    assert any(line.startswith("    ! weaker        it ") and "has the user" in line for line in lines)
    assert any(line.startswith("      cgroup  ") for line in lines)


def test_before_the_broker_has_verified_it_nothing_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, [sandbox(tmp_path, "qemu")]) == 0
    assert "not verified yet: the guest does not run" in capfd.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"user": "x"}', '{"user": 1, "landlock": true}', "\x00"])
def test_a_record_that_is_none_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / pod_confinement.RECORD).write_text(text)
    assert confinement_report.read_verified(str(tmp_path)) is None


def test_no_such_sandbox(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, [], "web") == 2
    assert "kata-ctl: no running sandbox has an id that starts with 'web'" in capfd.readouterr().err
    assert run(monkeypatch, []) == 2
    assert capfd.readouterr().err == "kata-ctl: no sandbox is running on this host\n"


def test_what_a_terminal_would_obey_is_escaped(verified: dict[str, Any], tmp_path: Path) -> None:
    report = confinement_report.report(sandbox(tmp_path), Inspector())
    hostile = "x\x1b[2J\r\n  broker, pid 1"
    report["processes"][0]["name"] = hostile
    report["processes"][0]["cgroups"] = {"cpu": hostile}
    text = confinement_text.text(report)
    assert text.replace("\n", "").isprintable()
    assert "  broker, pid 1" not in text.splitlines()


def test_a_thread_that_lost_its_filter_is_weaker(verified: dict[str, Any], tmp_path: Path) -> None:
    verified["filters"] = {"cloud-hypervisor": 7}
    (tmp_path / pod_confinement.RECORD).write_text(json.dumps(verified))
    report = confinement_report.report(sandbox(tmp_path), Inspector())
    assert [weaker["cell"] for weaker in report["processes"][0]["weaker"]] == ["seccomp"]


def test_threads_that_differ_are_listed_apart(verified: dict[str, Any], tmp_path: Path) -> None:
    report = confinement_report.report(sandbox(tmp_path), Inspector())
    (process,) = report["processes"]
    first = {**process["threads"][0], "name": "x", "filters": 1, "effective": [], "surface": None}
    process["threads"] = [first, first, {**first, "effective": ["mknod"]}]
    lines = [line.strip() for line in confinement_text.text(report).splitlines()]
    assert "2 threads x: 1 filters, ? calls, score ?, 0 effective capabilities" in lines
    assert "1 thread x: 1 filters, ? calls, score ?, 1 effective capabilities" in lines
    process["threads"] = [first, first]
    assert "threads x" not in confinement_text.text(report)


def test_threads_that_are_kept_on_other_cpus_are_named(verified: dict[str, Any], tmp_path: Path) -> None:
    report = confinement_report.report(sandbox(tmp_path), Inspector())
    (process,) = report["processes"]
    first = {**process["threads"][0], "name": "qemu", "cpus": "0-7"}
    process["threads"] = [first, first]
    assert "runs on       CPUs 0-7 of the host\n" in confinement_text.text(report)
    process["threads"] = [first, {**first, "name": "CPU 0/KVM", "cpus": "2"}, {**first, "cpus": "5"}]
    found = "runs on       CPUs 0-7 of the host; CPU 0/KVM on 2; qemu on 5\n"
    assert found in confinement_text.text(report)


def test_capabilities_in_words() -> None:
    assert confinement_text.capabilities([]) == "none"
    assert confinement_text.capabilities(["chown", "mknod"]) == "chown mknod"
    everything = list(CAPABILITIES)
    assert confinement_text.capabilities(everything) == "all"
    assert confinement_text.capabilities([name for name in everything if name != "sys_boot"]) == (
        "all but sys_boot"
    )


# -- the page ------------------------------------------------------------------------------------------------


def test_the_page_has_the_declared_rows() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert confinement_page.block(page, confinement_page.ROWS_BLOCK) == confinement_page.expected_table(), (
        "run make confinement-page"
    )


@pytest.mark.parametrize(
    ("driver", "kind", "others"),
    [
        ("qemu", "QEMU", [reach.SHARED_FILES]),
        ("solo5-hvt", "solo5-hvt", []),
        ("solo5-spt", "solo5-spt", []),
        ("dragonball", "dragonball", [reach.SHARED_FILES]),
        ("dragonball-unikernel", "dragonball, of a unikernel", []),
    ],
)
def test_the_page_has_the_score_of_who_owns_the_shim(
    driver: str, kind: str, others: list[reach.Service]
) -> None:
    """It follows from the policy and the broker's operations, and needs no live pod."""
    found_of = measure(load_policy())[driver, PROCESS]
    held = reach.Held(
        role="shim",
        user=1,
        calls=frozenset(found_of.named("open")),
        conditional=frozenset(found_of.named("conditional")),
        own_root=False,
        own_network=False,
        landlocked=True,
        capabilities=frozenset(),
    )
    found = reach.unite(held, [*reach.BROKER_SERVICES.values(), *others])
    page = PAGE.read_text(encoding="utf-8")
    seen = confinement_page.read_seen(confinement_page.block(page, confinement_page.SEEN_BLOCK))
    assert seen["shim", kind].numbers == (str(found.calls), f"{found.alone:g}", f"{found.score:g}"), (
        "run make confinement-page with the report of a live pod"
    )


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("README.md", "a guest that owns {owned}: score {score} with what others do for it"),
        ("SPECIFICATION.md", "scores below 300: {shim} and {qemu}"),
    ],
)
def test_other_pages_have_the_same_scores(page: str, sentence: str) -> None:
    seen = confinement_page.read_seen(
        confinement_page.block(PAGE.read_text(encoding="utf-8"), confinement_page.SEEN_BLOCK)
    )
    scores = {role: seen[role, "QEMU"].numbers[2] for role in ("shim", "qemu")}
    text = (PAGE.parents[1] / page).read_text(encoding="utf-8")
    for role, score in scores.items():
        assert sentence.format(owned=role, score=score, **scores) in text


def test_the_page_has_a_pod_of_every_driver_but_those_that_it_names() -> None:
    page = PAGE.read_text(encoding="utf-8")
    seen = confinement_page.read_seen(confinement_page.block(page, confinement_page.SEEN_BLOCK))
    missing = [kind for kind in confinement_page.KINDS if kind not in {of for _, of in seen}]
    assert missing == ["Cloud Hypervisor", "Firecracker"]
    assert f"{' and '.join(missing)} are left out" in page


def seen_report(*owned: str, others: tuple[str, ...] = ()) -> dict[str, Any]:
    processes = [{"role": role} for role in (*owned, *others)]
    numbers = {"calls": 1, "alone": 2.0, "score": 3.5, "reach": {"run": ["c"], "open": ["a", "b"]}}
    return {"processes": processes, "owned": [{"role": role, **numbers} for role in owned]}


def test_pods_are_of_the_kind_of_their_machine() -> None:
    in_process, unikernel = seen_report("shim", others=("virtiofsd",)), seen_report("shim")
    found = confinement_page.Seen(("1", "2", "3.5"), (("open", "a"), ("open", "b"), ("run", "c")))
    assert confinement_page.seen_of(in_process) == {("shim", "dragonball"): found}
    assert confinement_page.seen_of(unikernel) == {("shim", "dragonball, of a unikernel"): found}
    assert confinement_page.seen_of(seen_report("shim", "qemu")) == {
        ("shim", "QEMU"): found,
        ("qemu", "QEMU"): found,
    }


def test_a_table_of_pods_reads_as_it_was_written() -> None:
    seen = {
        ("shim", "dragonball, of a unikernel"): confinement_page.Seen(("1", "2", "3"), ()),
        ("shim", "QEMU"): confinement_page.Seen(("4", "5.5", "6"), (("open", "a: b"), ("run", "c"))),
        ("qemu", "QEMU"): confinement_page.Seen(("7", "8", "9"), (("open", "d"),)),
    }
    table = confinement_page.seen_table(seen)
    assert confinement_page.read_seen(table) == seen
    assert table.splitlines()[0] == (
        "| a guest that owns | shim of QEMU | qemu of QEMU | shim of dragonball, of a unikernel |"
    )
    assert "| can open: a: b | yes | - | - |" in table


def test_a_page_is_written(
    tmp_path: Path, verified: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    report = confinement_report.report(sandbox(tmp_path), Inspector())
    page, path = tmp_path / "page.md", tmp_path / "report.json"
    rows, seen = confinement_page.ROWS_BLOCK, confinement_page.SEEN_BLOCK
    dated = confinement_page.Seen(("dated", "1", "1"), ())
    kept = {("shim", "QEMU"): confinement_page.Seen(("1", "2", "3"), (("run", "x"),))}
    table = confinement_page.seen_table({("shim", "Cloud Hypervisor"): dated} | kept)
    page.write_text(
        "".join(f"<!-- generated: {name} -->\n{table}\n<!-- end of {name} -->\n" for name in (rows, seen))
    )
    path.write_text(json.dumps([report]))
    assert confinement_page.main([str(page), str(path)]) == 1
    assert capsys.readouterr().err.startswith("cloud-hypervisor is ")
    text = page.read_text()
    assert "dated" not in text
    assert confinement_page.block(text, rows) == confinement_page.expected_table()
    written = confinement_page.read_seen(confinement_page.block(text, seen))
    assert written == kept | confinement_page.seen_of(report)
    assert ("cloud-hypervisor", "Cloud Hypervisor") in written


def test_a_row_that_was_seen_is_as_weak_as_it_is(tmp_path: Path, verified: dict[str, Any]) -> None:
    report = confinement_report.report(sandbox(tmp_path), Inspector())
    (process,) = report["processes"]
    strict = copy.deepcopy(process)
    strict.update(
        users=[verified["user"]] * 4,
        groups=[verified["user"]] * 4,
        capabilities={name: [] for name in process["capabilities"]},
        no_new_privs=True,
        limits={"core": [0, 0], "fsize": [-1, -1]},
        namespaces={"net": "own", "mnt": "own", "user": "host"},
        root="own",
        seccomp={"filters": 1},
    )
    words = confinement_page.cells(confinement_page.row_seen(strict, report))
    assert words == [
        "the pod's",
        "none",
        "yes",
        "none",
        "mnt, net",
        "its own",
        "any",
        "its own",
    ]
    for size, files in ((0, "none"), (1 << 30, "of its guest's size")):
        bounded = {**strict, "limits": {"core": [0, 0], "fsize": [size, size]}}
        assert files in confinement_page.cells(confinement_page.row_seen(bounded, report))
    weak = {
        **strict,
        "users": [0, 0, 0, 0],
        "capabilities": {"bounding": ["mknod"]},
        "seccomp": {"filters": 0},
    }
    words = confinement_page.cells(confinement_page.row_seen(weak, report))
    assert words == ["root's", "mknod", "yes", "none", "mnt, net", "its own", "any", "none"]
