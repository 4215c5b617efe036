"""Where a sandbox is in its life, as its broker sees it: the seal divides it."""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """LEARNING: the guest has not run an instruction, so whatever the shim asks for comes from containerd and
    from the operator, and is remembered. SEALED: a guest may own the shim from here on; a request must fit
    what was learned.
    """

    LEARNING = "before the seal"
    SEALED = "after the seal"


# When an operation is allowed.
BEFORE_SEAL = frozenset({Phase.LEARNING})
AFTER_SEAL = frozenset({Phase.SEALED})
ALWAYS = frozenset(Phase)
