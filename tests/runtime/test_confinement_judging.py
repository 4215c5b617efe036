"""What each process of a pod must be, what is said of a weaker one, and of a host that lacks something."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from broker_bed import make_bed
from kata_configuration.models.runtime import Runtime
from kata_hypervisor import registry
from kata_runtime.broker import hooks, image_cache, logger, pod_confinement, pod_network, self_confinement
from kata_runtime.broker.client import Broker
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.process import fork_broker
from kata_runtime.confinement import judging, mechanisms, reading
from kata_runtime.confinement.facts import CAPABILITY_SETS, LIMITS, NAMESPACES, Facts, Place, Thread
from kata_runtime.confinement.rows import BROKER, CHILD_OF, INIT, ROWS, SHIM, row_of
from kata_runtime.pod.giving_up import give_up

USER = 1_900_000_007
HOST = Place({name: f"{name}:[1]" for name in NAMESPACES}, (1, 2))
OWN = Place({name: f"{name}:[2]" for name in NAMESPACES}, (3, 2))
STRICT = {
    "Name": "x",
    "Uid": f"{USER} {USER} {USER} {USER}",
    "Gid": f"{USER} {USER} {USER} {USER}",
    "Groups": "",
    **dict.fromkeys(CAPABILITY_SETS.values(), "0" * 16),
    "NoNewPrivs": "1",
    "Cpus_allowed_list": "0-3",
    "Seccomp": "2",
    "Seccomp_filters": "1",
}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def facts_of(
    *threads: Mapping[str, str],
    place: Place = OWN,
    core: tuple[int, int] = (0, 0),
    fsize: tuple[int, int] = (0, 0),
    owner: int = 0,
) -> Facts:
    """A process that is as strict as any, but for these changes of its threads, and these of itself."""
    made = [Thread(7 + number, {**STRICT, **changes}) for number, changes in enumerate(threads or [{}])]
    return Facts(7, made, place, {**dict.fromkeys(LIMITS, core), "fsize": fsize}, owner)


def weaknesses(role: str, found: Facts, filters: int | None = 1) -> list[tuple[str, str]]:
    weaker = judging.find_weaknesses(row_of(role), found, HOST, user=USER, filters=filters)
    return [(one.cell, one.reason) for one in weaker]


# -- rows ----------------------------------------------------------------------------------------------------


def test_every_role_that_the_broker_starts_has_a_row() -> None:
    others = {SHIM, BROKER, INIT, hooks.ROLE, image_cache.ROLE, logger.ROLE, pod_network.ROLE}
    assert ROWS.keys() == registry.child_roles() | others
    assert row_of("qemu" + CHILD_OF) is ROWS["qemu"]


@pytest.mark.parametrize("role", ROWS)
def test_what_is_strict_in_everything_is_enough(role: str) -> None:
    assert weaknesses(role, facts_of()) == []


@pytest.mark.parametrize(
    ("found", "cell", "reason"),
    [
        (facts_of({"Uid": f"{USER} {USER} 0 {USER}"}), "user", f"has the user {USER} {USER} 0 {USER}"),
        (facts_of({"Gid": "0 0 0 0"}), "user", f"has the group 0 0 0 0, and not {USER}"),
        (facts_of({"Groups": "0 27"}), "user", "has the groups 0 27"),
        *(
            (facts_of({field: f"{1 << 21:016x}"}), "capabilities", f"in its {name} set: sys_admin")
            for name, field in CAPABILITY_SETS.items()
        ),
        (facts_of({"NoNewPrivs": "0"}), "no_new_privs", "has not no_new_privs"),
        (facts_of(core=(0, -1)), "limits", "a limit of core dumps of (0, -1)"),
        (facts_of(fsize=(0, -1)), "limits", "may make files of any size"),
        (facts_of(place=Place(OWN.namespaces, HOST.root)), "root", "has the host's root directory"),
        (
            facts_of(place=Place({**OWN.namespaces, "net": "net:[1]"}, OWN.root)),
            "namespaces",
            "is in the host's namespaces: net",
        ),
        (facts_of({"Seccomp": "0", "Seccomp_filters": "0"}), "seccomp", "is under 0 seccomp filters"),
        (facts_of({}, {"Seccomp_filters": "0", "Seccomp": "0"}), "seccomp", "thread 8 is under 0 seccomp"),
        (facts_of({}, {"CapEff": f"{1:016x}"}), "capabilities", "thread 8 has capabilities"),
    ],
)
def test_each_cell_that_is_weaker_is_named(found: Facts, cell: str, reason: str) -> None:
    ((weaker, why),) = weaknesses("qemu", found)
    assert weaker == cell
    assert reason in why


def test_an_init_makes_no_files_and_others_only_bounded_ones() -> None:
    assert weaknesses(INIT, facts_of(fsize=(1, 1))) == [("limits", "may make files, and must not")]
    assert weaknesses("qemu", facts_of(fsize=(1 << 30, 1 << 30))) == []
    for role in {role for role, row in ROWS.items() if row.files == "any"}:
        assert weaknesses(role, facts_of(fsize=(-1, -1))) == []


def test_a_shim_that_its_user_may_trace_is_weaker() -> None:
    ((cell, reason),) = weaknesses(SHIM, facts_of(owner=USER))
    assert (cell, reason) == ("dumpable", "may be traced and dumped by its own user")
    assert weaknesses("qemu", facts_of(owner=USER)) == []


def test_a_namespace_that_the_kernel_has_not_is_not_ones_own() -> None:
    without = {name: found for name, found in OWN.namespaces.items() if name != "ipc"}
    assert weaknesses("qemu", facts_of(place=Place(without, OWN.root))) == [
        ("namespaces", "is in the host's namespaces: ipc")
    ]


def test_a_vmm_may_be_in_the_hosts_network_where_the_configuration_says_so() -> None:
    place = Place({**OWN.namespaces, "net": HOST.namespaces["net"]}, OWN.root)
    for role, weaker in (("qemu", []), (INIT, ["namespaces"])):
        found = judging.find_weaknesses(row_of(role), facts_of(place=place), HOST, user=USER, outside=True)
        assert [one.cell for one in found] == weaker


def test_a_filter_is_not_looked_at_where_none_need_be() -> None:
    assert weaknesses("qemu", facts_of({"Seccomp": "0", "Seccomp_filters": "0"}), filters=None) == []


# -- mechanisms ----------------------------------------------------------------------------------------------


def test_the_key_names_the_mechanisms() -> None:
    annotation = Runtime.model_fields["required_confinement"].annotation
    (names, _) = get_args(annotation)
    assert get_args(names) == mechanisms.MECHANISMS


def test_a_host_that_has_it_all_lacks_nothing() -> None:
    found = mechanisms.find_lacking(landlock=True, controllers={"cpu", "memory", "pids", "io"}, sealed=True)
    assert found == {}
    assert mechanisms.refusal(found, mechanisms.MECHANISMS) is None


def test_what_lacks_is_a_warning_that_says_by_how_much() -> None:
    found = mechanisms.find_lacking(landlock=False, controllers={"cpu", "pids"}, sealed=True)
    assert found.keys() == set(mechanisms.MECHANISMS)
    assert "lets no call through that opens a file or a socket" in found["landlock"]
    assert found["cgroup"] == (
        "the pod's cgroup has no controller for memory: what its processes use of that on the host is not "
        "bounded"
    )
    unsealed = mechanisms.find_lacking(landlock=False, controllers=mechanisms.CONTROLLERS, sealed=False)
    assert "its user alone, because shim_seccomp is off" in unsealed["landlock"]


def test_the_policy_opens_no_file_and_no_socket() -> None:
    """What the warning says of a shim without Landlock."""
    from kata_hypervisor.seccomp.policy import load_policy

    calls = {name for rule in load_policy().rules for name in rule.calls}
    assert calls.isdisjoint({"open", "openat", "openat2", "creat", "socket", "connect", "bind"})


def test_what_lacks_and_is_required_is_a_refusal() -> None:
    lacking = mechanisms.find_lacking(landlock=False, controllers=mechanisms.CONTROLLERS, sealed=True)
    assert mechanisms.refusal(lacking, ["cgroup"]) is None
    refused = mechanisms.refusal(lacking, ["cgroup", "landlock"])
    assert refused is not None
    assert refused.startswith(
        'the pod is not started, because required_confinement in [runtime] names "landlock": this kernel has '
        "no Landlock"
    )
    assert refused.endswith("run it on a host that has it, or remove the name to start pods without")


# -- as the broker does it, of processes of this test --------------------------------------------------------


class Child:
    """A process that waits; with a user, it has given up its privileges."""

    def __init__(self, user: int = 0) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if user:
                    give_up(user)
                os.write(write, b"x")
                signal.pause()
            finally:
                os._exit(1)
        os.close(write)
        assert os.read(read, 1) == b"x"
        os.close(read)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def shim() -> Iterator[Child]:
    child = Child(USER)
    yield child
    child.end()


def verify(shim: int, children: Mapping[int, str], host: Place, **changes: Any) -> dict[str, Any]:
    given = {
        "outside": False,
        "landlock": True,
        "sealed": True,
        "controllers": mechanisms.CONTROLLERS,
        "required": (),
    }
    return pod_confinement.verify(shim, 0, children, host=host, user=USER, **{**given, **changes})


def elsewhere() -> Place:
    """A host whose mount namespace is not this process's, as the broker's is not."""
    here = reading.read_place(os.getpid())
    return Place({**here.namespaces, "mnt": "mnt:[1]"}, here.root)


@needs_root
def test_a_pod_that_is_as_it_must_be_is_recorded(shim: Child, tmp_path: Path) -> None:
    child = Child()
    try:
        host = elsewhere()
        found = verify(shim.pid, {child.pid: "network"}, host)
    finally:
        child.end()
    inherited = reading.read(os.getpid()).filters
    assert found["filters"] == {"broker": inherited, "network": inherited}
    assert (found["user"], found["inherited"], found["lacking"]) == (USER, inherited, {})
    directory = os.open(tmp_path, os.O_RDONLY)
    pod_confinement.record(directory, found)
    with pytest.raises(FileExistsError):
        pod_confinement.record(directory, found)
    os.close(directory)


@needs_root
def test_a_child_that_is_weaker_than_its_row_stops_the_pod(shim: Child) -> None:
    child = Child()
    try:
        with pytest.raises(
            RequestRefusedError,
            match=rf"not started: qemu \(process {child.pid}\) has the user 0 0 0 0, and not {USER}",
        ):
            verify(shim.pid, {child.pid: "qemu"}, elsewhere())
    finally:
        child.end()


@needs_root
def test_a_shim_that_kept_its_privileges_stops_the_pod() -> None:
    weaker = r"not started: shim \(process \d+\)( thread \d+)? has the user"
    with pytest.raises(RequestRefusedError, match=weaker):
        verify(os.getpid(), {}, elsewhere())


@needs_root
def test_a_broker_in_the_hosts_mounts_stops_the_pod(shim: Child) -> None:
    with pytest.raises(RequestRefusedError, match=r"broker \(process \d+\) is in the host's namespaces: mnt"):
        verify(shim.pid, {}, reading.read_place(os.getpid()))


@needs_root
def test_a_mechanism_that_is_required_and_missing_stops_the_pod(shim: Child) -> None:
    with pytest.raises(RequestRefusedError, match=r'required_confinement in .* names "landlock"'):
        verify(shim.pid, {}, elsewhere(), landlock=False, required=["landlock"])
    found = verify(shim.pid, {}, elsewhere(), landlock=False)
    assert list(found["lacking"]) == ["landlock"]


async def test_the_refusal_reaches_the_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    with make_bed(monkeypatch) as bed:
        broker = Broker(*fork_broker(bed.identity, str(bed.bundle), namespace=False))
        await broker.take_user(USER, 1)
        with pytest.raises(RequestRefusedError, match="the pod is not started, because required_confinement"):
            await broker.verify_confinement(landlock=False, sealed=True, required=["landlock"])
        assert not (bed.directory / pod_confinement.RECORD).exists()
        assert await broker.close() == []


def test_the_sealed_brokers_row_is_what_it_keeps() -> None:
    kept = {one.name.removeprefix("CAP_").lower() for one in self_confinement.CAPABILITIES}
    assert ROWS[BROKER].capabilities == kept
