"""kata-ctl seccomp: what each action prints, its exit status, and its errors."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from filtered_process import filtered_process
from kata_hypervisor.driver_policy import FEATURES, features_of, rules_of, threads_of
from kata_hypervisor.seccomp import actions, bpf, syscalls
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.policy import PROCESS, load_policy
from kata_hypervisor.seccomp.survey import survey
from kata_runtime.ctl import running, seccomp_report, seccomp_status
from kata_runtime.ctl.main import main
from kata_runtime.ctl.running import RecordedProcess, RecordedSandbox
from kata_runtime.ctl.seccomp_chart import cells
from kata_runtime.ctl.seccomp_policy import ScoreRow, measure

supervising = pytest.mark.skipif(
    kernel.notification_sizes() is None, reason="this kernel has no seccomp notifications"
)


def out_of(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run kata-ctl; its exit status and what it wrote to both streams."""
    status = main(["seccomp", *arguments])
    written = capfd.readouterr()
    return status, written.out, written.err


# -- show, score, verify -------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", sorted(FEATURES))
def test_a_driver_has_rules_of_the_policy(driver: str) -> None:
    policy = load_policy()
    for thread in threads_of(driver):
        assert rules_of(policy, driver, thread)
    assert features_of(driver) <= policy.features


def test_show_prints_each_rule_with_its_conditions_and_its_reason(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = out_of(capfd, "show")
    assert status == 0
    policy = load_policy()
    flat = " ".join(out.split())
    for rule in policy.select(policy.features):
        assert ", ".join(rule.calls) in flat
        assert " ".join(rule.reason.split()) in flat
        assert rule.when in flat
    assert "answered with errno ENOSYS" in flat


def test_show_as_json_has_every_rule(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = out_of(capfd, "show", "--json", "--driver", "qemu")
    assert status == 0
    assert len(json.loads(out)) == len(rules_of(load_policy(), "qemu", PROCESS))


def test_show_of_a_wrong_policy_says_what_is_wrong(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(
        'architecture = "x86_64"\n[[rule]]\ncalls = ["raed"]\nreason = "r"\nfeatures = ["base"]\n'
    )
    status, out, err = out_of(capfd, "show", "--policy", str(path))
    assert (status, out) == (2, "")
    assert err.startswith(f"kata-ctl: {path}:2: rule 1 (raed): there is no system call 'raed'")


def test_score_puts_the_runtime_beside_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = out_of(capfd, "score", "--json")
    rows = json.loads(out)
    assert status == 0
    assert [row["score"] for row in rows] == sorted(row["score"] for row in rows)
    ours = [row for row in rows if row["ours"]]
    assert {row["name"] for row in ours} >= {f"this runtime's shim, {driver}" for driver in FEATURES}
    escaping = {row["name"]: row["escape"] for row in ours if row["escape"]}
    assert escaping == {
        "this runtime's broker": 6,
        "this runtime's broker, with network, images, KVM": 7,
    }
    assert "Firecracker" in out


def test_score_above_the_limit_is_a_fault(capfd: pytest.CaptureFixture[str]) -> None:
    assert out_of(capfd, "score", "--max", "110")[0] == 0
    status, out, err = out_of(capfd, "score", "--max", "1")
    assert status == 1
    assert "Firecracker" in out
    assert "more than 1" in err


@supervising
def test_verify_names_the_rule_that_does_not_hold(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kata_hypervisor.seccomp import verify
    from kata_runtime.ctl import seccomp_verify

    good = verify.Case(1, "read", PROCESS, "as allowed", "passes", "errno EBADF")
    bad = verify.Case(2, "write", PROCESS, "as allowed", "passes", "refused")
    monkeypatch.setattr(
        seccomp_verify, "verify_policy", lambda policy, _features: verify.Report(policy, (good, bad))
    )
    status, out, _ = out_of(capfd, "verify")
    assert status == 1
    assert "FAIL  rule 2: " in out
    assert "rule 2, write on process (as allowed): expected passes, got: refused" in out
    assert "ok    rule 1: " in out
    assert "2 cases, 1 otherwise than x86_64.toml says" in out
    status, out, _ = out_of(capfd, "verify", "--json")
    assert [case["ok"] for case in json.loads(out)["cases"]] == [True, False]


def test_verify_on_a_host_that_lacks_something_tries_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kata_hypervisor.seccomp.verify import HostCheck
    from kata_runtime.ctl import seccomp_verify

    lacking = HostCheck("notifications", False, "none", advice="use Linux 5.7 or later")
    monkeypatch.setattr(seccomp_verify, "check_host", lambda: [lacking])
    status, out, _ = out_of(capfd, "verify")
    assert status == 1
    assert "FAIL  notifications: none (use Linux 5.7 or later)" in out
    assert "no rule was tried" in out


# -- trace, run, diff, profile -------------------------------------------------------------------------------

COUNT = [sys.executable, "-IS", "-c", "import os; os.getppid(); print('ran')"]


@supervising
def test_a_profile_of_a_trace_runs_the_command_and_a_missing_call_is_named(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    record, names = str(tmp_path / "trace.json"), tmp_path / "names"
    status, out, err = out_of(capfd, "trace", "--output", record, "--", *COUNT)
    assert (status, err) == (0, "")
    assert "ran" in out
    assert "getppid" in out
    for form, file in (("policy", "p.toml"), ("oci", "p.json"), ("solo5-hvt", "names")):
        path = str(tmp_path / file)
        assert out_of(capfd, "profile", record, "--format", form, "--output", path)[0] == 0
        assert out_of(capfd, "run", "--profile", path, "--", *COUNT) == (0, "ran\n", "")
        assert out_of(capfd, "diff", record, path)[1] == (
            f"missing in {path}: nothing\nnot used by this trace: nothing\n"
        )
    names.write_text(names.read_text().replace("getppid\n", ""))
    status, out, err = out_of(capfd, "run", "--profile", str(names), "--", *COUNT)
    assert (status, out) == (1, "")
    number = syscalls.number_of("getppid", os.uname().machine)
    assert f"called getppid ({number}), which {names} does not allow" in err
    status, out, _ = out_of(capfd, "diff", record, str(names))
    assert status == 1
    assert "missing in" in out
    assert "getppid" in out


@supervising
def test_the_commands_status_is_the_traces(capfd: pytest.CaptureFixture[str]) -> None:
    assert out_of(capfd, "trace", "--quiet", "--", "sh", "-c", "exit 9") == (9, "", "")


@pytest.mark.parametrize("arguments", [("trace",), ("trace", "--"), ("run", "--profile", "/nowhere")])
def test_without_a_command_there_is_nothing_to_do(
    arguments: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, err = out_of(capfd, *arguments)
    assert (status, out) == (2, "")
    assert "give a command after --" in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("trace", "--", "/nowhere/program"), "there is no such program"),
        (("run", "--profile", "/nowhere.json", "--", "true"), "cannot read the profile /nowhere.json"),
        (("diff", "/nowhere"), "cannot read the trace /nowhere"),
        (("profile", "/nowhere"), "cannot read the trace /nowhere"),
        (("report", "--output", "/nowhere/x.html"), "/nowhere/x.html"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: tuple[str, ...], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, err = out_of(capfd, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("kata-ctl: ")
    assert complaint in err
    assert err.count("\n") == 1


# -- report --------------------------------------------------------------------------------------------------


def test_the_report_is_one_page_that_loads_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert out_of(capfd, "report", "--output", str(path)) == (0, f"wrote {path}\n", "")
    page = path.read_text()
    for outside in ("http-equiv", "<script", "<link", "src=", "url(", "@import"):
        assert outside not in page
    assert page.count("http") == page.count('xmlns="http://www.w3.org/2000/svg"')
    for name in ("Firecracker", "Dragonball in Kata", "this runtime"):
        assert name in page


def test_its_pictures_are_well_formed_and_have_a_cell_for_each_call() -> None:
    for found in measure(load_policy()).values():
        picture = ElementTree.fromstring(cells(found, "a <title> & more"))
        rectangles = [part for part in picture.iter() if part.tag.endswith("rect")]
        assert len(rectangles) == len(found.calls)
        by_access = [part.get("class") for part in rectangles]
        assert by_access.count("open") == len(found.named("open"))
        assert by_access.count("conditional") == len(found.named("conditional"))


def test_the_page_says_how_many_allow_more() -> None:
    rows = [
        ScoreRow("ours", "process", 30, 20, 0, 40, ours=True),
        ScoreRow("less", "process", 9, 9, 0, 9, ours=False),
        ScoreRow("more", "process", 99, 99, 0, 99, ours=False),
        ScoreRow("a thread", "thread", 99, 99, 0, 99, ours=False),
    ]
    assert "less than 1 of the 2 processes" in seccomp_report._finding(rows)


# -- status --------------------------------------------------------------------------------------------------

READ_ONLY = bpf.encode(
    [
        (bpf.LD | bpf.ABS, 0, 0, 4),
        (bpf.JMP | bpf.JEQ | bpf.K, 1, 0, bpf.AUDIT_ARCH["x86_64"]),
        (bpf.RET | bpf.K, 0, 0, actions.KILL_PROCESS),
        (bpf.RET | bpf.K, 0, 0, actions.ALLOW),
    ]
)


def status_of(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    sandbox: RecordedSandbox,
    *arguments: str,
) -> str:
    monkeypatch.setattr(running, "running_sandboxes", lambda: iter([sandbox]))
    status, out, err = out_of(capfd, "status", *arguments)
    assert (status, err) == (0, "")
    return out


def test_status_shows_every_thread_of_every_process(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seal: dict[str, Any] = {"mode": "enforce", "policy": "x86_64 [base]", "calls": {"execve": 2}}
    (tmp_path / "seal.json").write_text(json.dumps(seal))
    monkeypatch.setattr(seccomp_status.Inspector, "survey", lambda _self, _tid: survey([READ_ONLY]))
    with filtered_process([READ_ONLY]) as process:
        processes = (RecordedProcess("shim", process.pid),)
        sandbox = RecordedSandbox("pod1", "k8s.io", str(tmp_path), "/socket", processes)
        (found,) = json.loads(status_of(monkeypatch, capfd, sandbox, "--json"))
        text = status_of(monkeypatch, capfd, sandbox)
    assert found["seal"] == seal
    (shim,) = found["processes"]
    assert [(thread["mode"], thread["filters"]) for thread in shim["threads"]] == [(2, 1), (0, 0)]
    assert shim["surface"]["allowed"] == len(syscalls.numbers())
    assert shim["surface"]["gaps"] == ["calls without a name", "x32 calls"]
    assert "sandbox pod1 (namespace k8s.io)" in text
    assert "policy x86_64 [base], mode enforce: what is not allowed ends the pod" in text
    assert "not allowed, and called 2 times: execve" in text
    for thread in shim["threads"]:
        assert f" {thread['tid']}" in text
    assert "let through as well: calls without a name, x32 calls" in text


def test_status_says_why_programs_cannot_be_read(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A process cannot read its own threads, whoever it is.
    processes = (RecordedProcess("shim", os.getpid()),)
    sandbox = RecordedSandbox("pod1", "k8s.io", str(tmp_path), "/socket", processes)
    text = status_of(monkeypatch, capfd, sandbox)
    assert "the shim is not sealed" in text
    assert "programs not read: the filters of thread" in text
    (found,) = json.loads(status_of(monkeypatch, capfd, sandbox, "--json"))
    assert found["processes"][0]["surface"] is None
    assert found["processes"][0]["threads"]


def test_status_without_a_sandbox_could_not_run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "running_sandboxes", lambda: iter([]))
    assert out_of(capfd, "status") == (2, "", "kata-ctl: no sandbox is running on this host\n")
    status, _, err = out_of(capfd, "status", "pod")
    assert status == 2
    assert err.startswith("kata-ctl: no running sandbox has an id that starts with 'pod'")
