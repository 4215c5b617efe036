"""A kubelet whose pods are the files of a directory, and a node whose containerd makes them.

Without an API server there are no configMaps, secrets and RuntimeClasses: containerd's default handler is
the runtime that is tested. What a pod has become is what the kubelet says on its port. Source: Kubernetes'
"Create static Pods", and "Kubelet Configuration (v1beta1)" of its reference.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import containerd_versions
import cri_settings
import kubelet_stream
from busybox_image import write_image
from cri_node import BRIDGE, PAUSE, PLUGINS
from kata_runtime.broker.cgroups import hierarchies
from namespaced_node import NamespacedNode
from node import IMAGE
from patience import PATIENCE

Json = dict[str, Any]

NODE, NAMESPACE = "node", "default"
ADDRESS = "10.238.9.1"
READ_ONLY_PORT, PORT = 10255, 10250
DNS, DOMAIN = "10.238.7.54", "cluster.example"
ALLOWED_SYSCTLS = ["kernel.msg*"]
TUNED = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""Settings of the host that a kubelet changes when it starts."""
PLACES = (Path("/var/lib/kubelet/device-plugins"), Path("/var/lib/kubelet"), Path("/var/log/containers"))
"""Directories that a kubelet makes wherever its own is."""

REAPER = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done")
"""What a pod's first container runs: of a shared process namespace it is the init."""
GRACE = 2
"""Seconds that a pod's processes have to end, where the pod does not say."""
OVERHEAD = {"memory": "320Mi", "cpu": "250m"}
"""What deploy/runtimeclass.yaml says: an API server would put it into the pod."""
BUDGET = 6 * PATIENCE
"""Seconds for what a kubelet does with a pod: it takes a machine's start, and several of its rounds."""


class UnmetError(Exception):
    """A pod is not what its manifest asks for; the message says what of it."""


def expect(what: str, found: object, wanted: object) -> None:
    """Raise UnmetError unless two values are the same."""
    if found != wanted:
        raise UnmetError(f"{what}: {found!r}, wanted {wanted!r}")


def container(name: str, script: str, **fields: object) -> Json:
    """A container of a manifest that runs a script of its shell. fields: further ones of it."""
    command = ["sh", "-c", script]
    return {"name": name, "image": IMAGE, "imagePullPolicy": "Never", "command": command, **fields}


def events(log: str, pod: str) -> list[str]:
    """What a kubelet's log in JSON tells of a pod, as `kubectl describe` shows it."""
    found = []
    for line in log.splitlines():
        with suppress(json.JSONDecodeError):
            entry = json.loads(line)
            if entry.get("msg") == "Event occurred" and entry["object"].get("name") == pod:
                found.append(f"{entry['reason']}: {entry['message']}")
    return found


