"""Small synthetic exams for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from deepatlas.io.codec import write_volume
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume


def oblique(rng: np.random.Generator, shape=(20, 24, 28), angle: float = 0.4) -> Grid:
    """A rotated, anisotropic grid with randomly permuted and flipped axes."""
    quaternion = rng.normal(size=3) * angle / 2
    x, y, z = quaternion / max(1.0, np.linalg.norm(quaternion))
    w = np.sqrt(1 - min(1.0, x * x + y * y + z * z))
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    signs = rng.choice([-1.0, 1.0], size=3)
    affine = np.eye(4)
    affine[:3, :3] = (rotation * signs)[:, rng.permutation(3)] * rng.uniform(0.5, 5.0, size=3)
    affine[:3, 3] = rng.uniform(-300, 300, size=3)
    return Grid(shape, affine)


def body(shape=(24, 40, 40), spacing=(4.0, 4.0, 5.0), seed: int = 0) -> tuple[Volume, Volume]:
    """A CT of an elliptic trunk that contains a bone and a lung, and its label image (1 bone, 2 lung)."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    shift = rng.uniform(-0.05, 0.05)
    hu = np.full(shape, -1000.0)
    hu[((x - shift) / 0.7) ** 2 + (y / 0.5) ** 2 < 1] = 40
    labels = np.zeros(shape, dtype=np.uint8)
    labels[(x - shift) ** 2 + (y + 0.3) ** 2 < 0.015] = 1
    labels[((x - shift - 0.35) ** 2 + y**2 < 0.04) & (np.abs(z) < 0.6)] = 2
    hu[labels == 1] = 700
    hu[labels == 2] = -850
    hu += rng.normal(0, 8, size=shape)
    grid = Grid.from_spacing(shape, spacing, origin=(-80, -80, -60))
    return Volume(hu.astype(np.float32), grid), Volume(labels, grid)


LABELS = {"bone": 1, "lung": 2}


def write_cohort(root: Path, count: int = 3, suffix: str = ".nii.gz") -> Path:
    """Write a data directory of ``count`` exams e1, e2 …, of which the last has no segmentation."""
    for i in range(1, count + 1):
        ct, seg = body(seed=i)
        write_volume(root / f"e{i}" / f"ct{suffix}", Volume(np.rint(ct.array).astype(np.int16), ct.grid))
        if i < count:
            write_volume(root / f"e{i}" / f"seg{suffix}", seg)
    (root / "labels.json").write_text(json.dumps(LABELS))
    return root


def one_line(error: BaseException) -> str:
    """The message of an error, after a check that it is a single line."""
    text = str(error)
    assert text and "\n" not in text
    return text
