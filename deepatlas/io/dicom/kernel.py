"""Tell whether a reconstruction is for soft tissue or sharp (bone, lung), by kernel, description and window.

Every manufacturer names its kernels differently; the names here are those of conformance statements and of public
collections. Only known kernels are passed on, because the element is free text.
"""

from __future__ import annotations

import re

SOFT, SHARP, UNKNOWN = "soft", "sharp", "unknown"

# Siemens: B30f, B30s, B70f, H31s, U90u, I31f\3 (iterative), Br38f, Hr40, Qr36, Bl57d. The number is the sharpness.
_SIEMENS = re.compile(r"^(?P<family>[A-Z][a-z]?)(?P<sharpness>\d{2})[a-z]{0,2}$")
_SIEMENS_SHARP = 50
# Canon (Toshiba): FC03, FC13-H. The tens of the number tell the purpose.
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
# From this width (HU) on a window is not for soft tissue, which is displayed with 300 to 500.
_WIDE_WINDOW = 1000.0


def known_kernel(kernel: str) -> str:
    """The name of the kernel if it is known, otherwise the empty string."""
    name = kernel.strip()
    known = _SIEMENS.match(name) or _CANON.match(name.upper()) or name.upper() in _SOFT_NAMES | _SHARP_NAMES
    return name if known else ""


def tissue(kernel: str, window: float | None = None, description: str = "") -> str:
    """What a reconstruction is for: ``soft``, ``sharp`` or ``unknown``."""
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
