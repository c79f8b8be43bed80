"""The atlases of a model as images: that of whole exams, and those of its regions, which show parts of it closer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deepatlas.io.codec import write_volume
from deepatlas.model.engine import Engine
from deepatlas.space.box import Box
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

_WHOLE = Box.between("atlas", (-1, -1, -1), (1, 1, 1))


def write_atlas(model: Engine, folder: Path) -> list[Path]:
    """Write ``atlas.nii.gz`` and, for every region of a model, ``NAME.nii.gz``; returns the files.

    All of them lie in one space (see :func:`save_atlas`), so that a viewer shows them over each other.

    Raises:
        DeepAtlasError: the model was trained on labels and has no atlas, or a file cannot be written.
    """
    files = [
        folder / "atlas.nii.gz",
        *(folder / f"{network.region.name}.nii.gz" for network in model.regions),
    ]
    for path, network in zip(files, (model, *model.regions), strict=True):
        save_atlas(network, path)
    return files


def save_atlas(model: Engine, path: Path) -> None:
    """Write the atlas of one network in Hounsfield units.

    It has no millimetres: its affine gives the coordinates of the whole atlas times 100, also for that of a region.
    """
    box = model.region.box if "region" in model.card else _WHOLE
    values = model.atlas[0, 0].detach().cpu().numpy()
    last = values.shape[0] - 1
    own = np.diag([2 / last, 2 / last, 2 / last, 1.0])
    own[:3, 3] = -1
    affine = np.diag([100.0, 100.0, 100.0, 1.0]) @ box.matrix @ own
    write_volume(path, Volume((values * 512 - 256).astype(np.float32), Grid(values.shape, affine), "atlas"))
