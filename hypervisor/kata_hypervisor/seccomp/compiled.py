"""Filters of the shipped policies, from what was compiled with them: so a pod's start compiles none.

Beside each policy lies NAME.compiled, made from it by `make filters` with libseccomp. It is as much a part of
the runtime as its code, and is written at no other time: nothing that a pod does can change it. It names the
SHA-256 of the policy that it was made from. Where that is another by now, or where there is no program for
these features, the policy is read and compiled here and now. Its lines are

    policy SHA256
    features NAME...                       all that the policy has
    THREAD REFUSED FEATURES PLACES CODE    a program

REFUSED is the action for what no rule allows, in hexadecimal. FEATURES are joined by commas, PLACES too: the
instructions that compare an argument with the process id, which is known at run time only; "-" for none. CODE
is an array of struct sock_filter in base64. Standard library only, and little of it.

As code is, a file is read once in a process, or in the one that this was forked from.
"""

from __future__ import annotations

import base64
import os
import struct
from functools import cache

from kata_hypervisor.errors import PolicyError
from kata_hypervisor.seccomp import named_refusal, syscalls
from kata_hypervisor.seccomp.program import INSTRUCTION, PROCESS, Program

try:  # as the runtime's identities: hashlib loads OpenSSL
    from _sha2 import sha256  # Python 3.12 and later
except ImportError:
    from _sha256 import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

POLICIES = os.path.join(os.path.dirname(__file__), "policies")
SUFFIX = ".compiled"
_NONE = "-"
_VALUE = 4
"""Where the value of an instruction is in it (struct sock_filter)."""


def source_of(program: str, arch: str | None = None) -> str:
    """The name of a policy: of a program's, or of the runtime's own process for an empty name."""
    arch = arch or syscalls.native()
    return f"{program}-{arch}" if program else arch


def program_of(
    program: str, features: Collection[str], refused: int, *, thread: str = PROCESS, pid: int = 0
) -> Program:
    """The program of a shipped policy for these features. pid: the value of $pid, where the policy has it.

    program: whose policy, as `policy.load_policy` takes it. refused: the action for all other calls; for
    `named_refusal.UNNAMED` refusals name the call.

    Raises:
        PolicyError: there is no such policy, or it is wrong.
        SealError: it has to be compiled, and libseccomp is missing.
    """
    if found := _find(program, f"{thread} {refused:x} {_joined(sorted(features))}"):
        places, code = found
        return Program(_place(base64.b64decode(code), _split(places), pid))
    return compile_program(program, features, refused, thread=thread, pid=pid)


def features_of(program: str) -> frozenset[str]:
    """Every feature of a shipped policy, beside "base". Raises PolicyError."""
    if text := text_for(program):
        return frozenset(text.partition("\n")[0].split()[1:])
    from kata_hypervisor.seccomp.policy import BASE, load_policy

    return load_policy(program=program).features - {BASE}


def compile_program(
    program: str, features: Collection[str], refused: int, *, thread: str = PROCESS, pid: int = 0
) -> Program:
    """As `program_of`, with libseccomp."""
    from kata_hypervisor.seccomp.compiler import compile_rules
    from kata_hypervisor.seccomp.policy import load_policy

    made = compile_rules(load_policy(program=program).bind(pid=pid).select(features, thread), refused)
    if refused != named_refusal.UNNAMED:
        return made
    return Program(named_refusal.name_refusals(made.code), made.skipped)


def load_all() -> None:
    """Read all that was compiled, for a process whose forks will need some of it. Raises PolicyError."""
    for name in os.listdir(POLICIES):
        if name.endswith(SUFFIX):
            _read(os.path.join(POLICIES, name.removesuffix(SUFFIX)))


def text_for(program: str) -> str:
    """What was compiled from a program's policy, but the first line; nothing where it has changed since.

    Raises PolicyError.
    """
    return _read(os.path.join(POLICIES, source_of(program)))


def _find(program: str, beginning: str) -> list[str]:
    """The words after this beginning of a line; nothing where there is no such line."""
    text = text_for(program)
    beginning = f"\n{beginning} "
    if (at := text.find(beginning)) < 0:
        return []
    at += len(beginning)
    return text[at : text.index("\n", at)].split()


@cache
def _read(path: str) -> str:
    """See `text_for`. path: of both files, without what their names end with."""
    try:
        with open(path + ".toml", "rb") as file:
            digest = sha256(file.read()).hexdigest()
        with open(path + SUFFIX, encoding="ascii") as text:
            first, rest = text.readline(), text.read()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"cannot read the compiled seccomp policy {path}{SUFFIX}: {error}") from None
    return rest if first.split() == ["policy", digest] else ""


def _place(code: bytes, places: list[str], pid: int) -> bytes:
    """The code with a process id in its places."""
    made = bytearray(code)
    for place in map(int, places):
        struct.pack_into("=I", made, place * INSTRUCTION + _VALUE, pid)
    return bytes(made)


def _joined(words: Iterable[str]) -> str:
    return ",".join(words) or _NONE


def _split(word: str) -> list[str]:
    return [] if word == _NONE else word.split(",")


def text_of(program: str, kinds: Iterable[tuple[str, int, Collection[str]]]) -> str:
    """The file of a policy, with a program for each kind: thread, action for what is refused, features.

    Raises: as `program_of`; PolicyError also where this libseccomp does not know all calls of the policy.
    """
    with open(os.path.join(POLICIES, source_of(program) + ".toml"), "rb") as file:
        digest = sha256(file.read()).hexdigest()
    from kata_hypervisor.seccomp.policy import BASE, load_policy

    features = sorted(load_policy(program=program).features - {BASE})
    lines = [f"policy {digest}", " ".join(["features", *features])]
    for thread, refused, wanted in kinds:
        made, other = (compile_program(program, wanted, refused, thread=thread, pid=pid) for pid in _PIDS)
        if made.skipped:
            raise PolicyError(f"this libseccomp does not know {', '.join(made.skipped)}: use a newer one")
        places = _differing(made.code, other.code)
        code = base64.b64encode(_place(made.code, [str(place) for place in places], 0)).decode()
        words = [thread, f"{refused:x}", _joined(sorted(wanted)), _joined(map(str, places)), code]
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


_PIDS = (0x1FFFF1, 0x2FFFF2)


def _differing(one: bytes, other: bytes) -> list[int]:
    """The instructions that compare with the first of _PIDS here and with the second there, and only so."""
    places = []
    for at in range(0, len(one), INSTRUCTION):
        ours, theirs = one[at : at + INSTRUCTION], other[at : at + INSTRUCTION]
        if ours != theirs:
            values = (struct.unpack_from("=I", ours, _VALUE)[0], struct.unpack_from("=I", theirs, _VALUE)[0])
            if ours[:_VALUE] != theirs[:_VALUE] or values != _PIDS:
                raise PolicyError("libseccomp compiles the policy otherwise for another process id")
            places.append(at // INSTRUCTION)
    if len(one) != len(other):
        raise PolicyError("libseccomp compiles the policy otherwise for another process id")
    return places
