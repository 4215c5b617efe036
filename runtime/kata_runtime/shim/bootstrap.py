"""How `start` is called and how it answers, in the dialect of the containerd that called.

    containerd       standard input of `start`         answer
    1.6, 1.7         nothing, or Any(runtime options)  the plain address: task API version 2
    2.0 to 2.2       the same                          the same; JSON with version 3 where KATA_SHIM_API=3,
                                                       for they look like 1.7, which refuses it
    2.3 and later    BootstrapParams                   BootstrapResult: task API version 3

Source: containerd, pkg/shim/util.go (Command) and core/runtime/v2/shim.go (parseStartResponse).
"""

from __future__ import annotations

from kata_runtime.shim import protobuf_lite as pb

API_VARIABLE = "KATA_SHIM_API"

_FEATURES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
_FEATURES = (
    '{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0",'
    '"mountOptions":["bind","rbind","ro","rro","rw"],'
    '"linux":{"mountExtensions":{"idmap":{"enabled":false}}}}'
)
"""What is told of this runtime, in the form of the OCI specification's features.md: containerd 2 lets a pod
ask for recursively read-only mounts where "rro" is listed, and needs the entry of idmap to say no."""


class Call:
    """What containerd wrote to standard input.

    dialect: "plain", "json" or "protobuf". socket_root: directory for the shim's socket, or None for the
    default. ttrpc_address: where events go, or None. config_path: the operator's configuration file, or None.
    """

    __slots__ = ("config_path", "dialect", "socket_root", "ttrpc_address")

    def __init__(
        self,
        dialect: str,
        socket_root: str | None = None,
        ttrpc_address: str | None = None,
        config_path: str | None = None,
    ) -> None:
        self.dialect = dialect
        self.socket_root = socket_root
        self.ttrpc_address = ttrpc_address
        self.config_path = config_path


def read_call(stdin: bytes, instance_id: str, api: str | None) -> Call:
    """Understand the standard input of `start`.

    stdin: all of it. instance_id: the value of -id, by which BootstrapParams are recognised.
    api: the value of KATA_SHIM_API. Bytes that are neither of the known messages are ignored, as the plain
    dialect always has.
    """
    plain = "json" if api == "3" else "plain"
    try:
        message = pb.fields(stdin)
    except pb.MalformedError:
        return Call(plain)
    strings = {number: value for number, value in message if isinstance(value, bytes)}
    if strings.get(1) != instance_id.encode():
        return Call(plain, config_path=_config_path(stdin))
    paths = [
        _config_path(_first(value, 1))
        for number, value in message
        if number == 8 and isinstance(value, bytes)
    ]
    return Call(
        "protobuf",
        socket_root=_text(strings.get(9)),
        ttrpc_address=_text(strings.get(5)),
        config_path=next((path for path in paths if path), None),
    )


def answer(dialect: str, address: str) -> bytes:
    """The bytes for standard output: how to reach the shim that serves the sandbox at `address`."""
    if dialect == "protobuf":
        return pb.number_field(1, 3) + pb.bytes_field(2, address) + pb.bytes_field(3, "ttrpc")
    if dialect == "json":
        # An address is made of hexadecimal digits and a checked directory: nothing in it needs an escape.
        return f'{{"version":3,"address":"{address}","protocol":"ttrpc"}}'.encode()
    return address.encode()


def runtime_info(name: str, version: str) -> bytes:
    """types.RuntimeInfo, the answer to -info."""
    features = pb.bytes_field(1, _FEATURES_TYPE) + pb.bytes_field(2, _FEATURES)
    return (
        pb.bytes_field(1, name) + pb.bytes_field(2, pb.bytes_field(1, version)) + pb.bytes_field(4, features)
    )


def delete_response(pid: int, exit_status: int, exited_at_ns: int) -> bytes:
    """task.DeleteResponse, the answer to `delete`; exited_at_ns in nanoseconds since the epoch."""
    seconds, nanos = divmod(exited_at_ns, 1_000_000_000)
    exited_at = pb.number_field(1, seconds) + pb.number_field(2, nanos)
    return pb.number_field(1, pid) + pb.number_field(2, exit_status) + pb.bytes_field(3, exited_at)


def _config_path(any_message: bytes) -> str | None:
    """ConfigPath out of Any(runtimeoptions.v1.Options); None where it is something else."""
    if b"runtimeoptions" not in _first(any_message, 1):
        return None
    return _text(_first(_first(any_message, 2), 2))


def _first(message: bytes, field: int) -> bytes:
    try:
        found = pb.fields(message)
    except pb.MalformedError:
        return b""
    return next((value for number, value in found if number == field and isinstance(value, bytes)), b"")


def _text(raw: bytes | None) -> str | None:
    return raw.decode("utf-8", "replace") if raw else None
