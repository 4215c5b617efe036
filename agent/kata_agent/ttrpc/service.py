"""Services and methods, as the generated descriptors name them."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Method(Generic[Request, Response]):
    """One method of a service: its name and the types of its messages."""

    __slots__ = ("name", "request", "response")

    def __init__(self, name: str, request: type[Request], response: type[Response]) -> None:
        self.name = name
        self.request = request
        self.response = response

    def __repr__(self) -> str:
        return f"Method({self.name}: {self.request.__name__} -> {self.response.__name__})"


class Service:
    """A service: the full name that requests carry, and its methods by name."""

    __slots__ = ("full_name", "methods")

    def __init__(self, full_name: str, methods: dict[str, Method[Any, Any]]) -> None:
        self.full_name = full_name
        self.methods = methods


def service_of(descriptor: ServiceDescriptor) -> Service:
    """The service that a generated module describes (`module.DESCRIPTOR.services_by_name[...]`)."""
    methods: dict[str, Method[Any, Any]] = {
        method.name: Method(
            method.name,
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for method in descriptor.methods
    }
    return Service(descriptor.full_name, methods)
