"""What the linter advises, when followed, takes that fault away and adds none: the corpus, all drivers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import corpus
from kata_configuration.diagnostics import Finding, Fix, Severity
from kata_configuration.judge import placing
from kata_configuration.layer.layers import Files, Kind, Layer, file_layer
from kata_configuration.loading import examine_files
from kata_configuration.models import HYPERVISORS
from kata_configuration.parse import toml_text
from kata_configuration.tell import migration
from kata_configuration.tell.template import SETTINGS

# Advice that names no single change: what to decide stays with whoever reads it.
OPEN = re.compile(
    r"add it|add one of them|add \[|keep one|name a|if that is what is meant|change it or|list the names"
    r"|for them, write|begin it with|close it|separate the entries"
    r"|use (printable|one of|\w+|\")"
    r"|move it to (\[.*\] or|the table)|write (a|an|true or false|\[|\"on)|add \w+=|remove image|\w+=deny$"
    r"|such as| in \[[\w.-]+\]\??$"
)

STATEMENT = re.compile(r"write (\w+) = (.+)")
TABLE = re.compile(r"(?:move it to|it belongs in) \[([\w.-]+)\]$")
VALUE = re.compile(r"(?:write|set it to|only) (.+?)(?: or (?:less|more)| without quotes| is supported)?$")


def fix_of(finding: Finding, value: object) -> Fix | None:
    """The change that the text of a finding's hint asks for; None when the text leaves a choice.

    value: what stands there now.
    """
    hint = finding.hint.partition(", or ")[0]
    if hint == "put it in quotes":
        return Fix(value=str(value))
    if hint.startswith(("remove it", "remove the table")):
        return Fix(remove=True)
    if found := TABLE.fullmatch(hint):
        return Fix(table=tuple(found[1].split(".")))
    if " in [" in hint or "keep one" in hint:
        return None
    if found := re.fullmatch(r'did you mean "(.*)"\?', hint):
        return Fix(rename=found[1]) if finding.on_key else Fix(value=found[1])
    if found := STATEMENT.fullmatch(hint):
        return Fix(rename=found[1], value=value_of(found[2]))
    if found := re.search(r"write (-?[\d.]+)$", hint):
        return Fix(value=value_of(found[1]))
    if found := re.fullmatch(r"use one of (\"[^\"]*\").*", hint):
        return Fix(value=value_of(found[1]))
    if found := VALUE.fullmatch(hint):
        value = value_of(found[1])
        if finding.on_key and isinstance(value, str) and '"' not in found[1]:
            return Fix(rename=value)
        return None if value is None or finding.on_key else Fix(value=value)
    return None


def value_of(text: str) -> Any:
    """A value as a hint writes it."""
    try:
        parsed = file_layer(Kind.FILE, "", f"x = {text}\n")
    except ValueError:
        return None
    return parsed.tree.get("x") if not parsed.faults else text if re.fullmatch(r"\w+", text) else None


def examine(text: str) -> tuple[Layer, list[Finding], Counter[tuple[str, str, str]]]:
    """A text's layer, what is found in it, and how often there is which kind of diagnostic."""
    layer = file_layer(Kind.FILE, "file", text)
    examination = examine_files(Files(Path("file"), [layer]), check_host=False)
    kinds = Counter((found.code, found.key, found.severity.value) for found in examination.diagnostics)
    return layer, examination.judgement.findings, kinds


def standing(layer: Layer, finding: Finding) -> object:
    """The value that a finding is about."""
    value: Any = layer.tree
    for part in finding.path:
        if isinstance(value, list) and isinstance(part, int):
            value = value[part]
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def followed(layer: Layer, finding: Finding, fix: Fix) -> str:
    """The text once the advice is followed."""
    if fix.remove:
        answer = migration._dropped(finding, layer, "")
        return migration._apply(layer.text, list(answer.edits))
    span = layer.index.find(finding.path)
    if span is not None and span.statement is None and not isinstance(finding.path[-1], int):
        return layer.text
    return migration._apply(layer.text, list(placing._edits(layer, finding.path, fix)))


