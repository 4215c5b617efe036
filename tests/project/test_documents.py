"""The documents: links lead somewhere, and the index names every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)?(?:#([^)\s]+))?\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[tuple[str, str]]:
    """The links of a page to files of this repository: path and anchor."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    return [pair for pair in LINK.findall(text) if "://" not in pair[0]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {path}"
        if anchor:
            assert anchor in anchors(target), f"{page}: {path}#{anchor}"


@pytest.mark.parametrize("folder", ["docs", "docs/decisions", "docs/developer"])
def test_an_index_names_every_page(folder: str) -> None:
    index = ROOT / folder / "README.md"
    named = {(index.parent / path).resolve() for path, _ in links(index) if path}
    pages = {page for page in (ROOT / folder).glob("*.md") if page != index}
    if folder == "docs":
        pages |= set((ROOT / "docs/drivers").glob("*.md"))
        pages |= {ROOT / "docs/decisions/README.md", ROOT / "docs/developer/README.md"}
    assert pages - named == set()


def test_paths_that_documents_quote_are_there() -> None:
    """A path of this repository in backquotes: from its root, from a room, or from a package."""
    rooms = [ROOT / room for room in ("runtime", "hypervisor", "configuration", "agent")]
    roots = [ROOT, *rooms, *(room / f"kata_{room.name}" for room in rooms)]
    made = {"build", "dist"}  # by commands: what is in them comes and goes
    tops = {path.name for root in roots for path in root.iterdir() if path.is_dir()} - made
    missing = [
        f"{page.relative_to(ROOT)}: {quoted}"
        for page in PAGES
        for quoted in re.findall(r"`([\w./*-]+/[\w./*-]+)`", page.read_text(encoding="utf-8"))
        if quoted.split("/")[0] in tops and not any(any(root.glob(quoted)) for root in roots)
    ]
    assert missing == []


def test_test_files_that_documents_quote_are_there() -> None:
    quoted = {
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in re.findall(r"`(test_[\w*]+\.py)`", page.read_text(encoding="utf-8"))
    }
    assert {one for one in quoted if not any((ROOT / "tests").rglob(one.split(": ")[1]))} == set()
