"""NaN in the maps and in the gradients of implicit_warp: it must appear in the same places as with the bodies."""

from __future__ import annotations

import pytest
import torch
from fields import identity, smooth

import deepatlas_ops as ops
from deepatlas_ops import reference

SIZE = (5, 6, 7)
NAN = float("nan")
# A kernel keeps 32 places of a path. It computes earlier ones again.
OPTIONS = [
    {},
    {"gradient": "unrolled", "iterations": 5},
    {"gradient": "unrolled", "iterations": 40},
    {"gradient": "unrolled", "iterations": 100, "tolerance": 1e-4},
]


def maps():
    mask = torch.ones(1, 1, *SIZE).double()
    # Voxels without weight must not affect the mean Jacobian.
    mask[..., :3] = 0
    moving = identity(SIZE) + smooth(1, SIZE, 0.04)
    return moving, 1.1 * identity(SIZE) + smooth(1, SIZE, 0.04), torch.randn(1, 3, *SIZE).double(), mask


def run(moving, fixed, grad, mask, options):
    leaves = [x.clone().requires_grad_() for x in (moving, fixed)]
    warp = ops.implicit_warp(*leaves, mask=mask, **options)
    return [*warp, *torch.autograd.grad(warp.displacement, leaves, grad)]


def spoil(what, moving, fixed, grad):
    if what == "moving":
        moving[0, 0, 2, 3, 1] = NAN
    elif what == "fixed":
        fixed[0, 1, 2, 3, 3] = NAN
    else:
        grad[0, 1, 2, 3, 3] = NAN


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("what", ["moving", "fixed", "gradient"])
def test_the_kernels_put_nan_where_autograd_does(native, what, options):
    moving, fixed, grad, mask = maps()
    spoil(what, moving, fixed, grad)
    got = run(moving, fixed, grad, mask, options)
    with ops.use_backend("torch"):
        want = run(moving, fixed, grad, mask, options)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, equal_nan=True, rtol=1e-4, atol=1e-4)
    if what == "gradient":
        assert got[3].isnan().any() and got[4].isnan().any()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("what", ["moving", "fixed"])
def test_a_gradient_of_zero_stays_zero_at_nan(native, what, options):
    moving, fixed, grad, mask = maps()
    clean = moving.clone(), fixed.clone()
    spoil(what, moving, fixed, grad)
    steps = (options.get("iterations", 20), options.get("tolerance", 0.0))
    matrix = reference.step_matrix(moving, fixed, mask, "moving")
    displacement, _, valid = torch.ops.deepatlas_ops.implicit_warp(moving, fixed, matrix, None, *steps, False)
    lost = displacement.isnan().any(1, keepdim=True).expand_as(grad)
    assert lost.any()
    grad[lost] = 0
    # The weights exclude the NaN voxel, so it must not have any effect.
    matrix = reference.step_matrix(*clean, mask, "moving")
    names = "implicit_warp_unrolled_backward", "implicit_warp_backward"
    arguments = (grad, moving, fixed, matrix, *steps), (grad, moving, displacement, valid, matrix)
    for name, given in zip(names, arguments, strict=True):
        body = getattr(reference, name)(*given)
        given = given if "unrolled" in name else (*given, True)
        for g, w in zip(getattr(torch.ops.deepatlas_ops, name)(*given), body, strict=True):
            assert g.isfinite().all()
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)
