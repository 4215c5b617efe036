"""What decides the bytes of an image is root's, or its builder's: who can change it is root in each guest."""

from __future__ import annotations

import os
from pathlib import Path

from kata_configuration.parse import trust


def fault_of(path: Path, status: os.stat_result) -> str | None:
    """Say who else may change a file or directory, or put another into its place; None when nobody may.

    status: of what was opened at the path.
    """
    places = [trust.Place(path, status), *trust.directories_of(path)]
    found = next(trust.check(places, trust.trusted_uids()), None)
    return f"{found.path} {found.message}" if found is not None else None