def check(text: str) -> tuple[int, int]:
    """Follow each advice about a text on its own. Returns how many there are, and how many were followed."""
    layer, findings, before = examine(text)
    done = 0
    for finding in findings:
        fix = fix_of(finding, standing(layer, finding))
        if fix is None or finding.offset:
            assert finding.offset or OPEN.search(finding.hint), f"{finding.message}: {finding.hint}"
            continue
        changed = followed(layer, finding, fix)
        if changed == layer.text:
            continue  # it stands within another statement
        done += 1
        after = examine(changed)[2]
        what = f"{finding.code.name} {finding.path} {finding.message} ({finding.hint})\n{changed}"
        assert any(before[kind] > after.get(kind, 0) for kind in before if kind[0] == finding.code.number), (
            what
        )
        if finding.code.name == "UNKNOWN_TABLE":
            continue  # what stands in it was not looked at before
        # In its own place, or under its own name, a statement's value is looked at for the first time.
        key = (fix.rename or str(finding.path[-1])) if fix.rename or fix.table else "-"
        new = [
            kind
            for kind, number in after.items()
            if kind[2] == Severity.ERROR.value and number > before.get(kind, 0)
            if not (kind[0].startswith("KATA3") and kind[1].endswith(key))
        ]
        assert not new, f"{what}\n{new}"
    return len(findings), done


@pytest.mark.parametrize("name", corpus.names())
def test_advice_about_the_corpus_helps(name: str) -> None:
    try:
        text = corpus.read(name).file.read_bytes().decode().replace("\r\n", "\n").removeprefix("\ufeff")
    except UnicodeDecodeError:
        pytest.skip("the file is not text, which is the fault that it stands for")
    check(text)


# Lines that people write into the wrong table or file, each of which is put into every table of every driver.
LINES = [
    *("[factory]\nenable_template = true", "[mem_agent]\nenable = true", "enable_template = true"),
    *("default_memory = 4096", "default_memory = 4", 'path = "/usr/bin/x"', 'log_level = "debug"'),
    *(
        "dial_timeout = 30",
        "create_container_timeout = 600",
        "disable_seccomp = true",
        'seccompsandbox = "off"',
    ),
    *(
        'kernel_params = "quiet"',
        "enable_iommu = true",
        "secompsandbox = true",
        'jailer_path = "/usr/bin/jailer"',
    ),
    *("reclaim_guest_freed_memory = true", "enable_balloon_f_reporting = true", "hypervisor_loglevel = 3"),
    *(
        'internetworking_model = "l3forwarding"',
        'shared_fs = "virtio-9p"',
        'block_device_driver = "virtio-blk"',
    ),
    *("seccompsandbox = true", "kernel = 3", "kernel_params = 0", "kernel_params = false"),
    *('selinux_label = "x"', "request_timeout_ms = 30000", 'guest_selinux_label = "x"', "hugepage_type = 3"),
]


def files(name: str, line: str) -> Iterator[str]:
    """The smallest file of a driver, with a line in each of its tables and before all of them."""
    settings = "".join(f"{key} = {toml_text.value_text(value)}\n" for key, value in SETTINGS[name].items())
    parts = {
        f"[hypervisor.{name}]\n": settings,
        "[agent.kata]\n": "",
        "[runtime]\n": f'hypervisor_name = "{name}"\n',
    }
    whole = "".join(head + body for head, body in parts.items())
    if not line.startswith("["):
        yield f"{line}\n{whole}"
        for head, part in parts.items():
            key = line.partition(" ")[0]
            if not re.search(rf"^{key} =", part, re.MULTILINE):
                yield whole.replace(head, f"{head}{line}\n")
    else:
        yield f"{whole}{line}\n"


@pytest.mark.parametrize("name", HYPERVISORS)
def test_advice_about_misplaced_lines_helps(name: str) -> None:
    counts = [check(text) for line in LINES for text in files(name, line)]
    assert sum(done for _, done in counts) > 40


def test_advice_that_leads_nowhere_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests rest on: a hint that makes things worse fails them."""
    text = '[hypervisor.qemu]\nkernel = "/k"\nimage = "/i"\n[runtime]\nlog_level = "loud"\n'
    assert check(text) == (1, 1)
    monkeypatch.setattr("kata_configuration.judge.findings._one_of", lambda choices: 'write "louder"')
    with pytest.raises(AssertionError, match="louder"):
        check(text)
