"""Getting ready for the seal: what Python would open later is loaded now, or will never be opened.

After the seal no file can be opened. An import, or the source line in a traceback, would try to: the first is
answered with an ImportError that names the module, the second does without the line.
"""

from __future__ import annotations

import importlib
import linecache
import sys
import threading
import traceback
from typing import Any

from kata_runtime import closed_imports

# What is imported where it is first used, by this runtime and by the libraries under it.
MODULES = (
    "kata_agent.client",
    "kata_agent.protos.health_pb2",
    "kata_agent.transports",
    "kata_hypervisor.seccomp.seal",
    "kata_runtime.pod.agent_connection",
    "kata_runtime.pod.giving_up",
    "kata_runtime.stdio.polled",
    "kata_runtime.shim.metrics",
    "asyncio.sslproto",
    "asyncio.staggered",
    "asyncio.taskgroups",
    "asyncio.timeouts",
    "concurrent.futures.thread",
    "anyio._backends._asyncio",
    "anyio.to_thread",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.idna",
    "encodings.utf_8",
    "stringprep",
)


def load_modules() -> None:
    """Import everything that a sandbox may need while it runs."""
    for name in MODULES:
        importlib.import_module(name)


def load() -> None:
    """Get ready for the seal; before the process's first thread."""
    load_modules()
    from kata_hypervisor.seccomp.seal import settle_libc

    settle_libc()


def close() -> None:
    """From here on, look nothing up in the file system. Cannot be undone."""
    closed_imports.close()
    linecache.cache.clear()
    linecache.checkcache = _check_nothing
    linecache.updatecache = _no_lines
    linecache.lazycache = _not_lazy
    # The interpreter's own hooks read the source in C.
    sys.excepthook = _print_exception
    sys.unraisablehook = _print_unraisable
    threading.excepthook = _print_thread


def _check_nothing(filename: str | None = None) -> None:
    return None


def _no_lines(filename: str, module_globals: dict[str, Any] | None = None) -> list[str]:
    return []


def _not_lazy(filename: str, module_globals: dict[str, Any]) -> bool:
    return False


def _print_exception(kind: Any, error: BaseException, trace: Any) -> None:
    traceback.print_exception(kind, error, trace)


def _print_unraisable(unraisable: Any) -> None:
    traceback.print_exception(unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback)


def _print_thread(arguments: threading.ExceptHookArgs) -> None:
    traceback.print_exception(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
