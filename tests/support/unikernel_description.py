"""What an image says of its unikernel, as urunc writes it."""

from __future__ import annotations

import base64

from kata_runtime.unikernel.description import PREFIX


def encode(value: str) -> str:
    """The value of a key."""
    return base64.b64encode(value.encode()).decode()


def described(**values: str) -> dict[str, str]:
    """Annotations, or the tree of urunc.json."""
    return {PREFIX + key: encode(value) for key, value in values.items()}


GOOD = described(binary="/app.hvt", hypervisor="hvt")
