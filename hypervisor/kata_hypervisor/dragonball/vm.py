"""KVM's virtual machine: a thin layer over its descriptors, each method one request of the kernel."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from contextlib import ExitStack

from kata_hypervisor.dragonball import layout
from kata_hypervisor.dragonball.memory import GuestMemory, bytes_at, map_anonymous, map_shared, unmap
from kata_hypervisor.errors import HostUnfitError
from kata_hypervisor.kvm import abi

DEVICE = "/dev/kvm"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]


class VirtualMachine:
    """A machine with interrupt controllers and memory, without processors yet.

    Everything it opens is closed by `close`, the processors' descriptors included.

    Raises:
        HostUnfitError: the host's KVM is missing or refuses.
    """

    def __init__(self, memory: GuestMemory, device: str = DEVICE) -> None:
        self._ours = ExitStack()
        self._slots = 0
        try:
            self._kvm = self._own(_open(device))
            version = fcntl.ioctl(self._kvm, abi.KVM_GET_API_VERSION)
            if version != abi.KVM_API_VERSION:
                raise HostUnfitError(
                    f"{device} speaks version {version} of the KVM API, not {abi.KVM_API_VERSION}"
                )
            self._page_size = fcntl.ioctl(self._kvm, abi.KVM_GET_VCPU_MMAP_SIZE)
            self.descriptor = self._own(_patient(self._kvm, abi.KVM_CREATE_VM))
            self._set_up(memory)
        except OSError as error:
            self.close()
            raise HostUnfitError(f"cannot make a virtual machine with {device}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close what is open; idempotent. No processor may be running."""
        self._ours.close()

    def supported_cpuid(self) -> abi.KvmCpuid2:
        """What KVM and the host's processor can offer a guest."""
        table = abi.KvmCpuid2(nent=abi.MAX_CPUID_ENTRIES)
        fcntl.ioctl(self._kvm, abi.KVM_GET_SUPPORTED_CPUID, table)
        return table

    def model_specific(self) -> list[int]:
        """Indices of the model-specific registers that are part of a processor's state."""
        table = abi.KvmMsrList(nmsrs=abi.MAX_MSR_INDICES)
        fcntl.ioctl(self._kvm, abi.KVM_GET_MSR_INDEX_LIST, table)
        return list(table.indices[: table.nmsrs])

    def create_vcpu(self, number: int) -> tuple[int, memoryview]:
        """Make a processor; return its descriptor and the pages that it shares with us, until `close`."""
        descriptor = self._own(fcntl.ioctl(self.descriptor, abi.KVM_CREATE_VCPU, number))
        address = map_shared(descriptor, self._page_size)
        self._ours.callback(unmap, address, self._page_size)
        return descriptor, bytes_at(address, self._page_size)

    def interrupt_line(self, pin: int) -> int:
        """Make an eventfd that pulses a pin of the I/O APIC when it is written."""
        line = self.event()
        fcntl.ioctl(self.descriptor, abi.KVM_IRQFD, abi.KvmIrqfd(fd=line, gsi=pin))
        return line

    def notify(self, address: int, value: int, event: int) -> None:
        """Let the guest's 32-bit writes of a value to an address count up an eventfd, without an exit."""
        request = abi.KvmIoeventfd(
            datamatch=value, addr=address, len=4, fd=event, flags=abi.KVM_IOEVENTFD_FLAG_DATAMATCH
        )
        fcntl.ioctl(self.descriptor, abi.KVM_IOEVENTFD, request)

    def notice(self, address: int) -> memoryview:
        """Make a page that the guest reads at an address without an exit, until `close`; its writes exit."""
        place = map_anonymous(layout.PAGE)
        self._ours.callback(unmap, place, layout.PAGE)
        self._add_memory(address, layout.PAGE, place, abi.KVM_MEM_READONLY)
        return bytes_at(place, layout.PAGE)

    def event(self) -> int:
        """Make an eventfd that is closed with the machine."""
        return self._own(os.eventfd(0, os.EFD_CLOEXEC))

    def _set_up(self, memory: GuestMemory) -> None:
        _address_request(self.descriptor, abi.KVM_SET_TSS_ADDR, layout.TSS)
        identity = ctypes.c_uint64(layout.IDENTITY_MAP)
        fcntl.ioctl(self.descriptor, abi.KVM_SET_IDENTITY_MAP_ADDR, identity)
        fcntl.ioctl(self.descriptor, abi.KVM_CREATE_IRQCHIP)
        pit = abi.KvmPitConfig(flags=abi.KVM_PIT_SPEAKER_DUMMY)
        fcntl.ioctl(self.descriptor, abi.KVM_CREATE_PIT2, pit)
        for region in memory:
            self._add_memory(region.start, region.size, memory.address + region.offset)

    def _add_memory(self, address: int, size: int, place: int, flags: int = 0) -> None:
        request = abi.KvmUserspaceMemoryRegion(
            slot=self._slots, flags=flags, guest_phys_addr=address, memory_size=size, userspace_addr=place
        )
        fcntl.ioctl(self.descriptor, abi.KVM_SET_USER_MEMORY_REGION, request)
        self._slots += 1

    def _own(self, descriptor: int) -> int:
        self._ours.callback(os.close, descriptor)
        return descriptor


def _open(device: str) -> int:
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = {
            errno.ENOENT: "load kvm_intel or kvm_amd, or enable virtualization",
            errno.EACCES: "run as root or as a member of group kvm",
        }.get(error.errno or 0, "kata-ctl check says what this host can do")
        raise HostUnfitError(f"cannot open {device}: {error.strerror}; {hint}") from error


def _patient(descriptor: int, request: int) -> int:
    """Make a request that a signal may interrupt."""
    while True:
        try:
            return fcntl.ioctl(descriptor, request)
        except InterruptedError:
            continue


def _address_request(descriptor: int, request: int, address: int) -> None:
    """Make a request whose argument is an address: fcntl.ioctl takes no integer of 2**31 and more."""
    if _libc.ioctl(descriptor, request, address) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
