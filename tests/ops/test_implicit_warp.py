"""implicit_warp: solutions in closed form, different fields of view, the two gradients, and unusual inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fields import identity, smooth

import deepatlas_ops as ops
from deepatlas_ops import reference

SIZE = (9, 10, 11)
HALF = (torch.tensor([11.0, 10.0, 9.0]) - 1).reshape(1, 3, 1, 1, 1) / 2


def apply(matrix, offset, field):
    return torch.einsum("ij,bj...->bi...", matrix, field) + offset.reshape(1, 3, 1, 1, 1)


def pair(amplitude=0.08, size=SIZE, fixed_size=SIZE, scale=0.8, batch=1):
    """Two smooth maps. The fixed exam covers the middle of the moving one."""
    moving = identity(size) + smooth(batch, size, amplitude)
    return moving, identity(fixed_size) * scale + smooth(batch, fixed_size, amplitude)


@pytest.mark.parametrize("fixed_size", [SIZE, (5, 12, 7)])
def test_affine_maps_have_the_affine_answer(backend, fixed_size):
    a = torch.tensor([[0.7, 0.2, 0.0], [-0.1, 0.9, 0.1], [0.0, -0.2, 1.1]], dtype=torch.float64)
    b = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    moving, v = apply(a, b, identity(SIZE)), identity(fixed_size)
    fixed = apply(a @ torch.diag(torch.tensor([1.2, 0.8, 1.0], dtype=torch.float64)), b * 0.5, v)
    u = apply(torch.linalg.inv(a), -torch.linalg.inv(a) @ b, fixed)
    warp = ops.implicit_warp(moving, fixed)
    # The map is continued linearly, so this holds outside the moving grid too.
    torch.testing.assert_close(warp.displacement, u - v, rtol=0, atol=1e-10)
    assert warp.residual.max() < 1e-8
    assert torch.equal(warp.valid, (u.abs() <= 1).all(1, keepdim=True))
    assert 0.1 < warp.valid.double().mean() < 0.9


@pytest.mark.parametrize("step", ["moving", "fixed", "literal", "direction_cosine"])
def test_a_known_diffeomorphism_is_found(backend, step):
    moving = identity(SIZE) + smooth(2, SIZE, 0.04)
    known = 0.9 * identity(SIZE) + 0.05 * torch.sin(math.pi * identity(SIZE).flip(1))
    # Now u = known solves the equation exactly.
    fixed = ops.resample(moving, known.expand(2, -1, -1, -1, -1))
    warp = ops.implicit_warp(moving, fixed, iterations=80, step=step)
    assert warp.valid.all()
    torch.testing.assert_close(
        warp.displacement + identity(SIZE), known.expand(2, -1, -1, -1, -1), rtol=0, atol=1e-6
    )


def test_a_template_grid_gives_the_inverse_map(backend):
    moving, _ = pair()
    warp = ops.implicit_warp(moving, identity((7, 7, 7)))
    template = ops.resample(moving, warp.displacement + identity((7, 7, 7)))
    inside = warp.valid.expand(-1, 3, -1, -1, -1)
    assert warp.valid.double().mean() > 0.5
    torch.testing.assert_close(template[inside], identity((7, 7, 7))[inside], rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [0.3, 0.7, 1.4])
def test_twenty_steps_leave_under_a_voxel_at_99_percent(backend, scale):
    size = (24, 24, 24)
    moving = scale * (identity(size, torch.float32) + smooth(2, size, 0.06, torch.float32))
    fixed = scale * (0.8 * identity(size, torch.float32) + smooth(2, size, 0.06, torch.float32))
    warp = ops.implicit_warp(moving, fixed)
    u = warp.displacement + identity(size, torch.float32)
    covered = (u.abs() <= 1).all(1, keepdim=True)
    # The error of eq. 7, computed independently: what remains of the coordinates, in voxels of the moving exam.
    left = (fixed - ops.resample(moving, u)).square().sum(1, keepdim=True).sqrt() / scale * (size[0] - 1) / 2
    assert covered.double().mean() > 0.8
    assert (left[covered] < 1).double().mean() > 0.99
    assert (warp.residual[covered] < 1).double().mean() > 0.99
    assert u.abs().max() < 4


def test_fields_of_view_three_times_apart_need_the_moving_matrix(backend):
    moving = 3 * (identity(SIZE) + smooth(1, SIZE, 0.05))
    fixed = identity(SIZE) + smooth(1, SIZE, 0.05)
    assert (ops.implicit_warp(moving, fixed).residual < 1).all()
    assert ops.implicit_warp(moving, fixed).valid.all()
    assert (ops.implicit_warp(moving, fixed, step="fixed").residual < 1).double().mean() < 0.05


def mean_jacobian(field):
    """[3, 3] of a float64 field [1, 3, D, H, W], from NumPy's gradients."""
    axes = ((axis, 2 / (field.shape[axis] - 1)) for axis in (4, 3, 2))
    columns = [np.gradient(field.numpy(), step, axis=axis) for axis, step in axes]
    return torch.tensor(np.stack([c.mean((2, 3, 4))[0] for c in columns], -1))


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_literal_is_equations_5_to_7(backend, iterations):
    # A rotation, so that the order of the factors and the transpose matter.
    angle = torch.tensor(0.4, dtype=torch.float64)
    turn = torch.eye(3, dtype=torch.float64)
    turn[0, 0], turn[0, 1], turn[1, 0], turn[1, 1] = angle.cos(), -angle.sin(), angle.sin(), angle.cos()
    moving, fixed = pair(amplitude=0.03, scale=0.5)
    moving, fixed = (apply(turn, torch.zeros(3), field) for field in (moving, fixed))
    d_q, v = mean_jacobian(fixed), identity(SIZE)
    phi = torch.einsum("bi...,ij->bj...", fixed - moving, d_q)
    for _ in range(iterations - 1):
        phi = phi + torch.einsum("bi...,ij->bj...", fixed - ops.resample(moving, v + phi), d_q)
    # Outside the moving grid the paper does not define the recursion.
    assert ((v + phi).abs() <= 1).all()
    got = ops.implicit_warp(moving, fixed, iterations=iterations, step="literal").displacement
    torch.testing.assert_close(got, phi, rtol=0, atol=1e-10)


