"""Whether this host's kernel tells a program where a checksum is to be written that a frame was sent without.

`spoofing` learns it from bpf_skb_change_tail, which refuses to cut a frame before what it must keep. That of
Linux 6.18 keeps the place of such a checksum, that of Debian's 6.1.192 where the part begins that is summed,
and no more. Nothing says which it is, so one frame is sent through a tap of our own, whose filter gives it
back if its place is kept.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress

from kata_runtime.network import taps
from kata_runtime.network.ebpf import Assembler
from kata_runtime.network.spoofing import CHANGE_TAIL, EINVAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.network.kernel import Kernel

_TAP = "kata_probe"
_REDIRECT, _REDIRECTED = 23, 7  # bpf_redirect, TC_ACT_REDIRECT; linux/bpf.h, linux/pkt_cls.h
_CONTEXT = 6

_START, _OFFSET = 34, 6
_HEADER = struct.pack("=BBHHHHH", 1, 0, 0, 0, _START, _OFFSET, 0)  # VIRTIO_NET_HDR_F_NEEDS_CSUM
_DATAGRAM = struct.pack(">HHHH", 9, 9, 8, 0)
_PACKET = struct.pack(">BBHHHBBHII", 0x45, 0, 28, 0, 0, 64, 17, 0, 0x7F000001, 0x7F000001) + _DATAGRAM
_FRAME = bytes.fromhex("0200000000010200000000020800") + _PACKET


def are_told(kernel: Kernel) -> bool:
    """Ask the kernel, in this thread's network namespace, of which nothing is left.

    Raises:
        NetworkError: the tap, or its filter, cannot be made.
    """
    from kata_runtime import syscalls

    fds = taps.open_tap(_TAP, 1, header=True, new=True)
    try:
        index = kernel.index_of(_TAP)
        taps.keep_silent(_TAP)
        kernel.set_up(index, _TAP)
        kernel.add_ingress(index, _TAP)
        program = syscalls.load_traffic_program(_program(index))
        try:
            kernel.judge(index, _TAP, program)
        finally:
            os.close(program)
        os.write(fds[0], _HEADER + _FRAME)
        return _came_back(fds[0])
    finally:
        taps.close_all(fds)


def _program(index: int) -> bytes:
    """Give a frame back that must not be cut before its checksum's end; drop any other."""
    made = Assembler()
    made.copy(_CONTEXT, 1)
    made.move(2, _START + _OFFSET + 1)
    made.move(3, 0)
    made.call(CHANGE_TAIL)
    made.jump_unless(0, EINVAL, "drop")
    made.move(1, index)
    made.move(2, 0)
    made.call(_REDIRECT)
    made.leave(_REDIRECTED)
    made.label("drop")
    made.leave(2)
    return made.code()


def _came_back(tap: int) -> bool:
    """Whether our frame is in the tap's queue: it is there at once, or never."""
    with suppress(BlockingIOError):
        while True:
            if os.read(tap, 1 << 12)[taps.VNET_HEADER :][:_START] == _FRAME[:_START]:
                return True
    return False
