"""Each room calls the C library in one module, and every function there says why its call is safe."""

from __future__ import annotations

import ast
import ctypes
import errno
import mmap
import os
import subprocess
import sys
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


@pytest.mark.parametrize("path", [f"{room}/{module}" for room, module in MODULES.items() if module])
def test_every_call_has_its_reasons(path: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse(source)
    foreign = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute)
        for target in node.targets
        if isinstance(target, ast.Name) and ast.unparse(node.value).startswith("_libc.")
    }
    calling = [
        function
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
        and not function.name.startswith("_")
        and any(
            isinstance(node, ast.Call)
            and (ast.unparse(node.func).startswith("_libc.") or ast.unparse(node.func) in {"_call", *foreign})
            for node in ast.walk(function)
        )
    ]
    assert calling
    for function in calling:
        assert "# SAFETY: " in (ast.get_source_segment(source, function) or ""), function.name


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
