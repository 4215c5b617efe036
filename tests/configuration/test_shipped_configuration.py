"""The shipped file and the models say the same."""

from __future__ import annotations

import tomllib

import pytest

from kata_configuration import lint, load
from kata_configuration.models import TABLES, Table
from kata_configuration.sandbox_option import DENY_ALL
from kata_configuration.template import QEMU_SETTINGS, SHIPPED, render

FILE = SHIPPED / "configuration-qemu.toml"


def test_the_shipped_file_is_what_the_models_write() -> None:
    # After a change of a model: python -m kata_configuration.template > the file
    assert FILE.read_text(encoding="utf-8") == render(QEMU_SETTINGS)


def test_it_lints_clean_and_denies_everything() -> None:
    assert lint(FILE, check_host=False) == ()
    assert load(FILE, check_host=False).hypervisor.seccompsandbox == DENY_ALL


def test_what_is_commented_out_is_the_default() -> None:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    text = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in lines
    )
    everything = tomllib.loads(text.replace("#\n", "\n"))
    plain = load(FILE, check_host=False)
    for path, model in TABLES.items():
        raw = everything[path[0]] if len(path) == 1 else everything[path[0]][path[1]]
        assert set(raw) == set(model.model_fields)
        loaded: Table = {"hypervisor": plain.hypervisor, "agent": plain.agent, "runtime": plain.runtime}[
            path[0]
        ]
        assert model.model_validate(raw) == loaded


@pytest.mark.parametrize("model", TABLES.values())
def test_every_key_is_documented_in_one_sentence(model: type[Table]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert ". " not in field.description, name
        assert not field.is_required() or field.examples, name
    assert set(model.aliases.values()) <= set(model.model_fields)
