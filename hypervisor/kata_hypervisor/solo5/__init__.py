"""Unikernels that are built for Solo5: in this process on KVM, or in Solo5's own tenders.

manifest         the devices that a unikernel declares
unikernel_file   its file: the notes that say what it is for, and what is loaded where
abi              the calls that it makes, and what it is started with (target hvt, version 2)
memory           its memory, with every address checked
start            page tables, boot information, and the registers that it starts with
attachment       the devices that it gets, under the names that it declares
devices          what its block and network calls reach, and what its polls wait for
exits            why the processor left the guest, and what is done about it
hypercalls       from a call's number to what is done
processor        the thread that runs it
machine          all of this, put together
tender           solo5-hvt and solo5-spt, which do the same in processes of their own
allowlist        our filter for a solo5-hvt that has none, by its C library
"""
