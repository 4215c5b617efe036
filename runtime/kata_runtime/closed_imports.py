"""No more imports: a process that outlives the files it was loaded from takes nothing from others.

While a pod runs, another version of the package may be installed over the one that its processes have loaded.
What they import then would be of that version. So shim and broker load all that they may need before the
guest runs, and close importing: what was forgotten fails with its name, on each host and in each test, and
not only on the one that was upgraded.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType


class _Closed:
    """The finder that is asked first, and knows of nothing more."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        raise ImportError(f"module {name} was not loaded before the process was sealed", name=name)


def close() -> None:
    """Refuse each import of what is not loaded. Cannot be undone."""
    sys.meta_path.insert(0, _Closed())
