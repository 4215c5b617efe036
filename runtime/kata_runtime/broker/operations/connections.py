"""Operations that connect the shim, which can open no socket once it is sealed."""

from __future__ import annotations

from kata_hypervisor import registry
from kata_runtime.broker.operations import checks
from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import ALWAYS, BEFORE_SEAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kata_runtime.broker.context import Context


def _driver(value: Any) -> bool:
    """The name of a hypervisor driver."""
    return any(value == info.name for info in registry.DRIVERS)


@operation(BEFORE_SEAL, address=checks.guest_address)
def register_guest(context: Context, *, address: int | str) -> Reply:
    """Remember where the guest's ports are reached; see `kata_hypervisor.host.Host.register_guest`."""
    context.connections.register_guest(address)
    return Reply()


@operation(BEFORE_SEAL, path=checks.path)
def listen_for_vmm(context: Context, *, path: str) -> Reply:
    """Listen on a socket in the VMM's directory, to which the VMM connects."""
    return Reply(context.vmm.listen(path))


@operation(BEFORE_SEAL, path=checks.path)
def connect_vmm(context: Context, *, path: str) -> Reply:
    """Open a connection to a socket that the VMM has made below the sandbox's directory."""
    return Reply(context.connections.connect_vmm(path))


@operation(
    BEFORE_SEAL,
    descriptors=1,
    driver=_driver,
    saved=checks.optional(checks.path),
    limits=checks.optional(checks.limits),
)
def hold_monitor(
    context: Context,
    *,
    driver: str,
    saved: str | None,
    limits: dict[str, Any] | None,
    descriptors: list[int],
) -> Reply:
    """Hold the VMM's monitor; answers another end of it, over which the sealed shim has few commands.

    saved: the directory that the machine may be saved in. limits: the rate limiter of each disk that comes
    later, as Cloud Hypervisor's API has it.
    """
    return Reply(context.hold_monitor(driver, saved, limits, descriptors[0]))


@operation(ALWAYS, port=checks.port)
def connect_guest(context: Context, *, port: int) -> Reply:
    """Open a connection to a port of the guest, or to its VMM's unix socket, which is told the port."""
    return Reply(context.connections.connect_guest(port))


@operation(ALWAYS)
def connect_events(context: Context) -> Reply:
    """Open a connection to containerd's event socket."""
    return Reply(context.connections.connect_events())
