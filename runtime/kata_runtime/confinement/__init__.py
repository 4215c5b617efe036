"""What the processes of a pod are on the host: read from the kernel, and held to what each of them must be.

Standard library only: the broker imports it.
"""
