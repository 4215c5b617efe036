"""The guest agent without a virtual machine: as root in namespaces of its own, with the host's crun.

Usage: python local_guest.py FD, where FD is a stream socket that stands for the serial port. It differs from
the real guest in that it is not PID 1 and has no controllers in its cgroups.
"""

import os
import sys

from kata_agent.constants import AGENT_PORT, STREAM_PORT
from kata_agent.guest import boot, log, mounts, syscalls
from kata_agent.guest.reaper import Reaper
from kata_agent.guest.runtime import Crun
from kata_agent.guest.sandbox import BASE, Sandbox
from kata_agent.guest.service import AgentService
from kata_agent.guest.streams import StreamTable
from kata_agent.mux.guest import MuxGuest
from kata_agent.ttrpc.blocking import BlockingServer

CLONE_NEWNS, CLONE_NEWNET, MS_PRIVATE = 0x00020000, 0x40000000, 1 << 18


def main() -> None:
    """Serve until the host closes the socket; nothing outlives that."""
    syscalls.unshare(CLONE_NEWNS | CLONE_NEWNET)
    syscalls.mount("none", "/", "", syscalls.MS_REC | MS_PRIVATE)
    for path in sorted(mounts.mount_points(), reverse=True):
        if path.startswith("/sys/fs/cgroup"):
            syscalls.umount(path, syscalls.MNT_DETACH)
    syscalls.mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
    syscalls.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    syscalls.become_subreaper()
    boot.bring_up_loopback()
    os.makedirs(BASE)
    os.mkdir(boot.SCRATCH, 0o700)
    reaper = Reaper()
    reaper.start()
    crun = Crun(reaper, scratch=boot.SCRATCH, cgroup_manager="disabled")
    sandbox = Sandbox(reaper, crun, StreamTable(), cgroup_root="/sys/fs/cgroup/absent")
    server = BlockingServer(AgentService(sandbox).handlers(), log=log.info)
    guest = MuxGuest(int(sys.argv[1]))
    boot.start_serving(guest.listen(AGENT_PORT), guest.listen(STREAM_PORT), server, sandbox.streams)
    try:
        guest.run()
    finally:
        sandbox.destroy()


if __name__ == "__main__":
    main()
