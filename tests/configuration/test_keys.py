"""Keys of every hypervisor: ranges, units, what became of old ones, and what a driver does not honour."""

# ruff: noqa: E501 (what is expected stands as it is printed)

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata_configuration import Severity, lint, load
from kata_configuration.judge import rules
from kata_configuration.judge.removed_keys import KEYS, VALUES
from kata_configuration.models import (
    HYPERVISORS,
    INEFFECTIVE,
    PLANNED,
    TABLES,
    Table,
    cloud_hypervisor,
    cloud_hypervisor_planned,
)
from kata_configuration.models.base import Instead, MachineTable
from kata_configuration.models.cloud_hypervisor import CloudHypervisor
from kata_configuration.models.cloud_hypervisor_planned import CloudHypervisorPlanned
from kata_configuration.parse.toml_text import value_text

Write = Callable[..., Path]

GUEST = 'kernel = "/boot/vmlinuz"\nimage = "/srv/image"\n'
QEMU = f"[hypervisor.qemu]\n{GUEST}"
NOT_YET = "is known to Kata and not supported by this version"
NO_IOMMU = "the machine has no virtual IOMMU, and no device of the host that its guest could put behind one"
ONE_MONITOR = "QEMU has one monitor, which the pod's broker holds, and which takes checked commands only"
EMPTY_DIR = "an emptyDir volume is a directory of the host that the guest shares, or of medium Memory, a tmpfs of the guest's own"
ALWAYS_ROOTLESS = "is not needed: every machine runs as a user of its pod, who has no privileges"
ROOT_ON_A_DISK = (
    "a root file system on a block device is mounted on the host and "
    "shared where files are shared, and is a disk of the guest elsewhere"
)
NO_CONSOLE = (
    "the guest has no console beside its containers, and with enable_debug of its hypervisor's table "
    "what its kernel prints is in the runtime's log"
)
NO_DEVICES = (
    "a guest gets the block devices of the host that its containers name, as disks, and no other device"
)
NOT_CONFIDENTIAL = "no guest is confidential: its host can read its memory"
NO_DAX = "a guest reads shared files through a page cache of its own"
NOTHING = "; the value changes nothing (remove it)"

