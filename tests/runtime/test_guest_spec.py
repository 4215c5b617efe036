"""What of the host's specification reaches the guest."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kata_agent.constants import PID_ANNOTATION
from kata_runtime.block_nodes import BlockNode
from kata_runtime.container.guest_spec import (
    GUEST_SHARED,
    GuestSource,
    PodSettings,
    amend,
    amend_process,
    left_out,
    memory_candidates,
    volumes_of,
)

SPEC: dict[str, Any] = {
    "process": {
        "args": ["sh"],
        "cwd": "/",
        "apparmorProfile": "docker-default",
        "selinuxLabel": "x",
        "noNewPrivileges": True,
    },
    "root": {"path": "/host/rootfs", "readonly": True},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/data", "type": "bind", "source": "/host/data", "options": ["rbind", "ro"]},
        {"destination": "/dev/shm", "type": "bind", "source": "/run/x/shm", "options": ["rbind"]},
        {"destination": "/etc/hosts", "source": "/host/hosts", "options": ["bind", "rw"]},
    ],
    "hooks": {"startContainer": [{"path": "/in/guest"}], "prestart": [{"path": "/on/host"}]},
    "linux": {
        "namespaces": [
            {"type": "pid", "path": "/proc/1/ns/pid"},
            {"type": "network", "path": "/run/netns/x"},
            {"type": "mount"},
        ],
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
        "resources": {
            "cpu": {"cpus": "3-5", "quota": 50000},
            "memory": {"limit": 1},
            "blockIO": {"weight": 10},
        },
    },
}


def amended(**changes: Any) -> dict[str, Any]:
    sources = {
        1: GuestSource("/guest/1"),
        2: GuestSource("/guest/memory"),
        3: GuestSource("/guest/3", readonly=True),
    }
    return amend(SPEC | changes, "web", sources, disable_guest_seccomp=False)


def test_the_argument_is_left_as_it_was() -> None:
    before = copy.deepcopy(SPEC)
    amended()
    assert before == SPEC


def test_volumes_are_the_bind_mounts_of_the_host() -> None:
    found = volumes_of(SPEC)
    assert [(v.index, v.source, v.readonly, v.recursive) for v in found] == [
        (1, "/host/data", True, True),
        (2, "/run/x/shm", False, True),
        (3, "/host/hosts", False, False),
    ]


def test_paths_become_the_guests() -> None:
    guest = amended()
    assert guest["root"] == {"path": f"{GUEST_SHARED}/web/rootfs", "readonly": True}
    assert [mount["source"] for mount in guest["mounts"]] == ["proc", "/guest/1", "/guest/memory", "/guest/3"]
    assert guest["mounts"][1]["options"] == ["rbind", "ro"]
    assert guest["mounts"][3]["type"] == "bind"


def test_the_vm_replaces_namespaces_and_host_labels() -> None:
    guest = amended()
    assert guest["linux"]["namespaces"] == [{"type": "pid"}, {"type": "mount"}]
    assert guest["process"] == {"args": ["sh"], "cwd": "/", "noNewPrivileges": True}
    assert guest["hooks"] == {"startContainer": [{"path": "/in/guest"}]}


def test_limits_that_name_the_hosts_devices_and_cpus_are_dropped() -> None:
    resources = amended()["linux"]["resources"]
    assert resources == {"cpu": {"quota": 50000}, "memory": {"limit": 1}}


def test_the_guests_seccomp_profile_is_kept_unless_disabled() -> None:
    assert "seccomp" in amended()["linux"]
    assert "seccomp" not in amend(SPEC, "web", {}, disable_guest_seccomp=True)["linux"]


def test_a_pods_sysctls_beside_the_containers_own() -> None:
    spec = {"root": {}, "process": {}, "linux": {"sysctl": {"net.core.somaxconn": "5"}}}
    pods = {"net.core.somaxconn": "1", "kernel.msgmax": "9000"}
    made = amend(spec, "c1", {}, disable_guest_seccomp=False, settings=PodSettings(sysctls=pods))
    assert made["linux"]["sysctl"] == {"net.core.somaxconn": "5", "kernel.msgmax": "9000"}
    assert spec["linux"] == {"sysctl": {"net.core.somaxconn": "5"}}


@pytest.mark.parametrize("own", [[], [{"destination": "/etc/resolv.conf", "type": "tmpfs"}]])
def test_a_pods_name_servers_where_the_container_has_no_file_of_its_own(own: list[dict[str, Any]]) -> None:
    spec = {"root": {}, "process": {}, "mounts": own}
    settings = PodSettings(name_servers=("nameserver 10.0.0.1",))
    mounts = amend(spec, "c1", {}, disable_guest_seccomp=False, settings=settings)["mounts"]
    assert [mount["destination"] for mount in mounts] == ["/etc/resolv.conf"]
    assert (mounts[0].get("source") == "/run/resolv.conf") is not bool(own)
    assert amend(spec, "c1", {}, disable_guest_seccomp=False)["mounts"] == own


def test_rules_that_forbid_a_device_of_the_host_do_not_reach_the_guest() -> None:
    kept = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "access": "m"},
        {"allow": True, "type": "c", "major": 136, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
    ]
    dropped = [
        {"allow": False, "type": "b", "major": 254, "minor": 0, "access": "rwm"},
        {"allow": False, "type": "b", "major": 8, "access": "rwm"},
        {"allow": False, "type": "c", "major": 4, "minor": 64, "access": "rwm"},
    ]
    guest = amended(linux={"resources": {"devices": [*dropped, *kept]}})
    assert guest["linux"]["resources"]["devices"] == kept


def test_a_block_device_is_a_node_with_the_leave_to_open_it() -> None:
    """A mount that names one is one of linux.devices too, by the number of the host."""
    given = {"path": "/dev/a", "type": "b", "major": 7, "minor": 1}
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "b", "major": 7, "minor": 1, "access": "rwm"},
        {"allow": False, "type": "b", "major": 8, "minor": 0, "access": "rwm"},
    ]
    spec = SPEC | {"linux": {"devices": [given], "resources": {"devices": rules}}}
    nodes = [
        BlockNode("/dev/a", "7:1", write=True),
        BlockNode("/dev/b", "7:2", write=False, mount=1, mode=0o640, user=5, group=6),
    ]
    guest = amend(spec, "web", {3: GuestSource("/guest/3")}, disable_guest_seccomp=False, nodes=nodes)
    assert [mount["destination"] for mount in guest["mounts"]] == ["/proc", "/dev/shm", "/etc/hosts"]
    mounted = {"path": "/dev/b", "type": "b", "major": 7, "minor": 2, "fileMode": 0o640, "uid": 5, "gid": 6}
    assert guest["linux"]["devices"] == [given, mounted]
    assert guest["linux"]["resources"]["devices"] == [
        *rules[:2],
        {"allow": True, "type": "b", "major": 7, "minor": 2, "access": "rm"},
    ]


def test_a_device_that_the_guest_has_itself_is_mounted_from_there() -> None:
    mount = {"destination": "/log", "type": "bind", "source": "/dev/kmsg", "options": ["rbind", "ro"]}
    spec = SPEC | {"mounts": [mount, mount | {"source": "/dev/sda"}]}
    assert [volume.source for volume in volumes_of(spec)] == ["/dev/sda"]
    guest = amend(spec, "web", {1: GuestSource("/guest/1")}, disable_guest_seccomp=False)
    assert [found["source"] for found in guest["mounts"]] == ["/dev/kmsg", "/guest/1"]


PODS = "/var/lib/kubelet/pods/x"


@pytest.mark.parametrize(
    ("source", "destination", "candidate"),
    [
        (f"{PODS}/volumes/kubernetes.io~empty-dir/cache", "/cache", True),
        (f"{PODS}/volume-subpaths/cache/web/0", "/cache", True),
        ("/run/x/shm", "/dev/shm", True),
        (f"{PODS}/volumes/kubernetes.io~secret/token", "/token", False),
        ("/data", "/data", False),
    ],
)
def test_what_may_be_memory_of_the_pod(source: str, destination: str, candidate: bool) -> None:
    spec = {"mounts": [{"destination": destination, "type": "bind", "source": source, "options": ["rw"]}]}
    assert [volume.index for volume in memory_candidates(spec)] == [0] * candidate


@pytest.mark.parametrize(
    ("source", "option", "updated"),
    [
        *((f"{PODS}/volumes/kubernetes.io~{kind}/v", "ro", True) for kind in ("configmap", "secret")),
        *((f"{PODS}/volumes/kubernetes.io~{kind}/v", "ro", True) for kind in ("projected", "downward-api")),
        (f"{PODS}/volumes/kubernetes.io~configmap/v", "rw", False),
        (f"{PODS}/volumes/kubernetes.io~configmap/v/..data", "ro", False),
        (f"{PODS}/volumes/kubernetes.io~empty-dir/v", "ro", False),
        ("/data", "ro", False),
    ],
)
def test_what_a_kubelet_brings_up_to_date(source: str, option: str, updated: bool) -> None:
    spec = {"mounts": [{"destination": "/v", "type": "bind", "source": source, "options": [option]}]}
    assert [volume.updated for volume in volumes_of(spec)] == [updated]


def test_what_is_not_in_force_is_told_by_name() -> None:
    assert left_out(SPEC) == [
        'process.apparmorProfile "docker-default"',
        'process.selinuxLabel "x"',
        'linux.resources.blockIO {"weight": 10}',
    ]
    linux = {
        "resources": {"network": {}, "rdma": {"mlx": {"hcaHandles": 3}}},
        "personality": {"domain": "LINUX"},
    }
    told = left_out({"process": {"args": ["sh"], "cwd": "/"}, "linux": linux, "domainname": "d"})
    assert told == ['linux.resources.rdma {"mlx": {"hcaHandles": 3}}', "linux.personality", "domainname"]


def test_the_container_whose_processes_are_shared_is_the_runtimes_alone_to_name() -> None:
    spec = SPEC | {"mounts": [], "annotations": {PID_ANNOTATION: "another", "kept": "x"}}
    assert amend(spec, "web", {}, disable_guest_seccomp=False)["annotations"] == {"kept": "x"}
    joined = amend(spec, "web", {}, disable_guest_seccomp=False, processes_of="app")
    assert joined["annotations"] == {PID_ANNOTATION: "app", "kept": "x"}


def test_a_terminal_that_is_larger_than_any_has_the_largest_size() -> None:
    amended = amend_process({}, (70_000, 2**32 - 1))
    assert amended["consoleSize"] == {"width": 65535, "height": 65535}
    assert amend_process({}, (80, 24))["consoleSize"] == {"width": 80, "height": 24}
