from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class LogLevels(_message.Message):
    __slots__ = ("runtime", "hypervisor")
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    HYPERVISOR_FIELD_NUMBER: _ClassVar[int]
    runtime: str
    hypervisor: str
    def __init__(self, runtime: _Optional[str] = ..., hypervisor: _Optional[str] = ...) -> None: ...
