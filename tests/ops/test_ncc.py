"""ncc against numpy, SciPy and MONAI, its gradients, flat regions, and the kernels against the PyTorch body."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from conftest import why_not_native
from fields import strided
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import deepatlas_ops as ops
from deepatlas_ops import reference
from deepatlas_ops.ncc import _backward_body, _body

SIZE = (5, 6, 7)


def maps(batch=2, channels=3, size=SIZE, dtype=torch.float64):
    a = torch.randn(batch, channels, *size, dtype=dtype)
    return a, 0.6 * a + 0.8 * torch.randn(batch, channels, *size, dtype=dtype)


def some_mask(batch=2, size=SIZE, dtype=torch.float64):
    return torch.rand(batch, 1, *size, dtype=dtype) * (torch.rand(batch, 1, *size) > 0.3)


def correlation(a, b, weight):
    """Weighted Pearson correlation of 1-D numpy arrays."""
    covariance = np.cov(a, b, aweights=weight, ddof=0)
    return covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])


def local(a, b, weight, window):
    """Weighted mean of the correlations of every window, voxel by voxel."""
    reach, total = window // 2, 0.0
    for index in np.ndindex(*a.shape):
        box = tuple(slice(max(i - reach, 0), i + reach + 1) for i in index)
        if weight[index] > 0 and np.count_nonzero(weight[box]) > 1:
            total += weight[index] * correlation(a[box].ravel(), b[box].ravel(), weight[box].ravel())
    return total / weight.sum()


def test_global_is_numpys_corrcoef(backend):
    a, b = maps()
    got = ops.ncc(a, b)
    for i in range(2):
        for c in range(3):
            want = np.corrcoef(a[i, c].flatten().numpy(), b[i, c].flatten().numpy())[0, 1]
            assert got[i, c].item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("window", [None, 3, 5, 21])
def test_masked_is_the_weighted_correlation(backend, window):
    a, b = maps(1, 2, (4, 3, 5))
    mask = some_mask(1, (4, 3, 5))
    got = ops.ncc(a, b, mask, window=window)
    weight = mask[0, 0].numpy()
    for c in range(2):
        x, y = a[0, c].numpy(), b[0, c].numpy()
        flat = (x.ravel(), y.ravel(), weight.ravel())
        want = correlation(*flat) if window is None else local(x, y, weight, window)
        assert got[0, c].item() == pytest.approx(want, abs=1e-6)


def windowed_by_scipy(a, b, window):
    """Mean of the correlations of all windows from SciPy's box filter, in float64 (no window is flat)."""
    ones = np.ones_like(a)
    one, x, y, xx, yy, xy = (
        ndimage.uniform_filter(m, window, mode="constant") for m in (ones, a, b, a * a, b * b, a * b)
    )
    x, y, xx, yy, xy = (m / one for m in (x, y, xx, yy, xy))  # zeros outside: the mean over those inside
    return ((xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y))).mean()


@pytest.mark.parametrize("window", [3, 7, 9, 21, 75])
def test_windowed_is_scipys_box_filter(backend, window):
    # deeper than two slabs of the CPU kernel, and windows wider than an axis or than all of them
    a, b = maps(1, 2, (37, 18, 11))
    got = ops.ncc(a, b, window=window)
    for c in range(2):
        want = windowed_by_scipy(a[0, c].numpy(), b[0, c].numpy(), window)
        assert got[0, c].item() == pytest.approx(want, abs=1e-12)


