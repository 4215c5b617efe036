"""The OCI bundle: config.json, read and checked, and what this runtime needs to know of it."""

from __future__ import annotations

import enum
import json
from typing import Any

from kata_runtime.errors import InvalidRequestError, UnsupportedError
from kata_runtime.identity import MAX_SPEC

JsonObject = dict[str, Any]

TYPE_KEYS = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")


class ContainerType(enum.Enum):
    """What a container is to its sandbox."""

    SINGLE = "single"  # the only one, as ctr and nerdctl make them
    POD_SANDBOX = "sandbox"  # the pod's first
    POD_CONTAINER = "container"


def parse_spec(raw: bytes, path: str) -> JsonObject:
    """The specification in the content of the file at `path`.

    Raises:
        InvalidRequestError: it is too large, not JSON, or not what the specification says.
        UnsupportedError: it describes something that cannot run in a Linux virtual machine.
    """
    if len(raw) > MAX_SPEC:
        raise InvalidRequestError(f"{path} is larger than {MAX_SPEC >> 20} MiB")
    try:
        spec = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path} is not JSON: {error}") from None
    return check_spec(spec, path)


def check_spec(spec: object, path: str) -> JsonObject:
    """Check the parts of a specification that this side of the VM relies on. Raises as `parse_spec` does."""
    if not isinstance(spec, dict):
        raise InvalidRequestError(f"{path}: the specification must be an object, not {_kind(spec)}")
    for key, kind in (
        ("process", dict),
        ("root", dict),
        ("mounts", list),
        ("annotations", dict),
        ("linux", dict),
    ):
        if spec.get(key) is not None and not isinstance(spec[key], kind):
            raise InvalidRequestError(f"{path}: {key} must be {_kind(kind())}, not {_kind(spec[key])}")
    for foreign in ("windows", "solaris", "zos", "vm", "freebsd"):
        if spec.get(foreign):
            raise UnsupportedError(f"{path}: a section {foreign!r} cannot run in a Linux virtual machine")
    process = spec.get("process")
    if not process:
        raise InvalidRequestError(f"{path}: process is missing")
    check_process(process, path)
    root = spec.get("root")
    if not root or not isinstance(root.get("path"), str) or not root["path"]:
        raise InvalidRequestError(f"{path}: root.path is missing")
    for number, mount in enumerate(spec.get("mounts") or ()):
        if not isinstance(mount, dict) or not isinstance(mount.get("destination"), str):
            raise InvalidRequestError(f"{path}: mounts[{number}].destination is missing")
        if not mount["destination"].startswith("/"):
            raise InvalidRequestError(f"{path}: mounts[{number}].destination must be an absolute path")
    _check_namespaces(spec, path)
    for key, value in annotations_of(spec).items():
        if not isinstance(value, str):
            raise InvalidRequestError(f"{path}: annotation {key!r} must be a string, not {_kind(value)}")
    return spec


def _check_namespaces(spec: JsonObject, path: str) -> None:
    """See that each namespace has its type; that it is a list of objects is checked by the agent protocol."""
    namespaces = (spec.get("linux") or {}).get("namespaces")
    for number, namespace in enumerate(namespaces if isinstance(namespaces, list) else ()):
        if isinstance(namespace, dict) and not namespace.get("type"):
            raise InvalidRequestError(f"{path}: linux.namespaces[{number}].type is missing")


def check_process(process: object, path: str) -> JsonObject:
    """Check an OCI process, of a bundle or of an exec request. Raises InvalidRequestError."""
    if not isinstance(process, dict):
        raise InvalidRequestError(f"{path}: the process must be an object, not {_kind(process)}")
    args = process.get("args")
    if not isinstance(args, list) or not args or not all(isinstance(arg, str) for arg in args):
        raise InvalidRequestError(f"{path}: process.args must be a list of one or more strings")
    if any("\0" in arg for arg in args):
        raise InvalidRequestError(f"{path}: process.args must not contain null characters")
    cwd = process.get("cwd")
    if not isinstance(cwd, str) or not cwd.startswith("/"):
        raise InvalidRequestError(f"{path}: process.cwd must be an absolute path")
    return process


def annotations_of(spec: JsonObject) -> dict[str, str]:
    """The annotations of a specification; empty when there are none."""
    return spec.get("annotations") or {}


def container_type(spec: JsonObject) -> ContainerType:
    """What the annotations of the CRI implementation say; SINGLE without any.

    Raises:
        InvalidRequestError: an annotation has a value that does not exist.
    """
    for key in TYPE_KEYS:
        value = annotations_of(spec).get(key)
        if value is None:
            continue
        if value in ("sandbox", "container"):
            return ContainerType(value)
        raise InvalidRequestError(f"annotation {key} is {value!r}: must be 'sandbox' or 'container'")
    return ContainerType.SINGLE


def _kind(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")
