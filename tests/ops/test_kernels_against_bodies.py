"""The kernels of every op against the PyTorch bodies, with Hypothesis: odd shapes, views, NaN and infinity."""

from __future__ import annotations

import pytest
import torch
from fields import identity, smooth, strided
from hypothesis import given, settings
from hypothesis import strategies as st
from native_kernels import why_not_native

import deepatlas_ops as ops
from deepatlas_ops import reference

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))

ODD = (float("nan"), float("inf"), float("-inf"), 1e30, -7.0, 1.0, -1.0)
sizes = st.tuples(*[st.integers(1, 6)] * 3)
run_all = settings(max_examples=60, deadline=None, derandomize=True)
common = {
    "size": sizes,
    "out": sizes,
    "batch": st.integers(0, 2),
    "share": st.sampled_from([0.0, 0.1]),
    "views": st.booleans(),
    "seed": st.integers(0, 2**16),
}


def spoilt(x, share, odd=ODD):
    values = torch.tensor(odd, dtype=x.dtype)[torch.randint(len(odd), x.shape)]
    return torch.where(torch.rand(x.shape) < share, values, x)


def maybe(x, views):
    return strided(x) if views else x


def both(run, *inputs, views=False, pull=None):
    """Values and gradients of the kernels and of the bodies."""
    results = []
    for backend in ("native", "torch"):
        leaves = [maybe(x.detach(), views and backend == "native").requires_grad_() for x in inputs]
        with ops.use_backend(backend):
            out = run(*leaves)
            weight = torch.linspace(-1, 2, max(out.numel(), 1), dtype=out.dtype)[: out.numel()]
            weight = weight.reshape(out.shape) if pull is None else pull(out.detach())
            results.append([out.detach(), *torch.autograd.grad(out, leaves, weight)])
    return results


