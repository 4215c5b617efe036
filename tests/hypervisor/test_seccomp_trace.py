"""Tracing a real program on this kernel, its record, and the profiles and differences that come of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_hypervisor.errors import LaunchError, PolicyError
from kata_hypervisor.seccomp import actions, bpf, profile, syscalls
from kata_hypervisor.seccomp import filter as kernel
from kata_hypervisor.seccomp import trace as traces
from kata_hypervisor.seccomp.bpf import SeccompData
from kata_hypervisor.seccomp.comparison import compare
from kata_hypervisor.seccomp.compiler import compile_rules
from kata_hypervisor.seccomp.rules import Condition, Rule
from kata_hypervisor.seccomp.trace import Observation, Trace
from kata_hypervisor.seccomp.trace_arguments import KEPT, keep, spell, width
from kata_hypervisor.seccomp.trace_recorder import record

ARCH = "x86_64"
supervising = pytest.mark.skipif(
    kernel.notification_sizes() is None, reason="this kernel has no seccomp notifications"
)

PROGRAM = """
import ctypes, os, socket, threading
libc = ctypes.CDLL(None)
def named():
    libc.prctl(15, b"walker", 0, 0, 0)
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close()
thread = threading.Thread(target=named)
thread.start()
thread.join()
if os.fork() == 0:
    os.execv("/bin/true", ["true"])
os.wait()
os._exit(7)
"""


def of_python(code: str) -> list[str]:
    return [sys.executable, "-IS", "-c", code]


def seen(trace: Trace, call: str) -> list[Observation]:
    return [one for one in trace.observations if one.call == call]


@supervising
def test_calls_are_seen_by_program_and_thread_with_their_arguments() -> None:
    trace, listeners = record(of_python(PROGRAM))
    assert trace.status == 7
    assert listeners == 0
    program = os.path.basename(os.path.realpath(sys.executable))
    (opened,) = [one for one in seen(trace, "socket") if one.thread == "walker"]
    assert (opened.program, opened.arguments, opened.count) == (program, ((0, 1), (1, 0x80002), (2, 0)), 1)
    assert {one.program for one in seen(trace, "exit_group")} == {program, "true"}
    # The command's own start, and its child's.
    assert sum(one.count for one in seen(trace, "execve")) == 2
    assert not trace.foreign


@supervising
def test_a_filter_of_the_programs_own_goes_on_top_but_without_a_listener() -> None:
    allow = bpf.encode([(bpf.RET | bpf.K, 0, 0, actions.ALLOW)])
    code = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))
program = Program(1, bytes.fromhex({allow.hex()!r}))
assert libc.syscall({syscalls.numbers(ARCH)["seccomp"]}, 1, 0, ctypes.byref(program)) == 0
assert libc.syscall({syscalls.numbers(ARCH)["seccomp"]}, 1, 8, ctypes.byref(program)) == -1
os._exit(ctypes.get_errno())
"""
    trace, listeners = record(of_python(code))
    assert os.strerror(trace.status) == "Device or resource busy"
    assert listeners == 1


@supervising
def test_the_end_by_a_signal_is_the_commands_status() -> None:
    trace, _ = record(of_python("import os; os.kill(os.getpid(), 9)"))
    assert trace.status == 128 + 9
    assert [one.arguments for one in seen(trace, "kill")] == [((1, 9),)]


@supervising
def test_a_daemon_that_the_command_leaves_is_traced_to_its_end() -> None:
    trace, _ = record(["sh", "-c", "(sleep 0.2; echo done >/dev/null) & exit 3"])
    assert trace.status == 3
    assert [one for one in seen(trace, "execve") if one.program in ("sleep", "coreutils", "sh", "dash")]


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(LaunchError, match="there is no such program"):
        record(["/nowhere/program"])
    with pytest.raises(LaunchError, match="cannot run nothing"):
        record([])


@supervising
def test_a_program_that_cannot_be_executed(tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_bytes(b"no program")
    path.chmod(0o755)
    with pytest.raises(LaunchError, match="Exec format error"):
        record([str(path)])


@supervising
def test_a_second_interrupt_ends_what_is_left(tmp_path: Path) -> None:
    """kata-ctl in a process of its own; the command ends, its daemon would run for ever."""
    pid_file = tmp_path / "pid"
    script = f"sleep 1000 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}"
    kata_ctl = [sys.executable, "-m", "kata_runtime.ctl.main"]
    command = [*kata_ctl, "seccomp", "trace", "--quiet", "--", "sh", "-c", script]
    with subprocess.Popen(command) as process:
        while not pid_file.exists():
            assert process.poll() is None
        daemon = os.pidfd_open(int(pid_file.read_text()))
        process.terminate()
        assert process.wait() in (0, 143)
    try:
        # It is gone, or on its way: this returns when it is.
        import select

        select.select([daemon], [], [])
    finally:
        os.close(daemon)


# -- the record ----------------------------------------------------------------------------------------------

names = st.text(min_size=1, max_size=8)
arguments = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**64 - 1)), unique_by=lambda pair: pair[0])
observations = st.builds(
    Observation,
    program=names,
    thread=names,
    call=st.sampled_from(["read", "ioctl", "socket", "i386:20"]),
    number=st.integers(0, 500),
    arguments=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2**64 - 1)), unique_by=lambda pair: pair[0]
    )
    .map(sorted)
    .map(tuple),
    count=st.integers(1, 10**9),
)
records = st.builds(
    Trace,
    arch=st.just(ARCH),
    kernel=names,
    command=st.lists(names).map(tuple),
    status=st.integers(0, 255),
    observations=st.lists(observations, max_size=5).map(tuple),
)


