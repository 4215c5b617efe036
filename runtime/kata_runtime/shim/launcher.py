"""The process that containerd starts: it binds the shim's socket, hands it to a fork, answers, and is gone.

The fork is the node's zygote's, or where there is none, its own.

Import tier 0: the interpreter's built-in modules and this package's own small ones, nothing else (a test
holds the list). Nothing but the answer may reach standard output or standard error of `start`, because
containerd 1.x reads both together as the address; what goes wrong is one line on standard error and a
non-zero status.
"""

from __future__ import annotations

import _socket
import os
import sys
import time

from kata_runtime import identity as places
from kata_runtime.identity import SANDBOX_KEYS, SOCKET_ROOT, InvalidIdError, SandboxIdentity
from kata_runtime.shim import arguments, bootstrap, zygote_call
from kata_runtime.shim.setup import Setup
from kata_runtime.version import VERSION

RUNTIME_NAME = "io.containerd.kata.v2"
BACKLOG = 128
MAX_STDIN = 1 << 20

# The annotations that say what a container is to its pod, by the CRI implementation that writes them.
_TYPE_KEYS = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")


def main(argv: list[str] | None = None) -> int:
    """Entry point of both shim names; returns the exit status."""
    try:
        parsed = arguments.parse(sys.argv[1:] if argv is None else argv)
        return _run(parsed)
    except arguments.UsageError as error:
        return _fail(f"{error}\n{arguments.USAGE}")
    except InvalidIdError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{parsed.action or 'shim'}: {error.strerror}: {error.filename}")


def _run(parsed: arguments.Arguments) -> int:
    if parsed.switches & {"v", "version"}:
        os.write(1, f"containerd-shim-kata-v2:\n  Version:  {VERSION}\n".encode())
    elif parsed.switches & {"h", "help"}:
        os.write(1, arguments.USAGE.encode())
    elif "info" in parsed.switches:
        os.write(1, bootstrap.runtime_info(RUNTIME_NAME, VERSION))
    elif parsed.action == "delete":
        return _delete(parsed)
    elif parsed.action:
        return _start(parsed, foreground=parsed.action == "daemon")
    else:
        raise arguments.UsageError("an action is missing")
    return 0


def _fail(message: str) -> int:
    os.write(2, f"containerd-shim-kata-v2: {message}\n".encode())
    return 1


def _start(parsed: arguments.Arguments, *, foreground: bool) -> int:
    instance = parsed.require("id")
    call = bootstrap.read_call(
        b"" if foreground else _read_stdin(), instance, os.environ.get(bootstrap.API_VARIABLE)
    )
    sandbox = sandbox_of_bundle(".") or instance
    identity = SandboxIdentity(
        parsed.require("address"), parsed.require("namespace"), sandbox, call.socket_root or SOCKET_ROOT
    )
    address = f"unix://{identity.socket}"
    if sandbox != instance and not _is_served(identity.socket):
        return _fail(
            f"the sandbox {sandbox} of container {instance} is not running: nothing answers at {address}"
        )
    listener = None if sandbox != instance else _listen(identity.socket)
    if listener is not None and not _spawn(listener, identity, parsed, call, foreground=foreground):
        return 0
    _write_file("address", address)
    os.write(1, bootstrap.answer(call.dialect, address))
    # What an interpreter does on its way out costs as much as all of the above.
    os._exit(0)


def _spawn(
    listener: _socket.socket,
    identity: SandboxIdentity,
    parsed: arguments.Arguments,
    call: bootstrap.Call,
    *,
    foreground: bool,
) -> bool:
    """Start the daemon on the listener; True in the process that still has to answer."""
    fields = {
        "address": identity.address,
        "namespace": identity.namespace,
        "sandbox": identity.id,
        "socket_root": identity.socket_root,
        "ttrpc_address": call.ttrpc_address or os.environ.get("TTRPC_ADDRESS", ""),
        "config_path": call.config_path or parsed.value("config"),
        "debug": "yes" if "debug" in parsed.switches else "",
    }
    origin = "started in the foreground" if foreground else _take_from_zygote(fields, listener)
    if not origin:
        return True
    pid = 0 if foreground else os.fork()
    if pid:
        _write_file("shim.pid", str(pid))
        return True
    from kata_runtime.shim import daemon

    daemon.run(
        Setup(
            fields,
            bundle=os.getcwd(),
            listener_fd=listener.detach(),
            foreground=foreground,
            origin=origin,
        )
    )
    return False


