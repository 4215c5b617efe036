"""What of the host's specification reaches the guest."""

from __future__ import annotations

import copy
from typing import Any

from kata_runtime.container.guest_spec import GUEST_SHARED, GUEST_SHM, amend, volumes_of

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
    return amend(SPEC | changes, "web", {1: "/guest/1", 3: "/guest/3"}, disable_guest_seccomp=False)


def test_the_argument_is_left_as_it_was() -> None:
    before = copy.deepcopy(SPEC)
    amended()
    assert before == SPEC


def test_volumes_are_the_bind_mounts_of_the_host() -> None:
    found = volumes_of(SPEC)
    assert [(v.index, v.source, v.readonly, v.recursive) for v in found] == [
        (1, "/host/data", True, True),
        (3, "/host/hosts", False, False),
    ]


def test_paths_become_the_guests() -> None:
    guest = amended()
    assert guest["root"] == {"path": f"{GUEST_SHARED}/web/rootfs", "readonly": True}
    assert [mount["source"] for mount in guest["mounts"]] == ["proc", "/guest/1", GUEST_SHM, "/guest/3"]
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
