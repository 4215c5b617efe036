"""Virtual CPUs on CPUs of the host, with Cloud Hypervisor and Dragonball: `make test-rig`.

KATA_TEST_CLOUD_HYPERVISOR names that program. With QEMU: test_vcpu_pinning.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import shipped_configuration
from growing import end
from shim_harness import Lab
from shim_pod import Pod
from thread_cpus import cpus_of

pytestmark = [
    pytest.mark.rig,
    pytest.mark.anyio,
    pytest.mark.usefixtures("kvm"),
    pytest.mark.timeout(1800),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="this host has one CPU: none is told from all"),
]

# By driver: the process with the machine, and what names its program.
VMMS = {"clh": ("cloud-hypervisor", "KATA_TEST_CLOUD_HYPERVISOR"), "dragonball": ("shim", "")}


@pytest.mark.parametrize("driver", VMMS)
async def test_each_is_kept_on_its_cpu_and_let_go(driver: str, lab: Lab, guest_image: Path) -> None:
    process, variable = VMMS[driver]
    values = shipped_configuration.for_image(guest_image)
    del values["accelerator"]
    values |= {"enable_vcpus_pinning": True, "default_vcpus": 2, "overhead_vcpus": 0.0}
    if variable:
        if not Path(os.environ.get(variable, "/nonexistent")).exists():
            pytest.skip(f"{variable} names no program")
        values["path"] = Path(os.environ[variable])
    path = lab.directory / f"pinned-{driver}.toml"
    path.write_text(shipped_configuration.render(values, driver))
    async with Pod.running(lab, path) as pod:
        (pid,) = pod.pids(process)

        def vcpus() -> dict[str, str]:
            return {name: cpus for name, cpus in cpus_of(pid).items() if name.startswith("vcpu")}

        anywhere = vcpus()
        assert anywhere.keys() == {"vcpu0", "vcpu1"}
        container = await pod.start_container("sleep", "1000", linux={"resources": {"cpu": {"cpus": "0-1"}}})
        assert vcpus() == {"vcpu0": "0", "vcpu1": "1"}
        await end(container)
        assert vcpus() == anywhere
