"""docs/seccomp.md: its console blocks print what stands there; text blocks differ from host to host.

After a change of what is printed: python tests/runtime/test_ctl_seccomp_page.py
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
from pathlib import Path

import pytest

from kata_runtime.ctl.main import main

PAGE = Path(__file__).parents[2] / "docs" / "seccomp.md"
FILE = re.compile(r"```\w+ (\S+)\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)


def execute(line: str) -> str:
    """Run one command of the page in the current directory and return what it prints."""
    program, *arguments = shlex.split(line)
    assert program == "kata-ctl"
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        main(arguments)
    return output.getvalue()


def replay(page: str) -> str:
    """Return the page with the output that its commands have now."""
    for name, text in FILE.findall(page):
        Path(name).write_text(text)

    def block(match: re.Match[str]) -> str:
        commands = [line for line in match[1].splitlines() if line.startswith("$ ")]
        return "```console\n" + "".join(f"{line}\n{execute(line[2:])}" for line in commands) + "```"

    return CONSOLE.sub(block, page)


def test_the_page_shows_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    assert replay(page) == page


if __name__ == "__main__":
    written = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        PAGE.write_text(replay(written), encoding="utf-8")
