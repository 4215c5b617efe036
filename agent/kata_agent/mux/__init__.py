"""Many streams over one byte stream: how the host reaches the guest's ports where it has no vhost-vsock.

Streams behave as vsock connections do: the host opens them to a port of the guest, both ends may half-close,
and one that nobody reads holds up no other.
"""
