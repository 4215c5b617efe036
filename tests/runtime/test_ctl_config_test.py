"""kata-ctl config test: whether a pod would start, as what machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.ctl import check
from kata_runtime.ctl.findings import Finding, Setup, Status
from kata_runtime.ctl.main import main
from kata_runtime.ctl.pod_document import read_pod

Capture = pytest.CaptureFixture[str]
Judge = Callable[..., tuple[int, str]]


def limited(**limits: str) -> dict[str, Any]:
    return {"name": "one", "resources": {"limits": limits}}


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Judge:
    """Judges a pod by a configuration whose files exist, on a host on which everything is there."""
    for name in ("qemu", "vmlinuz", "image", "virtiofsd"):
        (tmp_path / name).write_bytes(b"--shared-dir")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(check, "CHECKS", ())

    def judge(pod: dict[str, Any], settings: str = "") -> tuple[int, str]:
        configuration, file = tmp_path / "configuration.toml", tmp_path / "pod.json"
        configuration.write_text(
            f'[hypervisor.qemu]\npath = "{tmp_path}/qemu"\nkernel = "{tmp_path}/vmlinuz"\n'
            f'image = "{tmp_path}/image"\nvirtio_fs_daemon = "{tmp_path}/virtiofsd"\n'
            f'accelerator = "tcg"\nenable_annotations = ["default_memory"]\n{settings}'
        )
        file.write_text(json.dumps(pod))
        status = main(["config", "test", "--pod", str(file), "--config", str(configuration)])
        return status, capsys.readouterr().out

    return judge


def pod(
    *containers: dict[str, Any], annotations: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {"annotations": annotations or {}},
        "spec": {"containers": list(containers), **spec},
    }


def test_a_pod_that_starts(judge: Judge) -> None:
    status, text = judge(pod(limited(cpu="1500m", memory="600Mi"), limited(cpu="1", memory="100Mi")))
    assert status == 0
    assert "machine:     qemu, 3 vCPUs, 840 MiB (from container limits)" in text
    assert "VMM:         seccomp: on," in text
    assert text.endswith("the pod starts here, as far as can be told beforehand\n")


def test_an_init_container_may_need_more(judge: Judge) -> None:
    _, text = judge(pod(limited(memory="100Mi"), initContainers=[limited(memory="1Gi")]))
    assert "1184 MiB" in text


def test_an_annotation_that_is_not_allowed(judge: Judge) -> None:
    annotations = {"io.katacontainers.config.hypervisor.path": "/bin/sh"}
    status, text = judge(pod(limited(), annotations=annotations))
    assert status == 1
    assert text.startswith("the pod does not start:\n")
    assert "KATA701" in text


def test_an_annotation_that_is_in_force(judge: Judge) -> None:
    annotations = {"io.katacontainers.config.hypervisor.default_memory": "2048"}
    status, text = judge(pod(limited(), annotations=annotations))
    assert (status, "1 vCPUs, 2048 MiB (from configuration)" in text) == (0, True)


def test_the_hosts_network_speaks_against_it(judge: Judge) -> None:
    status, text = judge(pod(limited(), hostNetwork=True))
    assert status == 1
    assert "against it:" in text
    assert "host" in text
    assert text.endswith("the pod does not start here, as far as can be told beforehand\n")


def test_a_host_that_lacks_something_speaks_against_it(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(setup: Setup) -> Finding:
        return Finding("memory", Status.FAIL, f"{setup.memory_mib} MiB are not there", "buy some")

    monkeypatch.setattr(check, "CHECKS", (lacking,))
    status, text = judge(pod(limited(memory="300Mi")))
    assert (status, "against it:  memory: 416 MiB are not there (buy some)" in text) == (1, True)


def test_a_bundle_has_its_own_limits(judge: Judge) -> None:
    bundle = {
        "ociVersion": "1.1.0",
        "linux": {"resources": {"memory": {"limit": 256 << 20}}, "namespaces": [{"type": "network"}]},
    }
    status, text = judge(bundle)
    assert (status, "1 vCPUs, 368 MiB (from container limits)" in text) == (0, True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "is not JSON"),
        ("[]", "is no pod"),
        ('{"kind": "Pod", "spec": {"containers": 1}}', "spec.containers is not an array of objects"),
        (json.dumps(pod(limited(memory="lots"))), "'lots' is not a quantity"),
        (json.dumps(pod({"resources": 3})), "resources is not an object"),
    ],
)
def test_a_document_that_is_no_pod(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "pod.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(says)):
        read_pod(file)


@pytest.mark.parametrize(
    ("quantity", "mebibytes"), [("1Gi", 1024), ("1048576k", 1000), ("512Mi", 512), ("0", 0), ("0.5Gi", 512)]
)
def test_quantities(tmp_path: Path, quantity: str, mebibytes: int) -> None:
    file = tmp_path / "pod.json"
    file.write_text(json.dumps(pod(limited(memory=quantity))))
    written = read_pod(file).spec["annotations"]["io.kubernetes.cri.sandbox-memory"]
    assert int(written) >> 20 == mebibytes
