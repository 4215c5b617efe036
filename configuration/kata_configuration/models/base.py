"""What every table's model has in common: strictness, units, and types for text and paths.

A key is one declaration: type, range, default, unit, release and one sentence; how a pod's annotation sets
it, where it takes effect, and without which other key it has none. Validation, the linter, annotations, the
shipped files, the schema and the reference are made from that and nothing else.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticKnownError

__all__ = [
    "AFTER_4_1",
    "HOUR",
    "OURS",
    "About",
    "Access",
    "ActedOnBy",
    "Annotation",
    "BitsPerSecond",
    "CommaList",
    "Effect",
    "Form",
    "Globs",
    "HostPath",
    "HypervisorTable",
    "Indifferent",
    "Instead",
    "LogLevel",
    "MachineTable",
    "Mebibytes",
    "Milliseconds",
    "Needs",
    "Octets",
    "OnlyTrue",
    "OptionalPath",
    "Percent",
    "Plausible",
    "PowerOfTwo",
    "Protects",
    "RoundedUp",
    "Seconds",
    "Strings",
    "Table",
    "Text",
    "Unit",
    "inner_table",
    "listed_values",
    "malformed",
]

# The release in which this runtime began to read a key that Kata does not have.
OURS = "this runtime 0.1.0"
# Of keys that Kata's main branch has, and its release 4.1.0 does not.
AFTER_4_1 = "Kata after 4.1.0"
HOUR = 3600


class Table(BaseModel):
    """A table of the file. Every key is known, has exactly its type, and cannot change once loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    # Other spelling -> field.
    aliases: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def has_key(cls, name: str) -> bool:
        """Whether this table has a key of that name."""
        return name in cls.model_fields

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Return the first example of each required key: with them, an empty table is valid."""
        fields = cls.model_fields.items()
        return {name: About.of(field).example for name, field in fields if field.is_required()}


class HypervisorTable(Table):
    """A table [hypervisor.NAME], and what is asked of each of them whatever its keys."""

    # The program or library that runs the virtual machine, as messages name it.
    title: ClassVar[str]

    @property
    def confined(self) -> bool:
        """Whether the configuration asks for the seccomp filter of the process that runs the machine."""
        raise NotImplementedError  # each model of a driver says so itself; that of planned keys has no answer

    @property
    def tap_queues(self) -> int:
        """How many pairs of queues each of a pod's taps has."""
        return 1

    @property
    def seccomp_setting(self) -> str:
        """What the configuration says of that filter beyond whether it is on; for reports."""
        return "the filter of the VMM itself"

    @property
    def honors_unconfined(self) -> bool | None:
        """Whether a container without a seccomp profile turns the filter off; None where none ever does."""
        return None

    @property
    def needs_kvm(self) -> bool:
        """Whether no virtual machine runs without the kernel's KVM."""
        return True

    @property
    def needs_full_kvm(self) -> bool:
        """Whether that KVM must run unmodified guests: stock kernels, and not only what it can emulate."""
        return self.needs_kvm

    @property
    def boots_linux(self) -> bool:
        """Whether its machines boot a kernel with an agent; else it runs unikernels only."""
        return False

    @property
    def shares_files(self) -> bool:
        """Whether the guest sees files of the host; else a container's root file system is a disk.

        True for a hypervisor that runs unikernels only: it leaves their files where they are.
        """
        return True

    @property
    def program(self) -> Path | None:
        """The program that runs the virtual machine; None where that is the runtime's own process."""
        return None

    @property
    def file_daemon(self) -> Path | None:
        """The virtiofsd that shares files of the host with the guest; None where none are shared."""
        return None

    @property
    def guest_files(self) -> tuple[Path, ...]:
        """The files of the guest that a machine boots: kernel, initrd, image, as far as there are any."""
        return ()

    @property
    def template_path(self) -> Path | None:
        """The directory of the template from which machines start; None where each is booted."""
        return None


class MachineTable(HypervisorTable):
    """A table of a hypervisor whose machines have a kernel and, in the guest, an agent.

    It runs unikernels only when its kernel is none.
    """

    if TYPE_CHECKING:  # the keys that are read here: each model declares them, with its own range and default
        kernel: Path | None
        initrd: Path | None
        image: Path | None
        kernel_params: str
        kernel_verity_params: str
        shared_fs: str

    @property
    def boots_linux(self) -> bool:
        """See HypervisorTable."""
        return self.kernel is not None

    @property
    def shares_files(self) -> bool:
        """See HypervisorTable."""
        return self.shared_fs != "none"

    @property
    def guest_files(self) -> tuple[Path, ...]:
        """See HypervisorTable."""
        return tuple(path for path in (self.kernel, self.initrd, self.image) if path is not None)

    @property
    def kernel_parameters(self) -> tuple[str, ...]:
        """kernel_params one by one; a space between double quotes does not separate."""
        return tuple(re.findall(r'(?:[^ "]|"[^"]*")+', self.kernel_params))


# What a declaration's metadata holds. Named tuples, because every load defines them: they are cheap.


class Unit(NamedTuple):
    """The unit of a number."""

    symbol: str


class Plausible(NamedTuple):
    """The least number that somebody who knows the unit writes; a smaller one is allowed, with a warning."""

    least: int


class Protects(NamedTuple):
    """That a key protects the host or the guest: it may not be dropped. value: the one that does, or any."""

    value: str | None = None


class Form(NamedTuple):
    """The regular expression (ECMA 262) of a text's form, for the JSON Schema."""

    pattern: str


