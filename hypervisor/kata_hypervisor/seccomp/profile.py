"""A profile: what a program may call, as a trace has shown it; written and read in three formats.

"policy" is the TOML of our own policies, "oci" the JSON of linux.seccomp in the OCI runtime specification,
and "solo5-hvt" the bare names that urunc and solo5 compile into their lists: one a line, "#" begins
a comment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata_hypervisor.errors import PolicyError
from kata_hypervisor.seccomp import actions, syscalls, text_file
from kata_hypervisor.seccomp.policy import load_policy
from kata_hypervisor.seccomp.rules import INT_BITS, OPERATORS, Condition, Rule
from kata_hypervisor.seccomp.trace import Arguments, Trace
from kata_hypervisor.seccomp.trace_arguments import INT, spell, width

FORMATS = ("policy", "oci", "solo5-hvt")

_MAX_COMBINATIONS = 64
_OCI_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_OCI_OPERATORS = {name.upper(): name for name in OPERATORS} | {"MASKED_EQ": "masked"}
_EPERM = 1


@dataclass(frozen=True, slots=True)
class Grant:
    """A call that was seen, and the combinations of its kept arguments; none: whatever they are."""

    call: str
    combinations: tuple[Arguments, ...]
    count: int


def grants(trace: Trace) -> list[Grant]:
    """What a profile of this trace allows, in the order of the calls' numbers.

    Raises:
        PolicyError: the trace has nothing that could be allowed.
    """
    found = []
    for call, seen in trace.calls.items():
        if ":" in call:
            continue
        combinations = tuple(dict.fromkeys(observation.arguments for observation in seen))
        if () in combinations or len(combinations) > _MAX_COMBINATIONS:
            combinations = ()
        found.append(Grant(call, combinations, sum(observation.count for observation in seen)))
    if not found:
        raise PolicyError("the trace has no call of this architecture, so there is no profile to write")
    return found


def write(trace: Trace, form: str) -> str:
    """The profile of a trace as text. form: one of FORMATS. Raises PolicyError."""
    writers = {"policy": _policy, "oci": _oci, "solo5-hvt": _names}
    return writers[form](trace, grants(trace))


def _policy(trace: Trace, granted: list[Grant]) -> str:
    """TOML that policy.load_policy reads; the values' names are in the reasons."""
    blocks = [f"# Seen in a trace of: {_line(' '.join(trace.command))}", f'architecture = "{trace.arch}"']
    always = [grant.call for grant in granted if not grant.combinations]
    if always:
        calls = "".join(f"  {json.dumps(call)},\n" for call in always)
        blocks.append(_block(f"[\n{calls}]", [], "seen, whatever the arguments"))
    for grant in granted:
        blocks += _conditional_blocks(grant)
    return "\n\n".join(blocks) + "\n"


def _conditional_blocks(grant: Grant) -> Iterator[str]:
    """One rule for all values of a single argument; else one for each combination of several."""
    calls = json.dumps([grant.call])
    if grant.combinations and all(len(arguments) == 1 for arguments in grant.combinations):
        index = grant.combinations[0][0][0]
        values = [arguments[0][1] for arguments in grant.combinations]
        names = ", ".join(spell(grant.call, index, value) for value in values)
        yield _block(calls, [_when(grant.call, index, values)], f"seen with {names}")
        return
    for arguments in grant.combinations:
        names = ", ".join(spell(grant.call, index, value) for index, value in arguments)
        yield _block(
            calls, [_when(grant.call, index, [value]) for index, value in arguments], f"seen with {names}"
        )


def _when(call: str, index: int, values: list[int]) -> str:
    bits = ", bits = 32" if width(call, index) == INT else ""
    if len(values) == 1:
        return f'{{ arg = {index}, op = "eq", value = {values[0]:#x}{bits} }}'
    return f'{{ arg = {index}, op = "in", value = [{", ".join(map(hex, values))}]{bits} }}'


def _block(calls: str, when: list[str], reason: str) -> str:
    conditions = [f"when = [{', '.join(when)}]"] if when else []
    return "\n".join(
        ["[[rule]]", f"calls = {calls}", *conditions, f"reason = {json.dumps(reason)}", 'features = ["base"]']
    )


