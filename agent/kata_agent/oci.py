"""The OCI runtime specification, between its JSON form and the messages of the agent protocol.

The messages name and shape the same things differently, and cannot say everything: most of their scalars
have no presence, so absence travels as zero. Which zeros come back as absence follows the specification's
own reading of them; see oci_shapes. `lost_fields` says what of a given spec does not arrive.

Sources: the OCI runtime specification (config.md, config-linux.md), specs-go for which members are written
when they are zero, and oci.proto for the names on the wire.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kata_agent.constants import UMASK_ANNOTATION, UNIFIED_ANNOTATION
from kata_agent.oci_shapes import SHAPES
from kata_agent.protos import oci_pb2

Json = dict[str, Any]


class SpecError(ValueError):
    """A spec that does not have the form that the OCI runtime specification gives it."""


def spec_to_proto(spec: Mapping[str, Any]) -> oci_pb2.Spec:
    """The message for a spec (a parsed config.json). Members that the message lacks are left out.

    Raises:
        SpecError: a member has the wrong type or is out of its range; the message names it.
    """
    message = oci_pb2.Spec()
    _encode(spec, message, "", [])
    # What travels as an annotation is ours alone to set.
    for name in (UMASK_ANNOTATION, UNIFIED_ANNOTATION):
        message.Annotations.pop(name, None)
    unified = ((spec.get("linux") or {}).get("resources") or {}).get("unified")
    if unified:
        checked = _check_unified(unified, "linux.resources.unified")
        message.Annotations[UNIFIED_ANNOTATION] = json.dumps(checked)
    user = (spec.get("process") or {}).get("user") or {}
    if user.get("umask") is not None:
        message.Annotations[UMASK_ANNOTATION] = f"{_check_umask(user['umask'], 'process.user.umask'):o}"
    return message


def spec_from_proto(message: oci_pb2.Spec) -> Json:
    """The spec that a message says.

    Raises:
        SpecError: the annotation that carries the umask, or the unified keys, is not one.
    """
    spec = _decode(message)
    annotations = spec.get("annotations", {})
    umask = annotations.pop(UMASK_ANNOTATION, None)
    unified = annotations.pop(UNIFIED_ANNOTATION, None)
    if not annotations:
        spec.pop("annotations", None)
    if umask is not None and "process" in spec:
        where = f"annotations[{UMASK_ANNOTATION!r}]"
        try:
            value = int(umask, 8)
        except ValueError:
            raise SpecError(f"{where}: {umask[:100]!r} is not an octal number") from None
        spec["process"].setdefault("user", {"uid": 0, "gid": 0})["umask"] = _check_umask(value, where)
    if unified is not None:
        resources = spec.setdefault("linux", {}).setdefault("resources", {})
        resources["unified"] = _read_unified(unified, f"annotations[{UNIFIED_ANNOTATION!r}]")
    return spec


def process_to_proto(process: Mapping[str, Any]) -> oci_pb2.Process:
    """The message for a process, as an exec gives it. Raises SpecError as spec_to_proto does."""
    message = oci_pb2.Process()
    _encode(process, message, "process", [])
    return message


def process_from_proto(message: oci_pb2.Process) -> Json:
    """The process that a message says."""
    return _decode(message)


def resources_to_proto(resources: Mapping[str, Any]) -> oci_pb2.LinuxResources:
    """The message for resources, as an update gives them. Raises SpecError as spec_to_proto does."""
    message = oci_pb2.LinuxResources()
    _encode(resources, message, "linux.resources", [])
    return message


def resources_from_proto(message: oci_pb2.LinuxResources) -> Json:
    """The resources that a message says."""
    return _decode(message)


def lost_fields(spec: Mapping[str, Any]) -> list[str]:
    """The members of a spec that do not reach the guest as they are, by their path in the JSON.

    These are the ones that the protocol does not have, unknown ones among them, and explicit zeros of members
    whose absence means something else. Raises SpecError as spec_to_proto does.
    """
    lost: list[str] = []
    _encode(spec, oci_pb2.Spec(), "", lost)
    carried = {"process.user.umask", "linux.resources.unified"}
    annotations = spec.get("annotations") or {}
    ours = (UMASK_ANNOTATION, UNIFIED_ANNOTATION)
    lost += [f"annotations[{name!r}]" for name in ours if name in annotations]
    return [path for path in lost if path not in carried]


_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


def _encode(value: object, message: Message, path: str, lost: list[str]) -> None:
    """Fill a message from a JSON object, noting the members that it has no place for."""
    if not isinstance(value, Mapping):
        raise SpecError(f"{path or 'spec'}: must be an object, not {_kind(value)}")
    shape = SHAPES[message.DESCRIPTOR.name]
    for name, member in value.items():
        where = f"{path}.{name}" if path else str(name)
        if member is None:
            continue
        if name not in shape.names:
            if member != shape.default.get(name):
                lost.append(where)
            continue
        field = cast(FieldDescriptor, message.DESCRIPTOR.fields_by_name[shape.names[name]])
        _encode_field(member, message, field, where, lost)
        if member == 0 and name in shape.zero_matters:
            lost.append(where)
    for name, stand_in in shape.absent.items():
        if value.get(name) is None:
            setattr(message, shape.names[name], stand_in)


def _is_map(field: Any) -> bool:
    """Whether a field (a FieldDescriptor, of either implementation) is a map.

    Of all our messages only a map's entries have options; reading which they are would import
    descriptor_pb2, a tenth of a second in an emulated guest.
    """
    return field.message_type is not None and field.message_type.has_options


def _encode_field(
    member: object, message: Message, field: FieldDescriptor, where: str, lost: list[str]
) -> None:
    target = getattr(message, field.name)
    if _is_map(field):
        if not isinstance(member, Mapping):
            raise SpecError(f"{where}: must be an object of strings, not {_kind(member)}")
        for key, text in member.items():
            target[_text(key, where)] = _text(text, f"{where}[{key!r}]")
    elif field.is_repeated:
        if not isinstance(member, list | tuple):
            raise SpecError(f"{where}: must be an array, not {_kind(member)}")
        for index, item in enumerate(member):
            if field.message_type:
                _encode(item, target.add(), f"{where}[{index}]", lost)
            else:
                target.append(_scalar(item, field, f"{where}[{index}]"))
    elif field.message_type:
        target.SetInParent()
        _encode(member, target, where, lost)
    else:
        value = _scalar(member, field, where)
        if value or not field.has_presence:
            setattr(message, field.name, value)


def _scalar(value: object, field: FieldDescriptor, where: str) -> bool | int | str:
    """Check a scalar against its field's type."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _text(value, where)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise SpecError(f"{where}: must be true or false, not {_kind(value)}")
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise SpecError(f"{where}: must be an integer, not {_kind(value)}")
    least, most = _RANGES[field.cpp_type]
    if not least <= value <= most:
        raise SpecError(f"{where}: {value} is out of range, {least} to {most}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise SpecError(f"{where}: must be a string, not {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SpecError(f"{where}: must be valid Unicode, not {value[:100]!r}") from None
    return value


def _check_umask(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 0o777:
        raise SpecError(f"{where}: must be an integer of 0 to 511 (octal 777), not {str(value)[:100]}")
    return value


def _check_unified(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise SpecError(f"{where}: must be an object of strings, not {_kind(value)}")
    return {_text(key, where): _text(text, f"{where}[{key!r}]") for key, text in value.items()}


def _read_unified(text: str, where: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except ValueError:
        raise SpecError(f"{where}: {text[:100]!r} is not JSON") from None
    return _check_unified(value, where)


def _kind(value: object) -> str:
    """What a parsed JSON value is called in JSON."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else type(value).__name__)


def _decode(message: Message) -> Json:
    """The JSON object that a message says."""
    shape = SHAPES[message.DESCRIPTOR.name]
    result: Json = {}
    for name, field_name in shape.names.items():
        field = message.DESCRIPTOR.fields_by_name[field_name]
        value = getattr(message, field_name)
        if field.message_type and not field.is_repeated:
            if message.HasField(field_name):
                result[name] = _decode(value)
            continue
        if _is_map(field):
            value = dict(value)
        elif field.is_repeated:
            value = [_decode(item) if field.message_type else item for item in value]
        if name in shape.absent:
            present = value != shape.absent[name]
        else:
            present = bool(value) or name in shape.required
        if present:
            result[name] = value
    if message.DESCRIPTOR.name == "LinuxCapabilities":
        return {name: [_capability(item) for item in value] for name, value in result.items()}
    return result


def _capability(name: str) -> str:
    """A capability as the specification spells it: Kata's runtimes also send it quoted, or without CAP_."""
    name = name.strip('"')
    return name if name.startswith("CAP_") else f"CAP_{name}"
