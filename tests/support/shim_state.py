"""What a shim is when it begins to serve, told by itself: written as JSON instead of serving.

`install(root)` in the program of a launcher, or of a zygote, has each shim write `state.json` in its bundle;
`imports` says that all is imported first that a zygote has imported.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import resource
import signal
import sys
import threading
import types
from typing import Any

MARK = b"of-one-pod-only"
"""Whoever starts a shim puts this, and something after it, where no other shim may find it."""


def install() -> None:
    """Patch the shim's last step."""
    from kata_runtime.shim import daemon

    daemon._serve = _write


def _write(setup: Any, broker_socket: Any, broker_pid: int) -> None:
    from kata_runtime.zygote import loading

    found = marks()  # before anything else is read
    random_state = random.getstate()
    facts = process()
    loading.load(os.environ)
    state = {
        "marks": sorted(found),
        "random": repr(random_state)[:200],
        "origin": setup.origin,
        "process": facts,
        "globals": module_globals(),
    }
    with open(os.path.join(setup.bundle, "state.tmp"), "w", encoding="utf-8") as file:
        json.dump(state, file)
    os.rename(os.path.join(setup.bundle, "state.tmp"), os.path.join(setup.bundle, "state.json"))


def marks() -> set[str]:
    """All marks that are in this process's memory."""
    pattern = re.compile(MARK + rb"-[0-9]+-")
    found: set[str] = set()
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        lines = maps.read().splitlines()
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        for line in lines:
            limits, rights = line.split()[:2]
            if not rights.startswith("rw") or "[v" in line:
                continue
            begin, end = (int(limit, 16) for limit in limits.split("-"))
            memory.seek(begin)
            found |= {match.decode() for match in pattern.findall(memory.read(end - begin))}
    return found


def process() -> dict[str, Any]:
    """What the kernel and the interpreter say of this process; nothing that is another number each time."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    wanted = (
        *("Umask", "PPid", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm"),
        *("CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Threads", "Name", "Cpus_allowed"),
    )
    own = os.getpid()
    return {
        "status": {name: status[name] for name in wanted},
        "environment": dict(sorted(os.environ.items())),
        "environ": sorted(_words("/proc/self/environ")),
        "command": _words("/proc/self/cmdline"),
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "executable": os.readlink("/proc/self/exe"),
        "cwd": os.getcwd(),
        "descriptors": _descriptors(),
        "limits": {
            name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "RLIMIT" in name
        },
        "cgroup": _text("/proc/self/cgroup"),
        "oom_score_adj": _text("/proc/self/oom_score_adj"),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "scheduler": os.sched_getscheduler(0),
        "leads_session": os.getsid(0) == own,
        "handlers": {int(number): str(signal.getsignal(number)) for number in signal.valid_signals()},
        "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")},
        "threads": [thread.name for thread in threading.enumerate()],
        "collector": [gc.isenabled(), *gc.get_threshold()],
        "path": sys.path,
        "finders": [str(finder) for finder in sys.meta_path],
    }


def _words(path: str) -> list[str]:
    with open(path, "rb") as file:
        return [os.fsdecode(word) for word in file.read().split(b"\0") if word]


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _descriptors() -> list[str]:
    """What descriptors are, without the numbers of inodes."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue  # the listing's own
        found.append(re.sub(r"\[[0-9]+\]", "", target))
    return sorted(found)


def module_globals() -> dict[str, str]:
    """Each module's values, as text that is the same for the same content."""
    found = {}
    for name, module in sorted(sys.modules.items()):
        if name == "__main__" or not isinstance(module, types.ModuleType):
            continue
        for key, value in sorted(vars(module).items()):
            if not key.startswith("__") and key not in ("environ", "environb"):
                found[f"{name}.{key}"] = _shape(value, 4)
    return found


def _shape(value: Any, depth: int) -> str:
    """The content of plain data; of anything else its type, and of a plain object its attributes."""
    if isinstance(value, int) and value > 1 << 32:
        return "an address"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)[:200]
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, dict):
        items = [f"{_shape(key, depth - 1)}: {_shape(item, depth - 1)}" for key, item in list(value.items())]
        return "{" + ", ".join(sorted(items)) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(sorted(_shape(item, depth - 1) for item in value)) + "]"
    kind = type(value)
    if isinstance(value, type | types.ModuleType) or kind.__module__ in ("builtins", "typing", "functools"):
        return f"{kind.__qualname__} {getattr(value, '__qualname__', '')}"
    attributes = getattr(value, "__dict__", None)
    inner = _shape(dict(attributes), depth - 1) if isinstance(attributes, dict) else ""
    return f"{kind.__qualname__} {inner}"
