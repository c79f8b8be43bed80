"""Files of points, lines and boxes: ``.mrk.json`` and ``.fcsv`` of 3D Slicer, and tables as CSV and JSON.

Positions are RAS+ millimetres in the package, and in the files what their format says; readers and writers convert.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from deepatlas.errors import DataError, DataWarning, WriteError
from deepatlas.files import refuse_pointer
from deepatlas.io.export import fcsv, markup_tables, slicer_markups
from deepatlas.space.markup import Markups

_READERS: dict[str, Callable[[Path, str], tuple[Markups, list[str]]]] = {
    ".mrk.json": slicer_markups.parse,
    ".fcsv": fcsv.parse,
    ".csv": markup_tables.parse_csv,
    ".json": markup_tables.parse_json,
}
_WRITERS: dict[str, Callable[[Path, Markups], list[str]]] = {
    ".mrk.json": slicer_markups.write,
    ".fcsv": fcsv.write,
    ".csv": markup_tables.write_csv,
    ".json": markup_tables.write_json,
}
SUFFIXES = tuple(_READERS)


def markup_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix of a file of markups in lower case (``.mrk.json``, ``.csv`` …), or an empty string."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def read_markups(path: str | os.PathLike[str], notes: list[str] | None = None) -> Markups:
    """Read points, lines and boxes.

    Args:
        path: ``.mrk.json`` of 3D Slicer (points, lines, curves, closed curves, angles and ROIs), also under the name
            ``.json``; ``.fcsv`` of 3D Slicer (points); ``.csv`` with the columns ``name,x,y,z`` (points), or these and
            nine for the half-axes (boxes), in RAS millimetres; ``.json`` as :func:`write_markups` writes it.
        notes: a list to which a line is appended for everything in the file that was left out. Without it they are
            issued as :class:`~deepatlas.errors.DataWarning`.

    Raises:
        DataError: the file cannot be read, is of no such format or damaged, states no coordinate system or one that is
            neither LPS nor RAS, holds a number that is not finite or a box without volume, or holds nothing. The
            message names the file, the entry and the cure.
    """
    path = Path(path)
    suffix = markup_suffix(path)
    if not suffix:
        raise DataError(f"{path}: no file of points or boxes; give one of {', '.join(SUFFIXES)}")
    try:
        refuse_pointer(path)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: cannot read: {reason}; give a text file of markups ({', '.join(SUFFIXES)})"
        ) from error
    if suffix == ".json" and slicer_markups.is_slicer(text):
        suffix = ".mrk.json"
    try:
        markups, found = _READERS[suffix](path, text)
    except csv.Error as error:
        raise DataError(f"{path}: damaged, no table ({error}); write it again") from error
    if not len(markups):
        left = f" ({'; '.join(found)})" if found else ""
        raise DataError(f"{path}: holds no point, line or box{left}; mark something and save it again")
    if notes is not None:
        notes.extend(found)
    else:
        for note in found:
            warnings.warn(f"{path}: {note}", DataWarning, stacklevel=2)
    return markups


def write_markups(path: str | os.PathLike[str], markups: Markups) -> list[str]:
    """Write points, lines and boxes; the suffix is the format, as in :func:`read_markups`.

    A ``.csv`` holds either points or boxes, an ``.fcsv`` points alone.

    Returns:
        A line for everything that the format cannot say and the file therefore lacks.

    Raises:
        WriteError: the suffix is none of these, the format has no place for what was given, or the file cannot be
            written.
    """
    path = Path(path)
    suffix = markup_suffix(path)
    if not suffix:
        raise WriteError(
            f"{path}: cannot write markups as this kind of file; use one of {', '.join(SUFFIXES)}"
        )
    return _WRITERS[suffix](path, markups)
