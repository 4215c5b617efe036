"""The JSON Schema: valid, true to the shipped files, and in agreement with the linter."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import corpus
from kata_configuration import lint
from kata_configuration.diagnostics import Code
from kata_configuration.models import HYPERVISORS, TABLES
from kata_configuration.models.base import inner_table
from kata_configuration.parse.toml_text import value_text
from kata_configuration.sandbox_option import DENY_ALL
from kata_configuration.tell import schema
from kata_configuration.tell.template import shipped
from kata_runtime.ctl.main import main

Write = Callable[..., Path]

VALIDATOR = Draft202012Validator(schema.build())
QEMU = '[hypervisor.qemu]\nkernel = "/boot/vmlinuz"\nimage = "/srv/image"\n'

BROKEN = {
    "nothing": "",
    "no guest": '[hypervisor.qemu]\nkernel = "/k"\n',
    "no kernel": '[hypervisor.qemu]\nimage = "/i"\n',
    "the selected table missing": QEMU + '[runtime]\nhypervisor_name = "clh"\n',
    "the selected table missing, by its other name": QEMU
    + '[runtime]\nhypervisor_name = "cloud-hypervisor"\n',
    "a misspelled key": QEMU + 'secompsandbox = "on"\n',
    "a misspelled table": QEMU.replace("qemu", "qmeu"),
    "a misspelled family": QEMU.replace("hypervisor", "hypervisors"),
    "an unknown hypervisor": QEMU + '[runtime]\nhypervisor_name = "xen"\n',
    "a key in the wrong table": QEMU + '[runtime]\nkernel_params = "quiet"\n',
    "a string for a boolean": QEMU + 'enable_debug = "true"\n',
    "GiB for MiB": QEMU + "default_memory = 4\n",
    "a relative path": QEMU + 'path = "qemu"\n',
    "a misspelled sandbox group": QEMU + 'seccompsandbox = "on,obselete=deny"\n',
    "a sandbox that is off and on": QEMU + 'seccompsandbox = "off,spawn=deny"\n',
    "a quote without its pair": QEMU + "kernel_params = 'a \"b'\n",
    "an empty item": QEMU + 'cpu_features = "a,,b"\n',
    "a choice that is none": QEMU + 'machine_type = "microvm"\n',
    "a key that is planned": QEMU + "enable_iommu = true\n",
    "a key of another driver": QEMU + "disable_seccomp = true\n",
    "a misspelled key of an inner table": QEMU + "[hypervisor.clh.factory]\nenable_templat = true\n",
}

SOUND = {
    "the smallest": QEMU,
    "an initrd": QEMU.replace("image", "initrd"),
    "no initrd": QEMU + 'initrd = ""\n',
    "the sandbox": QEMU + f'seccompsandbox = "{DENY_ALL}"\n',
    "no sandbox": QEMU + 'seccompsandbox = ""\n',
    "the alias": QEMU + 'seccomp_sandbox = "on,spawn=deny"\n',
    "another table, incomplete": QEMU + "[hypervisor.firecracker]\ndefault_vcpus = 2\n",
    "another table, by its other name": QEMU + "[hypervisor.cloud-hypervisor]\ndefault_vcpus = 2\n",
    "the other name": QEMU.replace("qemu", "cloud-hypervisor") + '[runtime]\nhypervisor_name = "clh"\n',
    "quotes": QEMU + "kernel_params = 'a=\"b c\" d'\n",
}


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema.build())


@pytest.mark.parametrize("name", HYPERVISORS)
def test_it_accepts_the_template_of_every_hypervisor(name: str) -> None:
    assert list(VALIDATOR.iter_errors(tomllib.loads(shipped(name)))) == []


@pytest.mark.parametrize("text", SOUND.values(), ids=SOUND)
def test_it_accepts_what_is_right(text: str) -> None:
    assert list(VALIDATOR.iter_errors(tomllib.loads(text))) == []


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_it_refuses_what_is_broken(text: str) -> None:
    assert not VALIDATOR.is_valid(tomllib.loads(text))


def test_every_honoured_key_is_in_it() -> None:
    properties = schema.build()["properties"]
    for path, model in TABLES.items():
        table = properties[path[0]] if len(path) == 1 else properties[path[0]]["properties"][path[1]]
        assert set(table["properties"]) == {*model.model_fields, *model.aliases}
        assert all(known["description"] for known in table["properties"].values())


texts = ["", "x", "/x", "a\x07", "/\n", "auto", "info", "on", "on,spawn=deny", "thp"]
plain = st.booleans() | st.integers(-10, 300) | st.sampled_from([*texts, 64, 1.5])


@st.composite
def assignments(draw: st.DrawFn) -> tuple[tuple[str, ...], str, Any]:
    path = draw(st.sampled_from(sorted(TABLES)))
    names = [name for name, field in TABLES[path].model_fields.items() if not inner_table(field)]
    return path, draw(st.sampled_from(names)), draw(plain | st.lists(plain, max_size=2))


# What no schema of ours says: one key against another, a selection, an entry's meaning, a doubtful unit.
BEYOND = {"KATA212", "KATA305", "KATA401", "KATA403", "KATA404", "KATA502", "KATA503", "KATA504"}
BEYOND |= {"KATA007", "KATA207", "KATA406", "KATA505", "KATA506", "KATA507", "KATA508"}
BEYOND |= {f"KATA71{number}" for number in range(10)}


# What one host has, what the text is like, and forms of strings that are richer than a schema's.
OF_HOSTS = {code.number for code in Code if code.number.startswith("KATA6")}
OF_FORMS = {"KATA101", "KATA102", "KATA103"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(assignments())
def test_schema_and_linter_agree(write: Write, assignment: tuple[tuple[str, ...], str, Any]) -> None:
    path, key, value = assignment
    if key in ("hypervisor_name", "kernel", "image"):
        return  # they select tables, or stand in the file already
    head = "" if path == ("hypervisor", "qemu") else f"[{'.'.join(path)}]\n"
    text = f"{QEMU}{head}{key} = {value_text(value)}\n"
    findings = {found.code for found in lint(write(text), check_host=False)} - BEYOND
    assert VALIDATOR.is_valid(tomllib.loads(text)) == (not findings)


@pytest.mark.parametrize("name", corpus.names())
def test_it_refuses_the_broken_files_of_the_corpus(name: str) -> None:
    case = corpus.read(name)
    try:
        tree = tomllib.loads(case.file.read_bytes().decode())
    except (ValueError, RecursionError):
        return  # no TOML: the validator never sees it
    here = [fault for fault in case.faults if fault.place.startswith("configuration.toml")]
    codes = {fault.code for fault in here} - BEYOND - OF_HOSTS - OF_FORMS
    assert VALIDATOR.is_valid(tree) == (not codes)


def test_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema.build()