def test_windows_and_gradient_are_monais_where_they_lie_inside(backend):
    # MONAI averages the squares of the correlations and pads with zeros. b follows a closely, so that every
    # correlation is positive and the root of MONAI's map is the signed value wherever the window of 5 lies
    # inside; the clipped windows at the border come from numpy.
    losses = pytest.importorskip("monai.losses")
    loss = losses.LocalNormalizedCrossCorrelationLoss(
        kernel_size=5, reduction="none", smooth_nr=0, smooth_dr=1e-12
    )
    size = (9, 10, 11)
    a, b = maps(1, 1, size)
    a, b = a.requires_grad_(), (a + 0.3 * b).requires_grad_()
    inner = (..., *(slice(2, n - 2) for n in size))
    roots = (-loss(a, b))[inner].sqrt()
    assert roots.shape == (1, 1, 5, 6, 7) and roots.min() > 0.5

    edge = np.ones(size)
    edge[inner] = 0
    x, y = a.detach()[0, 0].numpy(), b.detach()[0, 0].numpy()
    border = sum(
        correlation(*(v[box].ravel() for v in (x, y, np.ones(size))))
        for box in (tuple(slice(max(i - 2, 0), i + 3) for i in at) for at in np.argwhere(edge))
    )
    value = ops.ncc(a, b, window=5)
    assert value.item() * a.numel() == pytest.approx(roots.sum().item() + border, rel=1e-9)

    # voxels that only windows inside hold: there the gradient is MONAI's too
    ours = torch.autograd.grad(value.sum() * a.numel(), (a, b))
    monais = torch.autograd.grad(roots.sum(), (a, b))
    deep = (..., *(slice(4, n - 4) for n in size))
    for mine, other in zip(ours, monais, strict=True):
        assert mine[deep].numel() == 6
        torch.testing.assert_close(mine[deep], other[deep], rtol=1e-8, atol=1e-10)


def test_range_sign_and_invariance(backend):
    a, b = maps()
    for window in (None, 3):
        torch.testing.assert_close(ops.ncc(a, a, window=window), torch.ones(2, 3).double(), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            ops.ncc(a, -2 * a + 5, window=window), -torch.ones(2, 3).double(), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(ops.ncc(3 * a - 7, b, window=window), ops.ncc(a, b, window=window))
        torch.testing.assert_close(ops.ncc(a, b, window=window), ops.ncc(b, a, window=window))
        assert ops.ncc(a, b, window=window).abs().max() <= 1


@pytest.mark.parametrize("window", [None, 3, 9])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(backend, window, masked):
    a, b = (x.requires_grad_() for x in maps(2, 2, (3, 4, 3)))
    mask = some_mask(2, (3, 4, 3)) if masked else None
    assert torch.autograd.gradcheck(
        lambda x, y: ops.ncc(x, y, mask, window=window), (a, b), atol=1e-4, rtol=1e-3
    )


def test_one_gradient_without_the_other(backend):
    a, b = maps()
    for window in (None, 3):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        both = torch.autograd.grad(ops.ncc(x, y, window=window).sum(), (x, y))
        torch.testing.assert_close(torch.autograd.grad(ops.ncc(x, b, window=window).sum(), x)[0], both[0])
        torch.testing.assert_close(torch.autograd.grad(ops.ncc(a, y, window=window).sum(), y)[0], both[1])


@pytest.mark.parametrize("window", [None, 3, 5])
@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0, 3e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_flat_maps_give_zero_and_never_nan(backend, window, value, dtype):
    a = torch.full((1, 1, 9, 9, 9), value, dtype=dtype, requires_grad=True)
    b = torch.randn(1, 1, 9, 9, 9).to(dtype).requires_grad_()
    out = ops.ncc(a, b, window=window) + ops.ncc(a, a, window=window)
    grads = torch.autograd.grad(out.sum(), (a, b))
    assert out.abs().max() < 1e-3
    # by a map flat to the last digit the gradient is finite but may be beyond the range of float16
    good = (g.isnan().logical_not() if dtype == torch.float16 else g.isfinite() for g in grads)
    assert all(g.all() for g in good)


def test_air_far_from_the_mean_is_flat_and_not_noise(backend):
    # CT in float32: air at -1000 exactly, a body of soft tissue, windows wholly in air
    body = torch.zeros(1, 1, 16, 16, 16)
    body[..., 8:] = 1
    a = torch.where(body > 0, 40 + 20 * torch.randn(body.shape), torch.tensor(-1000.0)).requires_grad_()
    b = torch.where(body > 0, 40 + 20 * torch.randn(body.shape), torch.tensor(-1000.0))
    air = torch.zeros_like(body)
    air[..., :5] = 1
    windows = torch.zeros_like(body)
    windows[..., :2] = 1  # windows of 5 around these see air alone
    whole = ops.ncc(a, b, window=5)
    (grad,) = torch.autograd.grad(whole.sum(), a)
    assert whole.isfinite().all() and whole.abs().max() <= 1
    assert grad[..., :4].abs().max() < 1e-6
    mostly = ops.ncc(a[..., :10], b[..., :10], windows[..., :10] + 1e-9, window=5)
    assert mostly.abs().max() < 1e-3
    assert ops.ncc(a, b, air, window=5).abs().max() < 1e-3


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("window", [None, 5])
def test_float32_keeps_small_variance_on_a_large_offset(backend, window, offset):
    a, b = maps(1, 1, (12, 12, 12))
    a, b = (a + offset).float(), (b + offset).float()
    exact = ops.ncc(a.double(), b.double(), window=window)
    assert ops.ncc(a, b, window=window).item() == pytest.approx(exact.item(), abs=2e-4)


@pytest.mark.parametrize("window", [None, 3])
def test_an_all_zero_mask_gives_zero_and_no_gradient(backend, window):
    a, b = (x.requires_grad_() for x in maps())
    mask = torch.ones(2, 1, *SIZE, dtype=torch.float64)
    mask[1] = 0
    out = ops.ncc(a, b, mask, window=window)
    grads = torch.autograd.grad(out.sum(), (a, b))
    assert (out[1] == 0).all() and (out[0] != 0).all()
    assert all((g[1] == 0).all() and g[0].abs().max() > 0 for g in grads)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_values_under_a_zero_weight_are_never_read(backend, window, dtype):
    a, b = maps()
    mask = torch.rand(2, 1, *SIZE) > 0.4
    want = ops.ncc(a, b, mask.double(), window=window)
    hole = (~mask).expand_as(a)
    a[hole], b[hole] = float("nan"), float("inf")
    a.requires_grad_()
    got = ops.ncc(a, b, mask.to(dtype), window=window)
    torch.testing.assert_close(got, want)
    (grad,) = torch.autograd.grad(got.sum(), a)
    assert grad.isfinite().all() and (grad[hole] == 0).all()


@given(
    batch=st.integers(0, 2),
    channels=st.integers(1, 3),
    size=st.tuples(*[st.integers(1, 7)] * 3),
    window=st.sampled_from([None, 1, 3, 5, 9]),
    masked=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def _any_shape(batch, channels, size, window, masked, seed):
    torch.manual_seed(seed)
    a, b = (x.requires_grad_() for x in maps(batch, channels, size))
    mask = some_mask(batch, size) if masked else None
    out = ops.ncc(a, b, mask, window=window)
    assert out.shape == (batch, channels)
    assert out.isfinite().all() and (out.abs() <= 1 + 1e-9).all()
    for grad in torch.autograd.grad(out.sum(), (a, b)):
        assert grad.shape == a.shape and grad.isfinite().all()
    again = ops.ncc(strided(a.detach()), strided(b.detach()), mask, window=window)
    torch.testing.assert_close(again, out.detach())
    body = reference.ncc(a, b, mask, window or 0, 1e-5)
    torch.testing.assert_close(out, body, rtol=1e-9, atol=1e-9)


def test_any_shape_and_strides(backend):
    _any_shape()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5])
