"""What the operator wrote: finding, loading and linting configuration.toml.

Importing this package is cheap; the parsers and models are imported when a name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kata_configuration.configuration import Configuration
    from kata_configuration.diagnostics import Diagnostic, Severity
    from kata_configuration.errors import ConfigurationError
    from kata_configuration.layer.discovery import discover
    from kata_configuration.loading import lint, load

__all__ = ["Configuration", "ConfigurationError", "Diagnostic", "Severity", "discover", "lint", "load"]

_HOMES = {
    "Configuration": "configuration",
    "ConfigurationError": "errors",
    "Diagnostic": "diagnostics",
    "Severity": "diagnostics",
    "discover": "layer.discovery",
    "lint": "loading",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
