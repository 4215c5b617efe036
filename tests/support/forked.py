"""Work in a forked child, for what cannot be undone in the process that asks for it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_child(work: Callable[[], T]) -> T:
    """Call it in a child; return what it returns, or raise what it raises.

    Raises:
        ChildProcessError: the child was ended by a signal, which the message names.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            outcome: tuple[bool, object] = (True, work())
        except BaseException as error:  # noqa: BLE001 - raised in the parent process
            outcome = (False, error)
        os.write(writer, pickle.dumps(outcome))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        data = answer.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise ChildProcessError(f"ended with {code}")
    succeeded, value = pickle.loads(data)
    if succeeded:
        return value  # type: ignore[no-any-return]
    raise value
