"""What a machine begins with: a kernel that boots, or the state of a machine that was saved."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from kata_hypervisor.contract import VmSpec
from kata_hypervisor.dragonball.machine import Board, Machine
from kata_hypervisor.dragonball.template import Saving, Template, identity_of


class BootSource(abc.ABC):
    """See the module. warnings: what the operator should know of it."""

    warnings: tuple[str, ...] = ()

    @abc.abstractmethod
    def prepare(self, board: Board) -> Board:
        """Say what the machine's memory has from its start."""

    @abc.abstractmethod
    def fill(self, machine: Machine) -> None:
        """Make the processors of a machine that has all devices; blocks.

        Raises:
            LaunchError, SnapshotError: what it begins with is missing, damaged, or does not fit.
        """


class Boot(BootSource):
    """A kernel with its command line."""

    def __init__(self, spec: VmSpec, command_line: str, *warnings: str) -> None:
        self._spec = spec
        self._command_line = command_line
        self.warnings = warnings

    def prepare(self, board: Board) -> Board:
        """See BootSource."""
        return board

    def fill(self, machine: Machine) -> None:
        """See BootSource."""
        machine.load(self._spec.kernel, self._spec.initrd, self._command_line)


class Restore(BootSource):
    """A template. private: whether its memory is mapped, not copied: virtiofsd would not see the guest's."""

    def __init__(self, template: Template, *, private: bool) -> None:
        self._template = template
        self._private = private

    def prepare(self, board: Board) -> Board:
        """See BootSource."""
        return replace(board, content=self._template.memory, private=self._private and not board.huge)

    def fill(self, machine: Machine) -> None:
        """See BootSource."""
        self._template.restore(machine)
        self._template.close()


def choose(
    spec: VmSpec, command_line: str, devices: Sequence[object], ours: ExitStack
) -> tuple[BootSource, Saving | None]:
    """Decide what the machine begins with, and whether it will be saved. ours: closes what is opened here.

    Raises:
        SnapshotError: the template is missing, stale or damaged; or none can be made where it is wanted.
    """
    if spec.template is None and spec.saved_to is None:
        return Boot(spec, command_line), None
    identity, saving = identity_of(spec, command_line, devices), None
    if spec.saved_to is not None:
        saving = Saving(spec.saved_to, spec, identity)
        ours.callback(saving.close)
    if spec.template is None:
        return Boot(spec, command_line), saving
    template = Template(spec.template)
    ours.callback(template.close)
    if difference := template.check(spec, identity):
        warning = f"this machine is booted, not started from its template: {difference}"
        return Boot(spec, command_line, warning), saving
    return Restore(template, private=spec.shared is None), saving


def describe(spec: VmSpec) -> dict[str, str]:
    """What the machine's template is a template of. Raises SnapshotError."""
    assert spec.template is not None
    template = Template(spec.template)
    try:
        return template.describe(spec, identity_of(spec, "", ()))
    finally:
        template.close()
