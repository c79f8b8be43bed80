"""Small images without a unit for tests, and the settings of the smallest run on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fast_settings import FAST
from scipy import ndimage

from deepatlas.io.codec import write_volume
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

SETTINGS = [
    *(s for s in FAST if "phantom" not in s and "refine" not in s),
    "loss.similarity=intensity",
    "train.head_steps=0",
    "data.holdout=1",
]


def write_crops(root: Path, names=("image.nii.gz", "mr.nrrd", "image.mha", "MR.nii"), first: int = 1) -> Path:
    """Crops around one bright structure, whose values have a scale of their own in every exam; the last has no labels.

    The exams are called e1, e2 …, from ``first`` on.
    """
    for number, name in enumerate(names, first):
        rng = np.random.default_rng(number)
        z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in (24, 28, 26)], indexing="ij")
        seg = ((x - rng.uniform(-0.1, 0.1)) / 0.5) ** 2 + (y / 0.3) ** 2 + (z / 0.4) ** 2 < 1
        texture = ndimage.gaussian_filter(rng.normal(size=seg.shape), 2)
        image = (60 + 30 * seg + 15 * texture / texture.std()) * 10.0**number
        grid = Grid.from_spacing(seg.shape, (1.0, 1.1, 1.0))
        write_volume(root / f"e{number}" / name, Volume(image.astype(np.float32), grid))
        if number < first + len(names) - 1:
            write_volume(root / f"e{number}" / "seg.nii.gz", Volume(seg.astype(np.uint8), grid))
    (root / "labels.json").write_text('{"structure": 1}')
    return root
