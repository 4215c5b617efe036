"""Operations on the pod's network namespace: the sandbox has one, learned before the seal."""

from __future__ import annotations

from kata_runtime.broker.operations import checks
from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import ALWAYS, BEFORE_SEAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.context import Context


@operation(BEFORE_SEAL, path=checks.path, descriptors=1)
def attach_network(context: Context, *, path: str, descriptors: list[int]) -> Reply:
    """Start the network program in the namespace at `path`, once; answers "pid".

    It answers one request over the stream socket that comes along, see `kata_runtime.network.program`. What
    it attaches is taken away again when the sandbox ends.
    """
    return Reply(pid=context.network.attach(path, descriptors[0]))


@operation(ALWAYS)
def late_interfaces(context: Context) -> Reply:
    """Answer "names": interfaces that somebody put into the VMM's own namespace, which the guest has not."""
    return Reply(names=context.network.late_interfaces())
