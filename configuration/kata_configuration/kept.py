"""Configurations that were judged once, kept as plain data: reading one imports no model and parses no TOML.

Kept is what a file, its drop-ins and the program that judged them say, and nothing else: an entry counts only
for the very same bytes, names and program. What can differ the next time is looked at each time: who may
change the files, and what this host lacks. Whenever there is anything to say, or a pod's annotation to apply,
the configuration is loaded as if none were kept; so there is one place where faults are found and told.

An entry is a file of root's in a directory of root's: the SHA-256 of what follows, and one JSON document.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kata_configuration.configuration import Configuration
from kata_configuration.diagnostics import Code, Diagnostic, Severity
from kata_configuration.errors import ConfigurationError
from kata_configuration.judge import host
from kata_configuration.layer import reading
from kata_configuration.parse.trust import check, trusted_uids
from kata_configuration.plain_table import PlainTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kata_configuration.models import Hypervisor, KataAgent, Runtime, Table

ROOT = Path("/run/kata-configuration")
MOST = 32
"""Entries: the oldest goes when there is one more. A node has one or two."""
MAX_SIZE = 1 << 20

_TABLES = ("hypervisor", "agent", "runtime")
_HOST = "KATA6"
"""How the codes begin of what is found on this host: see `diagnostics`."""

_log = logging.getLogger(__name__)


class _NotKeptError(Exception):
    """There is no entry that could be used, for this reason."""


def load(
    path: Path, *, source: str, annotations: Mapping[str, str], root: Path | None = None
) -> Configuration:
    """Load a configuration as `loading.load` does, from what is kept of it where that says the same.

    root: the directory of the entries, None for ROOT. Nothing is kept where it cannot be written.

    Raises:
        ConfigurationError: there are faults; see `loading.load`.
    """
    root = root or ROOT
    if not any("kata" in name.lower() for name in annotations):
        try:
            return _recall(path, source, root)
        except _NotKeptError as error:
            _log.debug("configuration %s is read anew: %s", path, error)
        except ConfigurationError:
            pass  # it is told by who finds all that is wrong
    from kata_configuration import loading

    configuration = loading.load(path, source=source, annotations=annotations)
    # A program that was replaced since this process loaded it has not judged, or not alone.
    if not configuration.annotations and not _tells_of_host(configuration) and _program() == _LOADED:
        with contextlib.suppress(OSError):
            _keep(configuration, root)
    return configuration


def _tells_of_host(configuration: Configuration) -> bool:
    return any(found.code.startswith(_HOST) for found in configuration.warnings)


def _recall(path: Path, source: str, root: Path) -> Configuration:
    read = reading.read(path)
    if read.unreadable:
        raise _NotKeptError("a drop-in cannot be read")
    drop_ins = tuple(file.path for file in read.files[1:])
    found = _read_entry(root / name_of(path), _key_of(path, drop_ins, read.sha256))
    if {found.path for found in found.warnings if found.code == Code.SKIPPED.number} != set(
        map(str, read.skipped)
    ):
        raise _NotKeptError("other files are beside its drop-ins")
    if any(check(read.places, trusted_uids())):
        raise _NotKeptError("others may change it")
    if any(_lacking(cast("Table", found.hypervisor))):
        raise _NotKeptError("this host lacks something of it")
    return found._replace(path=path, drop_ins=drop_ins, sha256=read.sha256, source=source)


def _lacking(table: Table) -> Iterator[object]:
    for rule in host.RULES:
        if rule.concerns(table, ("hypervisor",), frozenset()):
            yield from rule.check(table)


# -- what an entry is of ---------------------------------------------------------------------------------


def name_of(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]


def _key_of(path: Path, drop_ins: tuple[Path, ...], sha256: str) -> str:
    """What must be the same: the files by name and content, the user, and the program that judges them."""
    parts = [str(path.absolute()), *map(str, drop_ins), sha256, str(os.geteuid()), _LOADED]
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()


def _program() -> str:
    """The judge, by the files that it is made of: their names, sizes and times, and the models' library."""
    facts = []
    for directory, below, files in os.walk(Path(__file__).parent):
        below[:] = [name for name in below if name != "__pycache__"]
        facts += [os.path.join(directory, name) for name in files]
    for library in ("pydantic", "pydantic_core", "tomli"):
        spec = importlib.util.find_spec(library)
        facts.append((spec.origin if spec else None) or library)
    return repr(sorted((path, *_facts(path)) for path in facts))


