"""Loading and linting: read, merge, judge, place. Loading refuses what linting calls an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from kata_configuration import suggestions
from kata_configuration.configuration import Configuration
from kata_configuration.diagnostics import Code, Diagnostic, Finding, KeyPath, Severity, quoted
from kata_configuration.errors import ConfigurationError
from kata_configuration.judge.checking import Judgement, judge
from kata_configuration.judge.context import selected_hypervisor
from kata_configuration.layer import discovery, merging
from kata_configuration.layer.layers import Files, Kind, Layer, line_of, read_files
from kata_configuration.models import TABLES, own_path
from kata_configuration.parse.trust import Uids, check, trusted_uids

if TYPE_CHECKING:
    from kata_configuration.judge.rule import Rule
    from kata_configuration.models import Hypervisor, KataAgent, Runtime

# What an unreadable statement may be the cause of.
_UNCERTAIN = frozenset({Code.MISSING_KEY, Code.MISSING_TABLE, Code.RELATION})


class Examination(NamedTuple):
    """All that came out of reading and judging: also where it cannot be loaded."""

    files: Files
    layers: tuple[Layer, ...]
    merged: merging.Merged
    judgement: Judgement
    diagnostics: tuple[Diagnostic, ...]

    @property
    def faulty(self) -> bool:
        """Whether there is an error among the diagnostics."""
        return any(diagnostic.severity is Severity.ERROR for diagnostic in self.diagnostics)


def load(
    path: Path,
    *,
    check_host: bool = True,
    source: str = discovery.CONFIG_PATH,
    annotations: Mapping[str, str] | None = None,
    trusted: Uids | None = None,
) -> Configuration:
    """Load a file, its drop-ins, and the annotations of a pod's sandbox.

    check_host: also demand that its paths exist here. source: the rule of discovery that chose the file.
    trusted: see `examine`.

    Raises:
        ConfigurationError: there are faults; all of them are in its diagnostics, with their places.
    """
    if source == discovery.ENVIRONMENT and trusted is None:
        trusted = trusted_uids()
    examination = examine(path, check_host=check_host, trusted=trusted, annotations=annotations)
    if examination.faulty:
        raise ConfigurationError(examination.diagnostics)
    return configuration_of(examination, source)


def lint(
    path: Path,
    *,
    check_host: bool = True,
    trusted: Uids | None = None,
    host_rules: tuple[Rule, ...] = (),
) -> tuple[Diagnostic, ...]:
    """Return every diagnostic of a file and its drop-ins, ordered by file and place.

    Of containerd's own configuration those about this runtime are returned.

    trusted: see `examine`. host_rules: of the caller, for what this package cannot find out about this host;
    they may only warn, because loading does not apply them. Never raises for the files' contents.
    """
    from kata_configuration.judge import containerd

    try:
        files = read_files(path)
        if containerd.is_containerds(files.layers[0].tree):
            return containerds_diagnostics(files.layers[0], check_host=check_host)
        if trusted is None and check_host:
            trusted = trusted_uids()
        return examine_files(files, check_host=check_host, trusted=trusted, host_rules=host_rules).diagnostics
    except ConfigurationError as error:
        return error.diagnostics


def containerds_diagnostics(layer: Layer, *, check_host: bool) -> tuple[Diagnostic, ...]:
    """Return the diagnostics of containerd's own configuration, by place."""
    from kata_configuration.judge import containerd
    from kata_configuration.judge.placing import place_fault, place_finding

    def configured(path: str) -> containerd.Handled | None:
        try:
            configuration = load(Path(path), check_host=False)
        except ConfigurationError:
            return None
        table = configuration.hypervisor
        return containerd.Handled(configuration.hypervisor_name, table.shares_files, table.enable_annotations)

    look = configured if check_host else None
    found = [place_fault(layer, fault) for fault in layer.faults]
    with suggestions.limited():
        found += [
            place_finding(layer, finding)
            for finding in containerd.judge(layer.tree, look)
            if not layer.faults or layer.index.find(finding.path)  # else it may stand in what is unreadable
        ]
    return tuple(sorted(found, key=lambda diagnostic: (diagnostic.line, diagnostic.column, diagnostic.code)))


def configuration_of(examination: Examination, source: str) -> Configuration:
    """Return the configuration that an examination without errors has found."""
    from kata_configuration.layer.origins import Origins

    tables = examination.judgement.tables
    runtime = cast("Runtime", tables["runtime",])
    layers = examination.layers
    return Configuration(
        path=examination.files.path,
        drop_ins=examination.files.drop_ins,
        sha256=examination.files.sha256,
        source=source,
        annotations=tuple(layer.name for layer in layers if layer.kind is Kind.ANNOTATION),
        hypervisor_name=runtime.hypervisor_name,
        hypervisor=cast("Hypervisor", tables["hypervisor", runtime.hypervisor_name]),
        agent=cast("KataAgent", tables["agent", runtime.agent_name]),
        runtime=runtime,
        warnings=examination.diagnostics,
        origins=Origins(layers, examination.merged),
    )


def examine(
    path: Path,
    *,
    check_host: bool,
    trusted: Uids | None = None,
    annotations: Mapping[str, str] | None = None,
    host_rules: tuple[Rule, ...] = (),
) -> Examination:
    """Read, merge and judge a file, its drop-ins and annotations.

    trusted: the users who may change the files and their directories; None for root and the user that runs
    this where the host is checked, and for everybody where it is not.

    Raises:
        ConfigurationError: the file itself cannot be read.
    """
    if trusted is None and check_host:
        trusted = trusted_uids()
    files = read_files(path)
    return examine_files(
        files, check_host=check_host, trusted=trusted, annotations=annotations, host_rules=host_rules
    )


