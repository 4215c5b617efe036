"""A bill of materials as CycloneDX's JSON: what one thing is made of, piece by piece.

It holds no times and no random numbers: the same pieces give the same bytes, whoever writes them.

Source: CycloneDX 1.6 (ECMA-424), bom-1.6.schema.json; the package URL specification for `purl`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from kata_runtime.version import VERSION

SPECIFICATION = "1.6"
SCHEMA = f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json"
NAMESPACE = uuid.UUID("8f5b0c6e-3d0a-5c55-9f0e-6b6174612d31")


@dataclass(frozen=True, slots=True)
class Component:
    """A piece, or the whole.

    kind: CycloneDX's type, such as "library" or "file". version: empty where there is none. purl: its
    package URL, empty where no registry has it. sha256: of its only file. downloads: the SHA-256 of each file
    from which it may be installed, where there are several. needs: the references of the pieces that it is
    made of or uses.
    """

    kind: str
    name: str
    version: str = ""
    purl: str = ""
    sha256: str = ""
    downloads: Sequence[str] = ()
    needs: Sequence[str] = ()

    @property
    def reference(self) -> str:
        """The name by which other pieces of the document refer to this one."""
        return self.purl or "@".join(filter(None, (self.name, self.version)))

    def entry(self) -> dict[str, object]:
        """Return it as CycloneDX writes a component."""
        entry: dict[str, object] = {"type": self.kind, "bom-ref": self.reference, "name": self.name}
        if self.version:
            entry["version"] = self.version
        if self.purl:
            entry["purl"] = self.purl
        if self.sha256:
            entry["hashes"] = _hashes([self.sha256])
        if self.downloads:
            entry["externalReferences"] = [
                {"type": "distribution", "url": self.purl, "hashes": _hashes(self.downloads)}
            ]
        return entry


def package_url(kind: str, *path: str, version: str, qualifiers: Mapping[str, str] | None = None) -> str:
    """Return a package URL. path: namespace, where the kind of package has one, and name."""
    name = "/".join(_quoted(part) for part in path)
    asked = "&".join(f"{key}={_quoted(value)}" for key, value in sorted((qualifiers or {}).items()))
    return f"pkg:{kind}/{name}@{_quoted(version)}" + (f"?{asked}" if asked else "")


def write(subject: Component, components: Sequence[Component]) -> str:
    """Return the bill of materials of a subject, as a file's text.

    components: every piece once; what is in `needs` must be among them.
    """
    pieces = sorted(components, key=lambda piece: piece.reference)
    content = {
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [Component("application", "kata-ctl", VERSION).entry()]},
            "component": subject.entry(),
        },
        "components": [piece.entry() for piece in pieces],
        "dependencies": [
            {"ref": piece.reference, "dependsOn": sorted(set(piece.needs))} for piece in (subject, *pieces)
        ],
    }
    serial = uuid.uuid5(NAMESPACE, json.dumps(content, sort_keys=True))
    head = {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": serial.urn,
        "version": 1,
    }
    return json.dumps(head | content, indent=2) + "\n"


def _hashes(digests: Sequence[str]) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest} for digest in sorted(set(digests))]


def _quoted(text: str) -> str:
    return quote(text, safe=":")
