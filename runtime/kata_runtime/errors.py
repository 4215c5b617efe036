"""Errors of the runtime room, in families by what the caller can do.

    RuntimeRoomError
    ├── NotFoundError          no such container, exec or sandbox: there is nothing left to do
    ├── AlreadyExistsError     the id is taken: choose another
    ├── StateError             not in this state: wait, or do the step that is missing first
    ├── InvalidRequestError    the request or the bundle is wrong: mend it
    ├── UnsupportedError       this runtime cannot do that
    └── SandboxError           the sandbox could not be started, or has ended; `stage` says where

Messages reach the user through containerd as they stand: lower case, first line readable alone.
"""

from __future__ import annotations


class RuntimeRoomError(Exception):
    """Root of all errors that this room raises on purpose."""


class NotFoundError(RuntimeRoomError):
    """There is no such container, exec or sandbox."""


class AlreadyExistsError(RuntimeRoomError):
    """The id is in use."""


class StateError(RuntimeRoomError):
    """The operation does not fit the state that the process is in."""


class InvalidRequestError(RuntimeRoomError):
    """The request, or the bundle that it names, is wrong."""


class UnsupportedError(RuntimeRoomError):
    """This runtime cannot do what was asked, in this configuration or at all."""


class SandboxError(RuntimeRoomError):
    """The sandbox could not be started, or has ended.

    stage: where it failed: one of `pod.boot.STAGES`, "rootfs" or "running".
    """

    def __init__(self, stage: str, message: str) -> None:
        self.stage = stage
        super().__init__(message)