def examine_files(
    files: Files,
    *,
    check_host: bool,
    trusted: Uids | None = None,
    annotations: Mapping[str, str] | None = None,
    host_rules: tuple[Rule, ...] = (),
) -> Examination:
    """Merge and judge files that have been read, and annotations. trusted: None where it does not matter."""
    with suggestions.limited():
        return _examine(files, check_host, trusted, annotations, host_rules)


def _examine(
    files: Files,
    check_host: bool,
    trusted: Uids | None,
    annotations: Mapping[str, str] | None,
    host_rules: tuple[Rule, ...],
) -> Examination:
    merged = merging.merge([layer.tree for layer in files.layers])
    layers, findings = list(files.layers), list(files.unreadable)
    if annotations:
        findings += _annotate(layers, merged, annotations)
    judgement = judge(merged.tree, check_host=check_host, owner=merged.owner, host_rules=host_rules)
    incomplete = bool(files.unreadable) or any(layer.faults for layer in files.layers)
    placed = list(_place(layers, merged, _weighed(judgement.findings, merged.tree, incomplete)))
    placed += _of_drop_ins(layers, merged, files.skipped)
    if trusted is not None:
        placed += check(files.places, trusted)
    order = {layer.place: number for number, layer in enumerate(layers)}
    diagnostics = sorted(
        placed + findings,
        key=lambda found: (order.get(found.path, len(order)), found.line, found.column, found.code),
    )
    return Examination(files, tuple(layers), merged, judgement, tuple(diagnostics))


def _annotate(
    layers: list[Layer], merged: merging.Merged, annotations: Mapping[str, str]
) -> list[Diagnostic]:
    """Merge the annotations that are allowed, each as a layer, and return the diagnostics of the others."""
    if not any("kata" in name.lower() for name in annotations):
        return []  # as with plain containers, whose start need not wait for that module
    from kata_configuration.layer import pod_annotations

    applied = pod_annotations.apply(merged.tree, annotations, _finder(tuple(layers), merged))
    for name, tree in applied.trees.items():
        merged.overlay(tree, len(layers))
        layers.append(Layer(Kind.ANNOTATION, name, tree, text=annotations[name]))
    return applied.diagnostics


def _finder(layers: tuple[Layer, ...], merged: merging.Merged) -> Callable[[KeyPath], str]:
    """Return a function that says where a key stands: FILE:LINE, or only the file to write it into."""

    def where(path: KeyPath) -> str:

        layer = layers[merged.owner(path)]
        line = line_of(layer, path)
        return f"{layer.name}:{line}" if line else layer.name

    return where


def _weighed(
    findings: list[Finding], tree: Mapping[str, Any], incomplete: bool
) -> Iterator[tuple[Finding, Severity]]:
    """Yield the findings that stand, with their severity.

    A table of a hypervisor that is not selected may be incomplete, and its faults stop nothing.
    """
    selected = selected_hypervisor(tree)
    for finding in findings:
        code, path = finding.code, finding.path
        if incomplete and code in _UNCERTAIN:
            continue
        severity = code.severity
        if len(path) > 2 and path[0] == "hypervisor" and own_path(path)[1] != selected:
            if code is Code.MISSING_KEY:
                continue
            if severity is Severity.ERROR:
                severity = Severity.WARNING
        yield finding, severity


def _place(
    layers: list[Layer], merged: merging.Merged, findings: Iterator[tuple[Finding, Severity]]
) -> Iterator[Diagnostic]:
    """Give each fault and finding its place. Clean files cost nothing here: none is parsed for places."""
    todo = list(findings)
    if not todo and not merged.replaced and not any(layer.faults for layer in layers):
        return
    from kata_configuration.judge.placing import place_fault, place_finding

    for layer in layers:
        yield from (place_fault(layer, fault) for fault in layer.faults)
    for finding, severity in todo:
        yield place_finding(layers[merged.owner(finding.path)], finding, severity)
    for replaced in merged.replaced:
        layer = layers[replaced.by]
        if layer.kind is Kind.DROP_IN:
            lost = ", ".join(quoted(item) for item in replaced.lost)
            message = f"replaces the array of {layers[replaced.owner].name}, and drops {lost}"
            yield place_finding(
                layer, Finding(Code.ARRAY_REPLACED, replaced.path, message, "repeat here what is to stay")
            )


def _of_drop_ins(
    layers: list[Layer], merged: merging.Merged, skipped: tuple[Path, ...]
) -> Iterator[Diagnostic]:
    """Yield what is surprising about drop-ins: files that are none, tables in vain, and who wins."""
    for file in skipped:
        message = "is not read: the name of a drop-in ends in .toml"
        yield Diagnostic.of(Code.SKIPPED, str(file), message, "rename it, or move it elsewhere")
    drop_ins = {number: layer for number, layer in enumerate(layers) if layer.kind is Kind.DROP_IN}
    if not drop_ins:
        return
    from kata_configuration.judge.placing import place_finding

    selected = selected_hypervisor(merged.tree)
    for layer in drop_ins.values():
        tables = layer.tree.get("hypervisor")
        for name in tables if isinstance(tables, dict) else ():
            path = ("hypervisor", name)
            if own_path(path) in TABLES and own_path(path)[1] != selected:
                message = f"has no effect: hypervisor_name selects {selected}"
                yield place_finding(
                    layer, Finding(Code.UNUSED, path, message, "remove the table", on_key=True)
                )
    for overridden in merged.overridden:
        if overridden.by in drop_ins and overridden.owner in drop_ins:
            first, layer = drop_ins[overridden.owner], drop_ins[overridden.by]
            message = f"is set by {first.name} too; this one wins, whose name comes later"
            finding = Finding(Code.OVERRIDDEN, overridden.path, message, "keep one of them", on_key=True)
            yield place_finding(layer, finding)
