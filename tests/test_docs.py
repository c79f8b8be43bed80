"""The documentation names what exists: links lead to files, and the anchors of docs/paper.md to code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "deepatlas_ops" / "README.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^()\s#]+)(?:#[^()\s]*)?\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


def anchors():
    """File and name of every code anchor in docs/paper.md; the name is None where only a file is given."""
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    for path, names in re.findall(r"`([\w/]+\.py)`((?:[:,] `[A-Za-z_][\w.]*`(?!\.py))*)", text):
        for name in re.findall(r"`([\w.]+)`", names) or [None]:
            yield path, name


@pytest.mark.parametrize(("path", "name"), sorted(set(anchors()), key=str))
def test_an_anchor_of_the_paper_page_exists(path, name):
    file = ROOT / path if path.startswith("deepatlas_ops/") else ROOT / "deepatlas" / path
    assert file.is_file(), f"docs/paper.md: {path} does not exist"
    source = file.read_text(encoding="utf-8")
    for part in (name or "").split("."):
        if part:
            defined = rf"^\s*(?:(?:class|def) {part}\b|{part}\s*[:=])"
            assert re.search(defined, source, re.M), f"docs/paper.md: {path} defines no {part}"
