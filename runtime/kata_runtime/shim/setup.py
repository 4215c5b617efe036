"""What the launcher hands over to the shim that it forks."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata_runtime.identity import SandboxIdentity


class Setup:
    """What the launcher hands over.

    listener_fd: the bound and listening socket. ttrpc_address: path of the socket where events go; empty for
    nowhere.
    config_path: the configuration file named at start, if any. foreground: keep standard error.
    """

    def __init__(
        self,
        *,
        identity: SandboxIdentity,
        bundle: str,
        listener_fd: int,
        ttrpc_address: str,
        config_path: str | None,
        debug: bool,
        foreground: bool,
    ) -> None:
        self.identity = identity
        self.bundle = bundle
        self.listener_fd = listener_fd
        self.ttrpc_address = ttrpc_address.removeprefix("unix://")
        self.config_path = config_path
        self.debug = debug
        self.foreground = foreground
