"""A policy: what the sealed process may call, with which arguments, why, and for which of its features.

One TOML file for each program and architecture; the first lines of `policies/x86_64.toml` describe the
format. A policy is checked whole when it is loaded: an unknown call, a misspelled field or two rules that
contradict each other is a PolicyError with the file, the line of the rule and its number.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from kata_hypervisor.errors import PolicyError
from kata_hypervisor.seccomp import actions, syscalls, text_file
from kata_hypervisor.seccomp.policy_reader import Reader
from kata_hypervisor.seccomp.program import PROCESS, VCPU
from kata_hypervisor.seccomp.rules import THREADS, Condition, Rule

__all__ = ["BASE", "PROCESS", "THREADS", "VCPU", "Condition", "Policy", "Rule", "load_policy", "parse_policy"]

BASE = "base"

_POLICIES = Path(__file__).parent / "policies"


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one architecture. source: the file's name, for messages."""

    architecture: str
    source: str
    rules: tuple[Rule, ...]

    @property
    def features(self) -> frozenset[str]:
        """Every feature that some rule is for."""
        return frozenset[str]().union(*(rule.features for rule in self.rules))

    def select(self, features: Collection[str], thread: str = PROCESS) -> tuple[Rule, ...]:
        """The rules for these features, and for "base", on one kind of thread.

        Raises:
            PolicyError: the policy has no such feature or thread, or nothing for them.
        """
        unknown = set(features) - self.features
        if unknown:
            known = ", ".join(sorted(self.features))
            raise PolicyError(f"{self.source} has no feature {', '.join(sorted(unknown))}: there are {known}")
        if thread not in THREADS:
            raise PolicyError(f"there are no threads {thread!r}: there are {', '.join(THREADS)}")
        wanted = {BASE, *features}
        found = tuple(rule for rule in self.rules if thread in rule.threads and rule.features & wanted)
        if not found:
            raise PolicyError(
                f"{self.source} has no rule for {', '.join(sorted(wanted))} on threads {thread}"
            )
        return found

    def bind(self, **values: int) -> Policy:
        """With what is known at run time only: bind(pid=os.getpid()) gives $pid its value."""
        return replace(self, rules=tuple(rule.bind(values) for rule in self.rules))


def load_policy(arch: str | None = None, path: Path | None = None, program: str = "") -> Policy:
    """Load the policy of an architecture (this machine's by default), or of a file.

    program: whose; by default that of the runtime's own process.

    Raises:
        PolicyError: there is none for the architecture, it cannot be read, or it is wrong.
    """
    arch = arch or syscalls.native()
    file = path or _POLICIES / (f"{program}-{arch}.toml" if program else f"{arch}.toml")
    if path is None and not file.exists():
        whose = f" of {program}" if program else ""
        raise PolicyError(f"there is no seccomp policy{whose} for {arch}: {file} does not exist")
    return parse_policy(text_file.read(file, "seccomp policy"), str(path) if path else file.name)


def load_policies() -> None:
    """Parse every policy of this machine's architecture, for a process whose forks will load some of them.

    Raises PolicyError, as `load_policy`.
    """
    arch = syscalls.native()
    for file in _POLICIES.glob(f"*{arch}.toml"):
        load_policy(arch, program=file.stem.removesuffix(arch).removesuffix("-"))


@cache  # by its text: it is parsed once in a process, or in the one that this was forked from
def parse_policy(text: str, source: str) -> Policy:
    """Read a policy from TOML; source is its name in messages. Raises PolicyError."""
    reader = Reader(text, source)
    rules = tuple(reader.rules())
    seen: dict[tuple[str, str], list[Rule]] = {}
    for rule in rules:
        for key in [(call, thread) for call in rule.calls for thread in sorted(rule.threads)]:
            for earlier in seen.setdefault(key, []):
                _check_pair(source, key[0], earlier, rule)
            seen[key].append(rule)
    for call, thread in seen:
        if thread != PROCESS and (call, PROCESS) not in seen:
            rule = seen[call, thread][0]
            raise PolicyError(
                f"{_place(source, rule)}: {call} on threads {thread} has no effect: "
                "no rule allows it to the process"
            )
    return Policy(str(reader.architecture), source, rules)


def _check_pair(source: str, call: str, earlier: Rule, later: Rule) -> None:
    """Two rules on one call and kind of thread can be alternatives only."""
    what = f"{_place(source, later)}: {call}"
    other = f"rule {earlier.number}" + (f" (line {earlier.line})" if earlier.line else "")
    if earlier.action != later.action:
        answers = f"{actions.describe(earlier.action)}, here {actions.describe(later.action)}"
        raise PolicyError(f"{what} contradicts {other}: there {answers}")
    if not earlier.conditions or not later.conditions:
        if earlier.conditions or later.conditions:
            raise PolicyError(
                f"{what} contradicts {other}: one has conditions, the other allows it without any"
            )
        raise PolicyError(f"{what} is in {other} already")
    if {_key(c) for c in earlier.conditions} == {_key(c) for c in later.conditions}:
        raise PolicyError(f"{what} with these conditions is in {other} already")


def _key(condition: Condition) -> tuple[int, str, int | str, int | None]:
    return condition.index, condition.op, condition.value, condition.mask


def _place(source: str, rule: Rule) -> str:
    return f"{source}:{rule.line}: rule {rule.number}" if rule.line else f"{source}: rule {rule.number}"