class Kubelet:
    """A kubelet. files: a directory for volumes of the host. runtime: "kata" or "runc"."""

    def __init__(self, directory: Path, image: Path, program: str, runtime: str) -> None:
        """directory: for files. image: directory of the guest image. program: the kubelet's path."""
        self.runtime = runtime
        self._program = program
        self._directory = directory
        self.files, self._manifests = directory / "files", directory / "manifests"
        self._logs, self._addresses = directory / "logs", directory / "addresses"
        for made in (self.files, self._manifests, self._logs, directory / "net.d"):
            made.mkdir()
        self.bed = NamespacedNode(
            directory, image, cri=self._cri_settings(), version=containerd_versions.SECOND
        )
        self.node = self.bed.node
        self.root = self.node.root / "kubelet"  # short, because it has sockets
        self.root.mkdir()
        self.groups = [Path(one.mountpoint, self.node.root.name) for one in hierarchies()]
        self._tuned = {name: Path("/proc/sys", name).read_text() for name in TUNED}
        self._made = [one for one in PLACES if not one.exists()]
        self._namespaces: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None

    def _cri_settings(self) -> str:
        ipam = {**BRIDGE["ipam"], "dataDir": str(self._addresses)}  # type: ignore[dict-item]
        plugins = [{**BRIDGE, "ipam": ipam}, {"type": "portmap", "capabilities": {"portMappings": True}}]
        network = {"cniVersion": "1.0.0", "name": "kubelet", "plugins": plugins}
        networks = self._directory / "net.d"
        (networks / "kubelet.conflist").write_text(json.dumps(network))
        runtimes = [cri_settings.runtime("kata"), cri_settings.runtime("runc", "io.containerd.runc.v2")]
        return cri_settings.plugin(
            runtimes, default=self.runtime, pause=PAUSE, plugins=PLUGINS, networks=networks
        )

    def start(self) -> None:
        """Start it, and wait until it answers. Raises UnmetError."""
        for group in self.groups:
            _make_group(group)
        self.bed.namespace.ip("address", "add", f"{ADDRESS}/32", "dev", "lo")
        archive = self._directory / "pause.tar"
        write_image(archive, PAUSE, REAPER)
        self.node.ctr("image", "import", archive)
        configuration = self._directory / "kubelet.json"
        configuration.write_text(json.dumps(self._configuration()))
        paths = ("--config", configuration, "--root-dir", self.root, "--cert-dir", self.root / "pki")
        options = (*paths, "--node-ip", ADDRESS, "--hostname-override", NODE)
        argv = [*self.bed.inside, self._program, *map(str, options)]
        with (self._directory / "kubelet.log").open("wb") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._process = process
        self.until(lambda: self._answers() or process.poll() is not None, "the kubelet answers")
        if process.poll() is not None:
            raise UnmetError(f"the kubelet has ended: {self.log()[-2000:]}")

    def _configuration(self) -> Json:
        names = self._directory / "resolv.conf"
        names.write_text(f"nameserver {DNS}\n")
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "logging": {"format": "json", "verbosity": 3},  # events are logged from 3 on
            "staticPodPath": str(self._manifests),
            "fileCheckFrequency": "5s",
            "syncFrequency": "5s",
            "containerRuntimeEndpoint": f"unix://{self.node.containerd.address}",
            "runtimeRequestTimeout": "10m",
            "podLogsDir": str(self._logs),
            "volumePluginDir": str(self.root / "plugins"),
            "resolvConf": str(names),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.node.root.name}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "enforceNodeAllocatable": [],
            "makeIPTablesUtilChains": False,
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "1Mi"},
            "localStorageCapacityIsolation": False,
            "allowedUnsafeSysctls": ALLOWED_SYSCTLS,
            "address": ADDRESS,
            "readOnlyPort": READ_ONLY_PORT,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
        }

    def _answers(self) -> bool:
        with suppress(ConnectionError):
            return bool(self.say("pods"))
        return False

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition holds. Raises UnmetError when it does not within BUDGET."""
        deadline = time.monotonic() + BUDGET
        while not condition():
            if time.monotonic() > deadline:
                raise UnmetError(f"not within {BUDGET:g} s: {what}")
            time.sleep(0.5)  # a question each time, to a kubelet that has other things to do

    # -- asking --------------------------------------------------------------------------------------------

    def log(self) -> str:
        """What the kubelet has logged."""
        return (self._directory / "kubelet.log").read_text(errors="replace")

    def say(self, path: str) -> Json:
        """What it says on its read-only port."""
        found: Json = json.loads(self.fetch(ADDRESS, READ_ONLY_PORT, path))
        return found

    def fetch(self, address: str, port: int, path: str) -> str:
        """A page from a port, as the node reaches it."""
        return self._ask(address, port, "GET", path)

    def run(self, pod: str, name: str, command: str) -> str:
        """Run a command in a container, as a probe does: words, apart by blanks. Returns what it prints."""
        return self._ask(ADDRESS, PORT, "POST", f"run/{NAMESPACE}/{pod}/{name}?cmd={quote(command)}")

    def exec(self, pod: str, name: str, argv: Sequence[str], given: bytes = b"") -> kubelet_stream.Done:
        """Run a command in a container as `kubectl exec --stdin` does. given: its input."""
        words = [("command", word) for word in argv]
        query = urlencode([*words, ("input", "1"), ("output", "1"), ("error", "1")])
        with self._connected(ADDRESS, PORT) as connection:
            return kubelet_stream.run(connection, f"/exec/{NAMESPACE}/{pod}/{name}?{query}", given)

    def _connected(self, address: str, port: int) -> socket.socket:
        descriptor = self.bed.namespace.call_with_descriptor(
            lambda: socket.create_connection((address, port), BUDGET).detach()
        )
        connection = socket.socket(fileno=descriptor)
        connection.settimeout(BUDGET)
        if port != PORT:
            return connection
        # With a certificate that the kubelet has made itself.
        return ssl._create_unverified_context().wrap_socket(connection)

    def _ask(self, address: str, port: int, method: str, path: str) -> str:
        connection = http.client.HTTPConnection(address, port)
        connection.sock = self._connected(address, port)
        try:
            connection.request(method, f"/{path}")
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        expect(f"{method} {path}, with {text[:300]!r}", answer.status, 200)
        return text

    @contextmanager
    def pod(self, name: str, *containers: Json, **spec: Any) -> Iterator[Pod]:
        """A pod from its coming to its own end. spec: further fields of its PodSpec."""
        every = {"terminationGracePeriodSeconds": GRACE, "enableServiceLinks": False, **spec}
        if self.runtime == "kata":
            every["overhead"] = OVERHEAD
        metadata = {"name": name, "namespace": NAMESPACE, "labels": {"app": name}}
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
        path = self._manifests / f"{name}.json"
        # The kubelet reads a file as soon as it is there.
        complete = self._directory / path.name
        complete.write_text(json.dumps({**manifest, "spec": {**every, "containers": containers}}))
        complete.rename(path)
        pod = Pod(self, name)
        try:
            yield pod
        finally:
            pod.status()  # to know its id
            links = self.bed.namespace.ip("-d", "link", "show")
            self._namespaces.update(re.findall(r"link-netns (\S+)", links))
            path.unlink()
            self.until(pod.has_gone, f"the end of {name}")

    def lines(self, pod: str, name: str) -> list[str]:
        """The lines that all runs of a container have written, as the CRI logs them."""
        files = sorted(self._logs.glob(f"{NAMESPACE}_{pod}_*/{name}/*.log"), key=lambda path: int(path.stem))
        return [line.split(" ", 3)[3] for path in files for line in path.read_text().splitlines()]

    # -- the end -------------------------------------------------------------------------------------------

    def left(self) -> list[str]:
        """What there is still of pods: on containerd, on the node, in its network."""
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        found = [f"task {one}" for one in self.node.ctr("task", "ls", "-q").stdout.split()]
        found += [f"sandbox {one}" for one in self.node.sandboxes()]
        found += [f"mount {one}" for one in mounts if one.startswith(f"{self.root}/pods/")]
        found += [f"volumes {one}" for one in self.root.glob("pods/*")]
        found += [f"cgroup {one}" for group in self.groups for one in group.glob("**/pod*")]
        found += [f"link {one}" for one in re.findall(r"veth\w+", self.bed.namespace.ip("link", "show"))]
        found += [f"namespace {one}" for one in self._namespaces if Path("/run/netns", one).exists()]
        found += [f"address {one.name}" for one in self._addresses.glob("kubelet/[0-9]*.*")]
        return found

    def close(self) -> None:
        """End it and containerd, and put back what it has changed of the host."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
        for name, value in self._tuned.items():
            Path("/proc/sys", name).write_text(value)
        self.bed.close()
        for group in filter(Path.exists, self.groups):
            _remove_group(group)
        for link in PLACES[-1].glob("*.log"):
            if link.is_symlink() and str(link.readlink()).startswith(str(self._logs)):
                link.unlink()
        for place in self._made:
            _remove_directory(place)


