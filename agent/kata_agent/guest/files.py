"""Files that the host puts into the guest, and trees that the agent removes.

The host names paths, and containers may own what lies on the way: every component is opened by itself, and a
symbolic link is an error, so that nothing is ever written elsewhere.
"""

from __future__ import annotations

import os
import stat

from kata_agent.guest.errors import GuestError, InvalidRequestError
from kata_agent.protos import agent_pb2

_PERMISSIONS = 0o7777
_PATH_ONLY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_file(request: agent_pb2.CopyFileRequest, base: str = "/run") -> None:
    """Create the file, directory or symbolic link that a CopyFile request describes, below base.

    A file arrives in one or several pieces, in order: it is written beside its place and moved there when it
    has file_size bytes. Parents that are missing are created with dir_mode. The kind is the one in file_mode;
    a link's target is in data.

    Raises:
        InvalidRequestError: the path leads out of base or through a link, or a piece is out of place.
    """
    parents, name = _split(request.path, base)
    directory = _open_parents(base, parents, request)
    try:
        kind = stat.S_IFMT(request.file_mode)
        if kind == stat.S_IFDIR:
            _make_directory(directory, name, request)
        elif kind == stat.S_IFLNK:
            _make_link(directory, name, request)
        elif kind in (0, stat.S_IFREG):
            _write_piece(directory, name, request)
        else:
            raise InvalidRequestError(f"copy {request.path}: mode {request.file_mode:#o} is of no known kind")
    finally:
        os.close(directory)


def _split(path: str, base: str) -> tuple[list[str], str]:
    parts = path.split("/")
    below = base.strip("/").split("/")
    inner = parts[1 + len(below) :]
    if parts[0] or parts[1 : 1 + len(below)] != below or not inner or "\0" in path:
        raise InvalidRequestError(f"copy {path!r}: only paths below {base} can be written")
    if any(part in ("", ".", "..") for part in inner):
        raise InvalidRequestError(f"copy {path!r}: not a plain path")
    return inner[:-1], inner[-1]


def _open_parents(base: str, parents: list[str], request: agent_pb2.CopyFileRequest) -> int:
    directory = os.open(base, _PATH_ONLY)
    for part in parents:
        try:
            inner = _enter(directory, part, request)
        finally:
            os.close(directory)
        directory = inner
    return directory


def _enter(directory: int, part: str, request: agent_pb2.CopyFileRequest) -> int:
    try:
        return _open_directory(directory, part, request)
    except FileNotFoundError:
        os.mkdir(part, dir_fd=directory)
    inner = _open_directory(directory, part, request)
    os.fchmod(inner, request.dir_mode & 0o777)
    os.fchown(inner, request.uid, request.gid)
    return inner


def _open_directory(directory: int, part: str, request: agent_pb2.CopyFileRequest) -> int:
    try:
        return os.open(part, _PATH_ONLY, dir_fd=directory)
    except NotADirectoryError:  # what O_DIRECTORY and O_NOFOLLOW say of a symbolic link too
        raise InvalidRequestError(
            f"copy {request.path}: {part!r} on the way is not a directory, or a symbolic link"
        ) from None


def _make_directory(directory: int, name: str, request: agent_pb2.CopyFileRequest) -> None:
    try:
        os.mkdir(name, dir_fd=directory)
    except FileExistsError:
        pass  # it is kept, with what is in it, if it is a directory
    inner = _open_directory(directory, name, request)
    try:
        os.fchmod(inner, request.file_mode & _PERMISSIONS)
        os.fchown(inner, request.uid, request.gid)
    finally:
        os.close(inner)


def _make_link(directory: int, name: str, request: agent_pb2.CopyFileRequest) -> None:
    temporary = _temporary(name)
    _discard(temporary, directory)
    os.symlink(os.fsdecode(request.data), temporary, dir_fd=directory)
    os.chown(temporary, request.uid, request.gid, dir_fd=directory, follow_symlinks=False)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def _write_piece(directory: int, name: str, request: agent_pb2.CopyFileRequest) -> None:
    end = request.offset + len(request.data)
    if request.offset < 0 or end > request.file_size:
        raise InvalidRequestError(
            f"copy {request.path}: bytes {request.offset} to {end} of a file of {request.file_size}"
        )
    temporary = _temporary(name)
    if request.offset == 0:
        _discard(temporary, directory)
    create = os.O_CREAT | os.O_EXCL if request.offset == 0 else 0
    file = os.open(temporary, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | create, 0o600, dir_fd=directory)
    try:
        if os.fstat(file).st_size != request.offset:
            raise InvalidRequestError(
                f"copy {request.path}: the piece at {request.offset} is not the next one"
            )
        _write_all(file, request.data, request.path)
        if end < request.file_size:
            return
        os.fchown(file, request.uid, request.gid)
        os.fchmod(file, request.file_mode & _PERMISSIONS)
    finally:
        os.close(file)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def _write_all(file: int, data: bytes, path: str) -> None:
    os.lseek(file, 0, os.SEEK_END)
    view = memoryview(data)
    while view:
        written = os.write(file, view)
        if written == 0:
            raise GuestError(f"copy {path}: the file system takes no more")
        view = view[written:]


def _temporary(name: str) -> str:
    return f".{name[:200]}.part"


def _discard(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


def remove_tree(path: str) -> None:
    """Remove a directory and all in it, without following links, not even one in its place.

    Not being there is not an error.
    """
    if os.path.islink(path):
        os.unlink(path)
    if not os.path.exists(path):
        return
    for _, directories, names, at in os.fwalk(path, topdown=False):
        for name in names:
            os.unlink(name, dir_fd=at)
        for name in directories:
            if stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=at)
            else:
                os.rmdir(name, dir_fd=at)
    os.rmdir(path)
