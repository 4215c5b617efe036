"""What every table's model has in common: strictness, units, and types for text and paths.

A field is documented where it is declared: type, range, default, unit, release, alias and one sentence.
Validation, the linter, the shipped files, the schema and the reference are made from that and nothing else.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

__all__ = [
    "HOUR",
    "OURS",
    "About",
    "BitsPerSecond",
    "CommaList",
    "Globs",
    "HostPath",
    "HypervisorTable",
    "LogLevel",
    "Mebibytes",
    "Milliseconds",
    "Octets",
    "OptionalPath",
    "Percent",
    "Plausible",
    "Protects",
    "Seconds",
    "Strings",
    "Table",
    "Text",
    "Unit",
    "inner_table",
    "malformed",
]

# The release in which this runtime began to read a key that Kata does not have.
OURS = "this runtime 0.1.0"
HOUR = 3600


class Table(BaseModel):
    """A table of the file. Every key is known, has exactly its type, and cannot change once loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    # Other spelling -> field.
    aliases: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Return the first example of each required key: with them, an empty table is valid."""
        fields = cls.model_fields.items()
        return {name: About.of(field).example for name, field in fields if field.is_required()}


class HypervisorTable(Table):
    """A table [hypervisor.NAME]."""

    # The program or library that runs the virtual machine, as messages name it.
    title: ClassVar[str]

    @property
    def confined(self) -> bool:
        """Whether the configuration asks for the seccomp filter of the process that runs the machine."""
        return not getattr(self, "disable_seccomp", False)

    @property
    def needs_kvm(self) -> bool:
        """Whether no virtual machine runs without the kernel's KVM."""
        return True

    @property
    def kernel_parameters(self) -> tuple[str, ...]:
        """kernel_params as words; a space between double quotes does not separate."""
        return tuple(re.findall(r'(?:[^ "]|"[^"]*")+', getattr(self, "kernel_params", "")))


# What annotations carry. Named tuples, because every load defines them, and they are cheap to define.


class Unit(NamedTuple):
    """The unit of a number, carried in its annotation."""

    symbol: str


class Plausible(NamedTuple):
    """The least number that somebody who has the unit in mind would write; less is allowed, and doubted."""

    least: int


class Protects(NamedTuple):
    """That a key protects the host or the guest: it may not go unheard. value: the one that does, or any."""

    value: str | None = None


class About(NamedTuple):
    """What is to be known of a key, carried in its annotation.

    sentence: its documentation. since: the first release that reads it: of Kata's runtime-rs, or OURS.
    example: a value, for a key without a default.
    """

    sentence: str
    since: str
    example: str | int | None = None

    @classmethod
    def of(cls, field: FieldInfo) -> About:
        """Return what a field's annotation carries; every field of a table carries one."""
        return next(item for item in field.metadata if isinstance(item, cls))


def inner_table(field: FieldInfo) -> type[Table] | None:
    """Return the table that a field holds, or an array of them; None for a plain value."""
    for kind in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Table):
            return kind
    return None


def malformed(message: str, hint: str, **context: Any) -> PydanticCustomError:
    """Return the error that a validator raises: what is wrong with the value, and what to do."""
    return PydanticCustomError("malformed", "{message}", {"message": message, "hint": hint, **context})


def _no_control_characters(value: str) -> str:
    if not value.isprintable():
        raise malformed("contains a control character", "use printable characters only")
    return value


def _absolute(value: Path) -> Path:
    if not value.is_absolute():
        raise malformed("is not an absolute path", 'begin it with "/"')
    if not str(value).isprintable():
        raise malformed("contains a control character", "use printable characters only")
    return value


def _absent(value: object) -> object:
    return None if value == "" else value


def _comma_separated(value: str) -> str:
    items = [item.strip() for item in value.split(",")] if value else []
    if any(not item or len(item.split()) > 1 for item in items):
        raise malformed("is not a comma-separated list", "separate words by single commas")
    return ",".join(items)


def _glob(value: str) -> str:
    if value and not value.startswith("/"):
        raise malformed("matches no absolute path", 'begin it with "/"')
    return value


LogLevel = Literal["trace", "debug", "info", "warn", "error", "critical"]

Text = Annotated[str, AfterValidator(_no_control_characters)]
CommaList = Annotated[Text, AfterValidator(_comma_separated)]
Strings = Annotated[tuple[Text, ...], Field(strict=False)]
# Shell patterns of absolute paths; "" matches none, and allows an annotation that takes a path away.
Globs = Annotated[tuple[Annotated[Text, AfterValidator(_glob)], ...], Field(strict=False)]
HostPath = Annotated[Path, Field(strict=False), AfterValidator(_absolute)]
# "" is the absence of a path, as in the files that Kata ships.
OptionalPath = Annotated[HostPath | None, BeforeValidator(_absent)]

Mebibytes = Annotated[int, Unit("MiB")]
Octets = Annotated[int, Unit("bytes")]
Seconds = Annotated[int, Unit("seconds")]
Milliseconds = Annotated[int, Unit("milliseconds")]
Percent = Annotated[int, Unit("percent")]
BitsPerSecond = Annotated[int, Unit("bits per second")]
