"""A wide filter for a child from before its program runs: all is let through but what leads out of it.

For a VMM that filters its threads itself, but not all of them: whoever owns one thread writes to the memory
of all, and so owns the one without a filter. Its own filters are stacked on this one.
"""

from __future__ import annotations

import errno

from kata_hypervisor.seccomp import actions
from kata_hypervisor.seccomp.child_filter import ChildFilter
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.rules import Condition, Rule
from kata_hypervisor.seccomp.score import ESCAPE

PROCESSES = ("fork", "vfork")
CLONE_THREAD = 0x10000


def build(name: str, advice: str) -> ChildFilter:
    """Compile it for this machine. name: the program's, whose own execve is the only one.

    `clone3` answers ENOSYS, because its flags are in memory, where no filter sees them: `clone` is then used,
    and held to threads. Raises SealError when libseccomp is missing.
    """
    refused = tuple(sorted(ESCAPE)) + PROCESSES
    rules = [
        Rule(refused, action=actions.NOTIFY),
        Rule(("clone",), (Condition(0, "masked", 0, CLONE_THREAD),), action=actions.NOTIFY),
        Rule(("clone3",), action=actions.errno(errno.ENOSYS)),
    ]
    loading = [Rule(("execve",), reason="the program itself")]
    return ChildFilter(
        policy=f"wrapper filter [{name}]",
        advice=advice,
        code=compile_rules(rules, actions.ALLOW).code,
        loading=compile_rules(loading, actions.NOTIFY).code,
    )
