"""From the signs of a structure to a predicted Dice with a lower bound, and from those of a place to an error in mm.

The numbers are fitted to labelled exams by :mod:`deepatlas.evaluate.calibrate` and lie in the template file, as
``meta["trust"]``. Everything is linear in the signs, so that the sign of each weight can be read, and small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DeepAtlasError
from deepatlas.localize.trust.signs import SIGNS

# Signs whose distance from the usual value counts too, whichever way it goes.
TWO_SIDED = ("stretch", "volume", "hu", "hu_sd", "contrast")
# Standardised signs are clipped here, since a line does not hold far beyond the exams that it was fitted to.
_FAR = 4.0
# The signs of a place, from which its error in mm is predicted.
POINT_SIGNS = ("spread", "shift", "match", "fit")
# The regression is linear in the log odds of the Dice between these bounds: near 0 and 1 the same evidence means less.
_ODDS = 0.05, 0.97
_VERSION = 1


@dataclass(frozen=True)
class OfStructure:
    """What calibration knows of one structure.

    Attributes:
        exams: how many exams it is from.
        offset: the log odds of the usual Dice.
        centre: the usual value of each sign, ``[F]``.
        weights: ``[F + T]``, of the standardised signs and of the distances of the two-sided ones.
        margin: how many predicted deviations the Dice lies below its prediction at most, in nine of ten exams.
    """

    exams: int
    offset: float
    centre: tuple[float, ...]
    weights: tuple[float, ...]
    margin: float


@dataclass(frozen=True)
class Calibration:
    """The trust of a template.

    Attributes:
        views: the number of views of an exam.
        scale: the deviation of each sign within structures, ``[F]``.
        structures: by name.
        deviation: the logarithm of the deviation of the Dice from its prediction is linear in the predicted Dice:
            constant and slope.
        point_weights: constant, and weight of each of :data:`POINT_SIGNS`, for the logarithm of the error in mm.
        point_margin: what is added to that logarithm for the bound.
        facts: about the exams and the agreement in cross-validation, for the report.
    """

    views: int
    scale: tuple[float, ...]
    structures: Mapping[str, OfStructure]
    deviation: tuple[float, float]
    point_weights: tuple[float, ...]
    point_margin: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    # -- in the template file -----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The form in ``meta["trust"]``: JSON values, rounded to what matters."""
        found = {"version": _VERSION, "signs": list(SIGNS), **asdict(self)}
        result: dict[str, Any] = _rounded(found)
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Inverse of :meth:`to_dict`.

        Raises :class:`~deepatlas.errors.DeepAtlasError` for those of another version.
        """
        if values.get("version") != _VERSION or values.get("signs") != list(SIGNS):
            raise DeepAtlasError(
                "template: its trust was calibrated by another version of deepatlas; calibrate it again with "
                "`deepatlas calibrate`"
            )
        structures = {
            name: OfStructure(
                one["exams"], one["offset"], tuple(one["centre"]), tuple(one["weights"]), one["margin"]
            )
            for name, one in values["structures"].items()
        }
        return cls(
            values["views"], tuple(values["scale"]), structures, tuple(values["deviation"]),
            tuple(values["point_weights"]), values["point_margin"], values["facts"],
        )  # fmt: skip

    # -- predictions --------------------------------------------------------------------------------------

    def dice(self, name: str, signs: NDArray[np.float64]) -> tuple[float, float]:
        """The predicted Dice of a structure, and its lower bound, from its signs ``[F]``."""
        own = self.structures[name]
        row = design(signs[None], np.array(own.centre), np.array(self.scale))[0]
        value = float(from_odds(own.offset + row @ np.array(own.weights)))
        constant, slope = self.deviation
        deviation = np.exp(constant + slope * value)
        return value, float(np.clip(value - own.margin * deviation, 0, 1))

    def millimetres(self, signs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The expected error in mm of places with these signs ``[N, 4]``, and its upper bound: ``[N]`` each."""
        log = self.point_weights[0] + signs @ np.array(self.point_weights[1:])
        return np.exp(log), np.exp(log + self.point_margin)


def log_odds(dice: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scale on which the regression is linear."""
    bounded = np.clip(dice, *_ODDS)
    result: NDArray[np.float64] = np.log(bounded / (1 - bounded))
    return result


def from_odds(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of :func:`log_odds`."""
    result: NDArray[np.float64] = 1 / (1 + np.exp(-value))
    return result


def design(
    signs: NDArray[np.float64], centre: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The columns of the regression ``[N, F + T]``: standardised signs, and the distances of the two-sided ones.

    A sign that has no value counts as usual.
    """
    standard = np.clip(np.nan_to_num((signs - centre) / scale), -_FAR, _FAR)
    sides = [SIGNS.index(name) for name in TWO_SIDED]
    return np.concatenate([standard, np.abs(standard[:, sides])], axis=1)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_rounded(v) for v in value]
    return value
