"""The program that reads and changes one network namespace: short-lived, so that nobody else carries netlink.

Run by the broker as

    python -IS program.py LIBRARY...

LIBRARY: directories in which packages are looked for, as -IS knows none. Descriptors: CHANNEL, a connected
stream socket; NAMESPACE, the network namespace, in which it works and which it never leaves; RECORD, a file
beside the sandbox, for what has to be undone.

It reads one request from CHANNEL until the other side ends its writing, answers, and exits with 0, or with 1
when the answer is an error. Both are JSON. Descriptors come with the answer's first byte: queues in the order
of the interfaces, then listeners.

    {"operation": "dump"}                                             -> {"namespace": {...}}
    {"operation": "attach", "model": "tcfilter", FIELDS OF Wanted}    -> {"namespace": {...}, "plan": {...},
                                                                          "queues": [1, 1]}
    {"operation": "detach"}                                           -> {}
    anything that fails                                               -> {"error": "one sentence"}
"""

from __future__ import annotations

import gc
import sys

if __name__ == "__main__":
    gc.disable()  # it ends before there is much garbage
    sys.path += sys.argv[1:]

    from kata_runtime.network.operations import main

    sys.exit(main())
