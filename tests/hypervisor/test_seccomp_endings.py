"""Every way in which a thread or a process ends, and what the interpreter does on its own, under the seal."""

from __future__ import annotations

import signal

import pytest

from kata_hypervisor.seccomp.seal import SHIM_FEATURES
from sealed_process import run_sealed

SHIM = SHIM_FEATURES | {"serial"}
THREADS = SHIM | {"threads"}
MACHINE = THREADS | {"vcpu", "block"}


def test_a_forbidden_call_is_notified_from_a_thread_that_was_there_before() -> None:
    done = run_sealed(
        """
go = threading.Event()
def early():
    go.wait()
    try:
        os.mkdir("/tmp/never")
    except PermissionError:
        print("refused")
thread = start(early)
seal_now()
go.set()
thread.join()
""",
        SHIM,
    )
    assert (done.status, done.stdout, done.blocked) == (0, "refused\n", ["mkdir"]), done


def test_a_forbidden_call_is_notified_from_a_thread_that_is_started_later() -> None:
    done = run_sealed("seal_now()\nstart(os.sync).join()\n", THREADS)
    assert (done.status, done.blocked) == (0, ["sync"])


def test_threads_start_and_end() -> None:
    done = run_sealed(
        """
go = threading.Event()
early = [start(go.wait) for _ in range(3)]
seal_now()
go.set()
late = [start(time.monotonic) for _ in range(3)]
for thread in early + late:
    thread.join()
print("all joined")
""",
        THREADS,
    )
    assert (done.status, done.stdout, done.blocked) == (0, "all joined\n", [])


def test_without_the_feature_no_thread_starts() -> None:
    done = run_sealed("seal_now()\nstart(print)\n", SHIM)
    assert done.status == 1
    assert "can't start new thread" in done.stderr
    assert done.blocked in (["clone"], ["mprotect"])


@pytest.mark.parametrize(
    ("body", "status", "output"),
    [
        pytest.param("raise ValueError('in main')", 1, "ValueError: in main", id="uncaught"),
        pytest.param("start(lambda: 1 / 0).join()", 0, "ZeroDivisionError", id="uncaught in a thread"),
        pytest.param("sys.exit(3)", 3, "", id="exit"),
        pytest.param("os._exit(4)", 4, "", id="exit at once"),
        pytest.param("os.abort()", -signal.SIGABRT, "", id="abort"),
        pytest.param("start(os.abort).join()", -signal.SIGABRT, "", id="abort in a thread"),
        pytest.param("signal.raise_signal(signal.SIGUSR2)", -signal.SIGUSR2, "", id="signal"),
        pytest.param(
            "threading.Thread(target=threading.Event().wait, daemon=True).start()", 0, "", id="daemon thread"
        ),
        pytest.param("import zipapp", 1, "was not loaded before", id="late import"),
        pytest.param("start(sys.exit, 5).join()", 0, "", id="exit of a thread"),
        pytest.param(
            "class Bad:\n  def __del__(self): 1 / 0\nBad()", 0, "ZeroDivisionError", id="unraisable"
        ),
        pytest.param("def deeper(): deeper()\ndeeper()", 1, "RecursionError", id="recursion"),
    ],
)
def test_an_end_is_no_violation(body: str, status: int, output: str) -> None:
    done = run_sealed(f"seal_now()\n{body}\n", THREADS)
    assert (done.status, done.blocked) == (status, []), done
    assert output in done.stderr


def test_memory_comes_and_goes() -> None:
    """In threads too: glibc opens a file of /proc when it makes a thread's own arena smaller."""
    done = run_sealed(
        """
def churn():
    for size, count in ((10, 200), (1 << 12, 200), (100_000, 200), (1 << 24, 4)):
        kept = [bytearray(size) for _ in range(count)]
        kept[0] += bytes(4 * size)
        del kept
seal_now()
churn()
threads = [start(churn) for _ in range(4)]
for thread in threads:
    thread.join()
""",
        THREADS,
    )
    assert (done.status, done.blocked) == (0, []), done


@pytest.mark.parametrize(
    ("body", "status", "output"),
    [
        pytest.param("print('out')", 0, "out", id="returns"),
        pytest.param("1 / 0", 0, "ZeroDivisionError", id="uncaught"),
        pytest.param("kept = [bytes(1 << 20) for _ in range(9)]", 0, "", id="memory"),
        pytest.param("os.getpid()", -signal.SIGSYS, "", id="violation"),
        pytest.param("os.mkdir('/tmp/never')", -signal.SIGSYS, "", id="violation of both"),
        pytest.param("os.abort()", -signal.SIGSYS, "", id="abort"),
    ],
)
def test_a_virtual_cpus_thread(body: str, status: int, output: str) -> None:
    done = run_sealed(
        f"""
go = threading.Event()
def vcpu():
    go.wait()
    SEAL.install_vcpu()
    {body}
    sys.stdout.flush()
thread = start(vcpu)
seal_now()
go.set()
thread.join()
""",
        MACHINE,
    )
    assert (done.status, done.blocked) == (status, []), done
    assert output in done.stdout + done.stderr


def test_a_virtual_cpu_leaves_its_run_by_a_signal() -> None:
    done = run_sealed(
        """
signal.signal(signal.SIGUSR1, lambda *_: print("kicked", flush=True))
seal_now()
signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
os._exit(0)
""",
        MACHINE,
    )
    assert (done.status, done.stdout, done.blocked) == (0, "kicked\n", [])


def test_no_second_listener() -> None:
    done = run_sealed(
        """
from kata_hypervisor.seccomp import filter
seal_now()
try:
    filter.install(SEAL.vcpu.code, all_threads=False, listener=True, sealed=True)
except Exception as error:
    print(error)
""",
        MACHINE,
    )
    assert done.blocked == ["seccomp"]
    assert "cannot install the seccomp filter" in done.stdout
