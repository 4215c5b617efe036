"""Each room calls the C library in one module, and every function there says why its call is safe."""

from __future__ import annotations

import ast
import ctypes
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kata_hypervisor import libc

ROOT = Path(__file__).parents[2]
MODULES = {
    "agent": "kata_agent/guest/syscalls.py",
    "configuration": None,
    "hypervisor": "kata_hypervisor/libc.py",
    "runtime": "kata_runtime/syscalls.py",
}


@pytest.mark.parametrize("room", MODULES)
def test_one_module_of_a_room_loads_the_c_library(room: str) -> None:
    files = [path for path in (ROOT / room).rglob("*.py") if "CDLL(" in path.read_text(encoding="utf-8")]
    expected = MODULES[room]
    assert files == ([ROOT / room / expected] if expected else [])


@pytest.fixture(params=[f"{room}/{module}" for room, module in MODULES.items() if module])
def source(request: pytest.FixtureRequest) -> str:
    path: Path = ROOT / request.param
    return path.read_text(encoding="utf-8")


def callers(source: str, called: Callable[[str], bool]) -> Iterator[ast.FunctionDef]:
    """The functions of a module that call one whose name is such."""
    for function in ast.parse(source).body:
        if isinstance(function, ast.FunctionDef) and any(
            isinstance(node, ast.Call) and called(ast.unparse(node.func)) for node in ast.walk(function)
        ):
            yield function


def is_foreign(source: str) -> Callable[[str], bool]:
    """Whether a name is that of a function of the C library."""
    names = {
        target.id
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute)
        for target in node.targets
        if isinstance(target, ast.Name) and ast.unparse(node.value).startswith("_libc.")
    }
    return lambda name: name.startswith("_libc.") or name in names


def test_every_call_has_its_reasons(source: str) -> None:
    foreign = is_foreign(source)
    calling = [
        function
        for function in callers(source, lambda name: foreign(name) or name in ("_call", "_system_call"))
        if not function.name.startswith("_")
    ]
    assert calling
    for function in calling:
        assert "# SAFETY: " in (ast.get_source_segment(source, function) or ""), function.name


NEVER_INTERRUPTED = {
    "call": "its result is that of a filter",
    "limit_arenas": "mallopt(3) makes no system call",
    "set_command_line": "sbrk(3) of 0 makes no system call",
}


def test_every_call_goes_on_after_a_signal(source: str) -> None:
    """They are made by `_call`, which test_interrupted_calls interrupts."""
    direct = {function.name for function in callers(source, is_foreign(source))}
    assert direct <= NEVER_INTERRUPTED.keys()
    assert list(callers(source, lambda name: name == "_call"))


def test_a_failed_call_raises_with_its_own_errno() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        libc.map_memory(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, 1 << 20)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(ProcessLookupError):
        libc.signal_thread(os.getpid(), (1 << 22) + 1, 0)
    assert libc.call(-1, (0,) * 6) == (-1, errno.ENOSYS)


def test_mapped_memory_is_there_until_it_is_unmapped() -> None:
    address = libc.map_memory(
        None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1
    )
    libc.advise_memory(address, mmap.PAGESIZE, mmap.MADV_DONTNEED)
    word = ctypes.c_uint32.from_address(address)
    word.value = 7
    assert word.value == 7
    libc.unmap_memory(address, mmap.PAGESIZE)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        libc.advise_memory(address, mmap.PAGESIZE, mmap.MADV_DONTNEED)


def test_it_needs_the_standard_library_only() -> None:
    script = "import sys; import kata_hypervisor.libc; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    ours = {name for name in output.split() if name.startswith("kata_")}
    assert ours == {"kata_hypervisor", "kata_hypervisor.libc"}
