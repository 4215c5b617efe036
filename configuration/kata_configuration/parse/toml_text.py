"""Writing TOML: one key, one value, on one line."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from pathlib import PurePath

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def key_text(part: str) -> str:
    """Write one part of a key, quoted where it must be."""
    return part if _BARE.fullmatch(part) else _string(part)


def value_text(value: object) -> str:
    """Write a value; tables within it are written inline.

    Raises:
        TypeError: TOML has no such value.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | PurePath):
        return _string(str(value))
    if isinstance(value, list | tuple):
        return "[" + ", ".join(value_text(item) for item in value) + "]"
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{key_text(str(key))} = {value_text(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(f"TOML has no value for {type(value).__name__}")


def _string(text: str) -> str:
    # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
