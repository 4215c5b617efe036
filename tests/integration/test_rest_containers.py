"""Containers on Cloud Hypervisor and Firecracker, on a KVM that runs unmodified guests: `make test-rig`.

KATA_TEST_CLOUD_HYPERVISOR, KATA_TEST_FIRECRACKER and KATA_TEST_JAILER name the programs; the jailer takes a
Firecracker that is linked statically.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import shipped_configuration
from kata_hypervisor.seccomp.confinement import read_threads
from node import FOREVER, Client, Node

pytestmark = [pytest.mark.rig, pytest.mark.usefixtures("kvm"), pytest.mark.timeout(900)]

PROGRAMS = {
    "clh": {"path": "KATA_TEST_CLOUD_HYPERVISOR"},
    "firecracker": {"path": "KATA_TEST_FIRECRACKER"},
    "firecracker-jailed": {"path": "KATA_TEST_FIRECRACKER", "jailer_path": "KATA_TEST_JAILER"},
}


@pytest.fixture(scope="module", params=list(PROGRAMS))
def running(request: pytest.FixtureRequest, node: Node, guest_image: Path) -> Iterator[tuple[str, Client]]:
    """A container that runs on the hypervisor; afterwards nothing of it is left."""
    path = configuration(request.param, node, guest_image)
    before = node.leftovers()
    with node.running(*FOREVER, options=("--runtime-config-path", path)) as client:
        yield request.param, client
    assert before.settle() == []


def configuration(subject: str, node: Node, image: Path) -> Path:
    """Write the configuration for a subject."""
    programs = {}
    for key, variable in PROGRAMS[subject].items():
        if not Path(os.environ.get(variable, "/nonexistent")).exists():
            pytest.skip(f"{variable} names no program")
        programs[key] = Path(os.environ[variable])
    name = subject.partition("-")[0]
    values = shipped_configuration.for_image(image) | programs
    unknown = {"accelerator"} if name == "clh" else {"accelerator", "virtio_fs_daemon"}
    path = node.root / f"{subject}.toml"
    fit = {key: value for key, value in values.items() if key not in unknown}
    path.write_text(shipped_configuration.render(fit, name))
    return path


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
    assert (users == {"0"}) == (subject != "firecracker-jailed")


def test_its_files_are_the_images_or_shared(running: tuple[str, Client], node: Node) -> None:
    subject, client = running
    arguments = ("task", "exec", "--exec-id", "two", client.container, "sh", "-c", "grep ' / ' /proc/mounts")
    kind = node.ctr(*arguments).stdout.split()[2]
    assert kind == ("virtiofs" if subject == "clh" else "overlay")
