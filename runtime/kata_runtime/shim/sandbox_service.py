"""containerd.runtime.sandbox.v1.Sandbox: a pod's sandbox without a container of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from kata_agent.ttrpc.server import Handler
from kata_agent.ttrpc.service import service_of
from kata_runtime.container import bundle, namespaces
from kata_runtime.container.bundle import JsonObject
from kata_runtime.container.guest_spec import PodSettings
from kata_runtime.container.process import KILLED
from kata_runtime.containerd_api import sandbox_pb2, types_pb2
from kata_runtime.errors import AlreadyExistsError, NotFoundError, StateError
from kata_runtime.pod.linux_boot import LinuxBoot
from kata_runtime.pod.sandbox import Sandbox
from kata_runtime.pod.spec import load_spec
from kata_runtime.pod.tasks import Tasks
from kata_runtime.pod.timestamps import timestamp
from kata_runtime.shim import metrics, pod_sandbox_config
from kata_runtime.shim.task_service import config_path_of

if TYPE_CHECKING:
    from kata_configuration import Configuration
    from kata_runtime.broker.client import Broker
    from kata_runtime.container.guest import GuestBoot

_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


class SandboxService:
    """The sandbox service of one sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        tasks: Tasks,
        broker: Broker,
        shutdown: Callable[[], Awaitable[None]],
        default_config_path: str | None,
    ) -> None:
        self._sandbox = sandbox
        self._tasks = tasks
        self._broker = broker
        self._shutdown = shutdown
        self._default_config_path = default_config_path
        self._created = False
        self._spec: JsonObject | None = None
        self._name_servers: tuple[str, ...] = ()
        self._config_path: str | None = None

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """The methods by service and name."""
        described = service_of(sandbox_pb2.DESCRIPTOR.services_by_name["Sandbox"])
        functions: Mapping[str, Callable[[Any], Any]] = {
            "CreateSandbox": self.create,
            "StartSandbox": self.start,
            "Platform": self.platform,
            "StopSandbox": self.stop,
            "WaitSandbox": self.wait,
            "SandboxStatus": self.status,
            "PingSandbox": self.ping,
            "ShutdownSandbox": self.shutdown,
            "SandboxMetrics": self.metrics,
        }
        return {
            (described.full_name, method): Handler(described.methods[method].request, function)
            for method, function in functions.items()
        }

    @property
    def created(self) -> bool:
        """Whether somebody has created the sandbox here, who also says when the shim ends."""
        return self._created

    async def create(self, request: sandbox_pb2.CreateSandboxRequest) -> sandbox_pb2.CreateSandboxResponse:
        """Remember what the sandbox is to be; StartSandbox makes it."""
        self._check(request.sandbox_id)
        if self._created:
            raise AlreadyExistsError(f"sandbox {request.sandbox_id} was created already")
        config_path = config_path_of(request.options) or self._default_config_path
        self._created = True
        try:
            self._spec = await self._load(request)
        except BaseException:
            self._created = False
            raise
        self._config_path = config_path
        return sandbox_pb2.CreateSandboxResponse()

    async def _load(self, request: sandbox_pb2.CreateSandboxRequest) -> JsonObject:
        """The specification in the bundle, which may have none, with the request's annotations."""
        spec: JsonObject = {}
        if os.path.exists(os.path.join(request.bundle_path, "config.json")):
            spec = await load_spec(request.bundle_path, self._broker.read_spec)
        sums = pod_sandbox_config.sums_of(request.options)
        spec["annotations"] = {**bundle.annotations_of(spec), **sums, **request.annotations}
        spec["hostname"] = pod_sandbox_config.hostname_of(request.options) or spec.get("hostname")
        self._name_servers = pod_sandbox_config.name_servers_of(request.options)
        # The CRI gives a namespace to every pod but those with the host's network; others may leave it out.
        linux = spec["linux"] = spec.get("linux") or {}
        linux["sysctl"] = {**(linux.get("sysctl") or {}), **pod_sandbox_config.sysctls_of(request.options)}
        pod_sandbox_config.check_sysctls(linux["sysctl"])
        if path := pod_sandbox_config.cgroup_of(request.options, request.sandbox_id):
            linux["cgroupsPath"] = path
        own = {"linux": {"namespaces": pod_sandbox_config.namespaces_of(request.options)}}
        namespaces.refuse(own, f"sandbox {request.sandbox_id}", first=True)
        if request.netns_path or not pod_sandbox_config.is_pod(request.options):
            others = [entry for entry in linux.get("namespaces") or () if entry.get("type") != "network"]
            linux["namespaces"] = [*others, {"type": "network", "path": request.netns_path}]
        return spec

    async def start(self, request: sandbox_pb2.StartSandboxRequest) -> sandbox_pb2.StartSandboxResponse:
        """Boot the virtual machine."""
        self._check(request.sandbox_id)
        if (spec := self._spec) is None:
            raise StateError(
                f"cannot start sandbox {request.sandbox_id}: it was not created; call CreateSandbox first"
            )
        await self._sandbox.boot(
            spec, self._config_path, lambda found: self._make_boot(found, spec), outlives_containers=True
        )
        return sandbox_pb2.StartSandboxResponse(
            pid=self._sandbox.pid, created_at=timestamp(self._sandbox.booted_at)
        )

    async def _make_boot(self, configuration: Configuration, spec: JsonObject) -> GuestBoot:
        """A Linux guest, without a container's files."""
        settings = PodSettings(spec["linux"]["sysctl"], self._name_servers)
        return LinuxBoot(configuration, self._sandbox.identity, self._broker, spec, settings=settings)

    async def platform(self, request: sandbox_pb2.PlatformRequest) -> sandbox_pb2.PlatformResponse:
        """What runs in the guest: Linux on the host's architecture."""
        return sandbox_pb2.PlatformResponse(
            platform=types_pb2.Platform(os="linux", architecture=_ARCHITECTURE)
        )

    async def stop(self, request: sandbox_pb2.StopSandboxRequest) -> sandbox_pb2.StopSandboxResponse:
        """End the machine and everything in it."""
        self._check(request.sandbox_id)
        self._tasks.end_all("the sandbox was stopped")
        await self._sandbox.stop()
        return sandbox_pb2.StopSandboxResponse()

    async def wait(self, request: sandbox_pb2.WaitSandboxRequest) -> sandbox_pb2.WaitSandboxResponse:
        """Answer when the machine has ended."""
        self._check(request.sandbox_id)
        await self._sandbox.wait_ended()
        return sandbox_pb2.WaitSandboxResponse(
            exit_status=KILLED, exited_at=timestamp(self._sandbox.ended_at)
        )

    async def status(self, request: sandbox_pb2.SandboxStatusRequest) -> sandbox_pb2.SandboxStatusResponse:
        """The state of the sandbox; verbose adds the configuration in force."""
        self._check(request.sandbox_id)
        sandbox = self._sandbox
        response = sandbox_pb2.SandboxStatusResponse(
            sandbox_id=request.sandbox_id,
            pid=sandbox.pid,
            state="SANDBOX_READY" if sandbox.running else "SANDBOX_NOTREADY",
        )
        if sandbox.booted_at:
            response.created_at.CopyFrom(timestamp(sandbox.booted_at))
        if sandbox.ended_at:
            response.exited_at.CopyFrom(timestamp(sandbox.ended_at))
        for key, value in sandbox.report().items():
            if request.verbose or key == "reason":
                response.info[key] = value
        return response

    async def ping(self, request: sandbox_pb2.PingRequest) -> sandbox_pb2.PingResponse:
        """Answer while the sandbox is known."""
        self._check(request.sandbox_id)
        return sandbox_pb2.PingResponse()

    async def metrics(self, request: sandbox_pb2.SandboxMetricsRequest) -> sandbox_pb2.SandboxMetricsResponse:
        """What the sandbox's containers have used together."""
        self._check(request.sandbox_id)
        found = metrics.total([metrics.to_metrics(stats) for stats in await self._tasks.all_stats()])
        return sandbox_pb2.SandboxMetricsResponse(
            metrics=types_pb2.Metric(
                timestamp=timestamp(time.time_ns()), id=request.sandbox_id, data=metrics.encode(found)
            )
        )

    async def shutdown(
        self, request: sandbox_pb2.ShutdownSandboxRequest
    ) -> sandbox_pb2.ShutdownSandboxResponse:
        """End the shim."""
        self._check(request.sandbox_id)
        await self._sandbox.stop("the sandbox was shut down")
        await self._shutdown()
        return sandbox_pb2.ShutdownSandboxResponse()

    def _check(self, sandbox_id: str) -> None:
        if sandbox_id != self._sandbox.identity.id:
            raise NotFoundError(f"this shim serves sandbox {self._sandbox.identity.id}, not {sandbox_id!r}")