def test_literal_diverges_for_large_scales_and_is_slow_for_small_ones(backend):
    """An iteration multiplies the error by |1 - s_p s_q|, here 1.6 and 0.93."""
    for scale, iterations in ((1.8, 40), (0.3, 20)):
        moving, fixed = (scale * c for c in pair(amplitude=0.02, scale=0.8))
        assert ops.implicit_warp(moving, fixed, iterations=iterations).valid.all()
        literal = ops.implicit_warp(moving, fixed, iterations=iterations, step="literal")
        assert literal.displacement.isfinite().all()
        assert literal.residual.mean() > 0.05
    ten, eleven = (ops.implicit_warp(moving, fixed, iterations=n, step="literal") for n in (10, 11))
    assert eleven.residual.mean() / ten.residual.mean() == pytest.approx(1 - 0.3**2 * 0.8, abs=0.02)


def test_literal_takes_the_identity_for_a_constant_fixed_map(backend):
    moving = identity(SIZE) + smooth(1, SIZE, 0.04)
    fixed = torch.full_like(moving, 0.2)
    warp = ops.implicit_warp(moving, fixed, step="literal", iterations=60)
    assert warp.valid.all()
    at = ops.resample(moving, warp.displacement + identity(SIZE))
    torch.testing.assert_close(at, fixed, rtol=0, atol=1e-6)


def test_the_residual_is_in_moving_voxels(backend):
    moving, fixed = pair(amplitude=0.1, scale=0.7)
    warp = ops.implicit_warp(moving, fixed, iterations=2)
    mean = mean_jacobian(moving)
    left = fixed - ops.resample(moving, warp.displacement + identity(SIZE))
    want = (apply(torch.linalg.inv(mean), torch.zeros(3), left) * HALF).square().sum(1, keepdim=True).sqrt()
    assert want.max() > 1e-3
    torch.testing.assert_close(warp.residual[warp.valid], want[warp.valid])


def gradients(moving, fixed, weight, **options):
    moving, fixed = moving.clone().requires_grad_(), fixed.clone().requires_grad_()
    warp = ops.implicit_warp(moving, fixed, **options)
    return torch.autograd.grad((warp.displacement * weight * warp.valid).sum(), (moving, fixed))


