"""Pages of docs/ with commands: run one after the other, they print what stands there.

After a change of what is printed: python tests/configuration/test_pages.py
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest

from kata_runtime.ctl.main import main

PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("linting.md", "migrating.md")]
BLOCK = re.compile(r"```(toml|console)\n(.*?)```", re.DOTALL)


def execute(line: str) -> str:
    """Run one command of the page in the current directory and return what it prints."""
    argv = shlex.split(line)
    if argv[0] != "kata-ctl":
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        main(argv[1:])
    return output.getvalue()


def replay(page: str) -> str:
    """Return the page with the output that its commands have now."""

    def block(match: re.Match[str]) -> str:
        kind, text = match.groups()
        if kind == "toml":
            Path("configuration.toml").write_text(text)
            return match[0]
        commands = [line for line in text.splitlines() if line.startswith("$ ")]
        return "```console\n" + "".join(f"{line}\n{execute(line[2:])}" for line in commands) + "```"

    return BLOCK.sub(block, page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_what_is_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert replay(text) == text


if __name__ == "__main__":
    for each in PAGES:
        with tempfile.TemporaryDirectory() as directory:
            os.chdir(directory)
            written = replay(each.read_text(encoding="utf-8"))
        each.write_text(written, encoding="utf-8")