def _facts(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


_LOADED = _program()
"""The program that this process is: what is imported later is of it as long as no file has changed."""


# -- entries ---------------------------------------------------------------------------------------------


def _read_entry(path: Path, key: str) -> Configuration:
    """Raises _NotKeptError: there is none, it is of something else, or not as this runtime writes it."""
    try:
        _require_own(os.lstat(path.parent), stat.S_ISDIR)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            _require_own(os.fstat(fd), stat.S_ISREG)
            content = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise _NotKeptError(f"{path}: {error.strerror}") from None
    digest, _, body = content.partition(b"\n")
    if len(content) > MAX_SIZE or digest.decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
        raise _NotKeptError(f"{path} is damaged")
    try:
        of, configuration = _parse(body)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise _NotKeptError(f"{path} is no entry: {error!r}") from None
    if of != key:
        raise _NotKeptError("a file or the program has changed")
    return configuration


@lru_cache(maxsize=1)  # by its content: parsed once in a process, or in the one that this was forked from
def _parse(body: bytes) -> tuple[str, Configuration]:
    """An entry's key and configuration."""
    document = json.loads(body)
    return str(document["key"]), _configuration_of(document)


def _require_own(status: os.stat_result, is_kind: Any) -> None:
    if not is_kind(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise _NotKeptError("it is not this user's alone")


def _keep(configuration: Configuration, root: Path) -> None:
    """Write the entry of a configuration in one step. Raises OSError."""
    key = _key_of(configuration.path, configuration.drop_ins, configuration.sha256)
    body = json.dumps({"key": key, **_document_of(configuration)}).encode()
    root.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(_NotKeptError):
        _require_own(os.lstat(root), stat.S_ISDIR)
        path = root / name_of(configuration.path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            temporary.rename(path)
        except OSError:
            temporary.unlink()
            raise
        for old in sorted(root.iterdir(), key=lambda entry: entry.lstat().st_mtime_ns)[:-MOST]:
            old.unlink(missing_ok=True)


# -- an entry's document ---------------------------------------------------------------------------------


def _document_of(configuration: Configuration) -> dict[str, Any]:
    return {
        "hypervisor_name": configuration.hypervisor_name,
        "warnings": [
            [found.severity.value, *(getattr(found, name) for name in _WARNING)]
            for found in configuration.warnings
        ],
        **{name: plain_of(getattr(configuration, name)) for name in _TABLES},
    }


def _configuration_of(document: dict[str, Any]) -> Configuration:
    tables = {name: _table_of(document[name]) for name in _TABLES}
    warnings = tuple(
        Diagnostic(severity=Severity(severity), **dict(zip(_WARNING, rest, strict=True)))
        for severity, *rest in document["warnings"]
    )
    return Configuration(
        path=Path(),
        drop_ins=(),
        sha256="",
        source="",
        annotations=(),
        hypervisor_name=document["hypervisor_name"],
        hypervisor=cast("Hypervisor", tables["hypervisor"]),
        agent=cast("KataAgent", tables["agent"]),
        runtime=cast("Runtime", tables["runtime"]),
        warnings=warnings,
    )


# What a log shows of a diagnostic: without the excerpt and the edits, which are kata-ctl's.
_WARNING = ("path", "line", "column", "code", "key", "message", "hint", "security")

PATH, TUPLE, MAP, TABLE = "path", "tuple", "map", "table"
"""How a value that JSON does not know is marked: as an array of this and what it is made of."""


def plain_of(value: Any) -> Any:
    """A value of a table as JSON knows it."""
    from kata_configuration.models import Table

    if isinstance(value, Path):
        return [PATH, str(value)]
    if isinstance(value, tuple):
        return [TUPLE, [plain_of(item) for item in value]]
    if isinstance(value, dict):
        return [MAP, {name: plain_of(item) for name, item in value.items()}]
    if isinstance(value, Table):
        keys = {name: plain_of(item) for name, item in value}
        return [TABLE, keys, {name: plain_of(getattr(value, name)) for name in answers_of(type(value))}]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a configuration with a {type(value).__name__} cannot be kept")


def answers_of(model: type[Table]) -> list[str]:
    """The names of the properties of a model and of the models under it, which are asked of a table."""
    from kata_configuration.models import Table

    models = [base for base in model.__mro__ if issubclass(base, Table)]
    return sorted({name for base in models for name, it in vars(base).items() if isinstance(it, property)})


def value_of(plain: Any) -> Any:
    """The value that `plain_of` has written. Raises ValueError, TypeError: it has written no such thing."""
    if not isinstance(plain, list):
        if isinstance(plain, dict):
            raise TypeError("an object without a mark")
        return plain
    mark, first, *_ = plain
    if mark == PATH:
        return Path(first)
    if mark == TUPLE:
        return tuple(value_of(item) for item in first)
    if mark == MAP:
        return {name: value_of(item) for name, item in first.items()}
    return _table_of(plain)


def _table_of(plain: Any) -> PlainTable:
    mark, keys, answers = plain
    if mark != TABLE:
        raise ValueError(f"no table: {mark!r}")
    return PlainTable(*({name: value_of(item) for name, item in part.items()} for part in (keys, answers)))
