"""Operations on the OCI hooks of the sandbox's first container, see `kata_runtime.broker.hooks`."""

from __future__ import annotations

from kata_runtime.broker import hook_kinds
from kata_runtime.broker.operations import checks
from kata_runtime.broker.operations.declaration import Reply, operation
from kata_runtime.broker.phase import ALWAYS, BEFORE_SEAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.context import Context


@operation(BEFORE_SEAL)
def learn_hooks(context: Context) -> Reply:
    """Learn the hooks in the sandbox's bundle, once; answers "kinds": those that there are."""
    return Reply(kinds=context.hooks.learn())


@operation(ALWAYS, kind=checks.one_of(hook_kinds.STATUS))
def run_hooks(context: Context, *, kind: str) -> Reply:
    """Begin to run the hooks of a kind, once; answers with a pipe, see `kata_runtime.broker.hook_runner`.

    After the seal those of poststart and poststop only.
    """
    answer = context.hooks.run(kind, context.authorization.phase, context.pod.init, context.network.namespace)
    return Reply(answer)
