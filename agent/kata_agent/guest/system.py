"""The guest as a whole: kernel modules, processors and memory, randomness, time, name servers."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import time
from collections.abc import Iterable
from typing import Any

from kata_agent.guest import log
from kata_agent.guest.errors import GuestError, InvalidRequestError, NotFoundError, UnsupportedError
from kata_agent.guest.reaper import Reaper
from kata_agent.ttrpc.blocking import caller_patience

_MODPROBE = ("/sbin/modprobe", "/usr/sbin/modprobe")
_BUSYBOX = ("/bin/busybox", "/usr/bin/busybox")
_TABLES = ("ip_tables", "ip6_tables", "arp_tables", "ebtables")
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_PROBE = "/sys/devices/system/memory/probe"
_RESOLV_CONF = "/run/resolv.conf"


def load_module(name: str, parameters: list[str], reaper: Reaper) -> None:
    """Load a kernel module, unless it is there already and no parameters are asked for.

    Raises:
        GuestError: it cannot be loaded. InvalidRequestError: that is no name of a module.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise InvalidRequestError(f"{name!r} is not the name of a kernel module")
    if parameters or not _is_loaded(name):
        _run_modprobe([name, *parameters], reaper)


def load_socket_option_tables(spec: dict[str, Any], reaper: Reaper) -> None:
    """Load what iptables-legacy and its kin ask by socket options, for a container that may use it.

    The kernel loads these for no socket option: on a host the programs themselves run modprobe, which no
    container may. The tables and matches that they then name are loaded by the kernel. A kernel without them
    is no error: programs are told so when they ask.
    """
    capabilities = (spec.get("process") or {}).get("capabilities") or {}
    if "CAP_NET_ADMIN" not in (capabilities.get("bounding") or ()):
        return
    missing = [name for name in _TABLES if not _is_loaded(name)]
    if not missing:
        return
    try:
        _run_modprobe(["-a", *missing], reaper)
    except GuestError as error:
        log.info(f"tables for iptables-legacy: {error}")


def _is_loaded(name: str) -> bool:
    return os.path.isdir(f"/sys/module/{name.replace('-', '_')}")


def _run_modprobe(arguments: list[str], reaper: Reaper) -> None:
    reader, writer = os.pipe()
    try:
        null = os.open(os.devnull, os.O_RDWR)
        try:
            status = reaper.run([*_modprobe(), *arguments], (null, writer, writer))
        finally:
            os.close(null)
            os.close(writer)
        if status != 0:
            output = os.read(reader, 4096).decode(errors="replace").strip()
            what = f"load kernel module {' '.join(arguments)}"
            raise GuestError(f"{what}: {output or f'modprobe ended with status {status}'}")
    finally:
        os.close(reader)


def _modprobe() -> list[str]:
    for path in _MODPROBE:
        if os.access(path, os.X_OK):
            return [path]
    for path in _BUSYBOX:
        if os.access(path, os.X_OK):
            return [path, "modprobe"]
    raise GuestError(
        "load kernel module: the guest image has no modprobe; build the module into its initramfs"
    )


def bring_online(processors: int, *, wait: bool, memory: bool, sysfs: str = "/sys/devices/system") -> None:
    """Switch on what was plugged: processors (at most that many, 0 for all), and memory.

    wait: give the kernel time to notice that many processors, the caller's patience.

    Raises:
        NotFoundError: fewer than `processors` could be switched on although `wait` is set.
    """
    patience = caller_patience() if wait else 0
    deadline = None if patience is None else time.monotonic() + patience
    online = _switch_on(f"{sysfs}/cpu", "cpu", processors)
    while online < processors and (deadline is None or time.monotonic() < deadline):
        time.sleep(0.02)
        online += _switch_on(f"{sysfs}/cpu", "cpu", processors - online)
    if wait and online < processors:
        raise NotFoundError(f"{processors} processors were to be switched on, the guest found {online}")
    if memory:
        _switch_on(f"{sysfs}/memory", "memory", 0)


def _switch_on(directory: str, kind: str, most: int) -> int:
    done = 0
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        if not name.removeprefix(kind).isdecimal() or not os.path.exists(f"{directory}/{name}/online"):
            continue  # another entry, or the first processor, which is always on
        with open(f"{directory}/{name}/online", "r+", encoding="ascii") as file:
            if file.read().strip() != "0":
                continue
            file.seek(0)
            file.write("1")
        done += 1
        if done == most:
            break
    return done


def memory_block_size(path: str = "/sys/devices/system/memory/block_size_bytes") -> int:
    """By how many bytes memory can be plugged; 0 if it cannot."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read(), 16)
    except FileNotFoundError:
        return 0


def can_probe_memory() -> bool:
    """Whether plugged memory has to be announced by its address."""
    return os.path.exists(_PROBE)


def probe_memory(addresses: Iterable[int], path: str = _PROBE) -> None:
    """Announce plugged memory by its physical addresses.

    Raises:
        UnsupportedError: this kernel wants no announcement.
    """
    if not os.path.exists(path):
        raise UnsupportedError(
            "MemHotplugByProbe is not served by this agent: plugged memory announces itself in this guest"
        )
    for address in addresses:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{address:#x}")


def promise_memory(path: str = "/proc/sys/vm/overcommit_memory") -> None:
    """Let the kernel promise whatever is asked of it, as it does on a kubelet's node.

    Otherwise an allocation of more than the machine has fails, although little of it is ever written to.
    What is written to the containers' cgroups limit. Source: setupKernelTunables in Kubernetes'
    pkg/kubelet/cm/container_manager_linux.go, and the kernel's Documentation/mm/overcommit-accounting.rst.
    """
    with open(path, "w", encoding="ascii") as file:
        file.write("1")


def add_entropy(data: bytes, device: str = "/dev/random") -> None:
    """Mix secret random data into the kernel's pool, and let all that is random from now on depend on it.

    Without the last step a copy of a machine would go on with its template's numbers for up to a minute.
    """
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _RNDADDENTROPY, struct.pack("ii", len(data) * 8, len(data)) + data)
        fcntl.ioctl(descriptor, _RNDRESEEDCRNG)
    finally:
        os.close(descriptor)


def set_time(seconds: int, microseconds: int) -> None:
    """Set the guest's clock."""
    if not 0 <= microseconds < 1_000_000 or seconds < 0:
        raise InvalidRequestError(f"{seconds} s and {microseconds} us is not a time")
    time.clock_settime_ns(time.CLOCK_REALTIME, (seconds * 1_000_000 + microseconds) * 1000)


def set_network_parameters(parameters: dict[str, str], root: str = "/proc/sys") -> None:
    """Write sysctls of the network ("net.ipv4.ip_forward"), by name.

    Raises:
        InvalidRequestError: a name is not one of these. OSError: the kernel knows no such parameter or value.
    """
    for name, value in parameters.items():
        parts = name.replace(".", "/").split("/")
        if parts[0] != "net" or "" in parts:
            raise InvalidRequestError(f"{name!r} is not a sysctl of the network")
        with open(
            os.open("/".join((root, *parts)), os.O_WRONLY | os.O_CLOEXEC), "w", encoding="utf-8"
        ) as file:
            file.write(value)


def set_name_servers(lines: list[str], path: str = _RESOLV_CONF) -> None:
    """Write resolv.conf, which the guest's /etc/resolv.conf points to; no lines leave it as it is."""
    if lines:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
