"""Operations on the pod's network namespace: the sandbox has one, learned before the seal."""

from __future__ import annotations

from kata_runtime.broker import messages
from kata_runtime.broker.operations import checks
from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import ALWAYS, BEFORE_SEAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.context import Context


@operation(BEFORE_SEAL, path=checks.optional(checks.path), outside=checks.flag)
def learn_network(context: Context, *, path: str | None, outside: bool) -> Reply:
    """Learn the namespace at `path`, or make one, once; answers "pid": the pod's init, which is in it.

    outside: whether the pod's other processes stay in the host's.
    """
    context.network.learn(path, outside=outside)
    return Reply(pid=context.pod.start_init(context.network.namespace))


@operation(BEFORE_SEAL)
def network_state(context: Context) -> Reply:
    """Answer "interfaces", names, and "configured", whether one of the pod's namespace has an address."""
    names, configured = context.network.state(context.pod.init)
    return Reply(interfaces=names, configured=configured)


@operation(BEFORE_SEAL, descriptors=1)
def attach_network(context: Context, *, descriptors: list[int]) -> Reply:
    """Start the network program in the pod's namespace, once; answers "pid".

    It answers one request over the stream socket that comes along, see `kata_runtime.network.program`. What
    it attaches is taken away again when the sandbox ends.
    """
    return Reply(pid=context.network.attach(context.pod.init, descriptors[0]))


@operation(BEFORE_SEAL, tap=checks.interface, queues=checks.number(1, messages.MAX_DESCRIPTORS))
def open_tap(context: Context, *, tap: str, queues: int) -> Reply:
    """Answer with the queues of a tap that the operator has made in the host's network namespace."""
    return Reply(*context.network.open_tap(tap, queues))


@operation(ALWAYS)
def late_interfaces(context: Context) -> Reply:
    """Answer "names": interfaces that a namespace of our making has got since its others were attached."""
    return Reply(names=context.network.late_interfaces(context.pod.init))
