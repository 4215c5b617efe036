"""OCI hooks as config.json declares them, and what their runner answers. Source: config.md, POSIX-platform
Hooks, of the OCI runtime specification.
"""

from __future__ import annotations

import errno
import json
import os

from kata_runtime.broker import hook_kinds
from kata_runtime.broker.errors import RequestFailedError
from kata_runtime.identity import MAX_SPEC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Declared = dict[str, Any]

MAX_TIMEOUT = 2**31 - 1


def read(bundle: str, container: str) -> Declared:
    """The hooks of the host in a bundle's config.json, by kind, with the parts of a container's state.

    Raises:
        RequestFailedError: it cannot be read, or a hook is not what the specification says.
    """
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as file:
            spec = json.loads(file.read(MAX_SPEC))
    except OSError as error:
        raise RequestFailedError(f"cannot read {path}: {error.strerror}", error.errno or 0) from None
    except (ValueError, RecursionError) as error:
        raise RequestFailedError(f"{path} is not JSON: {error}", errno.EINVAL) from None
    spec = spec if isinstance(spec, dict) else {}
    annotations = spec.get("annotations")
    return {
        "hooks": _parse(spec.get("hooks"), path),
        "state": {
            "ociVersion": str(spec.get("ociVersion") or "1.0.2"),
            "id": container,
            "bundle": bundle,
            "annotations": annotations if isinstance(annotations, dict) else {},
        },
    }


def _parse(hooks: Any, path: str) -> dict[str, list[Any]]:
    found = hooks if isinstance(hooks, dict) else {}
    declared = {}
    for kind in hook_kinds.STATUS:
        entries = found.get(kind) or []
        if not isinstance(entries, list):
            raise RequestFailedError(f"{path}: hooks.{kind} must be a list", errno.EINVAL)
        for number, entry in enumerate(entries):
            if fault := _fault(entry):
                raise RequestFailedError(f"{path}: hooks.{kind}[{number}]{fault}", errno.EINVAL)
        if entries:
            declared[kind] = entries
    return declared


def _fault(entry: Any) -> str:
    """What is wrong with a hook, or nothing."""
    if not isinstance(entry, dict):
        return " must be an object"
    path, timeout = entry.get("path"), entry.get("timeout")
    if not isinstance(path, str) or not _is_text(path) or not path.startswith("/"):
        return ".path must be an absolute path"
    for key in ("args", "env"):
        values = entry.get(key)
        if values is not None and not (isinstance(values, list) and all(map(_is_text, values))):
            return f".{key} must be a list of strings"
    if timeout is not None and (type(timeout) is not int or not 0 < timeout <= MAX_TIMEOUT):
        return ".timeout must be a number of seconds greater than zero"
    return ""


def _is_text(value: Any) -> bool:
    """Whether it is a string that execve(2) takes."""
    return isinstance(value, str) and "\0" not in value and value == value.encode("utf-8", "ignore").decode()


def failures(answer: bytes, kind: str) -> list[str]:
    """A sentence for each hook that failed, from what the runner has answered."""
    try:
        lines = json.loads(answer)
    except ValueError:
        return [f"the {kind} hooks did not end: the process that runs them was killed"]
    return [str(line) for line in lines]
