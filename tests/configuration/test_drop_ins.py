"""Drop-ins: which files count, how they merge, and whom a diagnostic names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_configuration import ConfigurationError, Severity, lint, load
from kata_configuration.layer import dropins
from kata_configuration.layer.layers import Kind
from kata_configuration.layer.merging import merge
from tables import qemu_of

Write = Callable[..., Path]
QEMU = "[hypervisor.qemu]\n"


@pytest.fixture
def base(tmp_path: Path, valid_text: str) -> Path:
    """A configuration file beside an empty config.d."""
    path = tmp_path / "etc" / "configuration.toml"
    (path.parent / "config.d").mkdir(parents=True)
    path.write_text(valid_text)
    return path


def drop(base: Path, name: str, text: str) -> Path:
    """Write a drop-in of a file."""
    path = base.parent / "config.d" / name
    path.write_text(text)
    return path


def said(base: Path) -> list[str]:
    """Return what linting says, with the paths from the base file's directory."""
    return [str(found).removeprefix(f"{base.parent}/") for found in lint(base, check_host=False)]


def test_drop_ins_are_merged_by_name(base: Path) -> None:
    drop(base, "20-more.toml", QEMU + "default_memory = 2048\n")
    drop(
        base, "10-first.toml", QEMU + 'default_memory = 1024\ndefault_vcpus = 2\n[runtime]\nlog_level="warn"'
    )
    configuration = load(base, check_host=False)
    assert configuration.hypervisor.default_memory == 2048
    assert configuration.hypervisor.default_vcpus == 2
    assert configuration.hypervisor.kernel == Path("/boot/vmlinuz")
    assert configuration.runtime.log_level == "warn"
    assert [path.name for path in configuration.drop_ins] == ["10-first.toml", "20-more.toml"]


@pytest.mark.parametrize("name", [".hidden.toml", "a.toml.bak", "a.toml~", "README", "a.rpmsave"])
def test_other_files_do_not_count(base: Path, name: str) -> None:
    drop(base, name, "no TOML")
    assert load(base, check_host=False).drop_ins == ()


def test_a_mounted_config_map_is_read(base: Path) -> None:
    directory = base.parent / "config.d"
    (directory / "..2026").mkdir()
    (directory / "..2026" / "10.toml").write_text(QEMU + "default_vcpus = 3\n")
    (directory / "..data").symlink_to("..2026")
    (directory / "10.toml").symlink_to("..data/10.toml")
    assert load(base, check_host=False).hypervisor.default_vcpus == 3


def test_directories_beside_the_link_and_its_target_are_read(base: Path, tmp_path: Path) -> None:
    link = tmp_path / "link" / "configuration.toml"
    (link.parent / "config.d").mkdir(parents=True)
    link.symlink_to(base)
    drop(base, "10.toml", QEMU + "default_vcpus = 2\ndefault_memory = 1024\n")
    drop(base, "20.toml", QEMU + "default_vcpus = 3\n")
    drop(link, "10.toml", QEMU + "default_memory = 2048\n")
    names = [path.relative_to(tmp_path) for path in dropins.find(link)]
    assert [str(name) for name in names] == [
        "etc/config.d/10.toml",
        "link/config.d/10.toml",
        "etc/config.d/20.toml",
    ]
    hypervisor = load(link, check_host=False).hypervisor
    assert (hypervisor.default_vcpus, hypervisor.default_memory) == (3, 2048)


def test_a_directory_that_is_reached_twice_is_read_once(base: Path, tmp_path: Path) -> None:
    link = tmp_path / "link" / "configuration.toml"
    link.parent.mkdir()
    link.symlink_to(base)
    (link.parent / "config.d").symlink_to(base.parent / "config.d")
    drop(base, "10.toml", "")
    assert len(dropins.find(link)) == 1


def test_each_fault_names_its_file(base: Path) -> None:
    base.write_text(base.read_text() + "default_maxvcpus = 2\n")
    drop(base, "10.toml", QEMU + 'secompsandbox = "on"\ndefault_vcpus = 4\n')
    drop(base, "20.toml", '[runtime]\nlog_level = x\nenable_debug = "true"\n')
    assert said(base) == [
        "config.d/10.toml:2:1: error[KATA201] hypervisor.qemu.secompsandbox: unknown key "
        '(did you mean "seccompsandbox"?)',
        "config.d/20.toml:2:13: error[KATA101] invalid value (strings need quotes; others are true, false or "
        'a number, such as 512, not "0512")',
        "config.d/20.toml:3:16: error[KATA301] runtime.enable_debug: is a string, must be true or false "
        "(write true without quotes)",
    ]


def test_a_fault_of_two_files_together_names_one(base: Path) -> None:
    base.write_text(base.read_text() + "default_maxvcpus = 2\n")
    drop(base, "10.toml", QEMU + "default_vcpus = 4\n")
    (line,) = said(base)
    assert line.startswith("config.d/10.toml:2:17: error[KATA401] hypervisor.qemu.default_vcpus: ")


def test_a_later_spelling_of_a_key_wins(base: Path) -> None:
    base.write_text(base.read_text() + 'seccompsandbox = "on"\n')
    drop(base, "10.toml", QEMU + 'seccomp_sandbox = "off"\n')
    configuration = load(base, check_host=False)
    assert qemu_of(configuration).seccompsandbox == "off"
    origin = configuration.origins.of(("hypervisor", "qemu", "seccompsandbox"))
    assert (origin.kind, origin.line, Path(origin.name).name) == (Kind.DROP_IN, 2, "10.toml")


