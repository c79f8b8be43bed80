"""Whether the kernels for arrays can be had, and inputs for their tests."""

from __future__ import annotations

import functools

import numpy as np

import deepatlas_ops.array as array


@functools.lru_cache(maxsize=1)
def why_no_arrays() -> str | None:
    """None if the kernels for arrays can be built and loaded, otherwise the reason."""
    try:
        array.build_info()
    except RuntimeError as error:
        return str(error)
    return None


def axis(n: int) -> np.ndarray:
    """Normalised coordinates of an axis, computed here from the convention and not by the package."""
    return np.zeros(1) if n == 1 else np.linspace(-1, 1, n)


def identity(size: tuple[int, int, int]) -> np.ndarray:
    """The coordinates of the voxels of a grid: [1, 3, D, H, W], channels x, y, z."""
    return np.stack(np.meshgrid(*map(axis, size), indexing="ij")[::-1])[None]


def wavy(size: tuple[int, int, int], amplitude: float = 0.08) -> np.ndarray:
    """A smooth map without folds, [1, 3, D, H, W]."""
    here = identity(size)
    return here + amplitude * np.sin(2 * here[:, ::-1] + np.array([0.3, 1.0, -0.5]).reshape(1, 3, 1, 1, 1))
