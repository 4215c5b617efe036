"""containerd's own configuration: what keeps it from running this runtime, or loosens what it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kata_configuration import lint
from kata_runtime.ctl.main import main

Write = Callable[..., Path]
Found = list[tuple[str, str, int]]

V2 = 'plugins."io.containerd.grpc.v1.cri".containerd'
V3 = 'plugins."io.containerd.cri.v1.runtime".containerd'


def handler(settings: str = "", *, version: int = 2, plugin: str = V2, name: str = "kata") -> str:
    """A file with one runtime, as the documentation writes it; settings are added to it."""
    kind = "" if "runtime_type" in settings else 'runtime_type = "io.containerd.kata.v2"\n'
    devices = "" if "without_host" in settings else "privileged_without_host_devices = true\n"
    return f"version = {version}\n[{plugin}.runtimes.{name}]\n{kind}{devices}{settings}"


def found(path: Path, *, check_host: bool = False) -> Found:
    return [(item.code, item.key.rpartition(".")[2], item.line) for item in lint(path, check_host=check_host)]


@pytest.fixture
def containerd(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(("version", "plugin"), [(2, V2), (3, V3)])
def test_what_the_documentation_writes_is_clean(
    containerd: Callable[[str], Path], version: int, plugin: str, tmp_path: Path
) -> None:
    text = handler('pod_annotations = ["io.katacontainers.*"]\n', version=version, plugin=plugin)
    text += f'[{plugin}.runtimes.kata.options]\nConfigPath = "{tmp_path}/kata.toml"\n'
    assert found(containerd(text)) == []


def test_another_runtime_is_not_judged(containerd: Callable[[str], Path]) -> None:
    text = handler() + f'[{V2}.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\nnonsense = 1\n'
    assert found(containerd(text)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version = 2\n", ("KATA801", "runtimes", 1)),
        ('[plugins."io.containerd.grpc.v1.cri"]\n', ("KATA803", "version", 1)),
        ("version = 9\n[plugins]\n", ("KATA803", "version", 1)),
        (handler('runtime_type = "io.containerd.runc.v2"\n'), ("KATA802", "runtime_type", 4)),
        (handler('runtime_type = "io.containerd.kata.v1"\n'), ("KATA802", "runtime_type", 4)),
        (handler('pod_anotations = ["io.katacontainers.*"]\n'), ("KATA803", "pod_anotations", 5)),
        (handler('pod_annotations = ["io.kata.*"]\n'), ("KATA805", "pod_annotations", 5)),
        (
            handler("privileged_without_host_devices = false\n"),
            ("KATA806", "privileged_without_host_devices", 4),
        ),
        (handler('[{V2}.runtimes.kata.options]\nConfigPath = "kata.toml"\n'), ("KATA804", "ConfigPath", 6)),
        (handler('[{V2}.runtimes.kata.options]\nConfigBody = "a"\n'), ("KATA803", "ConfigBody", 6)),
        (handler("[{V2}.runtimes.kata.options]\nSystemdCgroup = true\n"), ("KATA803", "SystemdCgroup", 6)),
        (handler("options = 3\n"), ("KATA803", "options", 5)),
    ],
)
def test_one_fault(containerd: Callable[[str], Path], text: str, expected: tuple[str, str, int]) -> None:
    assert expected in found(containerd(text.replace("{V2}", V2)))


def test_the_plugin_of_the_other_version_is_not_read(containerd: Callable[[str], Path]) -> None:
    path = containerd(handler(version=3, plugin=V2))
    assert found(path) == [("KATA801", "runtimes", 2), ("KATA803", "runtimes", 2)]


def test_the_runtimes_own_configuration_is_looked_at(
    containerd: Callable[[str], Path], tmp_path: Path, valid_text: str
) -> None:
    options = f'[{V2}.runtimes.kata.options]\nConfigPath = "{tmp_path}/kata.toml"\n'
    path = containerd(handler(options))
    assert ("KATA804", "ConfigPath", 6) in found(path, check_host=True)
    (tmp_path / "kata.toml").write_text(valid_text + 'enable_annotations = ["default_vcpus"]\n')
    assert found(path, check_host=True) == [("KATA805", "pod_annotations", 2)]
    (tmp_path / "kata.toml").write_text(
        '[hypervisor.firecracker]\nkernel = "/k"\nimage = "/i"\n[runtime]\nhypervisor_name = "firecracker"\n'
    )
    assert found(path, check_host=True) == [("KATA807", "snapshotter", 2)]
    (tmp_path / "config.toml").write_text(
        f'version = 2\n[{V2}]\nsnapshotter = "devmapper"\n{handler(options)[12:]}'
    )
    assert found(path, check_host=True) == []


def test_a_fault_of_the_text_has_its_place(containerd: Callable[[str], Path]) -> None:
    assert ("KATA101", "", 5) in [(code, "", line) for code, _, line in found(containerd(handler("x = \n")))]


def test_a_misspelt_type_is_corrected(containerd: Callable[[str], Path]) -> None:
    path = containerd(handler('runtime_type = "io.containerd.kata.v1"\n'))
    (diagnostic,) = lint(path, check_host=False)
    assert [edit.text for edit in diagnostic.edits] == ['"io.containerd.kata.v2"']


def test_the_command_judges_it(containerd: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    text = handler(
        'runtime_type = "io.containerd.kata.v1"\n'
        "privileged_without_host_devices = false\npod_anotations = []\n"
    )
    assert main(["config", "lint", "--no-host", str(containerd(text))]) == 1
    captured = capsys.readouterr()
    assert [line.split("[")[1][:7] for line in captured.out.splitlines() if ": error[" in line] == [
        "KATA802",
        "KATA803",
    ]
    assert "2 errors, 1 warning" in captured.err


def test_fix_corrects_what_has_one_right_answer(
    containerd: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = containerd(
        handler('runtime_type = "io.containerd.kata.v1"\npod_anotations = ["io.katacontainers.*"]\n')
        + f'[{V2}.runtimes.kata.options]\nConfigPth = "/etc/kata.toml"\nSystemdCgroup = true\n'
    )
    assert main(["config", "lint", "--no-host", "--fix", str(path)]) == 1
    assert found(path) == [("KATA803", "SystemdCgroup", 8)]
    text = path.read_text()
    assert 'runtime_type = "io.containerd.kata.v2"\n' in text
    assert 'pod_annotations = ["io.katacontainers.*"]\n' in text
    assert 'ConfigPath = "/etc/kata.toml"\n' in text
    assert "+runtime_type" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings",
    ["pod_annotations = []\npod_anotations = []\n", "pod_anotations = []\npod_annotation = []\n"],
)
def test_fix_makes_no_key_stand_twice(containerd: Callable[[str], Path], settings: str) -> None:
    path = containerd(handler(settings))
    before = path.read_text()
    main(["config", "lint", "--no-host", "--fix", str(path)])
    assert path.read_text() == before
