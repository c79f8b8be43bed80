"""folds and log_jacobian_std against NumPy, voxel by voxel, and against the definition of the Learn2Reg challenge."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from fields import identity, smooth, strided

import deepatlas_ops as ops

SIZE = (5, 6, 7)


def one_sided(values, place, axis, side):
    """Difference of values [3, D, H, W] from a voxel to its neighbour at ``side``, or to the other one at a border."""
    n = values.shape[axis + 1]
    start = place[axis] if 0 <= place[axis] + side < n else place[axis] - side
    a, b = list(place), list(place)
    a[axis], b[axis] = min(start, start + side), max(start, start + side)
    return (values[(slice(None), *b)] - values[(slice(None), *a)]) * (n - 1) / 2


def digital_folds(values):
    folded = np.zeros(values.shape[1:], dtype=bool)
    for place in np.ndindex(*values.shape[1:]):
        for sides in itertools.product((-1, 1), repeat=3):
            columns = [
                one_sided(values, place, axis, side) for axis, side in zip((2, 1, 0), sides, strict=True)
            ]
            folded[place] |= np.linalg.det(np.stack(columns, -1)) <= 0
    return folded


def central_determinant(values):
    spacing = [2 / (n - 1) for n in values.shape[1:]]
    # The gradients are along z, y and x.
    gradients = [np.gradient(channel, *spacing) for channel in values]
    matrix = np.stack([np.stack(g[::-1], -1) for g in gradients], -2)
    return np.linalg.det(matrix)


@pytest.mark.parametrize("amplitude", [0.1, 0.5])
@pytest.mark.parametrize("masked", [False, True])
def test_folds_are_counted_as_by_numpy(backend, masked, amplitude):
    field = identity(SIZE) + smooth(2, SIZE, amplitude)
    weight = torch.rand(2, 1, *SIZE).double() if masked else torch.ones(2, 1, *SIZE).double()
    mask = weight if masked else None
    counts = {"digital": digital_folds, "central": lambda values: central_determinant(values) <= 0}
    for differences, count in counts.items():
        folded = torch.from_numpy(np.stack([count(item.numpy()) for item in field]))[:, None]
        want = (folded * weight).sum((1, 2, 3, 4)) / weight.sum((1, 2, 3, 4))
        assert amplitude < 0.5 or want.min() > 0.05
        got = ops.folds(field, mask, differences=differences)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(ops.folds(strided(field), mask, differences=differences), want)


def test_only_digital_differences_see_a_voxel_leave_its_cell(backend):
    field = identity((7, 7, 7))
    # This is more than two voxels.
    field[0, 0, 3, 3, 3] += 0.8
    around = torch.zeros(1, 1, 7, 7, 7)
    around[0, 0, 3, 3, 3] = 1
    assert ops.folds(field, around.double()) == 0
    assert ops.folds(field, around.double(), differences="digital") == 1
    assert ops.folds(identity((7, 7, 7)), differences="digital") == 0


def test_a_flat_or_mirrored_field_folds_everywhere(backend):
    for field in (identity(SIZE) * 0, identity(SIZE).flip(4)):
        for differences in ("central", "digital"):
            assert ops.folds(field, differences=differences) == 1
    # On an axis of one voxel, the column is that of the identity.
    assert ops.folds(identity((1, 6, 7))) == 0
    assert ops.folds(identity((1, 6, 7)), differences="digital") == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_small_determinant_of_a_half_type_is_no_fold(backend, dtype):
    # The determinant is 2^-30, which is 0 in float16.
    got = ops.folds((identity(SIZE) * 2**-10).to(dtype))
    assert got.dtype == torch.float32 and got == 0


@pytest.mark.parametrize("masked", [False, True])
def test_learn2reg_is_the_challenges_sdlogj(backend, masked):
    ndimage = pytest.importorskip("scipy.ndimage")
    size, n = (8, 8, 8), 8
    field = identity(size) + smooth(1, size, 0.3)
    # This is in voxels, with channels x, y, z.
    displacement = (field - identity(size))[0].numpy() * (n - 1) / 2
    matrix = np.zeros((3, 3, *size))
    for column, axis in enumerate((2, 1, 0)):
        kernel = np.array([-0.5, 0, 0.5]).reshape([3 if a == axis else 1 for a in range(3)])
        for row in range(3):
            matrix[row, column] = ndimage.correlate(displacement[row], kernel, mode="constant", cval=0.0)
            matrix[row, column] += row == column
    det = np.linalg.det(np.moveaxis(matrix, (0, 1), (-2, -1)))[2:-2, 2:-2, 2:-2]
    logarithm = np.log((det + 3).clip(1e-9, 1e9))
    assert det.min() < 0.6
    mask = torch.rand(1, 1, *size) > 0.5 if masked else None
    used = logarithm[mask[0, 0, 2:-2, 2:-2, 2:-2].numpy()] if masked else logarithm
    got = ops.log_jacobian_std(field, mask, convention="learn2reg")
    np.testing.assert_allclose(got.item(), used.std(), rtol=1e-10)


def test_plain_is_the_deviation_of_log_jacobian(backend):
    field, weight = identity(SIZE) + smooth(2, SIZE, 0.3), torch.rand(2, 1, *SIZE).double()
    logarithm = ops.log_jacobian(field)
    torch.testing.assert_close(ops.log_jacobian_std(field), logarithm.flatten(1).std(1, correction=0))
    for item in range(2):
        values, w = logarithm[item].flatten().numpy(), weight[item].flatten().numpy()
        want = np.sqrt(np.average((values - np.average(values, weights=w)) ** 2, weights=w))
        np.testing.assert_allclose(ops.log_jacobian_std(field, weight)[item].item(), want, rtol=1e-10)
    assert ops.log_jacobian_std(identity(SIZE) * 0.3).item() == pytest.approx(0, abs=1e-12)


def test_voxels_without_weight_do_not_matter(backend):
    field, mask = identity((6, 6, 8)), torch.ones(1, 1, 6, 6, 8, dtype=torch.bool)
    field[..., 7:] = float("nan")
    mask[..., 5:] = False
    for function in (ops.folds, ops.log_jacobian_std):
        assert function(field, mask).abs() < 1e-9
    assert ops.folds(field, mask, differences="digital") == 0
    assert ops.log_jacobian_std(field, mask, convention="learn2reg").abs() < 1e-9
    for function in (ops.folds, ops.log_jacobian_std):
        assert function(identity((6, 6, 8)) * 0, ~mask & mask) == 0
    assert ops.folds(field[:0]).shape == (0,) and ops.log_jacobian_std(field[:0]).shape == (0,)


def test_errors():
    field = torch.zeros(1, 3, 4, 5, 6)
    with pytest.raises(ValueError, match=r"folds: field: expected \[B, 3, D, H, W\], got \[1, 1, 4, 5, 6\]"):
        ops.folds(field[:, :1])
    with pytest.raises(ValueError, match="folds: differences: expected one of central, digital, got 'all'"):
        ops.folds(field, differences="all")
    with pytest.raises(ValueError, match=r"folds: mask: expected \[1, 1, 4, 5, 6\]"):
        ops.folds(field, field)
    with pytest.raises(ValueError, match="log_jacobian_std: convention: expected one of plain, learn2reg"):
        ops.log_jacobian_std(field, convention="l2r")
    with pytest.raises(
        ValueError, match="log_jacobian_std: field: expected at least five voxels on each axis"
    ):
        ops.log_jacobian_std(field, convention="learn2reg")
