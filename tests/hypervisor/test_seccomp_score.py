"""The score: its classes, its formula, and that it puts the published VMMs in the published order."""

from __future__ import annotations

import pytest

from kata_hypervisor.seccomp import actions, score, seal, syscalls
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.policy import load_policy
from kata_hypervisor.seccomp.rules import Condition, Rule
from kata_hypervisor.seccomp.survey import survey

CLASSES = (score.ESCAPE, score.HEAVY, score.REACH)


def test_the_classes_are_of_existing_calls_and_do_not_overlap() -> None:
    known = set(syscalls.numbers("x86_64")) | set(syscalls.numbers("aarch64"))
    for members in CLASSES:
        assert members <= known
    assert sum(map(len, CLASSES)) == len(frozenset[str]().union(*CLASSES))


@pytest.mark.parametrize(
    ("call", "unfiltered", "conditional"),
    [
        ("read", 1, 0.25),
        ("futex", 1, 0.25),
        ("kill", 8, 2),
        ("mmap", 8, 1.2),
        ("ioctl", 8, 1.2),
        ("io_uring_enter", 12, 3),
        ("execve", 20, 5),
    ],
)
def test_what_one_call_weighs(call: str, unfiltered: float, conditional: float) -> None:
    assert score.weight(call) == unfiltered
    assert score.weight(call, conditional=True) == pytest.approx(conditional)


def test_a_surface_adds_them_up() -> None:
    rules = [
        Rule(("read", "write", "openat")),
        Rule(("ioctl",), (Condition(1, "eq", 5),)),
        Rule(("ptrace",), (Condition(0, "eq", 5),)),
        Rule(("clone3",), action=actions.errno(38)),
    ]
    surface = score.surface_of(survey([compile_rules(rules, actions.KILL_PROCESS, arch="x86_64").code]))
    assert (surface.allowed, surface.unfiltered, surface.escape) == (5, 3, ("ptrace",))
    assert surface.score == 1 + 1 + 8 + 1.2 + 5
    assert surface.gaps == ()


def test_no_filter_weighs_what_is_published_for_the_calls_of_its_day() -> None:
    """The published 1601 counts 362 names, those of Linux 6.1's headers; our table has later calls too.

    Our classes name each call where the publication gives examples, so the sums differ by a quarter per cent.
    """
    later = ("uretprobe", "uprobe")  # of numbers that were left free
    table = syscalls.numbers("x86_64")
    of_its_day = [name for name, number in table.items() if number <= 450 and name not in later]
    assert len(of_its_day) == 362
    published = next(vmm for vmm in score.PUBLISHED if vmm.name == "no filter")
    assert sum(map(score.weight, of_its_day)) == pytest.approx(published.score, rel=0.005)
    everything = score.surface_of(survey([]))
    newer = set(syscalls.numbers("x86_64")) - set(of_its_day)
    assert everything.allowed == 362 + len(newer)
    assert everything.score == sum(map(score.weight, of_its_day)) + sum(map(score.weight, newer))
    assert everything.gaps == ("calls without a name", "x32 calls", "foreign calls")


def test_the_published_figures_are_consistent() -> None:
    assert list(score.PUBLISHED) == sorted(score.PUBLISHED, key=lambda vmm: vmm.score)
    assert len({vmm.name for vmm in score.PUBLISHED}) == len(score.PUBLISHED)
    for vmm in score.PUBLISHED:
        assert vmm.unfiltered is None or vmm.unfiltered <= vmm.allowed
        # Nothing weighs less than a quarter.
        assert (
            vmm.score >= ((vmm.unfiltered or 0) + (vmm.allowed - (vmm.unfiltered or vmm.allowed)) / 4) * 0.9
        )


def test_the_sealed_runtime_keeps_its_budget() -> None:
    """At most 40 calls and a score of 50 with every feature, none that escapes; few on vCPU threads.

    These may 12, and the one that runs a unikernel, whose calls it does itself, 17.
    """
    policy = load_policy("x86_64")
    built = seal.build(policy.features, "enforce", policy=policy, pid=1)
    assert built.process is not None
    assert built.vcpu is not None
    process = score.surface_of(survey([built.process.code]))
    assert process.allowed <= 40
    assert process.score <= 50
    assert process.escape == process.gaps == ()
    for features, most in ((policy.features - {"unikernel"}, 12), (policy.features, 17)):
        own = seal.build(features, "enforce", policy=policy, pid=1).vcpu
        assert own is not None
        vcpu = score.surface_of(survey([built.process.code, own.code]))
        assert vcpu.allowed <= most
        assert vcpu.score <= process.score
        assert vcpu.escape == vcpu.gaps == ()
