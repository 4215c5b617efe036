"""Operations on the sandbox's cgroup."""

from __future__ import annotations

from kata_runtime.broker.operations import checks
from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import ALWAYS, BEFORE_SEAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.context import Context


@operation(BEFORE_SEAL, cgroup=checks.optional(checks.text))
def prepare(context: Context, *, cgroup: str | None) -> Reply:
    """Make the sandbox's cgroup and move shim and broker into it; once, before any child is started.

    cgroup: the specification's linux.cgroupsPath. Answers "path", the cgroup's path in each hierarchy.
    """
    return Reply(path=context.cgroup.prepare(cgroup))


@operation(ALWAYS)
def oom_kills(context: Context) -> Reply:
    """Answer "count": how many processes of the cgroup the kernel has killed for want of memory."""
    return Reply(count=context.cgroup.oom_kills())
