"""What is read of a process in /proc: texts of the kernel's, and names that a process has chosen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forked import in_child
from kata_runtime.confinement import facts, judging, reading
from kata_runtime.confinement.facts import Facts, Place, Thread

STATUS = """Name:\tvirtiofsd
Umask:\t0022
Uid:\t1\t2\t3\t4
Gid:\t5\t6\t7\t8
Groups:\t9 10 
CapInh:\t0000000000000000
CapPrm:\t0000000000200000
CapEff:\t0000000000200001
CapBnd:\t000001ffffffffff
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Cpus_allowed_list:\t0-3
Seccomp:\t2
Seccomp_filters:\t3
"""  # noqa: W291 - as the kernel writes it

MOUNTS = """1 2 0:3 / / ro,nosuid - tmpfs kata-root ro,size=1m
2 1 0:4 /a /usr/lib ro,nosuid,nodev master:1 - ext4 /dev/vda rw
3 1 0:5 / /dev rw,noexec - tmpfs none rw
4 1 0:6 / /etc\\040x rw - ext4 /dev/vdb ro
not a mount
"""


def thread(**changes: str) -> Thread:
    return Thread(7, {**facts.parse_status(STATUS), **changes})


def test_a_threads_credentials() -> None:
    found = thread()
    assert (found.users, found.groups, found.supplementary) == ((1, 2, 3, 4), (5, 6, 7, 8), (9, 10))
    assert (found.no_new_privs, found.mode, found.filters) == (True, 2, 3)
    assert judging.names_of(found.capabilities["effective"]) == ["chown", "sys_admin"]
    assert len(judging.names_of(found.capabilities["bounding"])) == 41
    assert judging.names_of(1 << 45) == ["45"]


def test_a_kernel_that_does_not_count_filters() -> None:
    fields = facts.parse_status(STATUS.replace("Seccomp_filters:\t3\n", ""))
    assert Thread(7, fields).filters == 1
    assert Thread(7, {**fields, "Seccomp": "0"}).filters == 0


@given(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), max_size=15))
def test_a_name_adds_and_changes_no_field(name: str) -> None:
    fields = facts.parse_status(STATUS.replace("virtiofsd", name))
    assert {**fields, "Name": ""} == {**facts.parse_status(STATUS), "Name": ""}


def test_a_process_is_as_weak_as_its_weakest_thread() -> None:
    threads = [thread(), thread(Seccomp="0", Seccomp_filters="0", CapEff="0000000000000002")]
    found = Facts(7, threads, Place({}, (0, 0)), {}, 0)
    assert found.filters == 0
    assert judging.names_of(found.capabilities("effective")) == ["chown", "dac_override", "sys_admin"]


@pytest.mark.parametrize(("owner", "dumpable"), [(2, True), (0, False)])
def test_who_owns_its_files_says_whether_it_is_dumpable(owner: int, dumpable: bool) -> None:
    assert Facts(7, [thread()], Place({}, (0, 0)), {}, owner).dumpable is dumpable
    assert Facts(7, [thread(Uid="0 0 0 0")], Place({}, (0, 0)), {}, 0).dumpable is None


def test_limits() -> None:
    text = (
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max core file size        0                    unlimited            bytes     \n"
        "Max open files            1024                 4096                 files     \n"
    )
    assert facts.parse_limits(text) == {"core": (0, facts.UNLIMITED), "nofile": (1024, 4096)}


def test_mounts_say_whether_anything_can_be_written() -> None:
    found = facts.parse_mounts(MOUNTS)
    assert [(mount.point, mount.kind, mount.writable) for mount in found] == [
        ("/", "tmpfs", False),
        ("/usr/lib", "ext4", False),
        ("/dev", "tmpfs", True),
        ("/etc\\040x", "ext4", False),
    ]


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    facts.parse_mounts(text)
    facts.parse_cgroups(text)
    facts.kind_of(text)


def test_cgroups_by_controller() -> None:
    assert facts.parse_cgroups("3:cpu,cpuacct:/a:b\n1:name=systemd:/c\n0::/d\n") == {
        "cpu": "/a:b",
        "cpuacct": "/a:b",
        "name=systemd": "/c",
        "": "/d",
    }


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("socket:[7]", "socket"),
        ("pipe:[7]", "pipe"),
        ("/memfd:guest (deleted)", "memfd"),
        ("anon_inode:[eventfd]", "eventfd"),
        ("anon_inode:kvm-vm", "kvm-vm"),
        ("anon_inode:kvm-vcpu:0", "kvm-vcpu"),
        ("anon_inode:[pidfd]", "pidfd"),
        ("anon_inode:seccomp notify", "seccomp listener"),
        ("anon_inode:[new]", "other"),
        ("net:[4026531840]", "namespace"),
        ("/dev/kvm", "kvm"),
        ("/dev/net/tun", "tun"),
        ("/dev/tap7", "tun"),
        ("/dev/vhost-vsock", "vhost-vsock"),
        ("/var/socket:[7]", "file"),
    ],
)
def test_kinds_of_descriptors(target: str, kind: str) -> None:
    assert facts.kind_of(target) == kind


def test_a_device_and_a_directory_are_told_from_a_file() -> None:
    assert facts.kind_of("/dev/urandom", device=True) == "device"
    assert facts.kind_of("/tmp", directory=True) == "directory"


# -- of this very process ------------------------------------------------------------------------------------


def test_this_process_is_read() -> None:
    found = reading.read(os.getpid())
    assert found.threads[0].tid == os.getpid()
    assert found.threads[0].users == (*os.getresuid(), os.geteuid())
    assert found.place.differs(reading.read_place(os.getpid())) == ()
    assert found.place.namespaces["mnt"] == os.readlink("/proc/self/ns/mnt")
    assert found.limits.keys() == facts.LIMITS.keys()
    assert any(mount.point == "/" for mount in reading.read_mounts(os.getpid()))
    assert reading.read_cgroups(os.getpid())


def test_its_descriptors_are_counted() -> None:
    def count() -> dict[str, int]:
        before = reading.read_descriptors(os.getpid())
        kept = [os.memfd_create("x"), *os.pipe(), os.open("/dev/null", os.O_RDONLY)]
        after = reading.read_descriptors(os.getpid())
        assert len(kept) == 4
        return {kind: after[kind] - before.get(kind, 0) for kind in after if after[kind] != before.get(kind)}

    assert in_child(count) == {"memfd": 1, "pipe": 2, "null": 1}


def test_a_process_that_is_gone() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    for read in (reading.read, reading.read_place):
        with pytest.raises(ProcessLookupError):
            read(pid)
    assert list(reading.descendants(pid)) == []


def test_a_carriage_return_in_a_name_ends_no_line(tmp_path: Path) -> None:
    task = tmp_path / "7/task/7"
    task.mkdir(parents=True)
    (task / "status").write_text(
        STATUS.replace("virtiofsd", "x\rSeccomp_filters:\t9").replace("Seccomp_filters:\t3\n", ""), newline=""
    )
    (found,) = reading._read_threads(f"{tmp_path}/7")
    assert found.filters == 1
    assert found.name == "x\rSeccomp_filters:\t9"