def test_half_types_accumulate_in_float32(backend, window, dtype):
    a, b = (x.to(dtype).requires_grad_() for x in maps(1, 2, (12, 12, 12)))
    mask = torch.rand(1, 1, 12, 12, 12) > 0.5
    got, exact = ops.ncc(a, b, mask, window=window), ops.ncc(a.double(), b.double(), mask, window=window)
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= 2 * (exact.to(dtype).double() - exact).abs().max() + 1e-5
    assert torch.autograd.grad(got.sum(), a)[0].dtype == dtype


def test_autocast_runs_in_float32(backend):
    a, b = maps(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ops.ncc(a, b.bfloat16(), torch.ones(2, 1, *SIZE))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, ops.ncc(a, b.bfloat16().float()))


def test_opcheck(backend):
    a, b = (x.requires_grad_() for x in maps(2, 2, (3, 4, 5), torch.float32))
    mask = some_mask(2, (3, 4, 5), torch.float32)
    registered = torch.ops.deepatlas_ops
    torch.library.opcheck(registered.ncc.default, (a, b, mask, 3, 1e-5))
    torch.library.opcheck(registered.ncc.default, (a, b.detach(), None, 0, 1e-5))
    for window, needs in ((0, (True, False)), (3, (True, True))):
        moments = reference.channel_moments(a.detach(), b.detach(), mask)
        plain = (torch.rand(2, 2), a.detach(), b.detach(), mask, moments, window, 1e-5, *needs)
        torch.library.opcheck(
            registered.ncc_backward.default, plain, test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.parametrize("window", [0, 4, -3, 3.0, True])
def test_errors_of_the_window(window):
    a = torch.zeros(1, 1, 3, 3, 3)
    with pytest.raises(ValueError, match="ncc: window: expected None or a positive odd integer, got"):
        ops.ncc(a, a, window=window)


def test_errors():
    a = torch.zeros(1, 2, 3, 3, 3)
    with pytest.raises(
        ValueError, match=r"ncc: b: expected the shape of a, \[1, 2, 3, 3, 3\], got \[1, 1, 3, 3, 3\]"
    ):
        ops.ncc(a, a[:, :1])
    with pytest.raises(ValueError, match="ncc: b: expected the dtype of a, torch.float32, got torch.float16"):
        ops.ncc(a, a.half())
    with pytest.raises(
        ValueError, match=r"ncc: mask: expected \[1, 1, 3, 3, 3\], one weight for each voxel of a"
    ):
        ops.ncc(a, a, a)
    with pytest.raises(ValueError, match="ncc: eps"):
        ops.ncc(a, a, eps=0.0)


# ---- the kernels ------------------------------------------------------------------------------------

native = pytest.mark.skipif(why_not_native() is not None, reason="no native kernels")


def both_backends(run):
    """What ``run()`` returns on the kernels and on the PyTorch bodies."""
    results = []
    for backend in ("native", "torch"):
        with ops.use_backend(backend):
            results.append(run())
    return results


def value_and_gradients(a, b, mask, window, weight):
    a, b = (x.detach().requires_grad_() for x in (a, b))
    out = ops.ncc(a, b, mask, window=window)
    return out.detach(), *torch.autograd.grad((out * weight).sum(), (a, b))


@native
def test_the_kernels_are_the_ones_that_run():
    for name in ("ncc", "ncc_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"deepatlas_ops::{name}", "CPU"), name


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 3, 7])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_error_is_at_most_twice_that_of_the_body(dtype, window, masked, offset):
    a, b = ((x + offset).to(dtype) for x in maps(2, 4, (19, 14, 17)))
    mask = some_mask(2, (19, 14, 17)).to(dtype) if masked else None
    weight = torch.randn(2, 4).to(dtype)
    found, body = both_backends(lambda: value_and_gradients(a, b, mask, window, weight))
    exact = value_and_gradients(
        a.double(), b.double(), None if mask is None else mask.double(), window, weight.double()
    )
    for f, p, e in zip(found, body, exact, strict=True):
        # the last digit of the type counts: a body that happens to round every value well is not the norm
        digit = torch.finfo(dtype).eps * e.abs().max()
        assert (f.double() - e).abs().max() <= 2 * (p.double() - e).abs().max() + 0.5 * digit


