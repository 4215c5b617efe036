"""How the network program is started: its command line and the numbers of its descriptors. See `program`."""

from __future__ import annotations

import os
import sys

CHANNEL, NAMESPACE, RECORD = 3, 4, 5

_HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = os.path.join(_HERE, "program.py")
LIBRARY = "pyroute2"


def command() -> list[str]:
    """The program's command line. Raises FileNotFoundError where its library is not installed."""
    return [sys.executable, "-IS", PROGRAM, os.path.dirname(os.path.dirname(_HERE)), _library()]


def _library() -> str:
    """The directory that has the library, found without importing it."""
    for directory in sys.path:
        if os.path.isdir(os.path.join(directory, LIBRARY)):
            return directory
    raise FileNotFoundError(f"{LIBRARY} is not installed for {sys.executable}: the network needs it")
