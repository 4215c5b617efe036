"""ttrpc, the small RPC of containerd and Kata: frames without I/O, an asyncio client and server, and a
blocking server for the guest."""
