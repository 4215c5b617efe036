"""What a container may not do inside its guest: capabilities, seccomp, masked paths, devices, sysctls."""

from __future__ import annotations

from typing import Any

import pytest

from kata_agent.ttrpc.status import RpcError
from oci_bundle import CAPABILITIES
from shim_pod import Pod

pytestmark = pytest.mark.integration

# Bits of /usr/include/linux/capability.h.
DEFAULT_CAPABILITIES = "00000000a80425fb"
NET_ADMIN = "0000000000001000"


# What crun and a busybox shell need: an allow list in the manner of the default profile of containerd.
ALLOWED = (
    "access alarm arch_prctl brk capget capset chdir chmod chown clock_gettime clone clone3 close dup "
    "dup2 dup3 epoll_ctl epoll_pwait execve exit exit_group faccessat faccessat2 fchdir fchmod fchown "
    "fcntl fork fstat fstatfs futex getcwd getdents64 getegid geteuid getgid getgroups getpgrp getpid "
    "getppid getrandom getuid ioctl lseek lstat madvise mmap mprotect munmap nanosleep newfstatat open "
    "openat pipe pipe2 poll prctl prlimit64 read readlink rseq rt_sigaction rt_sigprocmask rt_sigreturn "
    "select set_robust_list set_tid_address setgid setgroups setuid sigaltstack stat statfs statx tgkill "
    "time umask uname utimensat vfork wait4 write writev"
)


