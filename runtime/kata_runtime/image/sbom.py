"""The guest image's bill of materials, `sbom.cdx.json` beside the image: what each file is made of.

A file needs the packages that it was made from; the root filesystem also needs the agent: this project's with
the protobuf of the host's Python environment, or a program of one's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kata_runtime.image import cyclonedx
from kata_runtime.image.apt import Package
from kata_runtime.image.cyclonedx import Component
from kata_runtime.image.manifest import Artifact

SBOM = "sbom.cdx.json"


@dataclass(frozen=True, slots=True)
class Archive:
    """Where packages come from: os-release's ID of the distribution, and the release's name."""

    distribution: str
    suite: str

    def components(self, packages: Iterable[Package]) -> list[Component]:
        """Return packages as pieces of the image."""
        return [self._component(package) for package in packages]

    def _component(self, package: Package) -> Component:
        architecture = package.file.removesuffix(".deb").rpartition("_")[2]
        purl = cyclonedx.package_url(
            "deb",
            self.distribution,
            package.name,
            version=package.version,
            qualifiers={"arch": architecture, "distro": self.suite},
        )
        return Component("library", package.name, package.version, purl, package.sha256)


def write(
    identity: str, artifacts: Mapping[str, Artifact], made_from: Mapping[str, Sequence[Component]]
) -> str:
    """Return the bill of materials as a file's text.

    identity: the hash of all inputs. made_from: what each of the artifacts is made of.
    """
    files = [
        Component("file", name, sha256=artifact.sha256, needs=[piece.reference for piece in made_from[name]])
        for name, artifact in artifacts.items()
    ]
    pieces = {piece.reference: piece for group in made_from.values() for piece in group}
    image = Component(
        "operating-system", "kata-guest-image", identity, needs=[file.reference for file in files]
    )
    return cyclonedx.write(image, [*files, *pieces.values()])
