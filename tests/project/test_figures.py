"""Figures of filters that documents state in sentences are those of the policies that are shipped."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from kata_hypervisor.seccomp.policy import PROCESS, VCPU, load_policy
from kata_hypervisor.seccomp.score import Surface, surface_of
from kata_runtime.broker.self_confinement import CAPABILITIES
from kata_runtime.ctl.seccomp_policy import measure

ROOT = Path(__file__).resolve().parents[2]
CALLS, SCORE = r"(?P<calls>\d+)", r"(?P<score>\d+(?:\.\d+)?)"

STATED = [
    ("README.md", f"sealed: {CALLS} system calls", "qemu", PROCESS),
    ("SPECIFICATION.md", f"at most {CALLS} system calls and a score of {SCORE} on QEMU", "qemu", PROCESS),
    ("SPECIFICATION.md", f"at most {CALLS} calls, 17 for a unikernel's", "dragonball", VCPU),
    ("SPECIFICATION.md", f"at most 12 calls, {CALLS} for a unikernel's", "dragonball-unikernel", VCPU),
    ("docs/architecture.md", f"sealed: {CALLS} system calls on QEMU", "qemu", PROCESS),
    ("docs/architecture.md", f"own mount namespace; sealed: {CALLS} system calls", "broker", PROCESS),
    ("docs/linting.md", f"enforce: {CALLS} system calls are allowed", "qemu", PROCESS),
    ("docs/seccomp.md", f"It has {CALLS} calls, and more where the pod needs a program", "broker", PROCESS),
    ("docs/threat-model.md", f"`broker-x86_64.toml`: {CALLS} calls", "broker", PROCESS),
    ("docs/drivers/cloud-hypervisor.md", f"a list of {CALLS} calls", "cloud-hypervisor", PROCESS),
    ("docs/drivers/dragonball.md", f"on every thread: {CALLS} system calls", "dragonball", PROCESS),
    ("docs/drivers/dragonball.md", f"second filter on itself, of {CALLS}", "dragonball", VCPU),
    ("docs/drivers/qemu.md", f"{CALLS} system calls and a score of {SCORE} with KVM", "qemu-kvm", PROCESS),
    ("docs/drivers/qemu.md", f"with KVM, {CALLS} and {SCORE} without", "qemu-tcg", PROCESS),
    ("docs/drivers/solo5.md", f"before 0.11 ours, {CALLS} system calls", "solo5-hvt-glibc", PROCESS),
    ("docs/drivers/solo5.md", f"{CALLS} system calls with glibc", "solo5-hvt-glibc", PROCESS),
    ("docs/drivers/solo5.md", f"score {SCORE} and 14.9", "solo5-hvt-glibc", PROCESS),
    ("docs/drivers/solo5.md", f"glibc and {CALLS} with musl", "solo5-hvt-musl", PROCESS),
    ("docs/drivers/solo5.md", f"score 15.9 and {SCORE}", "solo5-hvt-musl", PROCESS),
    ("docs/drivers/solo5.md", f"runtime's process, {CALLS} system calls", "dragonball-unikernel", PROCESS),
    ("docs/drivers/solo5.md", f"that runs the unikernel, {CALLS} ", "dragonball-unikernel", VCPU),
]
"""Page, its sentence, and whose filter that is: of a driver or program, on the process or a vCPU's thread."""


@cache
def surfaces() -> dict[tuple[str, str], Surface]:
    return {whose: surface_of(survey) for whose, survey in measure(load_policy()).items()}


@pytest.mark.parametrize(("page", "sentence", "name", "thread"), STATED)
def test_a_stated_figure_is_the_policys(page: str, sentence: str, name: str, thread: str) -> None:
    text = re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8"))
    found = re.search(sentence, text)
    assert found is not None, f"{page} does not say any more: {sentence}"
    surface = surfaces()[name, thread]
    now = {"calls": surface.allowed, "score": surface.score}
    assert {figure: float(said) for figure, said in found.groupdict().items()} == {
        figure: now[figure] for figure in found.groupdict()
    }


def test_every_sentence_with_a_count_of_calls_is_checked() -> None:
    """That of another product, of a run that is shown, or of a program that filters itself has its reason."""
    others = {
        "docs/seccomp.md": 5,  # QEMU's own filter; an example's policy, trace and pod
        "docs/threat-model.md": 1,  # Dragonball in Kata
        "SPECIFICATION.md": 1,  # the most that QEMU's filter may have
    }
    stated = re.compile(r"\d+ (?:system )?calls\b")
    for page in (ROOT / "README.md", ROOT / "SPECIFICATION.md", *(ROOT / "docs").glob("**/*.md")):
        name = str(page.relative_to(ROOT))
        if "decisions" in name:  # says what was, when it was decided
            continue
        said = len(stated.findall(re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))))
        checked = sum(1 for one, sentence, *_ in STATED if one == name and stated_by(sentence))
        assert said == checked + others.get(name, 0), f"{name}: a figure that no row of STATED holds"


def stated_by(sentence: str) -> bool:
    """Whether a row's own figure stands before "calls"."""
    return re.search(re.escape(CALLS) + r" (system )?calls", sentence) is not None


def test_the_brokers_capabilities_are_as_many_as_stated() -> None:
    kept = sum(1 for one in CAPABILITIES if not one.features)
    words = {8: "eight"}
    assert f"root, with {kept} capabilities" in (ROOT / "docs/architecture.md").read_text()
    assert f"keeps the {words[kept]} capabilities" in re.sub(
        r"\s+", " ", (ROOT / "docs/threat-model.md").read_text()
    )
    assert re.search(rf"│ broker +│ 0 +│ {kept} ", (ROOT / "README.md").read_text())
