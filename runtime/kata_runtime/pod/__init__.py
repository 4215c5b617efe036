"""A pod: its virtual machine, from Create to its end, and what containerd asks of it."""
