"""containerd.runtime.sandbox.v1.Sandbox: a pod's sandbox without a container of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

from kata_agent.ttrpc.server import Handler
from kata_agent.ttrpc.service import service_of
from kata_runtime.container import bundle
from kata_runtime.container.bundle import JsonObject
from kata_runtime.container.process import KILLED
from kata_runtime.containerd_api import sandbox_pb2, types_pb2
from kata_runtime.errors import AlreadyExistsError, NotFoundError, StateError
from kata_runtime.pod.sandbox import Sandbox
from kata_runtime.pod.spec import load_spec
from kata_runtime.pod.tasks import Tasks
from kata_runtime.pod.timestamps import timestamp
from kata_runtime.shim.task_service import config_path_of

_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


class SandboxService:
    """The sandbox service of one sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        tasks: Tasks,
        shutdown: Callable[[], Awaitable[None]],
        default_config_path: str | None,
    ) -> None:
        self._sandbox = sandbox
        self._tasks = tasks
        self._shutdown = shutdown
        self._default_config_path = default_config_path
        self._spec: JsonObject | None = None
        self._config_path: str | None = None
        self._created_at = 0
        self._ended_at = 0
        self._ended = anyio.Event()

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
        }
        return {
            (described.full_name, method): Handler(described.methods[method].request, function)
            for method, function in functions.items()
        }

    def ended(self) -> None:
        """The machine has ended: answer those who wait for it."""
        if not self._ended.is_set():
            self._ended_at = time.time_ns()
            self._ended.set()

    async def create(self, request: sandbox_pb2.CreateSandboxRequest) -> sandbox_pb2.CreateSandboxResponse:
        """Take down what the sandbox shall be; StartSandbox makes it."""
        self._check(request.sandbox_id)
        if self._spec is not None:
            raise AlreadyExistsError(f"sandbox {request.sandbox_id} exists already")
        spec: JsonObject = {}
        if os.path.exists(os.path.join(request.bundle_path, "config.json")):
            spec = await load_spec(request.bundle_path, self._sandbox.broker.read_spec)
        spec["annotations"] = {**bundle.annotations_of(spec), **request.annotations}
        self._spec = spec
        self._config_path = config_path_of(request.options) or self._default_config_path
        return sandbox_pb2.CreateSandboxResponse()

    async def start(self, request: sandbox_pb2.StartSandboxRequest) -> sandbox_pb2.StartSandboxResponse:
        """Boot the virtual machine."""
        self._check(request.sandbox_id)
        if self._spec is None:
            raise StateError(f"sandbox {request.sandbox_id} has not been created")
        if self._created_at:
            raise StateError(f"sandbox {request.sandbox_id} has been started already")
        await self._sandbox.boot(self._spec, self._config_path)
        self._sandbox.lasting = True
        self._created_at = time.time_ns()
        return sandbox_pb2.StartSandboxResponse(
            pid=self._sandbox.vmm_pid, created_at=timestamp(self._created_at)
        )

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
        self.ended()
        return sandbox_pb2.StopSandboxResponse()

    async def wait(self, request: sandbox_pb2.WaitSandboxRequest) -> sandbox_pb2.WaitSandboxResponse:
        """Answer when the machine has ended."""
        self._check(request.sandbox_id)
        await self._ended.wait()
        return sandbox_pb2.WaitSandboxResponse(exit_status=KILLED, exited_at=timestamp(self._ended_at))

    async def status(self, request: sandbox_pb2.SandboxStatusRequest) -> sandbox_pb2.SandboxStatusResponse:
        """The state of the sandbox; verbose adds the configuration in force."""
        self._check(request.sandbox_id)
        ready = self._sandbox.running
        response = sandbox_pb2.SandboxStatusResponse(
            sandbox_id=request.sandbox_id,
            pid=self._sandbox.vmm_pid,
            state="SANDBOX_READY" if ready else "SANDBOX_NOTREADY",
        )
        if self._created_at:
            response.created_at.CopyFrom(timestamp(self._created_at))
        if self._ended_at:
            response.exited_at.CopyFrom(timestamp(self._ended_at))
        configuration = self._sandbox.configuration
        if request.verbose and configuration is not None:
            response.info["configuration"] = str(configuration.path)
            response.info["configuration-sha256"] = configuration.sha256
            response.info["hypervisor"] = configuration.hypervisor_name
        if self._sandbox.ended is not None:
            response.info["reason"] = self._sandbox.ended
        return response

    async def ping(self, request: sandbox_pb2.PingRequest) -> sandbox_pb2.PingResponse:
        """Answer while the sandbox is known."""
        self._check(request.sandbox_id)
        return sandbox_pb2.PingResponse()

    async def shutdown(
        self, request: sandbox_pb2.ShutdownSandboxRequest
    ) -> sandbox_pb2.ShutdownSandboxResponse:
        """End the shim."""
        self._check(request.sandbox_id)
        await self._sandbox.stop()
        self.ended()
        await self._shutdown()
        return sandbox_pb2.ShutdownSandboxResponse()

    def _check(self, sandbox_id: str) -> None:
        if sandbox_id != self._sandbox.identity.id:
            raise NotFoundError(f"no sandbox {sandbox_id!r}: this shim serves {self._sandbox.identity.id}")
