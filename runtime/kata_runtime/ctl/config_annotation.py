"""`kata-ctl config explain-annotation`: why an annotation of a pod takes effect, or does not."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kata_configuration.tell.explaining import Explanation
    from kata_runtime.ctl.main import Subparsers

IN_FORCE, NOT_IN_FORCE, COULD_NOT_RUN = 0, 1, 2
MAX_POD = 4 << 20
CONTAINERD = 'pod_annotations = ["io.katacontainers.*"]'


@dataclass(frozen=True, slots=True)
class Pod:
    """The annotations of a pod: as its author wrote them, and as containerd passed them, where known."""

    written: dict[str, str] | None
    passed: dict[str, str] | None

    @property
    def annotations(self) -> dict[str, str]:
        """What the runtime sees, or would see if containerd passed all of them."""
        return self.passed if self.passed is not None else self.written or {}


def add_parser(subparsers: Subparsers) -> None:
    """Register the action."""
    parser = subparsers.add_parser(
        "explain-annotation",
        help="say why an annotation of a pod takes effect, or does not",
        description="Say whether an annotation is passed, allowed and valid, and which value is in force.",
        epilog="Exit status: 0 it is in force, 1 it is not, 2 a file could not be read.",
    )
    parser.add_argument(
        "key",
        metavar="KEY",
        help='the annotation\'s name, or its end: "default_memory", "agent.enable_debug"',
    )
    parser.add_argument(
        "--pod",
        required=True,
        type=Path,
        metavar="FILE",
        help="JSON: of kubectl get pod -o json, of crictl inspectp, or a bundle's config.json",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: the file in force")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Explain the annotation and return the exit status."""
    from kata_configuration import ConfigurationError, discover
    from kata_configuration.tell import explaining

    try:
        pod = read_pod(arguments.pod)
        path = arguments.config or discover(None, os.environ)[0]
        name = explaining.whole_name(arguments.key)
        explanation = explaining.explain(path, name, pod.annotations)
    except (ConfigurationError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return COULD_NOT_RUN
    print(name)
    for title, text in _answers(explanation, pod):
        print(f"  {title + ':':10}{text}")
    in_force = name in pod.annotations and explanation.value is not None and not explanation.refusals
    return IN_FORCE if in_force else NOT_IN_FORCE


def read_pod(path: Path) -> Pod:
    """Read the annotations of a pod.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is none of the documents that are understood.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_POD + 1)
    if len(raw) > MAX_POD:
        raise ValueError(f"{path}: is larger than {MAX_POD >> 20} MiB")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: is not JSON; write one with kubectl get pod NAME -o json") from None
    if isinstance(document, dict):
        if "ociVersion" in document:
            return Pod(None, _annotations(path, document, "annotations"))
        if "status" in document and "info" in document:  # Source: cri-tools, crictl inspectp
            passed = _annotations(path, document, "info", "runtimeSpec", "annotations")
            return Pod(_annotations(path, document, "status", "annotations"), passed)
        if document.get("kind") == "Pod":
            return Pod(_annotations(path, document, "metadata", "annotations"), None)
        if isinstance(document.get("spec"), dict) and "template" in document["spec"]:
            return Pod(_annotations(path, document, "spec", "template", "metadata", "annotations"), None)
    raise ValueError(f"{path}: is no pod, no output of crictl inspectp, and no OCI config.json")


def _annotations(path: Path, document: dict[str, Any], *keys: str) -> dict[str, str]:
    """Return the annotations that stand at a path of keys; empty where there are none."""
    found: Any = document
    for key in keys:
        found = found.get(key) or {}
        if not isinstance(found, dict):
            raise ValueError(f"{path}: {'.'.join(keys)}: {key} is not an object")
    if not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{path}: {'.'.join(keys)}: a value is not a string")
    return dict(found)


def _answers(explanation: Explanation, pod: Pod) -> Iterator[tuple[str, str]]:
    """Yield what is asked of an annotation, with the answer."""
    from kata_configuration.diagnostics import quoted
    from kata_configuration.parse.toml_text import value_text
    from kata_configuration.tell.reports import sentence

    yield "passed", _passed(explanation.name, pod)
    if explanation.refusals:
        yield from (("allowed", f"no: {sentence(found)}") for found in explanation.refusals)
    else:
        yield "allowed", "yes"
    if explanation.faults:
        yield from (("valid", f"no: {sentence(found)}") for found in explanation.faults)
    elif explanation.name in pod.annotations and not explanation.refusals:
        yield "valid", f"yes: {quoted(pod.annotations[explanation.name])}"
    yield from (("also", str(found)) for found in explanation.others)
    if explanation.value is not None:
        value = "none" if explanation.value.value is None else value_text(explanation.value.value)
        yield "in force", f"{value} ({explanation.value.origin})"
    elif explanation.path is not None:
        yield "in force", "nothing: the pod does not start"


def _passed(name: str, pod: Pod) -> str:
    """Say whether containerd hands the annotation to the runtime."""
    if pod.passed is not None and name in pod.passed:
        return "yes"
    if pod.written is None:
        return "no: it is not among the annotations that containerd passed; see its pod_annotations"
    if name not in pod.written:
        from kata_configuration.layer.pod_annotations import near_miss

        meant = next((other for other in pod.written if near_miss(other) == name), None)
        return f"no: the pod does not have it, but {meant}" if meant else "no: the pod does not have it"
    where = f"{CONTAINERD} in the runtime's table of containerd's config.toml"
    if pod.passed is None:
        return f"the pod has it; containerd passes it on with {where}"
    return f"no: the pod has it, and containerd does not pass it on: write {where}"
