"""What became of keys, values and tables that other versions of Kata have and this runtime does not.

Data, and how to look it up; the sentences around it are in `names`. Sources: Kata Containers 1.13 to 4.1.0,
the structures of both runtimes that read configuration.toml, and the releases where they come and go.
A key that a model has is never looked up here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

KeyPath = tuple[str, ...]

GO = "is a key of Kata's Go runtime"
MICROSOFT = "is a key of Microsoft's build of Kata"


@dataclass(frozen=True, slots=True)
class RemovedKey:
    """What became of a key or table.

    story: continues its name. advice: what to do. security: whether it concerns confinement.
    becomes: what to write in its place, a key of the same table or "family.key" of another.
    convert: from the old value to the new one, where it has to change.
    harmless: a value that asks for nothing. lost: whether a runtime that still has it acts on it.
    """

    story: str
    advice: str = ""
    becomes: str = ""
    convert: Callable[[Any], Any] | None = None
    security: bool = False
    harmless: Any = None
    lost: bool = True


def find(table: KeyPath, key: str) -> RemovedKey | None:
    """Return what became of a key in a table, by the table's name first, and then by its family."""
    return KEYS.get((".".join(table), key)) or KEYS.get((table[0], key))


def _times_1000(seconds: Any) -> Any:
    return seconds * 1000


