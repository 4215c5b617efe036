"""Standard streams: between containerd's FIFOs and the guest."""
