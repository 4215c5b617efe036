"""Checks what goes to a VMM's REST interface: the requests of its driver's declaration, and nothing else.

Of HTTP/1.1 (RFC 9112) there is only what the runtime's own client writes: a request line, four header fields,
a body of a stated length. Each request is parsed, checked, and written anew: the VMM reads what was checked.
"""

from __future__ import annotations

import json

from kata_runtime.broker.monitor import NotAllowedError
from kata_runtime.broker.schema import Fitting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from typing import Any

    from kata_hypervisor.api_request import Request

LONGEST = 4096
"""Bytes of the longest head of a request, and of the longest body."""

_END = b"\r\n\r\n"
_FIELDS = frozenset({"host", "accept", "content-type", "content-length"})


class RequestFilter:
    """Checks what goes to a VMM.

    requests: what may be asked. disks, saved, limits: see `Fitting`.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        disks: Collection[str] = (),
        saved: str | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        self._schemas = {(request.method, request.path): request.body for request in requests}
        self._fitting = Fitting(disks, saved, limits)
        self._partial = b""

    def take(self, data: bytes) -> bytes:
        """Return the requests that are complete, written anew. Raises NotAllowedError."""
        self._partial += data
        passed = b""
        while self._partial:
            head, end, rest = self._partial.partition(_END)
            if len(head) > LONGEST:
                raise NotAllowedError(f"it is not a request: {head[:100]!r}")
            if not end:
                break  # the rest may be on its way
            method, path, length = _parse(head)
            if len(rest) < length:
                break
            passed += self._rewrite(method, path, rest[:length])
            self._partial = rest[length:]
        return passed

    def _rewrite(self, method: str, path: str, content: bytes) -> bytes:
        what = f"{method[:20]} {path[:100]}"
        try:
            schema = self._schemas[method, path]
        except KeyError:
            raise NotAllowedError(f"the request {what!r} is not allowed") from None
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
        if (schema is not None) != bool(content):
            raise NotAllowedError(f"the request {what!r} {'has a' if content else 'has no'} body")
        if schema is None:
            return head.encode() + b"\r\n"
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise NotAllowedError(f"the body of {what!r} is not JSON: {content[:100]!r}") from None
        if (wrong := self._fitting.find_misfit(schema, body)) is not None:
            raise NotAllowedError(f"the body of {what!r} is not allowed: {wrong}")
        text = json.dumps(body).encode()
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text


def _parse(head: bytes) -> tuple[str, str, int]:
    """Method and path of a request, and the length of its body. Raises NotAllowedError."""
    first, *lines = head.split(b"\r\n")
    words = first.split(b" ")
    fields: dict[str, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        key = name.decode("latin-1").lower()
        if not colon or key not in _FIELDS or key in fields:
            raise NotAllowedError(f"its header field {line[:100]!r} is not allowed")
        fields[key] = value.strip(b" \t")
    length = fields.get("content-length", b"0")
    if (
        len(words) != 3
        or words[2] != b"HTTP/1.1"
        or not head.isascii()
        or b"\n" in head.replace(b"\r\n", b"")
    ):
        raise NotAllowedError(f"it is not a request: {head[:100]!r}")
    if not length.isdigit() or len(length) > 8 or int(length) > LONGEST:
        raise NotAllowedError(f"its body has the length {length[:20]!r}, at most {LONGEST} is allowed")
    return words[0].decode(), words[1].decode(), int(length)
