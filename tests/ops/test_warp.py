"""warp is resample at identity + displacement, on the displacement's grid."""

from __future__ import annotations

import pytest
import torch
from fields import identity, inside

import deepatlas_ops as ops


@pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(
    "size, out", [((4, 5, 6), (4, 5, 6)), ((5, 3, 4), (2, 7, 1)), ((1, 5, 6), (3, 1, 9))]
)
def test_is_resample_at_identity_plus_displacement(backend, size, out, mode, padding):
    volume = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    displacement = inside(2, out, 0.8).requires_grad_()
    got = ops.warp(volume, displacement, mode=mode, padding=padding)
    want = ops.resample(volume, identity(out) + displacement, mode=mode, padding=padding)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    grad = torch.randn_like(want)
    got_grads = torch.autograd.grad(got, (volume, displacement), grad)
    want_grads = torch.autograd.grad(want, (volume, displacement), grad)
    for g, w in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)


def test_no_displacement_is_the_volume(backend):
    volume = torch.randn(2, 3, 4, 1, 6)
    torch.testing.assert_close(ops.warp(volume, torch.zeros(2, 3, 4, 1, 6)), volume, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ops.warp(volume, torch.zeros(2, 3, 4, 1, 6), mode="nearest"), volume)


def test_one_voxel_along_x(backend):
    volume = torch.randn(1, 1, 3, 4, 6)
    displacement = torch.zeros(1, 3, 3, 4, 6)
    # This is one voxel along x, which has 6.
    displacement[:, 0] = 2 / 5
    got = ops.warp(volume, displacement, padding="zeros")
    torch.testing.assert_close(got[..., :-1], volume[..., 1:], rtol=1e-4, atol=1e-5)


def test_gradcheck(backend):
    volume = torch.randn(1, 2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    displacement = inside(1, (2, 3, 2), 0.5).requires_grad_()
    assert torch.autograd.gradcheck(ops.warp, (volume, displacement), eps=1e-7, atol=1e-5)


def test_nan_and_empty_batch(backend):
    volume, displacement = torch.randn(1, 2, 3, 3, 3), torch.zeros(1, 3, 3, 3, 3)
    displacement[0, 2, 1, 1, 1] = float("nan")
    out = ops.warp(volume, displacement)
    assert out.isnan().sum() == 2 and out[0, :, 1, 1, 1].isnan().all()
    assert ops.warp(volume[:0], displacement[:0]).shape == (0, 2, 3, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_add_the_identity_in_float32(backend, dtype):
    volume, displacement = (
        torch.randn(1, 2, 9, 9, 9).to(dtype),
        inside(1, (9, 9, 9), 0.2, torch.float32).to(dtype),
    )
    exact = ops.resample(volume.double(), identity((9, 9, 9)) + displacement.double())
    got = ops.warp(volume, displacement)
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= 2 * (exact.to(dtype).double() - exact).abs().max() + 1e-6


def test_errors(backend):
    volume, displacement = torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 3, 2, 2, 2)
    with pytest.raises(
        ValueError, match=r"warp: displacement: expected \[B, 3, D, H, W\], got \[1, 1, 2, 2, 2\]"
    ):
        ops.warp(volume, volume)
    with pytest.raises(ValueError, match="warp: displacement: expected the dtype of volume, torch.float32"):
        ops.warp(volume, displacement.half())
    with pytest.raises(ValueError, match="warp: padding"):
        ops.warp(volume, displacement, padding="wrap")