def _take_from_zygote(fields: dict[str, str], listener: _socket.socket) -> str:
    """Let the node's zygote fork the shim; return why it did not, or nothing."""
    try:
        offer = zygote_call.ask(fields, listener.fileno())
        _write_file("shim.pid", str(offer.pid))
        offer.accept()
    except zygote_call.RefusedError as refused:
        return f"started without the zygote: {refused}"
    return ""


def _delete(parsed: arguments.Arguments) -> int:
    """Remove what a dead shim left. Deleting a container of a pod whose shim lives removes nothing here."""
    instance = parsed.require("id")
    bundle = parsed.value("bundle") or os.getcwd()
    sandbox = sandbox_of_bundle(bundle) or instance
    identity = SandboxIdentity(parsed.require("address"), parsed.require("namespace"), sandbox)
    recorded = _read_file(os.path.join(bundle, "address")).removeprefix("unix://")
    if recorded:
        identity.socket_root = os.path.dirname(recorded)
    if sandbox == instance:
        from kata_runtime.broker import cleanup
        from kata_runtime.broker.log_sink import take_fatal_message

        if sentence := take_fatal_message(bundle):
            os.write(2, f"{sentence}\n".encode())
        for line in cleanup.clean_up(identity):
            # containerd logs these as warnings; failing would make it keep the bundle and try no more.
            os.write(2, f"left behind: {line}\n".encode())
        # Here, because it delays no start: sandboxes whose bundle has gone before their shim was deleted.
        for line in cleanup.sweep(places.STATE_ROOT):
            os.write(2, f"left behind by another sandbox: {line}\n".encode())
    os.write(1, bootstrap.delete_response(0, 128 + 9, time.time_ns()))
    return 0


def sandbox_of_bundle(bundle: str) -> str | None:
    """The id of the pod's sandbox when this bundle is a further container of a pod, else None.

    A bundle that cannot be read is a sandbox of its own: Create reports what is wrong with it.
    """
    text = _read_file(os.path.join(bundle, "config.json"))
    if not any(key in text for key in _TYPE_KEYS):
        return None
    import json

    try:
        annotations = json.loads(text).get("annotations") or {}
        if not any(annotations.get(key) == "container" for key in _TYPE_KEYS):
            return None
        return next((annotations[key] for key in SANDBOX_KEYS if isinstance(annotations.get(key), str)), None)
    except (ValueError, AttributeError, RecursionError):
        return None


def _listen(path: str) -> _socket.socket | None:
    """Bind the shim's socket; None when a live shim serves it already."""
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if not os.path.exists(path):
                raise OSError(error.errno, f"cannot bind the shim's socket: {error.strerror}", path) from None
            if _is_served(path):
                listener.close()
                return None
            os.unlink(path)
            listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(BACKLOG)
    return listener


def _is_served(path: str) -> bool:
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except OSError:
        return False
    finally:
        probe.close()
    return True


def _read_stdin() -> bytes:
    """All of standard input, at most 1 MiB: containerd gives a pipe or /dev/null, a person a terminal."""
    if os.isatty(0):
        return b""
    data = b""
    while len(data) < MAX_STDIN and (chunk := os.read(0, 65536)):
        data += chunk
    return data


def _read_file(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(fd, encoding="utf-8", errors="replace") as file:
        return file.read()


def _write_file(path: str, text: str) -> None:
    """Write a file that a reader sees whole or not at all."""
    temporary = f".{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.write(fd, text.encode())
    os.close(fd)
    os.rename(temporary, path)
