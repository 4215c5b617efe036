"""Benchmarks of the seal: what a sealed system call costs, and what the filter costs to make and install.

Each call is made in a loop of machine code, without a filter and under each program in turn, in a child of
its own; the least of all rounds is taken. Since Linux 5.11 the kernel answers a call that a program allows
whatever its arguments without running it, so that a program's order matters to calls with conditions only.

    tree, linear, frequent   our policy for the shim, as libseccomp's binary tree, in its order, and with what
                             a shim calls most first
    firecracker              the published list of Firecracker's VMM thread (1.17, x86_64, musl), in its order
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from results import record

from kata_hypervisor.seccomp import actions, seal, syscalls
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.policy import PROCESS, Condition, Rule, load_policy
from kata_hypervisor.seccomp.program import Program

CALL_NS, SEAL_MS = 30.0, 20.0
"""SPECIFICATION.md, "Budgets"."""
FEATURES = seal.SHIM_FEATURES | {"serial"}
ROUND, BATCHES = 2_000, 20

# loop(count, number, four arguments): the call, count times.
LOOP = bytes.fromhex(
    "535541544155415641574889fb4989f44989d54989ce4d89c74c89cd4c89e04c89ef4c89f64c89fa4989ea4531c04531"
    "c90f0548ffcb75e4415f415e415d415c5d5bc3"
)

# What a shim calls, the most frequent first (a pod with a hundred execs).
FREQUENT = (
    "getpid",
    "epoll_wait",
    "epoll_ctl",
    "sendto",
    "read",
    "splice",
    "recvfrom",
    "write",
    "ioctl",
    "close",
)

UNCONDITIONAL = """
epoll_ctl epoll_pwait exit exit_group open read write writev fsync close uname eventfd2 io_uring_enter
io_uring_setup io_uring_register brk clock_gettime connect fstat ftruncate lseek mremap munmap recvfrom
rt_sigprocmask rt_sigreturn sigaltstack sched_yield
"""
# Call, and for each of its rules the arguments that must be equal.
CONDITIONAL: Mapping[str, Sequence[Mapping[int, int]]] = {
    "accept4": [{3: 0x80000}],
    "fcntl": [{1: 2, 2: 1}],
    "futex": [{1: 0}, {1: 1}, {1: 128}, {1: 137}, {1: 129}],
    "madvise": [{2: 4}],
    "mmap": [{3: 50}, {3: 1}, {3: 34}, {3: 32769}],
    "rt_sigaction": [{0: 6}],
    "socket": [{0: 1, 1: 0x80001, 2: 0}],
    "tkill": [{1: 6}, {1: 35}],
    "timerfd_settime": [{1: 0}],
    "ioctl": [
        *({1: request} for request in (0x5421, 0x5413, 0x5401, 0x5402)),
        *({1: request} for request in (0x4010AE42, 0xC208AE62, 0x8030AE7C, 0x8070AE9F)),
    ],
}

# Calls that both policies allow and that do nothing.
CALLS: Mapping[str, tuple[str, tuple[int, int, int, int]]] = {
    "read": ("read", (-1, 0, 0, 0)),
    "recvfrom": ("recvfrom", (-1, 0, 0, 0)),
    "ioctl FIONBIO": ("ioctl", (-1, 0x5421, 0, 0)),
    "futex wake": ("futex", (0, 129, 0, 0)),
}


def firecracker() -> list[Rule]:
    """Its rules, in our form; conditions are on 32 bits, as Firecracker's."""
    rules = [Rule(tuple(UNCONDITIONAL.split()))]
    for call, alternatives in CONDITIONAL.items():
        for equal in alternatives:
            conditions = [Condition(index, "masked", value, 0xFFFFFFFF) for index, value in equal.items()]
            rules.append(Rule((call,), tuple(conditions)))
    return rules


