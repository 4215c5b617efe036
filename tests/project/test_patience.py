"""Who waits, and for how long: nothing gives up after a time that the code has chosen, but what is listed.

A busy host is slow, and only who asks or the operator knows how slow it may be: a deadline is the caller's or
the configuration's. Whatever waits for a number of the code's own is found here, by the calls that take a
deadline and by names, and needs a reason why nothing is lost when the time is over on a host that is busy.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("runtime/kata_runtime", "hypervisor/kata_hypervisor", "agent/kata_agent")

BOUNDED = ("timeout", "timeout_at", "fail_after", "move_on_after", "wait_for", "wait", "settimeout")
BOUNDED_TOO = ("join", "alarm", "poll")
"""Functions whose numbers are times until somebody gives up; those of `time.sleep` are pauses."""
WORDS = {"timeout", "deadline", "budget", "patience", "within", "grace"}
"""Words in the names of constants, parameters and variables that are such times."""
CLOCKS = {"monotonic", "current_time"}
UNITS = {0, 1, 1000, 1000000, 1000000000}
"""Numbers that convert a time, or that are none."""

SAID = "kata-ctl's own: its user is told what was waited for and asks again; no pod depends on it"
RETRIED = "what is left then is in the journal: `shim delete`, a sweep and kata-ctl cleanup undo it again"
REASON = "only which of two reasons is told depends on it: the end is known already"
ENDING = "who is waited for has been killed or is about to be; what follows is the longer way to the same end"
READER = "a reader that takes nothing: nobody can tell it from one that never will, and others wait for it"
NONE = "the name of something else than a time"
THERE = "what is waited for is there already, or never comes: the program that sends it has ended"

ALLOWED = {
    "agent/kata_agent/client.py connect: 2": "how much longer the next try gets",
    "agent/kata_agent/client.py FIRST_TRY": "a try, not the last: each next one gets twice as long",
    "agent/kata_agent/guest/container.py _END_BUDGET": REASON,
    "agent/kata_agent/guest/signals.py SETTLING": "the signal is delivered then",
    "agent/kata_agent/guest/stdio.py _GRACE": "output of who outlives the process, as with upstream's agent",
    "agent/kata_agent/guest/wiring.py __init__: 5": THERE,
    "agent/kata_agent/guest/wiring.py receive: 5": THERE,
    "agent/kata_agent/ttrpc/status.py DEADLINE_EXCEEDED": NONE,
    "agent/kata_agent/ttrpc/client.py _LONGEST_TIMEOUT": "the largest number that the protocol can say",
    "hypervisor/kata_hypervisor/children.py MOMENT": REASON,
    "hypervisor/kata_hypervisor/dragonball/driver.py MOMENT": REASON,
    "hypervisor/kata_hypervisor/dragonball/driver.py _blame_file_server: 10": REASON,
    "hypervisor/kata_hypervisor/dragonball/in_process.py END_PATIENCE": (
        "a thread that hangs in the host's kernel keeps its memory, until this process exits"
    ),
    "hypervisor/kata_hypervisor/dragonball/cpuid.py TSC_DEADLINE": NONE,
    "hypervisor/kata_hypervisor/dragonball/processor_state.py IA32_TSC_DEADLINE": NONE,
    "hypervisor/kata_hypervisor/kvm/probe.py DEADLINE": SAID,
    "hypervisor/kata_hypervisor/lifecycle.py EXIT_GRACE": REASON,
    "hypervisor/kata_hypervisor/qemu/driver.py EXIT_GRACE": REASON,
    "hypervisor/kata_hypervisor/qemu/qmp_control.py DYING": REASON,
    "hypervisor/kata_hypervisor/qemu/qmp_control.py MOMENT": REASON,
    "hypervisor/kata_hypervisor/rest_machine.py DYING": REASON,
    "hypervisor/kata_hypervisor/rest_machine.py __init__: 2": ENDING,
    "hypervisor/kata_hypervisor/firecracker/driver.py __init__: 2": ENDING,
    "hypervisor/kata_hypervisor/firecracker/unikernel.py _verify_confinement: 2": "half of the patience",
    "hypervisor/kata_hypervisor/cloud_hypervisor/driver.py __init__: 2": ENDING,
    "hypervisor/kata_hypervisor/seccomp/constraint.py _BUDGET": NONE,
    "hypervisor/kata_hypervisor/seccomp/kernel_probe.py _PATIENCE": SAID,
    "hypervisor/kata_hypervisor/seccomp/kernel_probe.py _wait: 2000": SAID,
    "hypervisor/kata_hypervisor/seccomp/readback.py PATIENCE": "a thread that gets no processor for so long",
    "hypervisor/kata_hypervisor/seccomp/readback.py _MOMENT": "how long it looks without a pause in between",
    "hypervisor/kata_hypervisor/solo5/devices.py LONGEST_WAIT": "it looks again",
    "hypervisor/kata_hypervisor/solo5/tender.py _stop_budget": ENDING,
    "runtime/kata_runtime/broker/cgroups.py GRACE": RETRIED,
    "runtime/kata_runtime/broker/children.py GRACE": RETRIED,
    "runtime/kata_runtime/broker/cleanup.py LOCK_TIMEOUT": RETRIED,
    "runtime/kata_runtime/broker/client.py UNTIL_CONFIGURED": "nothing is configured yet",
    "runtime/kata_runtime/broker/context.py GRACE": ENDING,
    "runtime/kata_runtime/broker/logger.py PATIENCE": (
        "a logger that neither ends nor obeys would keep its pod for ever: as with containerd's own shim"
    ),
    "runtime/kata_runtime/broker/processes.py GRACE": RETRIED,
    "runtime/kata_runtime/broker/supervisor.py GRACE": ENDING,
    "runtime/kata_runtime/broker/hook_declaration.py MAX_TIMEOUT": "the largest number that a hook may say",
    "runtime/kata_runtime/broker/operations/lifecycle.py announce_seal: 3600": "the most that is configured",
    "runtime/kata_runtime/broker/server.py LOOK": "when it looks again whether the bundle exists",
    "runtime/kata_runtime/ctl/check.py PROGRAM_DEADLINE": SAID,
    "runtime/kata_runtime/ctl/network.py TIMEOUT": SAID,
    "runtime/kata_runtime/ctl/shim_call.py TIMEOUT": SAID,
    "runtime/kata_runtime/pod/exits.py END_BUDGET": "the agent has lost the process's status: none will come",
    "runtime/kata_runtime/pod/sandbox.py END_BUDGET": REASON,
    "runtime/kata_runtime/pod/health.py GUEST_DEATH_GRACE": REASON,
    "runtime/kata_runtime/pod/port_forwarding.py _PATIENCE": READER,
    "runtime/kata_runtime/shim/server.py FLUSH_BUDGET": READER,
    "runtime/kata_runtime/shim/zygote_call.py PATIENCE": "the launcher starts the shim itself then",
    "runtime/kata_runtime/zygote/server.py LOOK": "when it looks again whether its code has changed",
    "runtime/kata_runtime/zygote/server.py MAX_AGE": "when it begins anew, which nobody waits for",
    "runtime/kata_runtime/zygote/server.py PATIENCE": "the launcher starts the shim itself then",
    "runtime/kata_runtime/stdio/pumps.py deliver: 0.001": "the first pause, assigned beside the deadline",
    "runtime/kata_runtime/stdio/pumps.py DELIVERY_BUDGET": READER,
    "runtime/kata_runtime/stdio/pumps.py STALL_BUDGET": READER,
}


def is_time(name: str) -> bool:
    return not WORDS.isdisjoint(name.lower().strip("_").split("_"))


class Finder(ast.NodeVisitor):
    """Collects the numbers of one module that bound a wait: constants by name, literals by their function."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self._functions: list[str] = []

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args]
        with_default = named[len(named) - len(arguments.defaults) :]
        self._functions.append(node.name)
        pairs = [*zip(with_default, arguments.defaults, strict=True)]
        for argument, default in [*pairs, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]:
            if default is not None and is_time(argument.arg):
                self._take(default)
        self.generic_visit(node)
        self._functions.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    def visit_Call(self, node: ast.Call) -> None:
        name, owner = called(node), getattr(node.func, "value", None)
        of_path = getattr(owner, "attr", getattr(owner, "id", "")) in ("path", "posixpath")
        if name in (*BOUNDED, *BOUNDED_TOO) and not of_path and not isinstance(owner, ast.Constant):
            self._take(*node.args)
        self._take(*(keyword.value for keyword in node.keywords if is_time(keyword.arg or "")))
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._assigned(node.targets, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assigned([node.target], node.value)
        self.generic_visit(node)

    def _assigned(self, targets: Iterable[ast.expr], value: ast.expr) -> None:
        each = [one for target in targets for one in getattr(target, "elts", [target])]
        names = [str(getattr(one, "attr", getattr(one, "id", ""))) for one in each]
        timed = [name for name in names if is_time(name)]
        if not self._functions and _numbers(value):
            self.found.update(timed)  # a constant of the module, or of a class
        elif self._functions and (timed or of_clock(value)):
            self._take(value)

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        if any(of_clock(side) or getattr(side, "id", "") in ("passed", "elapsed") for side in sides):
            self._take(*sides)
        self.generic_visit(node)

    def _take(self, *values: ast.expr) -> None:
        function = self._functions[-1] if self._functions else "module"
        for value in values:
            for node in ast.walk(value):
                name = getattr(node, "id", getattr(node, "attr", ""))
                if name.strip("_").isupper():
                    self.found.add(name)
            self.found.update(f"{function}: {number:g}" for number in _numbers(value) - UNITS)


def _numbers(value: ast.expr) -> set[float]:
    constants = (node.value for node in ast.walk(value) if isinstance(node, ast.Constant))
    return {one for one in constants if isinstance(one, int | float) and not isinstance(one, bool)}


def called(node: ast.Call) -> str:
    return str(getattr(node.func, "attr", getattr(node.func, "id", "")))


def of_clock(value: ast.expr) -> bool:
    return any(isinstance(node, ast.Call) and called(node) in CLOCKS for node in ast.walk(value))


def found_in(text: str) -> set[str]:
    finder = Finder()
    finder.visit(ast.parse(text))
    return finder.found


def test_who_waits_for_a_time_of_the_code_s_own_is_listed_with_a_reason() -> None:
    found = {
        f"{path.relative_to(ROOT)} {one}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if not path.stem.endswith("_pb2")
        for one in found_in(path.read_text(encoding="utf-8"))
    }
    assert sorted(found - ALLOWED.keys()) == [], "let the caller or the configuration say how long"
    assert sorted(ALLOWED.keys() - found) == [], "listed, and not there any more"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("async def f():\n    async with asyncio.timeout(5):\n        await x()", {"f: 5"}),
        ("async def f():\n    with anyio.move_on_after(SOON):\n        await x()", {"SOON"}),
        ("def f(sock):\n    sock.settimeout(module.SOON)", {"SOON"}),
        ("def f(event):\n    event.wait(2.5)", {"f: 2.5"}),
        ("def f(thread):\n    thread.join(timeout=3)", {"f: 3"}),
        ("def f(budget: float = 10.0): ...", {"f: 10"}),
        ("async def f(*, start_budget=30): ...", {"f: 30"}),
        ("def f():\n    g(within=7)", {"f: 7"}),
        ("def f():\n    end = time.monotonic() + 4", {"f: 4"}),
        ("def f(end):\n    if time.monotonic() - end > 4: ...", {"f: 4"}),
        ("def f(poll):\n    poll.poll(1e3 * left)", set()),
        ("START_BUDGET = 30.0", {"START_BUDGET"}),
        ("class A:\n    patience = 9", {"patience"}),
        ("def f():\n    time.sleep(0.01)\n    ', '.join(x)\n    os.path.join(HERE, NAME)", set()),
        ("async def f(seconds):\n    async with asyncio.timeout(seconds):\n        await x()", set()),
        ("def f(timeout=None):\n    self.deadline = None if timeout is None else now() + timeout", set()),
    ],
)
def test_what_is_found(code: str, expected: set[str]) -> None:
    assert found_in(code) == expected
