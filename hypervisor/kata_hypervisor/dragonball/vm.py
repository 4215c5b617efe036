"""KVM's virtual machine: a thin layer over its descriptors, each method one request of the kernel."""

from __future__ import annotations

import ctypes
import fcntl
import os
from contextlib import ExitStack

from kata_hypervisor import libc
from kata_hypervisor.dragonball import layout
from kata_hypervisor.dragonball.memory import GuestMemory, bytes_at, map_anonymous, map_shared, unmap
from kata_hypervisor.errors import KvmRefusedError
from kata_hypervisor.kvm import abi
from kata_hypervisor.kvm.device import DEVICE, open_kvm, patient_ioctl


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
            self._kvm = self._own(open_kvm(device))
            self._page_size = fcntl.ioctl(self._kvm, abi.KVM_GET_VCPU_MMAP_SIZE)
            self.descriptor = self._own(patient_ioctl(self._kvm, abi.KVM_CREATE_VM))
            self._set_up(memory)
        except OSError as error:
            self.close()
            raise KvmRefusedError(f"cannot make a virtual machine with {device}: {error.strerror}") from error
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

    def count_writes(self, address: int, value: int, event: int) -> None:
        """Let the guest's 32-bit writes of a value to an address count up an eventfd, without an exit."""
        request = abi.KvmIoeventfd(
            datamatch=value, addr=address, len=4, fd=event, flags=abi.KVM_IOEVENTFD_FLAG_DATAMATCH
        )
        fcntl.ioctl(self.descriptor, abi.KVM_IOEVENTFD, request)

    def map_readable(self, address: int) -> memoryview:
        """Make a page that the guest reads at an address without an exit, until `close`; its writes exit."""
        place = map_anonymous(layout.PAGE)
        self._ours.callback(unmap, place, layout.PAGE)
        self._add_memory(address, layout.PAGE, place, abi.KVM_MEM_READONLY)
        return bytes_at(place, layout.PAGE)

    def event(self) -> int:
        """Make an eventfd that is closed with the machine."""
        return self._own(os.eventfd(0, os.EFD_CLOEXEC))

    def _set_up(self, memory: GuestMemory) -> None:
        libc.ioctl_address(self.descriptor, abi.KVM_SET_TSS_ADDR, layout.TSS)
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
