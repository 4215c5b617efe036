"""Errors of the configuration room.

    ConfigurationError     the configuration cannot be used; carries every diagnostic

It is one class, because a caller can do one thing only: show it to the operator.
"""

from __future__ import annotations

from collections.abc import Iterable

from kata_configuration.diagnostics import Diagnostic, Severity


class ConfigurationError(Exception):
    """A configuration that cannot be used. diagnostics: all that was found, in order of place.

    As a string: one error per line, the first readable alone. Warnings are left out.
    """

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.diagnostics if fault.severity is Severity.ERROR)
