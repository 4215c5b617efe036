"""A stand-in for Cloud Hypervisor and Firecracker: their API, threads and filters, without a machine.

It is run as a program (see `standin_program`), with the command line of the one it stands for. It puts real
seccomp filters (which forbid execve) on its threads as that one does, answers each request as its OpenAPI
description says, and misbehaves as its mode says:

    exit:3           ends at once with this status        hang          never listens
    silent           ends at once with status 1           deaf          listens and never answers
    unfiltered       puts on no filter, whatever it is asked for
    leaky            puts none on its virtual CPUs        late:PATH     answers PATH never
    thin             puts one there, where two are due    sealed        puts them on, also when asked not to
    PATH=400         refuses PATH with this status        half:PATH     hangs up in the middle of the answer
    garbage:PATH     answers something else               close:PATH    hangs up instead of answering
    crash:PATH       dies of SIGSEGV at PATH              text:PATH     answers no JSON
    toothless        its filters allow everything
    PATH=once        refuses PATH, or METHOD PATH, the first time
    escape:execve    its main thread makes this call, or "ptrace", or forks
    holds            its guest lets no device go
    reboot           tells that the guest resets          version:9.9   is of this version
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

PR_SET_NAME, PR_SET_NO_NEW_PRIVS = 15, 38
SYS_SECCOMP, SET_MODE_FILTER = 317, 1  # of x86_64
ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
# Load the call's number; execve is refused with EPERM.
FORBID_EXECVE = (
    struct.pack("=HBBI", 0x20, 0, 0, 0)
    + struct.pack("=HBBI", 0x15, 0, 1, 221 if os.uname().machine == "aarch64" else 59)
    + struct.pack("=HBBI", 0x06, 0, 0, 0x00050001)
    + ALLOW_ALL
)
VERSIONS = {"cloud-hypervisor": "54.0.0", "firecracker": "1.17.0"}
GREETING = b"hello from the guest\n"

libc = ctypes.CDLL(None, use_errno=True)


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def name_thread(name: str) -> None:
    """Set the calling thread's name."""
    libc.prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


