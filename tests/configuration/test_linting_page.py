"""docs/linting.md: its commands, run one after the other, print what stands there.

After a change of what is printed: python tests/configuration/test_linting_page.py
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

PAGE = Path(__file__).parents[2] / "docs" / "linting.md"
BLOCK = re.compile(r"```(toml|console)\n(.*?)```", re.DOTALL)


def execute(line: str) -> str:
    """Run one command of the page in the current directory and return what it prints."""
    words = shlex.split(line)
    if words[0] != "kata-ctl":
        subprocess.run(words, check=True)
        return ""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        main(words[1:])
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


def test_the_page_shows_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    assert replay(page) == page


if __name__ == "__main__":
    written = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        written = replay(written)
    PAGE.write_text(written, encoding="utf-8")
