"""Which masks ``--min-trust`` leaves out."""

from __future__ import annotations

from collections.abc import Mapping

from deepatlas.errors import DeepAtlasError
from deepatlas.localize.template.file import NO_TRUST as WHY_NO_TRUST
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.estimate import NOT_CALIBRATED, OTHER_THRESHOLD, Trust
from deepatlas.model.structures import Structures

# Why masks of a model that was trained on labels have no trust.
NO_TRUST = (
    "a model that was trained on labels has no trust; use one of `deepatlas train` with a calibrated template"
)


def check_least_trust(what: Template | Structures, threshold: float | None) -> None:
    """Refuse to choose masks by a trust that none of them can have."""
    if not isinstance(what, Template):
        raise DeepAtlasError(f"--min-trust (least_trust): {NO_TRUST}, or leave it out")
    if not what.meta.get("trust"):
        reason = what.meta.get(WHY_NO_TRUST) or NOT_CALIBRATED
        raise DeepAtlasError(f"--min-trust (least_trust): {reason}; or leave it out")
    if threshold is not None:
        raise DeepAtlasError(
            f"--min-trust (least_trust): {OTHER_THRESHOLD.format(threshold)}; give one of the two"
        )


def too_low(believed: Mapping[str, Trust], least: float) -> dict[str, str]:
    """Why masks are left out. Where nobody can tell how good a mask is, it may be a mask of nothing."""
    found = {}
    for name, one in believed.items():
        if one.value is None:
            found[name] = f"no predicted Dice: {one.reason}"
        elif one.value < least:
            found[name] = f"predicted Dice {one.value:.2f}, below {least:g}"
    return found
