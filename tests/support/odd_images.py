"""Images of the kinds that old tools and odd builds have made, as stacks of directories for an overlay."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

TERABYTE = 1 << 40
LAYERS = 127
LAST_USER = 2**31 - 1


class OddImage(NamedTuple):
    """make: fills new layers above the usual root, lowest first. script: what a container looks at."""

    layers: int
    make: Callable[[list[Path]], None]
    script: str
    user: int = 0


def _without_users(layers: list[Path]) -> None:
    for name in ("passwd", "group"):
        (layers[0] / "etc").mkdir(exist_ok=True)
        _white_out(layers[0] / "etc" / name)


def _white_out(path: Path) -> None:
    os.mknod(path, 0o020000, os.makedev(0, 0))


def _whiteouts(layers: list[Path]) -> None:
    (layers[0] / "kept").mkdir()
    (layers[0] / "gone").write_text("x")
    (layers[0] / "kept" / "old").write_text("x")
    _white_out(layers[1] / "gone")
    (layers[1] / "kept").mkdir()
    os.setxattr(layers[1] / "kept", "trusted.overlay.opaque", b"y")
    (layers[1] / "kept" / "new").write_text("y")


def _hard_links(layers: list[Path]) -> None:
    (layers[0] / "one").write_text("shared")
    os.link(layers[0] / "one", layers[0] / "two")
    (layers[1] / "three").write_text("upper")
    os.link(layers[1] / "three", layers[1] / "four")


def _many(layers: list[Path]) -> None:
    for number, layer in enumerate(layers):
        (layer / "number").write_text(f"{number}\n")
        (layer / f"of-{number}").touch()


def _names(layers: list[Path]) -> None:
    directory = os.fsencode(layers[0] / "names")
    os.mkdir(directory)
    for name in (b"latin-\xe9\xff", b"-rf", b"a\nb", b"\xf0\x9f\x90\x8d", b"x" * 255):
        os.close(os.open(os.path.join(directory, name), os.O_CREAT | os.O_WRONLY))


def _set_user_id(layers: list[Path]) -> None:
    program = layers[0] / "who"
    shutil.copy("/bin/busybox", program)
    os.chown(program, 0, 0)
    program.chmod(0o4755)


def _anothers_files(layers: list[Path]) -> None:
    home = layers[0] / "mine"
    (home / "inner").mkdir(parents=True)
    (home / "file").write_text("of the image\n")
    for path in (home, home / "inner", home / "file"):
        os.chown(path, 1000, 1000)
    (home / "file").chmod(0o2755)


def _owner(layers: list[Path]) -> None:
    (layers[0] / "owned").touch()
    os.chown(layers[0] / "owned", LAST_USER, LAST_USER)


def _sparse(layers: list[Path]) -> None:
    with (layers[0] / "sparse").open("wb") as file:
        file.truncate(TERABYTE)
        file.seek(TERABYTE - 4)
        file.write(b"end\n")


def _links(layers: list[Path]) -> None:
    for name in ("run", "mnt"):
        _white_out(layers[0] / name)
        (layers[1] / name).symlink_to(f"/real/{name}")
    (layers[1] / "real" / "run").mkdir(parents=True)


def links_to_elsewhere(name: str) -> OddImage:
    """An image that has a link in the place of a directory that the kernel's own files are mounted on."""

    def make(layers: list[Path]) -> None:
        _white_out(layers[0] / name)
        (layers[1] / name).symlink_to(f"/real/{name}")
        (layers[1] / "real" / name).mkdir(parents=True)

    return OddImage(2, make, "true")


IMAGES: Mapping[str, OddImage] = {
    "no users": OddImage(1, _without_users, "id; ls /etc; touch /x; stat -c %u:%g /x"),
    "whiteouts": OddImage(
        2, _whiteouts, "ls / /kept; mkdir /gone; ls -d /gone; rm -r /kept; ls /kept; mkdir /kept"
    ),
    "hard links": OddImage(
        2,
        _hard_links,
        "stat -c '%n %h' /one /two /three /four; cat /four; ln /three /five; cat /five",
    ),
    "127 layers": OddImage(LAYERS, _many, "cat /number; ls -d /of-* | wc -l; rm /of-0; ls /of-0"),
    "names": OddImage(
        1, _names, 'cd /names; ls | od -c; for f in ./*; do cat "$f" && mv "$f" "$f"; done; ls -a | wc -l'
    ),
    "set user id": OddImage(1, _set_user_id, "stat -c %a:%u /who; /who id -u; chmod u-s /who", user=1000),
    "files of a user's": OddImage(
        1,
        _anothers_files,
        "cd /mine; touch new inner/new; echo more >> file; cat file; chmod 700 file inner; mv file inner/x; "
        "stat -c '%n %a %u:%g' . * inner/*; rm -r inner; ls",
        user=1000,
    ),
    "the last user": OddImage(
        1, _owner, "id -u; stat -c %u:%g /owned; echo x > /owned; cat /owned; touch /y; ls /y", user=LAST_USER
    ),
    "sparse": OddImage(
        1, _sparse, "stat -c %s:%b /sparse; tail -c 4 /sparse; truncate -s 5 /sparse; stat -c %s /sparse"
    ),
    "links": OddImage(2, _links, "ls -ld /run /mnt | cut -c 1; touch /run/x; ls /real /real/run"),
}
