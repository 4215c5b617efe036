"""Block devices of the host in a container: disks of the guest, with what containerd gave and no more."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kata_runtime import direct_volumes
from kata_runtime.ctl.main import main as kata_ctl
from loop_devices import SIZE, loop_device
from node import Node, Pod

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes loop devices, on files NAME in the test's directory."""
    with ExitStack() as stack:
        yield lambda name, *options: stack.enter_context(loop_device(tmp_path / name, *options))


@pytest.fixture
def disk(loops: Callable[..., Path], tmp_path: Path) -> Path:
    """A block device whose content, a word, is in the file `disk`."""
    device = loops("disk")
    (tmp_path / "disk").write_bytes(b"from the host\n".ljust(SIZE, b"\0"))
    return device


READ = "dd if={0} bs=14 count=1 2>/dev/null"
WRITE = "printf from-the-guest | dd of={0} conv=fsync 2>/dev/null"


def test_the_only_container_of_a_sandbox_has_a_disk(node: Node, disk: Path, tmp_path: Path) -> None:
    script = f"{READ}; {WRITE}; stat -c '%F %a' {{0}}; blockdev --getsize64 {{0}}".format(disk)
    result = node.run("sh", "-c", script, options=("--device", disk))
    assert result.stderr == ""
    assert result.stdout == f"from the host\nblock special file 600\n{SIZE}\n"
    assert (tmp_path / "disk").read_bytes().startswith(b"from-the-guest")


SEEN = """
cd /sys/block
for disk in vd*; do
    [ "$(cat $disk/serial)" ] && echo "$(cd $disk/mq && ls | wc -l) $(cd $disk/queue && \\
        cat logical_block_size physical_block_size write_cache nr_requests | tr '\\n' ' ')"
done
grep -l 0x0005 /sys/bus/virtio/devices/*/device | wc -l
cat /sys/class/dmi/id/bios_vendor
"""


def test_the_guest_sees_the_disk_that_the_configuration_describes(node: Node, disk: Path) -> None:
    keys = {"num_queues": 2, "queue_size": 64, "enable_iothreads": True, "indep_iothreads": 2}
    keys |= {"block_device_logical_sector_size": 4096, "block_device_cache_noflush": True}
    keys |= {"reclaim_guest_freed_memory": True, "default_vcpus": 2}
    firmware = "/usr/share/seabios/bios-256k.bin"
    path = node.configuration("disks", firmware=firmware, **keys)
    options = ("--runtime-config-path", path, "--device", disk)
    with node.running("sh", "-c", f"{SEEN}echo all; sleep 3600", options=options) as client:
        node.until(lambda: "all\n" in client.output or client.ended, "what the guest sees")
        assert client.errors == ""
        qemu = Path(f"/proc/{node.pids(client.container)['qemu']}")
        threads = [thread.read_text().strip() for thread in qemu.glob("task/*/comm")]
        line = (qemu / "cmdline").read_text().split("\0")
        seen = client.output.splitlines()
    assert seen == ["2 4096 4096 write back 64 ", "1", "SeaBIOS", "all"]
    assert sorted(name for name in threads if name.startswith("IO block-")) == [
        f"IO block-{n}" for n in range(3)
    ]
    assert line[line.index("-bios") + 1] == firmware


def bind(source: Path, target: str, options: str) -> tuple[str, str]:
    return ("--mount", f"type=bind,src={source},dst={target},options={options}")


def both(source: Path, target: str, options: str) -> tuple[str | Path, ...]:
    """A mount of a device that the container may open."""
    return ("--device", source, *bind(source, target, options))


class TestPod:
    """What containers of a pod have that come later, in one machine."""

    def test_a_later_container_has_a_disk_and_the_pod_lets_it_go(
        self, pod: Pod, disk: Path, tmp_path: Path
    ) -> None:
        for word in (b"once\n", b"twice\n"):
            (tmp_path / "disk").write_bytes(word.ljust(SIZE, b"\0"))
            result = pod.run(
                "sh", "-c", f"head -n 1 {disk}; {WRITE.format(disk)}", options=("--device", disk)
            )
            assert (result.stdout, result.stderr) == (word.decode(), "")
            assert (tmp_path / "disk").read_bytes().startswith(b"from-the-guest")
            os.close(os.open(disk, os.O_RDONLY | os.O_EXCL))  # nobody has it any more

    def test_a_device_that_is_mounted_by_its_path_is_a_disk(self, pod: Pod, disk: Path) -> None:
        script = "head -n 1 /dev/volume; stat -c %F /dev/volume"
        result = pod.run("sh", "-c", script, options=both(disk, "/dev/volume", "rbind:ro"))
        assert result.stdout == "from the host\nblock special file\n"

    def test_a_node_alone_gives_no_device(self, pod: Pod, disk: Path) -> None:
        """Whoever fills a volume may have made it, of any number."""
        result = pod.run("true", options=bind(disk, "/dev/volume", "rbind:ro"))
        assert "and no device rule of the container allows it" in result.stderr
        with pod.running("sleep", "3600", options=("--device", disk)):
            result = pod.run("true", options=bind(disk, "/dev/volume", "rbind:ro"))
            assert "and no device rule of the container allows it" in result.stderr

    def test_two_containers_have_one_disk(self, pod: Pod, disk: Path) -> None:
        with pod.running("sleep", "3600", options=("--device", disk)) as first:
            result = pod.run("head", "-n", "1", "/dev/volume", options=both(disk, "/dev/volume", "rbind:ro"))
            assert (result.stdout, result.stderr) == ("from the host\n", "")
            read = pod.node.ctr("task", "exec", "--exec-id", "read", first.container, "head", "-n", "1", disk)
            assert read.stdout == "from the host\n"

    def test_a_device_that_somebody_uses_is_refused_by_name(self, pod: Pod, disk: Path) -> None:
        held = os.open(disk, os.O_RDONLY | os.O_EXCL)
        try:
            result = pod.run("true", options=("--device", disk))
        finally:
            os.close(held)
        assert f"cannot open {disk}: it is in use: it is mounted, or another pod" in result.stderr

    def test_a_device_that_is_read_only_is_not_given_to_be_written(
        self, pod: Pod, loops: Callable[..., Path]
    ) -> None:
        fixed = loops("fixed", "--read-only")
        result = pod.run("true", options=("--device", fixed))
        assert f"cannot open {fixed}: it is read-only; give it to the container read-only" in result.stderr

    def test_a_device_that_is_gone_is_refused_by_name(self, pod: Pod) -> None:
        gone = Path("/dev", f"gone-{os.getpid()}")
        os.mknod(gone, stat.S_IFBLK | 0o600, os.makedev(254, 4095))
        try:
            result = pod.run("true", options=("--device", gone))
        finally:
            gone.unlink()
        assert "the host has no block device 254:4095" in result.stderr

    def test_a_node_outside_of_dev_is_refused(self, pod: Pod, disk: Path) -> None:
        result = pod.run("true", options=both(disk, "/volume", "rbind:rw"))
        assert "the node /volume of a block device has to be below /dev" in result.stderr


