"""A seccomp filter of ours for a child, installed between fork and exec."""

from __future__ import annotations

import base64
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChildFilter:
    """A seccomp filter for a child that has none of its own: on it from before its program runs, to its end.

    policy: its name, for sentences. advice: what to do about a refusal, in short. code: the program; for
    what it answers with `actions.NOTIFY` the child is killed, unless it is still loading. loading: a program
    that allows what it may do until then. last: number and second argument of the call with which loading
    ends; without them it ends when the program begins. readable, writable: what it may open in the meantime,
    besides reading shared libraries.
    """

    policy: str
    advice: str
    code: bytes
    loading: bytes
    last: tuple[int, int] | tuple[()] = ()
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Its fields as JSON has them: what the broker takes."""
        texts = {"policy": self.policy, "advice": self.advice}
        programs = {"code": self.code, "loading": self.loading}
        lists = {"last": self.last, "readable": self.readable, "writable": self.writable}
        return {
            **texts,
            **{key: base64.b64encode(program).decode() for key, program in programs.items()},
            **{key: list(values) for key, values in lists.items()},
        }
