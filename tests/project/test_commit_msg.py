"""The check of commit messages: what it accepts, what it says of the rest, and which commits it looks at."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "commit_msg.py"
NO_AREA = 'the subject is not "area: what changed", as in "broker: check mount options"'
NO_BODY = "there is no body: say why, and how it was checked"
NO_CHECK = 'the body does not say how the change was checked, as in "Checked: make unit passes"'
GOOD = """broker: check mount options against a list

An option may name a path, as device= does, so that a guest could read a
file of the host.

Checked: make unit passes; a new test fails without the list.
"""


@pytest.fixture(scope="module")
def commit_msg() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("commit_msg", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit from before the rules, which breaks them."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    commit(tmp_path, "Anything goes.", "2026-01-01T00:00:00Z")
    return tmp_path


def git(directory: Path, *arguments: str, time: str = "") -> str:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        **{f"GIT_{role}_NAME": "A" for role in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{role}_EMAIL": "a@example.org" for role in ("AUTHOR", "COMMITTER")},
        **({f"GIT_{role}_DATE": time for role in ("AUTHOR", "COMMITTER")} if time else {}),
    }
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def commit(directory: Path, message: str, time: str) -> str:
    git(directory, "commit", "--quiet", "--allow-empty", "--message", message, time=time)
    return git(directory, "rev-parse", "HEAD")


def test_a_good_message(commit_msg: ModuleType) -> None:
    assert commit_msg.find_faults(GOOD) == []


@pytest.mark.parametrize(
    ("subject", "fault"),
    [
        (
            "Check mount options",
            'the subject is not "area: what changed", as in "broker: check mount options"',
        ),
        ("broker:check", NO_AREA),
        ("broker: check options.", "the subject ends with a full stop"),
        (f"broker: {'x' * 65}", "the subject has 73 characters, more than 72"),
    ],
)
def test_a_subject_that_is_wrong(commit_msg: ModuleType, subject: str, fault: str) -> None:
    assert commit_msg.find_faults(GOOD.replace(GOOD.partition("\n")[0], subject)) == [fault]


@pytest.mark.parametrize("area", ["pod", "pod, broker", "runtime/pod", "commit-msg", "x86_64", "docs/limits"])
def test_areas(commit_msg: ModuleType, area: str) -> None:
    assert commit_msg.find_faults(GOOD.replace("broker", area, 1)) == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("", NO_BODY),
        ("\n\nSigned-off-by: A <a@example.org>", NO_BODY),
        (
            "\n\nBecause.",
            'the body does not say how the change was checked, as in "Checked: make unit passes"',
        ),
        ("\nBecause. Checked by hand.", "the second line is not blank"),
        (
            f"\n\nChecked. {'x ' * 50}",
            f'a line has 108 characters, more than 100: "Checked. {"x " * 10}x..."',
        ),
    ],
)
def test_a_body_that_is_wrong(commit_msg: ModuleType, body: str, fault: str) -> None:
    assert commit_msg.find_faults("broker: check options" + body) == [fault]


def test_lines_that_cannot_be_broken(commit_msg: ModuleType) -> None:
    quoted = f"    {'a b ' * 40}"
    assert commit_msg.find_faults(f"{GOOD}\n{quoted}\nhttps://example.org/{'x' * 100}") == []


@pytest.mark.parametrize(
    "subject", ["Merge branch 'pod'", 'Revert "pod: x"', "fixup! pod: x", "squash! pod: x"]
)
def test_what_git_writes_is_let_through(commit_msg: ModuleType, subject: str) -> None:
    assert commit_msg.find_faults(subject) == []


def test_what_git_removes_is_not_checked(commit_msg: ModuleType) -> None:
    diff = f"{commit_msg.SCISSORS}\ndiff --git a b\n+{'long ' * 40}\n"
    assert commit_msg.clean(f"{GOOD}\n# On branch main\n{diff}") == GOOD.strip()


def test_the_hook_refuses_a_commit(repository: Path) -> None:
    (repository / ".ci").mkdir()
    script = repository / ".ci" / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    subprocess.run([sys.executable, script, "--install"], check=True, capture_output=True)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        commit(repository, "no area", "2026-12-01T00:00:00Z")
    assert 'the subject is not "area: what changed"' in caught.value.stderr
    commit(repository, GOOD, "2026-12-01T00:00:00Z")


def test_another_hook_is_left_alone(
    commit_msg: ModuleType, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = repository / ".git/hooks/commit-msg"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\n")
    assert commit_msg.install(repository) == 1
    assert hook.read_text() == "#!/bin/sh\n"
    assert "is another hook" in capsys.readouterr().out


def test_the_offer_is_made_until_it_is_taken(
    commit_msg: ModuleType, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commit_msg.offer(repository) == 0
    assert capsys.readouterr().out == "commit messages: make hooks lets git check them\n"
    commit_msg.install(repository)
    capsys.readouterr()
    assert commit_msg.offer(repository) == 0
    assert capsys.readouterr().out == ""


def test_only_commits_after_the_base_are_checked(
    commit_msg: ModuleType,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(commit_msg, "BASE", git(repository, "rev-parse", "HEAD"))
    assert commit_msg.check_history(repository) == 0
    good = commit(repository, GOOD, "2026-02-01T00:00:00Z")  # by the base, not by the time
    assert commit_msg.list_new_commits(repository) == [good]
    commit(repository, "Wrong", "2026-02-01T00:00:00Z")
    assert commit_msg.check_history(repository) == 1
    assert "commit messages: 2 checked, 1 wrong" in capsys.readouterr().out


def test_a_shallow_clone_goes_by_time(
    commit_msg: ModuleType, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    commit(repository, "Wrong, and before the rules", "2026-11-28T00:00:00Z")
    new = commit(repository, GOOD, commit_msg.BASE_TIME)
    clone = tmp_path_factory.mktemp("shallow")
    git(clone, "clone", "--quiet", "--depth=2", f"file://{repository}", ".")
    assert commit_msg.list_new_commits(clone) == [new]
    assert commit_msg.check_history(clone) == 0


def test_merges_are_not_checked(
    commit_msg: ModuleType, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_msg, "BASE", git(repository, "rev-parse", "HEAD"))
    git(repository, "checkout", "--quiet", "-b", "side")
    side = commit(repository, GOOD, "2026-12-01T00:00:00Z")
    git(repository, "checkout", "--quiet", "main")
    git(repository, "merge", "--quiet", "--no-ff", "--message", "Side things", "side")
    assert commit_msg.list_new_commits(repository) == [side]


def test_without_a_history_there_is_nothing_to_check(
    commit_msg: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commit_msg.check_history(tmp_path) == 0
    assert "commit messages: nothing to check: " in capsys.readouterr().out
