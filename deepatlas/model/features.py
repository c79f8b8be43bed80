"""The features of the network: what it knows about a place before it is turned into three coordinates (section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.errors import DeepAtlasError
from deepatlas.model.engine import Engine, Exam, read_exam
from deepatlas.model.native import sampled_slabs
from deepatlas.nn import CoordinateNetwork
from deepatlas.space.grid import Grid


@torch.no_grad()
def features(model: Engine, exam: Exam, grid: Grid | None = None) -> Tensor:
    """The feature map f of the network's finest head (section 2.2.1), of which the coordinates are made.

    It comes from one pass of the network, without refinement and averaging, and serves as further channels of the input
    of other networks (section 4).

    Args:
        model: a model of coordinates.
        exam: a path, a volume, or an image of another library.
        grid: where to sample the features, linearly; None takes the exam's own grid. Beyond the field of view of the
            network they are constant.

    Returns:
        ``[K, D, H, W]`` float32 on the model's device.

    Raises:
        DeepAtlasError: the model was trained on labels.
        DataError: the exam cannot be read, or shows no patient.
    """
    if not isinstance(model.network, CoordinateNetwork):
        raise DeepAtlasError(
            f"{model.name}: features are those of a model of coordinates; use one of `deepatlas train`"
        )
    volume = read_exam(exam)
    look = model.look(volume)
    found = model.network.features(look.x, model.config.network.finest_level)[-1].float()
    # Every map of the network has its corners at the corners of the input.
    found = ops.resize(found, look.x.shape[2:])
    grid = grid or volume.grid
    out = found.new_empty((found.shape[1], *grid.shape))
    for z, part in sampled_slabs(found, look.hu.grid, grid):
        out[:, z] = part[0]
    return out
