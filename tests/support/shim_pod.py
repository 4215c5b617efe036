"""A pod for many tests: containers and execs in one virtual machine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as PackedAny

from kata_runtime.containerd_api import types_pb2
from kata_runtime.ctl.running import running_sandboxes
from oci_bundle import make_process, make_spec
from shim_harness import Lab, Shim
from shim_process import Finished, Process, Streams

TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/"
TYPE = "io.kubernetes.cri.container-type"
SANDBOX = "io.kubernetes.cri.sandbox-id"


class Pod:
    """A pod whose first container sleeps, for all the containers and execs that a test wants."""

    def __init__(self, shim: Shim, first: Process) -> None:
        self.shim = shim
        self.first = first

    @classmethod
    async def start(cls, lab: Lab, **how: Any) -> Pod:
        """Boot a pod. how: see Lab.launch."""
        sandbox_id = lab.new_id("pod")
        spec = make_spec(
            make_process("sleep", "100000"),
            hostname="pod-host",
            cgroup=f"/{lab.namespace}/{sandbox_id}",
            annotations={TYPE: "sandbox"},
        )
        shim = await lab.start_shim(sandbox_id, spec, **how)
        first = await shim.create(container_id=sandbox_id)
        await first.start()
        return cls(shim, first)

    @classmethod
    @asynccontextmanager
    async def running(cls, lab: Lab, configuration: Path) -> AsyncIterator[Pod]:
        """A pod with a configuration of its own; afterwards nothing of it is left."""
        before = lab.leftovers()
        pod = await cls.start(lab, environment={"KATA_CONF_FILE": str(configuration)})
        try:
            yield pod
        finally:
            await pod.shim.close()
        assert before.settle() == []

    def pids(self, name: str) -> list[int]:
        """Of the living processes of this pod that have this name, such as "virtiofsd"."""
        mine = (self.shim.lab.namespace, self.shim.id)
        (sandbox,) = [one for one in running_sandboxes() if (one.namespace, one.id) == mine]
        return [process.pid for process in sandbox.processes if process.name == name]

    def spec(self, *args: str, process: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        """The specification of a further container; see make_process and make_spec for the changes."""
        annotations = {
            TYPE: "container",
            SANDBOX: self.shim.id,
        }
        return make_spec(make_process(*args, **(process or {})), annotations=annotations, **changes)

    async def create(
        self, *args: str, rootfs: Iterable[types_pb2.Mount] | None = None, late: bool = False, **changes: Any
    ) -> Process:
        """Create a container. stdin, output, terminal: which streams it has, see Streams."""
        streams: dict[str, bool] = {
            name: changes.pop(name) for name in ("stdin", "output", "terminal") if name in changes
        }
        if streams.get("terminal"):
            changes["process"] = {"terminal": True, **changes.get("process", {})}
        return await self.shim.create(self.spec(*args, **changes), rootfs=rootfs, streams=streams, late=late)

    async def start_container(self, *args: str, **changes: Any) -> Process:
        """Create and start a container."""
        process = await self.create(*args, **changes)
        await process.start()
        return process

    async def run(self, *args: str, stdin: bytes | None = None, **changes: Any) -> Finished:
        """Run a container to its end."""
        process = await self.start_container(*args, stdin=stdin is not None, **changes)
        return await process.finish(stdin)

    async def add_exec(
        self,
        *args: str,
        container: Process | None = None,
        exec_id: str | None = None,
        streams: dict[str, bool] | None = None,
        **process: Any,
    ) -> Process:
        """Record an exec, in the first container if no other is named."""
        exec_id = exec_id or self.shim.lab.new_id("e")
        target = container or self.first
        terminal = bool(streams and streams.get("terminal"))
        fifos = Streams(self.shim.bundle / f"io-{self.shim.lab.new_id('x')}", **(streams or {}))
        fifos.open_outputs()
        spec = json.dumps(make_process(*args, terminal=terminal, **process)).encode()
        packed = PackedAny(type_url=f"{TYPE_URL}Process", value=spec)
        try:
            await self.shim.task("Exec", id=target.id, exec_id=exec_id, spec=packed, **fifos.fields)
        except BaseException:
            fifos.close()
            raise
        return Process(self.shim, target.id, exec_id, fifos)

    async def start_exec(self, *args: str, **how: Any) -> Process:
        """Record and start an exec."""
        process = await self.add_exec(*args, **how)
        try:
            await process.start()
        except BaseException:
            process.streams.close()
            raise
        return process

    async def exec(self, *args: str, stdin: bytes | None = None, **how: Any) -> Finished:
        """Run an exec to its end."""
        streams = {"stdin": stdin is not None, **how.pop("streams", {})}
        return await (await self.start_exec(*args, streams=streams, **how)).finish(stdin)
