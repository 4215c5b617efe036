"""What of a process is weaker than its row says."""

from __future__ import annotations

from kata_runtime.confinement.facts import CAPABILITY_SETS, UNLIMITED, Facts, Place, Thread
from kata_runtime.confinement.rows import ALL, POD, Row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CAPABILITIES = tuple(
    """
    chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable
    net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio
    sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config
    mknod lease audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm
    block_suspend audit_read perfmon bpf checkpoint_restore
    """.split()  # noqa: SIM905 - as a list it has 41 lines
)
"""By number (capabilities(7), linux/capability.h)."""


class Weakness:
    """A cell of the table that is weaker than it must be. reason: what is so, after the process's name."""

    __slots__ = ("cell", "reason")

    def __init__(self, cell: str, reason: str) -> None:
        self.cell = cell
        self.reason = reason


def names_of(mask: int) -> list[str]:
    """The capabilities of a mask, by name; by number where it has no name yet."""
    bits = (number for number in range(mask.bit_length()) if mask >> number & 1)
    return [CAPABILITIES[bit] if bit < len(CAPABILITIES) else str(bit) for bit in bits]


def find_weaknesses(
    row: Row, found: Facts, host: Place, *, user: int, outside: bool = False, filters: int | None = None
) -> Iterator[Weakness]:
    """Yield what is weaker than a row. host: where the runtime was started.

    user: the pod's. outside: whether its VMM is in the host's network. filters: how many each thread must be
    under, None where its filter is not looked at: because it has none yet, or need not have one.
    """
    if row.user == POD:
        yield from _of_threads("user", found, lambda thread: _other_user(thread, user))
    if row.capabilities != ALL:
        yield from _of_threads("capabilities", found, lambda thread: _more(thread, row.capabilities))
    if row.no_new_privs:
        yield from _of_threads(
            "no_new_privs", found, lambda thread: "" if thread.no_new_privs else "has not no_new_privs"
        )
    if not row.dumpable and found.dumpable:
        yield Weakness("dumpable", "may be traced and dumped by its own user")
    if row.core and any(found.limits.get("core", (1, 1))):
        yield Weakness("limits", f"has a limit of core dumps of {found.limits.get('core')}, and not 0")
    size = found.limits.get("fsize", (UNLIMITED, UNLIMITED))[1]
    if row.files == "none" and size != 0:
        yield Weakness("limits", "may make files, and must not")
    if row.files == "bounded" and size == UNLIMITED:
        yield Weakness("limits", "may make files of any size")
    own = found.place.differs(host)
    shared = ("net",) if outside and row.pod_network else ()
    if missing := [name for name in row.own if name not in own and name not in shared]:
        yield Weakness("namespaces", f"is in the host's namespaces: {', '.join(missing)}")
    if row.root and found.place.root == host.root:
        yield Weakness("root", "has the host's root directory")
    if filters is not None and found.filters < filters:
        yield from _of_threads("seccomp", found, lambda thread: _unfiltered(thread, filters))


def _of_threads(cell: str, found: Facts, judge: Callable[[Thread], str]) -> Iterator[Weakness]:
    """The first thread of which there is something to say."""
    for thread in found.threads:
        if reason := judge(thread):
            where = f"thread {thread.tid} " if len(found.threads) > 1 else ""
            yield Weakness(cell, where + reason)
            return


def _other_user(thread: Thread, user: int) -> str:
    for what, numbers in (("user", thread.users), ("group", thread.groups)):
        if set(numbers) != {user}:
            return f"has the {what} {' '.join(map(str, numbers))}, and not {user}"
    if thread.supplementary:
        return f"has the groups {' '.join(map(str, thread.supplementary))}"
    return ""


def _more(thread: Thread, allowed: frozenset[str]) -> str:
    for name in CAPABILITY_SETS:
        if more := [one for one in names_of(thread.capabilities[name]) if one not in allowed]:
            return f"has capabilities in its {name} set: {', '.join(more)}"
    return ""


def _unfiltered(thread: Thread, filters: int) -> str:
    if thread.mode == 2 and thread.filters >= filters:
        return ""
    number = thread.filters if thread.mode == 2 else 0
    return f"is under {number} seccomp filters, and not {filters}"
