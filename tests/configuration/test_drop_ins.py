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
from kata_configuration.parse.trust import trusted_uids
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


def findings(base: Path) -> list[str]:
    """Return what linting says, with the paths from the base file's directory."""
    return [str(found).removeprefix(f"{base.parent}/") for found in lint(base, check_host=False)]


def test_drop_ins_are_merged_by_name(base: Path) -> None:
    drop(base, "20-more.toml", QEMU + "default_memory = 2048\n")
    drop(
        base, "10-first.toml", QEMU + 'default_memory = 1024\ndefault_vcpus = 2\n[runtime]\nlog_level="warn"'
    )
    configuration = load(base, check_host=False)
    assert configuration.hypervisor.default_memory == 2048
    assert qemu_of(configuration).default_vcpus == 2
    assert qemu_of(configuration).kernel == Path("/boot/vmlinuz")
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
    assert qemu_of(load(base, check_host=False)).default_vcpus == 3


def test_directories_beside_the_link_and_its_target_are_read(base: Path, tmp_path: Path) -> None:
    link = tmp_path / "link" / "configuration.toml"
    (link.parent / "config.d").mkdir(parents=True)
    link.symlink_to(base)
    drop(base, "10.toml", QEMU + "default_vcpus = 2\ndefault_memory = 1024\n")
    drop(base, "20.toml", QEMU + "default_vcpus = 3\n")
    drop(link, "10.toml", QEMU + "default_memory = 2048\n")
    names = [path.relative_to(tmp_path) for path in dropins.find(link).files]
    assert [str(name) for name in names] == [
        "etc/config.d/10.toml",
        "link/config.d/10.toml",
        "etc/config.d/20.toml",
    ]
    hypervisor = qemu_of(load(link, check_host=False))
    assert (hypervisor.default_vcpus, hypervisor.default_memory) == (3, 2048)


def test_a_directory_that_is_reached_twice_is_read_once(base: Path, tmp_path: Path) -> None:
    link = tmp_path / "link" / "configuration.toml"
    link.parent.mkdir()
    link.symlink_to(base)
    (link.parent / "config.d").symlink_to(base.parent / "config.d")
    drop(base, "10.toml", "")
    assert len(dropins.find(link).files) == 1