@native
@pytest.mark.parametrize("window", [None, 5])
def test_a_nearly_flat_region_far_from_the_mean_keeps_its_digits(window):
    # the spread of one half is a hundredth of the step between the halves: float32 sums would lose it
    a, b = maps(1, 1, (24, 12, 12))
    step = torch.linspace(-1, 1, 24).sign().double()[:, None, None] * 50
    a, b = (a + step).float(), (b - step).float()
    weight = torch.ones(1, 1)
    with ops.use_backend("native"):
        found = value_and_gradients(a, b, None, window, weight)
    exact = [
        windowed_by_scipy(a[0, 0].double().numpy(), b[0, 0].double().numpy(), window)
        if window
        else np.corrcoef(a.double().flatten().numpy(), b.double().flatten().numpy())[0, 1]
    ]
    assert found[0].item() == pytest.approx(exact[0], rel=2e-7)
    body = value_and_gradients(a.double(), b.double(), None, window, weight.double())
    for f, e in zip(found[1:], body[1:], strict=True):
        assert (f.double() - e).abs().max() <= 2e-7 * e.abs().max()


@native
@pytest.mark.parametrize("window", [None, 3, 9])
def test_moments_and_results_of_the_registered_bodies(window):
    # a build without kernels runs these under the same schemas
    a, b = maps(2, 3, (18, 5, 7))
    mask = some_mask(2, (18, 5, 7))
    registered, window = torch.ops.deepatlas_ops, window or 0
    value, moments = registered.ncc(a, b, mask, window, 1e-5)
    torch.testing.assert_close((value, moments), _body(a, b, mask, window, 1e-5))
    for needs in ((True, True), (True, False), (False, True)):
        args = (torch.randn(2, 3).double(), a, b, mask, moments, window, 1e-5, *needs)
        torch.testing.assert_close(registered.ncc_backward(*args), _backward_body(*args))


