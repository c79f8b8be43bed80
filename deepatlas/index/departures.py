"""Where one exam departs from the cohort, as an image on its own grid."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from deepatlas.index.appearance import on_exam
from deepatlas.model.engine import Engine
from deepatlas.model.native import sampled_slabs
from deepatlas.space.volume import Volume


def departure_map(model: Engine, volume: Volume, cells: NDArray[np.float32]) -> Volume:
    """Departures of cells ``[CELLS^3]`` in standard deviations, on the exam's own grid; 0 where nobody can tell.

    A positive number means that the exam is denser there than the cohort is.
    """
    found = model.map_exam(volume)
    coarse = np.nan_to_num(on_exam(cells, found)) * found.body
    out = np.zeros(volume.grid.shape, dtype=np.float32)
    for z, part in sampled_slabs(torch.from_numpy(coarse)[None, None], found.grid, volume.grid):
        out[z] = part[0, 0].numpy()
    out[~found.field.inside(volume.grid)] = 0
    return Volume(out, volume.grid, volume.name)