@given(record=records)
def test_a_record_is_read_as_it_was_written(record: Trace, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "trace.json"
    traces.save(record, path)
    assert traces.load(path) == record


def example(*seen: Observation) -> Trace:
    return Trace(ARCH, "6.1", ("prog", "-x"), 0, seen)


def one(call: str, *arguments: tuple[int, int], count: int = 1, thread: str = "main") -> Observation:
    number = syscalls.number_of(call, ARCH)
    return Observation("prog", thread, call, -1 if number is None else number, arguments, count)


def corrupted(**changes: Any) -> dict[str, Any]:
    call = {"program": "p", "thread": "t", "call": "read", "number": 0, "arguments": {}, "count": 1}
    document: dict[str, Any] = {"format": 1, "arch": ARCH, "kernel": "6.1", "command": [], "status": 0}
    document["calls"] = [{**call, **changes.pop("call", {})}]
    return {**document, **changes}


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ([], "is no trace of format 1"),
        (corrupted(format=2), "is no trace of format 1"),
        (corrupted(arch=3), "arch must be a str"),
        (corrupted(calls={}), "calls must be a list"),
        (corrupted(calls=[7]), "a call must be a table"),
        (corrupted(status=-1), "status must be a int"),
        (corrupted(call={"count": "1"}), "count must be a int"),
        (corrupted(call={"count": True}), "count must be a int"),
        (corrupted(call={"arguments": {"6": 0}}), "no argument '6'"),
        (corrupted(call={"arguments": {"1": None}}), "1 must be a int"),
    ],
)
def test_a_corrupt_record_is_an_error(document: object, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(document))
    with pytest.raises(PolicyError, match=complaint):
        traces.load(path)


def test_a_record_that_is_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot read the trace"):
        traces.load(tmp_path / "missing")
    (tmp_path / "text").write_text("{")
    with pytest.raises(PolicyError, match="it is not JSON"):
        traces.load(tmp_path / "text")


def test_programs_and_threads_are_chosen_by_the_beginning_of_their_names() -> None:
    trace = example(one("read", thread="CPU 0"), one("write", thread="main"))
    assert [seen.call for seen in trace.of(thread="CPU").observations] == ["read"]
    assert trace.of(program="other").observations == ()
    assert trace.merged(example(one("close"))).calls.keys() == {"read", "write", "close"}
    with pytest.raises(PolicyError, match="no common profile"):
        trace.merged(Trace("aarch64", "6.1", (), 0, ()))


# -- arguments -----------------------------------------------------------------------------------------------


def test_what_is_kept_are_existing_calls_and_arguments() -> None:
    for call, kept in KEPT.items():
        assert syscalls.number_of(call, ARCH) is not None
        assert all(0 <= index <= 5 and bits in (32, 64) for index, bits in kept)


def test_an_int_is_cut_to_what_the_kernel_reads() -> None:
    garbage = 0xDEADBEEF00000000
    assert keep("ioctl", (3, garbage | 0x5401, 0, 0, 0, 0)) == ((1, 0x5401),)
    assert keep("mmap", (0, 0, garbage | 1, 2, 0, 0)) == ((2, garbage | 1), (3, 2))
    assert keep("read", (1, 2, 3, 4, 5, 6)) == ()
    assert (width("ioctl", 1), width("mmap", 2), width("read", 0)) == (32, 64, 64)


@pytest.mark.parametrize(
    ("call", "index", "value", "text"),
    [
        ("ioctl", 1, 0x5401, "TCGETS"),
        ("ioctl", 1, 0xAE80, "KVM_RUN"),
        ("ioctl", 1, 0x12345678, "0x12345678"),
        ("socket", 0, 1, "AF_UNIX"),
        ("socket", 1, 0x80801, "SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC"),
        ("socket", 2, 0, "0"),
        ("mmap", 2, 0, "PROT_NONE"),
        ("mmap", 2, 5, "PROT_READ|PROT_EXEC"),
        ("mmap", 3, 0x22, "MAP_PRIVATE|MAP_ANONYMOUS"),
        ("openat", 2, 0, "O_RDONLY"),
        ("openat", 2, 0o2100, "O_CREAT|O_APPEND"),
        ("futex", 1, 0x80, "FUTEX_WAIT|PRIVATE"),
        ("futex", 1, 0x189, "FUTEX_WAIT_BITSET|PRIVATE|CLOCK_REALTIME"),
        ("fcntl", 1, 4, "F_SETFL"),
        ("kill", 1, 9, "SIGKILL"),
        ("clone", 0, 0x10000 | 17, "CLONE_THREAD|0x11"),
        ("madvise", 2, 102, "MADV_GUARD_INSTALL"),
    ],
)
def test_values_have_the_names_of_their_manual_pages(call: str, index: int, value: int, text: str) -> None:
    assert spell(call, index, value) == text


