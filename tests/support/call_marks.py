"""A plugin of pytest for `record_policy_use`: it tells the kernel's trace which test is running."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from call_events import MARK

MARKER = "KATA_TEST_TRACE_MARKER"
"""The variable that names the trace's marker file."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Write the test's name, before its fixtures are made."""
    name = f"{Path(item.path).stem}::{getattr(item, 'originalname', item.name)}"
    Path(os.environ[MARKER]).write_text(f"{MARK}{name}\n", encoding="utf-8")
