"""What loading returns. Importing this imports no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from kata_configuration.diagnostics import Diagnostic
    from kata_configuration.layer.origins import Origins
    from kata_configuration.models import Hypervisor, KataAgent, Runtime


class Configuration(NamedTuple):
    """A configuration that was understood completely.

    path, drop_ins: the file, and those merged over it, in order. sha256: their identity (see
    `layer.reading`), in hexadecimal. source: the rule of discovery that chose the file. annotations: the
    names of the pod's annotations that are in force. hypervisor: the table that `hypervisor_name` selects.
    warnings: what was found that does not stop loading. origins: where each value is from; None of a
    configuration that was kept.
    """

    path: Path
    drop_ins: tuple[Path, ...]
    sha256: str
    source: str
    annotations: tuple[str, ...]
    hypervisor_name: str
    hypervisor: Hypervisor
    agent: KataAgent
    runtime: Runtime
    warnings: tuple[Diagnostic, ...]
    origins: Origins | None = None

    def __str__(self) -> str:
        """Say on one line, for the log, which files are in force, and how many annotations."""
        files = f"{self.path}{_plus(len(self.drop_ins), 'drop-in')}"
        return (
            f"configuration {files} (sha256 {self.sha256}, chosen by {self.source})"
            f"{_plus(len(self.annotations), 'annotation')}"
        )


def _plus(number: int, noun: str) -> str:
    return f" + {number} {noun}{'' if number == 1 else 's'}" if number else ""
