"""Tables of the configuration, for drivers that are tested without a file."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

from kata_configuration import Configuration
from kata_configuration.models.qemu import QemuHypervisor

Table = TypeVar("Table", bound=BaseModel)


def make_table(model: type[Table], **settings: object) -> Table:
    """Return a table as the loader makes it: keys that are not given have their defaults."""
    return model.model_validate(settings)


def qemu_of(configuration: Configuration) -> QemuHypervisor:
    """Return the table of the hypervisor in force, which is QEMU."""
    assert isinstance(configuration.hypervisor, QemuHypervisor)
    return configuration.hypervisor
