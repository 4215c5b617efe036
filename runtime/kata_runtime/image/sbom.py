"""The guest image's bill of materials, `sbom.cdx.json` beside the image: what each file is made of.

A file needs the packages that it was made from; the root filesystem also needs the agent, and the agent the
protobuf of the host's Python environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kata_runtime.image import cyclonedx
from kata_runtime.image.apt import Package
from kata_runtime.image.cyclonedx import Component
from kata_runtime.image.errors import ContentError
from kata_runtime.image.manifest import Artifact
from kata_runtime.image.rootfs import Agent
from kata_runtime.version import VERSION

SBOM = "sbom.cdx.json"
PROTOBUF_VERSION = re.compile(r"""^__version__ = ['"]([^'"]+)['"]""", re.MULTILINE)


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


def agent_components(agent: Agent) -> list[Component]:
    """Return the agent and the protobuf that it runs on.

    Raises:
        ContentError: protobuf does not have its version.
    """
    match = PROTOBUF_VERSION.search((agent.protobuf / "__init__.py").read_text(encoding="utf-8"))
    if match is None:
        raise ContentError(
            f"{agent.protobuf}/__init__.py has no __version__, which the image's bill of materials lists: "
            "install protobuf from its wheel"
        )
    purl = cyclonedx.package_url("pypi", "protobuf", version=match[1])
    protobuf = Component("library", "protobuf", match[1], purl)
    return [Component("application", "kata-agent", VERSION, needs=[protobuf.reference]), protobuf]


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