# -- profiles and differences --------------------------------------------------------------------------------

TRACE = example(
    one("read", count=5),
    one("ioctl", (1, 0x5401)),
    one("ioctl", (1, 0x5421)),
    one("mmap", (2, 1), (3, 2)),
    one("mmap", (2, 3), (3, 0x22)),
    one("close"),
)


@pytest.mark.parametrize(("form", "ending"), [("policy", "toml"), ("oci", "json"), ("solo5-hvt", "list")])
def test_a_profile_allows_what_was_seen_and_nothing_else(form: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"profile.{ending}"
    path.write_text(profile.write(TRACE, form))
    rules = profile.read(path)
    assert compare(TRACE, rules).missing == ()
    code = compile_rules(rules, actions.KILL_PROCESS, arch=ARCH).code

    def allows(call: str, *arguments: int) -> bool:
        made = (*arguments, *(0,) * (6 - len(arguments)))
        data = SeccompData(syscalls.numbers(ARCH)[call], bpf.AUDIT_ARCH[ARCH], 0, made)
        return bpf.run(code, data) == actions.ALLOW

    assert allows("read", 3, 4, 5)
    assert allows("ioctl", 0, 0x5401)
    assert allows("mmap", 0, 0, 3, 0x22)
    assert not allows("write")
    conditions = form != "solo5-hvt"  # which has names only
    assert allows("ioctl", 0, 0x5402) != conditions
    assert allows("mmap", 0, 0, 1, 0x22) != conditions


def test_the_formats_look_as_their_readers_expect() -> None:
    assert profile.write(TRACE, "solo5-hvt").splitlines()[1:] == ["close", "ioctl", "mmap", "read"]
    document = json.loads(profile.write(TRACE, "oci"))
    assert document["defaultAction"] == "SCMP_ACT_ERRNO"
    assert document["architectures"] == ["SCMP_ARCH_X86_64"]
    assert document["syscalls"][0] == {"names": ["read", "close"], "action": "SCMP_ACT_ALLOW"}
    text = profile.write(TRACE, "policy")
    assert 'when = [{ arg = 1, op = "in", value = [0x5401, 0x5421], bits = 32 }]' in text
    assert "seen with PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS" in text


def test_a_call_with_too_many_different_arguments_is_allowed_with_all() -> None:
    trace = example(*(one("ioctl", (1, number)) for number in range(100)))
    (grant,) = profile.grants(trace)
    assert grant.combinations == ()
    assert grant.count == 100


def test_what_has_no_name_is_in_no_profile() -> None:
    foreign = Observation("prog", "main", "i386:20", 20, (), 1)
    assert example(foreign).foreign == ["i386:20"]
    with pytest.raises(PolicyError, match="no call of this architecture"):
        profile.write(example(foreign), "oci")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "it is not JSON"),
        ("[]", "no list of syscalls"),
        ('{"syscalls": []}', "no list of syscalls"),
        ('{"syscalls": [{"action": "SCMP_ACT_ALLOW"}]}', "no list of names"),
        ('{"syscalls": [{"names": ["raed"], "action": "SCMP_ACT_ALLOW"}]}', "no system call 'raed'"),
        (
            '{"syscalls": [{"names": ["read"], "action": "SCMP_ACT_TRACE"}]}',
            "SCMP_ACT_TRACE' is not understood",
        ),
        ('{"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": -1}]}', "errnoRet"),
        (
            '{"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 7}]}]}',
            "no condition",
        ),
    ],
)
def test_a_wrong_oci_profile_is_an_error(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(PolicyError, match=complaint):
        profile.read(path)


def test_a_wrong_list_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_text("read\nno_such_call # indeed\n")
    with pytest.raises(PolicyError, match="no system call 'no_such_call'"):
        profile.read(path)
    with pytest.raises(PolicyError, match="cannot read the profile"):
        profile.read(tmp_path / "missing")


def test_a_difference_names_what_is_missing_and_what_nothing_used() -> None:
    used = Rule(("read", "close"))
    one_value = Rule(("ioctl",), (Condition(1, "masked", 0x5401, 0xFFFFFFFF),))
    unused = Rule(("execve",))
    kept_nowhere = Rule(("mmap",), (Condition(4, "eq", 3), Condition(2, "masked", 0, 4)))
    found = compare(TRACE, [used, one_value, unused, kept_nowhere])
    assert [(seen.call, seen.arguments) for seen in found.missing] == [("ioctl", ((1, 0x5421),))]
    assert found.unused == (unused,)


def test_a_value_that_is_known_at_run_time_only_is_taken_to_hold() -> None:
    trace = example(one("tgkill", (2, 6)))
    assert compare(trace, [Rule(("tgkill",), (Condition(0, "eq", "$pid"),))]).missing == ()