@native
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_bitwise_the_same_on_any_number_of_threads(window, masked):
    a, b = maps(1, 2, (50, 23, 21), torch.float32)
    mask = some_mask(1, (50, 23, 21), torch.float32) if masked else None
    before, results = torch.get_num_threads(), []
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with ops.use_backend("native"):
                results.append(value_and_gradients(a, b, mask, window, torch.ones(1, 2)))
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(deterministic)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("window", [None, 3])
def test_nan_spoils_its_own_channel_only(backend, window):
    a, b = maps(1, 3)
    a[0, 1, 2, 3, 4] = float("nan")
    value, grad_a, grad_b = value_and_gradients(a, b, None, window, torch.ones(1, 3))
    spoilt = torch.tensor([[False, True, False]])
    assert (value.isnan() == spoilt).all()
    assert (grad_a.isnan().any((2, 3, 4)) == spoilt).all()
    assert (grad_b.isnan().any((2, 3, 4)) == spoilt).all()


@pytest.mark.parametrize("window", [None, 3])
def test_channels_last(backend, window):
    a, b = maps()
    got = ops.ncc(*(x.to(memory_format=torch.channels_last_3d) for x in (a, b)), window=window)
    torch.testing.assert_close(got, ops.ncc(a, b, window=window), rtol=1e-12, atol=1e-12)


def test_compiles_without_a_graph_break(backend):
    a, b = maps(1, 2, dtype=torch.float32)
    mask = some_mask(1, dtype=torch.float32)

    def loss(x, y):
        return ops.ncc(x, y, mask).sum() - 2 * ops.ncc(x, y, mask, window=3).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        leaves = [x.clone().requires_grad_() for x in (a, b)]
        out = function(*leaves)
        results.append((out.detach(), *torch.autograd.grad(out, leaves)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


@native
def test_second_derivatives_are_refused():
    a, b = (x.requires_grad_() for x in maps())
    with ops.use_backend("native"):
        (grad,) = torch.autograd.grad(ops.ncc(a, b, window=3).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="ncc_backward: second derivatives are not implemented"):
        grad.sum().backward()


@native
def test_the_registered_op_checks_its_arguments():
    op, back = torch.ops.deepatlas_ops.ncc, torch.ops.deepatlas_ops.ncc_backward
    a = torch.zeros(1, 2, 3, 3, 3)
    with pytest.raises(RuntimeError, match=r"ncc: b must have the shape"):
        op(a, a[:, :1], None, 0, 1e-5)
    with pytest.raises(RuntimeError, match=r"ncc: mask must be \[B, 1, D, H, W\]"):
        op(a, a, a, 0, 1e-5)
    with pytest.raises(RuntimeError, match="ncc: window must be 0 .* or odd, got 4"):
        op(a, a, None, 4, 1e-5)
    with pytest.raises(RuntimeError, match="ncc: b must be float like a, got double|ncc: b must be Float"):
        op(a, a.double(), None, 0, 1e-5)
    value, moments = op(a, a, None, 0, 1e-5)
    with pytest.raises(RuntimeError, match="moments must be those of ncc"):
        back(value, a, a, None, moments[:, :1], 0, 1e-5, True, True)


@native
@pytest.mark.slow
@pytest.mark.skipif(
    os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 14e9, reason="less than 14 GB are free"
)
def test_more_elements_than_32_bits_can_count():
    a = torch.zeros(1, 1, 1025, 1448, 1448, dtype=torch.bfloat16)
    assert a.numel() > 2**31
    a[..., -1, -9:, :] = torch.randn(9, 1448).bfloat16()
    with ops.use_backend("native"):
        assert ops.ncc(a, -a).item() == pytest.approx(-1, abs=1e-2)