class Pod:
    """A pod by its name in the manifest. name: as the kubelet calls it."""

    def __init__(self, kubelet: Kubelet, name: str) -> None:
        self._kubelet = kubelet
        self.name = f"{name}-{NODE}"
        self.uid = ""  # in the names of its cgroups and volumes, once the kubelet has it

    def status(self) -> Json:
        """Its PodStatus."""
        listed: list[Json] = self._kubelet.say("pods").get("items") or []
        found = next((one for one in listed if one["metadata"]["name"] == self.name), None)
        if found is None:
            return {}
        self.uid = found["metadata"]["uid"]
        return dict(found.get("status", {}))

    def has_gone(self) -> bool:
        """Whether the kubelet has let go of it, and of its directory, once its file has gone."""
        return not self.status() and not (self.uid and (self._kubelet.root / "pods" / self.uid).exists())

    def state(self, name: str) -> Json:
        """The status of a container, of whichever kind; empty while it has none."""
        status = self.status()
        listed = [*status.get("containerStatuses", ()), *status.get("initContainerStatuses", ())]
        return next((one for one in listed if one["name"] == name), {})

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for what a kubelet does with a pod. Raises UnmetError, with the pod's last events."""
        try:
            self._kubelet.until(condition, what)
        except UnmetError as error:
            raise UnmetError(f"{error}; {'; '.join(self.events()[-3:])}") from None

    def events(self) -> list[str]:
        """What the kubelet tells of it."""
        return events(self._kubelet.log(), self.name)

    def until_ready(self) -> None:
        """Wait until its condition Ready is true."""
        self.until(self.is_ready, f"{self.name} is ready")

    def is_ready(self) -> bool:
        """Whether its condition Ready is true."""
        conditions = self.status().get("conditions", ())
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def until_ended(self, phase: str = "Succeeded") -> None:
        """Wait until all of its containers have ended for good, in this phase."""
        self.until(lambda: self.status().get("phase") in ("Succeeded", "Failed"), f"{self.name} has ended")
        expect(f"the phase of {self.name}", self.status()["phase"], phase)

    def ended(self, name: str) -> Json:
        """How the last run of a container that has ended went; empty while none has."""
        state = self.state(name)
        now, before = state.get("state", {}), state.get("lastState", {})
        return dict(now.get("terminated") or before.get("terminated") or {})

    def lines(self, name: str) -> list[str]:
        """What a container has written."""
        return self._kubelet.lines(self.name, name)

    def named(self, name: str) -> dict[str, str]:
        """What a container has written: lines of a name and what follows it."""
        return {head: rest for head, _, rest in (line.partition(" ") for line in self.lines(name))}

    def run(self, name: str, command: str) -> str:
        """Run a command in a container; see `Kubelet.run`."""
        return self._kubelet.run(self.name, name, command).strip()

    def exec(self, name: str, *argv: str, given: bytes = b"") -> tuple[int, bytes]:
        """Run a command in a container, see `Kubelet.exec`; returns its status and what it wrote."""
        done = self._kubelet.exec(self.name, name, argv, given)
        return done.status, done.output


def _make_group(group: Path) -> None:
    group.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (group / name).exists() and not (group / name).read_text().strip():
            (group / name).write_text((group.parent / name).read_text())


def _remove_group(group: Path) -> None:
    for below in sorted(group.glob("**/"), reverse=True):
        with suppress(FileNotFoundError):
            below.rmdir()


def _remove_directory(place: Path) -> None:
    """Remove one that has nothing, but for files that nobody has open any more."""
    for file in place.glob("*"):
        if not file.is_dir():
            file.unlink()
    with suppress(OSError):
        place.rmdir()
