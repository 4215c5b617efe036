"""The node's zygote: one process that has imported all that a shim and its broker need, and forks them.

It serves nothing but launchers of its own installation, reads nothing that a guest wrote, and has no thread.
Decision 0025 says why, docs/processes.md what it does.
"""
