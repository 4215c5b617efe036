"""Guests of a few integer instructions, which any KVM runs, also one that only emulates."""

from __future__ import annotations

import struct
from ctypes import sizeof

from kata_hypervisor.elf import Elf64Header, Elf64Program

CODE = 0x100000
HALT_FOREVER = bytes.fromhex("fa f4 eb fd")  # cli; hlt; jmp to it
SPIN = bytes.fromhex("eb fe")


def kernel(code: bytes, *, pvh: bool = False) -> bytes:
    """An ELF kernel that is nothing but this code; entered in 64 bits, or by PVH in 32."""
    note = struct.pack("<3I4sI", 4, 4, 18, b"Xen\0", CODE) if pvh else b""
    count = 2 if pvh else 1
    start = sizeof(Elf64Header) + count * sizeof(Elf64Program)
    load = Elf64Program(p_type=1, p_offset=start, p_paddr=CODE, p_filesz=len(code), p_memsz=len(code))
    notes = Elf64Program(
        p_type=4, p_offset=start + len(code), p_filesz=len(note), p_memsz=len(note), p_align=4
    )
    header = Elf64Header(e_machine=62, e_entry=CODE, e_phoff=sizeof(Elf64Header), e_phnum=count)
    header.e_ident[:6] = b"\x7fELF\x02\x01"
    header.e_phentsize = sizeof(Elf64Program)
    programs = bytes(load) + (bytes(notes) if pvh else b"")
    return bytes(header) + programs + code + note


def out_byte(port: int, value: int) -> bytes:
    """mov dx, port; mov al, value; out dx, al (the same in 32 and 64 bits)"""
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"


def say(text: bytes) -> bytes:
    """Write to the first serial port."""
    return b"".join(out_byte(0x3F8, byte) for byte in text)


def store(address: int, value: int) -> bytes:
    """mov eax, address; mov dword [rax], value (the first GiB is mapped in 64 bits, all in 32)"""
    return b"\xb8" + struct.pack("<I", address) + b"\xc7\x00" + struct.pack("<I", value)


def load_and_say(address: int) -> bytes:
    """mov eax, address; mov eax, [rax]; then its lowest byte to the first serial port"""
    return b"\xb8" + struct.pack("<I", address) + b"\x8b\x00" + b"\x66\xba\xf8\x03\xee"


def read_and_say(port: int, size: int = 1) -> bytes:
    """mov dx, port; in al (ax, eax), dx; then the lowest byte to the first serial port"""
    read = {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}[size]
    return b"\x66\xba" + struct.pack("<H", port) + read + b"\x66\xba\xf8\x03\xee"


def say_cpuid(leaf: int, bit: int) -> bytes:
    """mov eax, leaf; xor ecx, ecx; cpuid; then a bit of ECX, as "0" or "1", to the first serial port"""
    ask = b"\xb8" + struct.pack("<I", leaf) + b"\x31\xc9\x0f\xa2"
    # mov eax, ecx; shr eax, bit; and al, 1; add al, "0"
    digit = b"\x89\xc8\xc1\xe8" + bytes([bit]) + b"\x24\x01\x04\x30"
    return ask + digit + b"\x66\xba\xf8\x03\xee"
