"""Reading what people write of system calls: policies, profiles and traces."""

from __future__ import annotations

from pathlib import Path

from kata_hypervisor.errors import PolicyError


def read(path: Path, what: str) -> str:
    """The text of a file. what: its kind, for the sentence. Raises PolicyError: it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PolicyError(f"cannot read the {what} {path}: it does not exist") from None
    except OSError as error:
        raise PolicyError(f"cannot read the {what} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PolicyError(f"cannot read the {what} {path}: it is not UTF-8") from None
