"""Loading and linting: read, parse, judge, place. Loading refuses what linting calls an error."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kata_configuration import discovery, source
from kata_configuration.checking import Judgement, judge
from kata_configuration.diagnostics import Code, Diagnostic, Finding, Severity, key_name
from kata_configuration.errors import ConfigurationError
from kata_configuration.syntax import Parsed, parse

if TYPE_CHECKING:
    from kata_configuration.models import Hypervisor, KataAgent, Runtime
    from kata_configuration.spans import SpanIndex

# What an unreadable statement may be the cause of.
_UNCERTAIN = frozenset({Code.MISSING_KEY, Code.MISSING_TABLE, Code.RELATION})


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration that was understood completely.

    path, sha256: the file, and the hash of its bytes in hexadecimal. source: the rule of discovery that
    chose it. hypervisor: the table that `hypervisor_name` selects. warnings: what was found that does not
    stop loading.
    """

    path: Path
    sha256: str
    source: str
    hypervisor_name: str
    hypervisor: Hypervisor
    agent: KataAgent
    runtime: Runtime
    warnings: tuple[Diagnostic, ...]

    def __str__(self) -> str:
        """Say on one line, for the log, which file is in force."""
        return f"configuration {self.path} (sha256 {self.sha256}, chosen by {self.source})"


def load(path: Path, *, check_host: bool = True, source: str = discovery.CONFIG_PATH) -> Configuration:
    """Load a file. `check_host` also demands that its paths exist here; `source` is discovery's rule.

    Raises:
        ConfigurationError: the file has faults; all of them are in its diagnostics, with their places.
    """
    content, judgement, diagnostics = _examine(path, check_host, trusted_only=source == discovery.ENVIRONMENT)
    if any(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics):
        raise ConfigurationError(diagnostics)
    tables = judgement.tables
    runtime = cast("Runtime", tables["runtime",])
    return Configuration(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        source=source,
        hypervisor_name=runtime.hypervisor_name,
        hypervisor=cast("Hypervisor", tables["hypervisor", runtime.hypervisor_name]),
        agent=cast("KataAgent", tables["agent", runtime.agent_name]),
        runtime=runtime,
        warnings=diagnostics,
    )


def lint(path: Path, *, check_host: bool = True) -> tuple[Diagnostic, ...]:
    """Return everything that is to be said about a file, ordered by place. Never raises for its contents."""
    try:
        return _examine(path, check_host)[2]
    except ConfigurationError as error:
        return error.diagnostics


def _examine(
    path: Path, check_host: bool, *, trusted_only: bool = False
) -> tuple[bytes, Judgement, tuple[Diagnostic, ...]]:
    file = source.read(path, trusted_only=trusted_only)
    parsed = parse(file.text)
    judgement = judge(parsed.tree, check_host=check_host)
    diagnostics = _place(path, parsed, judgement.findings)
    return file.content, judgement, diagnostics


def _place(path: Path, parsed: Parsed, findings: Sequence[Finding]) -> tuple[Diagnostic, ...]:
    """Give each fault and finding its line and column. A clean file costs nothing here."""
    placed = []
    for fault in parsed.faults:
        line, column = _position(parsed.text, fault.offset)
        placed.append(
            Diagnostic.of(
                fault.code, str(path), fault.message, fault.hint, key=fault.key, line=line, column=column
            )
        )
    if parsed.faults:
        findings = [finding for finding in findings if finding.code not in _UNCERTAIN]
    if findings:
        from kata_configuration.spans import SpanIndex

        index = SpanIndex(parsed.text)
        placed += [_place_finding(path, parsed.text, index, finding) for finding in findings]
    return tuple(sorted(placed, key=lambda diagnostic: (diagnostic.line, diagnostic.column, diagnostic.code)))


def _place_finding(path: Path, text: str, index: SpanIndex, finding: Finding) -> Diagnostic:
    line, column = _position(text, index.offset_of(finding))
    key = key_name(finding.path)
    return Diagnostic.of(
        finding.code, str(path), finding.message, finding.hint, key=key, line=line, column=column
    )


def _position(text: str, offset: int) -> tuple[int, int]:
    """Return line and column, from 1, of a character offset."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
