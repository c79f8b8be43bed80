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
_HEART, _KIDNEY, _LIVER, _SPLEEN = "Heart", "Kidney", "Liver", "Spleen"
_BLOOD_WITH_CONTRAST = 85.0
# A whole heart is about two thirds blood and one third muscle. In a portal venous phase, of 150 and 110 HU, its mean is
# below 140.
_HEART_WITH_CONTRAST = 75.0
_ARTERIAL_AORTA, _ARTERIAL_HEART = 205.0, 150.0
_ORGAN_WITH_CONTRAST, _LATE_LIVER = 86.0, 85.0
_ARTERIAL_SPLEEN_OVER_LIVER = 25.0
_BLOOD_BEFORE_ORGANS = 80.0


def tells_phase(name: str) -> bool:
    """Whether the Hounsfield units of a structure of this name hint at a phase."""
    return structure_and_side(name)[0] in (*_ARTERIES, _HEART, _KIDNEY, _LIVER, _SPLEEN)


def contrast_phase(hu: Mapping[str, float | None]) -> str | None:
    """One of :data:`PHASES`, or None where the structures do not tell.

    Args:
        hu: the mean Hounsfield units inside structures; None for those that are not in view.
    """
    seen: dict[str, list[float]] = {}
    for name, value in hu.items():
        if value is not None:
            seen.setdefault(structure_and_side(name)[0], []).append(value)
    mean = {name: sum(values) / len(values) for name, values in seen.items()}
    liver, spleen = mean.get(_LIVER), mean.get(_SPLEEN)
    blood = max((mean[name] for name in _ARTERIES if name in mean), default=None)
    heart, kidney = mean.get(_HEART), mean.get(_KIDNEY)
    organs = [value for value in (liver, spleen, kidney) if value is not None]
    if blood is None and heart is None and not (liver is not None and spleen is not None):
        return None
    # Vessels of few voxels are mixed with what surrounds them, and the heart less so: each of them can only look darker
    # than it is, so that one of them that takes up contrast is enough.
    enhanced = any(value >= _ORGAN_WITH_CONTRAST for value in organs)
    enhanced = enhanced or (blood is not None and blood >= _BLOOD_WITH_CONTRAST)
    enhanced = enhanced or (heart is not None and heart >= _HEART_WITH_CONTRAST)
    arterial = blood is not None and blood >= _ARTERIAL_AORTA
    arterial = arterial or (heart is not None and heart >= _ARTERIAL_HEART)
    if liver is not None and spleen is not None and liver < _LATE_LIVER:
        # Early, the spleen takes up contrast and the liver hardly does; still earlier, blood alone does. A fatty liver
        # is dark in every phase, but not the spleen beside it.
        early = spleen >= max(_ORGAN_WITH_CONTRAST, liver + _ARTERIAL_SPLEEN_OVER_LIVER)
        alone = blood is not None and blood >= max(_BLOOD_WITH_CONTRAST, liver + _BLOOD_BEFORE_ORGANS)
        arterial = arterial or early or (alone and spleen < _ORGAN_WITH_CONTRAST)
    if not (enhanced or arterial):
        return "none"
    return "arterial" if arterial else "venous"
