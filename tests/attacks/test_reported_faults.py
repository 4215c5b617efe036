"""Ten faults by which a sealed shim became root, or more than it may be: each is tried, here or elsewhere.

`ELSEWHERE` names the tests beside the code that each was in; what there was no test of is below.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from attack_bed import IS_ROOT, Owned, World, make_world, play
from kata_configuration.models.qemu import QemuHypervisor
from kata_hypervisor.contract import SharedDirectory, VmSpec
from kata_hypervisor.qemu.command import Devices, command_line
from kata_runtime.broker import rollback
from kata_runtime.containerd_api import events_pb2
from kata_runtime.shim import events
from tables import make_table

TESTS = Path(__file__).parents[1]

ELSEWHERE: dict[str, list[str]] = {
    "1 the guest writes a config.json": [
        "runtime/test_broker_authorization.py::test_a_specification_that_a_guest_wrote_is_not_read",
        "runtime/test_broker_authorization.py::test_a_link_in_the_place_of_a_bundle_is_not_followed",
    ],
    "2 a device node in a snapshot": [
        "runtime/test_broker_mount_policy.py::test_a_node_that_is_named_like_a_learned_one_is_none_outside_of_dev",
        "runtime/test_broker_mount_policy.py::test_what_is_no_block_device_is_not_mounted",
        "integration/test_api_filesystem.py::test_no_device_node_is_made_on_the_host",
    ],
    "3 paths in mount options": [
        "runtime/test_broker_mount_policy.py::test_an_option_that_is_not_known_is_refused_before_the_seal_too",
        "runtime/test_broker_mount_policy.py::test_a_file_in_a_snapshot_is_not_mounted",
        "runtime/test_broker_mount_policy.py::test_after_the_seal_there_are_learned_file_systems_only",
    ],
    "4 QEMU's monitor": [
        "runtime/test_broker_monitor.py::test_after_the_seal_commands_pass_and_nothing_else",
        "attacks/test_owned_vmm.py::test_no_command_with_an_effect_on_the_host_passes",
        "attacks/test_live_shim.py::test_an_owned_shim_gets_nothing_of_the_host_and_is_named",
        "integration/test_privileges.py::test_who_owns_qemus_monitor_reaches_nothing",
    ],
    "5 a VMM's escape is root": [
        "integration/test_privileges.py::test_qemu_has_nothing_of_the_host",
        "integration/test_containerd_confinement.py::test_shim_and_machine_are_the_pods_user_without_capabilities",
        "attacks/test_owned_vmm.py::test_who_owns_the_vmm_has_nothing_of_the_host",
    ],
    "6 the image cache": [
        "runtime/test_rootfs_image.py::test_a_tree_that_changes_while_it_is_read_has_a_true_image",
        "runtime/test_rootfs_image.py::test_an_image_is_named_by_its_own_content",
        "attacks/test_owned_guest_files.py::test_an_image_is_made_of_the_view_and_of_nothing_that_takes_its_place",
    ],
    "7 a flooded broker": [
        "runtime/test_broker_supervisor.py::test_a_shim_that_does_not_read_is_supervised_all_the_same",
        "runtime/test_broker_supervisor.py::test_a_shim_that_floods_its_broker_is_named_and_ended",
    ],
    "8 unbounded resources": ["runtime/test_broker_rollback.py::test_a_sandbox_has_a_limit"],
    "9 virtiofsd's arguments": [
        "configuration/test_confinement_rules.py::test_arguments_of_virtiofsd_that_are_refused",
        "configuration/test_confinement_rules.py::test_an_annotation_adds_no_argument_that_is_refused",
    ],
    "10 smaller": [
        "runtime/test_giving_up.py::test_what_is_open_stays_and_nothing_else_is_reached",
        "runtime/test_printable.py::test_what_is_shown_is_printable",
        "attacks/test_hostile_agent.py::test_what_a_guest_says_of_a_failure_obeys_no_terminal",
        "hypervisor/test_qemu_monitor.py::test_an_event_of_another_shape_has_no_reason",
        "hypervisor/test_qemu_monitor.py::test_hanging_up_ends_a_handshake_that_is_under_way",
        "runtime/test_broker_rollback.py::test_a_damaged_entry_is_reported_and_hides_no_other",
        "runtime/test_broker_supervisor.py::test_a_link_in_the_place_of_the_guests_socket_is_not_followed",
        "runtime/test_broker_authorization.py::test_what_takes_a_name_after_it_was_checked_is_not_opened",
    ],
}


def functions_of(file: str) -> set[str]:
    """The names of the tests in a file, those in classes too."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_each_fault_is_tried_where_it_was(fault: str) -> None:
    for name in ELSEWHERE[fault]:
        file, _, test = name.partition("::")
        assert test in functions_of(file), name


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with make_world(monkeypatch) as made:
        yield made


@pytest.mark.skipif(not IS_ROOT, reason="mounts need root")
def test_8_a_pile_of_mounts_ends_before_it_is_high(world: World) -> None:
    bed = world.bed

    def act(attacker: Owned) -> object:
        def bind(target: str) -> bool:
            place = f"{bed.shared}/{target}"
            how = attacker.ask("bind", source=str(world.volume), target=place, readonly=False, recursive=True)
            return "result" in how

        return sum(bind("pile") for _ in range(300))

    shim, _ = play(world, act)
    assert 1 < shim.result < 20


def test_8_a_sandbox_full_of_entries_takes_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollback, "MAX_ENTRIES", 50)

    def act(attacker: Owned) -> object:
        made = [attacker.ask("make_directory", path=f"{world.bed.shared}/d{number}") for number in range(100)]
        long = attacker.ask("make_directory", path=f"{world.bed.shared}/{'x' * 4000}")
        return [sum("result" in answer for answer in made), "result" in long]

    shim, log = play(world, act)
    assert shim.result[0] < 50
    assert not shim.result[1]
    assert any("mounts, directories, files and processes on the host" in line for line in log)


def test_8_no_flood_of_events_pushes_an_exit_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_QUEUED", 100)

    async def connect() -> None:
        raise AssertionError("nobody sends")

    publisher = events.EventPublisher(connect, "test")  # type: ignore[arg-type]
    publisher.publish(events_pb2.TaskExit(container_id="web", exit_status=7))
    for _ in range(1000):
        publisher.publish(events_pb2.TaskOOM(container_id="web"))
    topics = [waiting.topic for waiting in publisher._queue]
    assert topics.count("/tasks/exit") == 1
    assert len(topics) <= 100


def test_10_no_memory_of_a_guest_can_be_truncated_or_dumped() -> None:
    spec = VmSpec(
        sandbox_id="pod",
        directory=Path("/run/pod"),
        vcpus=1,
        memory_mib=512,
        kernel=Path("/k"),
        shared=SharedDirectory(Path("/run/pod/shared")),
    )
    argv = command_line(make_table(QemuHypervisor, kernel="/k"), spec, Devices(vsock_cid=None))
    memory = next(word for word in argv if word.startswith("memory-backend-memfd"))
    assert "seal=on" in memory.split(",")
    assert any("dump-guest-core=off" in word for word in argv)
