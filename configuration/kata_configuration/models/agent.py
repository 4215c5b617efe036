"""The table [agent.kata]: what the runtime honours. What it does not honour yet: agent_planned."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kata_configuration.models.base import (
    HOUR,
    About,
    LogLevel,
    Milliseconds,
    Octets,
    Plausible,
    Seconds,
    Strings,
    Table,
)


class KataAgent(Table):
    """How the runtime reaches the agent in the guest, and what it asks of it."""

    enable_debug: Annotated[bool, About("Let the agent log at debug level.", "Kata 3.0.0")] = False
    log_level: Annotated[
        LogLevel, About("The least level of the agent's messages in the runtime's log.", "Kata 3.0.0")
    ] = "info"
    dial_timeout_ms: Annotated[
        Milliseconds, About("Pause between two attempts to reach the agent.", "Kata 3.0.0")
    ] = Field(10, ge=1, le=HOUR * 1000)
    reconnect_timeout_ms: Annotated[
        Milliseconds,
        Plausible(1000),
        About("Time that the guest has to boot and answer; at least dial_timeout_ms.", "Kata 3.0.0"),
    ] = Field(30000, ge=1, le=HOUR * 1000)
    create_container_timeout: Annotated[
        Seconds,
        About(
            "Time that the agent has to answer a request, such as creating a container.",
            "Kata 3.19.0",
        ),
    ] = Field(30, ge=1, le=HOUR)
    health_check_request_timeout_ms: Annotated[
        Milliseconds,
        Plausible(1000),
        About("Time that the agent has to answer a health check.", "Kata 3.0.0"),
    ] = Field(90000, ge=1, le=HOUR * 1000)
    kernel_modules: Annotated[
        Strings,
        About(
            'Kernel modules that the agent loads, each with its parameters: "name key=value".',
            "Kata 3.0.0",
        ),
    ] = ()
    container_pipe_size: Annotated[
        Octets,
        Plausible(4096),
        About(
            "Size of the pipes of a container's output; 0 is the kernel's default.",
            "Kata 3.0.0",
        ),
    ] = Field(0, ge=0, le=2**31 - 1)
