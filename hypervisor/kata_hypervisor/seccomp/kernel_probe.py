"""The kernel, probed call by call: whether a filter does what its policy says.

A probe is one system call with its arguments. A forked child puts the program itself on, with an errno that
no call returns in the place of the answer that ends a process, and makes each probe. What is let through is
made for real, so all other arguments are such that no call does anything: no descriptor, no address.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import select
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from kata_hypervisor import libc
from kata_hypervisor.errors import SealError
from kata_hypervisor.seccomp import actions, syscalls
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.rules import ALL_BITS, INT_BITS, Condition, Rule

REFUSED, KILLED = "refused", "killed"
PASSES = "passes"

_MARK = 4000  # an errno that no call returns; the largest that a filter can give is 4095
_NOTHING = ALL_BITS  # no descriptor, no address, no flags that exist
_X32 = 0x40000000
_RETURN = 0x06
_PATIENCE = 2  # seconds that one call may take
_ENDINGS = (
    signal.SIGALRM,
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGABRT,
    signal.SIGSYS,
)
_RECORD = struct.Struct("=Bqi")
_MADE, _RETURNED = 1, 2
_MESSAGE = 512
_GETPID_OF_I386 = bytes.fromhex("b814000000 cd80 c3")  # mov eax, 20; int 0x80; ret

# The kernel answers these before it asks any filter (Linux 6.11 and later): they do nothing but end a process
# that calls them elsewhere than from the kernel's own probes.
_EXEMPT = ("uretprobe", "uprobe")


@dataclass(frozen=True, slots=True)
class Probe:
    """One call to be made. rule: the number of the rule that it tries, 0 for none.

    what: the case, for people. expected: REFUSED, KILLED, PASSES, or "errno NAME".
    """

    rule: int
    call: str
    number: int
    arguments: tuple[int, ...]
    what: str
    expected: str


def probes_of(rules: Sequence[Rule], arch: str) -> Iterator[Probe]:
    """Every rule with what it allows and with each condition just missed; then everything else there is."""
    numbers = syscalls.numbers(arch)
    alternatives: dict[str, list[Rule]] = {}
    for rule in rules:
        for call in rule.calls:
            if call in numbers:
                alternatives.setdefault(call, []).append(rule)
    for rule in rules:
        for call in rule.calls:
            if call in numbers:
                yield from _probes_of_rule(rule, call, numbers[call], alternatives[call])
    for call, number in numbers.items():
        if call not in alternatives and call not in _EXEMPT:
            yield Probe(0, call, number, (_NOTHING,) * 6, "not in the policy", REFUSED)
    first = max(numbers.values()) + 1
    yield Probe(0, f"call {first}", first, (_NOTHING,) * 6, "a call that Linux may have one day", REFUSED)
    if arch == "x86_64":
        yield Probe(0, "getpid of x32", numbers["getpid"] | _X32, (_NOTHING,) * 6, "a foreign call", KILLED)


def _probes_of_rule(rule: Rule, call: str, number: int, alternatives: Sequence[Rule]) -> Iterator[Probe]:
    arguments = [_NOTHING] * 6
    for condition in rule.conditions:
        arguments[condition.index] = _satisfying(condition)
    answer = PASSES if rule.action == actions.ALLOW else actions.describe(rule.action)
    yield Probe(rule.number, call, number, tuple(arguments), rule.when, answer)
    for condition in rule.conditions:
        index, right = condition.index, arguments[condition.index]
        if condition.mask is not None and condition.mask <= INT_BITS:
            above = right ^ (ALL_BITS ^ INT_BITS)
            changed = (*arguments[:index], above, *arguments[index + 1 :])
            yield Probe(rule.number, call, number, changed, f"{condition}, upper half changed", answer)
        for wrong in _missing(condition, right):
            changed = (*arguments[:index], wrong, *arguments[index + 1 :])
            if not any(_allows(other, changed) for other in alternatives):
                what = f"argument {index} is {wrong:#x}, not {condition}"
                yield Probe(rule.number, call, number, changed, what, REFUSED)


def _allows(rule: Rule, arguments: Sequence[int]) -> bool:
    return all(condition.allows(arguments[condition.index]) for condition in rule.conditions)


def _satisfying(condition: Condition) -> int:
    """An argument that a condition allows."""
    value = condition.number
    candidates = (value, value + 1, value - 1)
    return next(word & ALL_BITS for word in candidates if condition.allows(word & ALL_BITS))


def _missing(condition: Condition, right: int) -> Iterator[int]:
    """Arguments that a condition just does not allow: each bit of it changed, and its neighbours."""
    bits = [1 << n for n in range(64) if condition.mask is None or condition.mask >> n & 1]
    values = [right ^ bit for bit in bits] if condition.op in ("eq", "masked") else []
    values += [condition.number - 1, condition.number, condition.number + 1, 0, ALL_BITS]
    yield from (value for value in dict.fromkeys(v & ALL_BITS for v in values) if not condition.allows(value))


# -- asking the kernel -------------------------------------------------------------------------------------


def try_programs(programs: Sequence[tuple[bytes, int]], probes: Sequence[Probe]) -> list[str]:
    """Make each probe under these programs, stacked in this order; what the kernel did.

    programs: the code of each and its default action. Results: REFUSED; KILLED, which is SIGSYS; "errno
    NAME", which may be the filter's or the call's own; or how the call ended otherwise.

    Raises:
        SealError: the programs could not be installed.
    """
    codes = [_marked(code, default) for code, default in programs]
    outcomes: list[str] = []
    with mmap.mmap(-1, (len(probes) + 1) * _RECORD.size + _MESSAGE) as board:
        while len(outcomes) < len(probes):
            before = len(outcomes)
            status = _run_child(partial(_make, codes, probes, before, board))
            outcomes += _read_outcomes(board, before, len(probes), status)
            if len(outcomes) == before:
                message = board[-_MESSAGE:].rstrip(b"\0").decode("utf-8", "replace")
                raise SealError(message or f"the child that makes the probes {_ending(status)}")
    return outcomes


def try_foreign_call(programs: Sequence[tuple[bytes, int]]) -> str | None:
    """Make a 32-bit call on x86_64, as `try_programs` does; None where this kernel has none of them."""
    codes = [_marked(code, default) for code, default in programs]
    function = ctypes.CFUNCTYPE(ctypes.c_int)
    with mmap.mmap(-1, len(_GETPID_OF_I386), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as code:
        code.write(_GETPID_OF_I386)
        anchor = (ctypes.c_char * len(code)).from_buffer(code)
        call = function(ctypes.addressof(anchor))

        known = _run_child(call)
        status = _run_child(partial(_put_on_and_call, codes, call))
        del call, anchor
    return None if os.WIFSIGNALED(known) else _outcome_of_end(status)


def _marked(code: bytes, default: int) -> bytes:
    """The same program, which answers with the mark where it gave the default answer."""
    instructions = [list(parts) for parts in struct.iter_unpack("=HBBI", code)]
    for instruction in instructions:
        if instruction[0] == _RETURN and instruction[3] == default:
            instruction[3] = actions.errno(_MARK)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _run_child(work: Callable[[], object]) -> int:
    """Fork a child that does this and ends; return its wait status."""
    pid = os.fork()
    if pid:
        return _wait(pid)
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # A handler could not return under a filter that refuses what it takes.
        for number in _ENDINGS:
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(_PATIENCE)
        work()
    finally:
        # The filter may refuse this as well: the C library then makes the child crash.
        os._exit(0)


def _wait(pid: int) -> int:
    """Wait for a child, which is killed when not even its alarm has ended it."""
    process = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(process, select.POLLIN)
        if not poller.poll(2000 * _PATIENCE):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]
    finally:
        os.close(process)


def _put_on_and_call(codes: Sequence[bytes], call: Callable[[], object]) -> None:
    _put_on(codes)
    call()


def _put_on(codes: Sequence[bytes]) -> None:
    for number, code in enumerate(codes):
        kernel.install(code, all_threads=False, listener=False, sealed=number > 0)


def _make(codes: Sequence[bytes], probes: Sequence[Probe], first: int, board: mmap.mmap) -> None:
    """In the child: results go to shared memory, because no call of its own may be allowed any more."""
    try:
        _put_on(codes)
    except SealError as error:
        board[-_MESSAGE:] = str(error).encode()[:_MESSAGE].ljust(_MESSAGE, b"\0")
        return
    for index in range(first, len(probes)):
        _RECORD.pack_into(board, index * _RECORD.size, _MADE, 0, 0)
        result, number = libc.call(probes[index].number, probes[index].arguments)
        _RECORD.pack_into(board, index * _RECORD.size, _RETURNED, result, number)


def _read_outcomes(board: mmap.mmap, first: int, count: int, status: int) -> Iterator[str]:
    for index in range(first, count):
        state, result, number = _RECORD.unpack_from(board, index * _RECORD.size)
        if state == _MADE:
            yield _outcome_of_end(status)
        if state != _RETURNED:
            return
        if number == _MARK:
            yield REFUSED
        else:
            yield f"errno {errno.errorcode.get(number, number)}" if number else f"returned {result}"


def _outcome_of_end(status: int) -> str:
    return KILLED if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS else _ending(status)


def _ending(status: int) -> str:
    """How a child ended: "ended with status 1" or "ended by SIGSEGV"."""
    code = os.waitstatus_to_exitcode(status)
    return f"ended with status {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
