"""The contrast phase that the Hounsfield units of structures hint at.

The limits are those of usual protocols: blood has 30 to 50 HU without contrast, the aorta more than 200 in an arterial
phase, and some 100 to 180 in a portal venous phase, in which the liver has more than 80. Where neither blood nor a
solid organ is in view, nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping

from deepatlas.names.meet import structure_and_side

PHASES = ("none", "arterial", "venous")
# What a question may call them.
SYNONYMS = {
    "portal": "venous",
    "portal venous": "venous",
    "native": "none",
    "noncontrast": "none",
    "non-contrast": "none",
}
_ARTERIES = ("A_Aorta", "A_Carotid")
_HEART, _KIDNEY = "Heart", "Kidney"
_BLOOD_WITH_CONTRAST = 85.0
# The mean of a whole heart is about two thirds blood.
_HEART_WITH_CONTRAST = 75.0
_ARTERIAL_AORTA, _ARTERIAL_HEART = 205.0, 165.0
_ORGAN_WITH_CONTRAST, _LATE_LIVER = 86.0, 85.0
_ARTERIAL_SPLEEN_OVER_LIVER = 25.0


def contrast_phase(hu: Mapping[str, float | None]) -> str | None:
    """One of :data:`PHASES`, or None where the structures do not tell.

    Args:
        hu: the mean Hounsfield units of structures; None for those that are not in view.
    """
    seen: dict[str, list[float]] = {}
    for name, value in hu.items():
        if value is not None:
            seen.setdefault(structure_and_side(name)[0], []).append(value)
    mean = {name: sum(values) / len(values) for name, values in seen.items()}
    liver, spleen = mean.get("Liver"), mean.get("Spleen")
    blood = max((mean[name] for name in _ARTERIES if name in mean), default=None)
    heart, kidney = mean.get(_HEART), mean.get(_KIDNEY)
    organs = [value for value in (liver, spleen, kidney) if value is not None]
    if blood is None and heart is None and not (liver is not None and spleen is not None):
        return None
    # Small vessels are mixed with what surrounds them, so that one organ that takes up contrast is enough.
    enhanced = any(value >= _ORGAN_WITH_CONTRAST for value in organs)
    if blood is not None:
        enhanced, arterial = enhanced or blood >= _BLOOD_WITH_CONTRAST, blood >= _ARTERIAL_AORTA
    elif heart is not None:
        enhanced, arterial = enhanced or heart >= _HEART_WITH_CONTRAST, heart >= _ARTERIAL_HEART
    else:
        arterial = False
    if liver is not None and spleen is not None:
        # Early, the spleen takes up contrast and the liver hardly does.
        early = liver < _LATE_LIVER and spleen - liver >= _ARTERIAL_SPLEEN_OVER_LIVER
        arterial = arterial or (early and spleen >= _ORGAN_WITH_CONTRAST)
    if not (enhanced or arterial):
        return "none"
    return "arterial" if arterial else "venous"
