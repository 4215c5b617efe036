"""What a network namespace holds as far as /proc tells it, of a process in there: names, and whether there
are addresses. Sources: proc_pid_net(5); fib_trie of net/ipv4/fib_trie.c; if_inet6 of net/ipv6/addrconf.c.
"""

from __future__ import annotations

_LINK_LOCAL_V4 = "169.254."
_LOOPBACK_V4 = "127."
_LOCAL = "/32 host LOCAL"
_GLOBAL_V6, _SITE_V6 = "00", "40"
"""Scopes of IPv6 addresses that somebody has given; the kernel makes those of the link and of the host."""


def interfaces(pid: int) -> list[str]:
    """The names of all interfaces. Raises OSError."""
    return [line.partition(":")[0].strip() for line in _lines(pid, "dev")[2:]]


def are_configured(pid: int) -> bool:
    """Whether there is an address besides those of loopback and of the link. Raises OSError."""
    return _has_v4(_lines(pid, "fib_trie")) or _has_v6(_lines(pid, "if_inet6"))


def _has_v4(lines: list[str]) -> bool:
    address = ""
    for line in lines:
        if "|-- " in line:
            address = line.split()[-1]
        elif _LOCAL in line and not address.startswith((_LINK_LOCAL_V4, _LOOPBACK_V4)):
            return True
    return False


def _has_v6(lines: list[str]) -> bool:
    """Lines of: address, index, prefix length, scope, flags, name."""
    return any(fields[3] in (_GLOBAL_V6, _SITE_V6) for fields in map(str.split, lines) if len(fields) > 3)


def _lines(pid: int, name: str) -> list[str]:
    try:
        with open(f"/proc/{pid}/net/{name}", encoding="utf-8", errors="replace") as file:
            return file.readlines()
    except FileNotFoundError:
        if name == "if_inet6":
            return []  # a kernel without IPv6
        raise
