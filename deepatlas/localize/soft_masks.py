"""Soft masks on an exam's own grid: how strongly every voxel belongs to a structure, before anything is decided."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.exams.mask_files import mask_paths
from deepatlas.io.codec import write_volume
from deepatlas.localize.paint import kept_voxels
from deepatlas.localize.template.evidence import LEAST_PRIOR, Evidence
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import ExamMap
from deepatlas.model.native import CHUNK_VOXELS, sampled_slabs
from deepatlas.model.structures import ExamProbabilities, Structures
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

# The value of a probability of 1.
FULL = 255
# Voxels of soft masks that are held at once: those of some structures, on all slices.
_HELD = 1 << 29


def soft_masks(
    found: ExamMap | ExamProbabilities, what: Template | Structures, grid: Grid
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The soft mask of every structure on the grid of an exam.

    A template's mask is its value at the coordinate of each voxel, cut to [0, 1], or, where the template knows what its
    structures look like, the probability that the image makes of it. A supervised model's is its probability. Unlike in
    the label image, structures do not compete, so that values may sum to more than one. A voxel outside the body, or
    outside the field of view of the network, has 0.

    Args:
        found: what the model says about the exam.
        what: the structures.
        grid: the exam's own grid.

    Yields:
        The name of each structure and its mask ``[D, H, W]``, uint8, 255 for 1.
    """
    size = grid.shape[0] * grid.shape[1] * grid.shape[2]
    step = max(1, _HELD // size)
    like = found.probabilities if isinstance(found, ExamProbabilities) else found.coords
    kept = kept_voxels(found.grid, grid, found.body, like)
    for first in range(0, len(what.names), step):
        rows = range(first, min(first + step, len(what.names)))
        out = np.empty((len(rows), *grid.shape), dtype=np.uint8)
        for z, values in _slabs(found, what, rows, grid):
            out[:, z] = values.clamp_(0, 1).mul_(FULL).round_().byte().cpu().numpy()
        for row, mask in zip(rows, out, strict=True):
            mask[~kept] = 0
            yield what.names[row], mask


def write_soft_masks(
    folder: Path,
    masks: Iterable[tuple[str, NDArray[np.uint8]]],
    names: Iterable[str],
    grid: Grid,
    suffix: str = ".nii.gz",
) -> list[Path]:
    """Write ``masks``, as :func:`soft_masks` yields them, each as a file of its own: uint8, 255 for 1.

    Args:
        folder: where to write.
        masks: the masks, made one after another.
        names: the names of all of them, which must not lead to one file.
        grid: their grid.
        suffix: the format.

    Returns the paths. Raises as :func:`~deepatlas.io.codec.write_volume` does.
    """
    files = mask_paths(folder, names, suffix)
    return [write_volume(files[name], Volume(mask, grid, name)) for name, mask in masks]


def _slabs(
    found: ExamMap | ExamProbabilities, what: Template | Structures, rows: range, grid: Grid
) -> Iterator[tuple[slice, Tensor]]:
    """Yield ``(z slice, values [len(rows), d, H, W])``."""
    chunk = max(1, CHUNK_VOXELS // len(rows))
    if isinstance(found, ExamProbabilities):
        assert isinstance(what, Structures)
        channels = what.channels or tuple(range(len(what.names)))
        probabilities = found.probabilities[[channels[row] for row in rows]]
        for z, fine in sampled_slabs(probabilities[None], found.grid, grid, chunk):
            yield z, fine[0].clone()
        return
    assert isinstance(what, Template)
    masks = torch.from_numpy(what.masks[rows.start : rows.stop]).to(found.coords)[None]
    evidence = Evidence.of(what, found.image, grid, found.coords.device)
    every = torch.arange(rows.start, rows.stop, device=found.coords.device)
    for z, coords in found.field.slabs(grid, chunk):
        values = ops.resample(masks, coords.clamp(-1, 1))[0]
        yield z, values if evidence is None else _believed(evidence, values, every, z)


def _believed(evidence: Evidence, prior: Tensor, rows: Tensor, z: slice) -> Tensor:
    """The posterior of a slab ``[len(rows), d, H, W]``; nothing is computed around the structures, where it is 0."""
    out = torch.zeros_like(prior)
    near = (prior >= LEAST_PRIOR).any(0).cpu().numpy()
    for box in ndimage.find_objects(near.view(np.uint8)):
        block = (slice(z.start + box[0].start, z.start + box[0].stop), *box[1:])
        out[(slice(None), *box)] = evidence.posterior(prior[(slice(None), *box)], rows, block)
    return out
