"""Pairs of masks with ragged surfaces, on an anisotropic grid."""

from __future__ import annotations

import numpy as np

SPACING = (0.8, 1.5, 3.1)  # x, y, z mm


def blobs(seed: int, shape=(14, 22, 26)) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping, ragged ellipsoids."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    masks = []
    for _ in range(2):
        centre = np.array(shape) / 2 + rng.normal(size=3) * 1.5
        radii = np.array(shape) * rng.uniform(0.2, 0.33, size=3)
        masks.append((((grid - centre) / radii) ** 2).sum(-1) + 0.25 * rng.normal(size=shape) < 1)
    return masks[0], masks[1]
