"""kata-ctl zygote: the process that forks shims; without it each shim imports everything for itself."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kata_configuration.tell import whole_file
from kata_runtime.ctl.errors import CommandError
from kata_runtime.ctl.shim import module_roots, program_text
from kata_runtime.shim import zygote_call

DONE, FAILED = 0, 1
NOBODY = 3
"""What kata-zygote exits with when no other serves."""
PROGRAM = "kata-zygote"
MODULE = "kata_runtime.zygote.server"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

SOCKET_UNIT = """\
# Written by `kata-ctl zygote install`.
[Unit]
Description=Socket of the process that forks Kata's shims
Before=containerd.service

[Socket]
ListenSequentialPacket={socket}
SocketMode=0600
DirectoryMode=0700
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""

SERVICE_UNIT = """\
# Written by `kata-ctl zygote install`.
# Shims are forked by this service, and are what it is: it may be confined in no other way than containerd is,
# or shims start without it. Limits, cgroup and priorities each shim takes over from containerd.
[Unit]
Description=Forks Kata's shims, with everything imported
Requires=kata-zygote.socket
After=kata-zygote.socket
Before=containerd.service

[Service]
ExecStart={program}
KillMode=process
Restart=on-failure

[Install]
WantedBy=multi-user.target
Also=kata-zygote.socket
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `zygote` command."""
    parser = subparsers.add_parser("zygote", help="start and show the process that forks shims")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    status = actions.add_parser(
        "status", help="show the zygote of this installation; exit status 1 when there is none"
    )
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)
    start = actions.add_parser("start", help="start it, where systemd does not")
    start.set_defaults(run=_start)
    stop = actions.add_parser("stop", help="end it; shims that it forked are not concerned")
    stop.set_defaults(run=_stop)
    install = actions.add_parser("install", help="write its program, and units for systemd")
    install.add_argument(
        "directory",
        nargs="?",
        default=Path("/usr/local/bin"),
        type=Path,
        help="where the program goes; default: %(default)s",
    )
    install.add_argument(
        "--units",
        default=Path("/etc/systemd/system"),
        type=Path,
        metavar="DIRECTORY",
        help="where the units go; default: %(default)s",
    )
    install.set_defaults(run=_install)


def _text() -> str:
    return program_text(sys.executable, module_roots(), MODULE, "zygote install")


def _ask(action: str) -> tuple[dict[str, Any] | None, str]:
    """What the zygote of this installation answers, or None and why it does not.

    By an interpreter that is started as the zygote is: that is a part of the installation's name.
    """
    command = [sys.executable, "-IS", "-c", _text(), action]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (DONE, NOBODY):
        raise CommandError(f"{PROGRAM} {action} failed with status {done.returncode}: {done.stderr.strip()}")
    return (json.loads(done.stdout), "") if done.returncode == 0 else (None, done.stderr.strip())


def _status(arguments: argparse.Namespace) -> int:
    report, why = _ask("status")
    if report is None:
        print(f"{why}\nshims start without it, and import everything for themselves", file=sys.stderr)
        return FAILED
    if arguments.json:
        print(json.dumps(report, indent=2))
        return DONE
    for name, value in report.items():
        print(f"{name.replace('_', ' '):<18} {value}")
    return DONE


def _start(_: argparse.Namespace) -> int:
    report, _why = _ask("status")
    if report is not None:
        print(f"it runs already, as process {report['pid']}")
        return DONE
    if os.geteuid() != 0:
        print("a zygote needs root: it forks the shims of containers", file=sys.stderr)
        return FAILED
    os.makedirs(zygote_call.ROOT, mode=0o700, exist_ok=True)
    log = Path(zygote_call.ROOT, "log")
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _text()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            cwd="/",
            env={"PATH": PATH, **_configured()},
            start_new_session=True,
        )
    while report is None:
        if process.poll() is not None:
            print(f"it has ended: see {log}", file=sys.stderr)
            return FAILED
        time.sleep(0.05)
        report, _why = _ask("status")
    print(f"started, as process {report['pid']}")
    return DONE


def _configured() -> dict[str, str]:
    """The variable that names the configuration in force, if there is one."""
    from kata_configuration.layer.discovery import ENVIRONMENT

    return {ENVIRONMENT: os.environ[ENVIRONMENT]} if ENVIRONMENT in os.environ else {}


def _stop(_: argparse.Namespace) -> int:
    answer, why = _ask("stop")
    if answer is None:
        print(why, file=sys.stderr)
        return FAILED
    print(f"stopped process {answer['pid']}")
    if answer["socket_stays"]:
        print("systemd starts it again for the next shim: systemctl stop kata-zygote.socket")
    return DONE


def _install(arguments: argparse.Namespace) -> int:
    program: Path = arguments.directory / PROGRAM
    whole_file.replace(program, _text().encode(), 0o755)
    place = subprocess.run(
        [sys.executable, "-IS", program, "place"], capture_output=True, text=True, check=True
    ).stdout.strip()
    for name, text in (
        (f"{PROGRAM}.socket", SOCKET_UNIT.format(socket=place)),
        (f"{PROGRAM}.service", SERVICE_UNIT.format(program=os.path.abspath(program))),
    ):
        whole_file.replace(arguments.units / name, text.encode(), whole_file.NEW_MODE)
        print(f"installed {arguments.units / name}")
    print(f"installed {program}; systemctl enable --now {PROGRAM}.service starts it")
    return DONE
