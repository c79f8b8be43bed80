"""implicit_warp against the paper's claim of subvoxel precision, and against ITK's inversion of displacements."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fields import identity, smooth

import deepatlas_ops as ops

SIZE = (24, 24, 24)


def rotation(degrees):
    """Rotation about x, then y, then z."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(degrees):
        a, b = (i for i in range(3) if i != axis)
        turn = torch.eye(3)
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
        matrix = turn @ matrix
    return matrix


def exam(scale, degrees, amplitude):
    """Coordinates of an exam: a field of view of a given scale, rotated and smoothly deformed."""
    place = torch.einsum("ij,bj...->bi...", scale * rotation(degrees), identity(SIZE, torch.float32))
    return place + scale * smooth(1, SIZE, amplitude, torch.float32)


@pytest.mark.parametrize("amplitude", [0.03, 0.06, 0.09])
@pytest.mark.parametrize(
    "moving_scale, fixed_scale, degrees",
    [
        (1.0, 0.8, (0, 0, 0)),
        # The moving field of view is three times as large.
        (1.5, 0.5, (0, 0, 0)),
        (0.4, 0.3, (0, 0, 0)),
        # The moving exam covers only a part of the fixed exam.
        (0.7, 1.0, (0, 0, 0)),
        (1.0, 0.6, (25, -15, 10)),
        (1.2, 0.7, (0, 0, 50)),
    ],
)
def test_twenty_steps_leave_under_one_voxel_at_99_percent(
    backend, amplitude, moving_scale, fixed_scale, degrees
):
    moving, fixed = exam(moving_scale, degrees, amplitude), exam(fixed_scale, (0, 0, 0), amplitude)
    warp = ops.implicit_warp(moving, fixed)
    u = warp.displacement + identity(SIZE, torch.float32)
    covered = (u.abs() <= 1).all(1, keepdim=True)
    assert covered.sum() > 1000
    assert (warp.residual[covered] < 1).double().mean() > 0.99
    # The same, computed independently: what remains of the coordinates, in voxels of the moving exam.
    left = (fixed - ops.resample(moving, u)).square().sum(1, keepdim=True).sqrt() / moving_scale
    assert (left[covered] * (SIZE[0] - 1) / 2 < 1).double().mean() > 0.99
    assert torch.equal(warp.valid, (u.abs() <= 1 + 1e-5).all(1, keepdim=True) & (warp.residual < 1))


def test_the_claim_does_not_hold_after_one_step(backend):
    moving, fixed = exam(1.0, (25, -15, 10), 0.09), exam(0.6, (0, 0, 0), 0.09)
    warp = ops.implicit_warp(moving, fixed, iterations=1)
    assert (warp.residual < 1).double().mean() < 0.99


@pytest.mark.parametrize("step", ["moving", "newton"])
def test_itk_inverts_the_same_displacement(backend, step):
    sitk = pytest.importorskip("SimpleITK")
    size = (20, 22, 24)
    half = (torch.tensor(size[::-1]).double() - 1).reshape(1, 3, 1, 1, 1) / 2
    # ITK requires a displacement of 0 at the border.
    fade = (1 - identity(size).square()).prod(1, keepdim=True)
    # In voxels.
    shift = 1.2 * fade * smooth(1, size, 1.0)
    assert shift.norm(dim=1).max() > 1
    image = sitk.GetImageFromArray(shift[0].movedim(0, -1).numpy(), isVector=True)
    inverse = sitk.InvertDisplacementField(
        image,
        maximumNumberOfIterations=500,
        maxErrorToleranceThreshold=1e-4,
        meanErrorToleranceThreshold=1e-9,
        enforceBoundaryCondition=True,
    )
    want = torch.from_numpy(np.moveaxis(sitk.GetArrayFromImage(inverse), -1, 0))[None]
    warp = ops.implicit_warp(identity(size) + shift / half, identity(size), step=step, iterations=60)
    got = warp.displacement * half
    # ITK sets the border itself to 0.
    inner = (slice(None), slice(None), *(slice(1, -1),) * 3)
    assert (got - want)[inner].norm(dim=1).max() < 2e-3
    assert want.norm(dim=1).max() > 1


def test_newton_needs_a_fraction_of_the_steps(backend):
    moving, fixed = exam(1.0, (0, 0, 0), 0.15).double(), exam(0.6, (0, 0, 0), 0.1).double()
    plain = ops.implicit_warp(moving, fixed, iterations=5)
    newton = ops.implicit_warp(moving, fixed, iterations=5, step="newton")
    settled = ops.implicit_warp(moving, fixed, iterations=200)
    inside = settled.valid & (settled.residual < 1e-6)
    assert inside.double().mean() > 0.9
    assert plain.residual[inside].quantile(0.9) > 0.02
    assert newton.residual[inside].quantile(0.9) < 1e-4
    both = (inside & (newton.residual < 1e-8)).expand_as(fixed)
    torch.testing.assert_close(newton.displacement[both], settled.displacement[both], rtol=0, atol=1e-5)


def test_newton_takes_the_mean_matrix_on_folds_and_plateaus(backend):
    # This map folds strongly, and is constant in the middle.
    moving = identity(SIZE) + smooth(1, SIZE, 0.4)
    moving[..., 8:16, 8:16, 8:16] = moving[..., 10:11, 10:11, 10:11]
    fixed = identity(SIZE).requires_grad_()
    moving.requires_grad_()
    newton = ops.implicit_warp(moving, fixed, step="newton")
    assert newton.displacement.isfinite().all() and newton.displacement.abs().max() < 100
    assert all(g.isfinite().all() for g in torch.autograd.grad(newton.displacement.sum(), (moving, fixed)))
    constant = torch.zeros_like(moving)
    torch.testing.assert_close(
        ops.implicit_warp(constant, fixed, step="newton").displacement,
        ops.implicit_warp(constant, fixed).displacement,
    )


@pytest.mark.slow
def test_newton_has_the_implicit_gradient(backend):
    moving = identity((4, 5, 4)) + smooth(1, (4, 5, 4), 0.08)
    fixed = 0.6 * identity((3, 3, 4)) + smooth(1, (3, 3, 4), 0.08)
    moving.requires_grad_(), fixed.requires_grad_()

    def displacement(m, f):
        return ops.implicit_warp(m, f, iterations=8, step="newton").displacement

    assert torch.autograd.gradcheck(displacement, (moving, fixed), eps=1e-7, atol=1e-4, rtol=1e-3)
