"""Operations on the sandbox as a whole: its seal, and its end."""

from __future__ import annotations

from kata_runtime.broker.operations import checks
from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import AFTER_SEAL, ALWAYS, BEFORE_SEAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.context import Context

SEAL_MODES = ("enforce", "log")


@operation(BEFORE_SEAL)
def verify_shim(context: Context) -> Reply:
    """Verify from /proc that the shim has become the pod's user and has no capability; else it is refused."""
    context.verify_shim()
    return Reply()


@operation(BEFORE_SEAL, mode=checks.one_of(SEAL_MODES), policy=checks.label)
def announce_seal(context: Context, *, mode: str, policy: str) -> Reply:
    """Seal the sandbox: only what fits what was learned is done from here on.

    `supervise` must follow within `supervisor.HANDOVER`, or the shim is killed. policy: its name, for
    sentences.
    """
    context.seal(policy, enforce=mode == "enforce")
    return Reply()


@operation(AFTER_SEAL, descriptors=1)
def supervise(context: Context, *, descriptors: list[int]) -> Reply:
    """Take the listener of the shim's filter; answers "threads", what the kernel reports of the shim's."""
    context.supervisor.supervise(descriptors[0])
    return Reply(threads=context.children.threads(context.shim))


@operation(ALWAYS)
def close(context: Context) -> Reply:
    """Undo everything and end the broker; answers "left", a line for each thing that could not be undone."""
    return Reply(left=context.close()[:20])
