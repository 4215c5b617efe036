"""What a fuzzer calls with bytes: each target feeds a parser of hostile input, and lets no surprise pass.

An expected refusal is caught by the target; any other exception, and any broken promise, is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import fuzz_agent
import fuzz_devices
import fuzz_monitors
import fuzz_pod
import fuzz_unikernel

TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "agent_replies": fuzz_agent.agent_replies,
    "bootstrap": fuzz_pod.bootstrap,
    "broker_messages": fuzz_pod.broker_messages,
    "hypercalls": fuzz_unikernel.hypercalls,
    "kernel": fuzz_devices.kernel,
    "mux": fuzz_agent.mux,
    "oci_config": fuzz_pod.oci_config,
    "ports": fuzz_devices.ports,
    "qmp": fuzz_monitors.qmp,
    "queue": fuzz_devices.queue,
    "registers": fuzz_devices.registers,
    "requests": fuzz_devices.requests,
    "rest": fuzz_monitors.rest,
    "rollback": fuzz_pod.rollback,
    "saved_machines": fuzz_monitors.saved_machines,
    "ttrpc_client": fuzz_agent.ttrpc_client,
    "ttrpc_server": fuzz_agent.ttrpc_server,
    "unikernel": fuzz_unikernel.file,
    "urunc": fuzz_pod.urunc,
    "vhost_user": fuzz_devices.vhost_user,
    "vmm_commands": fuzz_pod.vmm_commands,
}
