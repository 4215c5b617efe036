"""Network namespaces for tests: a pod's, its node's with a bridge, and one in place of a guest's kernel."""

from __future__ import annotations

import json
import os
import secrets
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from forked import in_child
from kata_agent.guest import network as agent
from kata_agent.protos import agent_pb2
from kata_runtime.network import exchange, namespaces, taps
from kata_runtime.network.command import CHANNEL, NAMESPACE, RECORD, command
from kata_runtime.network.exchange import Attached
from kata_runtime.network.guest import GuestNetwork
from kata_runtime.network.model import Namespace

T = TypeVar("T")

_IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 10, 2


class Netns:
    """A network namespace of a random name, with `ip` for it."""

    def __init__(self, prefix: str) -> None:
        self.name = f"kt-{prefix}-{secrets.token_hex(4)}"
        self.path = Path("/run/netns") / self.name
        ip("netns", "add", self.name)

    def ip(self, *arguments: str) -> str:
        """Run `ip` in the namespace; returns what it prints."""
        return ip("-n", self.name, *arguments)

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the namespace."""
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *argv], capture_output=True, text=True, check=False
        )

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in a process that has entered the namespace."""

        def entered() -> T:
            self._enter()
            return function()

        return in_child(entered)

    def call_with_descriptor(self, function: Callable[[], int]) -> int:
        """Call a function that opens something in the namespace; returns the descriptor."""

        def entered() -> int:
            self._enter()
            return function()

        with ThreadPoolExecutor(1) as own:  # a thread of its own: it never comes back from the namespace
            return own.submit(entered).result()

    def _enter(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        namespaces.enter(descriptor)
        os.close(descriptor)

    def write_sysctl(self, name: str, value: str) -> None:
        """Set a sysctl of the namespace."""
        done = self.run("sh", "-c", f"echo {value} > /proc/sys/{name}")
        assert not done.returncode, done.stderr

    def state(self) -> dict[str, Any]:
        """Everything that has to be as before, as iproute2 prints it: an account of its own."""
        links = json.loads(self.ip("-d", "-j", "address", "show"))
        for link in links:
            for address in link["addr_info"]:
                address.pop("valid_life_time", None)
                address.pop("preferred_life_time", None)
        return {
            "links": links,
            "routes": sorted(self.ip("route", "show", "table", "all").splitlines()),
            "routes6": sorted(self.ip("-6", "route", "show", "table", "all").splitlines()),
            "rules": self.ip("rule", "show"),
            "neighbours": sorted(self.ip("neigh", "show", "nud", "permanent").splitlines()),
            "tables": self.call(_nft_tables),
            "qdiscs": self.run("tc", "qdisc", "show").stdout,
            "filters": [
                self.run("tc", "filter", "show", "dev", link["ifname"], "parent", "ffff:").stdout
                for link in links
            ],
        }

    def close(self) -> None:
        """Remove it, with all that is in it."""
        ip("netns", "delete", self.name)


def _nft_tables() -> list[str]:
    """The names of nftables' tables in this namespace."""
    from pyroute2.nftables.main import NFTables

    with NFTables() as nft:
        return [table.get_attr("NFTA_TABLE_NAME") for table in nft.get_tables()]


def carries(source: Netns, target: Netns, address: str, size: int = 64) -> bool:
    """Whether a datagram of `size` bytes, unfragmented, comes to an address of the target and back."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(fileno=target.call_with_descriptor(lambda: _datagrams(family)))
    client = socket.socket(fileno=source.call_with_descriptor(lambda: _datagrams(family)))
    server.settimeout(3)
    client.settimeout(3)
    with server, client:
        server.bind((address, 0))
        try:
            client.sendto(bytes(size), (address, server.getsockname()[1]))
            data, sender = server.recvfrom(1 << 16)
            server.sendto(data, sender)
            return len(client.recv(1 << 16)) == size
        except OSError:
            return False


def _datagrams(family: socket.AddressFamily) -> int:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
    return sock.detach()


def ip(*arguments: str) -> str:
    """Run iproute2's `ip`; returns what it prints."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"ip {' '.join(arguments)}: {done.stderr}")
    return done.stdout


class PodNetwork:
    """A pod's namespace beside its node's, and the network program for it.

    The node has a bridge with 10.9.0.1/24 and fd00:9::1/64; the pod is empty until it is wired.
    """

    def __init__(self, directory: Path) -> None:
        self.pod, self.node = Netns("pod"), Netns("node")
        self.record = directory / f"{self.pod.name}.record"
        self.node.ip("link", "add", "cni0", "type", "bridge")
        for address in ("10.9.0.1/24", "fd00:9::1/64"):
            self.node.ip("address", "add", address, "dev", "cni0", *(["nodad"] if ":" in address else []))
        self.node.ip("link", "set", "cni0", "up")
        self.pod.ip("link", "set", "lo", "up")

    def close(self) -> None:
        """Remove both."""
        self.pod.close()
        self.node.close()

    def wire(
        self, name: str, *addresses: str, mtu: int = 1500, mac: str = "", default: str = "10.9.0.1"
    ) -> None:
        """Give the pod a veth on the node's bridge, as CNI's bridge plugin does."""
        peer = f"v{secrets.token_hex(4)}"
        options = ["address", mac] if mac else []
        self.node.ip("link", "add", peer, "mtu", str(mtu), "type", "veth", "peer", "name", name, *options)
        self.node.ip("link", "set", name, "mtu", str(mtu), "netns", self.pod.name)
        self.node.ip("link", "set", peer, "master", "cni0", "up")
        for address in addresses:
            self.pod.ip("address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
        self.pod.ip("link", "set", name, "up")
        if default and any("." in address for address in addresses):
            self.pod.ip("route", "add", "default", "via", default, "dev", name)
        if any(":" in address for address in addresses):
            self.pod.ip("-6", "route", "add", "default", "via", "fd00:9::1", "dev", name)
        # The kernel makes an address of its own some time after the link is up, which is no change of ours.
        while "inet6 fe80:" not in self.pod.ip("address", "show", "dev", name):
            threading.Event().wait(0.05)
        self.settle(self.pod)
        self.settle(self.node)

    def settle(self, namespace: Netns) -> None:
        """Wait until no address is tentative: the kernel's own ones come with duplicate detection."""
        while "tentative" in namespace.ip("address", "show"):
            threading.Event().wait(0.05)

    # -- the program ----------------------------------------------------------------------------------------

    @contextmanager
    def program(self, prefix: Sequence[str] = ()) -> Iterator[socket.socket]:
        """The network program for the pod's namespace, waiting for a request on the other end.

        prefix: what runs it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        descriptors = [theirs.fileno(), os.open(self.pod.path, os.O_RDONLY)]
        descriptors.append(os.open(self.record, os.O_RDWR | os.O_CREAT, 0o600))
        copies = [os.dup(fd) for fd in descriptors]  # so that no target is another's source below
        for fd in copies:
            os.set_inheritable(fd, True)
        shell = " ".join(
            f"{target}<&{source}" for target, source in zip((CHANNEL, NAMESPACE, RECORD), copies, strict=True)
        )
        argv = ["bash", "-c", f'exec "$@" {shell}', "bash", *prefix, *command()]
        process = subprocess.Popen(argv, pass_fds=copies, stderr=subprocess.PIPE, text=True)
        theirs.close()
        for fd in (*descriptors[1:], *copies):
            os.close(fd)
        try:
            with ours:
                ours.settimeout(30)
                yield ours
        finally:
            _, errors = process.communicate(timeout=30)
            assert not errors, errors

    def dump(self) -> Namespace:
        """What the program reads."""
        with self.program() as channel:
            return exchange.ask(channel, exchange.dump())

    def attach(self, model: str = "tcfilter", **options: Any) -> Attached:
        """Attach the pod's interfaces."""
        with self.program() as channel:
            return exchange.ask(channel, exchange.attach(model, **options))

    def attach_with(self, prefix: Sequence[str]) -> Attached:
        """Attach the pod's interfaces by a program that another one runs."""
        with self.program(prefix) as channel:
            return exchange.ask(channel, exchange.attach("tcfilter"))

    def detach(self) -> None:
        """Undo what was attached."""
        with self.program() as channel:
            exchange.ask(channel, exchange.detach())


class GuestStandIn:
    """A namespace in place of a guest's kernel: its devices are connected to a pod's taps, frame by frame."""

    def __init__(self, attached: Attached) -> None:
        self.namespace = Netns("guest")
        self._fds: list[int] = []
        self._stop_read, self._stop_write = os.pipe()
        self._threads: list[threading.Thread] = []
        for number, (attachment, queues) in enumerate(
            zip(attached.plan.attachments, attached.queues, strict=True)
        ):
            name = f"ens{number}"
            device = self.namespace.call_with_descriptor(partial(_device, name))
            self.namespace.ip("link", "set", name, "address", attachment.link.mac)
            self._fds += [device, *queues]
            thread = threading.Thread(target=self._pump, args=(device, queues))
            thread.start()
            self._threads.append(thread)

    def _pump(self, device: int, queues: Sequence[int]) -> None:
        waiter = select.poll()
        for fd in (device, *queues, self._stop_read):
            waiter.register(fd, select.POLLIN)
        while True:
            for fd, _ in waiter.poll():
                if fd == self._stop_read:
                    return
                with suppress(OSError):  # full, or still down
                    os.write(queues[0] if fd == device else device, os.read(fd, 1 << 17))

    def configure(self, network: GuestNetwork) -> None:
        """Do what the agent does with the runtime's requests, in their order."""

        def all_of_it() -> None:
            for interface in network.interfaces:
                agent.update_interface(interface)
            agent.add_neighbors(network.neighbours)
            agent.update_routes(network.routes)

        self.namespace.call(all_of_it)

    def lists(self) -> tuple[agent_pb2.Interfaces, agent_pb2.Routes]:
        """What the agent answers to ListInterfaces and ListRoutes."""
        return self.namespace.call(lambda: (agent.list_interfaces(), agent.list_routes()))

    def close(self) -> None:
        """Take the devices away, and the namespace."""
        os.close(self._stop_write)
        for thread in self._threads:
            thread.join()
        for fd in (*self._fds, self._stop_read):
            os.close(fd)
        self.namespace.close()


def _device(name: str) -> int:
    (fd,) = taps.open_tap(name, 1, header=True, new=True)
    return fd


def fail_at(bed: PodNetwork, model: str, change: int, instead: Callable[[], object] | None = None) -> bool:
    """Attach in this program's child, where that change of the kernel fails, or something else happens.

    Returns whether there was a change of that number: else all of it succeeded, and is undone.
    """

    def attach() -> bool:
        from kata_runtime.network import attachment, plan
        from kata_runtime.network.errors import NetworkError
        from kata_runtime.network.kernel import Kernel
        from kata_runtime.network.record import RecordFile

        left = iter(range(change))
        undoing = False

        def failing(method: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object) -> object:
                nonlocal undoing
                if next(left, None) is None and not undoing:
                    undoing = True  # which succeeds
                    if instead is not None:
                        instead()
                    raise NetworkError("as the test wishes")
                return method(*arguments)

            return call

        with Kernel() as kernel, bed.record.open("w+b") as file:
            for name in CHANGES:
                setattr(kernel, name, failing(getattr(kernel, name)))
            namespace = kernel.read()
            records = RecordFile(file.fileno())
            planned = plan.plan(namespace, model)
            try:
                attachment.attach(kernel, namespace, planned, attachment.Wanted(), records)
            except NetworkError as error:
                assert str(error) == "as the test wishes"
                assert records.load() is None
                return True
            undoing = True
            attachment.detach(kernel, records)
            return False

    return bed.pod.call(attach)


def attach_with_kernel(bed: PodNetwork, spoil: Callable[[Any], object], model: str = "tcfilter") -> str:
    """Attach in this program's child, with a Kernel that is spoilt before; returns the error's sentence."""

    def attach() -> str:
        from kata_runtime.network import attachment, plan
        from kata_runtime.network.errors import NetworkError
        from kata_runtime.network.kernel import Kernel
        from kata_runtime.network.record import RecordFile

        with Kernel() as kernel, bed.record.open("w+b") as file:
            namespace = kernel.read()
            spoil(kernel)
            records = RecordFile(file.fileno())
            planned = plan.plan(namespace, model)
            try:
                attachment.attach(kernel, namespace, planned, attachment.Wanted(), records)
            except NetworkError as error:
                assert records.load() is None
                return str(error)
        return ""

    return bed.pod.call(attach)


def attach_and_detach(bed: PodNetwork) -> list[str]:
    """Attach in this program's child, with ports forwarded, and take it away again; returns the warnings."""

    def attach() -> list[str]:
        from kata_runtime.network import attachment, plan
        from kata_runtime.network.kernel import Kernel
        from kata_runtime.network.record import RecordFile

        with Kernel() as kernel, bed.record.open("w+b") as file:
            namespace, records = kernel.read(), RecordFile(file.fileno())
            wanted = attachment.Wanted(forward=True)
            attached = attachment.attach(kernel, namespace, plan.plan(namespace, "tcfilter"), wanted, records)
            attached.close()
            attachment.detach(kernel, records)
            return attached.warnings

    return bed.pod.call(attach)


CHANGES = (
    *("set_mtu", "set_mac", "set_up", "add_macvtap", "drop_queue", "add_ingress", "judge", "redirect"),
    "delete_address",
)
