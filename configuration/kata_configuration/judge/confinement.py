"""What opens the confinement, of the VMM, its helpers, the runtime and the guest: all of it is reported."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from kata_configuration.diagnostics import Code, Finding, quoted
from kata_configuration.judge.rule import Rule
from kata_configuration.sandbox_option import open_groups

# Properties of QEMU's -machine that neither name a file nor choose what the runtime chooses. Source:
# `qemu-system-x86_64 -machine q35,help` of QEMU 7.2 and 10.0.
MACHINE_PROPERTIES = frozenset(
    {
        *("acpi", "bus-lock-ratelimit", "default-bus-bypass-iommu", "fd-bootchk", "graphics", "hmat", "hpet"),
        *("i8042", "kernel-irqchip", "max-ram-below-4g", "mem-merge", "nvdimm", "nvdimm-persistence", "pic"),
        *("pit", "sata", "smbus", "smm", "spcr", "suppress-vmdesc", "usb", "vmport"),
    }
)

# Names on the kernel's command line that say what the guest boots. The runtime sets them by image and initrd.
BOOT_NAMES = frozenset({"root", "rootfstype", "rootflags", "init", "rdinit", "initrd"})

# Names of which the last occurrence counts; of many others, each does.
LAST_COUNTS = re.compile(r"agent\..*|systemd\.unit|loglevel|panic|selinux|audit|nr_cpus|maxcpus|mitigations")


def _sandbox_is_on(table: Any) -> Iterator[Finding]:
    if not table.confined:
        hint = 'write "on,..." with the groups to deny, or remove the key for all of them'
        yield Finding(Code.UNCONFINED, ("seccompsandbox",), "QEMU runs unconfined", hint)
        return
    for group, setting in open_groups(table.seccompsandbox).items():
        message = f"QEMU's seccomp filter allows the calls of the group {group} ({setting})"
        yield Finding(Code.WEAKENED, ("seccompsandbox",), message, f"write {group}=deny")


def _filter_is_on(table: Any) -> Iterator[Finding]:
    if table.disable_seccomp:
        message = f"{table.title} runs without its seccomp filter"
        yield Finding(Code.UNCONFINED, ("disable_seccomp",), message, "set it to false")


def _unconfined_is_not_honoured(table: Any) -> Iterator[Finding]:
    if table.honor_unconfined:
        message = f"a container without a seccomp profile runs {table.title} without its filter"
        yield Finding(Code.UNCONFINED, ("honor_unconfined",), message, "set it to false")


def _entries_allow_what_they_name(table: Any) -> Iterator[Finding]:
    if table.enable_annotations:
        from kata_configuration.layer import pod_annotations

        yield from pod_annotations.check_entries(table)


def _guest_is_confined(table: Any) -> Iterator[Finding]:
    if table.disable_guest_seccomp:
        message = "containers run without their seccomp profiles in the guest"
        yield Finding(Code.GUEST_UNCONFINED, ("disable_guest_seccomp",), message, "set it to false")


def _shim_is_confined(table: Any) -> Iterator[Finding]:
    hint = 'set it to "enforce"'
    if table.shim_seccomp == "off":
        message = "the runtime's own process runs without a seccomp filter"
        yield Finding(Code.SHIM_UNCONFINED, ("shim_seccomp",), message, hint)
    elif table.shim_seccomp == "log":
        message = "a call outside the policy of the runtime's own process is logged and let through"
        yield Finding(Code.SHIM_UNENFORCED, ("shim_seccomp",), message, hint)


def _network_is_the_pods(table: Any) -> Iterator[Finding]:
    if not table.disable_new_netns:
        return
    if table.internetworking_model != "none":
        model = quoted(table.internetworking_model)
        message = f"contradicts internetworking_model = {model}, for which the VMM runs in the pod's network"
        hint = 'set it to false, or internetworking_model to "none"'
        yield Finding(Code.RELATION, ("disable_new_netns",), message, hint)
        return
    message = "the VMM runs in the host's network namespace"
    yield Finding(Code.HOST_NETWORK, ("disable_new_netns",), message, "set it to false")


def _arguments_are_allowed(table: Any) -> Iterator[Finding]:
    if table.virtio_fs_extra_args:
        from kata_configuration.virtiofsd_arguments import find_faults

        for fault in find_faults(table.virtio_fs_extra_args):
            path = ("virtio_fs_extra_args", fault.number)
            yield Finding(Code.ARGUMENT, path, fault.message, fault.hint)


def _properties_are_allowed(table: Any) -> Iterator[Finding]:
    for item in filter(None, table.machine_accelerators.split(",")):
        name = item.partition("=")[0].replace("_", "-")
        if name == "accel":
            message = f"{quoted(item)} chooses what runs the guest, which accelerator does"
            yield Finding(Code.ARGUMENT, ("machine_accelerators",), message, "use accelerator")
        elif name not in MACHINE_PROPERTIES:
            message = f"{quoted(item)} is none of the properties that are allowed: others may name files"
            yield Finding(Code.ARGUMENT, ("machine_accelerators",), message, "remove it from the list")


def _boot_is_the_runtimes(table: Any) -> Iterator[Finding]:
    names = [parameter.partition("=")[0] for parameter in table.kernel_parameters]
    for parameter, name in zip(table.kernel_parameters, names, strict=True):
        if name in BOOT_NAMES:
            message = f"{quoted(parameter)} changes what the guest boots, which image and initrd name"
            yield Finding(Code.BOOT_CHANGED, ("kernel_params",), message, "remove it")
    for name, number in Counter(names).items():
        values = [parameter for parameter in table.kernel_parameters if parameter.partition("=")[0] == name]
        if number > 1 and name not in BOOT_NAMES and (len(set(values)) == 1 or LAST_COUNTS.fullmatch(name)):
            message = f"has {quoted(name)} {number} times, of which the last counts"
            yield Finding(Code.UNUSED, ("kernel_params",), message, "keep one of them")


RULES: tuple[Rule, ...] = (
    Rule("hypervisor", ("seccompsandbox",), _sandbox_is_on),
    Rule("hypervisor", ("disable_seccomp",), _filter_is_on),
    Rule("hypervisor", ("honor_unconfined",), _unconfined_is_not_honoured),
    Rule("hypervisor", ("virtio_fs_extra_args",), _arguments_are_allowed),
    Rule("hypervisor", ("machine_accelerators",), _properties_are_allowed),
    Rule("hypervisor", ("kernel_params",), _boot_is_the_runtimes),
    Rule("hypervisor", ("enable_annotations",), _entries_allow_what_they_name),
    Rule("runtime", ("disable_guest_seccomp",), _guest_is_confined),
    Rule("runtime", ("shim_seccomp",), _shim_is_confined),
    Rule("runtime", ("disable_new_netns", "internetworking_model"), _network_is_the_pods),
)
