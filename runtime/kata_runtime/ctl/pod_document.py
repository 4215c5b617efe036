"""A pod as a file describes it: Kubernetes' object, the output of crictl inspectp, a bundle's config.json."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_POD = 4 << 20

CPU_PERIOD = 100_000
"""Microseconds: the period of a quota that the kubelet writes."""

FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15} | {
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
    "Pi": 1 << 50,
}
"""Suffixes of a quantity. Source: Kubernetes, apimachinery's resource.Quantity."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod, before it is started.

    written: its annotations as its author wrote them; passed: as containerd passed them; None where unknown.
    spec: the OCI specification of its first container, or what is known of it beforehand: limits, namespaces.
    """

    written: dict[str, str] | None
    passed: dict[str, str] | None
    spec: dict[str, Any]

    @property
    def annotations(self) -> dict[str, str]:
        """What the runtime sees, or would see if containerd passed all of them."""
        return self.passed if self.passed is not None else self.written or {}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The pod's file, and the configuration that it is judged by."""
    parser.add_argument(
        "--pod",
        required=True,
        type=Path,
        metavar="FILE",
        help="JSON: of kubectl get pod -o json, of crictl inspectp, or a bundle's config.json",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: the file in force")


def read_pod(path: Path) -> Pod:
    """Read a pod.

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
            return Pod(None, _annotations(path, document, "annotations"), document)
        if "status" in document and "info" in document:  # Source: cri-tools, crictl inspectp
            passed = _annotations(path, document, "info", "runtimeSpec", "annotations")
            spec = _object(path, document, "info", "runtimeSpec")
            return Pod(_annotations(path, document, "status", "annotations"), passed, spec)
        if document.get("kind") == "Pod":
            return _pod(path, document)
        if isinstance(document.get("spec"), dict) and "template" in document["spec"]:
            return _pod(path, _object(path, document, "spec", "template"))
    raise ValueError(f"{path}: is no pod, no output of crictl inspectp, and no OCI config.json")


def _pod(path: Path, document: dict[str, Any]) -> Pod:
    annotations = _annotations(path, document, "metadata", "annotations")
    return Pod(annotations, None, _first_container(path, _object(path, document, "spec"), annotations))


def _object(path: Path, document: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return the object that stands at a path of keys; empty where there is none."""
    found: Any = document
    for key in keys:
        found = found.get(key) or {}
        if not isinstance(found, dict):
            raise ValueError(f"{path}: {'.'.join(keys)}: {key} is not an object")
    result: dict[str, Any] = found
    return result


def _annotations(path: Path, document: dict[str, Any], *keys: str) -> dict[str, str]:
    found = _object(path, document, *keys)
    if not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{path}: {'.'.join(keys)}: a value is not a string")
    return dict(found)


# -- what the kubelet and containerd make of a pod ----------------------------------------------------------


def _first_container(path: Path, spec: dict[str, Any], annotations: dict[str, str]) -> dict[str, Any]:
    """What is known of the OCI specification of a pod's first container: its namespaces, the pod's limits.

    Source: the kubelet's calculateSandboxResources; containerd's annotations of a sandbox, sandbox-cpu-quota,
    sandbox-cpu-period and sandbox-memory.
    """
    hosts = spec.get("hostNetwork") is True
    cpus, memory = _limit(path, spec, "cpu"), _limit(path, spec, "memory")
    sums = {"sandbox-cpu-quota": int(cpus * CPU_PERIOD), "sandbox-cpu-period": CPU_PERIOD}
    sums["sandbox-memory"] = int(memory)
    given = {f"io.kubernetes.cri.{name}": str(value) for name, value in sums.items()}
    namespaces = [] if hosts else [{"type": "network", "path": "/var/run/netns/POD"}]
    return {"annotations": {**annotations, **given}, "linux": {"namespaces": namespaces}}


def _limit(path: Path, spec: dict[str, Any], name: str) -> float:
    """The larger of what its containers may use together and what an init container may; 0 is no limit."""
    together = sum(_limits(path, spec, "containers", name))
    return max([together, *_limits(path, spec, "initContainers", name)])


def _limits(path: Path, spec: dict[str, Any], kind: str, name: str) -> list[float]:
    containers = spec.get(kind) or []
    if not isinstance(containers, list) or not all(isinstance(one, dict) for one in containers):
        raise ValueError(f"{path}: spec.{kind} is not an array of objects")
    limits = (_object(path, one, "resources", "limits").get(name, "0") for one in containers)
    return [_quantity(path, str(limit)) for limit in limits]


def _quantity(path: Path, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|[kMGTP]|[KMGTP]i)?", text)
    if match is None:
        raise ValueError(f"{path}: {text!r} is not a quantity of Kubernetes, such as 500m, 2 or 1Gi")
    number, suffix = float(match[1]), match[2] or ""
    return number / 1000 if suffix == "m" else number * FACTORS[suffix]