# Each text is put after QEMU (three lines), and compared without "hypervisor." and the file's name.
CASES: list[tuple[str, str, list[str]]] = [
    # QEMU: what its driver does not honour yet.
    ("planned, with what happens instead", "enable_iommu = true\n", [f"4:1: error[KATA203] qemu.enable_iommu: {NOT_YET}: {NO_IOMMU} (remove it)"]),
    ("planned, off, with what happens instead", "enable_iommu = false\n", [f"4:1: note[KATA210] qemu.enable_iommu: {NOT_YET}: {NO_IOMMU}{NOTHING}"]),
    ("planned, with what to do", "[runtime]\nkeep_abnormal = true\n", [f"5:1: error[KATA203] runtime.keep_abnormal: {NOT_YET}: what a pod had is cleaned up, and the log keeps what each of its processes said last (remove it, and set enable_debug where more is to be logged)"]),
    ("kept on CPUs, with an overhead", "[runtime]\nenable_vcpus_pinning = true\n", ["5:24: warning[KATA404] runtime.enable_vcpus_pinning: has no effect on pods with a limit of whole CPUs: by overhead_vcpus = 0.2 their machines have one virtual CPU more than their cpusets name (set overhead_vcpus = 0 in [hypervisor.qemu])"]),
    ("kept on CPUs", "overhead_vcpus = 0.0\n[runtime]\nenable_vcpus_pinning = true\n", []),
    ("kept on CPUs, of a machine that grows", "[runtime]\nenable_vcpus_pinning = true\nstatic_sandbox_resource_mgmt = false\n", []),
    ("kept on CPUs, unikernels only", '[hypervisor.solo5-hvt]\n[runtime]\nhypervisor_name = "solo5-hvt"\nenable_vcpus_pinning = true\n', ["7:24: error[KATA401] runtime.enable_vcpus_pinning: cannot be: solo5-hvt is configured to run unikernels only (remove it)"]),
    ("asks for what is always so", "rootless = true\n", [f"4:1: note[KATA210] qemu.rootless: {ALWAYS_ROOTLESS} (remove it)"]),
    ("asks against what is always so", "rootless = false\n", [f"4:1: note[KATA210] qemu.rootless: {ALWAYS_ROOTLESS} (remove it)"]),
    ("asks for what is always so, of the wrong type", 'rootless = "no"\n', [f"4:1: error[KATA203] qemu.rootless: {NOT_YET}: every machine runs as a user of its pod, who has no privileges (remove it)"]),
    ("acted on by the Go runtime, with what happens instead", 'shared_fs = "none"\ndisable_block_device_use = true\n', [f"5:1: error[KATA203] qemu.disable_block_device_use: is acted on by Kata's Go runtime only: {ROOT_ON_A_DISK} (remove it, and choose by shared_fs)"]),
    ("what happens anyway with another key's value", "disable_block_device_use = true\n", [f"4:1: note[KATA210] qemu.disable_block_device_use: is not needed: {ROOT_ON_A_DISK} (remove it)"]),
    ("of Kata after 4.1.0: a shell for a console", '[agent.kata]\ndebug_console_shell = "/bin/sh"\n', [f"5:1: error[KATA203] agent.kata.debug_console_shell: {NOT_YET}: {NO_CONSOLE} (remove it, and set enable_debug in the hypervisor's table)"]),
    ("of Kata after 4.1.0: sockets of the host", '[runtime]\nvsock_uds_forward = ["1234:/run/x.sock"]\n', [f"5:1: error[KATA203] runtime.vsock_uds_forward: {NOT_YET}: no Unix socket of the host is behind a port of a guest's vsock (remove it, and let the pod reach that server by its network)"]),
    ("of Kata after 4.1.0: what tells a pod's devices", '[runtime]\npod_resource_device_sources = ["dra"]\n', [f"5:1: error[KATA203] runtime.pod_resource_device_sources: {NOT_YET}: {NO_DEVICES} (remove it, and run pods that need another device with another runtime)"]),
    ("of Kata after 4.1.0, as if it were not there", '[agent.kata]\ndebug_console_shell = ""\n[runtime]\nvsock_uds_forward = []\npod_resource_device_sources = ["device-plugin"]\n', [f"5:1: note[KATA210] agent.kata.debug_console_shell: {NOT_YET}: {NO_CONSOLE}{NOTHING}", f"7:1: note[KATA210] runtime.vsock_uds_forward: {NOT_YET}: no Unix socket of the host is behind a port of a guest's vsock{NOTHING}", f"8:1: note[KATA210] runtime.pod_resource_device_sources: {NOT_YET}: {NO_DEVICES}{NOTHING}"]),
    ("mounts of no form", '[runtime]\nsandbox_bind_mounts = ["/srv/tools", "tools", "/", "/srv/../x:ro", "/srv/x/", "/srv:rx"]\n', [f'5:{column}: error[KATA304] runtime.sandbox_bind_mounts[{number}]: "{value}" is no path of a directory or file of the host (write a path such as /srv/tools, or /srv/tools:rw)' for column, number, value in ((38, 1, "tools"), (47, 2, "/"), (52, 3, "/srv/../x:ro"), (68, 4, "/srv/x/"), (79, 5, "/srv:rx"))]),
    ("mounts of one name", '[runtime]\nsandbox_bind_mounts = ["/srv/tools", "/opt/tools:rw"]\n', ['5:38: error[KATA401] runtime.sandbox_bind_mounts[1]: has the last name "tools" of another entry, by which the guest finds each (keep one of them)']),
    ("mounts where no files are shared", 'shared_fs = "none"\n[runtime]\nsandbox_bind_mounts = ["/srv/tools"]\n', ["6:23: error[KATA401] runtime.sandbox_bind_mounts: cannot be: qemu is configured to share no files with its guests (remove it)"]),
    ("planned, and empty", 'extra_monitor_socket = ""\n', [f"4:1: note[KATA210] qemu.extra_monitor_socket: {NOT_YET}: {ONE_MONITOR}{NOTHING}"]),
    ("planned, of the wrong type", "extra_monitor_socket = true\n", [f"4:1: error[KATA203] qemu.extra_monitor_socket: {NOT_YET}: {ONE_MONITOR} (remove it, and set enable_debug to have what QEMU says in the log)"]),
    ("a protection", "disable_guest_selinux = false\n", [f"4:1: error[KATA213] qemu.disable_guest_selinux: {NOT_YET}: containers run without SELinux in the guest (remove it only where pods can do without this protection) [security]"]),
    ("a protection, by one of its values", '[runtime]\nemptydir_mode = "block-encrypted"\n', [f"5:1: error[KATA213] runtime.emptydir_mode: {NOT_YET}: {EMPTY_DIR} (remove it only where pods can do without this protection) [security]"]),
    ("no protection, by another", '[runtime]\nemptydir_mode = "block-plain"\n', [f"5:1: error[KATA203] runtime.emptydir_mode: {NOT_YET}: {EMPTY_DIR} (remove it, and set medium: Memory of the volumes that must not be on the host's disks)"]),
    ("planned, by another name", 'dbg_monitor_socket = ""\n', [f"4:1: note[KATA210] qemu.dbg_monitor_socket: {NOT_YET}: {ONE_MONITOR}{NOTHING}"]),
    ("a planned table", "[hypervisor.qemu.factory]\nenable_template = true\n", [f"4:18: error[KATA203] qemu.factory: {NOT_YET}: every machine is booted (remove it, or use the hypervisor dragonball, whose machines start from a template)"]),
    ("a planned table, off", "[hypervisor.qemu.factory]\nenable_template = false\n", [f"4:18: note[KATA210] qemu.factory: {NOT_YET}: every machine is booted{NOTHING}"]),
    ("acted on by no runtime", 'ctlpath = "/x"\n', ["4:1: error[KATA203] qemu.ctlpath: is read by Kata and acted on by no runtime: the runtime controls the hypervisor by its own interface (remove it)"]),
    ("acted on by the Go runtime", 'pflashes = ["/f"]\n', ["4:1: error[KATA203] qemu.pflashes: is acted on by Kata's Go runtime only: a machine has no flash image: its firmware is one file (remove it, and write firmware in [hypervisor.qemu])"]),
    ("acted on by the Go runtime, off", "[runtime]\nenable_pprof = false\n", ["5:1: note[KATA210] runtime.enable_pprof: is acted on by Kata's Go runtime only: no profile is served" + NOTHING]),
    ("acted on by the Go runtime, and needless", "memory_offset = 64\n", ["4:1: note[KATA210] qemu.memory_offset: is not needed: a machine has no persistent memory, and no address space is kept for it (remove it)"]),
    ("honoured by one driver, and of the Go runtime", "rx_rate_limiter_max_rate = 8000\n", ["4:1: error[KATA204] qemu.rx_rate_limiter_max_rate: is not a key of QEMU, but of firecracker: a guest's network is as fast as its pod's (remove it, and limit the pod's interface, as the CNI plugin bandwidth does)"]),
    ("cache options that are in force", "block_device_cache_set = true\n", ["4:1: note[KATA210] qemu.block_device_cache_set: is acted on by Kata's Go runtime only: each cache option of block devices is in force without it" + NOTHING]),
    ("sectors of no size", "block_device_logical_sector_size = 256\n", ["4:36: error[KATA304] qemu.block_device_logical_sector_size: 256 is less than 512 (write 512, or 0 for the device's own)"]),
    ("sectors that do not fit", "block_device_logical_sector_size = 4096\nblock_device_physical_sector_size = 512\n", ["4:36: error[KATA401] qemu.block_device_logical_sector_size: block_device_logical_sector_size = 4096 is more than block_device_physical_sector_size = 512 (change it or block_device_physical_sector_size)"]),
    ("threads without their switch", "indep_iothreads = 2\n", ["4:19: warning[KATA404] qemu.indep_iothreads: has no effect without enable_iothreads (remove it, or set enable_iothreads)"]),
    ("a planned table, off, with settings", "[agent.kata.mem_agent]\nmem_agent_enable = false\ncompact_sec_max = 180\n", [f"4:13: note[KATA210] agent.kata.mem_agent: {NOT_YET}: the guest's kernel alone ages, evicts and compacts its memory{NOTHING}"]),
    ("a list of what annotations may do", 'valid_jailer_paths = ["/usr/bin/jailer"]\n', ["4:1: note[KATA210] qemu.valid_jailer_paths: is not a key of QEMU, but of firecracker" + NOTHING]),
    # Keys of other drivers, and the driver's own way.
    ("Firecracker's", 'jailer_path = "/usr/bin/jailer"\n', ["4:1: error[KATA204] qemu.jailer_path: is not a key of QEMU, but of firecracker (remove it)"]),
    ("Firecracker's, off", 'jailer_path = ""\n', ["4:1: note[KATA210] qemu.jailer_path: is not a key of QEMU, but of firecracker" + NOTHING]),
    ("another's seccomp, though on", "disable_seccomp = false\n", ['4:1: error[KATA209] qemu.disable_seccomp: is not a key of this table (use seccompsandbox; "off" disables the filter) [security]']),
    *(
        (
            f"QEMU's seccomp under {name}",
            f'[hypervisor.{name}]\n{key} = "off"\n',
            [f"5:1: warning[KATA209] {name}.{key}: is QEMU's key (use disable_seccomp: the filter is on unless that is true) [security]"],
        )
        for name in ("clh", "firecracker", "dragonball", "solo5-hvt")
        for key in ("seccompsandbox", "seccomp_sandbox")
    ),
    ("spt without a filter", "[hypervisor.solo5-spt]\ndisable_seccomp = true\n", ["5:1: warning[KATA209] solo5-spt.disable_seccomp: asks for what cannot be: solo5-spt installs its seccomp filter itself, always (remove it) [security]"]),
    ("spt with its filter", "[hypervisor.solo5-spt]\ndisable_seccomp = false\n", ["5:1: note[KATA210] solo5-spt.disable_seccomp: asks for what cannot be: solo5-spt installs its seccomp filter itself, always" + NOTHING]),
    ("no filter", "[hypervisor.clh]\ndisable_seccomp = true\n", ["5:19: warning[KATA502] clh.disable_seccomp: Cloud Hypervisor runs without its seccomp filter (set it to false) [security]"]),
    ("a filter that containers turn off", "[hypervisor.solo5-hvt]\nhonor_unconfined = true\n", ["5:20: warning[KATA502] solo5-hvt.honor_unconfined: a container without a seccomp profile runs solo5-hvt without its filter (set it to false) [security]"]),
    ("a filter that unikernels turn off", "honor_unconfined = true\n", ["4:20: warning[KATA502] qemu.honor_unconfined: a container without a seccomp profile runs QEMU without its filter (set it to false) [security]"]),
    ("no filter in the runtime's process", "[hypervisor.dragonball]\ndisable_seccomp = true\n", ["5:19: warning[KATA502] dragonball.disable_seccomp: Dragonball runs without its seccomp filter (set it to false) [security]"]),
    ("the runtime's filter, on", '[runtime]\nshim_seccomp = "enforce"\n', []),
    ("the runtime's filter, off", '[runtime]\nshim_seccomp = "off"\n', ["5:16: warning[KATA505] runtime.shim_seccomp: the runtime's own process runs without a seccomp filter (set it to \"enforce\") [security]"]),
    ("the runtime's filter, watching", '[runtime]\nshim_seccomp = "log"\n', ["5:16: warning[KATA506] runtime.shim_seccomp: a call outside the policy of the runtime's own process is logged and let through (set it to \"enforce\") [security]"]),
    ("confinement that is misspelt", '[runtime]\nrequired_confinement = ["landlok"]\n', ['5:25: error[KATA303] runtime.required_confinement[0]: "landlok" is none of the allowed values (did you mean "landlock"?)']),
    ("confinement that is no name", '[runtime]\nrequired_confinement = [false]\n', ['5:25: error[KATA301] runtime.required_confinement[0]: is a boolean, must be a string (use one of "landlock", "cgroup")']),
    ("the runtime's filter, misspelled", '[runtime]\nshim_seccomp = "enforced"\n', ['5:16: error[KATA303] runtime.shim_seccomp: "enforced" is none of the allowed values (did you mean "enforce"?)']),
    ("the runtime's filter, a boolean", "[runtime]\nshim_seccomp = false\n", ['5:16: error[KATA301] runtime.shim_seccomp: is a boolean, must be a string (use one of "enforce", "log", "off")']),
    ("in process", '[hypervisor.dragonball]\npath = "/usr/bin/dragonball"\n', ["5:1: warning[KATA204] dragonball.path: is not a key of this table: the machine runs in the runtime's own process (remove it)"]),
    ("no shared files", '[hypervisor.firecracker]\nshared_fs = "virtio-fs"\n', ['5:13: warning[KATA303] firecracker.shared_fs: "virtio-fs" is not supported: each container\'s files are a block device, and volumes are refused (only "none" is supported)']),
    # Ranges and forms.
    ("32 CPUs", "[hypervisor.firecracker]\ndefault_vcpus = 33\n", ["5:17: warning[KATA302] firecracker.default_vcpus: 33 is above the maximum of 32 (write 32 or less)"]),
    ("powers of two", "[hypervisor.clh]\nqueue_size = 100\n", ["5:14: warning[KATA304] clh.queue_size: 100 is not a power of two (write 64)"]),
    ("a number in an array of text", "[hypervisor.clh]\nenable_annotations = [\"default_vcpus\", 3]\n", ["5:40: warning[KATA301] clh.enable_annotations[1]: is an integer, must be a string (put it in quotes)"]),
    ("globs", 'valid_kernel_paths = ["boot/*", "/boot/*"]\n', ['4:23: error[KATA304] qemu.valid_kernel_paths[0]: "boot/*" matches no absolute path (begin it with "/")']),
    # Units.
    ("bytes for MiB", "default_memory = 2147483648\n", ["4:18: error[KATA302] qemu.default_memory: 2147483648 is above the maximum of 16777216 MiB (the unit is MiB: for 2147483648 bytes write 2048)"]),
    ("seconds for milliseconds", "[agent.kata]\nreconnect_timeout_ms = 45\n", ["5:24: warning[KATA305] agent.kata.reconnect_timeout_ms: 45 is unusually small: the unit is milliseconds (for 45 seconds write 45000)"]),
    ("seconds for milliseconds, of the pause", "[agent.kata]\ndial_timeout_ms = 90\nreconnect_timeout_ms = 5000\n", ["5:19: warning[KATA305] agent.kata.dial_timeout_ms: 90 is a long pause between two attempts: the unit is milliseconds (if the guest has 90 seconds to boot, write reconnect_timeout_ms = 90000)"]),
    ("a long pause, and longer attempts", "[agent.kata]\ndial_timeout_ms = 90\nreconnect_timeout_ms = 120000\n", []),
    ("milliseconds for seconds", "[agent.kata]\ncreate_container_timeout = 30000\n", ["5:28: error[KATA302] agent.kata.create_container_timeout: 30000 is above the maximum of 3600 seconds (the unit is seconds: for 30000 milliseconds write 30)"]),
    ("KiB for bytes", "[agent.kata]\ncontainer_pipe_size = 64\n", ["5:23: warning[KATA305] agent.kata.container_pipe_size: 64 is unusually small: the unit is bytes (for 64 KiB write 65536)"]),
    # Keys against each other, and switches.
    ("more at first than at most", "[hypervisor.clh]\ndefault_vcpus = 4\ndefault_maxvcpus = 2\n", ["5:17: warning[KATA401] clh.default_vcpus: default_vcpus = 4 is more than default_maxvcpus = 2 (change it or default_maxvcpus)"]),
    ("huge pages of another kind", '[hypervisor.dragonball]\nhugepage_type = "thp"\n', ["5:17: warning[KATA303] dragonball.hugepage_type: \"thp\" is not supported: without enable_hugepages, memory is of transparent huge pages where the host offers them (only \"hugetlbfs\" is supported)"]),
    ("a burst without a limit", "[hypervisor.clh]\ndisk_rate_limiter_bw_one_time_burst = 1\n", ["5:39: warning[KATA404] clh.disk_rate_limiter_bw_one_time_burst: has no effect without disk_rate_limiter_bw_max_rate (remove it, or set disk_rate_limiter_bw_max_rate)"]),
    ("a burst of operations without a limit", "[hypervisor.firecracker]\ndisk_rate_limiter_ops_one_time_burst = 1\n", ["5:40: warning[KATA404] firecracker.disk_rate_limiter_ops_one_time_burst: has no effect without disk_rate_limiter_ops_max_rate (remove it, or set disk_rate_limiter_ops_max_rate)"]),
    ("an overhead, and fixed sizes", "overhead_memory = 64\n[runtime]\nstatic_sandbox_resource_mgmt = false\n", ["4:19: warning[KATA404] qemu.overhead_memory: has no effect without static_sandbox_resource_mgmt in [runtime] (remove it, or set static_sandbox_resource_mgmt)"]),
    ("an overhead, and sizes by limits", "overhead_memory = 64\n", []),
    ("virtiofsd without shared files", 'shared_fs = "none"\nvirtio_fs_cache = "never"\nvirtio_fs_daemon = "/usr/lib/qemu/virtiofsd"\n', ['5:19: warning[KATA404] qemu.virtio_fs_cache: has no effect with shared_fs = "none" (remove it, or change shared_fs)']),
    ("an image's type, and no image", '[hypervisor.clh]\nkernel = "/k"\ninitrd = "/i"\nrootfs_type = "xfs"\n', ["7:15: warning[KATA404] clh.rootfs_type: has no effect without image (remove it, or set image)"]),
    ("queues, and no network", "[hypervisor.clh]\nnetwork_queues = 2\nkernel = \"/k\"\nimage = \"/i\"\n[runtime]\ninternetworking_model = \"none\"\n", ['5:18: warning[KATA404] clh.network_queues: has no effect with internetworking_model = "none" in [runtime] (remove it, or change internetworking_model)']),
    ("the host's network, and a network", "[runtime]\ndisable_new_netns = true\n", ['5:21: error[KATA401] runtime.disable_new_netns: contradicts internetworking_model = "tcfilter", for which the VMM runs in the pod\'s network (set it to false, or internetworking_model to "none")']),
    ("the host's network", '[runtime]\ndisable_new_netns = true\ninternetworking_model = "none"\n', ["5:21: warning[KATA509] runtime.disable_new_netns: the VMM runs in the host's network namespace (set it to false) [security]"]),
    ("one cgroup", "[runtime]\nsandbox_cgroup_only = false\n", ["5:23: error[KATA303] runtime.sandbox_cgroup_only: false is not supported: everything that a sandbox runs on the host is in one cgroup of the pod (only true is supported)"]),
    ("one cgroup, by number", "[runtime]\nsandbox_cgroup_only = 1\n", ["5:23: error[KATA301] runtime.sandbox_cgroup_only: is an integer, must be true or false (write true or false)"]),
    ("a level that the agent does not have", '[agent.kata]\nlog_level = "warn"\n', [f"5:1: error[KATA203] agent.kata.log_level: {NOT_YET}: the agent logs at the level info, and at debug with enable_debug = true (remove it, and set enable_debug = true where more is to be logged)"]),
    ("debugging", "enable_debug = true\n", ["4:16: note[KATA403] qemu.enable_debug: is on: the log has the guest's console and the messages of the VMM (set it to false)"]),
    # What became of it.
    ("a time that is another now", "[agent.kata]\ndial_timeout = 45\n", ["5:1: error[KATA204] agent.kata.dial_timeout: was the time in seconds to reach the agent, until Kata's runtime-rs; dial_timeout_ms is another thing, the pause between two attempts (write reconnect_timeout_ms = 45000)"]),
    ("a rename", "[runtime]\nstatic_resource_mgmt = true\n", ["5:1: error[KATA204] runtime.static_resource_mgmt: was renamed in Kata 3.2.0 (write static_sandbox_resource_mgmt)"]),
    ("a rename to what is planned", '[agent.kata]\ntrace_mode = "dynamic"\n', ["5:1: error[KATA204] agent.kata.trace_mode: was removed in Kata 2.3.0 (remove it: what it became, enable_tracing, is not supported by this version)"]),
    ("a rename under clh", "[hypervisor.clh]\nenable_balloon_f_reporting = true\n", ["5:1: warning[KATA204] clh.enable_balloon_f_reporting: was renamed in Kata 3.14.0 (write reclaim_guest_freed_memory)"]),
    ("a move", "[runtime]\ncreate_container_timeout = 60\n", ["5:1: error[KATA204] runtime.create_container_timeout: is a key of Kata's Go runtime; the agent's table has it here (move it to [agent.kata])"]),
    ("a unit", "[agent.kata]\nrequest_timeout_ms = 30000\n", ["5:1: error[KATA204] agent.kata.request_timeout_ms: was renamed in Kata 3.19.0, and is in seconds since (write create_container_timeout = 30)"]),
    ("Go's alone", "enable_numa = true\n", ["4:1: error[KATA204] qemu.enable_numa: is a key of Kata's Go runtime, which shows the host's NUMA nodes to the guest (remove it)"]),
    ("Go's alone, off", "enable_numa = false\n", ["4:1: note[KATA210] qemu.enable_numa: is a key of Kata's Go runtime, which shows the host's NUMA nodes to the guest" + NOTHING]),
    ("an old value", 'virtio_fs_cache = "none"\n', ['4:19: error[KATA303] qemu.virtio_fs_cache: "none" was virtiofsd\'s name until its version in Rust (write "never")']),
    ("a removed file system", 'shared_fs = "virtio-9p"\n', ['4:13: error[KATA303] qemu.shared_fs: "virtio-9p" was removed in Kata 3.29.0 (write "virtio-fs")']),
    ("tables of Kata 1", '[proxy.kata]\npath = "/x"\n[shim.kata]\n', ["4:2: error[KATA203] proxy: was removed in Kata 2.0.0: the runtime speaks to the guest's agent itself (remove it)", "6:2: error[KATA203] shim: was removed in Kata 2.0.0: the runtime speaks to the guest's agent itself (remove it)"]),
    ("Go's factory", "[factory]\nenable_template = true\n", ["4:2: error[KATA203] factory: is a table of Kata's Go runtime; since Kata 3.23.0 each hypervisor has its own, without a cache (remove it: qemu does not support what it became)"]),
    ("the memory agent, alone", "[mem_agent]\nenable = true\n", ["4:2: error[KATA203] mem_agent: is a table of [agent.kata], which is known to Kata and not supported by this version (remove it)"]),
    ("a key of a planned table", "enable_template = true\n", [f"4:1: error[KATA203] qemu.enable_template: is a key of [hypervisor.qemu.factory], which {NOT_YET} (remove it)"]),
    ("a key of a table", "[hypervisor.dragonball]\nenable_template = true\n", ["5:1: warning[KATA204] dragonball.enable_template: is not a key of this table (it belongs in [hypervisor.dragonball.factory])"]),
    ("Microsoft's", "[runtime]\nstatic_sandbox_default_workload_mem = 1792\n", ["5:1: error[KATA204] runtime.static_sandbox_default_workload_mem: is a key of Microsoft's build of Kata: the memory of a machine whose pod has no limit (write default_memory in [hypervisor.qemu])"]),
    ("Microsoft's, of the machine", 'igvm = "/igvm"\n', ["4:1: error[KATA204] qemu.igvm: is a key of Microsoft's build of Kata: one file with the firmware and the guest (remove it; kernel, initrd and image name the guest)"]),
    ("AMD's and Intel's", "sev_snp_guest = true\nsnp_guest_policy = 196608\nsnp_certs_path = \"/c\"\ntdx_quote_generation_service_socket_port = 4050\n", [f"4:1: error[KATA213] qemu.sev_snp_guest: {NOT_YET}: {NOT_CONFIDENTIAL} (remove it only where pods can do without this protection) [security]", f"5:1: note[KATA210] qemu.snp_guest_policy: {NOT_YET}: {NOT_CONFIDENTIAL}{NOTHING}", "6:1: error[KATA204] qemu.snp_certs_path: was removed in Kata 3.14.0 (remove it)", f"7:1: note[KATA210] qemu.tdx_quote_generation_service_socket_port: {NOT_YET}: {NOT_CONFIDENTIAL}{NOTHING}"]),
    ("DAX", "virtio_fs_is_dax = true\nvirtio_fs_cache_size = 1024\n", [f"4:1: error[KATA203] qemu.virtio_fs_is_dax: is read by Kata and acted on by no runtime: {NO_DAX} (remove it)", f"5:1: error[KATA203] qemu.virtio_fs_cache_size: is acted on by Kata's Go runtime only: {NO_DAX} (remove it)"]),
    ("DAX, off", "virtio_fs_is_dax = false\nvirtio_fs_cache_size = 0\n", [f"4:1: note[KATA210] qemu.virtio_fs_is_dax: is read by Kata and acted on by no runtime: {NO_DAX}{NOTHING}", f"5:1: note[KATA210] qemu.virtio_fs_cache_size: is acted on by Kata's Go runtime only: {NO_DAX}{NOTHING}"]),
    # Names of hypervisors.
    ("another name", "[hypervisor.cloud-hypervisor]\n", ["4:13: note[KATA211] cloud-hypervisor: is another name of [hypervisor.clh] (write clh)"]),
    ("almost the other name", "[hypervisor.cloud_hypervisr]\n", ['4:13: error[KATA202] cloud_hypervisr: unknown table (did you mean "cloud-hypervisor"?)']),
    ("both names", "[hypervisor.cloud-hypervisor]\n[hypervisor.clh]\n", ["4:13: error[KATA207] cloud-hypervisor: is another name of [hypervisor.clh], which is there too (keep one of them)"]),
    ("another name's keys", "[hypervisor.cloud-hypervisor]\nqueue_siz = 1\n", ["4:13: note[KATA211] cloud-hypervisor: is another name of [hypervisor.clh] (write clh)", '5:1: warning[KATA201] cloud-hypervisor.queue_siz: unknown key (did you mean "queue_size"?)']),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_reported_for_a_key(write: Write, text: str, expected: list[str]) -> None:
    path = write(QEMU + text)
    findings = [str(found).replace("] hypervisor.", "] ", 1) for found in lint(path, check_host=False)]
    assert findings == [f"{path}:{line}" for line in expected]


# Keys that no driver honours yet, and whose rules are there: what is reported once Cloud Hypervisor's honours them.
COMING: list[tuple[str, str, list[str]]] = [
    ("verity", 'kernel_verity_params = "root_hash=abababababababababababababababababababababababababababababababab,salt=2a,data_blocks=3,data_block_size=4096,hash_block_size=100"\n', ['5:24: warning[KATA304] clh.kernel_verity_params: "root_hash=abababababababababababababababababababababababababababababababab,sa..." has hash_block_size=100 (write 512, 1024, 2048 or 4096)']),
    ("a root hash that is none", 'kernel_verity_params = "root_hash=xyz,salt=2a,data_blocks=3,data_block_size=4096,hash_block_size=512"\n', ['5:24: warning[KATA304] clh.kernel_verity_params: "root_hash=xyz,salt=2a,data_blocks=3,data_block_size=4096,hash_block_size=512" has root_hash=xyz (write 64 hexadecimal digits, in lower case)']),
    ("verity twice", 'kernel_verity_params = "root_hash=abababababababababababababababababababababababababababababababab,salt=2a,salt=2a,data_blocks=3,data_block_size=4096,hash_block_size=512"\n', ['5:24: warning[KATA304] clh.kernel_verity_params: "root_hash=abababababababababababababababababababababababababababababababab,sa..." has a parameter twice (keep one of them)']),
    ("half of verity", 'kernel_verity_params = "salt=1"\n', ['5:24: warning[KATA304] clh.kernel_verity_params: "salt=1" has no root_hash (add root_hash=...)']),
    ("verity of another name", 'kernel_verity_params = "a=1"\n', ['5:24: warning[KATA304] clh.kernel_verity_params: "a=1" has the unknown parameter "a" (use root_hash, salt, data_blocks, data_block_size, hash_block_size)']),
    ("a table in a table", "[hypervisor.clh.factory]\nenable_templat = true\ntemplate_path = 3\n", ['6:1: warning[KATA201] clh.factory.enable_templat: unknown key (did you mean "enable_template"?)', "7:17: warning[KATA301] clh.factory.template_path: is an integer, must be a string with an absolute path (write a string with an absolute path)"]),
    ("a value for a table", "factory = true\n", ["5:11: warning[KATA301] clh.factory: is a boolean, must be a table (write a table)"]),
    ("a fraction for percent", "guest_swap_size_percent = 0.5\n", ["5:27: warning[KATA301] clh.guest_swap_size_percent: is a float, must be an integer (the unit is percent: for 0.5 write 50)"]),
    ("a size without its switch", "guest_swap_size_percent = 50\n", ["5:27: warning[KATA404] clh.guest_swap_size_percent: has no effect without enable_guest_swap (remove it, or set enable_guest_swap)"]),
    ("less at most than at first", "default_memory = 1024\ndefault_maxmemory = 512\n", ["5:18: warning[KATA401] clh.default_memory: default_memory = 1024 is more than default_maxmemory = 512 (change it or default_maxmemory)"]),
]  # fmt: skip


class Coming(CloudHypervisor, CloudHypervisorPlanned):
    """Cloud Hypervisor's table when its driver honours every key."""


@pytest.mark.parametrize(
    ("text", "expected"), [case[1:] for case in COMING], ids=[case[0] for case in COMING]
)
def test_what_will_be_reported_for_a_key(
    write: Write, monkeypatch: pytest.MonkeyPatch, text: str, expected: list[str]
) -> None:
    monkeypatch.setattr(cloud_hypervisor, "CloudHypervisor", Coming)
    monkeypatch.setattr(cloud_hypervisor_planned, "CloudHypervisorPlanned", Table)
    path = write(f"{QEMU}[hypervisor.clh]\n{text}")
    findings = [str(found).replace("] hypervisor.", "] ", 1) for found in lint(path, check_host=False)]
    assert findings == [f"{path}:{line}" for line in expected]


def test_what_asks_for_nothing_changes_nothing(write: Write) -> None:
    inert = 'enable_iommu = false\nextra_monitor_socket = ""\njailer_path = ""\nmemory_offset = 0\nenable_numa = false\n'
    plain = load(write(QEMU), check_host=False).hypervisor
    assert load(write(QEMU + inert), check_host=False).hypervisor == plain


def test_every_key_that_is_not_honoured_says_what_happens_instead() -> None:
    for path, model in [*PLANNED.items(), *INEFFECTIVE.items()]:
        for key, field in model.model_fields.items():
            said = [item for item in field.metadata if isinstance(item, Instead)]
            assert [bool(item.clause) for item in said] == [True] or key.startswith("valid_"), (path, key)
            assert all(item.advice.startswith("remove it") for item in said)


def test_a_hypervisor_without_a_driver_cannot_be_selected(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "AVAILABLE", ("qemu", "firecracker"))
    path = write(f'[hypervisor.clh]\n{GUEST}[runtime]\nhypervisor_name = "clh"\n')
    [found] = lint(path, check_host=False)
    assert found.code == "KATA212"
    assert found.message == "there is no driver for clh in this version"
    assert found.hint == 'use "qemu" or "firecracker"'


@pytest.mark.parametrize("name", ["qemu", "firecracker", "dragonball"])
def test_a_table_that_says_it_has_no_kernel_runs_unikernels(write: Write, name: str) -> None:
    path = write(f'[hypervisor.{name}]\nkernel = ""\n[runtime]\nhypervisor_name = "{name}"\n')
    [found] = lint(path, check_host=False)
    assert (found.code, found.severity) == ("KATA405", Severity.NOTE)
    table = load(path, check_host=False).hypervisor
    assert isinstance(table, MachineTable)
    assert table.kernel is None


@pytest.mark.parametrize(("name", "kernel"), [("qemu", ""), ("clh", 'kernel = ""\n')])
def test_one_that_does_not_say_so_lacks_one(write: Write, name: str, kernel: str) -> None:
    path = write(
        f'[hypervisor.{name}]\n{kernel}image = "/srv/image"\n[runtime]\nhypervisor_name = "{name}"\n'
    )
    [found] = lint(path, check_host=False)
    assert found.severity is Severity.ERROR
    assert "kernel" in str(found)


def test_the_other_name_selects_the_table(write: Write) -> None:
    path = write(f'[hypervisor.clh]\n{GUEST}[runtime]\nhypervisor_name = "cloud-hypervisor"\n')
    assert load(path, check_host=False).hypervisor_name == "clh"


@pytest.mark.parametrize("name", HYPERVISORS)
def test_a_table_that_is_not_selected_stops_nothing(write: Write, name: str) -> None:
    broken = "" if name == "qemu" else f"[hypervisor.{name}]\ndefault_memory = 0\nno_such_key = 1\n"
    path = write(QEMU + broken)
    assert all(found.severity is not Severity.ERROR for found in lint(path, check_host=False))
    assert len(load(path, check_host=False).warnings) == (2 if broken else 0)


@pytest.mark.parametrize(("table", "key"), KEYS, ids=str)
def test_no_model_has_a_key_that_is_buried(table: str, key: str) -> None:
    places = [path for path in TABLES if ".".join(path) == table or path[0] == table]
    assert places
    for path in places:
        planned = PLANNED.get(path)
        assert key not in TABLES[path].model_fields
        assert planned is None or key not in planned.model_fields


@pytest.mark.parametrize(("table", "key"), KEYS, ids=str)
def test_what_became_of_a_key_is_a_key(table: str, key: str) -> None:
    removed = KEYS[table, key]
    assert removed.becomes or removed.advice
    family, _, name = removed.becomes.rpartition(".")
    places = [path for path in TABLES if path[0] == (family or table.partition(".")[0])]
    models = [model for path in places for model in (TABLES[path], PLANNED.get(path)) if model]
    assert not name or any(name in model.model_fields for model in models)


@pytest.mark.parametrize(("key", "value"), VALUES, ids=str)
def test_what_became_of_a_value_is_a_value(write: Write, key: str, value: str) -> None:
    homes = [path for path, model in TABLES.items() if key in model.model_fields]
    for path in homes:
        text = f"[{'.'.join(path)}]\n{key} = {value_text(value)}\n"
        findings = [found for found in lint(write(text), check_host=False) if found.key.endswith(key)]
        assert [found.code for found in findings] == ["KATA303"]


LOADED = """
import pathlib, sys, kata_configuration
kata_configuration.load(pathlib.Path(sys.argv[1]), check_host=False)
print(*[name.removeprefix("kata_configuration.") for name in sys.modules if name.startswith("kata_configuration.")])
"""


def test_a_clean_file_needs_the_models_of_its_tables_only(write: Write) -> None:
    command = [sys.executable, "-c", LOADED, str(write(QEMU))]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    models = {name.removeprefix("models.") for name in loaded if name.startswith("models.")}
    assert models == {"agent", "base", "device_keys", "machine_keys", "qemu", "runtime"}
    names = {name.rpartition(".")[2] for name in loaded}
    assert {"loading", "rules"} <= names
    assert {"findings", "unknown_keys", "removed_keys", "facts", "schema", "reference"}.isdisjoint(names)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8)
values = st.recursive(
    scalars.filter(lambda value: value is not None),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def assignments(draw: st.DrawFn) -> tuple[tuple[str, ...], str, Any]:
    path = draw(st.sampled_from(sorted(TABLES)))
    parts = [model for model in (TABLES[path], PLANNED.get(path)) if model]
    names = [name for model in parts for name in model.model_fields]
    names += [key for table, key in KEYS if table in (path[0], ".".join(path))]
    return path, draw(st.sampled_from(sorted(names))), draw(values)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(assignments())
def test_any_value_of_any_key_is_judged(write: Write, assignment: tuple[tuple[str, ...], str, Any]) -> None:
    path, key, value = assignment
    line = f"{key} = {value_text(value)}\n"
    head = "" if path == ("hypervisor", "qemu") else f"[{'.'.join(path)}]\n"
    diagnostics = lint(write(f"{QEMU}{head}{line}"), check_host=False)
    assert all(found.line in (0, 1, 2, 3, 4, 5) for found in diagnostics)
