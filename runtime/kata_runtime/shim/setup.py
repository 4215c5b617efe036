"""What the launcher hands over to the shim that it forks."""

from __future__ import annotations

from kata_runtime.identity import SandboxIdentity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

FIELDS = ("address", "namespace", "sandbox", "socket_root", "ttrpc_address", "config_path", "debug")
"""What the launcher says of a shim, as text: to its fork or to the zygote's."""


class Setup:
    """What the launcher hands over.

    fields: the texts of FIELDS. Of these `ttrpc_address` is the path of the socket where events go, empty for
    nowhere; `config_path` the configuration file named at start, if any; `debug` empty for no.
    listener_fd: the bound and listening socket. foreground: keep standard error. origin: whose fork the shim
    is, for the log.
    """

    def __init__(
        self, fields: Mapping[str, str], *, bundle: str, listener_fd: int, foreground: bool, origin: str
    ) -> None:
        self.identity = SandboxIdentity(
            fields["address"], fields["namespace"], fields["sandbox"], fields["socket_root"]
        )
        self.bundle = bundle
        self.listener_fd = listener_fd
        self.ttrpc_address = fields["ttrpc_address"].removeprefix("unix://")
        self.config_path = fields["config_path"] or None
        self.debug = bool(fields["debug"])
        self.foreground = foreground
        self.origin = origin
