"""The host's /dev/kvm: its interface, and what it can do, found out by running a guest of a few instructions.

abi      the kernel's structures and ioctl numbers
guest    the trials: machine code and the result that a processor gives
machine  a virtual machine with one vCPU that runs the trials, in a process of its own
probe    the result
"""
