"""Operations on the broker's children: VMMs and their helpers."""

from __future__ import annotations

from kata_hypervisor import registry
from kata_runtime.broker.errors import RequestRefusedError
from kata_runtime.broker.operations import checks
from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import ALWAYS, BEFORE_SEAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kata_runtime.broker.context import Context


def _role(value: Any) -> bool:
    """A role under which a child may be started: the drivers' VMMs, their helpers, and no others."""
    return isinstance(value, str) and value in registry.child_roles()


@operation(BEFORE_SEAL, base=checks.number(1, 2**32 - 2), count=checks.number(1, 2**32 - 2))
def take_user(context: Context, *, base: int, count: int) -> Reply:
    """Take a user of a range for the pod, before any child that runs as it; once. Answers "uid"."""
    return Reply(uid=context.pod.take(base, count))


@operation(
    BEFORE_SEAL,
    name=_role,
    argv=checks.argv,
    fds=checks.child_fds,
    environment=checks.optional(checks.environment),
    gate=checks.optional(checks.number(3, checks.MAX_CHILD_FD)),
    seccomp=checks.optional(checks.child_filter),
    privileges=checks.optional(checks.privileges),
    descriptors="fds",
)
def spawn(
    context: Context,
    *,
    name: str,
    argv: list[str],
    fds: list[int],
    environment: dict[str, str] | None,
    gate: int | None,
    seccomp: dict[str, Any] | None,
    privileges: dict[str, Any] | None,
    descriptors: list[int],
) -> Reply:
    """Start a child, in the network namespace of `learn_network`; see `kata_hypervisor.host.Host.spawn`.

    Answers "pid".

    fds: the number that each descriptor has in the child. seccomp: the fields of a ChildFilter.
    privileges: those of a Privileges.
    """
    if gate is not None and gate not in fds:
        raise RequestRefusedError(f"spawn: descriptor {gate} cannot be a gate: it is not one of fds")
    if not set(privileges["written"] if privileges is not None else ()) <= set(fds):
        raise RequestRefusedError("spawn: a descriptor that is opened again is not one of fds")
    if privileges is not None and privileges["serves"] not in (None, context.directory.scope.shared):
        raise RequestRefusedError(f"spawn: {privileges['serves']} is not the sandbox's shared directory")
    if seccomp is not None and seccomp["any_path"] and privileges is None:
        raise RequestRefusedError("spawn: a child whose paths are not looked at needs a root of its own")
    placed = dict(zip(fds, descriptors, strict=True))
    pid = context.children.start(
        name,
        argv,
        placed,
        environment,
        gate=gate,
        seccomp=seccomp,
        privileges=privileges,
        network=context.network.of_children,
    )
    return Reply(pid=pid)


@operation(ALWAYS, pid=checks.pid, signal=checks.number(1, 64))
def kill(context: Context, *, pid: int, signal: int) -> Reply:
    """Send a signal to a child; nothing when it has exited, or when the process is no child."""
    context.children.kill(pid, signal)
    return Reply()


@operation(ALWAYS, pid=checks.pid)
def confinement(context: Context, *, pid: int) -> Reply:
    """Answer "threads": what the kernel reports of each thread of a child, or of the shim."""
    return Reply(threads=context.children.threads(pid))


@operation(BEFORE_SEAL, pid=checks.pid, tid=checks.pid, beyond=checks.number(0, 1000))
def filters_effective(context: Context, *, pid: int, tid: int, beyond: int) -> Reply:
    """Answer "effective": whether the filters on a thread of a child forbid anything, and "unknown".

    beyond: how many of them, the oldest, are not asked. "unknown": why that is unknown, or empty.
    """
    effective, unknown = context.children.filters_effective(pid, tid, beyond)
    return Reply(effective=effective, unknown=unknown)


@operation(ALWAYS, pid=checks.pid)
def end_loading(context: Context, *, pid: int) -> Reply:
    """Say that a child has loaded: its filter allows no more than it needs from here on.

    After the seal too, when a machine boots: it only takes away.
    """
    context.children.end_loading(pid)
    return Reply()


@operation(BEFORE_SEAL, root=checks.path, files=checks.jail_files)
def make_jail(context: Context, *, root: str, files: dict[str, str]) -> Reply:
    """Make a root directory for a child; see `kata_hypervisor.host.Host.make_jail`. Once for each sandbox."""
    context.directory.make_jail(root, files)
    return Reply()
