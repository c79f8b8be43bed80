"""resize against F.interpolate, and its adjoint."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fields import identity, strided
from hypothesis import given, settings
from hypothesis import strategies as st

import deepatlas_ops as ops

SIZES = [
    ((4, 5, 6), (7, 9, 3)),
    ((8, 8, 8), (4, 4, 4)),
    ((4, 4, 4), (8, 8, 8)),
    ((1, 5, 3), (4, 5, 2)),
    ((3, 2, 9), (3, 2, 9)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size, out", SIZES)
def test_values_and_gradient_are_those_of_interpolate(backend, size, out, dtype):
    volume = torch.randn(2, 3, *size, dtype=dtype, requires_grad=True)
    got, want = ops.resize(volume, out), F.interpolate(volume, out, mode="trilinear", align_corners=True)
    grad = torch.randn_like(want)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    for a, b in zip(
        torch.autograd.grad(got, volume, grad), torch.autograd.grad(want, volume, grad), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@given(
    batch=st.integers(0, 2),
    size=st.tuples(*[st.integers(1, 12)] * 3),
    out=st.tuples(*[st.integers(1, 12)] * 3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def _is_resampling_at_the_identity(name, last, batch, size, out, seed):
    torch.manual_seed(seed)
    volume = torch.randn(batch, 2, *size, dtype=torch.float64, requires_grad=True)
    coords = identity(out).expand(batch, -1, -1, -1, -1)
    with ops.use_backend(name):
        got, want = ops.resize(volume, out, channels_last=last), ops.resample(volume, coords)
        grad = torch.randn_like(want)
        (got_grad,) = torch.autograd.grad(got, volume, grad)
    (want_grad,) = torch.autograd.grad(want, volume, grad)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got_grad, want_grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_any_size_is_resampling_at_the_identity(backend, last):
    _is_resampling_at_the_identity(backend, last)


# A tile of the backward pass holds fewer rows where they are long.
@pytest.mark.parametrize("channels, size, out", [(5, (3, 17, 6), (4, 40, 5)), (700, (2, 18, 3), (3, 37, 4))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_channels_last_give_the_same_values_in_their_layout(backend, channels, size, out, dtype):
    layout = torch.channels_last_3d
    volume = torch.randn(2, channels, *size).to(dtype)
    found = []
    for last in (False, True):
        leaf = volume.to(memory_format=layout if last else torch.contiguous_format).requires_grad_()
        result = ops.resize(leaf, out, channels_last=last)
        (slope,) = torch.autograd.grad(result, leaf, torch.ones_like(result))
        assert result.is_contiguous(memory_format=layout) == last
        assert slope.is_contiguous(memory_format=layout) == last
        found.append((result, slope))
    tolerance = 8 * torch.finfo(dtype).eps
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_an_output_axis_of_one_sits_in_the_middle(backend):
    volume = torch.arange(4.0).reshape(1, 1, 4, 1, 1)
    assert ops.resize(volume, (1, 1, 1)).item() == 1.5
    assert ops.resize(volume[:, :, :3], (1, 1, 1)).item() == 1.0


def by_interpolate(volume, size):
    """What resize means by F.interpolate: along an axis that shrinks to one voxel, the mean of the middle first."""
    for axis, n in enumerate(size, start=2):
        if n == 1:
            voxels = volume.shape[axis]
            volume = volume.narrow(axis, (voxels - 1) // 2, 2 - voxels % 2).mean(axis, keepdim=True)
    return F.interpolate(volume, tuple(size), mode="trilinear", align_corners=True)


def value_and_gradient(function, volume, size, grad):
    leaf = volume.detach().requires_grad_()
    out = function(leaf, size)
    return [t.detach().double() for t in (out, *torch.autograd.grad(out, leaf, grad.to(out.dtype)))]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("scale, shift", [(1, 0), (1e-3, 0), (100, 1000)])
def test_the_mean_of_two_planes_is_rounded_once_and_its_gradient_never(backend, seed, scale, shift):
    # All weights of (8, 9, 10) -> (1, 9, 2) are 0, 1/2 or 1. So an error of more than half a digit is a wrong weight.
    torch.manual_seed(seed)
    volume = torch.randn(2, 3, 8, 9, 10) * scale + shift
    grad = torch.randn(2, 3, 1, 9, 2)
    exact, exact_slope = value_and_gradient(by_interpolate, volume.double(), (1, 9, 2), grad)
    for function in (ops.resize, by_interpolate):
        out, slope = value_and_gradient(function, volume, (1, 9, 2), grad)
        assert torch.equal(out, exact.float().double())
        assert torch.equal(slope, exact_slope)


@given(
    size=st.tuples(*[st.sampled_from([1, 2, 3, 8, 9, 10, 17])] * 3),
    out=st.tuples(*[st.sampled_from([1, 2, 3, 8, 9, 10, 17])] * 3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def _errs_at_most_twice_as_much(name, last, size, out, seed):
    torch.manual_seed(seed)
    volume, grad = torch.randn(2, 3, *size), torch.randn(2, 3, *out)
    exact = value_and_gradient(by_interpolate, volume.double(), out, grad)
    usual = value_and_gradient(by_interpolate, volume, out, grad)
    with ops.use_backend(name):
        found = value_and_gradient(partial(ops.resize, channels_last=last), volume, out, grad)
    for e, u, f in zip(exact, usual, found, strict=True):
        # Where PyTorch happens to be exact, the one rounding of a result is allowed.
        rounding = (e.float().double() - e).norm()
        assert (f - e).norm() <= 2 * max((u - e).norm(), rounding) + 1e-30


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_the_error_is_at_most_twice_that_of_interpolate(backend, last):
    _errs_at_most_twice_as_much(backend, last)


def test_gradcheck(backend):
    volume = torch.randn(1, 2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: ops.resize(v, (5, 1, 3)), volume)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(backend, dtype):
    volume = torch.randn(1, 2, 5, 6, 7).to(dtype).requires_grad_()
    out = ops.resize(volume, (9, 3, 8))
    grad = torch.randn(1, 2, 9, 3, 8).to(dtype)
    wide = volume.detach().double().requires_grad_()
    exact = F.interpolate(wide, (9, 3, 8), mode="trilinear", align_corners=True)
    (got_grad,), (exact_grad,) = (
        torch.autograd.grad(out, volume, grad),
        torch.autograd.grad(exact, wide, grad.double()),
    )
    for g, e in ((out, exact), (got_grad, exact_grad)):
        assert g.dtype == dtype
        rounding = (e.to(dtype).double() - e).abs().max()
        assert (g.double() - e).abs().max() <= 2 * rounding + 1e-7


def test_strides_and_empty_batches(backend):
    volume = torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(ops.resize(strided(volume), (3, 7, 2)), ops.resize(volume, (3, 7, 2)))
    last = volume.contiguous(memory_format=torch.channels_last_3d)
    assert ops.resize(last, (3, 7, 2)).is_contiguous()
    assert ops.resize(volume[:0], (3, 7, 2)).shape == (0, 3, 3, 7, 2)


@pytest.mark.parametrize("size", [(2, 3), (2, 3, 0), (2, 3, 4.0), 5, "abc"])
def test_errors(backend, size):
    with pytest.raises(ValueError, match=r"resize: size: expected three .*\(D, H, W\), got"):
        ops.resize(torch.zeros(1, 1, 2, 2, 2), size)
    with pytest.raises(ValueError, match="resize: volume: expected"):
        ops.resize(torch.zeros(1, 2, 2, 2), (2, 2, 2))
