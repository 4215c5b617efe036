"""The programs that are shipped: for every filter that a pod can need, and they do what the policies say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_hypervisor import compiled_policies, virtiofsd
from kata_hypervisor.compiled_policies import Kind
from kata_hypervisor.errors import PolicyError
from kata_hypervisor.seccomp import actions, bpf, compiled, compiler, kernel_probe, seal, syscalls
from kata_hypervisor.seccomp.policy import PROCESS, load_policy
from kata_hypervisor.seccomp.program import Program
from seal_cases import CASES

KINDS = compiled_policies.kinds()
POLICIES = sorted(path.name for path in Path(compiled.POLICIES).glob("*.toml"))
PID = 4711


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a program was compiled")

    monkeypatch.setattr(compiler, "compile_rules", refuse)


@pytest.fixture
def policies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of them that may be changed."""
    for path in Path(compiled.POLICIES).iterdir():
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(compiled, "POLICIES", str(tmp_path))
    return tmp_path


def of_virtiofsd() -> Program:
    return compiled.program_of(virtiofsd.NAME, (), virtiofsd.REFUSED)


def test_every_policy_is_compiled() -> None:
    assert sorted(f"{compiled.source_of(name)}.toml" for name in KINDS) == POLICIES


def answers(code: bytes, program: str, kind: Kind) -> Iterator[int]:
    """What a program says to every call, and to each case of the rules that it was made from."""
    thread, _, features = kind
    rules = load_policy(program=program).bind(pid=PID).select(features, thread)
    decoded, arch = bpf.decode(code), syscalls.native()
    for number in range(1024):
        yield bpf.execute(decoded, bpf.SeccompData(number, bpf.AUDIT_ARCH[arch]).words())
    for probe in kernel_probe.probes_of(rules, arch):
        number = syscalls.numbers(arch)[probe.call]
        yield bpf.execute(decoded, bpf.SeccompData(number, bpf.AUDIT_ARCH[arch], 0, probe.arguments).words())


@pytest.mark.parametrize("program", KINDS)
def test_they_are_of_today_s_policy_and_do_the_same(program: str) -> None:
    assert compiled.text_for(program), "the policy was changed since: make filters"
    for kind in KINDS[program]:
        thread, refused, features = kind
        shipped = compiled.program_of(program, features, refused, thread=thread, pid=PID).code
        fresh = compiled.compile_program(program, features, refused, thread=thread, pid=PID).code
        if shipped != fresh:  # another libseccomp may put them in another order
            assert list(answers(shipped, program, kind)) == list(answers(fresh, program, kind))


def test_the_process_id_is_in_its_place() -> None:
    code = compiled.program_of("", seal.SHIM_FEATURES, actions.NOTIFY, pid=PID).code
    (rule,) = [rule for rule in load_policy().rules if "tgkill" in rule.calls]
    assert rule.conditions[0].value == "$pid"
    number = syscalls.numbers()["tgkill"]
    for pid, answer in ((PID, actions.ALLOW), (PID + 1, actions.NOTIFY), (0, actions.NOTIFY)):
        data = bpf.SeccompData(number, bpf.AUDIT_ARCH["x86_64"], 0, (pid, 1, 6, 0, 0, 0))
        assert bpf.run(code, data) == answer


@pytest.mark.parametrize(("name", "make"), CASES)
@pytest.mark.parametrize("mode", ["enforce", "log"])
@pytest.mark.usefixtures("no_compiler")
def test_no_shim_compiles_its_filter(name: str, make: object, mode: seal.Mode) -> None:
    assert callable(make)
    built = seal.build(seal.SHIM_FEATURES | make().seal_features, mode)
    assert built.process is not None
    assert (built.vcpu is not None) == ("vcpu" in built.features)


@pytest.mark.usefixtures("no_compiler")
def test_no_broker_and_no_child_compiles_its_filter() -> None:
    for features in (set(), {"loading"}, {"images", "network"}, {"kvm", "network", "loading", "images"}):
        for mode in ("enforce", "log"):
            assert len(seal.build_broker(features, mode, PID)) > 100
    assert len(of_virtiofsd()) > 100


@pytest.mark.usefixtures("no_compiler")
def test_a_policy_that_was_changed_is_compiled_anew(policies: Path) -> None:
    path = policies / "virtiofsd-x86_64.toml"
    path.write_text(path.read_text() + "\n# changed\n")
    with pytest.raises(AssertionError, match="a program was compiled"):
        of_virtiofsd()


@pytest.mark.usefixtures("no_compiler")
def test_without_its_file_a_policy_is_compiled(policies: Path) -> None:
    (policies / "virtiofsd-x86_64.compiled").unlink()
    with pytest.raises(AssertionError, match="a program was compiled"):
        of_virtiofsd()
    assert compiled.features_of("virtiofsd") == frozenset()


def test_what_is_no_text_is_refused(policies: Path) -> None:
    (policies / "virtiofsd-x86_64.compiled").write_bytes(b"\xff")
    with pytest.raises(PolicyError, match=r"cannot read the compiled seccomp policy .*virtiofsd-x86_64"):
        of_virtiofsd()


def test_a_feature_that_no_policy_has_is_refused() -> None:
    with pytest.raises(PolicyError, match="has no feature wings"):
        compiled.program_of("qemu", {"wings"}, actions.NOTIFY)


def test_the_features_are_the_policy_s() -> None:
    for program in KINDS:
        assert compiled.features_of(program) == load_policy(program=program).features - {"base"}


def test_what_is_written_is_what_is_there() -> None:
    """But for libseccomp's order: the same lines up to the code."""
    for program, kinds in KINDS.items():
        path = Path(compiled.POLICIES, compiled.source_of(program) + compiled.SUFFIX)
        made = [line.split()[:3] for line in compiled.text_of(program, kinds).splitlines()]
        assert made == [line.split()[:3] for line in path.read_text().splitlines()]
    assert {thread for thread, _, _ in KINDS[""]} == {PROCESS, "vcpu"}
