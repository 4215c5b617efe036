"""The services that the host calls: each method turns a request into an action of the sandbox."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from kata_agent import oci
from kata_agent.constants import FEATURE_PORT_FORWARD, FEATURE_ROUTE_METRIC, FEATURE_STREAM_IO
from kata_agent.guest import VERSION, files, metrics, mounts, network, storage, system
from kata_agent.guest.cgroup import network_stats
from kata_agent.guest.devices import BLOCK_DRIVERS
from kata_agent.guest.errors import GuestError, InvalidRequestError, UnsupportedError
from kata_agent.guest.process import Process
from kata_agent.guest.sandbox import Sandbox, check_id
from kata_agent.guest.stdio import Ports
from kata_agent.protos import agent_pb2, csi_pb2, health_pb2
from kata_agent.ttrpc.blocking import BlockingHandler
from kata_agent.ttrpc.envelope import Share

_AGENT = "grpc.AgentService"
_HEALTH = "grpc.Health"
_WAITS = ("WaitProcess", "GetOOMEvent", "ReadStdout", "ReadStderr", "WriteStdin")
_PROTOCOL_VERSION = "0.0.1"  # upstream's API_VERSION; hosts only log it

_UNSERVED: dict[str, tuple[type[Message], str]] = {
    "UpdateEphemeralMounts": (agent_pb2.UpdateEphemeralMountsRequest, "mounts cannot change their size"),
    "GetDiagnosticData": (agent_pb2.GetDiagnosticDataRequest, "this agent keeps no diagnostic data"),
    "GetIPTables": (agent_pb2.GetIPTablesRequest, "the guest image has no iptables"),
    "SetIPTables": (agent_pb2.SetIPTablesRequest, "the guest image has no iptables"),
    "MemAgentMemcgSet": (agent_pb2.MemAgentMemcgConfig, "this agent does not reclaim memory by itself"),
    "MemAgentCompactSet": (agent_pb2.MemAgentCompactConfig, "this agent does not compact memory by itself"),
    "AddSwap": (agent_pb2.AddSwapRequest, "this guest does not swap"),
    "AddSwapPath": (agent_pb2.AddSwapPathRequest, "this guest does not swap"),
    "ResizeVolume": (agent_pb2.ResizeVolumeRequest, "volumes cannot be resized from within"),
    "SetPolicy": (agent_pb2.SetPolicyRequest, "this agent has no policy engine, so it could not enforce one"),
}


class AgentService:
    """grpc.AgentService and grpc.Health."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def handlers(self) -> Mapping[tuple[str, str], BlockingHandler]:
        """What a ttrpc server has to serve, by service and method."""
        pb = agent_pb2
        served: dict[str, tuple[type[Message], Callable[..., Message | None]]] = {
            "CreateSandbox": (pb.CreateSandboxRequest, self._sandbox.create),
            "DestroySandbox": (pb.DestroySandboxRequest, lambda _: self._sandbox.destroy()),
            "CreateContainer": (pb.CreateContainerRequest, self.create_container),
            "StartContainer": (pb.StartContainerRequest, self.start_container),
            "RemoveContainer": (pb.RemoveContainerRequest, self.remove_container),
            "PauseContainer": (pb.PauseContainerRequest, self.pause_container),
            "ResumeContainer": (pb.ResumeContainerRequest, self.resume_container),
            "UpdateContainer": (pb.UpdateContainerRequest, self.update_container),
            "StatsContainer": (pb.StatsContainerRequest, self.stats_container),
            "ExecProcess": (pb.ExecProcessRequest, self.exec_process),
            "SignalProcess": (pb.SignalProcessRequest, self.signal_process),
            "WaitProcess": (pb.WaitProcessRequest, self.wait_process),
            "WriteStdin": (pb.WriteStreamRequest, self.write_stdin),
            "ReadStdout": (pb.ReadStreamRequest, self.read_stdout),
            "ReadStderr": (pb.ReadStreamRequest, self.read_stderr),
            "CloseStdin": (pb.CloseStdinRequest, self.close_stdin),
            "TtyWinResize": (pb.TtyWinResizeRequest, self.tty_win_resize),
            "GetOOMEvent": (pb.GetOOMEventRequest, self.get_oom_event),
            "GetMetrics": (pb.GetMetricsRequest, lambda _: pb.Metrics(metrics=metrics.text())),
            "GetGuestDetails": (pb.GuestDetailsRequest, self.get_guest_details),
            "OnlineCPUMem": (pb.OnlineCPUMemRequest, self.online_cpu_mem),
            "MemHotplugByProbe": (
                pb.MemHotplugByProbeRequest,
                lambda r: system.probe_memory(r.memHotplugProbeAddr),
            ),
            "ReseedRandomDev": (pb.ReseedRandomDevRequest, lambda r: system.add_entropy(r.data)),
            "SetGuestDateTime": (pb.SetGuestDateTimeRequest, lambda r: system.set_time(r.Sec, r.Usec)),
            "CopyFile": (pb.CopyFileRequest, files.copy_file),
            "GetVolumeStats": (pb.VolumeStatsRequest, self.get_volume_stats),
            "RemoveStaleVirtiofsShareMounts": (
                pb.RemoveStaleVirtiofsShareMountsRequest,
                lambda _: self._sandbox.shares.forget_removed(),
            ),
            "UpdateInterface": (pb.UpdateInterfaceRequest, lambda r: network.update_interface(r.interface)),
            "UpdateRoutes": (pb.UpdateRoutesRequest, lambda r: network.update_routes(r.routes)),
            "ListInterfaces": (pb.ListInterfacesRequest, lambda _: network.list_interfaces()),
            "ListRoutes": (pb.ListRoutesRequest, lambda _: network.list_routes()),
            "AddARPNeighbors": (pb.AddARPNeighborsRequest, lambda r: network.add_neighbors(r.neighbors)),
            **{name: (request, _refusal(name, why)) for name, (request, why) in _UNSERVED.items()},
        }
        handlers = {
            (_AGENT, name): _handler(*entry, Share.WAIT if name in _WAITS else Share.WORK)
            for name, entry in served.items()
        }
        handlers[_HEALTH, "Check"] = _handler(health_pb2.CheckRequest, self.check, Share.NONE)
        handlers[_HEALTH, "Version"] = _handler(health_pb2.CheckRequest, self.version, Share.NONE)
        return handlers

    def check(self, _: health_pb2.CheckRequest) -> health_pb2.HealthCheckResponse:
        """Alive."""
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    def version(self, _: health_pb2.CheckRequest) -> health_pb2.VersionCheckResponse:
        """Of the protocol, and of this agent."""
        return health_pb2.VersionCheckResponse(grpc_version=_PROTOCOL_VERSION, agent_version=VERSION)

    def create_container(self, request: agent_pb2.CreateContainerRequest) -> None:
        """Set a container up."""
        self._sandbox.create_container(request, _parsed(oci.spec_from_proto, request.OCI))

    def start_container(self, request: agent_pb2.StartContainerRequest) -> None:
        """Let its program begin."""
        self._sandbox.container(request.container_id).start()

    def remove_container(self, request: agent_pb2.RemoveContainerRequest) -> None:
        """Kill it, and forget it."""
        self._sandbox.remove_container(request.container_id, request.timeout)

    def pause_container(self, request: agent_pb2.PauseContainerRequest) -> None:
        """Freeze it."""
        self._sandbox.container(request.container_id).pause()

    def resume_container(self, request: agent_pb2.ResumeContainerRequest) -> None:
        """Let it go on."""
        self._sandbox.container(request.container_id).resume()

    def update_container(self, request: agent_pb2.UpdateContainerRequest) -> None:
        """Change its limits."""
        resources = _parsed(oci.resources_from_proto, request.resources)
        self._sandbox.container(request.container_id).update(resources)

    def stats_container(self, request: agent_pb2.StatsContainerRequest) -> agent_pb2.StatsContainerResponse:
        """What it has used; the network's counters are the sandbox's, which its containers share."""
        container = self._sandbox.container(request.container_id)
        with open("/proc/net/dev", encoding="ascii") as file:
            network_counters = network_stats(file.read())
        return agent_pb2.StatsContainerResponse(
            cgroup_stats=container.cgroup.stats(), network_stats=network_counters
        )

    def exec_process(self, request: agent_pb2.ExecProcessRequest) -> None:
        """Start another process in a container."""
        exec_id = check_id(request.exec_id, "exec id")
        container = self._sandbox.container(request.container_id)
        process = _parsed(oci.process_from_proto, request.process)
        if not process.get("args"):
            raise InvalidRequestError(f"exec {exec_id}: no program is given")
        ports = Ports(request.stdin_port, request.stdout_port, request.stderr_port)
        container.execute(exec_id, process, ports.claim(self._sandbox.streams))

    def signal_process(self, request: agent_pb2.SignalProcessRequest) -> None:
        """Signal one process, or with an empty exec_id all of the container."""
        if not 0 <= request.signal <= 64:
            raise InvalidRequestError(f"{request.signal} is not a signal")
        self._sandbox.container(request.container_id).signal(request.exec_id, request.signal)

    def wait_process(self, request: agent_pb2.WaitProcessRequest) -> agent_pb2.WaitProcessResponse:
        """Wait for the exit status."""
        return agent_pb2.WaitProcessResponse(status=self._process(request).wait())

    def write_stdin(self, request: agent_pb2.WriteStreamRequest) -> agent_pb2.WriteStreamResponse:
        """Write; no data means the end, as Kata's runtimes say it."""
        stdio = self._process(request).stdio
        if not request.data:
            stdio.close_stdin()
            return agent_pb2.WriteStreamResponse()
        return agent_pb2.WriteStreamResponse(len=stdio.write(request.data))

    def read_stdout(self, request: agent_pb2.ReadStreamRequest) -> agent_pb2.ReadStreamResponse:
        """Read; no data means the end, as Kata's runtimes understand it."""
        return agent_pb2.ReadStreamResponse(data=self._process(request).stdio.read(1, request.len))

    def read_stderr(self, request: agent_pb2.ReadStreamRequest) -> agent_pb2.ReadStreamResponse:
        """As read_stdout."""
        return agent_pb2.ReadStreamResponse(data=self._process(request).stdio.read(2, request.len))

    def close_stdin(self, request: agent_pb2.CloseStdinRequest) -> None:
        """No more input will come."""
        self._process(request).stdio.close_stdin()

    def tty_win_resize(self, request: agent_pb2.TtyWinResizeRequest) -> None:
        """The terminal's size changed."""
        self._process(request).resize(request.row, request.column)

    def _process(self, request: Any) -> Process:
        """The process that a request names."""
        return self._sandbox.container(request.container_id).process(request.exec_id)

    def get_oom_event(self, _: agent_pb2.GetOOMEventRequest) -> agent_pb2.OOMEvent:
        """Wait for the kernel to kill a process for want of memory."""
        return agent_pb2.OOMEvent(container_id=self._sandbox.oom.next())

    def get_guest_details(self, request: agent_pb2.GuestDetailsRequest) -> agent_pb2.GuestDetailsResponse:
        """What this guest can do."""
        details = agent_pb2.AgentDetails(
            version=VERSION,
            init_daemon=os.getpid() == 1,
            device_handlers=BLOCK_DRIVERS,
            storage_handlers=storage.drivers(),
            supports_seccomp=os.path.exists("/proc/sys/kernel/seccomp/actions_avail"),
            extra_features=[FEATURE_STREAM_IO, FEATURE_ROUTE_METRIC, FEATURE_PORT_FORWARD],
        )
        return agent_pb2.GuestDetailsResponse(
            mem_block_size_bytes=system.memory_block_size() if request.mem_block_size else 0,
            support_mem_hotplug_probe=request.mem_hotplug_probe and system.can_probe_memory(),
            agent_details=details,
        )

    def online_cpu_mem(self, request: agent_pb2.OnlineCPUMemRequest) -> None:
        """Switch on what was plugged, and let containers have it."""
        system.bring_online(request.nb_cpus, wait=request.wait, memory=not request.cpu_only)
        if not request.cpu_only:
            self._sandbox.memory.follow()

    def get_volume_stats(self, request: agent_pb2.VolumeStatsRequest) -> csi_pb2.VolumeStatsResponse:
        """How full a volume is."""
        path = request.volume_guest_path
        if path.rstrip("/") != "/run":  # which holds all the others
            path = mounts.check_target(path, "volume path")
        numbers = os.statvfs(path)
        bytes_, inodes = csi_pb2.VolumeUsage.BYTES, csi_pb2.VolumeUsage.INODES
        usage = (
            (bytes_, numbers.f_frsize, numbers.f_blocks, numbers.f_bfree, numbers.f_bavail),
            (inodes, 1, numbers.f_files, numbers.f_ffree, numbers.f_favail),
        )
        return csi_pb2.VolumeStatsResponse(
            usage=[
                csi_pb2.VolumeUsage(
                    unit=unit, total=total * size, used=(total - free) * size, available=available * size
                )
                for unit, size, total, free, available in usage
            ],
            volume_condition=csi_pb2.VolumeCondition(abnormal=False, message="OK"),
        )


def _handler(
    request: type[Message], function: Callable[..., Message | None], share: Share = Share.WORK
) -> BlockingHandler:
    """A function that may fail as the guest does, and answer nothing, as a handler."""

    def handle(message: Message) -> Message:
        try:
            answer = function(message)
        except OSError as error:
            raise GuestError(_describe(error)) from error
        return Empty() if answer is None else answer

    return BlockingHandler(request, handle, share)


def _describe(error: OSError) -> str:
    """One line with the path in it, and without the number that str() begins with."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename is not None else text


def _refusal(name: str, why: str) -> Callable[[Message], Message]:
    def refuse(_: Message) -> Message:
        raise UnsupportedError(f"{name} is not served by this agent: {why}")

    return refuse


def _parsed(parse: Callable[[Any], dict[str, Any]], message: Message) -> dict[str, Any]:
    try:
        return parse(message)
    except oci.SpecError as error:
        raise InvalidRequestError(str(error)) from None
