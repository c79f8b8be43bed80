"""Inputs and oracles of the tests of ncc."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

SIZE = (5, 6, 7)


def maps(batch=2, channels=3, size=SIZE, dtype=torch.float64):
    a = torch.randn(batch, channels, *size, dtype=dtype)
    return a, 0.6 * a + 0.8 * torch.randn(batch, channels, *size, dtype=dtype)


def some_mask(batch=2, size=SIZE, dtype=torch.float64):
    return torch.rand(batch, 1, *size, dtype=dtype) * (torch.rand(batch, 1, *size) > 0.3)


def correlation(a, b, weight):
    """Weighted Pearson correlation of 1-D numpy arrays."""
    covariance = np.cov(a, b, aweights=weight, ddof=0)
    return covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])


def windowed_by_scipy(a, b, window):
    """Mean of the correlations within all windows, none of them flat, from SciPy's box filter in float64."""
    ones = np.ones_like(a)
    one, x, y, xx, yy, xy = (
        ndimage.uniform_filter(m, window, mode="constant") for m in (ones, a, b, a * a, b * b, a * b)
    )
    # The filter counts voxels outside as 0; this turns its results into means over those inside.
    x, y, xx, yy, xy = (m / one for m in (x, y, xx, yy, xy))
    return ((xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y))).mean()
