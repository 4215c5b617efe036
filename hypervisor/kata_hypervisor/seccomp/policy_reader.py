"""From the TOML of a policy to its rules: what is wrong is reported with file, line, rule and field."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from kata_hypervisor.errors import PolicyError
from kata_hypervisor.seccomp import actions, syscalls
from kata_hypervisor.seccomp.program import PROCESS
from kata_hypervisor.seccomp.rules import ALL_BITS, INT_BITS, OPERATORS, THREADS, Condition, Rule

_TOP = ("architecture", "constants", "rule")
_RULE = ("calls", "when", "reason", "features", "threads", "errno")
_CONDITION = ("arg", "op", "value", "mask", "bits")
_OPS = (*OPERATORS, "in", "masked")
_FEATURE = re.compile(r"[a-z][a-z0-9-]*\Z")
_VARIABLE = re.compile(r"\$[a-z][a-z0-9_]*\Z")
_CONSTANT = re.compile(r"[A-Z][A-Z0-9_]*\Z")


class Reader:
    """Reads one policy. text: the file's; source: its name in messages."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._lines = [
            n for n, line in enumerate(text.splitlines(), 1) if line.strip().startswith("[[rule]]")
        ]
        self._document = self._parse(text)
        self._where = source
        self._check_fields(self._document, _TOP)
        self.architecture = self._document.get("architecture")
        if self.architecture not in syscalls.ARCHITECTURES:
            known = ", ".join(syscalls.ARCHITECTURES)
            raise self._error(f"architecture must be one of {known}, not {self.architecture!r}")
        self._constants = self._read_constants()

    def _parse(self, text: str) -> dict[str, Any]:
        import tomli

        try:
            return tomli.loads(text)
        except tomli.TOMLDecodeError as error:
            line = getattr(error, "lineno", None)
            where = f"{self._source}:{line}" if line else self._source
            raise PolicyError(f"{where}: this is not TOML: {error}") from None

    def _error(self, message: str) -> PolicyError:
        return PolicyError(f"{self._where}: {message}")

    def _check_fields(self, table: Mapping[str, Any], known: tuple[str, ...], name: str = "") -> None:
        for field in table:
            if field not in known:
                raise self._error(f"{name}{field} is no field: there are {', '.join(known)}")

    def _read_constants(self) -> dict[str, int]:
        constants = self._document.get("constants", {})
        if not isinstance(constants, dict):
            raise self._error("[constants] must be a table")
        for name, value in constants.items():
            if not _CONSTANT.match(name) or not _is_word(value):
                raise self._error(f"constant {name} must be an upper-case name of a number of 64 bits")
        return constants

    def rules(self) -> Iterator[Rule]:
        """The rules in order; one with alternatives (op "in") becomes several of the same number."""
        tables = self._document.get("rule")
        if not isinstance(tables, list) or not tables:
            raise self._error("there is no [[rule]]: nothing would be allowed")
        for number, table in enumerate(tables, 1):
            # A file that writes its rules as one array has no line for each.
            line = self._lines[number - 1] if number <= len(self._lines) else 0
            self._where = (
                f"{self._source}:{line}: rule {number}" if line else f"{self._source}: rule {number}"
            )
            if not isinstance(table, dict):
                raise self._error("a rule must be a table")
            yield from self._read_rule(table, number, line)

    def _read_rule(self, table: Mapping[str, Any], number: int, line: int) -> Iterator[Rule]:
        self._check_fields(table, _RULE)
        calls = self._words(table, "calls")
        self._where += f" ({', '.join(calls)})"
        for call in calls:
            if not any(syscalls.number_of(call, arch) is not None for arch in syscalls.ARCHITECTURES):
                raise self._error(f"there is no system call {call!r}")
        reason = table.get("reason")
        if not isinstance(reason, str) or not reason.strip():
            raise self._error("reason is missing: say what needs this")
        for conditions in self._read_conditions(table.get("when", [])):
            yield Rule(
                calls=calls,
                conditions=conditions,
                reason=reason,
                features=frozenset(self._features(table)),
                threads=frozenset(self._threads(table)),
                action=self._action(table),
                number=number,
                line=line,
            )

    def _words(self, table: Mapping[str, Any], field: str) -> tuple[str, ...]:
        values = table.get(field)
        if not isinstance(values, list) or not values or not all(isinstance(one, str) for one in values):
            raise self._error(f"{field} must be a list of at least one string, not {values!r}")
        if len(set(values)) < len(values):
            raise self._error(f"{field} names something twice")
        return tuple(values)

    def _features(self, table: Mapping[str, Any]) -> tuple[str, ...]:
        features = self._words(table, "features")
        for feature in features:
            if not _FEATURE.match(feature):
                raise self._error(f"feature {feature!r} must be of lower-case letters, digits and -")
        return features

    def _threads(self, table: Mapping[str, Any]) -> tuple[str, ...]:
        threads = self._words(table, "threads") if "threads" in table else (PROCESS,)
        for thread in threads:
            if thread not in THREADS:
                raise self._error(f"there are no threads {thread!r}: there are {', '.join(THREADS)}")
        return threads

    def _action(self, table: Mapping[str, Any]) -> int:
        if "errno" not in table:
            return actions.ALLOW
        number = getattr(errno, str(table["errno"]), None)
        if not isinstance(number, int):
            raise self._error(f"errno must be a name such as ENOSYS, not {table['errno']!r}")
        return actions.errno(number)

    # -- conditions ----------------------------------------------------------------------------------------

    def _read_conditions(self, tables: object) -> Iterator[tuple[Condition, ...]]:
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self._error("when must be a list of conditions")
        alternatives = [self._read_condition(table, f"when[{n}]") for n, table in enumerate(tables)]
        arguments = [choices[0].index for choices in alternatives]
        for argument in arguments:
            if arguments.count(argument) > 1:
                raise self._error(
                    f"when has two conditions on argument {argument}: make them one, or two rules"
                )
        yield from product(*alternatives)

    def _read_condition(self, table: Mapping[str, Any], name: str) -> list[Condition]:
        self._check_fields(table, _CONDITION, f"{name}.")
        index, op, bits = table.get("arg"), table.get("op"), table.get("bits", 64)
        if type(index) is not int or not 0 <= index <= 5:
            raise self._error(f"{name}.arg must be a number from 0 to 5, not {index!r}")
        if op not in _OPS:
            raise self._error(f"{name}.op must be one of {', '.join(_OPS)}, not {op!r}")
        if bits not in (32, 64) or (bits == 32 and op not in ("eq", "in", "masked")):
            raise self._error(f"{name}.bits must be 64, or 32 with eq, in or masked, not {bits!r}")
        if ("mask" in table) != (op == "masked"):
            raise self._error(f"{name}.mask goes with op masked, which needs it")
        full = INT_BITS if bits == 32 else ALL_BITS
        mask = full if op in ("eq", "in") and bits == 32 else None
        if op == "masked":
            mask = self._number(table["mask"], f"{name}.mask", full)
            if mask == 0:
                raise self._error(f"{name}.mask is 0: this would always hold")
        values = table.get("value")
        if op == "in" and (not isinstance(values, list) or len(values) < 2):
            raise self._error(f"{name}.value must be a list of at least two values")
        word = "eq" if op == "in" else op
        found = [
            self._condition(index, "masked" if mask is not None else word, value, mask, f"{name}.value", full)
            for value in (values if isinstance(values, list) and op == "in" else [values])
        ]
        if len({condition.value for condition in found}) < len(found):
            raise self._error(f"{name}.value names something twice")
        return found

    def _condition(
        self, index: int, op: str, raw: object, mask: int | None, name: str, full: int
    ) -> Condition:
        if isinstance(raw, str) and _VARIABLE.match(raw):
            return Condition(index, op, raw, mask, raw)
        value = self._number(raw, name, full)
        if mask is not None and value & ~mask:
            raise self._error(f"{name} has bits that the mask has not: this can never hold")
        return Condition(index, op, value, mask, raw if isinstance(raw, str) else "")

    def _number(self, raw: Any, name: str, full: int) -> int:
        """A number, or the names of numbers: "A", "A|B", "~A|B" for all bits that neither has."""
        value = raw
        if isinstance(raw, str):
            value = 0
            for word in raw.removeprefix("~").split("|"):
                if word not in self._constants:
                    raise self._error(f"{name}: {word!r} is not in [constants]")
                value |= self._constants[word]
            if raw.startswith("~"):
                value = ~value & full
        if not isinstance(value, int) or not _is_word(value) or value > full:
            raise self._error(
                f"{name} must be a number of {full.bit_length()} bits or a constant's name, not {raw!r}"
            )
        return value


def _is_word(value: object) -> bool:
    return type(value) is int and 0 <= value <= ALL_BITS
