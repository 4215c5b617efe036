"""What went into an image and what came out, as `manifest.json` beside the image; not when it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kata_runtime.image.apt import Package

MANIFEST = "manifest.json"
FORMAT = 4


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of the image: its size in bytes and its SHA-256."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Artifact:
        """Describe a file."""
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True, slots=True)
class Manifest:
    """input: hash of all inputs. kernel: its release. packages: what the image is made of.

    newest: the day on which the last of them was made, as 2026-11-30: what was mended later is not in there.
    agent: whose is in there, and which.
    verity: what kernel_verity_params is to say, for a guest that checks the image.
    """

    input: str
    suite: str
    kernel: str
    newest: str
    agent: str
    verity: str
    packages: Sequence[Package]
    artifacts: Mapping[str, Artifact]

    def write(self, directory: Path) -> None:
        """Write `manifest.json`."""
        text = json.dumps({"format": FORMAT} | asdict(self), indent=2, sort_keys=True)
        (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")

    def intact(self, directory: Path) -> bool:
        """Whether the image's files are what the manifest says."""
        try:
            return all(Artifact.of(directory / name) == artifact for name, artifact in self.artifacts.items())
        except OSError:
            return False


def read(directory: Path) -> Manifest | None:
    """Return the manifest of an image, or None when there is none that we understand."""
    try:
        document = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if document.pop("format") != FORMAT:
            return None
        document["packages"] = [Package(**package) for package in document["packages"]]
        document["artifacts"] = {
            name: Artifact(**artifact) for name, artifact in document["artifacts"].items()
        }
        return Manifest(**document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
