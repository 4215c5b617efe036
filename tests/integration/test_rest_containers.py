"""Containers on Cloud Hypervisor and Firecracker, on a KVM that runs unmodified guests: `make test-rig`.

KATA_TEST_CLOUD_HYPERVISOR, KATA_TEST_FIRECRACKER and KATA_TEST_JAILER name the programs; the jailer takes a
Firecracker that is linked statically.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import driver_configuration
from confinement_reports import confinement, process_of, report_of, roles_of
from kata_hypervisor.seccomp.confinement import read_threads
from kata_runtime.ctl import confinement_page
from node import FOREVER, Client, Node

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=driver_configuration.REST)
def running(request: pytest.FixtureRequest, node: Node, guest_image: Path) -> Iterator[tuple[str, Client]]:
    """A container that runs on the hypervisor; afterwards nothing of it is left."""
    path = driver_configuration.write(request.param, node, guest_image)
    before = node.leftovers()
    with node.running(*FOREVER, options=("--runtime-config-path", path)) as client:
        yield request.param, client
    assert before.settle() == []


def test_what_it_runs_and_what_it_writes(running: tuple[str, Client], node: Node) -> None:
    _, client = running
    arguments = (
        "task",
        "exec",
        "--exec-id",
        "one",
        client.container,
        "sh",
        "-c",
        "cat; echo new > /made; cat /made",
    )
    result = node.ctr(*arguments, stdin="in\n")
    assert (result.returncode, result.stdout) == (0, "in\nnew\n")


def test_every_thread_is_confined_as_its_driver_promises(running: tuple[str, Client], node: Node) -> None:
    subject, client = running
    vmm = "cloud-hypervisor" if subject == "clh" else "firecracker"
    pid = node.pids(client.container)[vmm]
    threads = read_threads(pid)
    without = [thread.tid for thread in threads if not thread.confined]
    assert without == []
    users = {
        line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "Uid:" in line
    }
    assert len(users) == 1
    assert "0" not in users


def test_each_process_is_what_its_row_says(running: tuple[str, Client]) -> None:
    subject, client = running
    report = report_of(client.container)
    vmm = {"clh": {"cloud-hypervisor", "virtiofsd"}}.get(subject, {"firecracker"})
    assert roles_of(report) == {"shim", "broker", "init", *vmm}
    print(confinement(client.container).stdout)
    if subject == "firecracker":  # whose row is that of the jailed one, which keeps a bounding set
        process = process_of(report, "firecracker")
        assert not any(process["capabilities"].values())
        report["processes"].remove(process)
    assert confinement_page.differences(report) == []


def test_the_guest_has_no_virtualization_of_its_own(running: tuple[str, Client], node: Node) -> None:
    assert node.nested_virtualization(running[1].container) == 0


def test_its_files_are_the_images_or_shared(running: tuple[str, Client], node: Node) -> None:
    subject, client = running
    arguments = ("task", "exec", "--exec-id", "two", client.container, "sh", "-c", "grep ' / ' /proc/mounts")
    kind = node.ctr(*arguments).stdout.split()[2]
    assert kind == ("virtiofs" if subject == "clh" else "overlay")
