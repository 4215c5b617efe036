"""Where the sandbox's cgroup is, and what is written there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata_runtime.broker import cgroups
from kata_runtime.broker.cgroups import Cgroup, CgroupError, Hierarchy, cgroup_path

KEY = "0123abcd"


@pytest.mark.parametrize(
    ("given", "path"),
    [
        (None, "/kata/0123abcd"),
        ("", "/kata/0123abcd"),
        ("/default/id", "/default/id"),
        ("default/id", "/default/id"),
        ("/kubepods/burstable/pod1/abc", "/kubepods/burstable/pod1/abc"),
        (
            "kubepods-besteffort-podX.slice:cri-containerd:ID",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podX.slice/cri-containerd-ID.scope",
        ),
        ("system.slice:kata:ID", "/system.slice/kata-ID.scope"),
        (":kata:ID", "/system.slice/kata-ID.scope"),
        ("-.slice:kata:ID", "/kata-ID.scope"),
        ("system.slice::ID", "/system.slice/ID.scope"),
        ("user.slice:x:user-1.slice", "/user.slice/user-1.slice"),
        ("/a:b:c/d", "/a:b:c/d"),
    ],
)
def test_paths(given: str | None, path: str) -> None:
    assert cgroup_path(given, KEY) == path


@pytest.mark.parametrize(
    "given",
    [
        *("/", "//a", "/a/../b", "../a", "/a/./b", "/a/", "/a//b", "/a\0b", "/" + "x" * 256),
        *("system:kata:ID", "a--b.slice:kata:ID", "-a.slice:kata:ID", ".slice:kata:ID", "a.slice:kata:"),
    ],
)
def test_paths_that_could_lead_elsewhere_are_refused(given: str) -> None:
    with pytest.raises(CgroupError, match="cgroupsPath"):
        cgroup_path(given, KEY)


V1 = """\
30 24 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,name=systemd
33 30 0:28 / /elsewhere rw - cgroup systemd rw,xattr,name=systemd
34 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def test_hierarchies_are_found_once_each(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(V1)
    found = cgroups.hierarchies(str(tmp_path / "mountinfo"))
    assert [(h.mountpoint, h.version, h.controllers) for h in found] == [
        ("/sys/fs/cgroup/cpu,cpuacct", 1, frozenset({"cpu", "cpuacct"})),
        ("/sys/fs/cgroup/systemd", 1, frozenset({"name=systemd"})),
        ("/sys/fs/cgroup/unified", 2, frozenset()),
    ]


def test_where_a_process_is(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("4:cpu,cpuacct:/a\n1:name=systemd:/b:c\n0::/gone\n")
    for name in ("cpu/a", "systemd/b:c", "unified"):
        (tmp_path / name).mkdir(parents=True)
    membership = cgroups.read_membership(str(tmp_path))
    cpu = Hierarchy(f"{tmp_path}/cpu", 1, frozenset({"cpu", "cpuacct"}))
    systemd = Hierarchy(f"{tmp_path}/systemd", 1, frozenset({"name=systemd"}))
    assert cgroups.current(cpu, membership) == f"{tmp_path}/cpu/a"
    assert cgroups.current(systemd, membership) == f"{tmp_path}/systemd/b:c"
    assert cgroups.current(Hierarchy(f"{tmp_path}/unified", 2), membership) == f"{tmp_path}/unified"


class FakeTree:
    """What looks like one mounted hierarchy; a group gets its control files when it is recorded."""

    def __init__(
        self, root: Path, version: int, files: dict[str, str], controllers: frozenset[str] = frozenset()
    ) -> None:
        self.files = {"cgroup.procs": "", **files}
        self.hierarchy = Hierarchy(str(root), version, controllers)
        self.records: list[tuple[str, str]] = []
        self.fill(root)

    def fill(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            (directory / name).write_text(text)

    def record(self, kind: str, directory: str, origin: str) -> None:
        assert not os.path.exists(directory), "recorded after it was made"
        self.records.append((kind, os.path.relpath(directory, self.hierarchy.mountpoint)))
        self.fill(Path(directory))


def test_version_2_hands_controllers_on_to_the_leaf(tmp_path: Path) -> None:
    files = {
        "cgroup.controllers": "cpu memory hugetlb",
        "cgroup.subtree_control": "",
        "memory.events": "oom_kill 3\n",
    }
    tree = FakeTree(tmp_path / "cg", 2, files)
    group = Cgroup("/default/id", [tree.hierarchy])
    group.create(tree.record)
    group.join(77)
    assert tree.records == [("rmgroup", "default"), ("cgroup", "default/id")]
    for parent in ("", "default"):
        assert (tmp_path / "cg" / parent / "cgroup.subtree_control").read_text() == "+memory"
    assert (tmp_path / "cg/default/id/cgroup.subtree_control").read_text() == ""
    assert (tmp_path / "cg/default/id/cgroup.procs").read_text() == "77"
    assert group.oom_kills() == 3


def test_version_1_fills_the_cpuset_and_counts_in_its_own_file(tmp_path: Path) -> None:
    cpuset = FakeTree(tmp_path / "cpuset", 1, {"cpuset.cpus": "", "cpuset.mems": ""}, frozenset({"cpuset"}))
    (tmp_path / "cpuset/cpuset.cpus").write_text("0-3\n")
    (tmp_path / "cpuset/cpuset.mems").write_text("0\n")
    memory = FakeTree(
        tmp_path / "memory",
        1,
        {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"},
        frozenset({"memory"}),
    )
    group = Cgroup("/a/b", [cpuset.hierarchy, memory.hierarchy])
    group.create(
        lambda kind, path, origin: (cpuset if "/cpuset/" in path else memory).record(kind, path, origin)
    )
    assert (tmp_path / "cpuset/a/b/cpuset.cpus").read_text() == "0-3"
    assert (tmp_path / "cpuset/a/b/cpuset.mems").read_text() == "0"
    assert group.oom_kills() == 2


def test_a_parent_that_other_sandboxes_made_is_removed_by_the_last(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path / "cg", 1, {})
    for parent in ("a", "a/b"):
        tree.fill(tmp_path / "cg" / parent)
    records: list[tuple[str, str]] = []
    group = Cgroup("/a/b/c", [tree.hierarchy])
    group.create(lambda kind, path, origin: records.append((kind, path)), lambda path: path.endswith("/b"))
    assert records == [("rmgroup", str(tmp_path / "cg/a/b")), ("cgroup", str(tmp_path / "cg/a/b/c"))]


def test_a_parent_that_goes_with_its_last_sandbox_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    seen: list[str] = []

    def record(kind: str, path: str, origin: str) -> None:
        seen.append(kind)
        if len(seen) == 1:
            (tmp_path / "a").rmdir()

    Cgroup("/a/b", [Hierarchy(str(tmp_path), 1)]).create(record)
    assert (tmp_path / "a/b").is_dir()
    assert seen == ["cgroup", "rmgroup", "cgroup"]


def test_a_cgroup_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path / "cg", 1, {})
    tree.fill(tmp_path / "cg/a")
    (tmp_path / "cg/a/cgroup.procs").write_text("4242\n")
    with pytest.raises(CgroupError, match="in use by process 4242"):
        Cgroup("/a", [tree.hierarchy]).create(tree.record)
    assert tree.records == []


def test_a_host_whose_cgroups_cannot_be_written_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = FakeTree(tmp_path / "cg", 1, {})

    def refuse(path: str, mode: int) -> None:
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(CgroupError, match="no hierarchy of this host can be written"):
        Cgroup("/a", [tree.hierarchy]).create(lambda *_: None)


def test_a_group_that_does_not_exist_is_empty_and_removed(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    assert cgroups.members(gone) == []
    assert cgroups.empty(gone, str(tmp_path), set()) == []
    cgroups.remove(gone)
    cgroups.remove_parent(gone)


def test_a_parent_that_others_use_stays(tmp_path: Path) -> None:
    (tmp_path / "parent/child").mkdir(parents=True)
    cgroups.remove_parent(str(tmp_path / "parent"))
    assert (tmp_path / "parent/child").is_dir()
