"""`kata-ctl config explain-annotation`: why an annotation of a pod takes effect, or does not."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kata_runtime.ctl.pod_document import Pod, add_arguments, read_pod

if TYPE_CHECKING:
    from kata_configuration.tell.explaining import Explanation
    from kata_runtime.ctl.main import Subparsers

IN_FORCE, NOT_IN_FORCE, COULD_NOT_RUN = 0, 1, 2
CONTAINERD = 'pod_annotations = ["io.katacontainers.*"]'


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
    add_arguments(parser)
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
    except (ConfigurationError, ValueError) as error:
        print(error, file=sys.stderr)
        return COULD_NOT_RUN
    print(name)
    for title, text in _answers(explanation, pod):
        print(f"  {title + ':':10}{text}")
    in_force = name in pod.annotations and explanation.value is not None and not explanation.refusals
    return IN_FORCE if in_force else NOT_IN_FORCE


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