def _seconds(milliseconds: Any) -> Any:
    return max(1, milliseconds // 1000)


def _listed(wanted: Any) -> Any:
    return ["force_guest_pull"] if wanted else []


_OTHER_FILTER = RemovedKey(
    "is QEMU's key", "use disable_seccomp: the filter is on unless that is true", security=True
)
_ALWAYS_FILTERED = RemovedKey(
    "asks for what cannot be: solo5-spt installs its seccomp filter itself, always", "remove it",
    security=True, harmless=False,
)  # fmt: skip
_REMOTE = RemovedKey("belongs to the hypervisor remote, which this runtime does not have", "remove it")
_TEMPLATE = RemovedKey("is set by the runtime itself, when it makes a machine from a template",
                      "remove it; [hypervisor.NAME.factory] turns templates on", lost=False)  # fmt: skip
_NYDUS = RemovedKey("belongs to a virtiofsd of nydus, which this runtime does not have", "remove it")
_FIRMWARE = RemovedKey(f"{GO}; no other runtime reads it", "remove it")
_NUMA = RemovedKey(f"{GO}, which shows the host's NUMA nodes to the guest", "remove it")
_NETWORK_LIMIT = RemovedKey(f"{GO}, which limits the guest's network with it", "remove it")
_TRACE = RemovedKey("was removed in Kata 2.3.0", "use enable_tracing", becomes="enable_tracing",
                   convert=lambda _: True)  # fmt: skip
_FILE_MEMORY = RemovedKey(
    "was removed in Kata 3.32.0", "remove it: the guest's memory needs no file", lost=False
)

# (table or family, key) -> what became of it.
KEYS: Mapping[tuple[str, str], RemovedKey] = {
    ("hypervisor.qemu", "disable_seccomp"): RemovedKey(
        "is not a key of this table", 'use seccompsandbox; "off" disables the filter', security=True
    ),
    **{
        (f"hypervisor.{name}", key): _OTHER_FILTER
        for name in ("clh", "firecracker", "dragonball", "solo5-hvt")
        for key in ("seccompsandbox", "seccomp_sandbox")
    },
    **{
        ("hypervisor.solo5-spt", key): _ALWAYS_FILTERED
        for key in ("disable_seccomp", "honor_unconfined", "seccompsandbox", "seccomp_sandbox")
    },
    ("hypervisor.dragonball", "path"): RemovedKey(
        "is not a key of this table: the machine runs in the runtime's own process", "remove it", harmless=""
    ),
    ("hypervisor.dragonball", "jailer_path"): RemovedKey(
        "is not a key of this table: the machine runs in the runtime's own process", "remove it", harmless=""
    ),
    ("hypervisor.qemu", "enable_guest_swap"): RemovedKey(
        "is refused for QEMU by Kata too", "use clh or dragonball, or remove it", harmless=False
    ),
    ("hypervisor", "hypervisor_loglevel"): RemovedKey(
        f"{GO}, a number", 'use log_level, such as "debug"', becomes="log_level",
        convert=lambda level: "debug" if level else "info",
    ),
    ("hypervisor", "hot_plug_vfio"): RemovedKey(
        f"{GO}; devices are given to a machine before it starts", "use cold_plug_vfio", harmless="no-port",
        becomes="cold_plug_vfio",
    ),
    ("hypervisor", "hotplug_vfio_on_root_bus"): RemovedKey(
        "was removed in Kata 4.0.0; devices are given to a machine before it starts",
        'use cold_plug_vfio = "root-port"', becomes="cold_plug_vfio",
        convert=lambda wanted: "root-port" if wanted else "no-port", harmless=False,
    ),
    ("hypervisor", "msize_9p"): RemovedKey(
        "was removed with the file system 9p in Kata 3.29.0; virtio-fs has no such limit", "remove it",
        harmless=8192, lost=False,
    ),
    ("hypervisor", "enable_swap"): RemovedKey(
        "was removed in Kata 3.14.0: the host may always swap guests out", "remove it", harmless=False,
        lost=False,
    ),
    ("hypervisor", "enable_balloon_f_reporting"): RemovedKey(
        "was renamed in Kata 3.14.0", becomes="reclaim_guest_freed_memory"
    ),
    ("hypervisor", "file_mem_backend"): _FILE_MEMORY,
    ("hypervisor", "valid_file_mem_backends"): _FILE_MEMORY,
    ("hypervisor", "use_vsock"): RemovedKey(
        "was removed in Kata 2.0.0: the agent is always reached by vsock where the host has it", "remove it",
        lost=False,
    ),
    ("hypervisor", "snp_certs_path"): RemovedKey("was removed in Kata 3.14.0", "remove it"),
    ("hypervisor", "measurement_algo"): RemovedKey(f"{GO}; no other runtime reads it", "remove it"),
    ("hypervisor", "firmware_volume"): _FIRMWARE,
    ("hypervisor", "use_legacy_serial"): _FIRMWARE,
    ("hypervisor", "vhost_user_reconnect_timeout_sec"): _FIRMWARE,
    ("hypervisor", "enable_numa"): _NUMA,
    ("hypervisor", "numa_mapping"): _NUMA,
    **{
        ("hypervisor", f"net_rate_limiter_{kind}_{limit}"): _NETWORK_LIMIT
        for kind in ("bw", "ops")
        for limit in ("max_rate", "one_time_burst")
    },
    **{
        ("hypervisor", key): _REMOTE
        for key in ("remote_hypervisor_socket", "remote_hypervisor_timeout", "hypervisor_socket",
                    "hypervisor_timeout", "default_gpus", "default_gpu_model")
    },
    **{
        ("hypervisor", key): _TEMPLATE
        for key in ("boot_to_be_template", "boot_from_template", "memory_path", "device_state_path")
    },
    ("hypervisor", "prefetch_list_path"): _NYDUS,
    ("hypervisor", "guest_selinux_label"): RemovedKey(f"{GO}, of its table [runtime]", "use selinux_label",
                                                     becomes="selinux_label"),
    ("agent", "dial_timeout"): RemovedKey(
        "was the time in seconds to reach the agent, until Kata's runtime-rs; dial_timeout_ms is another "
        "thing, the pause between two attempts",
        becomes="reconnect_timeout_ms", convert=_times_1000,
    ),
    ("agent", "cdh_api_timeout"): RemovedKey(
        f"{GO}, in seconds", becomes="cdh_api_timeout_ms", convert=_times_1000
    ),
    ("agent", "request_timeout_ms"): RemovedKey(
        "was renamed in Kata 3.19.0, and is in seconds since", becomes="create_container_timeout",
        convert=_seconds,
    ),
    ("agent", "trace_mode"): _TRACE,
    ("agent", "trace_type"): _TRACE,
    ("runtime", "create_container_timeout"): RemovedKey(
        f"{GO}; the agent's table has it here", becomes="agent.create_container_timeout"
    ),
    ("runtime", "static_resource_mgmt"): RemovedKey(
        "was renamed in Kata 3.2.0", becomes="static_sandbox_resource_mgmt"
    ),
    ("runtime", "guest_selinux_label"): RemovedKey(
        f"{GO}; the hypervisor's table has it here", becomes="hypervisor.selinux_label", harmless=""
    ),
    ("runtime", "experimental_force_guest_pull"): RemovedKey(
        f"{GO}; here it is a feature on trial", becomes="experimental", convert=_listed, harmless=False
    ),
    ("runtime", "disable_guest_empty_dir"): RemovedKey(
        "was removed in Kata 4.0.0", "use emptydir_mode", becomes="emptydir_mode",
        convert=lambda _: "shared-fs", harmless=False,
    ),
    ("runtime", "kubelet_root_dir"): RemovedKey(f"{GO}; no other runtime reads it", "remove it",
                                               harmless="/var/lib/kubelet"),
    ("runtime", "enable_netmon"): RemovedKey("was removed in Kata 2.4.0", "remove it", harmless=False),
    ("runtime", "static_sandbox_default_workload_mem"): RemovedKey(
        f"{MICROSOFT}: the memory of a machine whose pod has no limit", becomes="hypervisor.default_memory"
    ),
    ("runtime", "static_sandbox_default_workload_vcpus"): RemovedKey(
        f"{MICROSOFT}: the CPUs of a machine whose pod has no limit", becomes="hypervisor.default_vcpus"
    ),
    ("runtime", "sandbox_workload_mem_min"): RemovedKey(
        f"{MICROSOFT}: the least memory of a machine", "remove it"
    ),
    ("hypervisor", "igvm"): RemovedKey(
        f"{MICROSOFT}: one file with the firmware and the guest",
        "remove it; kernel, initrd and image name the guest",
    ),
    ("runtime", "log_prefix"): RemovedKey("is a key of one vendor's build of Kata", "remove it", lost=False),
}  # fmt: skip

_GONE_2_0 = RemovedKey(
    "was removed in Kata 2.0.0: the runtime speaks to the guest's agent itself", "remove it", lost=False
)

# A table by its name, or a member of a family -> what became of it.
TABLES: Mapping[KeyPath, RemovedKey] = {
    ("proxy",): _GONE_2_0,
    ("shim",): _GONE_2_0,
    ("netmon",): RemovedKey("was removed in Kata 2.4.0", "remove the table"),
    ("image",): RemovedKey("was removed in Kata 3.4.0", "remove the table"),
    ("factory",): RemovedKey(
        "is a table of Kata's Go runtime; since Kata 3.23.0 each hypervisor has its own, without a cache",
        "write [hypervisor.NAME.factory]",
        becomes="factory",
    ),
    ("mem_agent",): RemovedKey(
        "is a table of [agent.kata], which is known to Kata and not supported by this version", "remove it"
    ),
    ("hypervisor", "remote"): RemovedKey(
        "is known to Kata and not offered by this runtime", "remove the table"
    ),
    ("hypervisor", "openvmm"): RemovedKey(
        "is known to Kata and not offered by this runtime", "remove the table"
    ),
    ("hypervisor", "stratovirt"): RemovedKey(
        "is known to Kata's Go runtime only", "use qemu, and remove the table"
    ),
    ("hypervisor", "acrn"): RemovedKey("was removed in Kata 3.10.0", "use qemu, and remove the table"),
    ("agent", "hyperstart"): RemovedKey("was removed in Kata 2.0.0", "use [agent.kata]"),
}

# Of a table that is gone: the keys that switch something on. Without them, its other keys ask for nothing.
SWITCHES: Mapping[KeyPath, tuple[str, ...]] = {
    ("factory",): ("enable_template", "vm_cache_number"),
    ("mem_agent",): ("enable", "mem_agent_enable"),
    ("netmon",): ("enable_netmon",),
}

# (key, value) -> the value that means the same here, and what became of this one.
VALUES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("block_device_driver", "virtio-blk"): ("virtio-blk-pci", "is the Go runtime's name"),
    ("block_device_driver", "nvdimm"): ("virtio-pmem", "is the Go runtime's name"),
    ("block_device_driver", "virtio-mmio"): ("virtio-blk-mmio", "is the Go runtime's name"),
    ("vm_rootfs_driver", "nvdimm"): ("virtio-pmem", "is the Go runtime's name"),
    ("virtio_fs_cache", "none"): ("never", "was virtiofsd's name until its version in Rust"),
    ("shared_fs", "virtio-9p"): ("virtio-fs", "was removed in Kata 3.29.0"),
    ("shared_fs", "virtio-fs-nydus"): ("virtio-fs", "needs a virtiofsd of nydus"),
    ("shared_fs", "inline-virtio-fs"): ("virtio-fs", "needs a virtiofsd inside of the runtime"),
    ("log_level", "warning"): ("warn", "is no level"),
}
