"""Virtual CPUs on CPUs of the host: one thread of the VMM's on one of them, each in a group of its own.

The shim says which CPUs, and the broker finds the threads: by the names that the driver's VMM gives them, in
a process that the broker started, or in the shim where the machine is in that. Who owns the shim can have its
own machine's threads kept on CPUs that the pod's cgroup has anyway, and nothing else.
"""

from __future__ import annotations

import re

from kata_hypervisor import registry
from kata_hypervisor.seccomp import confinement
from kata_runtime.broker import cpuset
from kata_runtime.broker.errors import RequestFailedError, RequestRefusedError
from kata_runtime.cpu_list import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.broker.children import Children
    from kata_runtime.broker.cpuset import Cpuset
    from kata_runtime.broker.rollback import RollbackJournal
    from kata_runtime.broker.sandbox_cgroup import SandboxCgroup

_GROUP = "vcpu{}"


class Pinning:
    """The virtual CPUs of one sandbox's machine. shim: its process id."""

    def __init__(
        self, shim: int, cgroup: SandboxCgroup, children: Children, journal: RollbackJournal
    ) -> None:
        self._shim = shim
        self._cgroup = cgroup
        self._children = children
        self._journal = journal
        # The directory of each group that there is, by the number of its entry in the journal.
        self._groups: dict[int, str] = {}

    def pin(self, cpus: list[int]) -> None:
        """Keep each virtual CPU on one of these, in order; with none, let all of them go.

        Raises:
            RequestRefusedError: the sandbox was not configured so.
            RequestFailedError: the host cannot; a fault in what is asked for leaves all as it was.
        """
        if (found := self._cgroup.cpuset) is None:
            raise RequestRefusedError("pin_vcpus: enable_vcpus_pinning is not set for this sandbox")
        try:
            pid, threads = self._find(cpus, found) if cpus else (0, [])
            self._release(found)
            self._hold(pid, threads, cpus, found)
        except OSError as error:
            self._release(found)
            raise RequestFailedError(
                f"the virtual CPUs cannot be kept on CPUs of the host: {error.strerror or error}",
                error.errno or 0,
            ) from None

    def _find(self, cpus: list[int], found: Cpuset) -> tuple[int, list[int]]:
        """The VMM's process, and the thread of each virtual CPU in order. Raises RequestFailedError."""
        if beyond := set(cpus) - found.cpus:
            raise RequestFailedError(
                f"the cgroup of the pod does not have the CPU {min(beyond)} of the host, which a container's "
                "cpuset names; name CPUs of the cgroup above it"
            )
        pid, pattern = self._vmm()
        threads: dict[int, int] = {}
        for thread in confinement.read_threads(pid):
            if match := re.fullmatch(pattern, thread.name):
                threads[int(match[1])] = thread.tid
        if len(threads) != len(cpus):
            raise RequestFailedError(
                f"{len(cpus)} CPUs of the host are named, and the VMM has {len(threads)} threads that by "
                "their names are one virtual CPU each"
            )
        return pid, [threads[number] for number in sorted(threads)]

    def _vmm(self) -> tuple[int, str]:
        """The process with the machine, and the names of its virtual CPUs' threads."""
        outside = {info.children[0]: info for info in registry.DRIVERS if not info.in_process}
        for pid, role in self._children.roles.items():
            if role in outside:
                return pid, outside[role].vcpu_threads
        return self._shim, next(info.vcpu_threads for info in registry.DRIVERS if info.in_process)

    def _hold(self, pid: int, threads: list[int], cpus: list[int], found: Cpuset) -> None:
        def record(directory: str) -> None:
            entry = self._journal.push(cpuset.UNDO, path=directory, origin=found.leaf)
            self._groups[entry] = directory

        for number, (tid, cpu) in enumerate(zip(threads, cpus, strict=True)):
            found.hold(_GROUP.format(number), tid, cpu, record)
            if (may := _cpus_of(pid, tid)) != {cpu}:
                self._release(found)
                raise RequestFailedError(
                    f"the kernel reports that virtual CPU {number} runs on {sorted(may)}, not on {cpu} alone"
                )

    def _release(self, found: Cpuset) -> None:
        for entry, directory in list(self._groups.items()):
            cpuset.release(directory, found.leaf)
            del self._groups[entry]
            self._journal.drop(entry)


def _cpus_of(pid: int, tid: int) -> frozenset[int]:
    """The CPUs of the host that a thread may run on, as the kernel reports it. Raises OSError."""
    with open(f"/proc/{pid}/task/{tid}/status", encoding="utf-8", errors="replace") as file:
        fields = dict(line.rstrip("\n").partition(":")[::2] for line in file)
    return parse(fields["Cpus_allowed_list"].strip())
