"""Metrics of the guest and of this agent, in the text format of Prometheus; the names are upstream's."""

from __future__ import annotations

import os
from collections.abc import Iterator


def text(proc: str = "/proc") -> str:
    """All metrics, as of now."""
    return "".join(f"{line}\n" for line in (*_guest(proc), *_agent(proc)))


def _guest(proc: str) -> Iterator[str]:
    yield "# TYPE kata_guest_load gauge"
    loads = _read(f"{proc}/loadavg").split()[:3]
    for name, value in zip(("load1", "load5", "load15"), loads, strict=True):
        yield f'kata_guest_load{{item="{name}"}} {value}'
    yield "# TYPE kata_guest_meminfo gauge"
    for line in _read(f"{proc}/meminfo").splitlines():
        name, _, rest = line.partition(":")
        number, *unit = rest.split()
        yield f'kata_guest_meminfo{{item="{name}"}} {int(number) * (1024 if unit else 1)}'


def _agent(proc: str) -> Iterator[str]:
    page = os.sysconf("SC_PAGE_SIZE")
    virtual, resident = _read(f"{proc}/self/statm").split()[:2]
    threads = len(os.listdir(f"{proc}/self/task"))
    values = (("total_vm", int(virtual) * page), ("total_rss", int(resident) * page), ("threads", threads))
    for name, value in values:
        yield f"# TYPE kata_agent_{name} gauge"
        yield f"kata_agent_{name} {value}"


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()