def test_each_fault_names_its_file(base: Path) -> None:
    base.write_text(base.read_text() + "default_maxvcpus = 2\n")
    drop(base, "10.toml", QEMU + 'secompsandbox = "on"\ndefault_vcpus = 4\n')
    drop(base, "20.toml", '[runtime]\nlog_level = x\nenable_debug = "true"\n')
    assert findings(base) == [
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
    (line,) = findings(base)
    assert line.startswith("config.d/10.toml:2:17: error[KATA401] hypervisor.qemu.default_vcpus: ")


def test_a_later_spelling_of_a_key_wins(base: Path) -> None:
    base.write_text(base.read_text() + 'seccompsandbox = "on"\n')
    drop(base, "10.toml", QEMU + 'seccomp_sandbox = "off"\n')
    configuration = load(base, check_host=False)
    assert qemu_of(configuration).seccompsandbox == "off"
    assert configuration.origins is not None
    origin = configuration.origins.of(("hypervisor", "qemu", "seccompsandbox"))
    assert (origin.kind, origin.line, Path(origin.name).name) == (Kind.DROP_IN, 2, "10.toml")


def test_both_spellings_in_one_drop_in_conflict(base: Path) -> None:
    drop(base, "10.toml", QEMU + 'seccompsandbox = "on"\nseccomp_sandbox = "off"\n')
    (line,) = [line for line in findings(base) if "error" in line]
    assert line.startswith("config.d/10.toml:3:1: error[KATA207]")


def test_a_replaced_array_says_what_it_drops(base: Path) -> None:
    base.write_text(base.read_text() + 'virtio_fs_extra_args = ["--xattr", "--posix-acl"]\n')
    drop(base, "10.toml", QEMU + 'virtio_fs_extra_args = ["--posix-acl", "--readonly"]\n')
    assert findings(base) == [
        "config.d/10.toml:2:24: note[KATA402] hypervisor.qemu.virtio_fs_extra_args: replaces the array of "
        f'{base}, and drops "--xattr" (repeat here what is to stay)'
    ]
    assert qemu_of(load(base, check_host=False)).virtio_fs_extra_args == ("--posix-acl", "--readonly")
    drop(base, "10.toml", QEMU + 'virtio_fs_extra_args = ["--xattr", "--posix-acl", "--readonly"]\n')
    assert findings(base) == []


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
    assert findings(base) == ["config.d/x.toml: error[KATA001] is a directory (name a TOML file)"]


def test_a_file_called_config_d_is_a_fault(write: Write, valid_text: str) -> None:
    path = write(valid_text)
    (path.parent / "config.d").touch()
    (found,) = lint(path, check_host=False)
    assert (found.code, found.path) == ("KATA001", str(path.parent / "config.d"))


NOBODY = os.geteuid() + 1


@pytest.mark.parametrize("source", ["ConfigPath", "KATA_CONF_FILE", "default"])
@pytest.mark.parametrize(
    ("target", "code"),
    [(".", "KATA006"), ("", "KATA003"), ("config.d", "KATA006"), ("config.d/10.toml", "KATA003")],
)
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_others_change_no_file_and_no_directory(
    base: Path, source: str, target: str, code: str, mode: int
) -> None:
    """One rule for every way to a file, and for the linter; tried without the checks of the host."""
    drop(base, "10.toml", "")
    trusted = trusted_uids()
    for path in (base.parent, base, base.parent / "config.d", base.parent / "config.d" / "10.toml"):
        path.chmod(0o755)
    load(base, check_host=False, source=source, trusted=trusted)
    assert lint(base, check_host=False, trusted=trusted) == ()
    changed = base.parent / target if target else base
    changed.chmod(mode)
    with pytest.raises(ConfigurationError) as caught:
        load(base, check_host=False, source=source, trusted=trusted)
    (found,) = caught.value.diagnostics
    assert (found.code, found.path, found.security) == (code, str(changed), True)
    assert found.message.startswith(f"has the mode {mode:04o}, which lets others")
    assert lint(base, check_host=False, trusted=trusted) == (found,)
    changed.chmod(0o755)


def test_a_file_belongs_to_somebody_who_is_trusted(base: Path) -> None:
    drop(base, "10.toml", "")
    found = lint(base, check_host=False, trusted=frozenset({NOBODY}))
    assert {(Path(item.path).name, item.code) for item in found} == {
        (base.parent.name, "KATA006"),
        (base.name, "KATA003"),
        ("config.d", "KATA006"),
        ("10.toml", "KATA003"),
    }
    assert all("who is neither root nor the user that reads it" in item.message for item in found)


def test_a_link_is_as_safe_as_the_directories_of_both_ends(base: Path, tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    link = open_to_all / "link.toml"
    link.symlink_to(base)
    trusted = trusted_uids()
    assert lint(link, check_host=False, trusted=trusted) == ()
    open_to_all.chmod(0o777)
    assert [item.path for item in lint(link, check_host=False, trusted=trusted)] == [str(open_to_all)]
    open_to_all.chmod(0o1777)
    assert lint(link, check_host=False, trusted=trusted) == ()
    base.parent.chmod(0o777)
    assert [item.path for item in lint(link, check_host=False, trusted=trusted)] == [str(base.parent)]


def test_the_rule_is_in_force_where_the_host_is_checked(base: Path) -> None:
    base.chmod(0o666)
    assert [item.code for item in lint(base) if item.code < "KATA100"] == ["KATA003"]
    with pytest.raises(ConfigurationError, match="KATA003"):
        load(base)
    with pytest.raises(ConfigurationError, match="KATA003"):
        load(base, check_host=False, source="KATA_CONF_FILE")
    assert load(base, check_host=False)


@pytest.mark.parametrize("name", ["10.toml.bak", "10.TOML", "10.toml~", "10.toml.dpkg-old"])
def test_a_name_that_is_almost_a_drop_ins_is_noted(base: Path, name: str) -> None:
    path = drop(base, name, "[runtime]\nlog_level = 3\n")
    (found,) = lint(base, check_host=False)
    assert (found.code, found.severity, found.path) == ("KATA007", Severity.NOTE, str(path))
    for hidden in (f".{name}", "README", "..data"):
        drop(base, hidden, "")
    assert len(lint(base, check_host=False)) == 1


def test_a_table_that_is_not_selected_is_in_vain(base: Path) -> None:
    drop(base, "10.toml", "[hypervisor.clh]\ndefault_vcpus = 2\n")
    assert findings(base) == [
        "config.d/10.toml:1:13: warning[KATA404] hypervisor.clh: has no effect: hypervisor_name selects qemu "
        "(remove the table)"
    ]


def test_of_two_drop_ins_the_later_wins_and_says_so(base: Path) -> None:
    first = drop(base, "10.toml", QEMU + "default_vcpus = 2\nenable_debug = false\n")
    drop(base, "20.toml", QEMU + "default_vcpus = 3\nenable_debug = false\n")
    assert findings(base) == [
        f"config.d/20.toml:2:1: note[KATA406] hypervisor.qemu.default_vcpus: is set by {first} too; this one "
        "wins, whose name comes later (keep one of them)"
    ]
    assert qemu_of(load(base, check_host=False)).default_vcpus == 3


def test_the_identity_covers_all_files(base: Path) -> None:
    alone = load(base, check_host=False)
    assert alone.sha256 == hashlib.sha256(base.read_bytes()).hexdigest()
    first = drop(base, "10.toml", "")
    listing = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}\n" for path in (base, first))
    both = load(base, check_host=False)
    assert both.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    assert str(both) == f"configuration {base} + 1 drop-in (sha256 {both.sha256}, chosen by ConfigPath)"


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
