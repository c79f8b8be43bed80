"""affine_resample against F.affine_grid + F.grid_sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import deepatlas_ops as ops

# PyTorch's affine_grid, the oracle, gives this warning for axes of one voxel.
pytestmark = pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid")


def oracle(volume, theta, size, mode="linear", padding="zeros"):
    grid = F.affine_grid(theta, [*volume.shape[:2], *size], align_corners=True)
    torch_mode = "bilinear" if mode == "linear" else mode
    return F.grid_sample(volume, grid, mode=torch_mode, padding_mode=padding, align_corners=True)


def some_theta(batch, dtype=torch.float64):
    return torch.eye(3, 4, dtype=dtype) * 0.9 + torch.randn(batch, 3, 4, dtype=dtype) * 0.2


@pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("size, out", [((4, 5, 6), (3, 7, 2)), ((5, 1, 6), (1, 4, 5))])
def test_values_and_gradients(backend, size, out, mode, padding):
    volume = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    theta = some_theta(2).requires_grad_()
    got, want = (
        ops.affine_resample(volume, theta, out, mode=mode, padding=padding),
        oracle(volume, theta, out, mode, padding),
    )
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    grad = torch.randn_like(want)
    for g, w in zip(
        torch.autograd.grad(got, (volume, theta), grad),
        torch.autograd.grad(want, (volume, theta), grad),
        strict=True,
    ):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)


def test_float32_matches(backend):
    volume, theta = torch.randn(2, 1, 9, 10, 11), some_theta(2, torch.float32)
    torch.testing.assert_close(
        ops.affine_resample(volume, theta, (8, 9, 10)),
        oracle(volume, theta, (8, 9, 10)),
        rtol=1e-4,
        atol=1e-4,
    )


def test_identity_resizes_and_translation_moves(backend):
    volume = torch.randn(1, 1, 4, 5, 6, dtype=torch.float64)
    theta = torch.eye(3, 4, dtype=torch.float64)[None].clone()
    torch.testing.assert_close(ops.affine_resample(volume, theta, (7, 3, 6)), ops.resize(volume, (7, 3, 6)))
    # This is one voxel along z.
    theta[:, 2, 3] = 2 / 3
    moved = ops.affine_resample(volume, theta, (4, 5, 6))
    torch.testing.assert_close(moved[:, :, :-1], volume[:, :, 1:])


def test_gradcheck(backend):
    volume = torch.randn(1, 1, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    theta = some_theta(1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, t: ops.affine_resample(v, t, (2, 3, 3), padding="border"),
        (volume, theta),
        eps=1e-7,
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_compute_the_coordinates_in_float32(backend, dtype):
    volume, theta = torch.randn(1, 2, 9, 9, 9).to(dtype), some_theta(1, torch.float32).to(dtype)
    exact = oracle(volume.double(), theta.double(), (9, 9, 9))
    got = ops.affine_resample(volume, theta, (9, 9, 9))
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= 2 * (exact.to(dtype).double() - exact).abs().max() + 1e-5


def test_nan_and_empty_batch(backend):
    volume, theta = torch.randn(2, 1, 3, 3, 3), torch.eye(3, 4).repeat(2, 1, 1)
    theta[1, 0, 0] = float("nan")
    out = ops.affine_resample(volume, theta, (2, 2, 2))
    assert out[0].isfinite().all() and out[1].isnan().all()
    assert ops.affine_resample(volume[:0], theta[:0], (2, 2, 2)).shape == (0, 1, 2, 2, 2)


def test_errors(backend):
    volume = torch.zeros(1, 1, 2, 2, 2)
    with pytest.raises(
        ValueError, match=r"affine_resample: theta: expected a tensor \[B, 3, 4\], got \[1, 4, 4\]"
    ):
        ops.affine_resample(volume, torch.zeros(1, 4, 4), (2, 2, 2))
    with pytest.raises(ValueError, match="affine_resample: theta: expected the batch size of volume, 1"):
        ops.affine_resample(volume, torch.zeros(2, 3, 4), (2, 2, 2))
    with pytest.raises(ValueError, match="affine_resample: size"):
        ops.affine_resample(volume, torch.zeros(1, 3, 4), (2, 2))
