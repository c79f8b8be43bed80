"""The units of length in the headers of NRRD and MetaImage, which ITK and pynrrd ignore."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.io.text_header import printable

# Millimetres in each unit, under its symbol and the beginning of its name in full.
_SYMBOLS = {"m": 1000.0, "cm": 10.0, "mm": 1.0, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "nm": 1e-6}
_NAMES = {"": 1000.0, "centi": 10.0, "milli": 1.0, "micro": 1e-3, "nano": 1e-6}
_SYMBOLS |= {f"{part}{unit}": mm for part, mm in _NAMES.items() for unit in ("meter", "metre")}
_SYMBOLS["micron"] = 1e-3
# What stands for no unit, which is taken as millimetres: MetaIO writes the question mark.
_NONE = ("", "?", "none", "unknown")


def millimetres(path: Path, kind: str, key: str, words: Iterable[str], notes: list[str]) -> float:
    """Millimetres in the unit of length of a header, with a note where that is another unit.

    Args:
        path: the file.
        kind: what messages call the format.
        key: the field that gives the unit.
        words: the unit of every axis, as :func:`~deepatlas.io.text_header.read_line` decodes them.
        notes: where the note goes.

    Raises :class:`~deepatlas.errors.DataError` for a unit that is no length, and for axes in different units.
    """
    units = {_decoded(word).strip() for word in words} or {""}
    scales = {unit: _scale(unit) for unit in units}
    if None in scales.values() or len(set(scales.values())) > 1:
        given = ", ".join(repr(printable(unit)) for unit in sorted(units))
        raise DataError(
            f"{path}: its {kind} header gives lengths in {given} ({key}); write it again in millimetres"
        )
    scale = scales[min(units)] or 1.0
    if scale != 1:
        unit = min(units).replace("µ", "u").replace("μ", "u")
        notes.append(f"{kind} header gives lengths in {printable(unit)}, which is unusual")
    return scale


def _scale(unit: str) -> float | None:
    if unit.lower() in _NONE:
        return 1.0
    if len(unit) > 2:
        return _SYMBOLS.get(unit.lower().removesuffix("s"))
    # MM are millimetres, and Mm are none.
    return _SYMBOLS.get(unit.lower() if unit.isupper() else unit)


def _decoded(word: str) -> str:
    raw = word.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
