"""Whether a reconstruction is for soft tissue or sharp (bone, lung): kernel, then window, then description.

Makers name their kernels each in their own way; the names here are those of their conformance statements and
of public collections. A kernel is passed on only where it is known, because the field is free text.
"""

from __future__ import annotations

import re

SOFT, SHARP, UNKNOWN = "soft", "sharp", "unknown"

# Siemens: B30f, B30s, B70f, H31s, U90u, I31f\3 (iterative), Br38f, Hr40, Qr36, Bl57d: the number is the sharpness.
_SIEMENS = re.compile(r"^(?P<family>[A-Z][a-z]?)(?P<sharpness>\d{2})[a-z]{0,2}$")
_SIEMENS_SHARP = 50
# Canon (Toshiba): FC03, FC13-H: tens of the number.
_CANON = re.compile(r"^FC\s?(?P<number>\d{2})(-\w{1,3})?$")
_CANON_SHARP = {3, 5, 8}
_SOFT_NAMES = {
    *("STANDARD", "STND", "SOFT", "DETAIL", "CHEST", "CHST", "BRAIN", "SMOOTH"),  # GE
    *("A", "B", "C", "AA", "UA", "UB", "CA", "CB", "CC", "XCA", "XCB", "XCC", "SB", "IA", "IB"),  # Philips
}
_SHARP_NAMES = {
    *("LUNG", "BONE", "BONEPLUS", "BONE PLUS", "EDGE", "ULTRA", "PERFORMANCE", "BONE_PLUS"),  # GE
    *("D", "E", "L", "EA", "EB", "EC", "YA", "YB", "YC", "YD", "YE", "CD", "XCD"),  # Philips
}
_SHARP_WORDS = re.compile(
    r"(?<![a-z])(lungs?|lunge\w*|pulm\w*|poumons?|bones?|bony|knochen\w*|osseu\w*|osseo\w*|hueso\w*|sharp|edge|hrct)"
    r"(?![a-z])",
    re.IGNORECASE,
)
_WIDE_WINDOW = 1000.0  # HU; soft tissue is looked at with 300 to 500


def known_kernel(kernel: str) -> str:
    """The kernel's name if it is a known one, otherwise the empty string."""
    name = kernel.strip()
    known = _SIEMENS.match(name) or _CANON.match(name.upper()) or name.upper() in _SOFT_NAMES | _SHARP_NAMES
    return name if known else ""


def tissue(kernel: str, window: float | None = None, description: str = "") -> str:
    """``soft``, ``sharp`` or ``unknown``."""
    name = kernel.strip()
    if match := _CANON.match(name.upper()):
        return SHARP if int(match["number"]) // 10 in _CANON_SHARP else SOFT
    if match := _SIEMENS.match(name):
        return SHARP if int(match["sharpness"]) >= _SIEMENS_SHARP or match["family"] == "Bl" else SOFT
    if name.upper() in _SOFT_NAMES:
        return SOFT
    if name.upper() in _SHARP_NAMES:
        return SHARP
    if _SHARP_WORDS.search(description.replace("_", " ")):
        return SHARP
    if window is not None:
        return SHARP if window >= _WIDE_WINDOW else SOFT
    return UNKNOWN
