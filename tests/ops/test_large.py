"""Tensors of more than 2^31 elements, whose offsets do not fit into 32 bits. Slow, and only on request:

DEEPATLAS_LARGE_TESTS=1 pytest tests/ops/test_large.py
"""

from __future__ import annotations

import os

import pytest
import torch

import deepatlas_ops as ops

pytestmark = pytest.mark.skipif(
    os.environ.get("DEEPATLAS_LARGE_TESTS") != "1", reason="runs only with DEEPATLAS_LARGE_TESTS=1"
)
# 1.6 million voxels more than 2^31, and the size of a field that has about as many elements in 3 channels.
SIZE = (1025, 1448, 1448)
FIELD = (1025, 836, 836)


def need(gigabytes):
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    if free < gigabytes:
        pytest.skip(f"{free:.0f} GB of memory are free, {gigabytes} are needed")


@pytest.fixture
def volume(native):
    need(6)
    # Pages that are never written take no memory.
    v = torch.zeros(1, 1, *SIZE, dtype=torch.bfloat16)
    assert v.numel() > 2**31
    # These offsets do not fit into 32 bits.
    v[..., -1, -1, -8:] = torch.arange(1, 9)
    v[..., -1, -2, -8:] = 3
    return v


def test_resample_reads_beyond_32_bits(volume):
    for mode in ("linear", "nearest"):
        corner = torch.ones(1, 3, 1, 1, 3).bfloat16()
        assert ops.resample(volume, corner, mode=mode).flatten().tolist() == [8, 8, 8]
    theta = torch.zeros(1, 3, 4)
    theta[:, :, 3] = 1
    assert ops.affine_resample(volume, theta.bfloat16(), (1, 1, 2)).flatten().tolist() == [8, 8]


def test_resample_has_the_gradient_by_coordinates_beyond_32_bits(volume):
    coords = torch.tensor([0.998, 1.0, 1.0]).bfloat16().reshape(1, 3, 1, 1, 1).requires_grad_()
    volume[..., -1, -1, :] = torch.arange(SIZE[2]) % 7
    (grad,) = torch.autograd.grad(ops.resample(volume, coords).float().sum(), coords)
    # The values increase by one per voxel.
    assert abs(grad[0, 0].item()) == pytest.approx((SIZE[2] - 1) / 2, rel=0.01)


def test_resample_scatters_beyond_32_bits(native):
    need(20)
    volume = torch.zeros(1, 1, *SIZE, dtype=torch.bfloat16, requires_grad=True)
    corner = torch.ones(1, 3, 1, 1, 1).bfloat16()
    (grad,) = torch.autograd.grad(ops.resample(volume, corner).sum(), volume)
    assert grad[..., -1, -1, -1].item() == 1 and grad[..., 0, 0, :9].abs().sum() == 0


def test_resize_to_and_from_a_large_volume(volume):
    assert ops.resize(volume, (2, 2, 2)).flatten().tolist() == [0, 0, 0, 0, 0, 0, 0, 8]
    small = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bfloat16)
    small[..., 1, 1, 1] = 5
    del volume
    need(6)
    assert ops.resize(small, SIZE)[..., -1, -1, -1].item() == 5


def test_resize_gathers_a_gradient_from_a_large_volume(native):
    need(10)
    small = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    out = ops.resize(small, SIZE)
    pull = torch.zeros_like(out)
    pull[..., -1, -1, -1] = 7
    assert torch.autograd.grad(out, small, pull)[0].flatten().tolist() == [0] * 7 + [7]


@pytest.fixture
def field(native):
    need(12)
    f = torch.zeros(1, 3, *FIELD, dtype=torch.bfloat16)
    assert f.numel() > 2**31
    # The last voxels have the steps of the identity.
    corner = f[0, :, -2:, -2:, -2:]
    for channel, shape in enumerate(((1, 1, 2), (1, 2, 1), (2, 1, 1))):
        step = 2 / (FIELD[2 - channel] - 1)
        corner[channel] = torch.tensor([0.0, step]).reshape(shape)
    return f


def test_log_jacobian(field):
    field.requires_grad_()
    out = ops.log_jacobian(field)
    assert out[..., -1, -1, -1].item() == pytest.approx(0, abs=0.05)
    # The field folds here: its determinant is 0.
    assert out[..., 0, 0, 0].item() < -6
    need(14)
    pull = torch.zeros_like(out)
    pull[..., -1, -1, -1] = 1
    (grad,) = torch.autograd.grad(out, field, pull)
    # The derivative of log det by the last voxel along x is 1 / the step.
    assert grad[0, 0, -1, -1, -1].item() == pytest.approx((FIELD[2] - 1) / 2, rel=0.05)
    assert grad[0, :, 0, 0, :9].abs().sum() == 0


def test_implicit_warp(native):
    need(17)
    moving = torch.zeros(1, 3, *FIELD, dtype=torch.bfloat16)
    assert moving.numel() > 2**31
    for channel, axis in ((0, 4), (1, 3), (2, 2)):
        shape = [1] * 3
        shape[axis - 2] = FIELD[axis - 2]
        moving[:, channel] = torch.linspace(-1, 1, FIELD[axis - 2]).reshape(shape).bfloat16()
    fixed = torch.full((1, 3, 1, 1, 1), 0.99).bfloat16()
    warp = ops.implicit_warp(moving, fixed, iterations=8)
    assert warp.displacement.flatten().tolist() == pytest.approx([0.99] * 3, abs=0.01)


def test_ncc(volume):
    assert ops.ncc(volume, -volume).item() == pytest.approx(-1, abs=1e-2)
