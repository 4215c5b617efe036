"""Hooks of the guest itself: programs of its image, or of a shared directory, in the life of every container.

Source: Kata's guest_hook_path: DIRECTORY/prestart, poststart and poststop hold programs, which are called in
the order of their names, as OCI hooks with two arguments, their name and the kind; OCI runtime specification,
config.md, "POSIX-platform Hooks". Kata's own agent leaves out what is no program; here it is refused.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from kata_agent.guest.errors import InvalidRequestError

KINDS = ("prestart", "poststart", "poststop")

Hooks = dict[str, list[dict[str, Any]]]


def find(directory: str) -> Hooks:
    """The hooks in a directory, by kind, as an OCI specification has them.

    Raises:
        InvalidRequestError: there are none, or something else is among them.
    """
    found: Hooks = {}
    for kind in KINDS:
        place = f"{directory}/{kind}"
        try:
            names = sorted(os.listdir(place))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InvalidRequestError(f"guest_hook_path: cannot list {place}: {error.strerror}") from None
        for name in names:
            _check(f"{place}/{name}")
        if names:
            found[kind] = [{"path": f"{place}/{name}", "args": [name, kind]} for name in names]
    if not found:
        raise InvalidRequestError(
            f"guest_hook_path: the guest has no hooks in {directory}: put programs into {', '.join(KINDS)} "
            "there, in its image or in a directory of sandbox_bind_mounts"
        )
    return found


def _check(path: str) -> None:
    mode = os.lstat(path).st_mode
    if not stat.S_ISREG(mode) or not mode & 0o111:
        raise InvalidRequestError(
            f"guest_hook_path: {path} is no program: make it a regular file that may be executed, or "
            "remove it"
        )


def add(hooks: Hooks, spec: dict[str, Any]) -> None:
    """Add hooks to a container's own, which come first."""
    if hooks:
        own = spec.setdefault("hooks", {})
        for kind, more in hooks.items():
            own[kind] = [*own.get(kind, ()), *more]
