"""Which hypervisor the quickstart shows: whether this host can run it, and the configuration for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli
import tomli_w

from kata_configuration.judge.host import VIRTIOFSD_PLACES
from kata_configuration.tell.template import SHIPPED
from kata_hypervisor import vhost_vsock
from kata_hypervisor.kvm.probe import probe_kvm

QEMU, DRAGONBALL = "qemu", "dragonball"
RIG = "make rig ARGS='python examples/quickstart/run.py --hypervisor dragonball --home /run/quickstart'"
"""/run: elsewhere in the rig no layer of a container can be."""


def find_obstacle(hypervisor: str) -> str | None:
    """Say in one line why this host cannot run virtual machines of this hypervisor; None where it can."""
    if hypervisor != DRAGONBALL:
        return None  # QEMU emulates what the host lacks
    result = probe_kvm()
    if not result.runs_unmodified_guests:
        return result.reason
    if not vhost_vsock.DEVICE.exists():
        return f"there is no {vhost_vsock.DEVICE}: load vhost_vsock"
    return None


def configure(hypervisor: str, image: Path, **settings: Any) -> str:
    """The shipped configuration with this machine's paths and these settings; everything else as shipped."""
    tree = tomli.loads((SHIPPED / f"configuration-{hypervisor}.toml").read_text(encoding="utf-8"))
    table = tree["hypervisor"][hypervisor]
    table["kernel"] = str(image / "vmlinuz")
    table["initrd"] = str(image / "kata-initrd.img")
    table["image"] = str(image / "kata-image.erofs")
    table |= settings
    daemon = next((path for path in VIRTIOFSD_PLACES if path.exists()), None)
    if daemon is not None:
        table["virtio_fs_daemon"] = str(daemon)
    return tomli_w.dumps(tree)
