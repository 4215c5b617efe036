"""Installing filters on real processes, and every way in which the kernel can refuse."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from forked import in_child
from kata_hypervisor.errors import PolicyError, SealError
from kata_hypervisor.seccomp import actions, seal
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.confinement import read_threads
from kata_hypervisor.seccomp.policy import Condition, Rule, load_policy

NEW_LISTENER, GET_ACTION_AVAIL = 8, 2


def harmless() -> bytes:
    """A filter that nothing here runs into."""
    return compile_rules([Rule(("reboot",), action=actions.errno(errno.EPERM))], actions.ALLOW).code


def install_after(rules: Sequence[Rule], *, listener: bool = True) -> str:
    """The error when a kernel that answers as these rules is asked to install a filter."""
    code = compile_rules(rules, actions.ALLOW).code
    wanted = harmless()

    def work() -> str:
        kernel.install(code, all_threads=False, listener=False)
        try:
            kernel.install(wanted, all_threads=True, listener=listener)
        except SealError as error:
            return str(error)
        return "installed"

    return in_child(work)


def own_threads() -> list[tuple[int, int, bool]]:
    """Of each thread: seccomp mode, number of filters, whether new privileges were given up."""
    return [(thread.mode, thread.filters, thread.no_new_privs) for thread in read_threads(os.getpid())]


def test_a_filter_is_on_every_thread_that_there_is() -> None:
    code = harmless()

    def work() -> list[tuple[int, int, bool]]:
        go = threading.Event()
        threads = [threading.Thread(target=go.wait, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        listener = kernel.install(code, all_threads=True, listener=True)
        assert listener is not None
        return own_threads()

    before = own_threads()[0][1]
    assert in_child(work) == [(2, before + 1, True)] * 3


def test_without_all_threads_only_the_caller_has_it() -> None:
    code = harmless()

    def work() -> list[int]:
        go = threading.Event()
        threading.Thread(target=go.wait, daemon=True).start()
        assert kernel.install(code, all_threads=False, listener=False) is None
        return [filters for _, filters, _ in own_threads()]

    before = own_threads()[0][1]
    assert in_child(work) == [before + 1, before]


@pytest.mark.parametrize("code", [b"", b"1234567", b"\0" * 8 * 4097])
def test_programs_that_are_none(code: bytes) -> None:
    with pytest.raises(SealError, match=f"cannot install a seccomp filter of {len(code)} bytes"):
        in_child(lambda: kernel.install(code, all_threads=True, listener=True))


def test_a_program_that_the_kernel_refuses() -> None:
    with pytest.raises(SealError, match="cannot install the seccomp filter: Invalid argument"):
        in_child(lambda: kernel.install(b"\xff" * 8, all_threads=True, listener=True))


@pytest.mark.parametrize("listener", [True, False])
def test_a_thread_with_a_filter_of_its_own_is_named(listener: bool) -> None:
    code = harmless()

    def work() -> tuple[str, list[int]]:
        ready, go = threading.Event(), threading.Event()

        def other() -> None:
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("stray")
            kernel.install(code, all_threads=False, listener=False)
            ready.set()
            go.wait()

        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        ready.wait()
        try:
            kernel.install(code, all_threads=True, listener=listener)
        except SealError as error:
            message = str(error).replace(str(thread.native_id), "TID")
            return message, [filters for _, filters, _ in own_threads()]
        return "installed", []

    before = own_threads()[0][1]
    message, filters = in_child(work)
    assert message == (
        'cannot install the seccomp filter: thread "stray" (tid TID) has a filter of its own, '
        "which the other threads do not have"
    )
    assert filters == [before, before + 1]


def test_a_process_that_is_supervised_already() -> None:
    code = harmless()

    def work() -> str:
        assert kernel.install(code, all_threads=True, listener=True) is not None
        try:
            kernel.install(code, all_threads=True, listener=True)
        except SealError as error:
            return str(error)
        return "installed"

    assert "this process has one with a listener already" in in_child(work)


def test_a_process_that_is_filtered_already_is_sealed_on_top() -> None:
    assert install_after([Rule(("reboot",), action=actions.errno(errno.EPERM))]) == "installed"


def test_a_kernel_without_notifications() -> None:
    no_listener = Condition(1, "masked", NEW_LISTENER, NEW_LISTENER)
    unknown_action = Condition(0, "eq", GET_ACTION_AVAIL)
    message = install_after(
        [
            Rule(("seccomp",), (no_listener,), action=actions.errno(errno.EINVAL)),
            Rule(("seccomp",), (unknown_action,), action=actions.errno(errno.EOPNOTSUPP)),
        ]
    )
    assert message.endswith("this kernel has no seccomp notifications (Linux 5.7 or later is needed)")


def test_a_kernel_without_seccomp() -> None:
    message = install_after([Rule(("seccomp",), action=actions.errno(errno.ENOSYS))])
    assert message.endswith("this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)")


def test_a_kernel_that_says_no() -> None:
    message = install_after([Rule(("seccomp",), action=actions.errno(errno.ENOMEM))])
    assert message == "cannot install the seccomp filter: Cannot allocate memory"


def test_privileges_that_cannot_be_given_up() -> None:
    message = install_after([Rule(("prctl",), action=actions.errno(errno.EPERM))])
    assert message == "cannot give up new privileges: Operation not permitted"


def test_what_the_kernel_knows() -> None:
    assert kernel.action_available(actions.NOTIFY)
    assert kernel.action_available(actions.errno(errno.ENOSYS))
    assert not kernel.action_available(0x12340000)
    assert kernel.notification_sizes() is not None


# -- the seal ----------------------------------------------------------------------------------------------


def test_off_installs_nothing() -> None:
    sealed = seal.build({"serve", "no such feature"}, "off")
    before = own_threads()
    assert sealed.install() is None
    sealed.install_vcpu()
    assert own_threads() == before
    assert sealed.describe() == "the runtime's process runs without a seccomp filter"


def test_enforce_and_log_differ_in_the_supervisor_only() -> None:
    policy = load_policy()
    enforce, log = (seal.build(policy.features, mode, pid=1) for mode in ("enforce", "log"))
    assert enforce.process is not None
    assert log.process is not None
    assert enforce.process.code == log.process.code
    assert enforce.vcpu is not None
    assert log.vcpu is not None
    assert enforce.vcpu.code != log.vcpu.code
    assert seal.build(seal.SHIM_FEATURES, "enforce").vcpu is None


@pytest.mark.parametrize(
    ("features", "mode", "message"),
    [
        ({"serve"}, "strict", "there is no seccomp mode 'strict': there are enforce, log, off"),
        ({"sevre"}, "enforce", "x86_64.toml has no feature sevre: there are balloon"),
    ],
)
def test_what_cannot_be_built(features: set[str], mode: seal.Mode, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        seal.build(features, mode, policy=load_policy("x86_64"))


def test_the_policy_holds_the_process_that_it_was_built_for() -> None:
    first, second = (seal.build(seal.SHIM_FEATURES, "enforce", pid=pid).process for pid in (1000, 1001))
    assert first is not None
    assert second is not None
    assert first.code != second.code
