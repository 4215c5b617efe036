"""Operations on the sandbox as a whole: its seal, and its end."""

from __future__ import annotations

from kata_runtime.broker.operations import checks
from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import AFTER_SEAL, ALWAYS, BEFORE_SEAL
from kata_runtime.confinement.mechanisms import MECHANISMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.context import Context

SEAL_MODES = ("enforce", "log")
FEATURES = ("images", "disks", "nodes", "network", "kvm", "loading", "vsock")
"""What a pod may need of its broker after the seal, beside what each does: see `self_confinement`."""


@operation(
    BEFORE_SEAL,
    landlock=checks.flag,
    sealed=checks.flag,
    required=checks.list_of(checks.one_of(MECHANISMS), 0, len(MECHANISMS)),
)
def verify_confinement(context: Context, *, landlock: bool, sealed: bool, required: list[str]) -> Reply:
    """Hold each process of the pod to what it must be at least, from /proc; else it is refused.

    Answers "lacking", a sentence for each mechanism that this host lacks. landlock: whether the shim was
    denied a file that it tried to open. sealed: whether it will have a filter. required: the mechanisms
    without which it is refused.
    """
    return Reply(lacking=context.verify_confinement(landlock=landlock, sealed=sealed, required=required))


@operation(
    BEFORE_SEAL, features=checks.list_of(checks.one_of(FEATURES), 0, len(FEATURES)), code=checks.program
)
def confine_broker(context: Context, *, features: list[str], code: str) -> Reply:
    """Have the broker give up, for ever, what its operations after the seal do not need, and the pod devices.

    features: what the pod needs of it later. code: its seccomp program, in base64. Answers "lacking": what
    this host lacks for it, in a sentence, or nothing.
    """
    return Reply(lacking=context.confine(features, code))


@operation(BEFORE_SEAL)
def relay_log(context: Context) -> Reply:
    """Pass on what the shim logs from here on, once; answers with the end of a pipe that it writes to."""
    return Reply(context.relay_log())


@operation(BEFORE_SEAL, mode=checks.one_of(SEAL_MODES), policy=checks.label, within=checks.number(1, 3600))
def announce_seal(context: Context, *, mode: str, policy: str, within: int) -> Reply:
    """Seal the sandbox: only what fits what was learned is done from here on.

    `supervise` must follow within so many seconds, or the shim is killed. policy: its name, for sentences.
    """
    context.seal(policy, enforce=mode == "enforce", within=within)
    return Reply()


@operation(AFTER_SEAL, descriptors=1)
def supervise(context: Context, *, descriptors: list[int]) -> Reply:
    """Take the listener of the shim's filter; answers "threads", what the kernel reports of the shim's."""
    context.supervisor.supervise(descriptors[0])
    return Reply(threads=context.children.threads(context.shim))


@operation(ALWAYS)
def close(context: Context) -> Reply:
    """Undo everything and end the broker; answers "left", a line for each thing that could not be undone.

    "outlives": whether it ends after the shim only, which it keeps in the pod's cgroup.
    """
    left = context.close()[:20]
    return Reply(left=left, outlives=context.outlives_shim)
