"""What a process keeps when it has given up its privileges, and what the broker says of one that has not."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from forked import in_child
from kata_hypervisor import libc
from kata_runtime.confinement import judging, reading
from kata_runtime.confinement.rows import ROWS, SHIM
from kata_runtime.pod.giving_up import give_up, hold_files_read_only
from kata_runtime.syscalls import landlock_version

USER = 1_900_000_007
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def errno_of(action: Any, *arguments: Any) -> int | None:
    try:
        action(*arguments)
    except OSError as error:
        return error.errno
    return None


@needs_root
def test_what_is_open_stays_and_nothing_else_is_reached(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "readable").write_text("text")

    def attempt() -> dict[str, Any]:
        file = os.open(tmp_path / "readable", os.O_RDONLY)
        landlock = give_up(USER)
        status = Path(f"/proc/{os.getpid()}/status")
        found = {
            "user": os.getresuid() + os.getresgid() + tuple(os.getgroups()),
            "read": os.read(file, 4),
            "back": errno_of(os.setuid, 0),
            "chown": errno_of(os.fchown, file, 0, 0),
        }
        if landlock:
            found["open"] = errno_of(os.open, tmp_path / "readable", os.O_RDONLY)
            found["make"] = errno_of(os.mkdir, tmp_path / "new")
            found["status"] = errno_of(status.read_text)
        return found

    found = in_child(attempt)
    assert found.pop("user") == (USER,) * 6
    assert found.pop("read") == b"text"
    assert set(found.values()) <= {errno.EPERM, errno.EACCES}


@needs_root
def test_nobody_changes_a_device_of_the_host_by_what_a_shim_has_open() -> None:
    """Attack: a guest that owns the shim and virtiofsd takes /dev/null from the host's users."""

    def attempt() -> dict[str, int | None]:
        null = os.open("/dev/null", os.O_RDWR)
        hold_files_read_only()
        opened = {"null": null, "node": libc.open_node("/dev/zero", os.O_RDWR)}
        assert [os.write(number, b"x") for number in opened.values()] == [1, 1]
        # What does not fail changes nothing.
        return {
            name: errno_of(os.fchmod, number, stat.S_IMODE(os.fstat(number).st_mode))
            for name, number in opened.items()
        }

    assert in_child(attempt) == {"null": errno.EROFS, "node": errno.EROFS}


@needs_root
@pytest.mark.skipif(landlock_version() < 6, reason="needs version 6 of Landlock (Linux 6.12)")
def test_an_abstract_socket_of_another_is_out_of_reach() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0kata-test-{os.getpid()}")
        listener.listen()
        name = listener.getsockname()

        def attempt() -> int | None:
            give_up(USER)
            with socket.socket(socket.AF_UNIX) as ours:
                return errno_of(ours.connect, name)

        assert in_child(attempt) == errno.EPERM


@needs_root
def test_who_has_given_up_is_found_without_privileges_and_root_is_not() -> None:
    read, write = os.pipe()
    done, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end)
        give_up(USER)
        os.write(write, b"x")
        os.read(done, 1)
        os._exit(0)
    try:
        os.close(done)
        os.read(read, 1)
        host = reading.read_place(os.getpid())
        shim, ours = reading.read(pid), reading.read(os.getpid())
        row = ROWS[SHIM]
        assert not list(judging.find_weaknesses(row, shim, host, user=USER))
        (other,) = judging.find_weaknesses(row, shim, host, user=USER + 1)
        assert other.reason == f"has the user {' '.join([str(USER)] * 4)}, and not {USER + 1}"
        cells = [found.cell for found in judging.find_weaknesses(row, ours, host, user=USER)]
        assert cells[:2] == ["user", "capabilities"]
    finally:
        os.close(end)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)
