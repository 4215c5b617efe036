"""The broker: the one process of a pod that may mount, fork and write cgroups; it also cleans up.

`process` forks it, `client` is the shim's side, `vocabulary` is all that may be asked of it, `janitor` is how
everything is undone, with or without a broker that still lives.
"""
