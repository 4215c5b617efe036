"""A process under filters of its own, with a thread that has fewer of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_PROGRAM = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))
libc.prctl(38, 1, 0, 0, 0)
*common, last = [bytes.fromhex(code) for code in sys.argv[1:]] or [None]
def install(code):
    program = Program(len(code) // 8, code)
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
for code in common:
    install(code)
threading.Thread(target=threading.Event().wait, daemon=True).start()
if last:
    install(last)
os.write(1, b"ready\\n")
sys.stdin.read()
os._exit(0)
"""


@contextmanager
def filtered_process(programs: Sequence[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with these filters on its main thread, and all but the last of them on its other thread."""
    command = [sys.executable, "-IS", "-c", _PROGRAM, *(code.hex() for code in programs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
