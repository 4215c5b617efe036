"""The options of `ctr run`, each seen from inside the container."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import containerd_versions
from node import Node, Pod

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]


def seen(pod: Pod, script: str, *options: str | Path, status: int = 0) -> str:
    """What a script in a container of the pod writes; it must end with this status."""
    result = pod.run("sh", "-c", script, options=options)
    assert (result.returncode, result.stderr) == (status, "")
    return result.stdout


def bind(source: Path, destination: str, mode: str) -> tuple[str, str]:
    return "--mount", f"type=bind,src={source},dst={destination},options=rbind:{mode}"


def test_arguments_environment_and_directory(pod: Pod) -> None:
    result = pod.run(
        *("sh", "-c", 'printf "%s|" "$@"; pwd; echo "$GREETING"', "name", "two words", "", "a\nb", "ä"),
        options=("--env", "GREETING=good  day", "--cwd", "/home/user"),
    )
    assert result.stdout == "two words||a\nb|ä|/home/user\ngood  day\n"


def test_a_user_by_name(nodes: Callable[[str], Node]) -> None:
    """An option of later versions of ctr."""
    node = nodes(containerd_versions.SECOND)
    result = node.run("sh", "-c", "id; touch /home/user/mine; touch /root/theirs", options=("--user", "user"))
    assert result.stdout == "uid=1000(user) gid=1000(user) groups=29(audio),1000(user),2000(extra)\n"
    assert result.stderr == "touch: /root/theirs: Permission denied\n"


def test_limits_are_the_machines_size(node: Node) -> None:
    """Static sizing: a container's limits, where it has any, fit into the machine that is made of them."""
    limits = ("--memory-limit", str(800 << 20), "--cpus", "1.5")
    result = node.run("sh", "-c", "nproc; grep MemTotal /proc/meminfo", options=limits)
    assert result.stderr == ""
    cpus, _, kibibytes, _ = result.stdout.split()
    assert int(cpus) == min(2, os.cpu_count() or 1)
    assert 800 << 10 < int(kibibytes) < 960 << 10


def test_a_read_only_root_file_system(pod: Pod) -> None:
    result = pod.run("touch", "/file", options=("--read-only",))
    assert (result.returncode, result.stderr) == (1, "touch: /file: Read-only file system\n")
    assert seen(pod, "touch /file && echo written") == "written\n"


def test_bind_mounts_show_what_the_host_does_and_the_host_what_they_do(pod: Pod, tmp_path: Path) -> None:
    node = pod.node
    (tmp_path / "file").write_text("one\n")
    # The guest may trust for a second what it knows of a file: virtio_fs_cache = "auto".
    script = """
        cat /rw/file /file
        until grep -q two /rw/file && grep -q two /file; do sleep 0.1; done
        cat /rw/file /file && echo back >/rw/answer
        exec sleep 3600"""
    mounts = (*bind(tmp_path, "/rw", "rw"), *bind(tmp_path / "file", "/file", "ro"))
    with pod.running("sh", "-c", script, options=mounts) as client:
        node.until(lambda: client.output == "one\none\n", "the first content")
        (tmp_path / "file").write_text("number two\n")
        node.until((tmp_path / "answer").exists, "the answer")
        assert client.output == "one\none\nnumber two\nnumber two\n"
        node.until(lambda: (tmp_path / "answer").read_text() == "back\n", "its content")


def test_a_read_only_mount_is_read_only_and_its_host_directory_unchanged(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    script = "for word in /ro/file /ro/new; do echo x >$word; done; rm /ro/file; chmod 0 /ro; cat /ro/file"
    result = pod.run("sh", "-c", script, options=bind(tmp_path, "/ro", "ro"))
    assert result.stderr.count("Read-only file system") == 4
    assert result.stdout == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_tmpfs(pod: Pod) -> None:
    mount = ("--mount", "type=tmpfs,src=tmpfs,dst=/scratch,options=size=1m:mode=1777:noexec")
    fill = "dd if=/dev/zero of=/scratch/f bs=1k count=2000 2>/dev/null"
    script = f"{fill}; stat -c %s /scratch/f; grep scratch /proc/mounts"
    written, mounted = seen(pod, script, *mount).splitlines()
    assert int(written) == 1 << 20
    assert mounted.startswith("tmpfs /scratch tmpfs rw,noexec,")


def test_a_directory_as_root_file_system(pod: Pod, tmp_path: Path) -> None:
    for name in ("bin", "proc", "dev", "sys", "run", "tmp", "etc"):
        (tmp_path / name).mkdir()
    shutil.copy("/bin/busybox", tmp_path / "bin/sh")
    result = pod.run("/bin/sh", "-c", "echo here >/made; exit 7", options=("--rootfs",), image=tmp_path)
    assert (result.returncode, result.stderr) == (7, "")
    assert (tmp_path / "made").read_text() == "here\n"


def test_the_default_seccomp_profile_is_in_force(pod: Pod) -> None:
    script = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; unshare --user true 2>&1; true"
    assert "NoNewPrivs:\t1\nSeccomp:\t0\n" in seen(pod, script)
    filtered = seen(pod, script, "--seccomp")
    assert filtered == "NoNewPrivs:\t1\nSeccomp:\t2\nunshare: unshare(0x10000000): Operation not permitted\n"


def test_a_privileged_container(nodes: Callable[[str], Node]) -> None:
    """Without the host's devices, by an option of later versions of ctr."""
    script = "grep CapEff /proc/self/status; mkdir /m; mount -t tmpfs none /m && echo mounted"
    with nodes(containerd_versions.SECOND).pod() as pod:
        usual = pod.run("sh", "-c", script)
        assert usual.stdout == "CapEff:\t00000000a80425fb\n"
        assert usual.stderr == "mount: permission denied (are you root?)\n"
        privileged = seen(pod, script, "--privileged", "--privileged-without-host-devices")
    _, capabilities, mounted = privileged.split()
    assert int(capabilities, 16).bit_count() > 30
    assert mounted == "mounted"


def test_a_user_namespace(node: Node) -> None:
    """The container's root is a user of the guest that has nothing there, and owns its own files."""
    script = "cat /proc/self/uid_map; id -u; stat -c %u /bin; touch /new && stat -c %u /new"
    mapped = ("--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536")
    done = node.run("sh", "-c", script, options=mapped)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "100000", "65536", "0", "0", "0"]


def test_a_volume_whose_mounts_are_to_reach_the_host_is_refused(node: Node, tmp_path: Path) -> None:
    mount = f"type=bind,src={tmp_path},dst=/volume,options=rbind:rw:rshared"
    done = node.run("true", options=("--mount", mount))
    assert done.returncode != 0
    assert "cannot make mounts on the host: its volume /volume is rshared" in done.stderr
