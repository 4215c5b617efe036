"""What every table's model has in common: strictness, units, and types for text and paths.

A field is documented where it is declared: type, range, default, unit, alias and one sentence. Validation,
the linter, the shipped file and the reference are made from that and from nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

__all__ = [
    "CommaList",
    "HostPath",
    "LogLevel",
    "Mebibytes",
    "Milliseconds",
    "Octets",
    "Seconds",
    "Strings",
    "Table",
    "Text",
    "Unit",
    "malformed",
]


class Table(BaseModel):
    """A table of the file. Every key is known, has exactly its type, and cannot change once loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    # Other spelling -> field.
    aliases: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Return the first example of each required key: with them, an empty table is valid."""
        fields = cls.model_fields.items()
        return {name: field.examples[0] for name, field in fields if field.is_required() and field.examples}


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of a number, carried in its annotation."""

    symbol: str


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


def _comma_separated(value: str) -> str:
    items = [item.strip() for item in value.split(",")] if value else []
    if any(not item or len(item.split()) > 1 for item in items):
        raise malformed("is not a comma-separated list", "separate words by single commas")
    return ",".join(items)


LogLevel = Literal["trace", "debug", "info", "warn", "error", "critical"]

Text = Annotated[str, AfterValidator(_no_control_characters)]
CommaList = Annotated[Text, AfterValidator(_comma_separated)]
Strings = Annotated[tuple[Text, ...], Field(strict=False)]
HostPath = Annotated[Path, Field(strict=False), AfterValidator(_absolute)]

Mebibytes = Annotated[int, Unit("MiB")]
Octets = Annotated[int, Unit("bytes")]
Seconds = Annotated[int, Unit("seconds")]
Milliseconds = Annotated[int, Unit("milliseconds")]
