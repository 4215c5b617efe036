"""Making a template: a machine without a pod boots as far as its agent, and is saved; then this process ends.

It is a process of its own, with a broker and a seal as every pod's shim has them: what is copied later must
not have run less confined than the copies.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kata_hypervisor.contract import Disk, Hypervisor
from kata_runtime.errors import SandboxError
from kata_runtime.identity import SandboxIdentity
from kata_runtime.logging import printable

if TYPE_CHECKING:
    import socket

    from kata_configuration import Configuration

OWNER = "kata-ctl"
FAILED = 1


def make(configuration: Configuration, directory: Path) -> str:
    """Make a template in an empty directory; return why that failed, or nothing. Forks, and blocks."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    log_reader, log_writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        _live(configuration, directory, writer, log_writer)
    os.close(writer)
    os.close(log_writer)
    shown = threading.Thread(target=_show, args=(log_reader,))
    shown.start()
    try:
        with os.fdopen(reader, encoding="utf-8", errors="replace") as file:
            message = file.read().strip()
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGKILL)  # its broker undoes what it did
        raise
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        shown.join()
    from kata_runtime.broker.log_sink import take_fatal_message

    message = take_fatal_message(os.fspath(directory)) or message
    return "" if status == 0 else message or f"the process that makes it exited with status {status}"


def _show(log: int) -> None:
    """Pass its log on to our standard error."""
    with os.fdopen(log, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            sys.stderr.write(printable(line))


def _live(configuration: Configuration, directory: Path, messages: int, log: int) -> None:
    """Be the process that makes it; never returns.

    Nothing that we were started with is left in it, a terminal or a file: what a guest may own has no file of
    the host's.
    """
    status = FAILED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which asyncio could not restore, once it is sealed
    try:
        from kata_runtime import syscalls
        from kata_runtime.broker.process import fork_broker

        null = os.open(os.devnull, os.O_RDWR)
        for number, source in enumerate((null, null, log)):
            os.dup2(source, number)
        syscalls.close_all_but({0, 1, 2, messages})
        identity = SandboxIdentity(OWNER, "factory", f"template-{os.getpid()}")
        channel, broker = fork_broker(identity, os.fspath(directory))
        syscalls.gain_nothing()  # before there is a second thread, which could not be changed later
        import anyio

        level = logging.DEBUG if configuration.hypervisor.enable_debug else logging.WARNING
        with open(2, "w", encoding="utf-8", closefd=False) as stream:
            logging.basicConfig(stream=stream, level=level, format="%(message)s")
            anyio.run(_make, configuration, directory, identity, channel, broker)
        status = 0
    except Exception as error:  # noqa: BLE001 - the parent process reports it
        os.write(messages, (str(error) or type(error).__name__).encode())
    finally:
        os._exit(status)


async def _make(
    configuration: Configuration,
    directory: Path,
    identity: SandboxIdentity,
    channel: socket.socket,
    broker_pid: int,
) -> None:
    from kata_hypervisor import registry
    from kata_hypervisor.seccomp.confinement import inherited_filters
    from kata_runtime.broker.client import Broker
    from kata_runtime.pod import kvm_failure, machine_spec, sealing

    inherited = inherited_filters()
    broker = Broker(channel, broker_pid)
    broker.patience = float(configuration.agent.create_container_timeout)
    machine = registry.create(configuration.hypervisor_name, configuration.hypervisor, broker)
    try:
        spec = machine_spec.machine_of(configuration, identity, {}, places_of(configuration))
        runtime = configuration.runtime
        await broker.take_user(runtime.sandbox_uid_base, runtime.sandbox_uid_count)
        await sealing.get_ready()
        await machine.prepare(replace(spec, template=None, saved_to=directory))
        await sealing.seal(configuration, machine, broker, inherited)
        await machine.run()
        await _wait_for_agent(configuration, machine)
        await machine.pause()
        await machine.snapshot(directory)
    except Exception as error:
        unfit = await kvm_failure.explain(error, configuration, broker)
        await machine.stop()  # meanwhile the broker reports what it has refused
        if broker.fault:
            raise SandboxError("host", broker.fault) from error
        if unfit is not None:
            raise unfit from error
        raise
    finally:
        await machine.stop()
        await broker.close()


def places_of(configuration: Configuration) -> tuple[Disk, ...]:
    """The disks that a pod's machine will have besides its image: one, where files are not shared."""
    from kata_runtime.pod import machine_spec
    from kata_runtime.resource.block_rootfs import DISK_ID

    if machine_spec.machine_table(configuration).shares_files:
        return ()
    return (Disk(DISK_ID, Path(os.devnull), read_only=True),)


async def _wait_for_agent(configuration: Configuration, machine: Hypervisor) -> None:
    """Wait until the agent answers, and hang up: what is connected would not survive being saved."""
    from kata_agent.protos import health_pb2
    from kata_runtime.pod.agent_connection import connect_agent

    client = await connect_agent(configuration, machine)
    try:
        await client.check(health_pb2.CheckRequest())
    finally:
        await client.aclose()