def agree(native, body, tolerance=1e-9):
    for n, b in zip(native, body, strict=True):
        torch.testing.assert_close(n, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def agree_but_for_nan(native, body):
    """Compare where the kernels give no NaN.

    At the border the kernels also scatter to the voxel before it, with a weight of 0, which a NaN gradient makes NaN.
    """
    for n, b in zip(native, body, strict=True):
        clean = ~n.isnan()
        assert not b[clean].isnan().any()
        torch.testing.assert_close(n[clean], b[clean], rtol=1e-4, atol=1e-4)
        assert b.numel() == 0 or b.isnan().any() or clean.all()


SAMPLERS = {
    "resample": lambda out, o: lambda v, p: ops.resample(v, p, **o),
    "warp": lambda out, o: lambda v, p: ops.warp(v, p, **o),
    "affine_resample": lambda out, o: lambda v, p: ops.affine_resample(v, p, out, **o),
}


@pytest.mark.parametrize("name", SAMPLERS)
@run_all
@given(
    mode=st.sampled_from(["linear", "nearest"]),
    padding=st.sampled_from(["border", "zeros", "reflection"]),
    channels=st.integers(1, 3),
    **common,
)
def test_sampling(name, size, out, batch, share, views, seed, mode, padding, channels):
    torch.manual_seed(seed)
    volume = torch.randn(batch, channels, *size, dtype=torch.float64)
    shape = (batch, 3, 4) if name == "affine_resample" else (batch, 3, *out)
    # Reflection may move 1e30 to any place, and halfway between two voxels the nearest one depends on rounding.
    odd = [x for x in ODD if padding != "reflection" or not 1e9 < abs(x)]
    odd = odd if mode == "linear" else ODD[:1]
    places = spoilt(torch.randn(shape, dtype=torch.float64), share, odd)
    agree(*both(SAMPLERS[name](out, {"mode": mode, "padding": padding}), volume, places, views=views), 1e-8)


@run_all
@given(**common)
def test_a_nan_in_the_volume_is_never_hidden(size, out, batch, share, views, seed):
    torch.manual_seed(seed)
    volume = torch.randn(batch, 2, *size, dtype=torch.float64)
    volume = torch.where(torch.rand(volume.shape) < share, float("nan"), volume)
    coords = 2.2 * torch.rand(batch, 3, *out, dtype=torch.float64) - 1.1
    with ops.use_backend("native"):
        native = ops.resample(maybe(volume, views), maybe(coords, views))
    with ops.use_backend("torch"):
        body = ops.resample(volume, coords)
    clean = ~native.isnan()
    assert not body[clean].isnan().any()
    torch.testing.assert_close(native[clean], body[clean])
    # At the border and beyond, the kernels also read the voxel before it, with a weight of 0.
    inner = (coords.abs() < 1).all(1, keepdim=True).expand_as(native)
    assert torch.equal(native.isnan()[inner], body.isnan()[inner])


@run_all
@given(**common)
def test_resize(size, out, batch, share, views, seed):
    torch.manual_seed(seed)
    volume = torch.randn(batch, 2, *size, dtype=torch.float64)
    agree(*both(lambda v: ops.resize(v, out), volume, views=views))


@run_all
@given(normalize=st.booleans(), masked=st.booleans(), **common)
def test_jacobians(size, out, batch, share, views, seed, normalize, masked):
    torch.manual_seed(seed)
    field = identity(size) + smooth(batch, size, 0.2)
    mask = (torch.rand(batch, 1, *size) > 0.4).double() if masked else None
    # No infinities: whether their difference is NaN or infinite depends on the order of the operations.
    field = spoilt(field, share, (float("nan"), -7.0, 1.0, 1e4))
    kind = "log" if normalize else "det"
    logs = both(lambda f: ops.log_jacobian(f, normalize_columns=normalize), field, views=views)
    losses = both(lambda f: ops.smoothness_loss(f, mask, orthonormality=kind), field, views=views)
    for (value, grad), (body, _), by_hand in (
        (*logs, lambda g: reference.log_jacobian_backward(g, field, normalize, 1e-3)),
        (*losses, lambda g: reference.smoothness_loss_backward(g, field, mask, 0.5, normalize)),
    ):
        agree([value], [body], 1e-7)
        weight = torch.linspace(-1, 2, max(value.numel(), 1), dtype=value.dtype)[: value.numel()]
        want = by_hand(weight.reshape(value.shape))
        # The body multiplies NaN by zeros, which the kernels leave out.
        agree([grad[~want.isnan()]], [want[~want.isnan()]], 1e-7)
    for measure in (
        lambda f: ops.folds(f, mask),
        lambda f: ops.folds(f, mask, differences="digital"),
        lambda f: ops.log_jacobian_std(f, mask),
    ):
        values = []
        for backend in ("native", "torch"):
            with ops.use_backend(backend):
                values.append([measure(maybe(field, views and backend == "native"))])
        agree(*values, 1e-7)


@run_all
@given(window=st.sampled_from([None, 1, 3, 9]), masked=st.booleans(), **common)
def test_ncc(size, out, batch, share, views, seed, window, masked):
    torch.manual_seed(seed)
    a, b = (torch.randn(batch, 2, *size, dtype=torch.float64) for _ in range(2))
    mask = (torch.rand(batch, 1, *size) > 0.4).double() if masked else None
    # Voxels without weight may hold anything. Without a mask, a NaN makes its channel NaN.
    if share > 0 and masked:
        hole = (mask == 0).expand_as(a)
        a, b = torch.where(hole, spoilt(a, 0.5), a), torch.where(hole, spoilt(b, 0.5), b)
    elif share > 0 and window is None:
        a = spoilt(a, 0.02, (float("nan"),))
    agree(*both(lambda x, y: ops.ncc(x, y, mask, window=window), a, b, views=views), 1e-8)


@run_all
@given(masked=st.booleans(), contrast=st.sampled_from([1.0, 1e-3]), **common)
def test_edges(size, out, batch, share, views, seed, masked, contrast):
    torch.manual_seed(seed)
    a, b = (contrast * torch.randn(batch, 2, *size, dtype=torch.float64) for _ in range(2))
    mask = (torch.rand(batch, 1, *size) > 0.4).double() if masked else None
    if share > 0:
        a = spoilt(a, 0.02, (float("nan"), 7.0))
    native, body = both(lambda x, y: ops.edge_difference(x, y, mask), a, b, views=views)
    agree(native[:1], body[:1], 1e-8)
    # Autograd multiplies NaN by zeros, which the adjoint leaves out.
    weight = torch.linspace(-1, 2, max(batch, 1), dtype=torch.float64)[:batch]
    by_hand = reference.edge_difference_backward(weight, a, b, mask, True, True)
    agree(native[1:], by_hand, 1e-8)
    for n, t in zip(native[1:], body[1:], strict=True):
        agree([n[~t.isnan()]], [t[~t.isnan()]], 1e-8)


@run_all
@given(
    curve=st.lists(st.tuples(st.integers(-20, 20), st.integers(-20, 20)), min_size=2, max_size=33),
    **common,
)
def test_piecewise_linear(size, out, batch, share, views, seed, curve):
    torch.manual_seed(seed)
    table = {knot / 10: value / 10 for knot, value in curve} | {-3.0: 1.0, 3.0: -1.0}
    knots = sorted(table)[:33]
    x = spoilt(torch.randn(batch, 2, *size, dtype=torch.float64), share)
    agree(*both(lambda v: ops.piecewise_linear(v, knots, [table[k] for k in knots]), x, views=views))


@run_all
@given(
    groups=st.integers(1, 4),
    each=st.sampled_from([1, 2, 7, 8, 11]),
    last=st.booleans(),
    **common,
)
def test_group_norm_leaky_relu(size, out, batch, share, views, seed, groups, each, last):
    torch.manual_seed(seed)
    channels = groups * each
    # A group of one value has a variance of 0, so that its gradient is made of nothing but rounding.
    if each * size[0] * size[1] * size[2] < 3:
        size = (*size[:2], 3)
    x = spoilt(torch.randn(batch, channels, *size, dtype=torch.float64), share, (float("nan"), 1e4, -7.0))
    affine = torch.randn(2, channels, dtype=torch.float64)
    layout = torch.channels_last_3d if last else torch.contiguous_format

    def run(v, weight, bias):
        v = v if views else v.contiguous(memory_format=layout)
        return ops.group_norm_leaky_relu(v, groups, weight, bias, slope=0.2)

    agree(*both(run, x, *affine, views=views), tolerance=1e-7)


def solutions(moving, fixed, options):
    matrix = reference.step_matrix(moving, fixed, None, "moving")
    found = torch.ops.deepatlas_ops.implicit_warp(moving, fixed, matrix, None, *options, False)
    return matrix, found, reference.solve_inverse(moving, fixed, matrix, None, *options)


@run_all
@given(tolerance=st.sampled_from([0.0, 0.05]), iterations=st.sampled_from([1, 4, 33, 70]), **common)
def test_inversion(size, out, batch, share, views, seed, tolerance, iterations):
    """NaN and far coordinates, and NaN gradients."""
    torch.manual_seed(seed)
    moving = identity(size) + smooth(batch, size, 0.03)
    fixed = spoilt(1.1 * identity(out) + smooth(batch, out, 0.03), share, (float("nan"), 1e30, -7.0))
    matrix, native, body = solutions(moving, fixed, (iterations, tolerance))
    for n, b in zip(native, body, strict=True):
        if n.dtype == torch.bool:
            assert torch.equal(n, b)
            continue
        torch.testing.assert_close(n, b, rtol=1e-6, atol=1e-6, equal_nan=True)

    odd = (float("nan"), 0.0)
    grad = spoilt(torch.randn(batch, 3, *out, dtype=torch.float64), share, odd)
    arguments = (grad, moving, fixed, matrix, iterations, tolerance)
    if views:
        arguments = (*map(strided, arguments[:3]), *arguments[3:])
    found = torch.ops.deepatlas_ops.implicit_warp_unrolled_backward(*arguments)
    agree_but_for_nan(found, reference.implicit_warp_unrolled_backward(*arguments))
    displacement, _, valid = body
    arguments = (grad, moving, displacement, valid, matrix)
    found = torch.ops.deepatlas_ops.implicit_warp_backward(*arguments, True)
    agree_but_for_nan(found, reference.implicit_warp_backward(*arguments))


def test_edges_of_a_flat_fixed_image_beside_a_nan():
    torch.manual_seed(0)
    moving, fixed = (1e-3 * torch.randn(1, 2, 1, 2, 4, dtype=torch.float64) for _ in range(2))
    moving[0, 0, 0, 0, 3] = float("nan")
    native, body = both(ops.edge_difference, moving, fixed)
    assert body[2].isfinite().any()
    agree(native, body)
