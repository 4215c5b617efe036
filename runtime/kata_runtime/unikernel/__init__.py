"""Unikernels: how an image describes one, and the guest that it is."""
