"""Whether the voxels of a CT are Hounsfield units, judged by their histogram, and the mending of constant padding.

Air is -1000 HU, fat about -100, water 0 and soft tissue up to 80. Noise and partial volume spread them, so that no
single value covers a region of a measured image: an exact constant over a region was put there by a program.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError, KindError
from deepatlas.space.constants import AIR
from deepatlas.space.padding import at_surface, surface_constant
from deepatlas.space.volume import Volume

# The histogram is taken of about this many voxels along each axis.
_SAMPLES = 64
# Values below are air or were put there as padding; nothing has to be mended.
_CERTAIN_AIR = -850.0
# A voxel above is tissue, or the wall of something; lungs and bowel gas are below.
_TISSUE = -500.0
# Fat and soft tissue, with noise. At least 76 % of the tissue of 70 real exams of head, neck and trunk lay there.
_SOFT = 250.0
_SOFT_USUAL, _SOFT_SHARE = 0.6, 0.35
# The median of the tissue was -56 to 60 HU in them. The median of fewer voxels of the sample is not looked at.
_UNUSUAL, _SHIFTED = 110.0, 200.0
_FEWEST = 100
# Air below this is no air in Hounsfield units.
_BELOW_AIR = -1200.0
# A CT that is cut at this value or above shows no border between fat and air.
_FAT = -150.0
# The narrowest window that still tells fat, soft tissue and bone from each other.
_SPAN = 300.0
# A label image holds few different values; a CT of this many voxels holds hundreds.
_LABELS = 64
# The share of all voxels from which a lowest or a highest value is a plateau.
_LOW_PLATEAU, _HIGH_PLATEAU = 0.02, 5e-4
_CURE = "give a CT in Hounsfield units (air -1000, water 0)"


@dataclass(frozen=True)
class _Values:
    """What the histogram of an image is judged by."""

    sample: NDArray
    low: float
    high: float
    # A value that covers a region at the surface of the image, or None.
    constant: float | None

    @property
    def measured(self) -> NDArray:
        """The sample without the lowest value and the constant at the surface."""
        return self.sample[
            (self.sample != self.low)
            & (self.sample != (self.low if self.constant is None else self.constant))
        ]

    def share(self, hit: NDArray[np.bool_]) -> float:
        return float(np.count_nonzero(hit)) / self.sample.size


def hounsfield(volume: Volume) -> tuple[Volume, list[str]]:
    """Check that a volume is a CT in Hounsfield units, and read constant padding as air.

    Padding is a constant that covers a region at the surface of the image (0 where SimpleITK resampled it), and the
    lowest value where an image was clipped at -150 HU or below.

    Args:
        volume: an image of numbers, of any size.

    Returns:
        The volume, as it is or with padding replaced by -1024 in a copy; and one line for each thing that was mended or
        is unusual.

    Raises:
        DataError: the values are not numbers, not finite or all equal.
        KindError: they look like a label image, or like a CT that
            was scaled, windowed, negated, or stored without its rescale intercept. The message says what was seen.
    """
    name = volume.name or "image"
    values = _measure(volume.array, name)
    if reason := _not_hounsfield(values, volume.modality == "CT"):
        raise KindError(f"{name}: {reason}")
    return _mended(volume, values)


def _measure(array: NDArray, name: str) -> _Values:
    if array.dtype.kind not in "iuf" or not array.size:
        raise DataError(f"{name}: voxels of type {array.dtype} and shape {array.shape}; {_CURE}")
    # The sum turns -0, as which a message would call it, into 0.
    low, high = float(array.min()) + 0.0, float(array.max()) + 0.0
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(
            f"{name}: holds voxels that are NaN or infinite; replace them, for example by -1024 (air)"
        )
    if low == high:
        raise DataError(f"{name}: every voxel is {low:g}, so the image is empty; export it again")
    sample = array[tuple(slice(None, None, max(1, n // _SAMPLES)) for n in array.shape)]
    return _Values(
        np.asarray(sample, dtype=np.float32), low, high, surface_constant(array, high, _CERTAIN_AIR)
    )


def _not_hounsfield(v: _Values, is_ct: bool) -> str:
    """Why the image cannot be a CT in Hounsfield units, or the empty string; ``is_ct``: at least it is a CT."""
    seen = f"values {v.low:g} to {v.high:g}"
    if (
        v.low >= 0
        and len(distinct := np.unique(v.sample)) <= _LABELS
        and (distinct == np.rint(distinct)).all()
    ):
        return f"holds {len(distinct)} different whole numbers ({seen}), as a label image does; give the CT"
    if v.high - v.low < _SPAN and v.high > _CERTAIN_AIR:
        return f"{seen} span less than {_SPAN:g} HU: it was scaled or windowed; {_CURE}"
    rest = v.measured
    if not len(rest):
        return ""
    # Dense bone and metal above 850 HU are at most a fiftieth of an image. It is soft tissue where the intercept is
    # missing, and air where the sign was changed.
    above = rest[rest > 1024 - 2 * _SOFT]
    if float(np.percentile(rest, 1)) >= -100 and len(above) >= 0.02 * v.sample.size:
        if float(np.mean(np.abs(above - 1024) <= _SOFT)) >= 0.5:
            shown = f"{seen}, most of the tissue at {float(np.median(above)):.0f}"
            if is_ct:
                return f"{shown}: the rescale intercept of -1024 was not applied; subtract 1024"
            # Many MR look like that, and nothing must be subtracted from them.
            return (
                f"{shown}: no CT, which is expected here (MR is for models of --preset mr); or, if it is a CT, one "
                "without its rescale intercept: only then subtract 1024"
            )
    if v.low > _FAT:
        return (
            f"{seen}: nothing below {v.low:g} HU, neither air nor fat: no CT, or windowed or shifted; {_CURE}"
        )
    if (share := v.share(v.sample > -_CERTAIN_AIR)) > max(0.05, 4 * v.share(v.sample < _CERTAIN_AIR)):
        return f"{share:.0%} of the voxels are above {-_CERTAIN_AIR:g} HU, as where the sign was changed; {_CURE}"
    if (found := _tissue(rest)) is None and (level := _low_air(v)) is not None:
        return f"{seen}: no tissue, and air near {level:.0f} HU: was the rescale intercept applied twice? {_CURE}"
    if found and (abs(found.median) > _SHIFTED or found.soft < _SOFT_SHARE):
        return f"{found}: it was scaled or shifted; {_CURE}"
    return ""


@dataclass(frozen=True)
class _Tissue:
    soft: float
    median: float

    def __str__(self) -> str:
        return f"{self.soft:.0%} of the tissue lies within {_SOFT:g} HU of water, and its median is {self.median:.0f}"


def _tissue(measured: NDArray) -> _Tissue | None:
    tissue = measured[measured > _TISSUE]
    if len(tissue) < _FEWEST:
        return None
    return _Tissue(float(np.mean(np.abs(tissue) <= _SOFT)), float(np.median(tissue)))


def _low_air(v: _Values) -> float | None:
    """The median of air, padding excepted, where it is too low for air in Hounsfield units."""
    air = v.sample[(v.sample < _CERTAIN_AIR) & (v.sample != v.low)]
    level = float(np.median(air)) if len(air) >= _FEWEST else 0.0
    return level if level < _BELOW_AIR else None


def _mended(volume: Volume, v: _Values) -> tuple[Volume, list[str]]:
    array, notes = volume.array, []
    if v.low > _CERTAIN_AIR and (share := v.share(v.sample == v.low)) >= _LOW_PLATEAU:
        array = np.where(array == v.low, np.float32(AIR), array.astype(np.float32))
        notes.append(
            f"{share:.0%} of the voxels are exactly {v.low:g}, the lowest value: clipped, padded or scaled; read as air"
        )
    elif v.constant is None and not v.share(v.sample < _CERTAIN_AIR):
        notes.append(f"the lowest value is {v.low:g}: no air near -1000 HU; is it in Hounsfield units?")
    elif (level := _low_air(v)) is not None:
        notes.append(f"air lies near {level:.0f}, not -1000 HU; is it in Hounsfield units?")
    if v.high < -_CERTAIN_AIR and (share := v.share(v.sample == v.high)) >= _HIGH_PLATEAU:
        notes.append(
            f"{share:.1%} of the voxels are exactly {v.high:g}, the highest value: the image was clipped"
        )
    if v.constant is not None and v.constant != v.low:
        padding = at_surface(array == v.constant)
        array = np.where(padding, np.float32(AIR), array.astype(np.float32))
        notes.append(
            f"padding of exactly {v.constant:g} around the image ({padding.mean():.0%} of the voxels) is read as air"
        )
    if (found := _tissue(v.measured)) and (found.soft < _SOFT_USUAL or abs(found.median) > _UNUSUAL):
        notes.append(f"{found}; is it in Hounsfield units?")
    return (volume if array is volume.array else replace(volume, array=array)), notes
