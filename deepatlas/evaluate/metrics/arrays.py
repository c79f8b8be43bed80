"""What every metric asks of the two arrays that it is given."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepatlas.errors import DeepAtlasError


def as_masks(
    reference: ArrayLike, prediction: ArrayLike, operation: str
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both arrays as boolean masks: every value other than 0 belongs to the mask.

    Raises:
        DeepAtlasError: the arrays do not have one shape ``[D, H, W]``. The message begins with ``operation``.
    """
    first, second = np.asarray(reference) != 0, np.asarray(prediction) != 0
    if first.ndim != 3 or first.shape != second.shape:
        raise DeepAtlasError(
            f"{operation}: reference and prediction must have one shape [D, H, W], "
            f"got {first.shape} and {second.shape}"
        )
    return first, second
