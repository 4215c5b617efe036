"""The shipped files and the models say the same."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from kata_configuration import lint, load
from kata_configuration.models import AVAILABLE, HYPERVISORS, INEFFECTIVE, PLANNED, TABLES, Table
from kata_configuration.models.base import About, inner_table
from kata_configuration.sandbox_option import DENY_ALL
from kata_configuration.tell.template import SETTINGS, SHIPPED, shipped
from kata_hypervisor.registry import DRIVERS
from tables import qemu_of

FILE = SHIPPED / "configuration-qemu.toml"
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def test_what_can_run_is_shipped_and_every_hypervisor_has_its_template() -> None:
    files = {f"configuration-{name}.toml" for name in AVAILABLE}
    assert {path.name for path in SHIPPED.glob("*.toml")} == files
    assert set(SETTINGS) == set(HYPERVISORS)


def test_the_wheel_has_them_in_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {
        f"configuration/configuration-{name}.toml": f"kata_configuration/shipped/configuration-{name}.toml"
        for name in AVAILABLE
    }


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_shipped_file_is_what_the_models_write(name: str) -> None:
    # After a change of a model: python -m kata_configuration.tell.template NAME > the file
    assert (SHIPPED / f"configuration-{name}.toml").read_text(encoding="utf-8") == shipped(name)


def test_it_lints_clean_and_denies_everything() -> None:
    assert lint(FILE, check_host=False) == ()
    assert qemu_of(load(FILE, check_host=False)).seccompsandbox == DENY_ALL


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_are_clean(path: Path) -> None:
    assert lint(path, check_host=False) == ()


@pytest.mark.parametrize("name", HYPERVISORS)
def test_only_a_missing_driver_is_said_of_a_template(name: str, tmp_path: Path) -> None:
    file = tmp_path / "configuration.toml"
    file.write_text(shipped(name), encoding="utf-8")
    findings = [found.code for found in lint(file, check_host=False)]
    assert findings == ([] if name in AVAILABLE else ["KATA212"])


def test_what_can_be_selected_is_what_has_a_driver() -> None:
    assert set(AVAILABLE) == {info.name for info in DRIVERS}


@pytest.mark.parametrize("name", HYPERVISORS)
def test_what_is_commented_out_is_the_default(name: str) -> None:
    template = shipped(name)
    text = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in template.splitlines()
    )
    everything = tomllib.loads(text.replace("#\n", "\n"))
    plain = tomllib.loads(template)
    for path in (("hypervisor", name), ("agent", "kata"), ("runtime",)):
        model, raw, written = TABLES[path], everything, plain
        for part in path:
            raw, written = raw[part], written.get(part, {})
        assert set(raw) == set(model.model_fields)
        # What is absent by default is shown by an example.
        absent = {
            key for key, field in model.model_fields.items() if field.default is None and key not in written
        }
        loaded = model.model_validate({key: value for key, value in raw.items() if key not in absent})
        assert loaded == model.model_validate(written)


def every_model() -> list[type[Table]]:
    found: list[type[Table]] = []
    todo = [*TABLES.values(), *PLANNED.values(), *INEFFECTIVE.values()]
    while todo:
        model = todo.pop()
        found.append(model)
        todo += [inner for field in model.model_fields.values() if (inner := inner_table(field))]
    return found


@pytest.mark.parametrize("model", every_model())
def test_every_key_is_documented_in_one_sentence(model: type[Table]) -> None:
    assert (model.__doc__ or "").endswith(".")
    for name, field in model.model_fields.items():
        about = About.of(field)
        assert about.sentence.endswith("."), name
        assert ". " not in about.sentence, name
        assert about.since.startswith(("Kata ", "this runtime ")), name
        assert not field.is_required() or about.example is not None, name
    assert set(model.aliases.values()) <= set(model.model_fields)
    model.model_validate(model.example())


@pytest.mark.parametrize("path", PLANNED)
def test_a_key_is_honoured_or_planned_and_not_both(path: tuple[str, ...]) -> None:
    assert set(PLANNED[path].model_fields).isdisjoint(TABLES[path].model_fields)
