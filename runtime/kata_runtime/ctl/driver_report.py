"""What `kata-ctl env` prints of each driver on this host."""

from __future__ import annotations

from pathlib import Path

from kata_hypervisor import registry
from kata_runtime.ctl.check import check_vmm
from kata_runtime.ctl.findings import Finding, Setup, Status


def describe(name: str, path: Path | None) -> list[str]:
    """List, line by line, what is known of a driver here. path: its program in the configuration, if any."""
    info = registry.info_of(name)
    program = path or (Path(info.default_path) if info.default_path else None)
    absent = Finding("configuration", Status.OK, "")
    setup = Setup("kvm", program, None, 0, (), absent, hypervisor=name)
    supported = [] if info.in_process else [f"supported:   {info.supported or f'{info.required} and later'}"]
    # The first kind is the one that images are advised to name.
    unikernels = f"those whose image says {info.unikernels[0]}" if info.unikernels else "none"
    return [
        f"program:     {check_vmm(setup).cause}",
        *supported,
        f"confined by: {info.confined}",
        f"verified by: {info.verified}",
        f"unikernels:  {unikernels}",
    ]
