"""ncc against numpy and MONAI, its gradients, and flat regions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fields import strided
from hypothesis import given, settings
from hypothesis import strategies as st

import deepatlas_ops as ops

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


def local(a, b, weight, window):
    """Weighted mean of the correlations of every window, voxel by voxel."""
    reach, total = window // 2, 0.0
    for index in np.ndindex(*a.shape):
        box = tuple(slice(max(i - reach, 0), i + reach + 1) for i in index)
        if weight[index] > 0 and np.count_nonzero(weight[box]) > 1:
            total += weight[index] * correlation(a[box].ravel(), b[box].ravel(), weight[box].ravel())
    return total / weight.sum()


def test_global_is_numpys_corrcoef(path):
    a, b = maps()
    got = ops.ncc(a, b)
    for i in range(2):
        for c in range(3):
            want = np.corrcoef(a[i, c].flatten().numpy(), b[i, c].flatten().numpy())[0, 1]
            assert got[i, c].item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("window", [None, 3, 5, 21])
def test_masked_is_the_weighted_correlation(path, window):
    a, b = maps(1, 2, (4, 3, 5))
    mask = some_mask(1, (4, 3, 5))
    got = ops.ncc(a, b, mask, window=window)
    weight = mask[0, 0].numpy()
    for c in range(2):
        x, y = a[0, c].numpy(), b[0, c].numpy()
        flat = (x.ravel(), y.ravel(), weight.ravel())
        want = correlation(*flat) if window is None else local(x, y, weight, window)
        assert got[0, c].item() == pytest.approx(want, abs=1e-6)


def test_windows_are_monais_where_they_lie_inside(path):
    # MONAI squares the correlations and pads with zeros; b follows a closely, so that every correlation is
    # positive and the root of an inner window's square is its signed value.
    a, b = maps(1, 1, (7, 7, 7))
    b = a + 0.3 * b
    losses = pytest.importorskip("monai.losses")
    loss = losses.LocalNormalizedCrossCorrelationLoss(
        kernel_size=5, reduction="none", smooth_nr=0, smooth_dr=1e-12
    )
    monai = (-loss(a, b))[..., 2:5, 2:5, 2:5].sqrt()
    assert monai.shape == (1, 1, 3, 3, 3) and monai.min() > 0.5
    # each inner window cut out and correlated whole (a mask would weigh the windows' voxels as well)
    cut = [(i, j, k) for i in range(3) for j in range(3) for k in range(3)]
    got = [ops.ncc(*(x[..., i : i + 5, j : j + 5, k : k + 5] for x in (a, b))).item() for i, j, k in cut]
    np.testing.assert_allclose(got, monai.flatten().numpy(), rtol=1e-6)
    # and the windowed form over the whole volume is the mean of those and of the clipped windows at the
    # border
    want = local(a[0, 0].numpy(), b[0, 0].numpy(), np.ones((7, 7, 7)), 5)
    assert ops.ncc(a, b, window=5).item() == pytest.approx(want, abs=1e-9)


def test_range_sign_and_invariance(path):
    a, b = maps()
    for window in (None, 3):
        torch.testing.assert_close(ops.ncc(a, a, window=window), torch.ones(2, 3).double(), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            ops.ncc(a, -2 * a + 5, window=window), -torch.ones(2, 3).double(), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(ops.ncc(3 * a - 7, b, window=window), ops.ncc(a, b, window=window))
        torch.testing.assert_close(ops.ncc(a, b, window=window), ops.ncc(b, a, window=window))
        assert ops.ncc(a, b, window=window).abs().max() <= 1


@pytest.mark.parametrize("window", [None, 3, 9])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(path, window, masked):
    a, b = (x.requires_grad_() for x in maps(2, 2, (3, 4, 3)))
    mask = some_mask(2, (3, 4, 3)) if masked else None
    assert torch.autograd.gradcheck(
        lambda x, y: ops.ncc(x, y, mask, window=window), (a, b), atol=1e-4, rtol=1e-3
    )


def test_one_gradient_without_the_other(path):
    a, b = maps()
    for window in (None, 3):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        both = torch.autograd.grad(ops.ncc(x, y, window=window).sum(), (x, y))
        torch.testing.assert_close(torch.autograd.grad(ops.ncc(x, b, window=window).sum(), x)[0], both[0])
        torch.testing.assert_close(torch.autograd.grad(ops.ncc(a, y, window=window).sum(), y)[0], both[1])


@pytest.mark.parametrize("window", [None, 3, 5])
@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0, 3e4])
def test_flat_maps_give_zero_and_never_nan(path, window, value):
    a = torch.full((1, 1, 9, 9, 9), value, requires_grad=True)
    b = torch.randn(1, 1, 9, 9, 9, requires_grad=True)
    out = ops.ncc(a, b, window=window) + ops.ncc(a, a, window=window)
    grads = torch.autograd.grad(out.sum(), (a, b))
    assert out.abs().max() < 1e-3
    assert all(g.isfinite().all() for g in grads)


def test_air_far_from_the_mean_is_flat_and_not_noise(path):
    # CT in float32: air at -1000 exactly, a body of soft tissue, windows wholly in air
    body = torch.zeros(1, 1, 16, 16, 16)
    body[..., 8:] = 1
    a = torch.where(body > 0, 40 + 20 * torch.randn(body.shape), torch.tensor(-1000.0)).requires_grad_()
    b = torch.where(body > 0, 40 + 20 * torch.randn(body.shape), torch.tensor(-1000.0))
    air = torch.zeros_like(body)
    air[..., :5] = 1
    windows = torch.zeros_like(body)
    windows[..., :2] = 1  # windows of 5 around these see air alone
    whole = ops.ncc(a, b, window=5)
    (grad,) = torch.autograd.grad(whole.sum(), a)
    assert whole.isfinite().all() and whole.abs().max() <= 1
    assert grad[..., :4].abs().max() < 1e-6
    mostly = ops.ncc(a[..., :10], b[..., :10], windows[..., :10] + 1e-9, window=5)
    assert mostly.abs().max() < 1e-3
    assert ops.ncc(a, b, air, window=5).abs().max() < 1e-3


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("window", [None, 5])
def test_float32_keeps_small_variance_on_a_large_offset(path, window, offset):
    a, b = maps(1, 1, (12, 12, 12))
    a, b = (a + offset).float(), (b + offset).float()
    exact = ops.ncc(a.double(), b.double(), window=window)
    assert ops.ncc(a, b, window=window).item() == pytest.approx(exact.item(), abs=2e-4)


@pytest.mark.parametrize("window", [None, 3])
def test_an_all_zero_mask_gives_zero_and_no_gradient(path, window):
    a, b = (x.requires_grad_() for x in maps())
    mask = torch.ones(2, 1, *SIZE, dtype=torch.float64)
    mask[1] = 0
    out = ops.ncc(a, b, mask, window=window)
    grads = torch.autograd.grad(out.sum(), (a, b))
    assert (out[1] == 0).all() and (out[0] != 0).all()
    assert all((g[1] == 0).all() and g[0].abs().max() > 0 for g in grads)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_values_under_a_zero_weight_are_never_read(path, window, dtype):
    a, b = maps()
    mask = torch.rand(2, 1, *SIZE) > 0.4
    want = ops.ncc(a, b, mask.double(), window=window)
    hole = (~mask).expand_as(a)
    a[hole], b[hole] = float("nan"), float("inf")
    a.requires_grad_()
    got = ops.ncc(a, b, mask.to(dtype), window=window)
    torch.testing.assert_close(got, want)
    (grad,) = torch.autograd.grad(got.sum(), a)
    assert grad.isfinite().all() and (grad[hole] == 0).all()


@given(
    batch=st.integers(0, 2),
    channels=st.integers(1, 3),
    size=st.tuples(*[st.integers(1, 7)] * 3),
    window=st.sampled_from([None, 1, 3, 5, 9]),
    masked=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def _any_shape(batch, channels, size, window, masked, seed):
    torch.manual_seed(seed)
    a, b = (x.requires_grad_() for x in maps(batch, channels, size))
    mask = some_mask(batch, size) if masked else None
    out = ops.ncc(a, b, mask, window=window)
    assert out.shape == (batch, channels)
    assert out.isfinite().all() and (out.abs() <= 1 + 1e-9).all()
    for grad in torch.autograd.grad(out.sum(), (a, b)):
        assert grad.shape == a.shape and grad.isfinite().all()
    again = ops.ncc(strided(a.detach()), strided(b.detach()), mask, window=window)
    torch.testing.assert_close(again, out.detach())


def test_any_shape_and_strides(path):
    _any_shape()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5])
def test_half_types_accumulate_in_float32(path, window, dtype):
    a, b = (x.to(dtype).requires_grad_() for x in maps(1, 2, (12, 12, 12)))
    mask = torch.rand(1, 1, 12, 12, 12) > 0.5
    got, exact = ops.ncc(a, b, mask, window=window), ops.ncc(a.double(), b.double(), mask, window=window)
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= 2 * (exact.to(dtype).double() - exact).abs().max() + 1e-5
    assert torch.autograd.grad(got.sum(), a)[0].dtype == dtype


def test_autocast_runs_in_float32(path):
    a, b = maps(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ops.ncc(a, b.bfloat16(), torch.ones(2, 1, *SIZE))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, ops.ncc(a, b.bfloat16().float()))


def test_opcheck():
    a, b = (x.requires_grad_() for x in maps(2, 2, (3, 4, 5), torch.float32))
    mask = some_mask(2, (3, 4, 5), torch.float32)
    registered = torch.ops.deepatlas_ops
    torch.library.opcheck(registered.ncc.default, (a, b, mask, 3, 1e-5))
    torch.library.opcheck(registered.ncc.default, (a, b.detach(), None, 0, 1e-5))
    for window, needs in ((0, (True, False)), (3, (True, True))):
        plain = (torch.rand(2, 2), a.detach(), b.detach(), mask, window, 1e-5, *needs)
        torch.library.opcheck(
            registered.ncc_backward.default, plain, test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.parametrize("window", [0, 4, -3, 3.0, True])
def test_errors_of_the_window(window):
    a = torch.zeros(1, 1, 3, 3, 3)
    with pytest.raises(ValueError, match="ncc: window: expected None or a positive odd integer, got"):
        ops.ncc(a, a, window=window)


def test_errors():
    a = torch.zeros(1, 2, 3, 3, 3)
    with pytest.raises(
        ValueError, match=r"ncc: b: expected the shape of a, \[1, 2, 3, 3, 3\], got \[1, 1, 3, 3, 3\]"
    ):
        ops.ncc(a, a[:, :1])
    with pytest.raises(ValueError, match="ncc: b: expected the dtype of a, torch.float32, got torch.float16"):
        ops.ncc(a, a.half())
    with pytest.raises(
        ValueError, match=r"ncc: mask: expected \[1, 1, 3, 3, 3\], one weight for each voxel of a"
    ):
        ops.ncc(a, a, a)
    with pytest.raises(ValueError, match="ncc: eps"):
        ops.ncc(a, a, eps=0.0)
