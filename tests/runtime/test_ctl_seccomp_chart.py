"""The pictures of `kata-ctl seccomp report`: every label is inside the picture, and beside what it labels."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest

from kata_hypervisor.seccomp.policy import load_policy
from kata_runtime.ctl.seccomp_chart import FONT_SIZE, SMALL_FONT_SIZE, bars, cells
from kata_runtime.ctl.seccomp_policy import ScoreRow, measure, score_rows

SVG = "{http://www.w3.org/2000/svg}"

# Advance widths of DejaVu Sans Bold, in thousandths of the font's size: the widest of the usual fonts for
# system-ui. Characters that no label has are missing on purpose.
WIDTHS = {
    **dict.fromkeys("0123456789", 696),
    **dict(
        zip("abcdefghijklm", (675, 716, 593, 716, 678, 435, 716, 712, 343, 343, 665, 343, 1042), strict=True)
    ),
    **dict(
        zip("nopqrstuvwxyz", (712, 687, 716, 716, 493, 595, 478, 712, 652, 924, 645, 652, 582), strict=True)
    ),
    **dict(
        zip("ABCDEFGHIJKLM", (774, 762, 734, 830, 683, 683, 821, 837, 372, 372, 775, 637, 995), strict=True)
    ),
    **dict(
        zip("NOPQRSTUVWXYZ", (837, 850, 733, 850, 770, 720, 682, 812, 774, 1103, 771, 724, 725), strict=True)
    ),
    " ": 348,
    "'": 306,
    ",": 380,
    "-": 415,
    ".": 380,
}


def extent(text: ElementTree.Element) -> tuple[float, float]:
    """Where a label begins and ends."""
    small = text.get("class") in ("axis", "head")
    content = text.text or ""
    width = sum(WIDTHS[one] for one in content) / 1000 * (SMALL_FONT_SIZE if small else FONT_SIZE)
    left = (
        float(text.get("x", ""))
        - {"start": 0.0, "middle": 0.5, "end": 1.0}[text.get("text-anchor", "")] * width
    )
    return left, left + width


def assert_whole(picture: ElementTree.Element) -> None:
    """Every label is in the view box, and none is written over another."""
    _, _, width, height = map(float, picture.get("viewBox", "").split())
    labels = [(float(text.get("y", "")), *extent(text)) for text in picture.iter(f"{SVG}text")]
    for y, left, right in labels:
        assert left >= 0
        assert right <= width
        assert SMALL_FONT_SIZE <= y <= height
    for one, other in itertools.combinations(labels, 2):
        same_line = abs(one[0] - other[0]) < SMALL_FONT_SIZE
        assert not same_line or one[2] <= other[1] or other[2] <= one[1]


@pytest.fixture(scope="module")
def rows() -> list[ScoreRow]:
    return score_rows(measure(load_policy()))


def test_the_labels_of_the_bars_are_whole(rows: list[ScoreRow]) -> None:
    assert_whole(ElementTree.fromstring(bars(rows)))


def test_a_label_ends_before_its_bar_begins(rows: list[ScoreRow]) -> None:
    picture = ElementTree.fromstring(bars(rows))
    begin = min(float(part.get("x", "")) for part in picture.iter(f"{SVG}rect"))
    names = [part for part in picture.iter(f"{SVG}text") if part.get("class", "").startswith("name")]
    assert len(names) == len(rows)
    assert all(extent(name)[1] < begin for name in names)


def test_a_long_name_has_room() -> None:
    assert_whole(
        ElementTree.fromstring(
            bars([ScoreRow(3 * "this runtime's shim, ", "process", 400, 1, 0, 1.5, ours=True)])
        )
    )


def test_the_labels_of_the_cells_are_whole() -> None:
    for found in measure(load_policy()).values():
        assert_whole(ElementTree.fromstring(cells(found, "calls")))
