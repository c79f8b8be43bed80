"""A synthetic CT series and structures on it, some of which overlap, for tests of what is written as DICOM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from make_dicom import write_ct

from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels

NAMES = {"liver": 4, "kidney_left": 2, "tumour (odd)": 9, "gtv": 7, "spleen": 30}


def turned_affine(seed: int = 0, spacing=(0.9, 1.3, 2.5)) -> np.ndarray:
    """An oblique, anisotropic RAS affine whose slices follow each other along the cross product of rows and columns."""
    rng = np.random.default_rng(seed)
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q[:, 2] *= np.sign(np.linalg.det(q))
    affine = np.eye(4)
    affine[:3, :3] = q * spacing
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return affine


def series(folder: Path, affine: np.ndarray, shape=(9, 30, 26), **more) -> Path:
    """A CT of noise as a DICOM series in ``folder``."""
    hu = np.random.default_rng(1).integers(-1000, 1500, size=shape)
    write_ct(folder, hu, affine, **more)
    return folder


def masks(shape) -> dict[str, np.ndarray]:
    """A blob with a hole, a noisy mask of many pieces, a box that overlaps both, and a single voxel; no spleen."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    box = np.zeros(shape, dtype=bool)
    box[2:6, 3:20, 10:24] = True
    noise = np.random.default_rng(2).random(shape) > 0.7
    noise[:1] = False
    dot = np.zeros(shape, dtype=bool)
    dot[-1, 0, -1] = True
    return {
        "liver": (radius < 0.9) & (np.hypot(x, y) > 0.25),
        "kidney_left": noise & ~dot,
        "tumour (odd)": box,
        "gtv": dot,
        "spleen": np.zeros(shape, dtype=bool),
    }


def structures(grid: Grid, name: str = "", *, overlaps: bool = True) -> Labels:
    """The structures of :func:`masks` on a grid; without overlaps, each without what lies on it."""
    drawn = [(NAMES[key], BoxMask.of(mask)) for key, mask in masks(grid.shape).items() if mask.any()]
    labels = Labels.painted(drawn, grid, np.uint8, name)
    return labels if overlaps else Labels(labels.array, grid, name)
