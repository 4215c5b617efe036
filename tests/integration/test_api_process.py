"""A container's process gets what its specification says, and ends as it should."""

from __future__ import annotations

import pytest

from kata_agent.ttrpc.status import Code, RpcError
from shim_pod import Pod

pytestmark = pytest.mark.integration

SIGNALS = {"HUP": 1, "INT": 2, "KILL": 9, "USR1": 10, "TERM": 15}


# -- ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 42, 255])
async def test_exit_status_is_the_programs(shim_pod: Pod, status: int) -> None:
    finished = await shim_pod.run("sh", "-c", f"exit {status}")
    assert (finished.status, finished.stdout, finished.stderr) == (status, b"", b"")


@pytest.mark.parametrize("name", SIGNALS)
async def test_a_signal_ends_a_process_with_128_and_its_number(shim_pod: Pod, name: str) -> None:
    # Not PID 1, for which the kernel ignores the signals that it has no handler for.
    exec_ = await shim_pod.start_exec("sleep", "1000")
    await exec_.kill(SIGNALS[name])
    assert (await exec_.finish()).status == 128 + SIGNALS[name]


@pytest.mark.parametrize("name", ["TERM", "INT", "USR1"])
async def test_a_container_handles_a_signal(shim_pod: Pod, name: str) -> None:
    script = f"trap 'echo caught {name}; exit 7' {name}; echo ready; while :; do sleep 0.05; done"
    process = await shim_pod.start_container("sh", "-c", script)
    assert process.streams.stdout is not None
    assert await process.streams.stdout.read_until(b"\n") == b"ready\n"
    await process.kill(SIGNALS[name])
    finished = await process.finish()
    assert (finished.status, finished.stdout) == (7, f"caught {name}\n".encode())


async def test_a_signal_right_after_the_start_is_not_lost(shim_pod: Pod) -> None:
    for _ in range(3):
        script = "trap 'exit 143' TERM; while :; do sleep 0.05; done"
        process = await shim_pod.start_container("sh", "-c", script)
        await process.kill(SIGNALS["TERM"])
        assert (await process.finish()).status == 143


async def test_sigkill_ends_a_container_with_137(shim_pod: Pod) -> None:
    process = await shim_pod.start_container("sh", "-c", "trap '' TERM INT HUP; while :; do sleep 100; done")
    await process.kill(15)
    await process.kill(9)
    assert (await process.finish()).status == 137


async def test_kill_all_reaches_every_process(shim_pod: Pod) -> None:
    script = (
        "sh -c 'trap \"echo child; exit 0\" USR1; echo ready; while :; do sleep 0.05; done' & wait $!; wait"
    )
    process = await shim_pod.start_container("sh", "-c", f"trap 'echo parent' USR1; {script}")
    assert process.streams.stdout is not None
    await process.streams.stdout.read_until(b"ready\n")
    await process.kill(SIGNALS["USR1"], everyone=True)
    finished = await process.finish()
    assert sorted(finished.stdout.split()) == [b"child", b"parent"]


async def test_kill_all_with_sigkill_ends_execs_too(shim_pod: Pod) -> None:
    process = await shim_pod.start_container("sleep", "1000")
    exec_ = await shim_pod.start_exec("sleep", "1000", container=process)
    await process.kill(9, everyone=True)
    assert await exec_.wait() == 137
    assert (await exec_.finish()).status == 137
    assert (await process.finish()).status == 137


async def test_kill_of_what_is_unknown_or_has_ended_is_not_found(shim_pod: Pod) -> None:
    process = await shim_pod.start_container("true")
    await process.wait()
    for one, exec_id in ((process.id, ""), (process.id, "absent"), ("absent", "")):
        with pytest.raises(RpcError) as caught:
            await shim_pod.shim.task("Kill", signal=15, id=one, exec_id=exec_id)
        assert caught.value.code is Code.NOT_FOUND
    await process.delete()
    with pytest.raises(RpcError) as caught:
        await process.kill(15)
    assert caught.value.code is Code.NOT_FOUND


async def test_an_executable_that_does_not_exist_is_named(shim_pod: Pod) -> None:
    with pytest.raises(RpcError) as caught:
        await shim_pod.run("/bin/no-such-program")
    assert "no-such-program" in caught.value.message.partition("\n")[0]
    assert "\n" not in caught.value.message


# -- what a process is given -------------------------------------------------------------------------------


async def test_arguments_arrive_as_they_are(shim_pod: Pod) -> None:
    arguments = [
        "two words",
        "",
        "'single'",
        '"double"',
        "line\nbreak",
        "tab\t",
        "übergrößé 漢字 🐍",
        "$HOME `x` \\",
        "-x",
    ]
    script = 'for word; do printf "%s\\0" "$word"; done'
    finished = await shim_pod.run("sh", "-c", script, "sh", *arguments)
    assert finished.text.split("\0") == [*arguments, ""]


async def test_environment_is_exactly_the_specified(shim_pod: Pod) -> None:
    environment = [
        "PATH=/usr/bin:/bin",
        "EMPTY=",
        "SPACES=a  b ",
        "EQUALS=a=b=c",
        "LINES=a\nb",
        "UNICODE=é漢",
    ]
    finished = await shim_pod.run("cat", "/proc/self/environ", process={"env": environment})
    assert sorted(set(finished.text.rstrip("\0").split("\0")) - {"HOME=/root"}) == sorted(environment)


async def test_working_directory(shim_pod: Pod) -> None:
    assert (await shim_pod.run("pwd", process={"cwd": "/home/user"})).text == "/home/user\n"


async def test_user_groups_and_umask(shim_pod: Pod) -> None:
    user = {"uid": 1000, "gid": 1000, "additionalGids": [29, 2000], "umask": 0o027}
    script = "id -u; id -g; id -G; umask; touch /tmp/made; stat -c '%a %u:%g' /tmp/made"
    finished = await shim_pod.run("sh", "-c", script, process={"user": user})
    assert finished.text.splitlines() == ["1000", "1000", "1000 29 2000", "0027", "640 1000:1000"]


async def test_umask_is_0022_by_default(shim_pod: Pod) -> None:
    assert (await shim_pod.run("sh", "-c", "umask")).text == "0022\n"


async def test_hostname_is_the_containers_or_the_pods(shim_pod: Pod) -> None:
    assert (await shim_pod.exec("hostname")).text == "pod-host\n"


async def test_rlimits(shim_pod: Pod) -> None:
    limits = [
        {"type": "RLIMIT_NOFILE", "soft": 111, "hard": 222},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096},
        {"type": "RLIMIT_CPU", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]
    finished = await shim_pod.run("cat", "/proc/self/limits", process={"rlimits": limits})
    found = {line[:26].strip(): line[26:].split()[:2] for line in finished.text.splitlines()}
    assert found["Max open files"] == ["111", "222"]
    assert found["Max core file size"] == ["0", "4096"]
    assert found["Max cpu time"] == ["unlimited", "unlimited"]


async def test_oom_score_adjustment(shim_pod: Pod) -> None:
    finished = await shim_pod.run("cat", "/proc/self/oom_score_adj", process={"oomScoreAdj": 555})
    assert finished.text == "555\n"