def _oci(trace: Trace, granted: list[Grant]) -> str:
    """JSON of linux.seccomp: every other call is answered with EPERM."""
    entries: list[dict[str, Any]] = [
        {"names": [grant.call for grant in granted if not grant.combinations], "action": "SCMP_ACT_ALLOW"}
    ]
    for grant in granted:
        for arguments in grant.combinations:
            conditions = [_oci_argument(grant.call, index, value) for index, value in arguments]
            entries.append({"names": [grant.call], "action": "SCMP_ACT_ALLOW", "args": conditions})
    document = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": [_OCI_ARCHITECTURES[trace.arch]],
        "syscalls": [entry for entry in entries if entry["names"]],
    }
    return json.dumps(document, indent=2) + "\n"


def _oci_argument(call: str, index: int, value: int) -> dict[str, Any]:
    if width(call, index) == INT:
        return {"index": index, "value": INT_BITS, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}


def _names(trace: Trace, granted: list[Grant]) -> str:
    head = f"# {len(granted)} calls, seen in a trace of: {_line(' '.join(trace.command))}"
    return "\n".join([head, *sorted(grant.call for grant in granted)]) + "\n"


def _line(text: str) -> str:
    return " ".join(text.split())


def read(path: Path) -> tuple[Rule, ...]:
    """The rules of a profile: TOML by its ending .toml, JSON by .json, else names.

    Raises:
        PolicyError: it cannot be read or is wrong.
    """
    if path.suffix == ".toml":
        policy = load_policy(path=path)
        return policy.select(policy.features - {"base"})
    text = text_file.read(path, "profile")
    if path.suffix == ".json":
        return tuple(_read_oci(text, str(path)))
    names = [line.partition("#")[0].strip() for line in text.splitlines()]
    return (Rule(tuple(_checked(filter(None, names), str(path))), reason=f"listed in {path}"),)


def _checked(names: Iterable[str], source: str) -> Iterator[str]:
    known = [syscalls.numbers(arch) for arch in syscalls.ARCHITECTURES]
    for name in dict.fromkeys(names):
        if not any(name in table for table in known):
            raise PolicyError(f"{source}: there is no system call {name!r}")
        yield name


def _read_oci(text: str, source: str) -> Iterator[Rule]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise PolicyError(f"{source} is no OCI profile: it is not JSON: {error}") from None
    entries = document.get("syscalls") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise PolicyError(f"{source} is no OCI profile: it has no list of syscalls")
    for number, entry in enumerate(entries, 1):
        where = f"{source}: syscalls[{number - 1}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("names"), list):
            raise PolicyError(f"{where} has no list of names")
        yield Rule(
            calls=tuple(_checked(map(str, entry["names"]), where)),
            conditions=tuple(_oci_condition(argument, where) for argument in entry.get("args") or []),
            reason=str(entry.get("comment") or f"listed in {source}"),
            action=_oci_action(entry, where),
            number=number,
        )


def _oci_action(entry: Mapping[str, Any], where: str) -> int:
    match entry.get("action"):
        case "SCMP_ACT_ALLOW":
            return actions.ALLOW
        case "SCMP_ACT_ERRNO":
            number = entry.get("errnoRet", _EPERM)
            if type(number) is int and 0 <= number <= 4095:
                return actions.errno(number)
            raise PolicyError(f"{where}.errnoRet must be a number from 0 to 4095, not {number!r}")
        case action:
            raise PolicyError(
                f"{where}.action {action!r} is not understood: SCMP_ACT_ALLOW and SCMP_ACT_ERRNO are"
            )


def _oci_condition(argument: object, where: str) -> Condition:
    fields = argument if isinstance(argument, dict) else {}
    index, value = fields.get("index"), fields.get("value")
    op = _OCI_OPERATORS.get(str(fields.get("op")).removeprefix("SCMP_CMP_"))
    if type(index) is not int or not 0 <= index <= 5 or type(value) is not int or op is None:
        raise PolicyError(f"{where}.args: {argument!r} is no condition")
    if op != "masked":
        return Condition(index, op, value)
    second = fields.get("valueTwo", 0)
    if type(second) is not int:
        raise PolicyError(f"{where}.args: valueTwo must be a number, not {second!r}")
    return Condition(index, op, second, mask=value)
