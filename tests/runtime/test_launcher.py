"""The process that containerd starts: command line, dialects, imports, and a socket that somebody owns."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.containerd_api import bootstrap_pb2, runtimeoptions_pb2, task_pb2, types_pb2
from kata_runtime.ctl.shim import launcher_text, module_roots
from kata_runtime.shim import arguments, bootstrap, launcher, protobuf_lite

# Import tier 0. Each name is paid for by every pod: add one only with a measurement.
TIER_0 = {
    *("os", "os.path", "posixpath", "genericpath", "stat", "_stat", "_collections_abc", "__future__"),
    "_socket",
    "_sha256",
    "_sha2",
    "kata_runtime",
    "kata_runtime.identity",
    "kata_runtime.shim",
    "kata_runtime.shim.arguments",
    "kata_runtime.shim.bootstrap",
    "kata_runtime.shim.launcher",
    "kata_runtime.shim.protobuf_lite",
    "kata_runtime.shim.setup",
    "kata_runtime.shim.zygote_call",
    "kata_runtime.version",
}


def options(config_path: str) -> Any:
    packed = runtimeoptions_pb2.Options(config_path=config_path)
    return Any(type_url=packed.DESCRIPTOR.full_name, value=packed.SerializeToString())


class TestArguments:
    def test_containerds_command_line(self) -> None:
        argv = (
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id abc -debug start"
        )
        parsed = arguments.parse(argv.split())
        assert parsed.action == "start"
        assert parsed.value("namespace") == "k8s.io"
        assert parsed.require("id") == "abc"
        assert parsed.switches == {"debug"}

    def test_double_dashes_and_equal_signs(self) -> None:
        parsed = arguments.parse(["--id=a b", "-debug=false", "delete"])
        assert parsed.value("id") == "a b"
        assert parsed.switches == set()

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["-nonsense", "start"], "unknown flag"),
            (["-id"], "needs a value"),
            (["run"], "unknown action"),
            (["start", "now"], "unexpected arguments"),
        ],
    )
    def test_refusals(self, argv: list[str], message: str) -> None:
        with pytest.raises(arguments.UsageError, match=message):
            arguments.parse(argv)

    def test_a_missing_flag_is_named(self) -> None:
        with pytest.raises(arguments.UsageError, match="-address is missing"):
            arguments.parse(["start"]).require("address")


class TestDialects:
    def test_nothing_on_stdin_is_answered_plainly(self) -> None:
        call = bootstrap.read_call(b"", "abc", None)
        assert call.dialect == "plain"
        assert bootstrap.answer("plain", "unix:///run/s") == b"unix:///run/s"

    def test_options_on_stdin_name_the_configuration(self) -> None:
        call = bootstrap.read_call(options("/etc/kata.toml").SerializeToString(), "abc", None)
        assert (call.dialect, call.config_path) == ("plain", "/etc/kata.toml")

    def test_options_of_another_runtime_are_not_ours(self) -> None:
        other = Any(type_url="containerd.runc.v1.Options", value=b"\x12\x04/etc")
        assert bootstrap.read_call(other.SerializeToString(), "abc", None).config_path is None

    def test_json_is_chosen_by_the_environment(self) -> None:
        assert bootstrap.read_call(b"", "abc", "3").dialect == "json"
        answer = json.loads(bootstrap.answer("json", "unix:///run/s"))
        assert answer == {"version": 3, "address": "unix:///run/s", "protocol": "ttrpc"}

    def test_bootstrap_parameters_are_answered_with_protobuf(self) -> None:
        params = bootstrap_pb2.BootstrapParams(
            instance_id="abc",
            namespace="default",
            containerd_ttrpc_address="/run/c.ttrpc",
            socket_dir="/run/own",
            extensions=[bootstrap_pb2.Extension(value=options("/etc/kata.toml"))],
        )
        call = bootstrap.read_call(params.SerializeToString(), "abc", None)
        assert call.dialect == "protobuf"
        assert (call.socket_root, call.ttrpc_address, call.config_path) == (
            "/run/own",
            "/run/c.ttrpc",
            "/etc/kata.toml",
        )
        result = bootstrap_pb2.BootstrapResult.FromString(bootstrap.answer("protobuf", "unix:///run/s"))
        assert (result.version, result.address, result.protocol) == (3, "unix:///run/s", "ttrpc")

    @given(st.binary(max_size=200))
    def test_any_bytes_are_survived(self, data: bytes) -> None:
        assert bootstrap.read_call(data, "abc", None).dialect in ("plain", "protobuf")

    def test_info_and_delete_are_protobuf(self) -> None:
        info = types_pb2.RuntimeInfo.FromString(bootstrap.runtime_info("io.containerd.kata.v2", "1.2"))
        assert (info.name, info.version.version) == ("io.containerd.kata.v2", "1.2")
        assert info.features.type_url.endswith("runtime-spec/1/features/Features")
        features = json.loads(info.features.value)
        assert "rro" in features["mountOptions"]
        assert features["linux"]["mountExtensions"]["idmap"] == {"enabled": False}
        deleted = task_pb2.DeleteResponse.FromString(bootstrap.delete_response(7, 137, 1_500_000_000))
        assert (deleted.pid, deleted.exit_status) == (7, 137)
        assert (deleted.exited_at.seconds, deleted.exited_at.nanos) == (1, 500_000_000)


class TestProtobufLite:
    @given(st.integers(0, 2**64 - 1))
    def test_varints_return(self, value: int) -> None:
        encoded = protobuf_lite.number_field(5, value)
        assert protobuf_lite.fields(encoded) == ([(5, value)] if value else [])

    @given(st.binary(max_size=100))
    def test_malformed_bytes_are_refused_or_read(self, data: bytes) -> None:
        try:
            found = protobuf_lite.fields(data)
        except protobuf_lite.MalformedError:
            return
        assert all(number > 0 or isinstance(value, int) for number, value in found)


class TestSandboxOfBundle:
    def write(self, bundle: Path, annotations: dict[str, str]) -> str:
        (bundle / "config.json").write_text(json.dumps({"annotations": annotations}))
        return str(bundle)

    def test_a_container_of_ctr_is_its_own_sandbox(self, tmp_path: Path) -> None:
        assert launcher.sandbox_of_bundle(self.write(tmp_path, {})) is None

    def test_the_pods_first_container_is_its_own_sandbox(self, tmp_path: Path) -> None:
        annotations = {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "pod"}
        assert launcher.sandbox_of_bundle(self.write(tmp_path, annotations)) is None

    @pytest.mark.parametrize(
        "prefix", ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"]
    )
    def test_a_further_container_names_its_sandbox(self, tmp_path: Path, prefix: str) -> None:
        key = (
            "io.kubernetes.cri.sandbox-id"
            if prefix.startswith("io.kubernetes.cri.")
            else "io.kubernetes.cri-o.SandboxID"
        )
        assert launcher.sandbox_of_bundle(self.write(tmp_path, {prefix: "container", key: "pod"})) == "pod"

    def test_an_unreadable_bundle_is_left_to_create(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"annotations": io.kubernetes.cri.container-type')
        assert launcher.sandbox_of_bundle(str(tmp_path)) is None
        assert launcher.sandbox_of_bundle(str(tmp_path / "missing")) is None


def run_launcher(tmp_path: Path, *argv: str, source: str | None = None) -> subprocess.CompletedProcess[bytes]:
    script = tmp_path / "shim"
    script.write_text(source or launcher_text(sys.executable, module_roots()))
    return subprocess.run(
        [sys.executable, "-IS", str(script), *argv],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        cwd=tmp_path,
        check=False,
    )


class TestProcess:
    def test_start_imports_only_tier_0(self, tmp_path: Path) -> None:
        probe = (
            f"import sys\nsys.path += {module_roots()!r}\nbefore = set(sys.modules)\n"
            "import kata_runtime.shim.launcher\nprint(*sorted(set(sys.modules) - before))"
        )
        result = run_launcher(tmp_path, source=probe)
        assert result.returncode == 0, result.stderr
        assert set(result.stdout.decode().split()) <= TIER_0

    def test_version_and_info(self, tmp_path: Path) -> None:
        assert b"Version:" in run_launcher(tmp_path, "-v").stdout
        info = types_pb2.RuntimeInfo.FromString(run_launcher(tmp_path, "-info").stdout)
        assert info.name == "io.containerd.kata.v2"

    def test_a_wrong_call_is_one_line_on_stderr_and_a_status(self, tmp_path: Path) -> None:
        result = run_launcher(tmp_path, "-id", "../../etc", "-namespace", "ns", "-address", "/a", "start")
        assert result.returncode == 1
        assert result.stdout == b""
        assert result.stderr.startswith(b"containerd-shim-kata-v2: invalid sandbox id '../../etc'")
        assert result.stderr.count(b"\n") == 1

    def test_a_container_of_a_dead_pod_is_refused(self, tmp_path: Path) -> None:
        annotations = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"}
        (tmp_path / "config.json").write_text(json.dumps({"annotations": annotations}))
        result = run_launcher(tmp_path, "-id", "c1", "-namespace", "ns", "-address", str(tmp_path), "start")
        assert result.returncode == 1
        assert b"the sandbox pod of container c1 is not running" in result.stderr


class TestListen:
    def test_a_stale_socket_is_replaced(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(path)
        stale.close()
        listener = launcher._listen(path)
        assert listener is not None
        assert oct(os.stat(path).st_mode & 0o777) == "0o600"
        listener.close()

    def test_a_live_socket_is_left_to_its_owner(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as live:
            live.bind(path)
            live.listen()
            assert launcher._listen(path) is None
