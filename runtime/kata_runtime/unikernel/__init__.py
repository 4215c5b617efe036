"""Unikernels: what an image says of one, and the guest that it is."""
