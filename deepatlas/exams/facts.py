"""What may be said about where an exam came from: plain numbers and terms of fixed lists, which identify nobody."""

from __future__ import annotations

import math
import re
from typing import Any

NUMBERS = frozenset(
    "rows columns slices frames slice_thickness slice_spacing pixel_spacing spacing kvp tilt gantry_tilt "
    "rescale_slope rescale_intercept reconstruction_diameter bits_stored".split()
)
TERMS = {
    "modality": re.compile("CT"),
    "format": re.compile("dicom|nifti|nrrd|metaimage"),
    "orientation": re.compile("axial|coronal|sagittal|oblique"),
    "image_type": re.compile(
        r"(ORIGINAL|DERIVED)(\\(PRIMARY|SECONDARY))?(\\(AXIAL|LOCALIZER|VOLUME|HELIX|REFORMATTED))?"
    ),
    # The kernels' names of the makers: Siemens (B30f, Br40d\3), Canon (FC08), Philips (YA), GE (words).
    "kernel": re.compile(
        r"[A-Z][a-z]?\d{2}[a-z]?(\\\d)?|FC\d{2}|[A-FL]|Y[A-F]|"
        "STANDARD|SOFT|DETAIL|BONE|BONEPLUS|LUNG|CHST|EDGE|ULTRA|SMOOTH|SHARP"
    ),
    "transfer_syntax": re.compile(r"1\.2\.840\.10008\.1\.2(\.\d{1,3}){0,3}"),  # those of the standard
    "contrast": re.compile("yes|no"),
}


def allowed_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """The part of ``facts`` that may be stored, in the order of its names.

    Numbers, and lists of at most four, under the names in :data:`NUMBERS`; ``True``, ``False`` or a term under the
    names in :data:`TERMS`, as ``"other"`` where the list does not know it. Whatever has another name, or is free
    text, is left out without a word: a description may hold a name.
    """
    kept: dict[str, Any] = {}
    for name in sorted(facts):
        value = facts[name]
        if name in NUMBERS:
            values = list(value) if isinstance(value, (list, tuple)) else [value]
            plain = [_number(v) for v in values]
            if None not in plain and 1 <= len(plain) <= 4:
                kept[name] = plain if isinstance(value, (list, tuple)) else plain[0]
        elif name in TERMS and value is not None:
            if isinstance(value, (list, tuple)):
                value = "\\".join(map(str, value))
            text = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else str(value)
            kept[name] = text if TERMS[name].fullmatch(text) else "other"
    return kept


def _number(value: Any) -> int | float | None:
    """A plain finite number, or None. Text is none, even where it looks like one."""
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    # Rounded, and of a size that anatomy and scanners have: nobody's number fits in.
    if not math.isfinite(number) or abs(number) > 99_999:
        return None
    return int(number) if number == int(number) else round(number, 4)
