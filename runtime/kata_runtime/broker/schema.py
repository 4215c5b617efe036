"""Whether a value fits a schema of `kata_hypervisor.api_request`, and what of it does not."""

from __future__ import annotations

from kata_hypervisor.api_request import DISK, LIMITS, NAME, SET, Saved, is_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    from kata_hypervisor.api_request import Schema

_SETS = "/dev/fdset/"


class Fitting:
    """What fits in one pod.

    disks: paths of the disks that the VMM is shown, which may change. saved: the directory that the machine
    is saved in, None for none. limits: of each disk, None for none.
    """

    def __init__(
        self,
        disks: Collection[str] = (),
        saved: str | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        self._disks = disks
        self._saved = saved
        self._limits = limits

    def find_misfit(self, schema: Schema, value: Any, where: str = "it") -> str | None:
        """Return the first part of a value that does not fit, in words."""
        if isinstance(schema, dict):
            return self._find_in_object(schema, value, where)
        return None if self._fits(schema, value) else f"{where} is {str(value)[:100]!r}"

    def _find_in_object(self, schema: dict[str, Schema], value: Any, where: str) -> str | None:
        if not isinstance(value, dict):
            return f"{where} is {str(value)[:100]!r}"
        known = {key.removesuffix("?"): (inner, key.endswith("?")) for key, inner in schema.items()}
        for key in value:
            if key not in known:
                return f"{where} has {key[:100]!r}"
        for key, (inner, optional) in known.items():
            if inner is LIMITS and self._limits is None:
                if key in value:
                    return f"{where} has {key!r}"
            elif key not in value:
                if not optional:
                    return f"{where} has no {key!r}"
            elif (wrong := self.find_misfit(inner, value[key], repr(key))) is not None:
                return wrong
        return None

    def _fits(self, schema: Schema, value: Any) -> bool:
        if isinstance(schema, tuple):
            return any(self.find_misfit(inner, value) is None for inner in schema)
        if schema is bool:
            return isinstance(value, bool)
        if isinstance(schema, range):
            return type(value) is int and value in schema
        if schema is NAME:
            return isinstance(value, str) and is_name(value)
        if schema is DISK:
            return isinstance(value, str) and value in self._disks
        if schema is LIMITS:
            return bool(value == self._limits)
        if schema is SET:
            number = value.removeprefix(_SETS) if isinstance(value, str) else ""
            return number.isascii() and number.isdecimal() and value == _SETS + number
        if isinstance(schema, Saved):
            return self._saved is not None and value == schema.form.format(self._saved)
        return type(value) is type(schema) and bool(value == schema)
