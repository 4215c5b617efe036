"""A machine that Cloud Hypervisor saved, as another one that goes on from there sees it.

It restores from a directory with the files of SAVED, the first of which describes the machine. That of the
template names the sockets and disks of the machine that was saved: a new one gets a description of its own
beside links to the rest, in a directory of its sandbox's, for as long as it takes to restore.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kata_hypervisor.errors import SnapshotError

DESCRIPTION = "config.json"
STATE = ("state.json", "memory-ranges")
SAVED = (DESCRIPTION, *STATE)
VIEW = "restored"
"""In the sandbox's directory: what the VMM, which sees nothing else of it, restores from."""
LIMIT = 1 << 20


@contextmanager
def view(directory: Path) -> Iterator[None]:
    """Have the directory, still empty, below a sandbox's."""
    path = directory / VIEW
    path.mkdir(mode=0o755, exist_ok=True)
    try:
        yield
    finally:
        path.rmdir()


@contextmanager
def template_view(template: Path, directory: Path, config: dict[str, Any]) -> Iterator[None]:
    """Have a template's files in a directory, with the sockets and disks of a new machine's `config`.

    Raises:
        SnapshotError: the template is damaged, or the files cannot be made.
    """
    try:
        description = json.dumps(_described(template / DESCRIPTION, config))
    except OSError as error:
        raise SnapshotError(f"cannot start from {template}: {DESCRIPTION}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SnapshotError(
            f"cannot start from {template}: its {DESCRIPTION} is damaged; save a new one"
        ) from error
    with ExitStack() as made:
        try:
            for name in SAVED:
                made.callback((directory / name).unlink, missing_ok=True)
                (directory / name).unlink(missing_ok=True)
                if name != DESCRIPTION:
                    (directory / name).symlink_to(template / name)
            (directory / DESCRIPTION).write_text(description)
            (directory / DESCRIPTION).chmod(0o444)
        except OSError as error:
            raise SnapshotError(
                f"cannot start from {template}: {error.filename}: {error.strerror}"
            ) from error
        yield


def _described(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The saved description with what is the new machine's own in the places of the saved one's."""
    with path.open() as file:
        saved: dict[str, Any] = json.loads(file.read(LIMIT))
    saved["vsock"]["socket"] = config["vsock"]["socket"]
    for old, new in zip(saved.get("fs") or (), config.get("fs", ()), strict=True):
        old["socket"] = new["socket"]
    for old, new in zip(saved.get("disks") or (), config["disks"], strict=True):
        old["path"] = new["path"]
    return saved
