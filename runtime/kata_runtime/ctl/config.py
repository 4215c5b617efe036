"""kata-ctl config: what operators ask of configuration files. Each action is a module of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata_runtime.ctl import (
    config_annotation,
    config_diff,
    config_lint,
    config_migrate,
    config_reference,
    config_show,
    config_test,
)

if TYPE_CHECKING:
    from kata_runtime.ctl.main import Subparsers

ACTIONS = (
    config_lint,
    config_show,
    config_diff,
    config_test,
    config_migrate,
    config_annotation,
    config_reference,
)


def add_parser(subparsers: Subparsers) -> None:
    """Register the command and its actions."""
    parser = subparsers.add_parser("config", help="check, show, compare and convert configuration files")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for action in ACTIONS:
        action.add_parser(actions)