class StandIn:
    """One run of the program. kind: which VMM. mode: how it misbehaves. record: where requests go."""

    def __init__(self, kind: str, mode: str, record: str) -> None:
        self.kind = kind
        self.mode = mode
        self.record = record
        self.option: dict[str, str] = {}
        self.socket = -1
        self.vsock = ""
        self.vcpus = 1
        self.unikernel: str | None = None
        self.files: list[Any] = []
        self.disks: list[Any] = []
        self.restored = False
        self.sealed = False
        self.wanted: queue.Queue[Callable[[], None]] = queue.Queue()

    def misbehaves(self, how: str, path: str) -> bool:
        """Whether its mode is to do this at this path."""
        return self.mode == f"{how}:{path}"

    def write(self, **entry: Any) -> None:
        """Write a line into the record."""
        with open(self.record, "a") as file:
            file.write(json.dumps(entry) + "\n")

    def filter(self) -> None:
        """Put one more filter on the calling thread, where it was asked for."""
        if self.sealed and self.mode != "unfiltered":
            libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            code = ALLOW_ALL if self.mode == "toothless" else FORBID_EXECVE
            program = Program(len(code) // 8, code)
            if libc.syscall(SYS_SECCOMP, SET_MODE_FILTER, 0, ctypes.byref(program)):
                raise OSError(ctypes.get_errno(), "seccomp")

    def thread(self, name: str, filters: int, work: Any = None) -> None:
        """Start a thread, and return when it is under so many filters."""
        ready = threading.Event()

        def body() -> None:
            name_thread(name)
            for _ in range(filters):
                self.filter()
            ready.set()
            if work is None:
                threading.Event().wait()
            else:
                work()

        threading.Thread(target=body, daemon=True).start()
        ready.wait()

    def vcpu(self, name: str, filters: int) -> None:
        """Start a virtual CPU's thread from the main one, which is under no filter that it would inherit."""
        self.wanted.put(lambda: self.thread(name, filters))
        self.wanted.join()

    # -- the machine ---------------------------------------------------------------------------------------

    def console(self, data: bytes) -> None:
        """Write to the guest's console."""
        number = 4 if self.kind == "cloud-hypervisor" else 1
        os.write(number, data)

    def event(self, source: str, event: str, **properties: str) -> None:
        """Tell an event, as Cloud Hypervisor does."""
        if self.kind == "cloud-hypervisor":
            document = {
                "timestamp": {"secs": 0, "nanos": 1},
                "source": source,
                "event": event,
                "properties": properties or None,
            }
            os.write(5, json.dumps(document, indent=2).encode() + b"\n\n")

    def boot(self) -> None:
        """Start the virtual CPUs, the way to the guest, and its console."""
        self.start_vcpus()
        if self.unikernel is not None:
            self.run_unikernel(self.unikernel)
            return
        self.serve_guest()
        self.console(GREETING)
        self.event("vm", "booted")

    def start_vcpus(self) -> None:
        """Start the virtual CPUs, as booted or as restored."""
        for shared in self.files:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(shared["socket"])
            self.files_connection = connection
        for number in range(self.vcpus):
            usual = 2 if self.kind == "cloud-hypervisor" else 1
            name = "vcpu%d" if self.kind == "cloud-hypervisor" else "fc_vcpu %d"
            self.vcpu(name % number, {"leaky": 0, "thin": 1}.get(self.mode, usual))
        if self.kind == "firecracker":
            self.wanted.put(self.filter)  # and the answer does not wait for it

    def save(self, path: str) -> None:
        """Write what a saved machine needs, in the form of vm.create."""
        saved = {
            "vsock": {"socket": self.vsock},
            "cpus": {"boot_vcpus": self.vcpus},
            "fs": self.files or None,
            "disks": self.disks or None,
        }
        with open(path, "x") as file:
            json.dump(saved, file)

    def restore(self, path: str) -> None:
        """Take a saved machine up; it waits to be resumed."""
        with open(path) as file:
            saved = json.load(file)
        self.write(restored=saved)
        self.describe(saved)
        self.start_vcpus()
        self.restored = True

    def describe(self, body: Any) -> None:
        """Take in what a machine is."""
        self.vsock, self.vcpus = body["vsock"]["socket"], body["cpus"]["boot_vcpus"]
        self.files, self.disks = body.get("fs") or [], body.get("disks") or []

    def resume(self) -> None:
        """Let a restored machine go on."""
        if self.restored:
            self.restored = False
            self.serve_guest()
            self.console(GREETING)

    def run_unikernel(self, line: str) -> None:
        """Do as tests/guests/bare.c for "echo TEXT", "exit STATUS", "crash" and "spin"."""
        verb, _, _ = line.partition(" ")
        self.console(b"spinning\n" if verb == "spin" else line.encode() if verb == "echo" else b"")
        if verb == "crash":
            os.write(2, b"[pod:fc_vcpu 0] Unexpected exit reason on vcpu run: Shutdown\n")
        if verb != "spin":
            os._exit(0)

    def serve_guest(self) -> None:
        """Answer on the hybrid vsock socket, and echo."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.vsock)
        listener.listen()

        def answer() -> None:
            while True:
                guest, _ = listener.accept()
                if guest.recv(100).startswith(b"CONNECT "):
                    guest.sendall(b"OK 1073741824\n")
                    while data := guest.recv(4096):
                        guest.sendall(data)
                guest.close()

        threading.Thread(target=answer, daemon=True).start()

    def perform(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Do what a request asks for; return the status and the answer's body."""
        match (method, path):
            case ("GET", "/api/v1/vmm.ping"):
                return 200, {
                    "build_version": "v0",
                    "version": self.version,
                    "pid": os.getpid(),
                    "features": [],
                }
            case ("GET", "/version"):
                return 200, {"firecracker_version": self.version}
            case ("GET", "/"):
                self.wanted.join()
                info = {"app_name": "Firecracker", "id": "pod-1", "state": "Running"}
                return 200, {**info, "vmm_version": self.version}
            case ("PUT", "/api/v1/vm.create"):
                self.describe(body)
            case ("PUT", "/boot-source") if body["kernel_image_path"].startswith("/proc/self/fd/"):
                self.unikernel = body["boot_args"]
            case ("PUT", "/vsock"):
                self.vsock = body["uds_path"]
            case ("PUT", "/machine-config"):
                self.vcpus = body["vcpu_count"]
            case ("PUT", "/api/v1/vm.boot") | ("PUT", "/actions"):
                self.boot()
            case ("PUT", "/api/v1/vm.snapshot"):
                directory = body["destination_url"].removeprefix("file://")
                self.save(f"{directory}/config.json")
                for name in ("state.json", "memory-ranges"):
                    with open(f"{directory}/{name}", "x"):
                        pass
            case ("PUT", "/api/v1/vm.restore"):
                directory = body["source_url"].removeprefix("file://")
                for name in ("state.json", "memory-ranges"):
                    os.stat(f"{directory}/{name}")
                self.restore(f"{directory}/config.json")
            case ("PUT", "/snapshot/create"):
                self.save(body["snapshot_path"])
                self.save(body["mem_file_path"])
            case ("PUT", "/snapshot/load"):
                os.stat(body["mem_backend"]["backend_path"])
                self.restore(body["snapshot_path"])
                self.vsock = body["vsock_override"]["uds_path"]
            case ("PUT", "/api/v1/vm.resume"):
                self.resume()
            case ("PATCH", "/vm") if body == {"state": "Resumed"}:
                self.resume()
            case ("PUT", "/api/v1/vm.add-disk"):
                return 200, {"id": body["id"], "bdf": "0000:00:06.0"}
            case ("PUT", "/api/v1/vm.remove-device") if self.mode != "holds":
                self.event("vm", "device-removed", id=body["id"], bdf="0000:00:06.0")
            case ("PUT", "/api/v1/vm.pause") | ("PATCH", "/vm") if self.mode == "reboot":
                self.event("vm", "rebooting")
        return 204, None

    # -- the API -------------------------------------------------------------------------------------------

    def serve(self, listener: socket.socket) -> None:
        """Answer requests for ever, one connection after the other."""
        while True:
            connection, _ = listener.accept()
            buffer, fds = b"", array.array("i")
            while True:
                data, ancillary, _, _ = connection.recvmsg(65536, 1024)
                for _, _, content in ancillary:
                    fds.frombytes(content[: len(content) // 4 * 4])
                if not data:
                    break
                buffer += data
                while (request := self.parse(buffer)) is not None:
                    method, path, body, buffer = request
                    self.answer(connection, method, path, body, fds)
                    fds = array.array("i")

    @staticmethod
    def parse(buffer: bytes) -> tuple[str, str, Any, bytes] | None:
        """Take one request off; None when it is not complete."""
        head, found, rest = buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        first, *headers = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in headers)
        length = int(fields.get("content-length", 0))
        if len(rest) < length:
            return None
        method, path, _ = first.split(" ")
        return method, path, json.loads(rest[:length]) if length else None, rest[length:]

    def answer(
        self, connection: socket.socket, method: str, path: str, body: Any, fds: array.array[int]
    ) -> None:
        """Answer one request, or misbehave."""
        if self.mode == "deaf" or self.misbehaves("late", path):
            time.sleep(600)
        if self.misbehaves("crash", path):
            signal.raise_signal(signal.SIGSEGV)
        if self.misbehaves("close", path):
            connection.shutdown(socket.SHUT_RDWR)
            return
        place, found, refused = self.mode.partition("=")
        if found and place in (path, f"{method} {path}"):
            status, answer = 400 if refused == "once" else int(refused), self.fault("it does not want to")
            self.mode = "" if refused == "once" else self.mode
        else:
            status, answer = self.perform(method, path, body)
        kinds = [os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in fds]
        self.write(method=method, path=path, body=body, fds=kinds, status=status, answer=answer)
        content = b"" if answer is None else json.dumps(answer).encode()
        if self.misbehaves("text", path):
            content = b"all is well"
        head = b"HTTP/1.1 %d \r\nServer: stand-in\r\nConnection: keep-alive\r\n" % status
        if status != 204:
            head += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(content)
        reply = head + b"\r\n" + content
        if self.misbehaves("garbage", path):
            reply = b"220 mail.example.org ESMTP\r\n\r\n"
        if self.misbehaves("half", path):
            connection.sendall(reply[: len(reply) * 2 // 3])
            connection.shutdown(socket.SHUT_RDWR)
            return
        connection.sendall(reply)
        if path == "/api/v1/vmm.shutdown":
            os._exit(0)

    def fault(self, text: str) -> Any:
        """An error in the form of the VMM."""
        if self.kind == "cloud-hypervisor":
            return ["Error from API", text]
        return {"fault_message": text}

    @staticmethod
    def escape(way: str) -> None:
        """Leave the process, in one of three ways."""
        if way == "execve":
            os.execv("/bin/true", ["true"])
        elif way == "ptrace":
            libc.ptrace(0, 0, 0, 0)
        elif os.fork() == 0:
            os._exit(0)

    # -- the program ---------------------------------------------------------------------------------------

    def main(self, arguments: list[str]) -> None:
        """Be the VMM."""
        self.write(argv=arguments)
        self.version = self.mode[8:] if self.mode.startswith("version:") else VERSIONS[self.kind]
        if self.mode.startswith("exit:"):
            print("it is not my day", file=sys.stderr)
            sys.exit(int(self.mode[5:]))
        if self.mode.startswith("escape:"):
            self.escape(self.mode[7:])
        if self.mode == "silent":
            sys.exit(1)
        if self.mode == "hang":
            time.sleep(600)
        if self.kind == "cloud-hypervisor":
            option = dict(zip(arguments[0::2], arguments[1::2], strict=False))
            self.sealed = {"true": True, "false": False}[option["--seccomp"]]
            listener = socket.socket(fileno=int(option["--api-socket"].removeprefix("fd=")))
            self.thread("vmm", 1)
            self.event("vmm", "starting")
        else:
            self.sealed = "--no-seccomp" not in arguments
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(arguments[arguments.index("--api-sock") + 1])
            listener.listen()
        self.sealed = self.sealed or self.mode == "sealed"
        api = "http-server" if self.kind == "cloud-hypervisor" else "fc_api"
        self.thread(api, 1, lambda: self.serve(listener))
        while True:
            self.wanted.get()()
            self.wanted.task_done()


def main(kind: str, mode: str, record: str) -> None:
    """Run the stand-in with the program's own arguments."""
    StandIn(kind, mode, record).main(sys.argv[1:])
