"""Why an annotation of a pod takes effect, or does not: allowed, valid, and the value in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kata_configuration.diagnostics import Code, Diagnostic, KeyPath, Severity
from kata_configuration.layer import annotation_allowlist, pod_annotations
from kata_configuration.layer.layers import annotation_place
from kata_configuration.loading import Examination, configuration_of, examine
from kata_configuration.tell import effective
from kata_configuration.tell.effective import Value

_REFUSALS = frozenset(
    code.number for code in (Code.ANNOTATION_REFUSED, Code.ANNOTATION_PATH, Code.ANNOTATION_UNKNOWN)
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a configuration makes of one annotation.

    name: whole. path: of the key that it names, or None. refusals: why it is not allowed. faults: why its
    value is not valid. others: errors of the configuration, or of other annotations, that stop the pod.
    value: in force after all, or None when the pod does not start.
    """

    name: str
    path: KeyPath | None
    refusals: tuple[Diagnostic, ...]
    faults: tuple[Diagnostic, ...]
    others: tuple[Diagnostic, ...]
    value: Value | None


def whole_name(key: str) -> str:
    """Return the whole name of an annotation; what is short is a hypervisor's key, or TABLE.KEY."""
    if key.startswith(pod_annotations.ROOT):
        return key
    family = key.partition(".")[0]
    return annotation_allowlist.PREFIX + (key if family in pod_annotations.FAMILIES else f"hypervisor.{key}")


def explain(path: Path, name: str, annotations: Mapping[str, str]) -> Explanation:
    """Explain an annotation that is among those of a pod, or would be.

    Raises:
        ConfigurationError: the configuration file cannot be read.
    """
    present = name in annotations
    examination = examine(path, check_host=False, annotations={name: "", **annotations})
    findings = [found for found in examination.diagnostics if found.path == annotation_place(name)]
    faults = [found for found in findings if found.code not in _REFUSALS and found.severity is Severity.ERROR]
    if not present:
        examination = examine(path, check_host=False, annotations=annotations)
    key = pod_annotations.path_of(examination.merged.tree, name)
    return Explanation(
        name,
        key,
        refusals=tuple(found for found in findings if found.code in _REFUSALS),
        faults=tuple(faults) if present else (),
        others=tuple(
            found
            for found in examination.diagnostics
            if found.severity is Severity.ERROR and found.path != annotation_place(name)
        ),
        value=None if examination.faulty else _value(examination, key),
    )


def _value(examination: Examination, key: KeyPath | None) -> Value | None:
    configuration = configuration_of(examination, "")
    return next((item for item in effective.values(configuration, defaults=True) if item.path == key), None)
