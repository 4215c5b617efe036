"""kata-ctl factory: the template that virtual machines start from."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_hypervisor.contract import VmSpec
    from kata_runtime.ctl.main import Subparsers
    from kata_runtime.template.store import TemplateStore

DONE, FAILED = 0, 1

Action = Callable[["Configuration", "TemplateStore"], int]


def add_parser(subparsers: Subparsers) -> None:
    """Register the command and its actions."""
    parser = subparsers.add_parser("factory", help="make the template that virtual machines start from")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, action, what in (
        ("init", _init, "boot a virtual machine as far as its agent, and save it as the template"),
        ("status", _status, "say whether there is a template, and of what"),
        ("destroy", _destroy, "remove the template; virtual machines that run are not concerned"),
    ):
        one = actions.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        one.add_argument("--config", type=Path, metavar="FILE", help="default: the file in force")
        one.set_defaults(run=lambda arguments, action=action: _run(arguments, action))


def _run(arguments: argparse.Namespace, action: Action) -> int:
    """Load the configuration, and do it; return the exit status."""
    from kata_configuration import ConfigurationError
    from kata_hypervisor.errors import HypervisorError
    from kata_runtime.ctl.config_show import load_named
    from kata_runtime.ctl.errors import sentence
    from kata_runtime.errors import RuntimeRoomError
    from kata_runtime.template.store import TemplateStore

    try:
        configuration = load_named(arguments.config, {})
        path = configuration.hypervisor.template_path
        if path is None:
            return _fail(
                f"{configuration.path} turns templates off: set enable_template = true in "
                f"[hypervisor.{configuration.hypervisor_name}.factory]"
            )
        return action(configuration, TemplateStore(path))
    except (ConfigurationError, HypervisorError, RuntimeRoomError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted: the template is as it was")
    except OSError as error:
        return _fail(sentence(error))


def _init(configuration: Configuration, store: TemplateStore) -> int:
    from kata_runtime.template import maker

    started = time.monotonic()
    with store.changing(), store.making() as directory:
        if reason := maker.make(configuration, directory):
            return _fail(f"cannot make the template in {store.path}: {reason}")
        store.publish(directory)
    print(f"{store.path}: made in {time.monotonic() - started:.1f} s")
    return _status(configuration, store)


def _status(configuration: Configuration, store: TemplateStore) -> int:
    from kata_hypervisor import registry

    described = registry.describe_template(configuration.hypervisor_name, _spec(configuration))
    print(f"{store.path}: good for virtual machines of this configuration with")
    for name, value in described.items():
        print(f"  {name:<20} {value}")
    return DONE


def _destroy(configuration: Configuration, store: TemplateStore) -> int:
    with store.changing():
        there = store.destroy()
    print(f"{store.path}: " + ("removed" if there else "there is none"))
    return DONE


def _spec(configuration: Configuration) -> VmSpec:
    from kata_runtime.identity import SandboxIdentity
    from kata_runtime.pod import machine_spec

    return machine_spec.machine_of(configuration, SandboxIdentity("kata-ctl", "factory", "status"), {}, ())


def _fail(reason: str) -> int:
    print(f"kata-ctl: {reason}", file=sys.stderr)
    return FAILED
