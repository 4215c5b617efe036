"""The cgroup of one sandbox, which shim, broker and all children are in."""

from __future__ import annotations

import os

from kata_runtime.broker import cgroups, rollback
from kata_runtime.broker.cpuset import Cpuset
from kata_runtime.broker.errors import RequestRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kata_runtime.broker.device_rules import DeviceRule
    from kata_runtime.broker.rollback import RollbackJournal
    from kata_runtime.identity import SandboxIdentity


class SandboxCgroup:
    """Made once, at the shim's request. shim: its process id."""

    def __init__(self, identity: SandboxIdentity, shim: int, journal: RollbackJournal) -> None:
        self._identity = identity
        self._shim = shim
        self._journal = journal
        self._cgroup: cgroups.Cgroup | None = None
        # Where threads get CPUs of their own; None unless the configuration asks for that.
        self.cpuset: Cpuset | None = None

    def prepare(self, path: str | None, *, pinning: bool) -> str:
        """Make it and move shim and broker into it; returns its path within each hierarchy.

        pinning: whether threads in it may get CPUs of their own.

        Raises:
            CgroupError: it cannot be made, the path cannot be one of ours, or it has no cpuset for pinning.
            RequestRefusedError: there is one already.
        """
        if self._cgroup is not None:
            raise RequestRefusedError("prepare: the sandbox has its cgroup already")
        cgroup = cgroups.Cgroup(cgroups.cgroup_path(path, self._identity.key), cgroups.hierarchies())
        cgroup.create(self._record, self._is_made_by_us)
        cgroup.join(os.getpid())  # children are born into it
        cgroup.join(self._shim)
        self._cgroup = cgroup
        if pinning:
            self.cpuset = _cpuset_of(cgroup)
        return cgroup.path

    def _record(self, kind: str, path: str, origin: str) -> None:
        self._journal.push(kind, path=path, origin=origin)

    def _is_made_by_us(self, path: str) -> bool:
        """Whether any sandbox of this host has made this parent."""
        return rollback.is_recorded(os.path.dirname(self._identity.directory), "rmgroup", path)

    def controllers(self) -> frozenset[str]:
        """The controllers that are in force on it."""
        return self._cgroup.controllers() if self._cgroup else frozenset()

    def restrict_devices(self, rules: Iterable[DeviceRule]) -> str:
        """See `Cgroup.restrict_devices`; nothing for a sandbox without a cgroup: a template's maker."""
        return self._cgroup.restrict_devices(rules) if self._cgroup else ""

    def admit(self, rule: DeviceRule, action: Callable[[], int]) -> int:
        """See `Cgroup.admit`."""
        return self._cgroup.admit(rule, action) if self._cgroup else action()

    def allow(self, rule: DeviceRule) -> None:
        """See `Cgroup.allow`."""
        if self._cgroup:
            self._cgroup.allow(rule)

    def forbid(self, rule: DeviceRule) -> None:
        """See `Cgroup.forbid`."""
        if self._cgroup:
            self._cgroup.forbid(rule)

    def oom_kills(self) -> int:
        """How many processes in it the kernel has killed for want of memory."""
        return self._cgroup.oom_kills() if self._cgroup else 0


def _cpuset_of(cgroup: cgroups.Cgroup) -> Cpuset:
    if (found := cgroup.leaf_with_cpuset()) is None:
        raise cgroups.CgroupError(
            f"enable_vcpus_pinning is set, and cgroup {cgroup.path} has no cpuset: no hierarchy of this host "
            "that can be written has the controller there; mount it, or have the cgroups above hand it on "
            "(cgroup.subtree_control)"
        )
    return Cpuset(*found)
