"""ncc over the whole volume against NumPy, and gradients, masks and flat regions with and without windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fields import strided
from hypothesis import given, settings
from hypothesis import strategies as st
from ncc_inputs import SIZE, correlation, maps, some_mask

import deepatlas_ops as ops
from deepatlas_ops import reference


def test_global_is_numpys_corrcoef(backend):
    a, b = maps()
    got = ops.ncc(a, b)
    for i in range(2):
        for c in range(3):
            want = np.corrcoef(a[i, c].flatten().numpy(), b[i, c].flatten().numpy())[0, 1]
            assert got[i, c].item() == pytest.approx(want, abs=1e-12)


def test_global_masked_is_the_weighted_correlation(backend):
    a, b = maps(1, 2, (4, 3, 5))
    mask = some_mask(1, (4, 3, 5))
    got = ops.ncc(a, b, mask)
    for c in range(2):
        want = correlation(*(x.flatten().numpy() for x in (a[0, c], b[0, c], mask[0, 0])))
        assert got[0, c].item() == pytest.approx(want, abs=1e-6)


def gradients(a, b, window):
    a, b = (x.detach().requires_grad_() for x in (a, b))
    out = ops.ncc(a, b, window=window)
    return out.detach(), *torch.autograd.grad(out.sum(), (a, b))


def test_range_sign_and_invariance(backend):
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
def test_gradcheck(backend, window, masked):
    a, b = (x.requires_grad_() for x in maps(2, 2, (3, 4, 3)))
    mask = some_mask(2, (3, 4, 3)) if masked else None
    assert torch.autograd.gradcheck(
        lambda x, y: ops.ncc(x, y, mask, window=window), (a, b), atol=1e-4, rtol=1e-3
    )


def test_one_gradient_without_the_other(backend):
    a, b = maps()
    for window in (None, 3):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        both = torch.autograd.grad(ops.ncc(x, y, window=window).sum(), (x, y))
        torch.testing.assert_close(torch.autograd.grad(ops.ncc(x, b, window=window).sum(), x)[0], both[0])
        torch.testing.assert_close(torch.autograd.grad(ops.ncc(a, y, window=window).sum(), y)[0], both[1])


@pytest.mark.parametrize("window", [None, 3, 5])
@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0, 3e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_flat_maps_give_zero_and_never_nan(backend, window, value, dtype):
    a = torch.full((1, 1, 9, 9, 9), value, dtype=dtype, requires_grad=True)
    b = torch.randn(1, 1, 9, 9, 9).to(dtype).requires_grad_()
    out = ops.ncc(a, b, window=window) + ops.ncc(a, a, window=window)
    grads = torch.autograd.grad(out.sum(), (a, b))
    assert out.abs().max() < 1e-3
    # The gradient with respect to a flat map is finite, but may exceed the range of float16.
    good = (g.isnan().logical_not() if dtype == torch.float16 else g.isfinite() for g in grads)
    assert all(g.all() for g in good)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("window", [None, 5])
def test_float32_keeps_small_variance_on_a_large_offset(backend, window, offset):
    a, b = maps(1, 1, (12, 12, 12))
    a, b = (a + offset).float(), (b + offset).float()
    exact = ops.ncc(a.double(), b.double(), window=window)
    assert ops.ncc(a, b, window=window).item() == pytest.approx(exact.item(), abs=2e-4)


@pytest.mark.parametrize("window", [None, 3])
def test_an_all_zero_mask_gives_zero_and_no_gradient(backend, window):
    a, b = (x.requires_grad_() for x in maps())
    mask = torch.ones(2, 1, *SIZE, dtype=torch.float64)
    mask[1] = 0
    out = ops.ncc(a, b, mask, window=window)
    grads = torch.autograd.grad(out.sum(), (a, b))
    assert (out[1] == 0).all() and (out[0] != 0).all()
    assert all((g[1] == 0).all() and g[0].abs().max() > 0 for g in grads)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_values_without_weight_are_never_used(backend, window, dtype):
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


@pytest.mark.parametrize("window", [None, 3])
def test_nan_affects_only_its_own_channel(backend, window):
    a, b = maps(1, 3)
    a[0, 1, 2, 3, 4] = float("nan")
    value, grad_a, grad_b = gradients(a, b, window)
    spoilt = torch.tensor([[False, True, False]])
    assert (value.isnan() == spoilt).all()
    assert (grad_a.isnan().any((2, 3, 4)) == spoilt).all()
    assert (grad_b.isnan().any((2, 3, 4)) == spoilt).all()


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
    body = reference.ncc(a, b, mask, window or 0, 1e-5)
    torch.testing.assert_close(out, body, rtol=1e-9, atol=1e-9)


def test_any_shape_and_strides(backend):
    _any_shape()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5])
def test_half_types_accumulate_in_float32(backend, window, dtype):
    a, b = (x.to(dtype).requires_grad_() for x in maps(1, 2, (12, 12, 12)))
    mask = torch.rand(1, 1, 12, 12, 12) > 0.5
    got, exact = ops.ncc(a, b, mask, window=window), ops.ncc(a.double(), b.double(), mask, window=window)
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= 2 * (exact.to(dtype).double() - exact).abs().max() + 1e-5
    assert torch.autograd.grad(got.sum(), a)[0].dtype == dtype


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
