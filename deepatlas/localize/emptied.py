"""Structures that a threshold leaves without a voxel, although the exam shows them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from deepatlas.errors import DataWarning


def warn_emptied(
    exam: str, names: Sequence[str], highest: Tensor, own: Sequence[float], threshold: float | None
) -> None:
    """Name the structures whose highest value counts by themselves, and not by the threshold that was given.

    A probability that an image has a say in hardly ever reaches 1.

    Args:
        exam: what the message calls the exam.
        names: the structures.
        highest: ``[K]``, the highest value that each has in the exam.
        own: the threshold that each has by itself.
        threshold: that which was given for all; None where none was, and then nothing is said.

    Warns:
        DataWarning: there are such structures.
    """
    if threshold is None:
        return
    top = highest.double().cpu()
    gone = torch.nonzero((top >= torch.tensor(own, dtype=torch.float64)) & (top < threshold))[:, 0].tolist()
    if gone:
        verb, whose = ("is", "its mask") if len(gone) == 1 else ("are", "their masks")
        warnings.warn(
            f"{exam or 'exam'}: {', '.join(names[row] for row in gone)} {verb} left without a voxel by the threshold "
            f"{threshold:g}, which no value of {whose} reaches; give a lower one",
            DataWarning,
            stacklevel=5,
        )
