"""A seccomp filter of ours for a child, installed between fork and exec."""

from __future__ import annotations

import base64


class ChildFilter:
    """A seccomp filter for a child that has none of its own: on it from before its program runs, to its end.

    policy: its name, for sentences. advice: what to do about a refusal, in short. code: the program; for
    what it answers with `actions.NOTIFY` the child is killed, unless it is still loading. loading: a program
    that allows what it may do until then; without one nobody is asked, and `code` alone decides. last: number
    and second argument of the call with which loading ends; without them it ends when the program begins.
    until_told: it ends when `Host.end_loading` is called, and no earlier. readable, writable: what it may
    open in the meantime, besides reading shared libraries. any_path: all that the two programs let it open,
    because its root directory bounds it: its threads could change a path that was looked at.
    """

    __slots__ = (
        *("advice", "any_path", "code", "last", "loading", "policy", "readable", "until_told", "writable"),
    )

    def __init__(
        self,
        policy: str,
        advice: str,
        code: bytes,
        loading: bytes = b"",
        last: tuple[int, int] | tuple[()] = (),
        *,
        readable: tuple[str, ...] = (),
        writable: tuple[str, ...] = (),
        until_told: bool = False,
        any_path: bool = False,
    ) -> None:
        self.policy = policy
        self.advice = advice
        self.code = code
        self.loading = loading
        self.last = last
        self.readable = readable
        self.writable = writable
        self.until_told = until_told
        self.any_path = any_path

    def to_json(self) -> dict[str, object]:
        """Its fields as JSON has them: what the broker takes."""
        texts = {"policy": self.policy, "advice": self.advice}
        programs = {"code": self.code, "loading": self.loading}
        lists = {"last": self.last, "readable": self.readable, "writable": self.writable}
        return {
            **texts,
            **{key: base64.b64encode(program).decode() for key, program in programs.items()},
            **{key: list(values) for key, values in lists.items()},
            "until_told": self.until_told,
            "any_path": self.any_path,
        }
