"""A pod's network: what its namespace holds, what the guest gets of it, and the program that attaches it."""
