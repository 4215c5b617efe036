"""Asks the kernel what a seccomp program does: a process of its own forks, filters and calls on request.

Run as a program it is that process: a line {"code": hex, "calls": [[number, argument 0 ... 5], ...]} on
standard input is answered by a line {"outcomes": [...], "status": wait status} on standard output. An outcome
is ["returned", value], ["errno", number] or, for a program that the kernel does not take, ["refused", errno].
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


class FilteredCalls:
    """The process that is asked."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-IS", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, code: bytes, calls: Sequence[Sequence[int]]) -> tuple[list[list[Any]], int]:
        """Make calls under a program: their outcomes as far as the process lived, and its wait status."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps({"code": code.hex(), "calls": calls}) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return answer["outcomes"], answer["status"]

    def close(self) -> None:
        """End the process."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def _serve() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.argtypes = [ctypes.c_long] + [ctypes.c_uint64] * 6
    libc.syscall.restype = ctypes.c_long
    for line in sys.stdin:
        request = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            _child(libc, bytes.fromhex(request["code"]), request["calls"], write)
        os.close(write)
        with open(read) as report:
            outcomes = [json.loads(outcome) for outcome in report]
        status = os.waitpid(child, 0)[1]
        print(json.dumps({"outcomes": outcomes, "status": status}), flush=True)


def _child(libc: Any, code: bytes, calls: list[list[int]], report: int) -> None:
    program = _Program(len(code) // 8, code)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if libc.prctl(22, 2, ctypes.byref(program), 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        os.write(report, json.dumps(["refused", ctypes.get_errno()]).encode() + b"\n")
        os._exit(0)
    for number, *arguments in calls:
        value = libc.syscall(number, *arguments)
        outcome = ["returned", value] if value >= 0 else ["errno", ctypes.get_errno()]
        os.write(report, json.dumps(outcome).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    _serve()
