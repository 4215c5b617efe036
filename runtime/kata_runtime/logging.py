"""Lines as containerd's own: time="..." level=info msg="..." sandbox=... Cheap: the broker uses it."""

from __future__ import annotations

import time


def line(level: str, message: str, sandbox: str, seconds: float) -> str:
    """One line with its end, whatever the message holds. seconds: since the epoch."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e3):03d}Z"
    return f'time="{stamp}" level={level} msg={_quote(message)} runtime=kata sandbox={sandbox}\n'


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
