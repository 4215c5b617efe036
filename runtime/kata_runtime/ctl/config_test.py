"""`kata-ctl config test`: whether a pod would start on this host, as what machine, and confined how."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from kata_runtime.ctl.findings import Status
from kata_runtime.ctl.pod_document import Pod, add_arguments, read_pod

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_runtime.ctl.main import Subparsers

STARTS, DOES_NOT, COULD_NOT_RUN = 0, 1, 2


def add_parser(subparsers: Subparsers) -> None:
    """Register the action."""
    parser = subparsers.add_parser(
        "test",
        help="say whether a pod would start here, as what machine, and confined how",
        description="Judge a pod by the configuration, its annotations and this host. No machine is started.",
        epilog="Exit status: 0 nothing speaks against it, 1 it does not start, 2 a file could not be read.",
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Judge the pod and return the exit status."""
    from kata_configuration import ConfigurationError, discover, load
    from kata_configuration.tell.reports import printable

    try:
        pod = read_pod(arguments.pod)
        path, rule = (
            (arguments.config, "the command line") if arguments.config else discover(None, os.environ)
        )
    except (ConfigurationError, ValueError) as error:
        print(error, file=sys.stderr)
        return COULD_NOT_RUN
    try:
        configuration = load(path, source=rule, annotations=pod.annotations)
    except ConfigurationError as error:
        print(f"the pod does not start:\n{error}")
        return DOES_NOT
    for title, text in _machine(configuration, pod):
        print(printable(f"{title + ':':13}{text}"))
    against = [printable(line) for line in _against(configuration, pod)]
    for line in against:
        print(f"against it:  {line}")
    print(f"the pod {'does not start' if against else 'starts'} here, as far as can be told beforehand")
    return DOES_NOT if against else STARTS


def _machine(configuration: Configuration, pod: Pod) -> Iterator[tuple[str, str]]:
    """Yield what the pod's machine is, and what holds it."""
    from kata_runtime.ctl import env

    table, runtime = configuration.hypervisor, configuration.runtime
    yield "by", str(configuration)
    yield "machine", f"{configuration.hypervisor_name}, {_size(configuration, pod)}"
    yield "guest", ", ".join(map(str, table.guest_files)) or "a unikernel, which brings its own"
    yield "network", f"internetworking_model {runtime.internetworking_model}"
    yield "VMM", env.confinement(configuration)
    yield "shim", env.seal(configuration)
    last = runtime.sandbox_uid_base + runtime.sandbox_uid_count - 1
    yield "user", f"one of its own, from {runtime.sandbox_uid_base} to {last}"
    yield from (("warning", str(found)) for found in configuration.warnings)


def _size(configuration: Configuration, pod: Pod) -> str:
    from kata_configuration.models.base import MachineTable
    from kata_runtime.resource import sizing

    table = configuration.hypervisor
    if not isinstance(table, MachineTable):
        return f"{table.default_memory} MiB, where the container has no limit"
    static, cpus = configuration.runtime.static_sandbox_resource_mgmt, os.cpu_count() or 1
    size = sizing.size_of(pod.spec, table, static=static, host_cpus=cpus)
    return f"{size.vcpus} vCPUs, {size.memory_mib} MiB (from {size.origin})"


def _against(configuration: Configuration, pod: Pod) -> Iterator[str]:
    """Yield each reason why the pod would not start."""
    from kata_configuration.models.base import MachineTable
    from kata_runtime.ctl import check
    from kata_runtime.errors import UnsupportedError
    from kata_runtime.resource import network, sizing

    try:
        network.namespace_of(pod.spec)
    except UnsupportedError as error:
        yield str(error)
    setup, table = check.setup_of(configuration), configuration.hypervisor
    if isinstance(table, MachineTable):
        static = configuration.runtime.static_sandbox_resource_mgmt
        size = sizing.size_of(pod.spec, table, static=static, host_cpus=os.cpu_count() or 1)
        setup = replace(setup, memory_mib=size.memory_mib)
    for finding in (one(setup) for one in check.CHECKS):
        if finding.status is Status.FAIL:
            yield f"{finding.name}: {finding.cause}" + (f" ({finding.fix})" if finding.fix else "")
