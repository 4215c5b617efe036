"""Operations on the sandbox's cgroup."""

from __future__ import annotations

from kata_runtime.broker.operations import checks
from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import ALWAYS, BEFORE_SEAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.context import Context


@operation(BEFORE_SEAL, cgroup=checks.optional(checks.text), pinning=checks.flag)
def prepare(context: Context, *, cgroup: str | None, pinning: bool) -> Reply:
    """Make the sandbox's cgroup and move shim and broker into it; once, before any child is started.

    cgroup: the specification's linux.cgroupsPath. pinning: whether `pin_vcpus` may be asked for. Answers
    "path", the cgroup's path in each hierarchy.
    """
    return Reply(path=context.cgroup.prepare(cgroup, pinning=pinning))


@operation(ALWAYS, cpus=checks.cpus)
def pin_vcpus(context: Context, *, cpus: list[int]) -> Reply:
    """Keep each virtual CPU on one CPU of the host, in this order; with none, let all of them go.

    After the seal: a kubelet names the CPUs of a container when that comes. The broker finds the threads.
    """
    context.pinning.pin(cpus)
    return Reply()


@operation(ALWAYS)
def oom_kills(context: Context) -> Reply:
    """Answer "count": how many processes of the cgroup the kernel has killed for want of memory."""
    return Reply(count=context.cgroup.oom_kills())
