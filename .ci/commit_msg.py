"""Checks the messages of commits, so that the history can be read on its own.

usage: commit_msg.py FILE        git's commit-msg hook: check the message in a file
       commit_msg.py --history   check every commit since the rules began; CI runs this
       commit_msg.py --install   install the hook in this checkout
       commit_msg.py --offer     say in one line how to install it, where it is not

The standard library alone, and Python 3.9: the hook runs with whatever python3 the host has.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# The last commit before the rules, and the second after it: a shallow clone may lack the commit.
BASE = "2ffa6246d459c9e999ee438d34e8c75bc5a1f458"
BASE_TIME = "2026-11-29T18:20:25Z"

LONGEST_SUBJECT = 72
LONGEST_LINE = 100

SUBJECT = re.compile(r"[a-z][a-z0-9_.-]*(?:[/, ]+[a-z0-9_.-]+)*: \S.*")
CHECKED = re.compile(r"\b(checked|tested|verified|measured|tried|rendered|pass(?:es|ed)?|no test)\b", re.I)
TRAILER = re.compile(r"[A-Z][A-Za-z-]+: \S")
# Messages that git writes itself; those after "fixup!" are folded into another commit later.
GENERATED = re.compile(r"(Merge|Revert|fixup!|squash!|amend!) ")
SCISSORS = "# ------------------------ >8 ------------------------"

HOOK_MARK = "commit_msg.py"
HOOK = f"""#!/bin/sh
# Installed by make hooks.
exec python3 "$(git rev-parse --show-toplevel)/.ci/{HOOK_MARK}" "$1"
"""


def find_faults(message: str) -> list[str]:
    """Return what is wrong with a message, a sentence for each fault; empty when it is right."""
    lines = message.rstrip().split("\n")
    subject, body = lines[0], lines[1:]
    if GENERATED.match(subject):
        return []
    faults = []
    if not SUBJECT.fullmatch(subject):
        faults.append('the subject is not "area: what changed", as in "broker: check mount options"')
    if len(subject) > LONGEST_SUBJECT:
        faults.append(f"the subject has {len(subject)} characters, more than {LONGEST_SUBJECT}")
    if subject.endswith("."):
        faults.append("the subject ends with a full stop")
    if body and body[0].strip():
        faults.append("the second line is not blank")
    return faults + _find_faults_of_body([line for line in body if line.strip()])


def _find_faults_of_body(lines: list[str]) -> list[str]:
    prose = [line for line in lines if not TRAILER.match(line) or CHECKED.match(line)]
    if not prose:
        return ["there is no body: say why, and how it was checked"]
    faults = []
    if not CHECKED.search(" ".join(prose)):
        faults.append('the body does not say how the change was checked, as in "Checked: make unit passes"')
    # Quoted output and names that cannot be broken may be longer.
    long = [
        line for line in lines if len(line) > LONGEST_LINE and not line.startswith("    ") and " " in line
    ]
    limit = f"more than {LONGEST_LINE}"
    return faults + [f'a line has {len(line)} characters, {limit}: "{line[:30]}..."' for line in long]


def _may_be_long(line: str) -> bool:
    """Whether it is quoted output, or one name that cannot be broken."""
    return line.startswith("    ") or " " not in line


def clean(message: str) -> str:
    """Remove what git removes: its comments, and all below the scissors of `git commit --verbose`."""
    above = message.partition(SCISSORS)[0]
    return "\n".join(line.rstrip() for line in above.split("\n") if not line.startswith("#")).strip()


def list_new_commits(directory: Path) -> list[str]:
    """Return the commits since the rules began, newest first, without merges.

    By the base commit where this clone has it, otherwise by its time.

    Raises:
        CalledProcessError: there is no repository.
    """
    known = _run(directory, "cat-file", "-e", f"{BASE}^{{commit}}", check=False).returncode == 0
    since = [f"^{BASE}"] if known else [f"--since={BASE_TIME}"]
    return _run(directory, "rev-list", "--no-merges", "HEAD", *since).stdout.split()


def check_history(directory: Path) -> int:
    """Check every new commit; returns the exit status."""
    head = _run(directory, "rev-parse", "--verify", "HEAD", check=False)
    if head.returncode:
        print(f"commit messages: nothing to check: {head.stderr.strip() or 'no commit'}")
        return 0
    commits = list_new_commits(directory)
    wrong = 0
    for commit in commits:
        message = _run(directory, "show", "--no-patch", "--format=%B", commit).stdout
        if faults := find_faults(message.strip()):
            wrong += 1
            _report(f"{commit[:10]} {message.partition(chr(10))[0]}", faults)
    print(f"commit messages: {len(commits)} checked, {wrong} wrong")
    return 1 if wrong else 0


def check_file(path: Path) -> int:
    """Check the message in a file; returns the exit status."""
    message = clean(path.read_text(encoding="utf-8"))
    if not message:
        return 0  # git itself refuses an empty message
    if faults := find_faults(message):
        _report(f"the message of this commit (kept in {path}): {message.partition(chr(10))[0]}", faults)
        return 1
    return 0


def hook_path(directory: Path) -> Path | None:
    """Where git looks for the hook; None where there is no repository."""
    found = _run(directory, "rev-parse", "--git-path", "hooks/commit-msg", check=False)
    return directory / found.stdout.strip() if found.returncode == 0 else None


def install(directory: Path) -> int:
    """Install the hook, never over another one; returns the exit status."""
    path = hook_path(directory)
    if path is None:
        print("commit messages: this is no git checkout, so there is no place for a hook")
        return 1
    if path.exists() and HOOK_MARK not in path.read_text(encoding="utf-8"):
        print(f"commit messages: {path} is another hook: call .ci/{HOOK_MARK} from it")
        return 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HOOK, encoding="utf-8")
    path.chmod(0o755)
    print(f"commit messages: {path} checks them from now on")
    return 0


def offer(directory: Path) -> int:
    """Say how to install the hook where a checkout has none."""
    path = hook_path(directory)
    if path is not None and not path.exists():
        print("commit messages: make hooks lets git check them")
    return 0


def _report(what: str, faults: list[str]) -> None:
    print(what, file=sys.stderr)
    for fault in faults:
        print(f"  {fault}", file=sys.stderr)


def _run(directory: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(directory), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=check)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", "git is not installed")


def main(arguments: list[str]) -> int:
    """Run one of the four uses."""
    root = Path(__file__).resolve().parents[1]
    actions = {"--history": check_history, "--install": install, "--offer": offer}
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    action = actions.get(arguments[0])
    return action(root) if action else check_file(Path(arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