class TestAssignedVolumes:
    """A directory of the host that stands for a device, whose file system the guest mounts."""

    @pytest.fixture
    def volume(self, tmp_path: Path) -> Iterator[Path]:
        """A directory that is registered for a device with an ext4; its file is DIRECTORY.img."""
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 is missing: install e2fsprogs")
        directory, file = tmp_path / "volume", tmp_path / "volume.img"
        directory.mkdir()
        with loop_device(file, size=4 * SIZE) as device:
            subprocess.run(["mkfs.ext4", "-q", device], check=True)
            metadata = {"fsGroup": "1234", "fsGroupChangePolicy": "OnRootMismatch"}
            register(directory, device=str(device), options=["noatime"], metadata=metadata)
            yield directory
            assert kata_ctl(["direct-volume", "remove", "--volume-path", str(directory)]) == 0

    def test_containers_of_a_pod_share_one_that_only_the_guest_mounts(self, pod: Pod, volume: Path) -> None:
        writer = "echo kept >/data/file; sleep 3600"
        with pod.running("sh", "-c", writer, options=bind(volume, "/data", "rbind:rw")):
            script = (
                "until cat /data/file; do sleep 0.1; done 2>/dev/null; echo x >/data/file || echo refused; "
                "grep ' /data ' /proc/mounts | cut -d' ' -f3,4; stat -c %g /data"
            )
            result = pod.run("sh", "-c", script, options=bind(volume, "/data", "rbind:ro"))
            kept, refused, mounted, group = result.stdout.splitlines()
            assert (kept, refused, group) == ("kept", "refused", "1234")
            assert mounted.startswith("ext4 ro,noatime")
            assert list(volume.iterdir()) == []  # the host has mounted nothing
        assert on_disk(volume, "file") == "kept\n"

    def test_one_that_is_registered_read_only(self, pod: Pod, volume: Path) -> None:
        register(volume, device=registered(volume)["device"], options=["ro"])
        script = "touch /data/x || echo refused"
        result = pod.run("sh", "-c", script, options=bind(volume, "/data", "rbind:rw"))
        assert result.stdout == "refused\n"

    def test_one_whose_device_is_in_use_is_refused_by_name(self, pod: Pod, volume: Path) -> None:
        device = registered(volume)["device"]
        held = os.open(device, os.O_RDONLY | os.O_EXCL)
        try:
            result = pod.run("true", options=bind(volume, "/data", "rbind:rw"))
        finally:
            os.close(held)
        assert f"cannot open {device}: it is in use" in result.stderr

    def test_one_whose_device_is_gone_is_refused_by_name(self, pod: Pod, volume: Path) -> None:
        register(volume, device="/dev/gone")
        result = pod.run("true", options=bind(volume, "/data", "rbind:rw"))
        assert f"{volume} stands for /dev/gone: No such file" in result.stderr

    def test_a_registration_that_others_could_write_is_refused(self, pod: Pod, volume: Path) -> None:
        Path(direct_volumes.directory_of(str(volume)), direct_volumes.FILE).chmod(0o666)
        result = pod.run("true", options=bind(volume, "/data", "rbind:rw"))
        assert "is not a file that root alone writes to" in result.stderr


def register(directory: Path, **described: object) -> None:
    """Have the command register a volume."""
    info = json.dumps({"volume-type": "block", "fstype": "ext4", **described})
    command = ["direct-volume", "add", "--volume-path", str(directory), "--mount-info", info]
    assert kata_ctl(command) == 0


def registered(directory: Path) -> dict[str, str]:
    """What is registered for a volume."""
    path = Path(direct_volumes.directory_of(str(directory)), direct_volumes.FILE)
    found: dict[str, str] = json.loads(path.read_text())
    return found


def on_disk(directory: Path, name: str) -> str:
    """A file of a volume that nobody has mounted."""
    command = ["debugfs", "-R", f"cat /{name}", f"{directory}.img"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
