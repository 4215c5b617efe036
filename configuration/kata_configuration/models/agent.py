"""The table [agent.kata]: what the runtime honours. What it does not honour yet: agent_planned."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kata_configuration.models.base import (
    HOUR,
    About,
    Access,
    Annotation,
    Effect,
    Milliseconds,
    Octets,
    Plausible,
    Seconds,
    Strings,
    Table,
)

# Why an annotation may set a key that is open.
OWN_PATIENCE = "it is how long the runtime waits for the pod's own guest and processes"


class KataAgent(Table):
    """How the runtime reaches the agent in the guest, and what it asks of it."""

    enable_debug: Annotated[
        bool, About("Let the agent log at debug level.", "Kata 3.0.0", takes_effect_in=Effect.KERNEL_LINE)
    ] = False
    dial_timeout_ms: Annotated[
        Milliseconds,
        About("Pause between two attempts to reach the agent.", "Kata 3.0.0", takes_effect_in=Effect.AGENT),
        Annotation(Access.OPEN, OWN_PATIENCE),
    ] = Field(10, ge=1, le=HOUR * 1000)
    reconnect_timeout_ms: Annotated[
        Milliseconds,
        Plausible(1000),
        About(
            "Time that the guest has to boot and answer; at least dial_timeout_ms.",
            "Kata 3.0.0",
            takes_effect_in=Effect.AGENT,
        ),
        Annotation(Access.OPEN, OWN_PATIENCE),
    ] = Field(120000, ge=1, le=HOUR * 1000)
    create_container_timeout: Annotated[
        Seconds,
        About(
            "Time that the guest's agent, the pod's broker or the process that runs the machine has to "
            "answer a request, such as creating a container.",
            "Kata 3.19.0",
            takes_effect_in=Effect.AGENT,
        ),
        Annotation(Access.OPEN, OWN_PATIENCE),
    ] = Field(120, ge=1, le=HOUR)
    health_check_request_timeout_ms: Annotated[
        Milliseconds,
        Plausible(1000),
        About(
            "Time that the agent has to answer a health check.", "Kata 3.0.0", takes_effect_in=Effect.AGENT
        ),
        Annotation(Access.OPEN, OWN_PATIENCE),
    ] = Field(90000, ge=1, le=HOUR * 1000)
    kernel_modules: Annotated[
        Strings,
        About(
            'Kernel modules that the agent loads, each with its parameters: "name key=value".',
            "Kata 3.0.0",
            takes_effect_in=Effect.AGENT,
        ),
        Annotation(separator=";"),
    ] = ()
    container_pipe_size: Annotated[
        Octets,
        Plausible(4096),
        About(
            "Size of the pipes of a container's output; 0 is the kernel's default.",
            "Kata 3.0.0",
            takes_effect_in=Effect.KERNEL_LINE,
        ),
        Annotation(Access.OPEN, "it is a size inside of the pod's own guest"),
    ] = Field(0, ge=0, le=2**31 - 1)
