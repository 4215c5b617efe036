"""An entry of sandbox_bind_mounts: a directory or file of the host that every Linux guest gets.

Source of its form: Kata Containers, the key's comment in the configuration files of its runtime-rs.
"""

from __future__ import annotations

import re
from typing import NamedTuple

FORM = r"^(/(?!\.{1,2}(/|:|$))[^/:]+)+(:r[ow])?$"
"""Names without a colon between single slashes, none of them "." or "..", and :ro or :rw or neither."""

_FORM = re.compile(FORM)


class BindMount(NamedTuple):
    """source: an absolute path of the host. readonly: whether the guest may only read."""

    source: str
    readonly: bool

    @property
    def name(self) -> str:
        """By what the guest finds it, in the directory of all of them."""
        return self.source.rpartition("/")[2]

    @classmethod
    def parse(cls, text: str) -> BindMount:
        """Read an entry. Raises ValueError for what is none."""
        if not _FORM.match(text):
            raise ValueError(f"{text!r} is no path of a directory or file with :ro or :rw")
        source, _, mode = text.partition(":")
        return cls(source, mode != "rw")
