"""log_jacobian and smoothness_loss against torch.gradient + linalg.det, SimpleITK and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fields import identity, smooth, strided
from hypothesis import given, settings
from hypothesis import strategies as st
from native_kernels import why_not_native

import deepatlas_ops as ops
from deepatlas_ops import reference

SIZE = (5, 6, 7)
EPS = 1e-3


def columns(field):
    """The Jacobians [B, D, H, W, 3, 3] from torch.gradient."""
    steps = [2 / (n - 1) for n in field.shape[2:]]
    dz, dy, dx = (
        torch.gradient(field, spacing=h, dim=axis)[0] for axis, h in zip((2, 3, 4), steps, strict=True)
    )
    return torch.stack((dx, dy, dz), -1).movedim(1, -2)


def determinant(field, normalize=False):
    matrix = columns(field)
    if normalize:
        matrix = matrix / matrix.norm(dim=-2, keepdim=True)
    return torch.linalg.det(matrix)[:, None]


def regular(batch=2, size=SIZE, amplitude=0.05):
    return identity(size) + smooth(batch, size, amplitude)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("size", [SIZE, (2, 9, 3)])
def test_log_jacobian_is_the_logarithm_of_the_determinant(backend, size, normalize):
    field = regular(size=size, amplitude=0.1) * torch.tensor([0.5, 1.3, 0.8]).reshape(1, 3, 1, 1, 1)
    det = determinant(field, normalize)
    assert det.min() > 0.05
    torch.testing.assert_close(ops.log_jacobian(field, normalize_columns=normalize), det.log())


def test_determinant_is_that_of_simpleitk_in_voxels(backend):
    sitk = pytest.importorskip("SimpleITK")
    size, n = (8, 8, 8), 8
    field = regular(1, size, 0.1)
    # This is in voxels.
    displacement = (field - identity(size))[0].movedim(0, -1).numpy() * (n - 1) / 2
    image = sitk.GetImageFromArray(np.ascontiguousarray(displacement), isVector=True)
    want = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image))[1:-1, 1:-1, 1:-1]
    got = ops.log_jacobian(field).exp()[0, 0, 1:-1, 1:-1, 1:-1].numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_closed_forms(backend):
    x = identity(SIZE)
    assert ops.log_jacobian(x).abs().max() < 1e-12
    torch.testing.assert_close(
        ops.log_jacobian(0.5 * x), torch.full((1, 1, *SIZE), 3 * math.log(0.5)).double()
    )
    shear = x.clone()
    shear[:, 0] += x[:, 1]
    # The first two columns are (1, 0, 0) and (1, 1, 0).
    want = torch.full((1, 1, *SIZE), -0.5 * math.log(2)).double()
    torch.testing.assert_close(ops.log_jacobian(shear, normalize_columns=True), want)


def flipped(det):
    """A field whose determinant is ``det`` everywhere."""
    field = identity(SIZE).clone()
    field[:, 2] *= det
    return field


@pytest.mark.parametrize("eps", [1e-3, 0.1])
def test_the_logarithm_below_eps_is_bounded_and_increasing(backend, eps):
    dets = [2.0, eps * 1.001, eps * 0.999, eps * 0.5, eps * 1e-3, -eps * 1e-3, -eps, -1.0, -100.0, -1e6]
    values, slopes = [], []
    for det in dets:
        field = flipped(det).requires_grad_()
        value = ops.log_jacobian(field, eps=eps)
        (grad,) = torch.autograd.grad(value[0, 0, 2, 2, 2], field)
        values.append(value[0, 0, 2, 2, 2].item())
        # The derivative by the determinant.
        slopes.append((grad[:, 2] * identity(SIZE)[:, 2]).sum().item())
    assert values == sorted(values, reverse=True)
    assert all(0 < slope <= 1 / eps * (1 + 1e-9) for slope in slopes)
    # The slope is continuous at eps and at 0.
    assert slopes[1] == pytest.approx(slopes[2], rel=0.01)
    assert slopes[4] == pytest.approx(slopes[5], rel=0.01)
    # This is on the tangent.
    assert values[3] == pytest.approx(math.log(eps) - 0.5)
    # The tangent would give -1e6 / eps here.
    assert values[-1] > -40
    assert slopes[-2] == pytest.approx(0.01, rel=0.01) and slopes[-1] < 1e-5


def test_folds_are_pushed_open(backend):
    # One voxel folds over its neighbours. Gradient descent must bring its determinant back above 0.
    field = identity(SIZE).clone()
    field[0, 0, 2, 3, 3] += 0.9
    field.requires_grad_()
    assert determinant(field).min() < 0
    optimizer = torch.optim.Adam([field], lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        ops.smoothness_loss(field).sum().backward()
        optimizer.step()
    assert determinant(field).min() > 0.1


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("size", [(3, 4, 3), (1, 4, 2)])
def test_gradcheck_of_log_jacobian(backend, size, normalize):
    field = regular(1, size, 0.4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f: ops.log_jacobian(f, normalize_columns=normalize, eps=0.2), field
    )


def huber(x, delta):
    return F.huber_loss(x, torch.zeros_like(x), reduction="none", delta=delta)


@pytest.mark.parametrize("delta", [0.5, 0.05])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("orthonormality", ["log", "det"])
def test_smoothness_loss_is_equation_11(backend, orthonormality, masked, delta):
    field = regular(amplitude=0.1) * torch.tensor([0.5, 1.3, 0.8]).reshape(1, 3, 1, 1, 1)
    weight = (
        torch.rand(2, 1, *SIZE).double() * (torch.rand(2, 1, *SIZE) > 0.3)
        if masked
        else torch.ones(2, 1, *SIZE).double()
    )
    share = weight / weight.sum((1, 2, 3, 4), keepdim=True)
    change = determinant(field).log()
    frame = determinant(field, True)
    frame = frame.log() if orthonormality == "log" else frame
    mean = (change * share).sum((1, 2, 3, 4), keepdim=True)
    want = ((huber(change - mean, delta) + huber(frame - 1, delta)) * share).sum((1, 2, 3, 4))
    got = ops.smoothness_loss(field, weight if masked else None, delta=delta, orthonormality=orthonormality)
    torch.testing.assert_close(got, want)


def test_rigid_and_scaled_frames_cost_least(backend):
    turn = torch.linalg.matrix_exp(
        torch.tensor([[0, 0.3, 0], [-0.3, 0, 0.1], [0, -0.1, 0]], dtype=torch.float64)
    )
    rigid = torch.einsum("ij,bjdhw->bidhw", 0.6 * turn, identity(SIZE))
    assert ops.smoothness_loss(rigid, orthonormality="det").item() == pytest.approx(0, abs=1e-12)
    # This is L(-1), below which the letter of eq. 11 cannot go.
    assert ops.smoothness_loss(rigid).item() == pytest.approx(0.5 * (1 - 0.25))
    assert ops.smoothness_loss(regular(1)).item() > 0.375


@pytest.mark.parametrize("orthonormality", ["log", "det"])
@pytest.mark.parametrize("amplitude", [0.1, 0.3])
def test_gradcheck_of_smoothness_loss(backend, amplitude, orthonormality):
    field = regular(2, (3, 4, 3), amplitude).requires_grad_()
    mask = torch.rand(2, 1, 3, 4, 3).double() * (torch.rand(2, 1, 3, 4, 3) > 0.3)
    assert torch.autograd.gradcheck(
        lambda f: ops.smoothness_loss(f, mask, delta=0.3, orthonormality=orthonormality),
        field,
        atol=1e-4,
        rtol=1e-3,
    )
    assert torch.autograd.gradcheck(
        lambda f: ops.smoothness_loss(f, orthonormality=orthonormality), field, atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float64])
def test_masks_of_any_type_weigh_alike(backend, dtype):
    mask = torch.rand(2, 1, *SIZE) > 0.4
    field = regular()
    torch.testing.assert_close(
        ops.smoothness_loss(field, mask.to(dtype)), ops.smoothness_loss(field, 3.0 * mask.double())
    )


def test_voxels_beyond_the_neighbours_of_the_mask_do_not_matter(backend):
    field = regular()
    mask = torch.zeros(2, 1, *SIZE, dtype=torch.bool)
    mask[..., :3] = True
    spoilt = field.clone()
    # Voxel 3 is a neighbour of the mask.
    spoilt[..., 4:] = float("nan")
    spoilt.requires_grad_()
    loss = ops.smoothness_loss(spoilt, mask)
    torch.testing.assert_close(loss, ops.smoothness_loss(field, mask))
    (grad,) = torch.autograd.grad(loss.sum(), spoilt)
    assert grad.isfinite().all() and (grad[..., 4:] == 0).all() and grad[..., :3].abs().max() > 0
    assert grad[..., :4].abs().max() > 0


def test_an_all_zero_mask_gives_zero_and_no_gradient(backend):
    field = regular().requires_grad_()
    mask = torch.ones(2, 1, *SIZE)
    mask[1] = 0
    loss = ops.smoothness_loss(field, mask.double())
    (grad,) = torch.autograd.grad(loss.sum(), field)
    assert loss[1] == 0 and loss[0] > 0
    assert (grad[1] == 0).all() and grad[0].abs().max() > 0


def test_collapsed_and_exploded_fields_stay_finite(backend):
    for field in (torch.zeros(1, 3, *SIZE), 1e4 * torch.randn(1, 3, *SIZE), identity(SIZE).float() * -1):
        field.requires_grad_()
        loss = ops.smoothness_loss(field)
        (grad,) = torch.autograd.grad(loss.sum(), field)
        assert loss.isfinite().all() and loss.item() < 50
        assert grad.isfinite().all()


@given(
    batch=st.integers(0, 2),
    size=st.tuples(*[st.integers(1, 6)] * 3),
    masked=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def _any_shape(batch, size, masked, seed):
    torch.manual_seed(seed)
    field = (identity(size) + smooth(batch, size, 0.05)).requires_grad_()
    mask = (torch.rand(batch, 1, *size) > 0.5) if masked else None
    logarithm, loss = ops.log_jacobian(field), ops.smoothness_loss(field, mask, orthonormality="det")
    assert logarithm.shape == (batch, 1, *size) and loss.shape == (batch,)
    (grad,) = torch.autograd.grad(logarithm.sum() + loss.sum(), field)
    assert grad.shape == field.shape and grad.isfinite().all() and loss.isfinite().all()
    again = strided(field.detach())
    torch.testing.assert_close(ops.smoothness_loss(again, mask, orthonormality="det"), loss.detach())


def test_any_shape_and_strides(backend):
    _any_shape()


def test_an_axis_of_one_voxel_counts_as_the_identitys(backend):
    field = identity((1, 6, 7)) * 0.5
    torch.testing.assert_close(
        ops.log_jacobian(field), torch.full((1, 1, 1, 6, 7), 2 * math.log(0.5)).double()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_compute_in_float32(backend, dtype):
    field = regular().to(dtype).requires_grad_()
    for function in (ops.log_jacobian, ops.smoothness_loss):
        got, exact = function(field), function(field.double())
        assert got.dtype == dtype
        assert (got.double() - exact).abs().max() <= 2 * (exact.to(dtype).double() - exact).abs().max() + 1e-5
        assert torch.autograd.grad(got.sum(), field)[0].dtype == dtype


def test_errors():
    field = torch.zeros(1, 3, 2, 2, 2)
    with pytest.raises(
        ValueError, match=r"log_jacobian: field: expected \[B, 3, D, H, W\], got \[1, 1, 2, 2, 2\]"
    ):
        ops.log_jacobian(field[:, :1])
    with pytest.raises(ValueError, match="log_jacobian: eps: expected a number above 0, got 0"):
        ops.log_jacobian(field, eps=0)
    with pytest.raises(
        ValueError, match=r"smoothness_loss: mask: expected \[1, 1, 2, 2, 2\].*got \[1, 3, 2, 2, 2\]"
    ):
        ops.smoothness_loss(field, field)
    with pytest.raises(ValueError, match="smoothness_loss: delta"):
        ops.smoothness_loss(field, delta=-1)
    with pytest.raises(
        ValueError, match="smoothness_loss: orthonormality: expected one of log, det, got 'exp'"
    ):
        ops.smoothness_loss(field, orthonormality="exp")


native_only = pytest.mark.skipif(why_not_native() is not None, reason="no native kernels")
FUNCTIONS = {
    "log_jacobian": lambda f, m: ops.log_jacobian(f),
    "normalized": lambda f, m: ops.log_jacobian(f, normalize_columns=True),
    "smoothness": lambda f, m: ops.smoothness_loss(f, m),
    "smoothness of det": lambda f, m: ops.smoothness_loss(f, None, orthonormality="det"),
}


def value_and_gradient(name, backend, field, mask):
    field = field.clone().requires_grad_()
    with ops.use_backend(backend):
        value = FUNCTIONS[name](field, mask.to(field.dtype))
        return value.detach(), torch.autograd.grad((value * value).sum(), field)[0]


@native_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_native_errors_are_at_most_twice_the_bodys(name, dtype):
    # 261 voxels along x need two blocks of the CPU kernels, and 70 rows two of its tiles.
    for size in ((3, 4, 261), (9, 70, 33)):
        field, mask = regular(size=size).to(dtype), (torch.rand(2, 1, *size) > 0.3).to(dtype)
        exact = value_and_gradient(name, "torch", field.double(), mask)
        native = value_and_gradient(name, "native", field, mask)
        body = value_and_gradient(name, "torch", field, mask)
        for e, n, b in zip(exact, native, body, strict=True):
            one_rounding = torch.finfo(dtype).eps * e.abs().max()
            assert (n.double() - e).abs().max() <= 2 * (b.double() - e).abs().max() + one_rounding


@native_only
@pytest.mark.parametrize("name", FUNCTIONS)
def test_native_results_do_not_depend_on_the_threads(name):
    field, mask = regular(size=(19, 40, 33)).float(), torch.rand(2, 1, 19, 40, 33)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(value_and_gradient(name, "native", field, mask))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@native_only
def test_the_statistics_of_the_native_loss_are_the_bodys():
    field, mask = regular(amplitude=0.2), torch.rand(2, 1, *SIZE).double()
    mask[1] = 0
    for log in (True, False):
        got = torch.ops.deepatlas_ops.smoothness_loss(field, mask, 0.1, log)
        want = reference.smoothness_loss_and_statistics(field, mask, 0.1, log)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


@native_only
def test_the_native_kernels_are_the_ones_that_run():
    for name in ("log_jacobian", "smoothness_loss"):
        for suffix in ("", "_backward"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"deepatlas_ops::{name}{suffix}", "CPU")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("deepatlas_ops::jacobian_determinant", "CPU")


@native_only
def test_the_native_ops_check_what_they_are_given():
    registered, field = torch.ops.deepatlas_ops, torch.zeros(1, 3, 2, 2, 2)
    with pytest.raises(RuntimeError, match=r"log_jacobian: field must be \[B, 3, D, H, W\]"):
        registered.log_jacobian(field[:, :2], False, 1e-3)
    with pytest.raises(RuntimeError, match="smoothness_loss: mask must be Float"):
        registered.smoothness_loss(field, torch.zeros(1, 1, 2, 2, 2).double(), 0.5, True)
    with pytest.raises(RuntimeError, match=r"smoothness_loss: mask must be \[1, 1, 2, 2, 2\]"):
        registered.smoothness_loss(field, field, 0.5, True)
    with pytest.raises(RuntimeError, match="smoothness_loss_backward: statistics must be float64"):
        registered.smoothness_loss_backward(torch.zeros(1), field, None, torch.zeros(1, 3), 0.5, True)
