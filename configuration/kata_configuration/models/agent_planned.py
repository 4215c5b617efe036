"""Keys of [agent.kata] that the runtime does not honour yet. See qemu_planned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import AliasChoices, Field

from kata_configuration.models.base import (
    AFTER_4_1,
    About,
    Instead,
    LogLevel,
    Milliseconds,
    Percent,
    Plausible,
    Protects,
    Seconds,
    Table,
    Text,
)

NO_CONSOLE = Instead(
    "the guest has no console beside its containers, and with enable_debug of its hypervisor's table "
    "what its kernel prints is in the runtime's log",
    advice="remove it, and set enable_debug in the hypervisor's table",
)
BYTE = 2**8 - 1
LARGEST = 2**63 - 1
DAY = 24 * 3600


class MemAgent(Table):
    """The memory agent: it ages, evicts and compacts memory inside the guest."""

    aliases: ClassVar[Mapping[str, str]] = {"mem_agent_enable": "enable"}

    enable: Annotated[bool, About("Run the memory agent.", "Kata 3.13.0")] = Field(
        False, validation_alias=AliasChoices("enable", "mem_agent_enable")
    )
    memcg_disable: Annotated[bool, About("Leave the memory of cgroups alone.", "Kata 3.13.0")] = False
    memcg_swap: Annotated[bool, About("Let eviction swap anonymous memory out.", "Kata 3.13.0")] = False
    memcg_swappiness_max: Annotated[int, About("The greatest swappiness of an eviction.", "Kata 3.13.0")] = (
        Field(50, ge=0, le=200)
    )
    memcg_period_secs: Annotated[
        Seconds, About("Time between two rounds over the cgroups.", "Kata 3.13.0")
    ] = Field(600, ge=1, le=DAY)
    memcg_period_psi_percent_limit: Annotated[
        Percent, About("Stall time in a period above which a cgroup is left alone.", "Kata 3.13.0")
    ] = Field(1, ge=0, le=100)
    memcg_eviction_psi_percent_limit: Annotated[
        Percent, About("Stall time during an eviction above which it stops.", "Kata 3.13.0")
    ] = Field(1, ge=0, le=100)
    memcg_eviction_run_aging_count_min: Annotated[
        int, About("Rounds of aging before a cgroup's memory is evicted.", "Kata 3.13.0")
    ] = Field(3, ge=0, le=LARGEST)
    compact_disable: Annotated[bool, About("Do not compact memory.", "Kata 3.13.0")] = False
    compact_period_secs: Annotated[
        Seconds, About("Time between two looks at the fragmentation.", "Kata 3.13.0")
    ] = Field(600, ge=1, le=DAY)
    compact_period_psi_percent_limit: Annotated[
        Percent, About("Stall time in a period above which nothing is compacted.", "Kata 3.13.0")
    ] = Field(1, ge=0, le=100)
    compact_psi_percent_limit: Annotated[
        Percent, About("Stall time during a compaction above which it stops.", "Kata 3.13.0")
    ] = Field(5, ge=0, le=100)
    compact_sec_max: Annotated[Seconds, About("The longest compaction.", "Kata 3.13.0")] = Field(
        300, ge=1, le=DAY
    )
    compact_order: Annotated[
        int, About("The order of free memory blocks below which memory is fragmented.", "Kata 3.13.0")
    ] = Field(9, ge=0, le=BYTE)
    compact_threshold: Annotated[
        int, About("Pages by which fragmentation grows until the next compaction.", "Kata 3.13.0")
    ] = Field(1024, ge=0, le=LARGEST)
    compact_force_times: Annotated[
        int, About("Periods without a compaction after which one is forced.", "Kata 3.13.0")
    ] = Field(LARGEST, ge=0, le=LARGEST)


class AgentPlanned(Table):
    """What the runtime will ask of the agent."""

    log_level: Annotated[
        LogLevel,
        About("The least level of the agent's messages in the runtime's log.", "Kata 3.0.0"),
        Instead(
            "the agent logs at the level info, and at debug with enable_debug = true",
            advice="remove it, and set enable_debug = true where more is to be logged",
        ),
    ] = "info"
    enable_tracing: Annotated[
        bool,
        About("Let the agent send traces.", "Kata 3.0.0"),
        Instead("no traces are sent; the log has the agent's messages, with enable_debug = true all of them"),
    ] = False
    debug_console_enabled: Annotated[
        bool,
        About("Open a console in the guest for whoever reaches it on the host.", "Kata 3.0.0"),
        NO_CONSOLE,
    ] = False
    debug_console_shell: Annotated[
        Text,
        About('The program of the guest that this console runs; "" is its own shell.', AFTER_4_1),
        NO_CONSOLE,
    ] = ""
    visible_cdi_devices: Annotated[
        bool,
        About("Let the agent add CDI devices that containers name in variables.", "Kata 3.32.0"),
        Instead(
            "a container gets the devices that its specification names, and none that a variable names",
            advice="remove it, and name block devices in the pod (volumeMode: Block)",
        ),
    ] = False
    server_port: Annotated[
        int,
        About("The vsock port that the agent listens on.", "Kata 3.0.0"),
        Instead("the agent listens on the port 1024 of its own guest, which no other guest shares"),
    ] = Field(1024, ge=1, le=2**32 - 2)
    log_port: Annotated[
        int,
        About("The vsock port that the agent's log comes from.", "Kata 3.0.0"),
        Instead("the agent's log comes by the guest's console, and by no port"),
    ] = Field(1025, ge=1, le=2**32 - 2)
    cdh_api_timeout_ms: Annotated[
        Milliseconds,
        Plausible(1000),
        About(
            "Time that the guest's confidential data hub has to answer.",
            "Kata 3.31.0",
        ),
        Instead("the guest has no confidential data hub, and nothing waits for one", lost=False),
    ] = Field(50000, ge=1000, le=3600000)
    launch_process_timeout: Annotated[
        Seconds,
        About("Time that the agent has to start its helpers; 0 is its own.", "Kata 3.29.0"),
        Instead("the agent starts no helpers, and nothing waits for them", lost=False),
    ] = Field(0, ge=0, le=3600)
    policy: Annotated[
        Text,
        About('The policy that the agent enforces, in Rego; "" is the image\'s own.', "Kata 3.23.0"),
        Instead(
            "the agent has no policy, and does for the runtime whatever that asks",
            advice="remove it, and have the cluster's admission decide which pods there are",
        ),
        Protects(),
    ] = ""
    mem_agent: Annotated[
        MemAgent,
        About("The memory agent.", "Kata 3.13.0"),
        Instead("the guest's kernel alone ages, evicts and compacts its memory"),
    ] = MemAgent.model_validate({})
