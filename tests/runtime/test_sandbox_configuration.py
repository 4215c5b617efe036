"""What a sandbox loads: the file that containerd names, and the annotations of its first container."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from kata_configuration import Configuration, ConfigurationError
from kata_configuration.plain_table import PlainTable
from kata_runtime.broker.client import Broker
from kata_runtime.identity import SandboxIdentity
from kata_runtime.logging import HYPERVISOR
from kata_runtime.pod.boot import Boot

PREFIX = "io.katacontainers.config."

OWN_NETWORK = {"linux": {"namespaces": [{"type": "network"}]}}


async def load(path: Path, annotations: dict[str, str]) -> Configuration:
    """Take a boot's first stage, which asks nothing of the broker."""
    identity = SandboxIdentity("/run/containerd/containerd.sock", "default", "pod")
    boot = Boot(
        identity, cast("Broker", SimpleNamespace()), {"annotations": annotations, **OWN_NETWORK}, inherited=0
    )
    return await boot.configure(str(path))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of which this host has everything, and which allows one annotation."""
    monkeypatch.setattr("kata_configuration.kept.ROOT", tmp_path / "kept")
    monkeypatch.setattr("kata_configuration.judge.host.JIT", tmp_path / "jit")
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)
    path = tmp_path / "configuration.toml"
    path.write_text(
        f'[hypervisor.qemu]\npath = "{program}"\nkernel = "{program}"\nimage = "{program}"\n'
        'accelerator = "tcg"\nshared_fs = "none"\nenable_annotations = ["default_memory"]\n'
    )
    return path


async def test_an_annotation_that_is_allowed_is_in_force(path: Path) -> None:
    names = {f"{PREFIX}hypervisor.default_memory": "256", "io.kubernetes.cri.sandbox-id": "x"}
    configuration = await load(path, names)
    assert configuration.hypervisor.default_memory == 256
    assert configuration.annotations == (f"{PREFIX}hypervisor.default_memory",)


async def test_one_that_is_refused_fails_the_pod(path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await load(path, {f"{PREFIX}hypervisor.default_vcpus": "2"})
    assert str(caught.value) == (
        f"annotation {PREFIX}hypervisor.default_vcpus: error[KATA701] hypervisor.qemu.default_vcpus: is "
        "refused: enable_annotations of [hypervisor.qemu] does not list it (write enable_annotations = "
        f'["default_memory", "default_vcpus"] in [hypervisor.qemu], {path}:7) [security]'
    )


async def test_drop_ins_are_in_force(path: Path) -> None:
    (path.parent / "config.d").mkdir()
    (path.parent / "config.d" / "10.toml").write_text("[hypervisor.qemu]\ndefault_memory = 256\n")
    configuration = await load(path, {})
    assert configuration.hypervisor.default_memory == 256
    assert len(configuration.drop_ins) == 1


async def test_what_one_pod_has_loaded_the_next_one_needs_not_parse(path: Path) -> None:
    first, second = await load(path, {}), await load(path, {})
    assert isinstance(second.hypervisor, PlainTable)
    assert str(second) == str(first)


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[logging.Logger]:
    """The root logger; its level and the hypervisor's are afterwards what they were."""
    loggers = [logging.getLogger(), logging.getLogger(HYPERVISOR)]
    before = [logger.level for logger in loggers]
    yield loggers[0]
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize(
    ("setting", "level"),
    [
        ("", logging.INFO),
        ('log_level = "error"', logging.ERROR),
        ('log_level = "trace"', logging.DEBUG),
        ('log_level = "error"\nenable_debug = true', logging.DEBUG),
    ],
)
async def test_the_log_level_is_in_force(
    path: Path, setting: str, level: int, root_logger: logging.Logger
) -> None:
    root_logger.setLevel(logging.INFO)
    with path.open("a") as file:
        file.write(f"[runtime]\n{setting}\n")
    await load(path, {})
    assert root_logger.level == level


@pytest.mark.parametrize(
    ("setting", "level"),
    [
        ("", logging.INFO),
        ('log_level = "warn"', logging.WARNING),
        ('log_level = "warn"\nenable_debug = true', logging.DEBUG),
    ],
)
async def test_the_hypervisors_log_level_is_in_force(path: Path, setting: str, level: int) -> None:
    with path.open("a") as file:
        file.write(f"{setting}\n")
    await load(path, {})
    assert logging.getLogger(HYPERVISOR).level == level


async def test_debug_of_containerd_stays(path: Path, root_logger: logging.Logger) -> None:
    root_logger.setLevel(logging.DEBUG)
    await load(path, {})
    assert root_logger.level == logging.DEBUG


async def test_a_note_is_logged_as_information(
    path: Path, root_logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    with path.open("a") as file:
        file.write("[runtime]\nenable_debug = true\n")
    await load(path, {})
    (record,) = [record for record in caplog.records if "KATA403" in record.getMessage()]
    assert record.levelno == logging.INFO
