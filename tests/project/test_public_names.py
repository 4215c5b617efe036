"""What drivers, hosts and users of the agent rely on does not change by accident."""

from __future__ import annotations

from pathlib import Path

import public_names

LIST = Path(__file__).with_name("public_names.txt")


def test_public_names_change_on_purpose_only() -> None:
    """After a change that is meant: python tests/support/public_names.py > tests/project/public_names.txt."""
    described = [line for module in public_names.MODULES for line in public_names.describe(module)]
    assert described == LIST.read_text(encoding="utf-8").splitlines()
