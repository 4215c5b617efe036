"""The codes that containerd decides by."""

from __future__ import annotations

import pytest

from kata_agent.ttrpc.status import Code, RpcError
from kata_hypervisor.errors import NotSupportedError
from kata_runtime.errors import UnsupportedError
from kata_runtime.shim.codes import to_rpc_error


@pytest.mark.parametrize(
    "error", [UnsupportedError("no"), NotSupportedError("no"), RpcError(Code.UNIMPLEMENTED, "no")]
)
@pytest.mark.parametrize("service", ["containerd.task.v2.Task", "containerd.task.v3.Task"])
def test_containerd_2_does_not_create_again_what_cannot_be_created(service: str, error: Exception) -> None:
    assert to_rpc_error(f"{service}/Create", error).code is Code.FAILED_PRECONDITION
    for method in ("Checkpoint", "Update"):
        assert to_rpc_error(f"{service}/{method}", error).code is Code.UNIMPLEMENTED
