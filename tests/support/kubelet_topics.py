"""What is asked of pods of a kubelet, by topic: the topics of upstream's tests on a cluster.

Each topic is one function, which raises UnmetError; its files are those of upstream that ask the same.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubelet import ADDRESS, DNS, DOMAIN, OVERHEAD, READ_ONLY_PORT, Json, Kubelet, container, expect
from oci_archive import add_file, write_archive
from patience import PATIENCE

MIB = 1 << 20
WAIT = "exec sleep 3600"
GROUP = "d=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); test -e $d/cpu.stat || d=/sys/fs/cgroup"
"""The container's own cgroup, as its processes see it."""
DENIES_MKDIR = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
}


@dataclass(frozen=True, slots=True)
class Topic:
    """check: asks. files: upstream's, without "k8s-" and ".bats". machine: it is asked of machines alone."""

    name: str
    files: tuple[str, ...]
    machine: bool
    check: Callable[[Kubelet], None]


TOPICS: list[Topic] = []


def topic(
    name: str, *files: str, machine: bool = False
) -> Callable[[Callable[[Kubelet], None]], Callable[[Kubelet], None]]:
    """Have a function in the list of topics. machine: runc, for comparison, is not asked."""

    def put(check: Callable[[Kubelet], None]) -> Callable[[Kubelet], None]:
        TOPICS.append(Topic(name, files, machine, check))
        return check

    return put


def _mount(volume: str, path: str, **fields: object) -> Json:
    return {"name": volume, "mountPath": path, **fields}


def _host_path(name: str, path: Path | str, kind: str = "") -> Json:
    return {"name": name, "hostPath": {"path": str(path), "type": kind}}


def _field(path: str) -> Json:
    return {"fieldRef": {"fieldPath": path}}


def _limits(**given: str) -> Json:
    return {"limits": given, "requests": given}


NAMES = """
echo fixed $FIXED; echo name $NAME; echo address $ADDRESS; echo node $NODE; echo limit $LIMIT
echo host $(hostname); echo has $(ip -4 -o address show eth0 | awk '{print $4}')
echo dns $(cat /etc/resolv.conf); echo hosts $(grep -c names-of-all /etc/hosts)
"""


