"""A driver of a VMM with a REST interface, on a stand-in, with everything that its machine needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kata_configuration.models.cloud_hypervisor import CloudHypervisor
from kata_configuration.models.firecracker import Firecracker
from kata_hypervisor.cloud_hypervisor.driver import CloudHypervisorDriver
from kata_hypervisor.contract import SharedDirectory, VmSpec
from kata_hypervisor.firecracker.driver import FirecrackerDriver
from kata_hypervisor.rest_machine import RestMachine
from kata_hypervisor.vmm_paths import RUN_DIRECTORY
from local_host import LocalHost
from standin_program import StandInProgram, write_virtiofsd

KINDS = {"clh": "cloud-hypervisor", "firecracker": "firecracker"}
FILES = ("bin", "kernel", "initrd", "image", "shared")


class RestRig:
    """A host and one machine on it. name: as in [hypervisor.NAME]. mode: see `standin_vmm`."""

    def __init__(self, directory: Path, name: str, mode: str = "") -> None:
        self.directory = directory
        self.name = name
        self.host = LocalHost()
        bin_directory = directory / "bin"
        bin_directory.mkdir()
        (directory / "shared").mkdir()
        for file in ("kernel", "initrd", "image"):
            (directory / file).write_bytes(bytes(1024))
        self.program = StandInProgram(bin_directory, KINDS[name], mode)
        self.virtiofsd = write_virtiofsd(bin_directory)
        self.settings: dict[str, Any] = {"path": self.program.path}
        self.budgets = {"start_budget": 20.0, "stop_budget": 5.0}

    @property
    def spec(self) -> VmSpec:
        """The machine: with everything that its driver can have."""
        return VmSpec(
            sandbox_id="pod_1",
            directory=self.directory,
            vcpus=2,
            memory_mib=128,
            kernel=self.directory / "kernel",
            initrd=self.directory / "initrd",
            image=self.directory / "image",
            shared=SharedDirectory(self.directory / "shared") if self.name == "clh" else None,
        )

    def machine(self, **settings: Any) -> RestMachine:
        """Make a driver with these settings in its table."""
        values = {"kernel": self.directory / "kernel", **self.settings, **settings}
        if self.name == "clh":
            table = CloudHypervisor(**{"virtio_fs_daemon": self.virtiofsd, **values})
            return CloudHypervisorDriver(table, self.host, **self.budgets)
        return FirecrackerDriver(Firecracker(**values), self.host, **self.budgets)

    def assert_nothing_left(self) -> None:
        """No process runs, and no file is there that was not before."""
        assert [child.name for child in self.host.children.values() if child.exited is None] == []
        assert sorted({*os.listdir(self.directory)} - {RUN_DIRECTORY}) == sorted(FILES)
