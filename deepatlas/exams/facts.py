"""Which facts about the origin of an exam may be stored: numbers and terms of fixed lists, which identify nobody."""

from __future__ import annotations

import math
import re
from typing import Any

from deepatlas.io.dicom.kernel import known_kernel

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
    "tissue": re.compile("soft|sharp|unknown"),
    # The transfer syntaxes of the DICOM standard.
    "transfer_syntax": re.compile(r"1\.2\.840\.10008\.1\.2(\.\d{1,3}){0,3}"),
    "contrast": re.compile("yes|no"),
    "multiframe": re.compile("yes|no"),
}
# The strength of an iterative reconstruction, which follows the kernel (Br40d\3).
_STRENGTH = re.compile(r"\\\d")


def allowed_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """The part of ``facts`` that may be stored, sorted by name.

    A name in :data:`NUMBERS` allows a finite number, or a list of at most four. A name in :data:`TERMS` allows True,
    False (stored as ``"yes"`` and ``"no"``) and the terms of its list; ``kernel`` allows the kernels of
    :mod:`deepatlas.io.dicom.kernel`. Any other term is stored as ``"other"``.
    Everything else is left out, because free text may hold the name of a person.
    """
    kept: dict[str, Any] = {}
    for name in sorted(facts):
        value = facts[name]
        if name in NUMBERS:
            values = list(value) if isinstance(value, (list, tuple)) else [value]
            plain = [_number(v) for v in values]
            if None not in plain and 1 <= len(plain) <= 4:
                kept[name] = plain if isinstance(value, (list, tuple)) else plain[0]
        elif (name in TERMS or name == "kernel") and value is not None:
            if isinstance(value, (list, tuple)):
                value = "\\".join(map(str, value))
            text = ("yes" if value else "no") if isinstance(value, bool) else str(value)
            kept[name] = text if _is_term(name, text) else "other"
    return kept


def _is_term(name: str, text: str) -> bool:
    if name == "kernel":
        kernel = _STRENGTH.sub("", text)
        return bool(kernel) and kernel == known_kernel(kernel)
    return bool(TERMS[name].fullmatch(text))


def _number(value: Any) -> int | float | None:
    """``value`` as a finite number, or None. Text is not a number, even if it looks like one."""
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    # Numbers are rounded and limited to the range of anatomy and scanners, so that no person's number fits in.
    if not math.isfinite(number) or abs(number) > 99_999:
        return None
    return int(number) if number == int(number) else round(number, 4)
