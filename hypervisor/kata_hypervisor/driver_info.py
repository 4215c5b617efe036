"""What is to be known of a driver without importing it: one declaration for the whole runtime.

Each driver's folder has an `info.py` with its DriverInfo, and `registry.DRIVERS` lists them. Standard library
only, and little of it: the broker reads the roles of children there before anything else is loaded.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from kata_hypervisor.api_request import Request, Schema
    from kata_hypervisor.versions import Supported

    VhostVsock = Literal["required", "optional", "unused"]


class DriverInfo:
    """A driver. Made once, by its folder's info.py, and never changed.

    name: as in [hypervisor.NAME]. program: how messages name what it starts. default_path: where that usually
    is, "" where the machine is in the runtime's own process. install: what to do where it is missing.
    children: the roles under which the broker may start processes for it.
    machine, unikernel: "module:class" of its Hypervisor and of its UnikernelVmm, "" where it has none.
    unikernels: what images call it that say which hypervisor runs their unikernel.
    required: the oldest version that is not refused, "" for any. tested: the oldest and the newest version
    that were tested, None where any from `required` on will do. boots_bzimage: the oldest version that takes
    a bzImage for a kernel, and not an ELF file only, "" where any does.
    vcpu_threads: a regular expression for the names of the threads of its virtual CPUs, whose group is the
    number of each; "" where no thread is one CPU's.
    vhost_vsock: whether it reaches its agent by the host's /dev/vhost-vsock, and knows another way.
    seal_features: the features of the seccomp policy that the sealed runtime may need for it, the most over
    everything that a host or a table decides; by "" for a machine, or "-SUFFIX" for another use of it.
    monitor_commands: what the sealed runtime may have its VMM's monitor execute, each with the schema of its
    arguments (`api_request`), None for none; empty where the VMM has no monitor. api_requests: what it may
    send to its VMM's REST interface, () where it has none.
    confined, verified: a sentence each: what confines it, and how that is verified. unconfined: what happens
    to a container without a seccomp profile where that turns the filter off, "" where nothing does.
    """

    __slots__ = (
        "api_requests",
        "boots_bzimage",
        "children",
        "confined",
        "default_path",
        "install",
        "machine",
        "monitor_commands",
        "name",
        "program",
        "required",
        "seal_features",
        "tested",
        "unconfined",
        "unikernel",
        "unikernels",
        "vcpu_threads",
        "verified",
        "vhost_vsock",
    )

    def __init__(
        self,
        name: str,
        *,
        program: str,
        default_path: str = "",
        install: str = "",
        children: tuple[str, ...] = (),
        machine: str = "",
        unikernel: str = "",
        unikernels: tuple[str, ...] = (),
        required: str = "",
        tested: tuple[str, str] | None = None,
        boots_bzimage: str = "",
        vcpu_threads: str = "",
        vhost_vsock: VhostVsock = "unused",
        seal_features: Mapping[str, frozenset[str]],
        monitor_commands: Mapping[str, Schema] | None = None,
        api_requests: tuple[Request, ...] = (),
        confined: str,
        verified: str,
        unconfined: str = "",
    ) -> None:
        self.name = name
        self.program = program
        self.default_path = default_path
        self.install = install or f"correct path in [hypervisor.{name}]"
        self.children = children
        self.machine = machine
        self.unikernel = unikernel
        self.unikernels = unikernels
        self.required = required
        self.tested = tested
        self.boots_bzimage = boots_bzimage
        self.vcpu_threads = vcpu_threads
        self.vhost_vsock = vhost_vsock
        self.seal_features = seal_features
        self.monitor_commands = monitor_commands or {}
        self.api_requests = api_requests
        self.confined = confined
        self.verified = verified
        self.unconfined = unconfined

    @property
    def in_process(self) -> bool:
        """Whether the machine is in the runtime's own process."""
        return not self.default_path

    @property
    def supported(self) -> Supported | None:
        """The range of versions that were tested; None where any from `required` on will do."""
        from kata_hypervisor.versions import Supported

        return Supported(*self.tested) if self.tested else None