def measure_calls(code: bytes) -> list[float]:
    """Nanoseconds of each of CALLS under a program, in a child; without one for an empty program."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with mmap.mmap(-1, len(LOOP), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
            page.write(LOOP)
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            loop = ctypes.CFUNCTYPE(None, ctypes.c_long, ctypes.c_long, *[ctypes.c_long] * 4)(address)
            numbers = [(syscalls.number_of(call), arguments) for call, arguments in CALLS.values()]
            if code:
                kernel.install(code, all_threads=False, listener=False)
            spent = []
            for number, arguments in numbers:
                loop(ROUND, number, *arguments)
                batches = []
                for _ in range(BATCHES):
                    start = time.perf_counter_ns()
                    loop(ROUND, number, *arguments)
                    batches.append(time.perf_counter_ns() - start)
                spent.append(min(batches) / ROUND)
            os.write(writer, struct.pack(f"{len(spent)}d", *spent))
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        data = answer.read()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) or not data:
        raise RuntimeError("the child that makes the calls has failed: a program refuses what it measures")
    return list(struct.unpack(f"{len(CALLS)}d", data))


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """The median of several."""
    spent = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        work()
        spent.append((time.perf_counter_ns() - start) / 1e6)
    return statistics.median(spent)


def measure_install(program: Program) -> float:
    """Milliseconds of installing a program on all threads, with a listener, in a child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        start = time.perf_counter_ns()
        kernel.install(program.code, all_threads=True, listener=True)
        os.write(writer, struct.pack("d", (time.perf_counter_ns() - start) / 1e6))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        (spent,) = struct.unpack("d", answer.read())
    os.waitpid(pid, 0)
    return float(spent)


ONCE = """
import os, time
import kata_runtime.shim.server
start = time.process_time_ns()
from kata_hypervisor.seccomp import seal
made = seal.build({features!r}, "enforce")
listener = made.install()
spent = time.process_time_ns() - start
os.write(1, str(spent / 1e6).encode())
os._exit(0)
"""


def measure_once() -> float:
    """Milliseconds of CPU for all of it in a fresh interpreter that has loaded what a shim has."""
    code = ONCE.format(features=sorted(FEATURES))
    return float(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout)


def _over_firecracker(spent: Mapping[str, Sequence[Sequence[float]]]) -> list[float]:
    """Round by round, what our filter adds to a call over what Firecracker's list adds, compiled linearly."""
    rounds = zip(spent["tree"], spent["firecracker"], spent["none"], strict=True)
    means = ([statistics.mean(row) for row in rows] for rows in rounds)
    return [(ours - bare) / (theirs - bare) for ours, theirs, bare in means if theirs > bare]


def main(rounds: int) -> None:
    """Measure, and print a table and a line for what happens once."""
    ours = load_policy("x86_64").bind(pid=os.getpid()).select(FEATURES, PROCESS)
    makers: dict[str, Callable[[], Program]] = {
        "tree": lambda: compile_rules(ours, actions.NOTIFY, tree=True),
        "linear": lambda: compile_rules(ours, actions.NOTIFY, tree=False),
        "frequent": lambda: compile_rules(ours, actions.NOTIFY, tree=False, frequent=FREQUENT),
        "firecracker": lambda: compile_rules(firecracker(), actions.TRAP, tree=False),
    }
    programs = {name: make() for name, make in makers.items()}
    spent: dict[str, list[list[float]]] = {name: [] for name in ["none", *programs]}
    for _ in range(rounds):
        for name, measured in spent.items():
            measured.append(measure_calls(programs[name].code if name in programs else b""))
    least = {name: [min(column) for column in zip(*rows, strict=True)] for name, rows in spent.items()}
    bare = [f"{call} {ns:.0f}" for call, ns in zip(CALLS, least["none"], strict=True)]
    print(f"ns without a filter: {', '.join(bare)}")
    print(f"{'ns above no filter':<20}" + "".join(f"{call:>16}" for call in CALLS) + f"{'mean':>8}")
    extra = {name: [a - b for a, b in zip(least[name], least["none"], strict=True)] for name in programs}
    for name, row in extra.items():
        print(f"{name:<20}" + "".join(f"{ns:>16.1f}" for ns in row) + f"{statistics.mean(row):>8.1f}")
    record("a sealed call over an unsealed one", [statistics.mean(extra["tree"])], unit="ns", budget=CALL_NS)
    base = statistics.mean(extra["firecracker"])
    record("a sealed call, over one with Firecracker's list", _over_firecracker(spent))
    print(
        "ratio to firecracker: "
        + ", ".join(f"{name} {statistics.mean(extra[name]) / base:.2f}" for name in makers)
    )
    for name, make in makers.items():
        install = statistics.median(measure_install(programs[name]) for _ in range(rounds))
        compiled = milliseconds(make, rounds)
        size = len(programs[name])
        print(f"{name}: {size} instructions, compiled in {compiled:.2f} ms, installed in {install:.2f} ms")
    print(f"policy loaded in {milliseconds(lambda: load_policy('x86_64'), rounds):.1f} ms")
    seals = [measure_once() for _ in range(rounds)]
    record("the seal", seals, unit="ms of CPU", budget=SEAL_MS)
    once = statistics.median(seals)
    print(f"the seal in all (imports, compiled policy, install): {once:.1f} ms of CPU")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    main(parser.parse_args().rounds)
