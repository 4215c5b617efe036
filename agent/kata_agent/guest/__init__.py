"""The agent that runs in the VM, as its PID 1: Kata's agent protocol on one side, crun on the other.

Threads and the standard library's cheap parts only: every import counts tenfold where the guest is emulated.
"""

VERSION = "0.1.0"
