"""Lists of CPUs as the kernel, the OCI's specification and configurations write them: "0-3,8".

Source: cpuset(7), list format.
"""

from __future__ import annotations

import re

_PART = re.compile(r" *([0-9]{1,5})(?:-([0-9]{1,5}))? *")


def parse(text: str) -> frozenset[int]:
    """Return the CPUs that a list names; an empty text names none. Raises ValueError: it is no such list."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        match = _PART.fullmatch(part)
        if match is None or int(match[1]) > int(match[2] or match[1]):
            raise ValueError(f"{text[:100]!r} is no list of CPUs such as 0-3,8")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)
