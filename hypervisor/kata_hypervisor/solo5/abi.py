"""The interface between a unikernel of Solo5's target hvt and who runs it, version 2, on x86_64.

Source: Solo5's include/hvt_abi.h and tenders/hvt/hvt_cpu_x86_64.h. A call is a 32-bit write of the address of
the call's structure to port CALLS + number; the processor goes on when the structure holds the result.
"""

from __future__ import annotations

import struct

VERSION = 2

# The guest's memory. Below LOW nothing is mapped, up to LOWEST it is for reading.
PAGE = 4096
LARGE_PAGE = 2 << 20
MOST_MEMORY = 4 << 30
GDT, PML4, PDPT, DIRECTORIES, FIRST_TABLE = 0x1000, 0x2000, 0x3000, 0x4000, 0x8000
LOW = BOOT_INFO = 0x10000
LOWEST = 0x100000

BOOT = struct.Struct("<QQQQQIIQ")
"""struct hvt_boot_info: memory's size, end of the kernel, cycles in a second, addresses of the command line
and
of the manifest; then, since Solo5 0.12, features offered and accepted, and the network ring's address."""

COMMAND_LINE = 8192
"""Bytes for the command line, with the zero at its end."""

CALLS = 0x500
WALLTIME, PUTS, POLL, BLOCK_WRITE, BLOCK_READ, NET_WRITE, NET_READ, HALT = range(1, 9)

# What a call returns: enum solo5_result_t.
OK, AGAIN, INVALID, UNSPECIFIED = range(4)

# The structures of the calls: what goes in, and where what comes out is written.
WALLTIME_OUT = struct.Struct("<Q")  # nanoseconds since 1970
PUTS_IN = struct.Struct("<QQ")  # address, length
POLL_IN = struct.Struct("<Q")  # nanoseconds from now
POLL_OUT, POLL_OUT_AT = struct.Struct("<Qi"), 8  # handles that are ready, as bits; how many
BLOCK_IN = struct.Struct("<QQQQ")  # handle, offset, address, length
BLOCK_OUT, BLOCK_OUT_AT = struct.Struct("<i"), 32  # result
NET_IN = struct.Struct("<QQQ")  # handle, address, length
NET_OUT, NET_OUT_AT = struct.Struct("<Qi"), 16  # length, result
HALT_IN = struct.Struct("<Qi")  # address of a hint for debuggers, exit status
