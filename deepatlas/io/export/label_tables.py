"""Names and colours of a label image for programs that show it: ITK-SNAP and 3D Slicer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from deepatlas.files import write_text
from deepatlas.pictures.draw import colour

# What ITK-SNAP calls a file of label descriptions, and 3D Slicer a colour table.
ITK_SNAP, SLICER = ".label", ".ctbl"


def write_itk_snap(path: str | os.PathLike[str], names: Mapping[str, int]) -> Path:
    """Write a label description file of ITK-SNAP (``.label``): id, colour, visibility and name of every structure."""
    lines = ["# ITK-SnAP label description file: IDX -R- -G- -B- -A-- VIS MSH LABEL"]
    lines.append(_itk_snap(0, (0, 0, 0), 0, "Clear Label"))
    for name, identity in sorted(names.items(), key=lambda item: item[1]):
        lines.append(_itk_snap(identity, _rgb(identity), 1, name))
    write_text(path, "\n".join(lines) + "\n")
    return Path(path)


def write_slicer(path: str | os.PathLike[str], names: Mapping[str, int]) -> Path:
    """Write a colour table of 3D Slicer (``.ctbl``): id, name and colour; spaces in names become underscores."""
    lines = ["# Color table file", f"# {len(names) + 1} values", "0 Background 0 0 0 0"]
    for name, identity in sorted(names.items(), key=lambda item: item[1]):
        word = "_".join(name.split())
        lines.append(f"{identity} {word} {' '.join(map(str, _rgb(identity)))} 255")
    write_text(path, "\n".join(lines) + "\n")
    return Path(path)


def _itk_snap(identity: int, rgb: tuple[int, ...], shown: int, name: str) -> str:
    # A quotation mark would end the name.
    text = " ".join(name.replace('"', "'").split())
    colours = "  ".join(f"{c:3d}" for c in rgb)
    return f'{identity:5d}   {colours}        {shown}  {shown}  {shown}    "{text}"'


def _rgb(identity: int) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour(identity)[1:]))
