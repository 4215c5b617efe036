"""What `kata-ctl env` prints of each driver on this host."""

from __future__ import annotations

from pathlib import Path

from kata_configuration.models import AVAILABLE
from kata_runtime.ctl.check import check_vmm
from kata_runtime.ctl.drivers import DRIVERS
from kata_runtime.ctl.findings import OLDEST_QEMU, Finding, Setup, Status
from kata_runtime.unikernel.description import RUNNERS

NONE_YET = "no driver in this version"


def describe(name: str, path: Path | None) -> list[str]:
    """List, line by line, what is known of a driver here. path: its program in the configuration, if any."""
    facts = DRIVERS[name]
    if name not in AVAILABLE:
        return [NONE_YET]
    common = [
        f"confined by: {facts.confined}",
        f"verified by: {facts.verified}",
        f"unikernels:  {_unikernels(name)}",
    ]
    program = path or facts.default
    absent = Finding("configuration", Status.OK, "")
    setup = Setup("kvm", program, None, 0, (), absent, hypervisor=name)
    if program is None:
        return [f"program:     {check_vmm(setup).cause}", *common]
    tested = f"{facts.supported}" if facts.supported else "{}.{} and later".format(*OLDEST_QEMU)
    return [
        f"program:     {check_vmm(setup).cause}",
        f"supported:   {tested}",
        *common,
    ]


def _unikernels(name: str) -> str:
    """Which unikernels a driver runs, by what their images declare."""
    kinds = [kind for kind, tables in RUNNERS.items() if name in tables]
    return f"those whose image says {kinds[0]}" if kinds else "none"
