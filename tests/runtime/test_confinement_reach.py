"""What a guest reaches that owns a process: by itself, and by who acts for it."""

from __future__ import annotations

from typing import Any

import pytest

from kata_hypervisor.seccomp import syscalls
from kata_hypervisor.seccomp.score import weight
from kata_runtime.broker.operations import OPERATIONS
from kata_runtime.broker.phase import Phase
from kata_runtime.confinement import reach
from kata_runtime.confinement.facts import Mount
from kata_runtime.confinement.reach import Held, Service

READ_ONLY = Mount("/", "tmpfs", frozenset({"ro", "noexec"}))
PROGRAMS = Mount("/usr/lib", "ext4", frozenset({"ro"}))
WRITABLE = Mount("/data", "ext4", frozenset({"rw", "noexec"}))
EVERY = frozenset(syscalls.numbers("x86_64"))


def held(*calls: str, **changes: Any) -> Held:
    given: dict[str, Any] = {
        "role": "vmm",
        "user": 7,
        "calls": frozenset(calls),
        "conditional": frozenset(),
        "own_root": True,
        "own_network": True,
        "landlocked": False,
        "capabilities": frozenset(),
        "mounts": (READ_ONLY,),
    }
    return Held(**{**given, **changes})


def test_each_operation_after_the_seal_is_declared() -> None:
    sealed = {operation.name for operation in OPERATIONS if Phase.SEALED in operation.phases}
    assert reach.BROKER_SERVICES.keys() == sealed


@pytest.mark.parametrize("service", [*reach.BROKER_SERVICES.values(), reach.SHARED_FILES])
def test_services_name_system_calls(service: Service) -> None:
    assert EVERY.issuperset(service.calls)
    assert bool(service.verb) == bool(service.what)


def test_who_may_call_nothing_reaches_nothing() -> None:
    assert set(reach.alone(held("read", "write")).values()) == {"nothing"}


def test_root_without_a_filter_reaches_everything() -> None:
    found = reach.alone(
        held(*EVERY, own_root=False, own_network=False, user=0, capabilities=frozenset({"sys_admin"}))
    )
    assert found == {
        "open": "any file of the host that user 0 may",
        "connect": "the host's network, and sockets in the host's file system",
        "mount": "anything",
        "run": "any program of the host as user 0",
    }


@pytest.mark.parametrize(
    ("calls", "changes", "verb", "phrase"),
    [
        (("openat",), {}, "open", "files of its own root, read-only"),
        (("openat",), {"mounts": (READ_ONLY, WRITABLE)}, "open", "1 mounts of it writable"),
        (("openat",), {"landlocked": True, "own_root": False}, "open", "nothing"),
        ((), {"conditional": frozenset({"openat2"}), "own_root": False}, "open", "user 7"),
        (("socket",), {}, "connect", "nothing"),
        (("socket", "connect"), {}, "connect", "a network namespace of its own"),
        (("mount",), {}, "mount", "nothing"),
        (("mount", "unshare"), {}, "mount", "in a user namespace that it makes"),
        (("mount",), {"capabilities": frozenset({"sys_admin"})}, "mount", "anything"),
        (("execve",), {}, "run", "nothing"),
        (("execve",), {"mounts": (PROGRAMS,)}, "run", "programs of its own root"),
        (("execve",), {"own_root": False}, "run", "any program of the host as user 7"),
    ],
)
def test_what_it_reaches_follows_from_calls_and_places(
    calls: tuple[str, ...], changes: dict[str, Any], verb: str, phrase: str
) -> None:
    assert phrase in reach.alone(held(*calls, **changes))[verb]


def test_the_union_counts_each_call_once_and_what_is_asked_for_as_conditional() -> None:
    owner = held("read", "openat", conditional=frozenset({"ioctl"}))
    services = [Service(("openat", "execve"), "run", "a program"), Service(("execve", "ioctl"))]
    found = reach.unite(owner, services)
    alone = weight("read") + weight("openat") + weight("ioctl", conditional=True)
    assert found.alone == pytest.approx(alone)
    assert found.score == pytest.approx(alone + weight("execve", conditional=True))
    assert (found.calls, found.escape) == (4, ("execve",))
    assert found.reach == {"open": ["files of its own root, read-only"], "run": ["a program"]}
