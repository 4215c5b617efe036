"""How the messages of oci.proto and the objects of the OCI runtime specification's JSON correspond.

Sources: see kata_agent.oci.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping


class Shape:
    """How one message and its JSON object correspond.

    names: JSON member -> field of the message.
    required: members that are written to JSON even when zero; all others are left out then, for the
        specification reads their absence as zero (false, "", no limit, inherited).
    zero_matters: optional members whose zero differs from their absence: it is lost, and reported.
    absent: members for which another value than zero stands for absence on the wire, so that nothing is lost.
    default: members that the wire lacks, and the value at which that makes no difference.
    """

    def __init__(
        self,
        names: dict[str, str],
        *,
        required: str = "",
        zero_matters: str = "",
        absent: Mapping[str, int] | None = None,
        default: Mapping[str, int] | None = None,
    ) -> None:
        self.names = names
        self.required = frozenset(required.split())
        self.zero_matters = frozenset(zero_matters.split())
        self.absent = absent or {}
        self.default = default or {}


# By the name of the message; the types of the members are those of its fields.
SHAPES: dict[str, Shape] = {
    "Spec": Shape(
        {
            "ociVersion": "Version",
            "process": "Process",
            "root": "Root",
            "hostname": "Hostname",
            "mounts": "Mounts",
            "hooks": "Hooks",
            "annotations": "Annotations",
            "linux": "Linux",
        },
        required="ociVersion",
    ),
    "Process": Shape(
        {
            "terminal": "Terminal",
            "consoleSize": "ConsoleSize",
            "user": "User",
            "args": "Args",
            "env": "Env",
            "cwd": "Cwd",
            "capabilities": "Capabilities",
            "rlimits": "Rlimits",
            "noNewPrivileges": "NoNewPrivileges",
            "apparmorProfile": "ApparmorProfile",
            "oomScoreAdj": "OOMScoreAdj",
            "selinuxLabel": "SelinuxLabel",
        },
        required="cwd",
    ),
    "Box": Shape({"height": "Height", "width": "Width"}, required="height width"),
    "User": Shape(
        {"uid": "UID", "gid": "GID", "additionalGids": "AdditionalGids", "username": "Username"},
        required="uid gid",
    ),
    "LinuxCapabilities": Shape(
        {
            "bounding": "Bounding",
            "effective": "Effective",
            "inheritable": "Inheritable",
            "permitted": "Permitted",
            "ambient": "Ambient",
        }
    ),
    "POSIXRlimit": Shape({"type": "Type", "hard": "Hard", "soft": "Soft"}, required="type hard soft"),
    "Mount": Shape(
        {"destination": "destination", "source": "source", "type": "type", "options": "options"},
        required="destination",
    ),
    "Root": Shape({"path": "Path", "readonly": "Readonly"}, required="path"),
    "Hooks": Shape(
        {
            "prestart": "Prestart",
            "poststart": "Poststart",
            "poststop": "Poststop",
            "createRuntime": "CreateRuntime",
            "createContainer": "CreateContainer",
            "startContainer": "StartContainer",
        }
    ),
    "Hook": Shape({"path": "Path", "args": "Args", "env": "Env", "timeout": "Timeout"}, required="path"),
    "Linux": Shape(
        {
            "uidMappings": "UIDMappings",
            "gidMappings": "GIDMappings",
            "sysctl": "Sysctl",
            "resources": "Resources",
            "cgroupsPath": "CgroupsPath",
            "namespaces": "Namespaces",
            "devices": "Devices",
            "seccomp": "Seccomp",
            "rootfsPropagation": "RootfsPropagation",
            "maskedPaths": "MaskedPaths",
            "readonlyPaths": "ReadonlyPaths",
            "mountLabel": "MountLabel",
            "intelRdt": "IntelRdt",
        }
    ),
    "LinuxIDMapping": Shape(
        {"hostID": "HostID", "containerID": "ContainerID", "size": "Size"},
        required="hostID containerID size",
    ),
    "LinuxNamespace": Shape({"type": "Type", "path": "Path"}, required="type"),
    "LinuxDevice": Shape(
        {
            "path": "Path",
            "type": "Type",
            "major": "Major",
            "minor": "Minor",
            "fileMode": "FileMode",
            "uid": "UID",
            "gid": "GID",
        },
        required="path type major minor",
        zero_matters="fileMode",
    ),
    "LinuxResources": Shape(
        {
            "devices": "Devices",
            "memory": "Memory",
            "cpu": "CPU",
            "pids": "Pids",
            "blockIO": "BlockIO",
            "hugepageLimits": "HugepageLimits",
            "network": "Network",
        }
    ),
    "LinuxMemory": Shape(
        {
            "limit": "Limit",
            "reservation": "Reservation",
            "swap": "Swap",
            "kernel": "Kernel",
            "kernelTCP": "KernelTCP",
            "swappiness": "Swappiness",
            "disableOOMKiller": "DisableOOMKiller",
        },
        zero_matters="swappiness",
    ),
    "LinuxCPU": Shape(
        {
            "shares": "Shares",
            "quota": "Quota",
            "period": "Period",
            "realtimeRuntime": "RealtimeRuntime",
            "realtimePeriod": "RealtimePeriod",
            "cpus": "Cpus",
            "mems": "Mems",
        }
    ),
    "LinuxPids": Shape({"limit": "Limit"}, required="limit"),
    "LinuxBlockIO": Shape(
        {
            "weight": "Weight",
            "leafWeight": "LeafWeight",
            "weightDevice": "WeightDevice",
            "throttleReadBpsDevice": "ThrottleReadBpsDevice",
            "throttleWriteBpsDevice": "ThrottleWriteBpsDevice",
            "throttleReadIOPSDevice": "ThrottleReadIOPSDevice",
            "throttleWriteIOPSDevice": "ThrottleWriteIOPSDevice",
        }
    ),
    "LinuxWeightDevice": Shape(
        {"major": "Major", "minor": "Minor", "weight": "Weight", "leafWeight": "LeafWeight"},
        required="major minor",
    ),
    "LinuxThrottleDevice": Shape(
        {"major": "Major", "minor": "Minor", "rate": "Rate"}, required="major minor rate"
    ),
    "LinuxDeviceCgroup": Shape(
        {"allow": "Allow", "type": "Type", "major": "Major", "minor": "Minor", "access": "Access"},
        required="allow",
        # Absent is "all of them", and 0 is one of them: taking one for the other would widen a rule.
        absent={"major": -1, "minor": -1},
    ),
    "LinuxHugepageLimit": Shape({"pageSize": "Pagesize", "limit": "Limit"}, required="pageSize limit"),
    "LinuxNetwork": Shape({"classID": "ClassID", "priorities": "Priorities"}),
    "LinuxInterfacePriority": Shape({"name": "Name", "priority": "Priority"}, required="name priority"),
    "LinuxSeccomp": Shape(
        {
            "defaultAction": "DefaultAction",
            "architectures": "Architectures",
            "flags": "Flags",
            "syscalls": "Syscalls",
        },
        required="defaultAction",
        default={"defaultErrnoRet": errno.EPERM},
    ),
    "LinuxSyscall": Shape(
        {"names": "Names", "action": "Action", "errnoRet": "errnoret", "args": "Args"},
        required="names action",
        # Kata's own runtime sends 0 for none, so they are the same; 0 read as absent fails closed.
        zero_matters="errnoRet",
    ),
    "LinuxSeccompArg": Shape(
        {"index": "Index", "value": "Value", "valueTwo": "ValueTwo", "op": "Op"}, required="index value op"
    ),
    "LinuxIntelRdt": Shape({"l3CacheSchema": "L3CacheSchema"}),
}
