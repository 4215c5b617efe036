"""The image's bill of materials: CycloneDX, complete, and decided by its content alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from kata_runtime.image import cyclonedx, sbom
from kata_runtime.image.agent import Agent
from kata_runtime.image.apt import Package
from kata_runtime.image.cyclonedx import Component
from kata_runtime.image.errors import ContentError
from kata_runtime.image.manifest import Artifact

EPOCH = Package("busybox-static", "1:1.35.0-4+b4", "busybox-static_1%3a1.35.0-4+b4_amd64.deb", 9, "ab" * 32)
LIBRARY = Package("libstdc++6", "12.2.0-14~bpo1", "libstdc++6_12.2.0-14~bpo1_amd64.deb", 9, "cd" * 32)
EVERYWHERE = Package("python3", "3.11", "python3_3.11_all.deb", 9, "ef" * 32)
DEBIAN = sbom.Archive("debian", "bookworm")
FILES = {"vmlinuz": Artifact(1, "01" * 32), "root": Artifact(2, "02" * 32)}


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    (tmp_path / "__init__.py").write_text("# Protocol Buffers\n\n__version__ = '6.33.6'\n")
    return Agent(tmp_path, tmp_path)


def bill(agent: Agent, *packages: Package) -> str:
    pieces = DEBIAN.components(packages)
    made_from = {"vmlinuz": pieces[:1], "root": [*pieces, *agent.components()]}
    return sbom.write("cafe" * 16, FILES, made_from)


def test_it_follows_the_schema_and_has_every_piece_once(agent: Agent) -> None:
    text = bill(agent, EPOCH, LIBRARY, EVERYWHERE)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    read = json.loads(text)
    assert sorted(one["name"] for one in read["components"]) == sorted(
        ["kata-agent", "protobuf", "busybox-static", "libstdc++6", "python3", "vmlinuz", "root"]
    )
    needs = {one["ref"]: one["dependsOn"] for one in read["dependencies"]}
    assert needs["kata-guest-image@" + "cafe" * 16] == ["root", "vmlinuz"]
    assert needs["vmlinuz"] == ["pkg:deb/debian/busybox-static@1:1.35.0-4%2Bb4?arch=amd64&distro=bookworm"]
    assert len(needs["root"]) == 5
    assert needs["kata-agent@0.1.0"] == ["pkg:pypi/protobuf@6.33.6"]


@pytest.mark.parametrize("package", [EPOCH, LIBRARY, EVERYWHERE])
def test_a_package_url_is_as_others_write_it(package: Package) -> None:
    (piece,) = DEBIAN.components([package])
    read = PackageURL.from_string(piece.purl)
    assert (read.type, read.namespace, read.name, read.version) == (
        *("deb", "debian"),
        *(package.name, package.version),
    )
    assert read.to_string() == piece.purl
    assert read.qualifiers == {"arch": package.file[:-4].split("_")[-1], "distro": "bookworm"}


def test_the_same_pieces_give_the_same_bytes_in_any_order(agent: Agent) -> None:
    one = [Component("library", "a", "1"), Component("library", "b", "2", needs=["a@1"])]
    whole = Component("file", "whole", needs=["a@1", "b@2"])
    assert cyclonedx.write(whole, one) == cyclonedx.write(whole, one[::-1])
    assert bill(agent, EPOCH) == bill(agent, EPOCH)
    serials = {json.loads(bill(agent, *group))["serialNumber"] for group in ([EPOCH], [LIBRARY])}
    assert len(serials) == 2


def test_a_protobuf_without_a_version_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").touch()
    with pytest.raises(ContentError, match="has no __version__"):
        Agent(tmp_path, tmp_path).components()
