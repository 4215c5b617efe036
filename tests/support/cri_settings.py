"""The settings of containerd's CRI plugin on a node of tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

KATA = "io.containerd.kata.v2"

_PLUGIN = """
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{networks}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "{default}"
"""
_RUNTIME = """\
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
      runtime_type = "{type}"
"""
_OF_KATA = """\
      privileged_without_host_devices = true
      pod_annotations = ["io.katacontainers.*"]
"""
_SANDBOXER = """\
      sandboxer = "{sandboxer}"
"""
_OPTIONS = """\
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}.options]
        ConfigPath = "{path}"
"""


def runtime(name: str, kind: str = KATA, *, configuration: Path | None = None, sandboxer: str = "") -> str:
    """The table of a handler. kind: the type of its runtime. configuration: its own, of ours.

    sandboxer: "shim" where the shim makes a pod's sandbox itself, which containerd 2 and later can ask of it.
    """
    text = _RUNTIME.format(name=name, type=kind)
    if sandboxer:
        text += _SANDBOXER.format(sandboxer=sandboxer)
    if kind == KATA:
        text += _OF_KATA
    return text + (_OPTIONS.format(name=name, path=configuration) if configuration is not None else "")


def plugin(runtimes: Iterable[str], *, default: str, pause: str, plugins: Path, networks: Path) -> str:
    """All tables. default: the handler of pods that name none. pause: the image of a pod's first container.

    plugins, networks: CNI's directories.
    """
    head = _PLUGIN.format(pause=pause, plugins=plugins, networks=networks, default=default)
    return head + "".join(runtimes)
