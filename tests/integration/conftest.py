"""Fixtures for tests with the real containerd, QEMU, virtiofsd and the guest image."""

from __future__ import annotations

from broker_fixtures import bed, broker  # noqa: F401
from cni_pod import cni  # noqa: F401
from node_fixtures import each_node, guest_image, kvm, node, nodes, nothing_left, pod  # noqa: F401
from shim_fixtures import anyio_backend, lab, shim_pod  # noqa: F401