def test_both_spellings_in_one_drop_in_conflict(base: Path) -> None:
    drop(base, "10.toml", QEMU + 'seccompsandbox = "on"\nseccomp_sandbox = "off"\n')
    (line,) = [line for line in said(base) if "error" in line]
    assert line.startswith("config.d/10.toml:3:1: error[KATA207]")


def test_a_replaced_array_says_what_it_drops(base: Path) -> None:
    base.write_text(base.read_text() + 'virtio_fs_extra_args = ["-a", "-b"]\n')
    drop(base, "10.toml", QEMU + 'virtio_fs_extra_args = ["-b", "-c"]\n')
    assert said(base) == [
        "config.d/10.toml:2:24: note[KATA402] hypervisor.qemu.virtio_fs_extra_args: replaces the array of "
        f'{base}, and drops "-a" (repeat here what is to stay)'
    ]
    assert qemu_of(load(base, check_host=False)).virtio_fs_extra_args == ("-b", "-c")
    drop(base, "10.toml", QEMU + 'virtio_fs_extra_args = ["-a", "-b", "-c"]\n')
    assert said(base) == []


@pytest.mark.parametrize(
    ("content", "code"), [(b"\xff", "KATA005"), (b"\xef\xbb\xbf", "KATA005"), (None, "KATA002")]
)
def test_a_drop_in_that_cannot_be_read_stops_loading(base: Path, content: bytes | None, code: str) -> None:
    path = base.parent / "config.d" / "10.toml"
    if content is None:
        path.symlink_to("absent")
    else:
        path.write_bytes(content)
    drop(base, "20.toml", "[runtime]\nlog_levle = 1\n")
    found = lint(base, check_host=False)
    assert {(Path(item.path).name, item.code) for item in found} == {
        ("10.toml", code),
        ("20.toml", "KATA201"),
    }
    with pytest.raises(ConfigurationError):
        load(base, check_host=False)


def test_a_drop_in_that_is_a_directory_is_a_fault(base: Path) -> None:
    (base.parent / "config.d" / "x.toml").mkdir()
    assert said(base) == ["config.d/x.toml: error[KATA001] is a directory (name a TOML file)"]


def test_a_file_called_config_d_is_a_fault(write: Write, valid_text: str) -> None:
    path = write(valid_text)
    (path.parent / "config.d").touch()
    (found,) = lint(path, check_host=False)
    assert (found.code, found.path) == ("KATA001", str(path.parent / "config.d"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's files are trusted")
@pytest.mark.parametrize("target", ["config.d", "config.d/10.toml"])
def test_what_the_environment_names_must_be_roots_alone(base: Path, target: str) -> None:
    drop(base, "10.toml", "")
    for path in (base, base.parent / "config.d", base.parent / "config.d" / "10.toml"):
        path.chmod(0o755)
    load(base, check_host=False, source="KATA_CONF_FILE")
    (base.parent / target).chmod(0o777)
    with pytest.raises(ConfigurationError, match="KATA003"):
        load(base, check_host=False, source="KATA_CONF_FILE")
    load(base, check_host=False, source="ConfigPath")


def test_the_identity_covers_all_files(base: Path) -> None:
    alone = load(base, check_host=False)
    assert alone.sha256 == hashlib.sha256(base.read_bytes()).hexdigest()
    first = drop(base, "10.toml", "")
    listing = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}\n" for path in (base, first))
    both = load(base, check_host=False)
    assert both.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    assert str(both) == f"configuration {base} + 1 drop-in (sha256 {both.sha256}, chosen by ConfigPath)"


def test_a_file_that_others_can_write_is_doubted(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(base, "10.toml", "").chmod(0o666)
    found = [item for item in lint(base) if item.code == "KATA006"]
    assert [(Path(item.path).name, item.severity) for item in found] == [("10.toml", Severity.WARNING)]
    assert not [item for item in lint(base, check_host=False) if item.code == "KATA006"]


# -- merging ------------------------------------------------------------------------------------------------

keys = st.sampled_from(["a", "b", "c"])
leaves = st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2)
trees = st.dictionaries(keys, st.recursive(leaves, lambda inner: st.dictionaries(keys, inner, max_size=3)))


def leaves_of(tree: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    """Return what a tree says, by path; an empty table says nothing but that it is there."""
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {
        name: value for key, item in tree.items() for name, value in leaves_of(item, (*path, key)).items()
    }


@given(st.lists(trees, min_size=1, max_size=4))
def test_the_last_that_speaks_of_a_key_owns_it(layers: list[dict[str, object]]) -> None:
    merged = merge(layers)
    for path, value in leaves_of(merged.tree).items():
        if path and value != {}:
            assert leaves_of(layers[merged.owner(path)])[path] == value
            for later in layers[merged.owner(path) + 1 :]:
                assert path not in leaves_of(later)


@given(st.lists(trees, min_size=1, max_size=4))
def test_merging_keeps_its_sources(layers: list[dict[str, object]]) -> None:
    before = repr(layers)
    merged = merge(layers)
    assert repr(layers) == before
    assert merge([merged.tree, layers[-1]]).tree == merged.tree


@given(trees, trees, trees)
def test_merging_is_associative_where_no_table_becomes_a_value(
    one: dict[str, object], two: dict[str, object], three: dict[str, object]
) -> None:
    left = merge([merge([one, two]).tree, three]).tree
    right = merge([one, merge([two, three]).tree]).tree
    if not _clash(one, two) and not _clash(two, three) and not _clash(one, three):
        assert left == right


def _clash(one: object, two: object) -> bool:
    if isinstance(one, dict) and isinstance(two, dict):
        return any(_clash(one[key], two[key]) for key in one.keys() & two.keys())
    return isinstance(one, dict) != isinstance(two, dict)
