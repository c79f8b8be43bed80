"""What is checked of an exam before a network sees it, by the kind of values that its model declares as input."""

from __future__ import annotations

from deepatlas.config import INTENSITIES
from deepatlas.errors import DataError, KindError
from deepatlas.space.halved import halved
from deepatlas.space.hounsfield import hounsfield
from deepatlas.space.intensity import to_scale
from deepatlas.space.spacing import odd_spacing
from deepatlas.space.volume import Volume

# No magnitude image of an MR has values below this; every CT with air around the patient does.
_AIR = -900


def check_input(volume: Volume, intensity: str = "hu") -> tuple[Volume, list[str]]:
    """An exam as the network may see it, and what is unusual about it.

    Args:
        volume: the exam on any grid.
        intensity: the kind of values that the model takes (``data.intensity``). ``"hu"`` is CT in Hounsfield units,
            which is checked by :func:`~deepatlas.space.hounsfield.hounsfield` and
            :func:`~deepatlas.space.halved.halved`; other images are brought to one scale by
            :func:`~deepatlas.space.intensity.to_scale`.

    Returns:
        The exam, in Hounsfield units where constant padding is air, or on the scale of the network; and one line for
        each thing that was mended or is unusual.

    Raises:
        DataError: the values cannot be used.
        KindError: they are not of that kind. The message says what was seen.
    """
    if intensity not in INTENSITIES:
        raise ValueError(f"check_input: intensity must be one of {INTENSITIES}, got {intensity!r}")
    name = volume.name or "image"
    if intensity == "hu":
        if volume.modality == "MR":
            raise KindError(
                f"{name}: is an MR, where a CT in Hounsfield units is expected; MR is for models that are trained with "
                "data.intensity=percentile (--preset mr)"
            )
        volume, notes = hounsfield(volume)
        return volume, notes + odd_spacing(volume.grid) + halved(volume)
    notes = odd_spacing(volume.grid)
    if volume.modality == "CT" or _is_hounsfield(volume):
        notes.append(f"is a CT, where images of data.intensity={intensity} are expected, such as MR")
    return to_scale(volume, intensity), notes


def _is_hounsfield(volume: Volume) -> bool:
    """Whether an image is a CT in Hounsfield units beyond doubt: it has air near -1000, and nothing is unusual."""
    if not volume.array.min() < _AIR:
        return False
    try:
        return not hounsfield(volume)[1]
    except DataError:
        return False
