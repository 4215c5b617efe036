"""`kata-ctl env`: what is in force here: version, configuration and why, programs, kernel, confinement."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kata_runtime.version import VERSION

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_runtime.ctl.findings import Finding
    from kata_runtime.ctl.main import Subparsers

SHOWN, NO_CONFIGURATION = 0, 1
SHIM = "containerd-shim-kata-v2"
INDENT = "  "

Facts = dict[str, Any]


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "env",
        help="show which configuration, programs and confinement are in force",
        description="Show what is in force here, and for the configuration, why that file and no other.",
        epilog="Exit status: 0 shown, 1 shown, and there is no configuration that loads.",
    )
    parser.add_argument("--config", metavar="FILE", help="as if containerd passed this ConfigPath")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the facts and return the exit status."""
    facts = gather(arguments.config, os.environ)
    print(json.dumps(facts, indent=2) if arguments.json else "\n".join(_lines(facts)))
    return NO_CONFIGURATION if facts["configuration"]["faults"] else SHOWN


def gather(config_path: str | None, environ: Mapping[str, str]) -> Facts:
    """Collect the facts, by topic; every value is a string, a list or a dictionary of such."""
    from kata_configuration import ConfigurationError, discover, load

    configuration: Configuration | None = None
    faults: list[str] = []
    try:
        path, rule = discover(config_path, environ)
        configuration = load(path, check_host=False, source=rule)
    except ConfigurationError as error:
        faults = str(error).splitlines()
    return {
        "runtime": {
            "version": VERSION,
            "python": platform.python_version(),
            "shim": shutil.which(SHIM) or f"{SHIM} is not on PATH (kata-ctl shim install)",
        },
        "configuration": _configuration(config_path, environ, configuration, faults),
        **_host(configuration),
    }


def _configuration(
    config_path: str | None,
    environ: Mapping[str, str],
    configuration: Configuration | None,
    faults: list[str],
) -> Facts:
    from kata_configuration.layer.precedence import survey

    precedence = [
        {"rule": place.rule, "path": str(place.path or ""), "state": place.state}
        for place in survey(config_path, environ)
    ]
    drop_ins = [str(path) for path in configuration.drop_ins] if configuration else []
    entries = list(configuration.hypervisor.enable_annotations) if configuration else []
    listed = ", ".join(entries) or "none"
    precedence += [
        {"rule": "drop-ins", "path": "config.d/*.toml beside the file", "state": f"{len(drop_ins)} in force"},
        {"rule": "annotations", "path": "of the pod", "state": f"allowed: {listed}"},
    ]
    return {
        "in force": str(configuration) if configuration else "none",
        "drop-ins": drop_ins,
        "precedence": precedence,
        "faults": faults,
    }


def _host(configuration: Configuration | None) -> Facts:
    """Say what would run a pod, of the configuration in force or, without one, of the defaults."""
    from kata_runtime.ctl import check

    setup = check.setup_of(configuration) if configuration else check.read_setup()
    facts: Facts = {}
    if configuration is not None:
        table = configuration.hypervisor
        facts["hypervisor"] = {
            "name": configuration.hypervisor_name,
            "program": _cause(check.check_vmm(setup)),
            "accelerator": setup.accelerator,
            "confinement": confinement(configuration),
            "shim seccomp": seal(configuration),
            "guest seccomp": "off" if configuration.runtime.disable_guest_seccomp else "each container's own",
        }
        if table.honors_unconfined is not None:
            facts["hypervisor"]["unconfined"] = _unconfined(configuration)
        if table.file_daemon is not None:
            facts["hypervisor"]["virtiofsd"] = _cause(check.check_virtiofsd(setup))
    facts["drivers"] = _drivers(configuration)
    facts["host"] = {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "kvm": _cause(check.check_kvm(setup)),
        "cgroups": _cause(check.check_cgroups(setup)),
        "containerd": _cause(check.check_containerd(setup)),
    }
    facts["guest image"] = _guest_image(configuration)
    return facts


def _guest_image(configuration: Configuration | None) -> Facts:
    """What the guest is made of, and how old that is."""
    from kata_runtime.image import builder, manifest

    files = configuration.hypervisor.guest_files if configuration else ()
    directory = files[-1].parent if files else builder.DEFAULT_OUTPUT
    made = manifest.read(directory)
    if made is None:
        return {"directory": f"{directory} has no {manifest.MANIFEST} of this version's kata-ctl image build"}
    return {
        "directory": str(directory),
        "agent": made.agent,
        "release": made.suite,
        "kernel": made.kernel,
        "as of": f"{made.newest}, when the newest of its packages was made (kata-ctl image build)",
        "packages": [f"{package.name} {package.version}" for package in made.packages],
    }


def _drivers(configuration: Configuration | None) -> Facts:
    from kata_hypervisor import registry
    from kata_runtime.ctl.driver_report import describe

    programs = {configuration.hypervisor_name: configuration.hypervisor.program} if configuration else {}
    return {info.name: describe(info.name, programs.get(info.name)) for info in registry.DRIVERS}


def seal(configuration: Configuration) -> str:
    """What holds the runtime's own process."""
    from kata_hypervisor.driver_policy import rules_of
    from kata_hypervisor.errors import HypervisorError
    from kata_hypervisor.seccomp import actions
    from kata_hypervisor.seccomp.policy import PROCESS, load_policy

    mode = configuration.runtime.shim_seccomp
    if _in_process(configuration) and not configuration.hypervisor.confined:
        mode = "off"
    if mode == "off":
        return "off: the runtime's process runs without a seccomp filter"
    try:
        rules = rules_of(load_policy(), configuration.hypervisor_name, PROCESS)
    except HypervisorError as error:
        return f"{mode}, but: {error}"
    calls = {call for rule in rules for call in rule.calls if rule.action == actions.ALLOW}
    consequence = "end the pod" if mode == "enforce" else "are let through, and named in the log"
    return f"{mode}: {len(calls)} system calls are allowed (kata-ctl seccomp show), others {consequence}"


def confinement(configuration: Configuration) -> str:
    """What the configuration asks of the VMM's confinement."""
    table = configuration.hypervisor
    if _in_process(configuration):
        return "the VMM is the runtime's own process: see shim seccomp"
    if not table.confined:
        return "off: the VMM runs without a seccomp filter"
    return f"seccomp: {table.seccomp_setting}"


def _unconfined(configuration: Configuration) -> str:
    """What becomes of a container that comes without a seccomp profile."""
    from kata_hypervisor import registry

    if configuration.hypervisor.honors_unconfined:
        return f"honored: {registry.info_of(configuration.hypervisor_name).unconfined}"
    return "not honored: the filter is on, also for a container without a seccomp profile"


def _in_process(configuration: Configuration) -> bool:
    from kata_hypervisor import registry

    return registry.info_of(configuration.hypervisor_name).in_process


def _cause(finding: Finding) -> str:
    return finding.cause


def _lines(facts: Facts) -> list[str]:
    from kata_configuration.tell.reports import printable

    lines = []
    for topic, group in facts.items():
        lines.append(f"{topic}:")
        for name, value in group.items():
            if isinstance(value, str):
                lines.append(f"{INDENT}{name + ':':15} {value}")
            elif value:
                lines.append(f"{INDENT}{name}:")
                lines += [f"{INDENT * 2}{_row(item)}" for item in value]
    return [printable(line) for line in lines]


def _row(item: str | Mapping[str, str]) -> str:
    if isinstance(item, str):
        return item
    return f"{item['rule']:15} {item['path']:58} {item['state']}".rstrip()
