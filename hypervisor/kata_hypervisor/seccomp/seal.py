"""The seal: after it a process can do what its policy lists, and nothing else, for the rest of its life.

It is built while files can still be opened and put on in one call:

    seal = build(SHIM_FEATURES | driver.seal_features, "enforce")
    ...                      # everything is opened, loaded and mapped
    listener = seal.install()  # to be passed to the supervisor, which is another process
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from kata_hypervisor import libc
from kata_hypervisor.errors import PolicyError
from kata_hypervisor.seccomp import actions, compiled, named_refusal, syscalls
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.program import PROCESS, VCPU, Program

if TYPE_CHECKING:
    from kata_hypervisor.seccomp.policy import Policy

__all__ = ["BROKER", "MODES", "SHIM_FEATURES", "Mode", "Seal", "build", "build_broker", "settle_libc"]

Mode = Literal["enforce", "log", "off"]
MODES: tuple[Mode, ...] = get_args(Mode)

SHIM_FEATURES = frozenset({"serve", "broker", "stdio"})
"""What every shim does after the seal; a driver adds its own (`seal_features`)."""

BROKER = "broker"
"""Whose policy the broker's is; its features are in there."""


class Seal(NamedTuple):
    """A filter that is ready to be installed.

    mode: in "enforce" and in "log" the same program is installed, and a call outside of the policy is a
    notification to whoever holds the listener: that one refuses it, or lets it pass and writes it down. In
    "off" nothing is installed. process: the program of every thread. vcpu: what a virtual CPU's thread puts
    on itself as well, None without the feature "vcpu"; there a call outside of the policy ends the process,
    because a process has one listener at most ("log": it is only written to the kernel's audit log).
    """

    mode: Mode
    features: frozenset[str]
    process: Program | None = None
    vcpu: Program | None = None

    @property
    def name(self) -> str:
        """Which policy, in a word or two: for sentences."""
        return f"{syscalls.native()} [{' '.join(sorted(self.features))}]"

    def describe(self) -> str:
        """What holds the process, on one line."""
        if self.process is None:
            return "the runtime's process runs without a seccomp filter"
        skipped = f", without what this host lacks: {', '.join(self.skipped)}" if self.skipped else ""
        return f"sealed by policy {self.name}, mode {self.mode}{skipped}"

    @property
    def skipped(self) -> tuple[str, ...]:
        """Calls of the policy that this architecture or this libseccomp lacks: they are not allowed."""
        programs = [program for program in (self.process, self.vcpu) if program is not None]
        return tuple(sorted({name for program in programs for name in program.skipped}))

    def install(self) -> int | None:
        """Seal the process, every thread of it; return the listener's descriptor, or None when it is off.

        Raises:
            SealError: it is not sealed, and must not go on.
        """
        if self.process is None:
            return None
        return kernel.install(self.process.code, all_threads=True, listener=True)

    def install_vcpu(self) -> None:
        """Put the second filter on the calling thread. Raises SealError."""
        if self.vcpu is not None:
            kernel.install(self.vcpu.code, all_threads=False, listener=False, sealed=True)


def build(
    features: Collection[str], mode: Mode, *, policy: Policy | None = None, pid: int | None = None
) -> Seal:
    """The filters that these features need, for a process (the caller's by default).

    policy: to be compiled; by default the one that is shipped, which is compiled already.

    Raises:
        PolicyError: the policy is wrong, or knows no such feature or mode.
        SealError: libseccomp is missing or has failed.
    """
    if mode not in MODES:
        raise PolicyError(f"there is no seccomp mode {mode!r}: there are {', '.join(MODES)}")
    wanted = frozenset(features)
    if mode == "off":
        return Seal(mode, wanted)
    pid = os.getpid() if pid is None else pid

    def program(thread: str, refused: int) -> Program:
        if policy is None:
            return compiled.program_of("", wanted, refused, thread=thread, pid=pid)
        from kata_hypervisor.seccomp.compiler import compile_rules

        return compile_rules(policy.bind(pid=pid).select(wanted, thread), refused)

    process = program(PROCESS, actions.NOTIFY)
    if VCPU not in wanted:
        return Seal(mode, wanted, process)
    return Seal(mode, wanted, process, program(VCPU, VCPU_REFUSED[mode]))


VCPU_REFUSED = {"enforce": actions.KILL_PROCESS, "log": actions.LOG}
BROKER_REFUSED = {"enforce": named_refusal.UNNAMED, "log": actions.LOG}
"""By mode: what comes of a call that is in no rule."""


def build_broker(features: Collection[str], mode: Mode, pid: int) -> Program:
    """The filter that a broker needs after the seal, for the broker of this process id.

    A feature that the policy does not have takes a capability, and no call that the others do not make.
    Nobody supervises it: in "enforce" a call outside of the policy is refused with an errno that names it,
    see `named_refusal`; in "log" the kernel's audit log names it.

    Raises: as `build`.
    """
    known = compiled.features_of(BROKER) & frozenset(features)
    return compiled.program_of(BROKER, known, BROKER_REFUSED[mode], pid=pid)


def settle_libc() -> None:
    """Have the C library do now what it would do later, when its ways are closed.

    Before the process's first thread: malloc makes no arenas for threads, because it opens a file of /proc
    when it makes one smaller. The first thread of a process sets up a signal, and loads what ends threads.
    """
    libc.limit_arenas()
    libc.load_unwinder()
    thread = threading.Thread(target=int, name="settling")
    thread.start()
    thread.join()
