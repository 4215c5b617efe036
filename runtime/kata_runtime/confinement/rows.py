"""What each process of a pod must be on the host at least: one row for each role, declared once.

The broker holds the processes of a pod to it before the guest runs, `kata-ctl confinement` holds them to it
later, and the table of docs/threat-model.md is made from it. A row says what is so today, and no more: what
becomes stricter is changed here, in the row's line.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Filter = Literal["policy", "its own", "its own, and ours", "ours", "none"]
    Files = Literal["none", "bounded", "any"]

ROOT, POD = "root", "the pod's"
"""The users that a process may have: root, or the one that no other pod has."""

ALL: frozenset[str] = frozenset({"all"})
NONE: frozenset[str] = frozenset()
FILES = frozenset({"chown", "dac_override", "fowner", "fsetid", "setfcap", "setgid", "setuid"})
MOUNTS = frozenset(
    {"kill", "mknod", "net_admin", "net_bind_service", "sys_admin", "sys_chroot", "sys_ptrace"}
)
"""What a broker may have beside what it takes to serve files: `broker/self_confinement.py` says for what."""
STARTS = frozenset({"setpcap", "sys_chroot"})
"""virtiofsd's, in a user namespace of its own: those that it serves with, and those that it gives up before.

A thread of QEMU's version, which is older than that, keeps them.
"""

JAILS = frozenset({"chown", "dac_override", "fowner", "mknod", "setgid", "setuid", "sys_admin", "sys_chroot"})
"""What stays in the bounding set, and in no other, of a Firecracker with its jailer."""

CONFINED = ("mnt", "pid", "net", "ipc", "uts")
"""The namespaces of a process with `kata_hypervisor.privileges.Privileges`."""


class Row:
    """What a role must be at least. Whatever is stricter is as good.

    title: how people name the process. user: POD, or ROOT where nothing is required. capabilities: names of
    what it may have, in any set. no_new_privs, core: whether it must have the bit, and no core dumps.
    dumpable: whether its own user may trace it. own: the namespaces that must not be the host's.
    pod_network: whether that of the network is the host's where disable_new_netns says so. root: whether its
    root directory must not be the host's. seccomp: which filter each of its threads has:
    the runtime's policy, one that it brings, one of ours, or none; where the configuration turns it off, that
    counts. landlock: whether it is under Landlock where the kernel has it. files: how large the files
    are that it may write: there are none, as large as what its guest has of them, or any.
    """

    __slots__ = (
        "capabilities",
        "core",
        "dumpable",
        "files",
        "landlock",
        "no_new_privs",
        "own",
        "pod_network",
        "root",
        "seccomp",
        "title",
        "user",
    )

    def __init__(
        self,
        title: str,
        *,
        user: str = ROOT,
        capabilities: frozenset[str] = ALL,
        no_new_privs: bool = False,
        dumpable: bool = True,
        core: bool = False,
        own: tuple[str, ...] = (),
        pod_network: bool = False,
        root: bool = False,
        seccomp: Filter = "none",
        landlock: bool = False,
        files: Files = "any",
    ) -> None:
        self.title = title
        self.user = user
        self.capabilities = capabilities
        self.no_new_privs = no_new_privs
        self.dumpable = dumpable
        self.core = core
        self.own = own
        self.pod_network = pod_network
        self.root = root
        self.seccomp = seccomp
        self.landlock = landlock
        self.files = files


def _confined(
    title: str,
    seccomp: Filter,
    *,
    files: Files,
    pod_network: bool = False,
    capabilities: frozenset[str] = NONE,
) -> Row:
    """A process with `kata_hypervisor.privileges.Privileges`."""
    return Row(
        title,
        user=POD,
        capabilities=capabilities,
        no_new_privs=True,
        core=True,
        own=CONFINED,
        pod_network=pod_network,
        root=True,
        seccomp=seccomp,
        files=files,
    )


SHIM, BROKER, INIT = "shim", "broker", "init"
UNSEALED_BROKER = Row("broker until the seal, or in a pod without one", own=("mnt",))
CHILD_OF = " child"
"""What the role of a process that a child has started ends with, after the child's own."""

ROWS: dict[str, Row] = {
    SHIM: Row(
        "shim, from the seal on",
        user=POD,
        capabilities=NONE,
        no_new_privs=True,
        dumpable=False,
        core=True,
        seccomp="policy",
        landlock=True,
    ),
    BROKER: Row(
        "broker, from the seal on",
        capabilities=FILES - {"setgid", "setuid"} | MOUNTS,
        no_new_privs=True,
        core=True,
        own=("mnt",),
        seccomp="policy",
    ),
    INIT: _confined("init of the pod's PID namespace", "ours", files="none"),
    "qemu": _confined("QEMU", "its own, and ours", files="bounded", pod_network=True),
    "virtiofsd": Row(
        "virtiofsd",
        capabilities=FILES | STARTS,
        no_new_privs=True,
        core=True,
        own=("user", *CONFINED),
        root=True,
        seccomp="its own, and ours",
    ),
    "cloud-hypervisor": _confined("Cloud Hypervisor", "its own", files="any", pod_network=True),
    "firecracker": _confined("Firecracker", "its own", files="any", pod_network=True, capabilities=JAILS),
    "solo5-hvt": _confined("solo5-hvt", "its own", files="bounded"),
    "solo5-spt": _confined("solo5-spt", "its own", files="bounded"),
    "network": Row("network program, until the guest runs", own=("mnt",)),
    "logger": Row("logger of the first container's output"),
    "hooks": Row("kata-hooks, and the OCI hooks that it runs"),
    "rootfs-image": Row("program that makes an image of a root file system", own=("mnt",)),
}


def row_of(role: str) -> Row:
    """The row of a role; that of a child's own children is the child's where they have none of their own."""
    return ROWS.get(role) or ROWS[role.removesuffix(CHILD_OF)]
