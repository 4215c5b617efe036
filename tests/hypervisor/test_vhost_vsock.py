"""The reservation of a context id, with the kernel's part played by the test."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

import pytest

from kata_hypervisor import vhost_vsock
from kata_hypervisor.dragonball.host_files import open_vhost_net
from kata_hypervisor.errors import HostUnfitError


class Kernel:
    """Answers VHOST_VSOCK_SET_GUEST_CID: with these errors first, then with success."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.cids: list[int] = []

    def ioctl(self, _: int, request: int, argument: bytes) -> int:
        assert request == 0x4008AF60
        self.cids.append(*struct.unpack("=Q", argument))
        if self.errors:
            error = self.errors.pop(0)
            raise OSError(error, os.strerror(error))
        return 0


def test_a_host_without_the_device(tmp_path: Path) -> None:
    assert vhost_vsock.open_device(tmp_path / "none") is None


def test_ids_in_use_are_tried_past(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(errno.EADDRINUSE, errno.EADDRINUSE)
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
    opened = vhost_vsock.open_device(Path(os.devnull))
    assert opened is not None
    descriptor, cid = opened
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    assert len(kernel.cids) == 3
    assert kernel.cids[-1] == cid
    assert all(3 <= tried <= 2**32 - 2 for tried in kernel.cids)


@pytest.mark.parametrize(
    ("errors", "message"),
    [([errno.EADDRINUSE] * 50, "50 random ids were all in use"), ([errno.EPERM], "Operation not permitted")],
)
def test_a_refusal_is_an_error_and_closes_the_device(
    monkeypatch: pytest.MonkeyPatch, errors: list[int], message: str
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Kernel(*errors).ioctl)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(HostUnfitError, match=message):
        vhost_vsock.open_device(Path(os.devnull))
    assert os.listdir("/proc/self/fd") == before


def test_a_device_that_may_not_be_opened(tmp_path: Path) -> None:
    with pytest.raises(HostUnfitError, match="cannot open"):
        vhost_vsock.open_device(tmp_path)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_a_cgroup_that_denies_a_device_is_named(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(path: object, flags: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    advice = f"{os.strerror(number)}; .*allow the device in the pod's cgroup$"
    with pytest.raises(
        HostUnfitError, match=f"^cannot open /dev/vhost-vsock for the guest's vsock: {advice}"
    ):
        vhost_vsock.open_device()
    with pytest.raises(HostUnfitError, match=f"^cannot open /dev/vhost-net: {advice}"):
        open_vhost_net()
