"""What a VMM that is driven over REST is shown of the host: what its machine is made from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kata_hypervisor.contract import VmSpec
from kata_hypervisor.privileges import KVM, NULL, Privileges
from kata_hypervisor.vmm_paths import RUN_DIRECTORY


def machine_privileges(
    spec: VmSpec,
    *,
    data: Iterable[Path] = (),
    files: Iterable[Path] = (),
    devices: Iterable[Path] = (),
    written: tuple[int, ...] = (),
) -> Privileges:
    """Say what a VMM is shown: the machine's files and disks, KVM, and what comes besides."""
    disks = {disk.path: disk.read_only for disk in spec.disks if disk.path.is_block_device()}
    images = (disk.path for disk in spec.disks if disk.path.is_file())
    return Privileges(
        (spec.kernel, *filter(None, (spec.initrd, spec.image)), *images, *files),
        tuple(data),
        (NULL, KVM, *devices),
        proc=True,
        file_size=None,  # of memory that comes later, of disks, and of a saved machine
        disks=disks,
        run_directory=spec.directory / RUN_DIRECTORY,
        writable=(spec.saved_to,) if spec.saved_to is not None else (),
        written=written,
    )
