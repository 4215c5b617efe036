"""containerd's own configuration: what keeps it from running this runtime, or loosens what it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kata_configuration import Severity, lint
from kata_runtime.ctl.main import main

Write = Callable[..., Path]
Found = list[tuple[str, str, int]]

V2 = 'plugins."io.containerd.grpc.v1.cri".containerd'
V3 = 'plugins."io.containerd.cri.v1.runtime".containerd'
IMAGES = 'plugins."io.containerd.cri.v1.images"'
POOL = '[plugins."io.containerd.snapshotter.v1.devmapper"]\npool_name = "pool"\n'


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


@pytest.mark.parametrize(("version", "plugin"), [(2, V2), (3, V3), (4, V3)])
def test_what_the_documentation_writes_is_clean(
    containerd: Callable[[str], Path], version: int, plugin: str, tmp_path: Path
) -> None:
    text = handler('pod_annotations = ["io.katacontainers.*"]\n', version=version, plugin=plugin)
    text += f'[{plugin}.runtimes.kata.options]\nConfigPath = "{tmp_path}/kata.toml"\n'
    assert found(containerd(text)) == []


def test_an_absent_runtime_may_be_in_a_file_that_is_imported(containerd: Callable[[str], Path]) -> None:
    messages = []
    for imports in ("[]", '["/etc/containerd/conf.d/*.toml"]'):
        (found,) = lint(containerd(f"imports = {imports}\nversion = 3\n"), check_host=False)
        assert found.code == "KATA801"
        messages.append(found.message)
    assert messages[1] == f"{messages[0]} in this file, and what it imports is not looked at"


def test_another_runtime_is_not_judged(containerd: Callable[[str], Path]) -> None:
    text = handler() + f'[{V2}.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\nnonsense = 1\n'
    assert found(containerd(text)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version = 2\n", ("KATA801", "runtimes", 1)),
        ('[plugins."io.containerd.grpc.v1.cri"]\n', ("KATA803", "version", 1)),
        ("version = 9\n[plugins]\n", ("KATA803", "version", 1)),
        ("version = [2]\n[plugins]\n", ("KATA803", "version", 1)),
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
    for version, plugin, images in ((2, V2, V2), (3, V3, IMAGES)):
        default = f'[{images}]\nsnapshotter = "devmapper"\n{POOL}'
        text = handler(options.replace(V2, plugin), version=version, plugin=plugin)
        path.write_text(text.replace("\n", f"\n{default}", 1))
        assert found(path, check_host=True) == []


def with_snapshotter(name: str, version: int, place: str) -> str:
    """A file that names a snapshotter on line 3: its default, that of our runtime or that of its images."""
    plugin = V2 if version == 2 else V3
    table = {
        "default": V2 if version == 2 else IMAGES,
        "runtime": f"{plugin}.runtimes.kata",
        "images": f"{IMAGES}.runtime_platforms.kata",
    }[place]
    text = handler(version=version, plugin=plugin)
    if place == "runtime":
        return text.replace("kata]\n", f'kata]\nsnapshotter = "{name}"\n')
    return text.replace("\n", f'\n[{table}]\nsnapshotter = "{name}"\n', 1)


PLACES = [
    *((2, "default"), (2, "runtime")),
    *((version, place) for version in (3, 4) for place in ("default", "runtime", "images")),
]


@pytest.mark.parametrize(("version", "place"), PLACES)
def test_a_misspelt_snapshotter_is_found_wherever_it_counts(
    containerd: Callable[[str], Path], version: int, place: str
) -> None:
    path = containerd(with_snapshotter("devmaper", version, place))
    (diagnostic,) = lint(path, check_host=False)
    assert (diagnostic.code, diagnostic.line, diagnostic.severity) == ("KATA808", 3, Severity.WARNING)
    assert diagnostic.hint == 'did you mean "devmapper"?'
    assert [edit.text for edit in diagnostic.edits] == ['"devmapper"']
    for right in ("", "overlayfs", "erofs", "nydus"):
        assert found(containerd(with_snapshotter(right, version, place))) == []


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("soci", "", "declare it in [proxy_plugins.soci], or name another"),
        ("soci", '[proxy_plugins.soci]\ntype = "snapshot"\naddress = "/run/soci.sock"\n', None),
        (
            "soci",
            '[proxy_plugins.soci]\ntype = "content"\n',
            "declare it in [proxy_plugins.soci], or name another",
        ),
        ("socl", '[proxy_plugins.soci]\ntype = "snapshot"\n', 'did you mean "soci"?'),
        ("devmapper", "", 'write pool_name in [plugins."io.containerd.snapshotter.v1.devmapper"]'),
        ("devmapper", POOL, None),
    ],
)
def test_a_snapshotter_is_one_that_containerd_has(
    containerd: Callable[[str], Path], name: str, more: str, said: str | None
) -> None:
    found = lint(containerd(with_snapshotter(name, 3, "runtime") + more), check_host=False)
    assert [item.hint for item in found] == ([said] if said else [])


@pytest.mark.parametrize(
    ("name", "root", "codes"),
    [
        ("native", 'disabled_plugins = ["io.containerd.snapshotter.v1.native"]\n', ["KATA808"]),
        ("native", 'disabled_plugins = ["io.containerd.snapshotter.v1.zfs"]\n', []),
        # Another file may declare these, and none makes a misspelt name right.
        ("soci", 'imports = ["/etc/containerd/conf.d/*.toml"]\n', []),
        ("devmapper", 'imports = ["/etc/containerd/conf.d/*.toml"]\n', []),
        ("overlaysf", 'imports = ["/etc/containerd/conf.d/*.toml"]\n', ["KATA808"]),
    ],
)
def test_a_snapshotter_that_the_root_of_the_file_decides(
    containerd: Callable[[str], Path], name: str, root: str, codes: list[str]
) -> None:
    path = containerd(root + with_snapshotter(name, 3, "default"))
    assert [item.code for item in lint(path, check_host=False)] == codes


def test_the_default_snapshotter_of_version_2_is_not_read_in_version_3(
    containerd: Callable[[str], Path],
) -> None:
    path = containerd(handler(version=3, plugin=V3) + f'[{V3}]\nsnapshotter = "overlayfs"\n')
    assert found(path) == [("KATA803", "snapshotter", 6)]


VALUES = ["3", "1.5", "true", '""', '"x"', '"/\\u0000"', "[]", "[1]", "[[1]]", "{}", "{x = 1}", "1979-05-27"]


@pytest.mark.parametrize("version", [2, 3])
def test_no_value_of_another_type_ends_the_judgement(containerd: Callable[[str], Path], version: int) -> None:
    plugin = V2 if version == 2 else V3
    handlers = f"{plugin}.runtimes.kata"
    places = [
        *("version", "imports", "disabled_plugins", "proxy_plugins", "proxy_plugins.x", "plugins"),
        *(plugin.rpartition(".")[0], plugin, f"{plugin}.runtimes", f"{plugin}.snapshotter", handlers, IMAGES),
        *(f"{handlers}.{key}" for key in ("runtime_type", "options", "pod_annotations", "snapshotter")),
        *(f"{handlers}.options.{key}" for key in ("ConfigPath", "ConfigBody", "SystemdCgroup")),
        *(f"{IMAGES}.{key}" for key in ("snapshotter", "runtime_platforms", "runtime_platforms.kata")),
        'plugins."io.containerd.snapshotter.v1.devmapper"',
    ]
    for place in places:
        for value in VALUES:
            keys = {
                f"{handlers}.runtime_type": '"io.containerd.kata.v2"',
                f"{handlers}.snapshotter": '"devmapper"',
            }
            keys["version"] = str(version)
            other = {key: text for key, text in keys.items() if not f"{key}.".startswith(f"{place}.")}
            lines = [f"{key} = {text}" for key, text in (other | {place: value}).items()]
            lint(containerd("\n".join(lines) + "\n"), check_host=True)


def test_a_fault_of_the_text_has_its_place(containerd: Callable[[str], Path]) -> None:
    assert ("KATA101", "", 5) in [(code, "", line) for code, _, line in found(containerd(handler("x = \n")))]


@pytest.mark.parametrize("key", ["version", "runtime_type", "privileged_without_host_devices"])
def test_a_fault_of_the_text_lets_nothing_seem_missing(containerd: Callable[[str], Path], key: str) -> None:
    lines = [f"{key} =" if line.startswith(key) else line for line in handler().splitlines()]
    assert [code for code, _, _ in found(containerd("\n".join(lines) + "\n"))] == ["KATA101"]


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
