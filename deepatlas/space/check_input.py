"""What is checked of an exam before a network sees it, by the kind of values that its model declares as input."""

from __future__ import annotations

from deepatlas.space.halved import halved
from deepatlas.space.hounsfield import hounsfield
from deepatlas.space.spacing import odd_spacing
from deepatlas.space.volume import Volume

INTENSITIES = ("hu",)


def check_input(volume: Volume, intensity: str = "hu") -> tuple[Volume, list[str]]:
    """An exam as the network may see it, and what is unusual about it.

    Args:
        volume: the exam on any grid.
        intensity: the kind of values that the model takes (``data.intensity``); ``"hu"`` is CT in Hounsfield units,
            which is checked by :func:`~deepatlas.space.hounsfield.hounsfield` and
            :func:`~deepatlas.space.halved.halved`.

    Returns:
        The exam, in which constant padding is air; and one line for each thing that was mended or is unusual.

    Raises:
        DataError: the values are not of that kind. The message says what was seen.
    """
    if intensity not in INTENSITIES:
        raise ValueError(f"check_input: intensity must be one of {INTENSITIES}, got {intensity!r}")
    volume, notes = hounsfield(volume)
    return volume, notes + odd_spacing(volume.grid) + halved(volume)
