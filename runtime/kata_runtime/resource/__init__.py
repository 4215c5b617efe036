"""What a sandbox takes from the host: its size, its root file systems, its volumes, its cgroup."""
