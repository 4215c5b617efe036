"""kata-ctl config show and explain-annotation, and kata-ctl env."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata_configuration import ConfigurationError, Severity, lint, load
from kata_configuration.tell import effective
from kata_runtime.ctl.main import main

Write = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
PREFIX = "io.katacontainers.config."


@pytest.fixture
def files(write: Write, valid_text: str) -> Path:
    """A file with two drop-ins, which allows one annotation."""
    path = write(valid_text + 'enable_annotations = ["default_memory"]\n')
    (path.parent / "config.d").mkdir()
    (path.parent / "config.d" / "10.toml").write_text("[hypervisor.qemu]\ndefault_vcpus = 2\n")
    (path.parent / "config.d" / "20.toml").write_text('[agent.kata]\nkernel_modules = ["fuse"]\n')
    return path


def test_every_value_says_where_it_is_from(files: Path, capsys: Capture) -> None:
    annotation = f"{PREFIX}hypervisor.default_memory"
    options = ["--effective", "--origin", "--annotation", f"{annotation}=1024"]
    assert main(["config", "show", str(files), *options]) == 0
    shown = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines() if "=" in line]
    origins = {fields[0]: fields[2].partition("  # ")[2] for fields in shown if fields[0] != "#"}
    assert origins["kernel"] == f"{files}:2"
    assert origins["default_vcpus"] == f"{files.parent}/config.d/10.toml:2"
    assert origins["kernel_modules"] == f"{files.parent}/config.d/20.toml:2"
    assert origins["default_memory"] == f"annotation {annotation}"
    assert origins["hypervisor_name"] == "default"


def test_json_has_the_origins(files: Path, capsys: Capture) -> None:
    assert main(["config", "show", str(files), "--json", "--effective"]) == 0
    document = json.loads(capsys.readouterr().out)
    values = {value["key"]: value for value in document["values"]}
    assert document["configuration"]["drop_ins"] == [
        f"{files.parent}/config.d/10.toml",
        f"{files.parent}/config.d/20.toml",
    ]
    assert values["hypervisor.qemu.default_vcpus"] == {
        "key": "hypervisor.qemu.default_vcpus",
        "value": 2,
        "origin": {"kind": "drop-in", "path": f"{files.parent}/config.d/10.toml", "line": 2},
    }
    assert values["runtime.hypervisor_name"]["origin"] == {"kind": "default"}


def test_without_defaults_what_was_set_is_shown(files: Path, capsys: Capture) -> None:
    assert main(["config", "show", str(files)]) == 0
    tree = tomli.loads(capsys.readouterr().out)
    assert tree == {
        "hypervisor": {
            "qemu": {
                "kernel": "/boot/vmlinuz",
                "image": "/srv/image.erofs",
                "default_vcpus": 2,
                "enable_annotations": ["default_memory"],
            }
        },
        "agent": {"kata": {"kernel_modules": ["fuse"]}},
    }


def test_a_faulty_configuration_is_not_shown(write: Write, valid_text: str, capsys: Capture) -> None:
    path = write(valid_text + "x = 1\n")
    assert main(["config", "show", str(path)]) == 1
    assert "KATA201" in capsys.readouterr().err


BLOCKS = [
    'hypervisor.qemu.kernel_params = "a=\\"b c\\" é #"',
    "hypervisor.qemu.default_vcpus = 2",
    "hypervisor.qemu.overhead_vcpus = 0.25",
    'hypervisor.qemu.seccompsandbox = "off"',
    'hypervisor.qemu.seccomp_sandbox = "on,spawn=deny"',
    'hypervisor.qemu.virtio_fs_extra_args = ["--x", "\\\\"]',
    'hypervisor.qemu.cpu_features = "pmu=off, vmx=off"',
    'hypervisor.qemu.enable_annotations = ["default_memory", "kernel_params"]',
    'hypervisor.qemu.initrd = "/boot/initrd"',
    'agent.kata.kernel_modules = ["a b=c,d", "e"]',
    "agent.kata.dial_timeout_ms = 20",
    "agent.kata.reconnect_timeout_ms = 10",
    'runtime.log_level = "warn"',
    "runtime.disable_guest_seccomp = true",
    "runtime.log_levle = 1",
    "runtime.enable_debug = ",
    "hypervisor.qemu = 3",
    "[hypervisor.clh]",
]
blocks = st.lists(st.sampled_from(BLOCKS), unique_by=lambda line: line.split(" ")[0], max_size=5).map(
    lambda lines: "\n".join(sorted(lines)) + "\n"
)
BASE = "hypervisor.qemu.kernel = '/k'\nhypervisor.qemu.image = '/i'\n"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(blocks, st.lists(blocks, max_size=3))
def test_what_lints_clean_loads_and_shows_as_what_it_is(write: Write, base: str, drop_ins: list[str]) -> None:
    path = write(BASE + base)
    directory = path.parent / "config.d"
    directory.mkdir(exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    for number, text in enumerate(drop_ins):
        (directory / f"{number}.toml").write_text(text)
    faulty = any(found.severity is Severity.ERROR for found in lint(path, check_host=False))
    try:
        configuration = load(path, check_host=False)
    except ConfigurationError:
        assert faulty
        return
    assert not faulty
    again = path.parent / "again" / "configuration.toml"
    again.parent.mkdir(exist_ok=True)
    for defaults in (True, False):
        shown = effective.values(configuration, defaults=defaults)
        again.write_text(effective.toml(configuration, shown, origins=True))
        reloaded = load(again, check_host=False)
        assert reloaded.hypervisor == configuration.hypervisor
        assert reloaded.agent == configuration.agent
        assert reloaded.runtime == configuration.runtime
        if defaults:
            assert reloaded.annotations == ()


# -- explain-annotation -------------------------------------------------------------------------------------


def explain(tmp_path: Path, files: Path, document: Any, key: str) -> int:
    """Explain one annotation of a pod."""
    pod = tmp_path / "pod.json"
    pod.write_text(document if isinstance(document, str) else json.dumps(document))
    return main(["config", "explain-annotation", key, "--pod", str(pod), "--config", str(files)])


def pod_of(annotations: dict[str, str]) -> dict[str, Any]:
    """Return a pod as kubectl prints it."""
    return {"kind": "Pod", "metadata": {"annotations": annotations}}


def inspected(written: dict[str, str], passed: dict[str, str]) -> dict[str, Any]:
    """Return a sandbox as crictl inspectp prints it."""
    return {"status": {"annotations": written}, "info": {"runtimeSpec": {"annotations": passed}}}


def test_an_annotation_that_is_in_force(tmp_path: Path, files: Path, capsys: Capture) -> None:
    name = f"{PREFIX}hypervisor.default_memory"
    document = {"ociVersion": "1.0.2", "annotations": {name: "1Gi"}}
    assert explain(tmp_path, files, document, "default_memory") == 0
    assert capsys.readouterr().out.splitlines() == [
        name,
        "  passed:   yes",
        "  allowed:  yes",
        '  valid:    yes: "1Gi"',
        f"  in force: 1024 (annotation {name})",
    ]


def test_an_annotation_that_is_not_let_in(tmp_path: Path, files: Path, capsys: Capture) -> None:
    document = pod_of({f"{PREFIX}agent.enable_debug": "true"})
    assert explain(tmp_path, files, document, "agent.enable_debug") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  passed:   the pod has it; containerd passes it on with pod_annotations = [")
    assert lines[2].startswith("  allowed:  no: agent.kata.enable_debug: is refused: ")
    assert 'write enable_annotations = ["default_memory", "agent.enable_debug"]' in lines[2]
    assert lines[3] == "  in force: nothing: the pod does not start"


def test_an_annotation_that_is_not_valid(tmp_path: Path, files: Path, capsys: Capture) -> None:
    document = pod_of({f"{PREFIX}hypervisor.default_memory": "4"})
    assert explain(tmp_path, files, document, f"{PREFIX}hypervisor.default_memory") == 1
    assert "  valid:    no: hypervisor.qemu.default_memory: 4 is below the minimum" in capsys.readouterr().out


def test_an_annotation_that_containerd_keeps(tmp_path: Path, files: Path, capsys: Capture) -> None:
    document = inspected({f"{PREFIX}hypervisor.default_memory": "1024"}, {})
    assert explain(tmp_path, files, document, "default_memory") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(
        "  passed:   no: the pod has it, and containerd does not pass it on: write pod_ann"
    )
    assert lines[-1] == "  in force: 512 (default)"


def test_an_annotation_under_another_name(tmp_path: Path, files: Path, capsys: Capture) -> None:
    document = pod_of({"io.katacontainers.hypervisor.default_memory": "1024"})
    assert explain(tmp_path, files, document, "default_memory") == 1
    assert (
        "  passed:   no: the pod does not have it, but io.katacontainers.hypervisor.default_memory\n"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "document",
    [
        "kind: Pod",
        "[]",
        "{}",
        '{"kind": "Pod", "metadata": 3}',
        '{"ociVersion": "1", "annotations": {"a": 1}}',
    ],
)
def test_what_is_no_pod_is_refused(tmp_path: Path, files: Path, document: str, capsys: Capture) -> None:
    assert explain(tmp_path, files, document, "default_memory") == 2
    assert str(tmp_path / "pod.json") in capsys.readouterr().err


# -- env ----------------------------------------------------------------------------------------------------


def test_env_says_which_file_is_in_force_and_why(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.delenv("KATA_CONF_FILE", raising=False)
    assert main(["env", "--config", str(files), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    configuration = facts["configuration"]
    assert configuration["in force"].startswith(f"configuration {files} + 2 drop-ins (sha256 ")
    states = [(row["rule"], row["state"]) for row in configuration["precedence"]]
    assert states[:2] == [("ConfigPath", "chosen"), ("KATA_CONF_FILE", "is not set")]
    assert states[-2:] == [("drop-ins", "2 in force"), ("annotations", "allowed: default_memory")]
    assert facts["hypervisor"]["confinement"].startswith("seccomp: on,")
    assert facts["host"]["kernel"].startswith("Linux ")


def test_env_without_a_configuration(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("KATA_CONF_FILE", "/absent.toml")
    assert main(["env"]) == 1
    output = capsys.readouterr().out
    assert "KATA_CONF_FILE  /absent.toml" in output
    assert "/absent.toml: error[KATA002] does not exist" in output
