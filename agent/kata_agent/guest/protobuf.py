"""The generated messages without protobuf's Python half, which costs more than all else at the guest's start.

A generated module asks five modules of google.protobuf to describe its messages to the C core (upb). These
five pull in forty more (text formats, well-known types, calendars): 35 ms, ten times that where the guest is
emulated. `load` puts small stand-ins in their place while the generated modules are imported, and takes them
away again: what is asked of protobuf later (a message's text form, say) finds the real modules.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_GENERATED = ("ttrpc_pb2", "types_pb2", "csi_pb2", "oci_pb2", "health_pb2", "agent_pb2")
_PREFIX = "google.protobuf."


def load() -> None:
    """Import the generated modules of kata_agent.protos, cheaply where protobuf has its C core.

    Without that core, or where protobuf is loaded already, this leaves everything to the usual imports.
    """
    if f"{_PREFIX}descriptor_pool" in sys.modules:
        return
    try:
        from google._upb import _message
    except ImportError:
        return
    stand_ins = _stand_ins(_message)
    sys.modules.update(stand_ins)
    try:
        for name in _GENERATED:
            importlib.import_module(f"kata_agent.protos.{name}")
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _stand_ins(upb: Any) -> dict[str, ModuleType]:
    """What a generated module imports, by name, reduced to what it uses."""
    from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
    from google.protobuf.message import Message

    def message_class(descriptor: Any, module: str) -> Any:
        members = {nested.name: message_class(nested, module) for nested in descriptor.nested_types}
        return upb.MessageMeta(
            descriptor.name, (Message,), {**members, "DESCRIPTOR": descriptor, "__module__": module}
        )

    def build_messages(file: Any, module: str, members: dict[str, Any]) -> None:
        for name, descriptor in file.message_types_by_name.items():
            members[name] = message_class(descriptor, module)
        for name, descriptor in file.enum_types_by_name.items():
            members[name] = EnumTypeWrapper(descriptor)
            members.update((value.name, value.number) for value in descriptor.values)

    def nothing(*_: Any) -> None:
        """The real one fills tables that only protobuf's Python half reads."""

    members: dict[str, dict[str, Any]] = {
        "descriptor": {"_USE_C_DESCRIPTORS": True},
        "descriptor_pool": {"Default": lambda: upb.default_pool},
        "symbol_database": {"Default": nothing},
        "internal.builder": {
            "BuildMessageAndEnumDescriptors": nothing,
            "BuildTopDescriptorsAndMessages": build_messages,
        },
        "internal.well_known_types": {"WKTBASES": {}},  # the C core asks for it; no message here needs one
    }
    return {_PREFIX + name: _module(_PREFIX + name, content) for name, content in members.items()}


def _module(name: str, members: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module
