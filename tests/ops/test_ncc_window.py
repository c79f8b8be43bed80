"""Windowed ncc against numpy, SciPy and MONAI, and over air."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ncc_inputs import correlation, maps, some_mask, windowed_by_scipy

import deepatlas_ops as ops


def local(a, b, weight, window):
    """Weighted mean of the correlations within all windows, computed voxel by voxel."""
    reach, total = window // 2, 0.0
    for index in np.ndindex(*a.shape):
        box = tuple(slice(max(i - reach, 0), i + reach + 1) for i in index)
        if weight[index] > 0 and np.count_nonzero(weight[box]) > 1:
            total += weight[index] * correlation(a[box].ravel(), b[box].ravel(), weight[box].ravel())
    return total / weight.sum()


@pytest.mark.parametrize("window", [3, 5, 21])
def test_masked_is_the_weighted_correlation_of_every_window(backend, window):
    a, b = maps(1, 2, (4, 3, 5))
    mask = some_mask(1, (4, 3, 5))
    got = ops.ncc(a, b, mask, window=window)
    for c in range(2):
        want = local(a[0, c].numpy(), b[0, c].numpy(), mask[0, 0].numpy(), window)
        assert got[0, c].item() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("window", [3, 7, 9, 21, 75])
def test_windowed_is_scipys_box_filter(backend, window):
    # The volume is deeper than two slabs of the CPU kernel. Some windows are wider than an axis or than all axes.
    a, b = maps(1, 2, (37, 18, 11))
    got = ops.ncc(a, b, window=window)
    for c in range(2):
        want = windowed_by_scipy(a[0, c].numpy(), b[0, c].numpy(), window)
        assert got[0, c].item() == pytest.approx(want, abs=1e-12)


def test_windows_and_gradient_are_monais_where_they_lie_inside(backend):
    # MONAI averages the squares of the correlations, and pads the volume with zeros. Here b is similar to a, so that
    # every correlation is positive, and the root of MONAI's map is the signed value where the window of 5 lies inside
    # the volume. The windows that are clipped at the border come from NumPy.
    losses = pytest.importorskip("monai.losses")
    loss = losses.LocalNormalizedCrossCorrelationLoss(
        kernel_size=5, reduction="none", smooth_nr=0, smooth_dr=1e-12
    )
    size = (9, 10, 11)
    a, b = maps(1, 1, size)
    a, b = a.requires_grad_(), (a + 0.3 * b).requires_grad_()
    inner = (..., *(slice(2, n - 2) for n in size))
    roots = (-loss(a, b))[inner].sqrt()
    assert roots.shape == (1, 1, 5, 6, 7) and roots.min() > 0.5

    edge = np.ones(size)
    edge[inner] = 0
    x, y = a.detach()[0, 0].numpy(), b.detach()[0, 0].numpy()
    border = sum(
        correlation(*(v[box].ravel() for v in (x, y, np.ones(size))))
        for box in (tuple(slice(max(i - 2, 0), i + 3) for i in at) for at in np.argwhere(edge))
    )
    value = ops.ncc(a, b, window=5)
    assert value.item() * a.numel() == pytest.approx(roots.sum().item() + border, rel=1e-9)

    # Only windows inside the volume contain these voxels, so the gradient is that of MONAI too.
    ours = torch.autograd.grad(value.sum() * a.numel(), (a, b))
    monais = torch.autograd.grad(roots.sum(), (a, b))
    deep = (..., *(slice(4, n - 4) for n in size))
    for mine, other in zip(ours, monais, strict=True):
        assert mine[deep].numel() == 6
        torch.testing.assert_close(mine[deep], other[deep], rtol=1e-8, atol=1e-10)


def test_air_far_from_the_mean_is_flat_and_not_noise(backend):
    # A CT in float32, with air of exactly -1000, a body of soft tissue, and windows that contain air only.
    body = torch.zeros(1, 1, 16, 16, 16)
    body[..., 8:] = 1
    a = torch.where(body > 0, 40 + 20 * torch.randn(body.shape), torch.tensor(-1000.0)).requires_grad_()
    b = torch.where(body > 0, 40 + 20 * torch.randn(body.shape), torch.tensor(-1000.0))
    air = torch.zeros_like(body)
    air[..., :5] = 1
    windows = torch.zeros_like(body)
    # Windows of 5 around these voxels contain air only.
    windows[..., :2] = 1
    value = ops.ncc(a, b, window=5)
    (grad,) = torch.autograd.grad(value.sum(), a)
    assert value.isfinite().all() and value.abs().max() <= 1
    assert grad[..., :4].abs().max() < 1e-6
    mostly = ops.ncc(a[..., :10], b[..., :10], windows[..., :10] + 1e-9, window=5)
    assert mostly.abs().max() < 1e-3
    assert ops.ncc(a, b, air, window=5).abs().max() < 1e-3


@pytest.mark.parametrize("window", [0, 4, -3, 3.0, True])
def test_errors_of_the_window(window):
    a = torch.zeros(1, 1, 3, 3, 3)
    with pytest.raises(ValueError, match="ncc: window: expected None or a positive odd integer, got"):
        ops.ncc(a, a, window=window)