def filtering(default: str, action: str, *names: str, **errno: int) -> dict[str, Any]:
    """A seccomp profile with one rule."""
    rule = {"names": list(names), "action": action, **errno}
    return {"seccomp": {"defaultAction": default, "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]}}


def status_of(text: str) -> dict[str, str]:
    """/proc/PID/status as a table."""
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


# -- capabilities and privileges ---------------------------------------------------------------------------


async def test_capabilities_are_exactly_the_specified(shim_pod: Pod) -> None:
    status = status_of((await shim_pod.run("cat", "/proc/self/status")).text)
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {DEFAULT_CAPABILITIES}
    assert status["CapInh"] == status["CapAmb"] == "0" * 16


async def test_one_capability_and_none(shim_pod: Pod) -> None:
    sets = ("bounding", "effective", "permitted", "inheritable", "ambient")
    for names, expected in ((["CAP_NET_ADMIN"], NET_ADMIN), ([], "0" * 16)):
        process = {"capabilities": dict.fromkeys(sets, names)}
        status = status_of((await shim_pod.run("cat", "/proc/self/status", process=process)).text)
        assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {expected}


async def test_an_ordinary_user_has_no_capabilities(shim_pod: Pod) -> None:
    process = {"user": {"uid": 1000, "gid": 1000}}
    status = status_of((await shim_pod.run("cat", "/proc/self/status", process=process)).text)
    assert (status["CapEff"], status["CapPrm"], status["CapBnd"]) == (
        "0" * 16,
        "0" * 16,
        DEFAULT_CAPABILITIES,
    )


async def test_an_exec_has_the_capabilities_of_its_request(shim_pod: Pod) -> None:
    names = {name: ["CAP_NET_ADMIN"] for name in ("bounding", "effective", "permitted")}
    status = status_of((await shim_pod.exec("cat", "/proc/self/status", capabilities=names)).text)
    assert (status["CapEff"], status["CapBnd"]) == (NET_ADMIN, NET_ADMIN)


@pytest.mark.parametrize("wanted", [True, False])
async def test_no_new_privileges(shim_pod: Pod, wanted: bool) -> None:
    process = {"noNewPrivileges": wanted}
    status = status_of((await shim_pod.run("cat", "/proc/self/status", process=process)).text)
    assert status["NoNewPrivs"] == str(int(wanted))


async def test_no_network_device_of_the_guest_can_be_changed_without_the_capability(shim_pod: Pod) -> None:
    finished = await shim_pod.run("ip", "link", "set", "lo", "down")
    assert finished.status != 0
    assert "CAP_NET_ADMIN" not in CAPABILITIES


# -- seccomp -----------------------------------------------------------------------------------------------


async def test_without_a_profile_there_is_no_filter(shim_pod: Pod) -> None:
    status = status_of((await shim_pod.run("cat", "/proc/self/status")).text)
    assert (status["Seccomp"], status["Seccomp_filters"]) == ("0", "0")


async def test_a_profile_that_denies_mkdir(shim_pod: Pod) -> None:
    linux = filtering("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "mkdir", "mkdirat", errnoRet=1)
    script = "grep Seccomp: /proc/self/status; mkdir /tmp/x; echo $?; touch /tmp/y && echo fine"
    finished = await shim_pod.run("sh", "-c", script, linux=linux)
    assert finished.stdout.split() == [b"Seccomp:", b"2", b"1", b"fine"]
    assert b"Operation not permitted" in finished.stderr


async def test_a_profile_that_allows_a_list(shim_pod: Pod) -> None:
    linux = filtering("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", *ALLOWED.split())
    script = "echo fine; ls / | grep etc; mkdir /tmp/x; unshare true; mount -t tmpfs x /mnt; sync; echo end"
    finished = await shim_pod.run("sh", "-c", script, linux=linux)
    assert finished.stdout == b"fine\netc\nend\n"
    assert (
        finished.stderr.count(b"Operation not permitted") + finished.stderr.count(b"permission denied") == 3
    )


async def test_a_profile_that_looks_at_an_argument(shim_pod: Pod) -> None:
    linux = filtering("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "chmod", errnoRet=13)
    linux["seccomp"]["syscalls"][0]["args"] = [{"index": 1, "value": 0o777, "op": "SCMP_CMP_EQ"}]
    script = "touch /tmp/x; chmod 755 /tmp/x && echo allowed; chmod 777 /tmp/x || echo refused"
    finished = await shim_pod.run("sh", "-c", script, linux=linux)
    assert finished.stdout == b"allowed\nrefused\n"
    assert b"Permission denied" in finished.stderr


async def test_the_error_number_of_a_profile(shim_pod: Pod) -> None:
    linux = filtering("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "mkdir", "mkdirat", errnoRet=28)
    finished = await shim_pod.run("mkdir", "/tmp/x", linux=linux)
    assert finished.status == 1
    assert b"No space left on device" in finished.stderr


async def test_an_exec_is_under_the_profile_too(shim_pod: Pod) -> None:
    linux = filtering("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "mkdir", "mkdirat", errnoRet=1)
    process = await shim_pod.start_container("sleep", "1000", linux=linux)
    finished = await shim_pod.exec("mkdir", "/tmp/x", container=process)
    assert finished.status == 1
    assert b"Operation not permitted" in finished.stderr
    await process.kill(9)
    await process.wait()
    await process.delete()


async def test_a_profile_that_kills(shim_pod: Pod) -> None:
    linux = filtering("SCMP_ACT_ALLOW", "SCMP_ACT_KILL_PROCESS", "mkdir", "mkdirat")
    finished = await shim_pod.run("sh", "-c", "mkdir /tmp/x; echo $?", linux=linux)
    assert finished.stdout.split()[-1] == b"159"  # 128 + SIGSYS


async def test_an_action_that_does_not_exist_is_refused(shim_pod: Pod) -> None:
    with pytest.raises(RpcError) as caught:
        await shim_pod.run("true", linux=filtering("SCMP_ACT_ALLOW", "SCMP_ACT_DANY", "mkdir"))
    assert "SCMP_ACT_DANY" in caught.value.message


# -- what is hidden ----------------------------------------------------------------------------------------


async def test_masked_paths(shim_pod: Pod) -> None:
    script = "cat /proc/kcore /proc/keys /proc/timer_list | wc -c; ls /sys/firmware /proc/acpi | grep -v :"
    finished = await shim_pod.run("sh", "-c", script)
    assert finished.stdout.split() == [b"0"]


async def test_read_only_paths(shim_pod: Pod) -> None:
    finished = await shim_pod.run(
        "sh", "-c", "echo 1 > /proc/sys/kernel/domainname; echo h > /proc/sysrq-trigger"
    )
    assert finished.status == 1
    assert finished.stderr.count(b"Read-only file system") == 2


async def test_sysctls_are_set_in_the_containers_namespaces(shim_pod: Pod) -> None:
    linux = {"sysctl": {"net.ipv4.ip_unprivileged_port_start": "777", "kernel.msgmax": "9000"}}
    script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax"
    assert (await shim_pod.run("sh", "-c", script, linux=linux)).text.split() == ["777", "9000"]


async def test_devices(shim_pod: Pod) -> None:
    script = (
        "head -c 3 /dev/zero | od -An -tx1; echo gone > /dev/null; head -c 8 /dev/urandom | wc -c; "
        "head -c 8 /dev/random | wc -c; echo > /dev/full; test -c /dev/tty && echo tty; ls /dev"
    )
    finished = await shim_pod.run("sh", "-c", script)
    zeros, urandom, random, tty, *names = finished.stdout.decode().splitlines()
    assert (zeros.split(), urandom, random, tty) == (["00"] * 3, "8", "8", "tty")
    assert finished.stderr == b"sh: write error: No space left on device\n"
    assert set(names) == {
        *("core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm"),
        *("stderr", "stdin", "stdout", "tty", "urandom", "zero"),
    } - ({"core"} - set(names))


async def test_a_device_that_was_not_given_cannot_be_opened(shim_pod: Pod) -> None:
    script = "mknod /dev/vda b 254 0; mknod /dev/mem c 1 1; head -c 1 /dev/vda; head -c 1 /dev/mem"
    finished = await shim_pod.run("sh", "-c", script)
    assert finished.stdout == b""
    assert finished.stderr.count(b"Operation not permitted") == 2


async def test_a_device_of_the_specification(shim_pod: Pod) -> None:
    linux = {
        "devices": [
            {
                "path": "/dev/also-null",
                "type": "c",
                "major": 1,
                "minor": 3,
                "fileMode": 0o620,
                "uid": 0,
                "gid": 5,
            }
        ],
        "resources": {
            "devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
            ]
        },
    }
    script = "echo x > /dev/also-null; stat -c '%t:%T %a %u:%g' /dev/also-null"
    assert (await shim_pod.run("sh", "-c", script, linux=linux)).text == "1:3 620 0:5\n"


async def test_the_cgroup_namespace_hides_the_guests_groups(shim_pod: Pod) -> None:
    assert (await shim_pod.run("cat", "/proc/self/cgroup")).text == "0::/\n"


async def test_the_cgroup_file_system_is_the_containers_own_and_read_only(shim_pod: Pod) -> None:
    script = "cat /sys/fs/cgroup/pids.current; mkdir /sys/fs/cgroup/x"
    finished = await shim_pod.run("sh", "-c", script, linux={"resources": {"pids": {"limit": 20}}})
    assert int(finished.stdout) in (1, 2)
    assert b"Read-only file system" in finished.stderr


async def test_the_agent_is_out_of_sight(shim_pod: Pod) -> None:
    finished = await shim_pod.run("sh", "-c", "ls -d /proc/[0-9]*; ls /run; mount | grep -c kata")
    assert finished.stdout.startswith(b"/proc/1\n")
    assert b"kata-containers" not in finished.stdout
    assert finished.stdout.split()[-1] == b"0"
