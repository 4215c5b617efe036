"""The table [agent.kata]."""

from __future__ import annotations

from pydantic import Field

from kata_configuration.models.base import LogLevel, Milliseconds, Octets, Seconds, Strings, Table

HOUR = 3600


class KataAgent(Table):
    """How the runtime reaches the agent in the guest, and what it asks of it."""

    enable_debug: bool = Field(False, description="Let the agent log at debug level.")
    log_level: LogLevel = Field(
        "info", description="The least level of the agent's messages in the runtime's log."
    )
    dial_timeout_ms: Milliseconds = Field(
        10, ge=1, le=HOUR * 1000, description="Pause between two attempts to reach the agent."
    )
    reconnect_timeout_ms: Milliseconds = Field(
        30000,
        ge=1,
        le=HOUR * 1000,
        description="Time that the guest has to boot and answer; at least dial_timeout_ms.",
    )
    create_container_timeout: Seconds = Field(
        30,
        ge=1,
        le=HOUR,
        description="Time that the agent has to answer a request, such as creating a container.",
    )
    health_check_request_timeout_ms: Milliseconds = Field(
        90000, ge=1, le=HOUR * 1000, description="Time that the agent has to answer a health check."
    )
    kernel_modules: Strings = Field(
        (), description='Kernel modules that the agent loads, each with its parameters: "name key=value".'
    )
    container_pipe_size: Octets = Field(
        0,
        ge=0,
        le=2**31 - 1,
        description="Size of the pipes of a container's output; 0 is the kernel's default.",
    )
