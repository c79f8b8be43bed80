"""Masks of a supervised model (sections 3.3.3 and 3.3.4): its probabilities on the exam's own grid, cut at one half."""

from __future__ import annotations

import torch
from numpy.typing import NDArray
from torch import Tensor

from deepatlas.errors import DeepAtlasError
from deepatlas.localize.emptied import warn_emptied
from deepatlas.localize.paint import Canvas, Rivals
from deepatlas.model.native import CHUNK_VOXELS, sampled_slabs
from deepatlas.model.structures import THRESHOLD, Structures
from deepatlas.space.grid import Grid
from deepatlas.space.labels import Labels


def label_probabilities(
    probabilities: Tensor,
    model_grid: Grid,
    native_grid: Grid,
    structures: Structures,
    threshold: float | None = None,
    body: NDArray | None = None,
    name: str = "",
) -> Labels:
    """The structures of an exam whose probabilities are known.

    The probabilities are interpolated linearly. A voxel belongs to the structure that is most probable there, if any
    reaches the threshold; structures that overlap do not compete (see :class:`~deepatlas.localize.paint.Rivals`). A
    voxel outside the body, or outside the field of view of the model grid, is background.

    Args:
        probabilities: ``[K, S, S, S]`` on ``model_grid``, for all structures of the model.
        model_grid: the grid of ``probabilities``.
        native_grid: the grid of the result, in any orientation.
        structures: the structures to find.
        threshold: the probability that counts, in (0, 1]; None is 0.5.
        body: ``[S, S, S]``, the foreground of the exam on ``model_grid``; None clips nothing.
        name: what a message calls the exam.

    Returns:
        Labels on ``native_grid``, as :func:`~deepatlas.localize.segment.segment_coordinates` gives them.

    Raises:
        DeepAtlasError: the threshold is out of range.

    Warns:
        DataWarning: a structure has no voxel for the threshold alone.
    """
    level = THRESHOLD if threshold is None else threshold
    if not 0 < level <= 1:
        raise DeepAtlasError(f"segment: threshold must be in (0, 1], got {level}")
    if structures.channels is not None:
        probabilities = probabilities[torch.as_tensor(structures.channels, device=probabilities.device)]
    ids = torch.tensor(structures.ids, dtype=torch.int32, device=probabilities.device)
    rivals = Rivals(ids, structures.overlapping, structures.stack)
    canvas = Canvas(native_grid, structures.ids, structures.overlapping)
    # All structures are held at once.
    chunk = CHUNK_VOXELS // len(structures.ids)
    rows = range(len(structures.ids))
    highest = torch.zeros(len(rows), device=probabilities.device)
    for z, fine in sampled_slabs(probabilities[None], model_grid, native_grid, chunk):
        highest = torch.maximum(highest, fine[0].amax((1, 2, 3)))
        canvas.put(z, *rivals.decide(rows, fine[0] - level))
    warn_emptied(name, structures.names, highest, [THRESHOLD] * len(rows), threshold)
    return canvas.finish(model_grid, body, probabilities)
