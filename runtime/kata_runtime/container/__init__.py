"""A container: its bundle, its processes, their states, and its specification in the guest."""