class PowerOfTwo(NamedTuple):
    """That a number is a power of two, from `least` on, or 0 where that has a meaning of its own."""

    least: int = 1
    or_zero: bool = False


class RoundedUp(NamedTuple):
    """That an annotation may give a whole number with a fraction, which is rounded up: "0.75" CPUs."""


class Indifferent(NamedTuple):
    """That either value of a planned key describes what happens: it switches off what no driver here does."""


class ActedOnBy(NamedTuple):
    """The one runtime that acts on a key, which runtime-rs and this runtime do not."""

    runtime: str


class Instead(NamedTuple):
    """What this version does in place of a value or key that it does not honour.

    clause: what. lost: whether something is missing then that the value asks for. advice: what to do about a
    key that is not honoured; it begins with "remove it". lost_with: a key of the same table with the value by
    which that is missing, and with no other one; None where it depends on none.
    """

    clause: str
    lost: bool = True
    advice: str = "remove it"
    lost_with: tuple[str, str] | None = None


class Needs(NamedTuple):
    """The key without which this one has no effect.

    without: the value of that key that takes the effect away; None for false, 0 or absent. table: of that
    key, "runtime", or "" for the same table.
    """

    key: str
    without: str | bool | None = None
    table: str = ""


class Access(Enum):
    """What lets a pod's annotation set a key."""

    GUARDED = "an entry of enable_annotations that is its name"
    OPEN = "an entry of enable_annotations that matches its name"
    CLOSED = "nothing"


class Annotation(NamedTuple):
    """How a pod's annotation sets a key. A key whose declaration has none is guarded.

    access: what lets the annotation in. reason: why a key is not guarded, as a clause; "" for a guarded one.
    name: of the annotation, where it differs from the key's (source: Kata Containers 4.1.0, runtime-rs, the
    constants KATA_ANNO_CFG_*). listed_in: the key with the shell patterns that the value must match.
    loosens: what a pod may do by it to its confinement, as a clause, or "".
    separator: of an array's elements. by_parameter: whether kernel parameters of the value replace those of
    the file one by one.
    """

    access: Access = Access.GUARDED
    reason: str = ""
    name: str = ""
    listed_in: str = ""
    loosens: str = ""
    separator: str = ","
    by_parameter: bool = False

    @classmethod
    def of(cls, field: FieldInfo) -> Annotation:
        """Return what a field's declaration says; guarded where it says nothing."""
        return next((item for item in field.metadata if isinstance(item, cls)), _GUARDED)


_GUARDED = Annotation()


class Effect(Enum):
    """Where a honoured key takes effect."""

    LOADING = "loading of the configuration"
    SIZE = "size of the machine"
    MACHINE = "virtual machine"
    FILTER = "seccomp filter"
    KERNEL_LINE = "guest kernel's command line"
    VIRTIOFSD = "virtiofsd"
    AGENT = "requests to the agent"
    SHIM = "runtime's process"


class About(NamedTuple):
    """What is to be known of a key.

    sentence: its documentation. since: the first release that reads it: of Kata's runtime-rs, or OURS.
    example: a value, for a key without a default. takes_effect_in: where, for a key that some table honours.
    """

    sentence: str
    since: str
    example: str | int | None = None
    takes_effect_in: Effect | None = None

    @classmethod
    def of(cls, field: FieldInfo) -> About:
        """Return what a field's declaration says; every field of a table has one."""
        return next(item for item in field.metadata if isinstance(item, cls))


def inner_table(field: FieldInfo) -> type[Table] | None:
    """Return the table that a field holds, or an array of them; None for a plain value."""
    for kind in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Table):
            return kind
    return None


def listed_values(annotation: Any) -> tuple[Any, ...]:
    """Return the values that a type lists: of a key itself, or of each entry of an array; or none."""
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return next(filter(None, map(listed_values, typing.get_args(annotation))), ())


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
        raise malformed("is not a comma-separated list", "separate the entries by single commas")
    return ",".join(items)


def _glob(value: str) -> str:
    if value and not value.startswith("/"):
        raise malformed("matches no absolute path", 'begin it with "/"')
    return value


def _boolean(value: object) -> object:
    """Refuse what is equal to true, and is none: to Python, 1 is."""
    if not isinstance(value, bool):
        raise PydanticKnownError("bool_type")
    return value


# A key that states what is always so.
OnlyTrue = Annotated[Literal[True], BeforeValidator(_boolean)]
LogLevel = Literal["trace", "debug", "info", "warn", "error", "critical"]

Text = Annotated[str, AfterValidator(_no_control_characters)]
CommaList = Annotated[Text, AfterValidator(_comma_separated), Form(r"^([^,\s]+( *, *[^,\s]+)*)?$")]
Strings = Annotated[tuple[Text, ...], Field(strict=False)]
# Shell patterns of absolute paths; "" matches none, and allows an annotation that takes a path away.
Globs = Annotated[
    tuple[Annotated[Text, AfterValidator(_glob), Form("^(/|$)")], ...],
    Field(strict=False),
    Annotation(Access.CLOSED, "it limits what annotations may name"),
]
HostPath = Annotated[Path, Field(strict=False), AfterValidator(_absolute)]
# "" is the absence of a path, as in the files that Kata ships.
OptionalPath = Annotated[HostPath | None, BeforeValidator(_absent)]

Mebibytes = Annotated[int, Unit("MiB")]
Octets = Annotated[int, Unit("bytes")]
Seconds = Annotated[int, Unit("seconds")]
Milliseconds = Annotated[int, Unit("milliseconds")]
Percent = Annotated[int, Unit("percent")]
BitsPerSecond = Annotated[int, Unit("bits per second")]
