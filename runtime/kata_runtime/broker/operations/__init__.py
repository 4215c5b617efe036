"""All that can be asked of the broker. A shim that a guest owns gets no more than this table.

An operation is one declaration: a function with `@operation` above it, in the module of its group. It is
listed here, and asked for by one method of `kata_runtime.broker.client.Broker`.
"""

from __future__ import annotations

from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.operations import (
    cgroup,
    children,
    connections,
    files,
    hooks,
    host,
    images,
    lifecycle,
    network,
    streams,
)
from kata_runtime.broker.operations.declaration import Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kata_runtime.broker.messages import Message

OPERATIONS: tuple[Operation[...], ...] = (
    cgroup.prepare,
    cgroup.oom_kills,
    cgroup.pin_vcpus,
    children.take_user,
    children.spawn,
    children.kill,
    children.confinement,
    children.filters_effective,
    children.end_loading,
    children.make_jail,
    files.open_spec,
    files.make_directory,
    files.mount,
    files.bind,
    files.show_root,
    files.find_memory,
    files.share,
    files.unshare,
    files.unmount,
    files.remove,
    streams.open_fifo,
    streams.open_log,
    streams.start_logger,
    images.open_in_image,
    images.make_image,
    images.give_device,
    images.open_device,
    images.open_image,
    images.show_image,
    images.show_device,
    images.hide_image,
    connections.register_guest,
    connections.listen_for_vmm,
    connections.connect_vmm,
    connections.hold_monitor,
    connections.connect_guest,
    connections.connect_events,
    host.probe_kvm,
    hooks.learn_hooks,
    hooks.run_hooks,
    lifecycle.verify_confinement,
    network.learn_network,
    network.network_state,
    network.attach_network,
    network.open_tap,
    network.late_interfaces,
    lifecycle.confine_broker,
    lifecycle.relay_log,
    lifecycle.announce_seal,
    lifecycle.supervise,
    lifecycle.close,
)
_BY_NAME = {operation.name: operation for operation in OPERATIONS}


def parse(message: Message, descriptors: int) -> tuple[Operation[...], dict[str, Any]]:
    """Return a request's operation and arguments, which are checked. descriptors: how many came with it.

    Raises:
        RequestRefusedError: an unknown operation, or as `Operation.check`.
    """
    name = message.get("op")
    operation = _BY_NAME.get(name) if isinstance(name, str) else None
    if operation is None:
        raise RequestRefusedError(f"the broker knows no operation {str(name)[:40]!r}")
    arguments = {key: value for key, value in message.items() if key not in ("id", "op")}
    operation.check(arguments, descriptors)
    return operation, arguments
