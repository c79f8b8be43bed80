"""The page that reports share: headlines, sections of tables, pictures and facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepatlas.files import write_text
from deepatlas.pictures.draw import data_uri
from deepatlas.pictures.page import render
from deepatlas.version import __version__


@dataclass
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        warning: what a reader must know before anything else.
        notes: remarks.
        pictures: the bytes of PNG files by what they show.
        header: the columns of the table; empty for none.
        rows: its cells.
        facts: names and values that are folded away at first.
    """

    title: str
    warning: str = ""
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)


def write_page(
    path: Path,
    title: str,
    sections: Sequence[Section],
    *,
    about: Sequence[str] = (),
    headline: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the page as one file that needs no other file and no network. Names and values are escaped.

    Args:
        path: the file to write.
        title: the title of the page.
        sections: its parts.
        about: facts in the line below the title.
        headline: numbers in large letters and what they are.

    Raises:
        DataError: the file cannot be written.
    """
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    shown: list[dict[str, Any]] = [
        {**vars(section), "pictures": {text: data_uri(png) for text, png in section.pictures.items()}}
        for section in sections
    ]
    text = render(
        "deepatlas.report", "report.jinja", title=title, sections=shown, headline=list(headline),
        about=[created, f"deepatlas {__version__}", *about],
    )  # fmt: skip
    write_text(path, text)