@pytest.mark.parametrize("fixed_size", [SIZE, (5, 7, 6)])
@pytest.mark.parametrize("step", ["moving", "literal", "direction_cosine"])
def test_implicit_and_unrolled_gradients_agree_at_convergence(backend, step, fixed_size):
    # Some voxels lie outside the moving grid.
    moving, fixed = pair(fixed_size=fixed_size, scale=1.1)
    weight = torch.randn(1, 3, *fixed_size, dtype=torch.float64)
    implicit = gradients(moving, fixed, weight, iterations=60, step=step)
    unrolled = gradients(moving, fixed, weight, iterations=60, step=step, gradient="unrolled")
    for i, u in zip(implicit, unrolled, strict=True):
        torch.testing.assert_close(i, u, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("step", ["moving", "literal"])
@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
def test_gradients_are_the_finite_differences(backend, gradient, step):
    moving, fixed = pair(size=(3, 4, 3), fixed_size=(2, 3, 3), scale=0.6)
    moving.requires_grad_(), fixed.requires_grad_()
    iterations = 60 if gradient == "implicit" else 15

    def displacement(m, f):
        warp = ops.implicit_warp(m, f, iterations=iterations, step=step, gradient=gradient)
        assert warp.valid.all()
        return warp.displacement

    assert torch.autograd.gradcheck(displacement, (moving, fixed), eps=1e-7, atol=1e-4, rtol=1e-3)


@pytest.mark.slow(1)
@pytest.mark.parametrize("step", ["moving", "literal"])
def test_few_unrolled_steps_are_differentiated_exactly(backend, step):
    moving, fixed = pair(size=(4, 4, 4), fixed_size=(3, 3, 3), scale=0.6)
    moving.requires_grad_(), fixed.requires_grad_()

    def displacement(m, f):
        return ops.implicit_warp(m, f, iterations=2, step=step, gradient="unrolled").displacement

    assert torch.autograd.gradcheck(displacement, (moving, fixed), eps=1e-7, atol=1e-5)


def test_voxels_that_are_not_valid_carry_no_gradient(backend):
    moving, fixed = pair(scale=1.5)
    fixed.requires_grad_()
    warp = ops.implicit_warp(moving, fixed)
    (grad,) = torch.autograd.grad(warp.displacement.sum(), fixed)
    carries = grad.abs().sum(1, keepdim=True) > 0
    assert 0.1 < warp.valid.double().mean() < 0.9
    assert torch.equal(carries, warp.valid)


def test_folds_and_plateaus_keep_the_gradient_bounded(backend):
    # This map folds strongly, and is constant in the middle.
    moving = identity(SIZE) + smooth(1, SIZE, 0.4)
    moving[..., 3:7, 3:7, 3:7] = moving[..., 4:5, 4:5, 4:5]
    fixed = identity(SIZE).requires_grad_()
    moving.requires_grad_()
    warp = ops.implicit_warp(moving, fixed)
    assert warp.displacement.isfinite().all()
    grads = torch.autograd.grad(warp.displacement.sum(), (moving, fixed))
    spread = torch.linalg.matrix_norm(reference.step_matrix(moving, fixed, None, "moving").detach()).item()
    assert all(g.isfinite().all() for g in grads)
    assert grads[1].norm(dim=1).max() <= 20 * math.sqrt(3) * spread


def test_gradient_none_detaches(backend):
    moving, fixed = (x.requires_grad_() for x in pair())
    assert not ops.implicit_warp(moving, fixed, gradient="none").displacement.requires_grad
    warp = ops.implicit_warp(moving, fixed)
    assert (
        warp.displacement.requires_grad and not warp.residual.requires_grad and not warp.valid.requires_grad
    )


def test_the_mask_keeps_meaningless_coordinates_out_of_the_mean(backend):
    moving, fixed = pair(scale=0.3)
    mask = torch.ones(1, 1, *SIZE, dtype=torch.float64)
    mask[..., 8:] = 0
    spoilt = moving.clone()
    spoilt[..., 9:] = 30 * torch.randn(1, 3, *SIZE[:2], 2, dtype=torch.float64)
    clean = ops.implicit_warp(moving, fixed, mask=mask)
    masked = ops.implicit_warp(spoilt, fixed, mask=mask)
    torch.testing.assert_close(masked.displacement, clean.displacement, rtol=0, atol=1e-9)
    assert (ops.implicit_warp(spoilt, fixed).residual > 1).any()
    torch.testing.assert_close(
        ops.implicit_warp(moving, fixed, mask=torch.zeros_like(mask)).displacement,
        ops.implicit_warp(moving, fixed).displacement,
    )


def test_tolerance_stops_early_and_close(backend):
    moving, fixed = pair()
    full = ops.implicit_warp(moving, fixed, iterations=40)
    early = ops.implicit_warp(moving, fixed, iterations=40, tolerance=0.01)
    assert not torch.equal(early.displacement, full.displacement)
    assert ((early.displacement - full.displacement) * HALF).norm(dim=1).max() < 0.02
    count = []

    def counted(volume, coords):
        count.append(1)
        return reference.resample(volume, coords, 0, 0)

    matrix = reference.step_matrix(moving, fixed, None, "moving")
    reference.solve_inverse(moving, fixed, matrix, None, 40, 0.01, counted)
    assert 2 < len(count) < 30


def test_a_map_onto_itself_is_the_identity_and_valid_to_the_faces(backend):
    moving = (identity(SIZE) * 0.37 + smooth(1, SIZE, 0.02)).float()
    warp = ops.implicit_warp(moving, moving)
    assert warp.valid.all()
    assert warp.displacement.abs().max() < 1e-4


@pytest.mark.parametrize(
    "size, fixed_size", [((1, 6, 7), (1, 5, 4)), ((5, 1, 1), (5, 4, 1)), ((5, 6, 7), (1, 1, 1))]
)
def test_axes_of_one_voxel(backend, size, fixed_size):
    moving, fixed = identity(size).clone(), identity(fixed_size) * 0.5 + 0.1
    moving.requires_grad_(), fixed.requires_grad_()
    warp = ops.implicit_warp(moving, fixed)
    torch.testing.assert_close(warp.displacement, fixed - identity(fixed_size), rtol=0, atol=1e-9)
    assert warp.valid.all()
    grad_moving, grad_fixed = torch.autograd.grad(warp.displacement.sum(), (moving, fixed))
    torch.testing.assert_close(grad_fixed, torch.ones_like(grad_fixed))
    torch.testing.assert_close(grad_moving.sum(), -grad_fixed.sum())


@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
def test_empty_batch_constant_maps_and_nan(backend, gradient):
    moving, fixed = (x.requires_grad_() for x in pair())
    empty = ops.implicit_warp(moving[:0], fixed[:0], gradient=gradient, tolerance=0.1)
    assert [tuple(t.shape) for t in empty] == [(0, 3, *SIZE), (0, 1, *SIZE), (0, 1, *SIZE)]

    flat = ops.implicit_warp(torch.zeros_like(moving), fixed, gradient=gradient)
    assert flat.displacement.isfinite().all() and not flat.valid.all()

    broken = fixed.detach().clone()
    broken[0, 1, 2, 3, 4] = float("nan")
    broken.requires_grad_()
    warp = ops.implicit_warp(moving, broken, gradient="implicit")
    clean = ops.implicit_warp(moving, fixed)
    assert not warp.valid[0, 0, 2, 3, 4]
    others = torch.ones(SIZE, dtype=torch.bool)
    others[2, 3, 4] = False
    torch.testing.assert_close(warp.displacement[..., others], clean.displacement[..., others])
    for grad in torch.autograd.grad(warp.displacement[..., others].sum(), (moving, broken)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_iterate_in_float32(backend, dtype):
    moving, fixed = (x.to(dtype) for x in pair())
    warp = ops.implicit_warp(moving.requires_grad_(), fixed)
    exact = ops.implicit_warp(moving.double(), fixed.double())
    assert (
        warp.displacement.dtype == dtype and warp.residual.dtype == dtype and warp.valid.dtype == torch.bool
    )
    rounding = (exact.displacement.to(dtype).double() - exact.displacement).abs().max()
    assert (warp.displacement.double() - exact.displacement).abs().max() <= 2 * rounding + 1e-5
    (grad,) = torch.autograd.grad(warp.displacement.sum(), moving)
    assert grad.dtype == dtype and grad.isfinite().all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"c_moving": torch.zeros(1, 2, 3, 3, 3)}, r"implicit_warp: c_moving: expected \[B, 3, D, H, W\]"),
        (
            {"c_fixed": torch.zeros(2, 3, 3, 3, 3)},
            "implicit_warp: c_fixed: expected the batch size of c_moving, 1",
        ),
        (
            {"mask": torch.zeros(1, 1, 2, 3, 3)},
            r"implicit_warp: mask: expected \[1, 1, 3, 3, 3\].*got \[1, 1, 2, 3, 3\]",
        ),
        ({"mask": torch.zeros(1, 1, 3, 3, 3).double()}, "implicit_warp: mask: .*got torch.float64"),
        ({"iterations": 0}, "implicit_warp: iterations: expected an integer of at least 1, got 0"),
        ({"tolerance": -1.0}, "implicit_warp: tolerance"),
        ({"tolerance": float("nan")}, "implicit_warp: tolerance"),
        (
            {"step": "mean"},
            "implicit_warp: step: expected one of moving, fixed, literal, direction_cosine, newton, got 'mean'",
        ),
        (
            {"step": "newton", "gradient": "unrolled"},
            "implicit_warp: gradient: expected implicit or none with the newton step, got 'unrolled'",
        ),
        ({"gradient": True}, "implicit_warp: gradient: expected one of implicit, unrolled, none, got True"),
    ],
)
def test_errors(change, message):
    arguments = {"c_moving": torch.zeros(1, 3, 3, 3, 3), "c_fixed": torch.zeros(1, 3, 3, 3, 3), **change}
    with pytest.raises(ValueError, match=message):
        ops.implicit_warp(**arguments)
