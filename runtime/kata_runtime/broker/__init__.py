"""The broker: the one process of a pod that may mount, fork and write cgroups; it also cleans up.

`process` forks it, and `server` is what it runs. `operations` is all that may be asked of it: each operation
is one declaration, with the checks of its arguments and its handler. `client` is the shim's side. `cleanup`
undoes everything, with or without a broker that still runs.
"""
