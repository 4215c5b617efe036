"""The guest's CPUID: the host's, with what KVM cannot know filled in.

Sources: Intel's Software Developer's Manual, volume 2A, CPUID; AMD's Programmer's Manual, volume 3, appendix
E; which fields to change: Firecracker's cpuid-normalization.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from kata_hypervisor.errors import SnapshotError
from kata_hypervisor.kvm.abi import (
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
    MAX_CPUID_ENTRIES,
    KvmCpuid2,
    KvmCpuidEntry2,
)

INTEL, AMD = b"GenuineIntel", b"AuthenticAMD"


class Field(NamedTuple):
    """Bits `low` to `high` of a register."""

    register: str
    low: int
    high: int

    def set(self, entry: KvmCpuidEntry2, value: int) -> None:
        """Put a value there; it must fit."""
        width = self.high - self.low + 1
        if value >> width:
            raise ValueError(f"{value} does not fit into {self}")
        mask = (1 << width) - 1 << self.low
        setattr(entry, self.register, getattr(entry, self.register) & ~mask | value << self.low)


def bit(register: str, number: int) -> Field:
    """One bit of a register."""
    return Field(register, number, number)


# Leaf 1
CACHE_LINE_FLUSH = Field("ebx", 8, 15)
LOGICAL_PROCESSORS = Field("ebx", 16, 23)
INITIAL_APIC_ID = Field("ebx", 24, 31)
INTEL_VIRTUALIZATION = bit("ecx", 5)
PERFORMANCE_CAPABILITIES = bit("ecx", 15)
TSC_DEADLINE = bit("ecx", 24)
HYPERVISOR = bit("ecx", 31)
HYPER_THREADING = bit("edx", 28)
# Leaf 4 and 0x8000001d
CACHE_TYPE_MASK = 0x1F
CACHE_SHARED_BY = Field("eax", 14, 25)
CACHE_CORES = Field("eax", 26, 31)
# Leaf 6
TURBO_BOOST = bit("eax", 1)
ENERGY_BIAS = bit("ecx", 3)
# Leaf 7
WAIT_PACKAGE = bit("ecx", 5)
ARCHITECTURAL_CAPABILITIES = bit("edx", 29)
# Leaf 0xb and 0x1f
SHIFT_TO_NEXT_LEVEL = Field("eax", 0, 4)
PROCESSORS_AT_LEVEL = Field("ebx", 0, 15)
LEVEL_NUMBER = Field("ecx", 0, 7)
LEVEL_TYPE = Field("ecx", 8, 15)
# Leaf 0x40000001, KVM's features
ASYNC_PAGE_FAULTS = (bit("eax", 4), bit("eax", 10), bit("eax", 14))
# Leaf 0x80000001
AMD_VIRTUALIZATION = bit("ecx", 2)
TOPOLOGY_EXTENSIONS = bit("ecx", 22)
# Leaf 0x80000008
THREADS_MINUS_ONE = Field("ecx", 0, 7)
APIC_ID_BITS = Field("ecx", 12, 15)
# Leaf 0x8000001e
CORE_ID = Field("ebx", 0, 7)
THREADS_OF_CORE_MINUS_ONE = Field("ebx", 8, 15)
NODE_ID = Field("ecx", 0, 7)
NODES_MINUS_ONE = Field("ecx", 8, 10)

WORDS = ("function", "index", "flags", "eax", "ebx", "ecx", "edx")
MOST_WORDS = len(WORDS) * MAX_CPUID_ENTRIES

CACHE_LINE = 64
LEVEL_THREAD, LEVEL_CORE = 1, 2

Change = Callable[[KvmCpuidEntry2, int, int], None]


def normalize(supported: KvmCpuid2, vcpu: int, vcpus: int) -> KvmCpuid2:
    """Return the table for one virtual processor: each is a core of its own in one package.

    supported: what KVM_GET_SUPPORTED_CPUID reports. vcpu: the processor's number, which is its APIC id.
    """
    entries = list(supported.entries[: supported.nent])
    vendor = vendor_of(entries)
    changes: dict[int, Change] = COMMON | (FOR_INTEL if vendor == INTEL else FOR_AMD if vendor == AMD else {})
    entries = [entry for entry in entries if entry.function not in (0xB, 0x1F)]
    table = KvmCpuid2()
    for entry in [*entries, *_topology(vcpus)]:
        copy = KvmCpuidEntry2.from_buffer_copy(entry)
        change = changes.get(copy.function)
        if change is not None:
            change(copy, vcpu, vcpus)
        table.entries[table.nent] = copy
        table.nent += 1
    return table


def vendor_of(entries: Iterable[KvmCpuidEntry2]) -> bytes:
    """The twelve characters of leaf 0, or nothing where that leaf is missing."""
    for entry in entries:
        if entry.function == 0:
            return b"".join(number.to_bytes(4, "little") for number in (entry.ebx, entry.edx, entry.ecx))
    return b""


def entries_of(table: KvmCpuid2) -> list[int]:
    """A table as numbers, seven for each entry."""
    return [getattr(entry, name) for entry in table.entries[: table.nent] for name in WORDS]


def compare(saved: Sequence[int], here: KvmCpuid2) -> None:
    """See that a saved machine finds the processor here that it knows.

    Raises:
        SnapshotError: it does not; the message names the first leaf that differs.
    """
    others = entries_of(here)
    for number in range(0, max(len(saved), len(others)), len(WORDS)):
        one, other = (tuple(words[number : number + len(WORDS)]) for words in (saved, others))
        if one != other:
            leaf = (other or one)[0]
            shown = (" ".join(f"{word:08x}" for word in words[3:]) or "missing" for words in (one, other))
            raise SnapshotError(
                "this host's processor differs: CPUID leaf {:#x} was {}, is {}".format(leaf, *shown)
            )


def _topology(vcpus: int) -> list[KvmCpuidEntry2]:
    """Leaf 0xb: one thread in a core, all cores in one package, then the end."""
    levels = ((0, 1, LEVEL_THREAD), (_bits(vcpus), vcpus, LEVEL_CORE), (0, 0, 0))
    entries = []
    for number, (shift, processors, kind) in enumerate(levels):
        entry = KvmCpuidEntry2(function=0xB, index=number, flags=KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
        SHIFT_TO_NEXT_LEVEL.set(entry, shift)
        PROCESSORS_AT_LEVEL.set(entry, processors)
        LEVEL_NUMBER.set(entry, number)
        LEVEL_TYPE.set(entry, kind)
        entries.append(entry)
    return entries


def _bits(vcpus: int) -> int:
    return (vcpus - 1).bit_length()


def _features(entry: KvmCpuidEntry2, vcpu: int, vcpus: int) -> None:
    CACHE_LINE_FLUSH.set(entry, CACHE_LINE // 8)
    LOGICAL_PROCESSORS.set(entry, 1 << _bits(vcpus))
    INITIAL_APIC_ID.set(entry, vcpu)
    INTEL_VIRTUALIZATION.set(entry, 0)
    PERFORMANCE_CAPABILITIES.set(entry, 0)
    TSC_DEADLINE.set(entry, 1)
    HYPERVISOR.set(entry, 1)
    HYPER_THREADING.set(entry, int(vcpus > 1))


def _extended_apic_id(entry: KvmCpuidEntry2, vcpu: int, vcpus: int) -> None:
    entry.edx = vcpu


def _paravirtual(entry: KvmCpuidEntry2, vcpu: int, vcpus: int) -> None:
    """A task of the guest that waits for a page of the host when it is saved would wait for ever."""
    for field in ASYNC_PAGE_FAULTS:
        field.set(entry, 0)


def _caches(entry: KvmCpuidEntry2, vcpu: int, vcpus: int) -> None:
    if not entry.eax & CACHE_TYPE_MASK:
        return
    level = entry.eax >> 5 & 7
    CACHE_SHARED_BY.set(entry, (1 << _bits(vcpus)) - 1 if level >= 3 else 0)
    if entry.function == 4:
        CACHE_CORES.set(entry, (1 << _bits(vcpus)) - 1)


def _power(entry: KvmCpuidEntry2, vcpu: int, vcpus: int) -> None:
    TURBO_BOOST.set(entry, 0)
    ENERGY_BIAS.set(entry, 0)


def _intel_extensions(entry: KvmCpuidEntry2, vcpu: int, vcpus: int) -> None:
    if entry.index == 0:
        WAIT_PACKAGE.set(entry, 0)


def _amd_extensions(entry: KvmCpuidEntry2, vcpu: int, vcpus: int) -> None:
    if entry.index == 0:
        ARCHITECTURAL_CAPABILITIES.set(entry, 0)


def _no_performance_counters(entry: KvmCpuidEntry2, vcpu: int, vcpus: int) -> None:
    entry.eax = entry.ebx = entry.ecx = entry.edx = 0


def _extended_features(entry: KvmCpuidEntry2, vcpu: int, vcpus: int) -> None:
    AMD_VIRTUALIZATION.set(entry, 0)


def _amd_extended_features(entry: KvmCpuidEntry2, vcpu: int, vcpus: int) -> None:
    _extended_features(entry, vcpu, vcpus)
    TOPOLOGY_EXTENSIONS.set(entry, 1)


def _amd_processors(entry: KvmCpuidEntry2, vcpu: int, vcpus: int) -> None:
    THREADS_MINUS_ONE.set(entry, vcpus - 1)
    APIC_ID_BITS.set(entry, _bits(vcpus))


def _amd_identity(entry: KvmCpuidEntry2, vcpu: int, vcpus: int) -> None:
    entry.eax = vcpu
    CORE_ID.set(entry, vcpu)
    THREADS_OF_CORE_MINUS_ONE.set(entry, 0)
    NODE_ID.set(entry, 0)
    NODES_MINUS_ONE.set(entry, 0)


COMMON: dict[int, Change] = {
    0x1: _features,
    0xB: _extended_apic_id,
    0x40000001: _paravirtual,
    0x80000001: _extended_features,
}
FOR_INTEL: dict[int, Change] = {
    0x4: _caches,
    0x6: _power,
    0x7: _intel_extensions,
    0xA: _no_performance_counters,
}
FOR_AMD: dict[int, Change] = {
    0x7: _amd_extensions,
    0x80000001: _amd_extended_features,
    0x80000008: _amd_processors,
    0x8000001D: _caches,
    0x8000001E: _amd_identity,
}