@topic("names, variables, DNS", "env", "hostname", "custom-dns")
def _names(kubelet: Kubelet) -> None:
    variables = [
        {"name": "FIXED", "value": "a b"},
        {"name": "NAME", "valueFrom": _field("metadata.labels['app']")},
        {"name": "ADDRESS", "valueFrom": _field("status.podIP")},
        {"name": "NODE", "valueFrom": _field("status.hostIP")},
        {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
    ]
    one = container("one", NAMES, env=variables, resources=_limits(memory="96Mi"))
    spec = {
        "hostname": "web",
        "dnsPolicy": "None",
        "dnsConfig": {
            "nameservers": [DNS],
            "searches": [DOMAIN],
            "options": [{"name": "ndots", "value": "4"}],
        },
        "hostAliases": [{"ip": "10.1.2.3", "hostnames": ["names-of-all"]}],
        "restartPolicy": "Never",
    }
    with kubelet.pod("names", one, **spec) as pod:
        pod.until_ended()
        address = pod.status()["podIP"]
        found = pod.named("one")
        expect("the address of eth0", found.pop("has").partition("/")[0], address)
        wanted = {
            "fixed": "a b",
            "name": "names",
            "address": address,
            "node": ADDRESS,
            "limit": str(96 * MIB),
            "host": "web",
            "dns": f"search {DOMAIN} nameserver {DNS} options ndots:4",
            "hosts": "1",
        }
        expect("what it sees", found, wanted)


VOLUMES = """
echo init $(cat /disk/from-init); echo group $(stat -c %g /disk) $(stat -c %g /memory)
echo memory $(sed -n 's/^[a-z]* \\/memory \\([a-z]*\\) .*size=\\([0-9]*k\\).*/\\1 \\2/p' /proc/mounts)
echo directory $(cat /directory/file); echo file $(cat /file); echo sub $(cat /sub/file)
echo label $(cat /settings/label); echo below $(cat /settings/below/name)
echo expanded > /expanded/x; echo from-one > /disk/from-one; echo from-one > /memory/from-one
touch /directory/new; touch /read-only/x 2>/dev/null || echo read-only yes
printf 'the last word' > /dev/termination-log
"""
WAIT_FOR_FILES = """
for file in /disk/from-one /memory/from-one; do until test -e $file; do sleep 1; done; cat $file; done
"""


def _volumes_of(directory: Path, file: Path) -> list[Json]:
    label = {"items": [{"path": "label", **_field("metadata.labels['app']")}]}
    name = {"items": [{"path": "name", **_field("metadata.name")}]}
    return [
        {"name": "disk", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
        _host_path("directory", directory, "Directory"),
        _host_path("file", file, "File"),
        {"name": "settings", "downwardAPI": label},
        {"name": "below", "downwardAPI": name},
    ]


@topic("volumes", "empty-dirs", "file-volume", "shared-volume", "termination-log", "volume")
def _volumes(kubelet: Kubelet) -> None:
    directory, single = kubelet.files / "directory", kubelet.files / "single"
    (directory / "sub").mkdir(parents=True)
    for path in (directory / "file", directory / "sub/file", single):
        path.write_text(f"{path.name} of the host")
    shared = [_mount("disk", "/disk"), _mount("memory", "/memory")]
    mounts = [
        *shared,
        _mount("directory", "/directory"),
        _mount("directory", "/sub", subPath="sub"),
        _mount("directory", "/expanded", subPathExpr="$(POD)"),
        _mount("directory", "/read-only", readOnly=True),
        _mount("file", "/file", readOnly=True),
        _mount("settings", "/settings"),
        _mount("below", "/settings/below"),
    ]
    pod_name = {"name": "POD", "valueFrom": _field("metadata.labels['app']")}
    one = container("one", VOLUMES, volumeMounts=mounts, env=[pod_name])
    two = container("two", WAIT_FOR_FILES, volumeMounts=shared)
    spec = {
        "volumes": _volumes_of(directory, single),
        "initContainers": [container("first", "echo written > /disk/from-init", volumeMounts=shared)],
        "securityContext": {"fsGroup": 2000},
        "restartPolicy": "Never",
    }
    with kubelet.pod("volumes", one, two, **spec) as pod:
        pod.until_ended()
        wanted = {
            "init": "written",
            "group": "2000 2000",
            "memory": "tmpfs 16384k",
            "directory": "file of the host",
            "sub": "file of the host",
            "file": "single of the host",
            "label": "volumes",
            "below": pod.name,
            "read-only": "yes",
        }
        expect("what it sees", pod.named("one"), wanted)
        expect("what is shared", pod.lines("two"), ["from-one", "from-one"])
        expect("its last word", pod.ended("one")["message"], "the last word")
    expect("a file that it made", (directory / "new").exists(), True)
    expect("one in a subPath of its name", (directory / "volumes/x").read_text(), "expanded\n")


SERVER = """
import os, socket
place = "/shared/socket"
with socket.socket(socket.AF_UNIX) as server:
    server.bind(place)
    server.listen()
    server.accept()[0].sendall(b"by a socket")
"""
CLIENT = """
import os, socket, time
while not os.path.exists("/shared/socket"):
    time.sleep(1)
with socket.socket(socket.AF_UNIX) as client:
    while client.connect_ex("/shared/socket"):
        time.sleep(1)
    print(client.recv(99).decode())
"""


def _programs() -> tuple[list[Json], list[Json]]:
    """Volumes and mounts by which a container has the host's programs."""
    places = {name: f"/{name}" for name in ("usr", "lib", "lib64")}
    volumes = [_host_path(name, Path(path).resolve()) for name, path in places.items()]
    return volumes, [_mount(name, path, readOnly=True) for name, path in places.items()]


@topic("a Unix socket in a shared volume", "uds-shared-volume")
def _socket(kubelet: Kubelet) -> None:
    volumes, mounts = _programs()
    mounts.append(_mount("shared", "/shared"))
    containers = [
        container(name, f"exec /usr/bin/python3 -c '{program}'", volumeMounts=mounts)
        for name, program in (("server", SERVER), ("client", CLIENT))
    ]
    volumes.append({"name": "shared", "emptyDir": {}})
    with kubelet.pod("socket", *containers, volumes=volumes, restartPolicy="Never") as pod:
        pod.until_ended()
        expect("what the client reads", pod.lines("client"), ["by a socket"])


SECURITY = """
echo ids $(id -u) $(id -g) $(id -G); echo root $(touch /x 2>/dev/null && echo writable)
echo made $(mkdir /tmp/made 2>/dev/null && echo yes); echo sysctl $(cat /proc/sys/kernel/shm_rmid_forced)
echo masked $(grep -Ec ' /proc/(kcore|keys|timer_list) ' /proc/mounts)
echo msgmax $(cat /proc/sys/kernel/msgmax)
echo mounts $(mount -t tmpfs none /mnt 2>/dev/null && echo yes)
for key in CapPrm NoNewPrivs Seccomp; do echo $key $(sed -n "s/^$key:\\t//p" /proc/self/status); done
"""
DEFAULT_CAPABILITIES = 0xA80425FB


def _secured(name: str, **context: object) -> Json:
    return container(name, SECURITY, securityContext=context)


@topic("security contexts, sysctls", "caps", "privileged", "seccomp", "security-context", "sysctls")
def _security(kubelet: Kubelet) -> None:
    profiles = kubelet.root / "seccomp"
    profiles.mkdir(exist_ok=True)
    (profiles / "no-mkdir.json").write_text(json.dumps(DENIES_MKDIR))
    local = {"type": "Localhost", "localhostProfile": "no-mkdir.json"}
    only = {"drop": ["ALL"], "add": ["CHOWN"]}
    containers = [
        _secured("user", runAsUser=1001, runAsGroup=3000, allowPrivilegeEscalation=False),
        _secured("capabilities", capabilities=only, readOnlyRootFilesystem=True),
        _secured("default", seccompProfile={"type": "RuntimeDefault"}),
        _secured("denied", seccompProfile=local),
        _secured("privileged", privileged=True),
    ]
    sysctls = [{"name": "kernel.shm_rmid_forced", "value": "1"}, {"name": "kernel.msgmax", "value": "4096"}]
    context = {"sysctls": sysctls, "supplementalGroups": [4000]}
    with kubelet.pod("secured", *containers, securityContext=context, restartPolicy="Never") as pod:
        pod.until_ended()
        found = {one["name"]: pod.named(one["name"]) for one in containers}
    expect("the user's ids", found["user"]["ids"], "1001 3000 3000 4000")
    expect("the user's no_new_privs", found["user"]["NoNewPrivs"], "1")
    expect("capabilities by default", int(found["default"]["CapPrm"], 16), DEFAULT_CAPABILITIES)
    expect("capabilities that are given", int(found["capabilities"]["CapPrm"], 16), 1)
    expect("the read-only root", found["capabilities"]["root"], "")
    expect("the mode of seccomp", found["default"]["Seccomp"], "2")
    expect("who may make directories", _who(found, "made", "yes"), {"user", "default", "privileged"})
    expect("who may mount", _who(found, "mounts", "yes"), {"privileged"})
    expect("whose /proc is not masked", _who(found, "masked", "0"), {"privileged"})
    for name, one in found.items():
        expect(f"the sysctls of {name}", (one["sysctl"], one["msgmax"]), ("1", "4096"))


def _who(found: dict[str, dict[str, str]], member: str, value: str) -> set[str]:
    return {name for name, one in found.items() if one[member] == value}


@topic("process namespaces", "pid-ns", "kill-all-process-in-container")
def _processes(kubelet: Kubelet) -> None:
    first = container("first", "sleep 3600 & tail -f /dev/null & sleep 1")
    containers = [container("one", "exec sleep 3601"), container("two", "exec sleep 3602")]
    with kubelet.pod("together", *containers, initContainers=[first], shareProcessNamespace=True) as pod:
        pod.until_ready()
        shown = [pod.run(name, "ps -o pid,args") for name in ("one", "two")]
        for text in shown:
            expect("who sees both", ["sleep 3601" in text, "sleep 3602" in text], [True, True])
            expect("processes of the init container", "tail" in text, False)


@topic("probes by exec, HTTP and TCP", "liveness-probes")
def _probes(kubelet: Kubelet) -> None:
    often: Json = {"periodSeconds": 2, "timeoutSeconds": int(PATIENCE), "failureThreshold": 2}
    serve = "mkdir /w; touch /w/ready; httpd -p 8080 -h /w; "
    http = {"httpGet": {"path": "/ready", "port": 8080}, **often}
    tcp = {"tcpSocket": {"port": 8080}, **often, "failureThreshold": 60}
    alive = {"exec": {"command": ["test", "-e", "/alive"]}, **often, "initialDelaySeconds": 5}
    containers = [
        container("ready", serve + WAIT, readinessProbe=http, startupProbe=tcp),
        container("alive", "touch /alive; " + WAIT, livenessProbe=alive),
    ]
    with kubelet.pod("probes", *containers) as pod:
        pod.until_ready()
        expect("started", pod.state("ready")["started"], True)
        pod.run("ready", "rm /w/ready")
        pod.until(lambda: not pod.is_ready(), "the readiness probe fails")
        pod.run("ready", "touch /w/ready")
        pod.until_ready()
        expect("restarts before", pod.state("alive")["restartCount"], 0)
        pod.run("alive", "rm /alive")
        pod.until(lambda: pod.state("alive")["restartCount"] == 1, "the liveness probe's restart")
        expect("how it ended", pod.ended("alive")["exitCode"], 137)
        expect("restarts of the other", pod.state("ready")["restartCount"], 0)
        pod.until_ready()
        failed = [one for one in pod.events() if one.startswith("Unhealthy: Liveness probe failed")]
        expect("whether an event tells of it", bool(failed), True)


COUNT = """
n=$(cat /count/$NAME 2>/dev/null || echo 0); n=$((n+1)); echo $n > /count/$NAME
echo run $n; test $n -ge $UNTIL
"""


@topic("restarts, ends, statuses", "job")
def _restarts(kubelet: Kubelet) -> None:
    containers = [
        container(
            name,
            COUNT,
            env=[{"name": "NAME", "value": name}, {"name": "UNTIL", "value": str(until)}],
            volumeMounts=[_mount("count", "/count")],
            terminationMessagePolicy="FallbackToLogsOnError",
        )
        for name, until in (("once", 1), ("thrice", 3))
    ]
    volumes = [{"name": "count", "emptyDir": {}}]
    with kubelet.pod("job", *containers, volumes=volumes, restartPolicy="OnFailure") as pod:
        pod.until(lambda: pod.ended("thrice").get("exitCode"), "its first end")
        ended = pod.ended("thrice")
        last = pod.lines("thrice")[-1]
        expect(
            "how it failed",
            (ended["exitCode"], ended["reason"], ended["message"]),
            (1, "Error", f"{last}\n"),
        )
        pod.until_ended()
        for name, runs in (("once", 1), ("thrice", 3)):
            expect(f"restarts of {name}", pod.state(name)["restartCount"], runs - 1)
            expect(f"the end of {name}", pod.ended(name)["reason"], "Completed")
            expect(f"the last line of {name}", pod.lines(name)[-1], f"run {runs}")
        back_off = [one for one in pod.events() if one.startswith("BackOff: Back-off restarting")]
        expect("whether an event tells of the back-off", bool(back_off), True)


@topic("memory that is too much, and that is not", "memory", "oom")
def _memory(kubelet: Kubelet) -> None:
    eats = "dd if=/dev/zero of=/dev/null bs=200M count=1"
    containers = [
        container("eats", eats, resources=_limits(memory="64Mi")),
        container("fits", eats.replace("200M", "16M"), resources=_limits(memory="64Mi")),
    ]
    with kubelet.pod("memory", *containers, restartPolicy="Never") as pod:
        pod.until_ended("Failed")
        ended = pod.ended("eats")
        expect("how it ended", (ended["exitCode"], ended["reason"]), (137, "OOMKilled"))
        expect("how the other ended", pod.ended("fits")["reason"], "Completed")


SIZES = f"""
{GROUP}; echo processors $(grep -c ^processor /proc/cpuinfo); echo quota $(cat $d/cpu.max)
echo weight $(cat $d/cpu.weight); echo memory $(cat $d/memory.max); echo swap $(cat $d/memory.swap.max)
{WAIT}
"""


@topic(
    "limits are the machine's, its cgroup's and the containers'",
    "cpu-ns",
    "number-cpus",
    "qos-pods",
    "sandbox-cgroup-placement",
    "sandbox-vcpus-allocation",
    machine=True,
)
def _sizes(kubelet: Kubelet) -> None:
    containers = [
        container("half", SIZES, resources=_limits(cpu="500m", memory="96Mi")),
        container("more", SIZES, resources=_limits(cpu="700m", memory="64Mi")),
    ]
    with kubelet.pod("sized", *containers) as pod:
        pod.until_ready()
        expect("its class", pod.status()["qosClass"], "Guaranteed")
        # The weights are those of cgroups version 2 for 512 and 716 shares.
        for name, quota, weight, memory in (("half", 50000, 20, 96), ("more", 70000, 28, 64)):
            wanted = {
                "processors": "2",
                "quota": f"{quota} 100000",
                "weight": str(weight),
                "memory": str(memory * MIB),
                "swap": "0",
            }
            pod.until(lambda: "swap" in pod.named(name), f"what {name} says")  # noqa: B023
            expect(f"the limits of {name}", pod.named(name), wanted)
        (sandbox,) = kubelet.node.sandboxes()
        below = f"/{kubelet.node.root.name}/kubepods/pod{pod.uid}/"
        outside = [
            role
            for role, pid in kubelet.node.pids(sandbox).items()
            if f":memory:{below}" not in Path(f"/proc/{pid}/cgroup").read_text()
        ]
        expect("which processes are outside of the pod's cgroup", outside, [])
        group = next(one for one in kubelet.groups if (one / "memory.limit_in_bytes").exists())
        limit = (group / f"kubepods/pod{pod.uid}/memory.limit_in_bytes").read_text()
        overhead = int(OVERHEAD["memory"].removesuffix("Mi"))
        expect("its limit, with the overhead", int(limit), (96 + 64 + overhead) * MIB)


@topic("connections", "nginx-connectivity", "parallel")
def _connections(kubelet: Kubelet) -> None:
    port = [{"containerPort": 80, "hostPort": 8090}]
    page = "mkdir /w; hostname > /w/index.html; exec httpd -f -h /w"
    with (
        kubelet.pod("server", container("one", page, ports=port)) as server,
        kubelet.pod("client", container("one", page)) as client,
    ):
        pods = (server, client)
        for pod in pods:
            pod.until_ready()
        for pod, other in (pods, pods[::-1]):
            address = pod.status()["podIP"]
            expect("the page for the node", kubelet.fetch(address, 80, "index.html").strip(), pod.name)
            found = other.run("one", f"wget -qO- http://{address}/index.html")
            expect("the page for the other pod", found, pod.name)
        published = kubelet.fetch("10.238.7.1", 8090, "index.html").strip()
        expect("the page by the node's port", published, server.name)


@topic("commands with input, output and status", "copy-file", "exec")
def _commands(kubelet: Kubelet) -> None:
    containers = [container(name, WAIT, env=[{"name": "NAME", "value": name}]) for name in ("one", "two")]
    with kubelet.pod("commands", *containers) as pod:
        pod.until_ready()
        expect("a status", pod.exec("one", "sh", given=b"echo said; exit 123\n"), (123, b"said\n"))
        for name in ("one", "two"):
            found = pod.exec(name, "sh", "-c", "echo $NAME; ps -o args | grep -c '[s]leep 3600'")
            expect(f"a variable of {name}, and its processes", found, (0, f"{name}\n1\n".encode()))
        # As `kubectl cp` does it: a file in, and out again. An input of this protocol has no end.
        data = bytes(range(256)) * 1024
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            add_file(archive, "file", data, 0o640)
        put = f"head -c {len(buffer.getvalue())} | tar -xmf - -C /tmp"
        status, said = pod.exec("one", "sh", "-c", put, given=buffer.getvalue())
        expect("a file in", (status, said), (0, b""))
        status, out = pod.exec("one", "tar", "-cf", "-", "-C", "/tmp", "file")
        with tarfile.open(fileobj=io.BytesIO(out)) as archive:
            member = archive.extractfile("file")
            content = b"" if member is None else member.read()
        expect("a file out, its status and whether it is the same", (status, content == data), (0, True))


@topic("handlers, SIGTERM and the end", "attach-handlers", "graceful-termination")
def _handlers(kubelet: Kubelet) -> None:
    told = kubelet.files / "told"
    told.mkdir()
    script = 'trap "echo SIGTERM >> /told/term" TERM; echo start > /told/term; while :; do sleep 0.2; done'
    lifecycle = {
        "postStart": {"exec": {"command": ["sh", "-c", "echo started > /message"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo stops > /told/stop"]}},
    }
    one = container("one", script, lifecycle=lifecycle, volumeMounts=[_mount("told", "/told")])
    volumes = [_host_path("told", told)]
    grace = int(PATIENCE / 3)
    with kubelet.pod("handled", one, volumes=volumes, terminationGracePeriodSeconds=grace) as pod:
        pod.until_ready()
        expect("what postStart left", pod.run("one", "cat /message"), "started")
        expect("what preStop leaves before", (told / "stop").exists(), False)
    expect("what preStop left", (told / "stop").read_text(), "stops\n")
    expect("signals before SIGKILL", (told / "term").read_text(), "start\nSIGTERM\n")


@topic("a sidecar, which starts first and ends last")
def _sidecar(kubelet: Kubelet) -> None:
    volumes, mounts = [{"name": "shared", "emptyDir": {}}], [_mount("shared", "/shared")]
    serves = "echo up > /shared/up; trap 'exit 0' TERM; while :; do sleep 0.2; done"
    probe = {"exec": {"command": ["test", "-e", "/shared/up"]}, "timeoutSeconds": int(PATIENCE)}
    helper = container("helper", serves, volumeMounts=mounts, restartPolicy="Always", startupProbe=probe)
    one = container("one", "cat /shared/up", volumeMounts=mounts)
    spec: dict[str, Any] = {"volumes": volumes, "initContainers": [helper], "restartPolicy": "Never"}
    with kubelet.pod("sidecar", one, **spec) as pod:
        pod.until_ended()
        expect("what the sidecar had left", pod.lines("one"), ["up"])
        pod.until(lambda: pod.ended("helper"), "the sidecar's end")
        expect("how it ended", pod.ended("helper")["exitCode"], 0)


TABLES = """
ip6tables() { xtables-nft-multi ip6tables "$@"; }
ip6tables -t nat -N MESH && ip6tables -t nat -A MESH -p tcp -j REDIRECT --to-ports 15001 &&
ip6tables -t nat -A OUTPUT -p tcp -m owner ! --uid-owner 1337 -j MESH &&
xtables-nft-multi ip6tables-save -t nat
"""


@topic("a mesh's rules, which a container makes", "ip6tables")
def _tables(kubelet: Kubelet) -> None:
    volumes, mounts = _programs()
    context = {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}}
    variables = [{"name": "PATH", "value": "/bin:/usr/sbin"}]
    one = container("one", TABLES, securityContext=context, volumeMounts=mounts, env=variables)
    with kubelet.pod("mesh", one, volumes=volumes, restartPolicy="Never") as pod:
        pod.until_ended()
        wanted = ["-A MESH -p tcp -j REDIRECT --to-ports 15001", "COMMIT"]
        expect("the rules", [one for one in wanted if one in pod.lines("one")], wanted)


KERNEL_LOG = """
echo number $(stat -c '%t,%T' /dev/kmsg)
echo system $(sed -n 's/.* \\/dev\\/kmsg .* - \\([a-z]*\\) .*/\\1/p' /proc/self/mountinfo)
echo said $(head -c 400 /dev/kmsg 2>&1)
"""


@topic("the kernel's log by its path", machine=True)
def _kernel_log(kubelet: Kubelet) -> None:
    """The guest's device, without a rule by which it may be read: as with runc, and not as upstream."""
    log = _mount("log", "/dev/kmsg", readOnly=True)
    one = container("one", KERNEL_LOG, volumeMounts=[log])
    volumes = [_host_path("log", "/dev/kmsg")]
    with kubelet.pod("log", one, volumes=volumes, restartPolicy="Never") as pod:
        pod.until_ended()
        refused = "head: /dev/kmsg: Operation not permitted"
        wanted = {"number": "1,b", "system": "devtmpfs", "said": refused}
        expect("the guest's log", pod.named("one"), wanted)


@topic("an image without layers", "empty-image")
def _no_layers(kubelet: Kubelet) -> None:
    name, archive = "localhost/nothing:1", kubelet.files / "nothing.tar"
    write_archive(archive, name, None, {"Cmd": ["sleep", "1"]})
    kubelet.node.ctr("image", "import", archive)
    one = {"name": "one", "image": name, "imagePullPolicy": "Never"}
    with kubelet.pod("nothing", one, restartPolicy="Never") as pod:
        pod.until_ended("Failed")
        message = pod.ended("one")["message"]
        if "sleep" not in message:
            expect("whether it names what is missing", message, "... sleep ...")


@topic("numbers of a pod, as kubectl top shows them")
def _numbers(kubelet: Kubelet) -> None:
    fills = container("fills", "dd if=/dev/zero of=/dev/shm/x bs=1M count=24 2>/dev/null; " + WAIT)
    with kubelet.pod("numbers", fills) as pod:
        pod.until_ready()

        def told(metric: str) -> float:
            """A number of the container, as a metrics server collects it."""
            line = f'{metric}{{container="fills",namespace="default",pod="{pod.name}"}} '
            page = kubelet.fetch(ADDRESS, READ_ONLY_PORT, "metrics/resource")
            found = [one.split()[1] for one in page.splitlines() if one.startswith(line)]
            return float(found[0]) if found else 0.0

        memory = "container_memory_working_set_bytes"
        pod.until(lambda: 24 * MIB < told(memory) < 64 * MIB, "its memory is told")
        expect("whether processor time is told", told("container_cpu_usage_seconds_total") > 0, True)


@topic("what is the host's is refused with a sentence", machine=True)
def _refused(kubelet: Kubelet) -> None:
    said = {
        "hostNetwork": "network",
        "hostPID": "processes",
        "hostIPC": "shared memory and message queues",
    }
    for asked, says in said.items():
        with kubelet.pod(asked.lower(), container("one", WAIT), **{asked: True}) as pod:
            pod.until(lambda: any(says in one for one in pod.events()), f"{asked} is refused")  # noqa: B023
            expect("whether it is ready", pod.is_ready(), False)
