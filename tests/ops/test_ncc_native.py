"""The kernels of ncc against the PyTorch body: rounding, threads, registered results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native_kernels import why_not_native
from ncc_inputs import maps, some_mask, windowed_by_scipy

import deepatlas_ops as ops
from deepatlas_ops import reference

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))


def both_backends(run):
    """The results of ``run()`` with the kernels and with the PyTorch bodies."""
    results = []
    for backend in ("native", "torch"):
        with ops.use_backend(backend):
            results.append(run())
    return results


def value_and_gradients(a, b, mask, window, weight):
    a, b = (x.detach().requires_grad_() for x in (a, b))
    out = ops.ncc(a, b, mask, window=window)
    return out.detach(), *torch.autograd.grad((out * weight).sum(), (a, b))


def test_the_kernels_are_the_ones_that_run():
    for name in ("ncc", "ncc_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"deepatlas_ops::{name}", "CPU"), name


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
        # Half a unit in the last place is allowed in addition, because a body may happen to round well.
        digit = torch.finfo(dtype).eps * e.abs().max()
        assert (f.double() - e).abs().max() <= 2 * (p.double() - e).abs().max() + 0.5 * digit


@pytest.mark.parametrize("window", [None, 5])
def test_a_nearly_flat_region_far_from_the_mean_keeps_its_digits(window):
    # The spread of each half is a hundredth of the step between them. Sums in float32 would lose it.
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


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_terms_of_the_gradient_cancel_where_a_map_is_a_multiple_of_the_other(window, dtype):
    # The correlation is 1, its maximum, so that the gradient is 0: the difference of terms that are not. It is exact up
    # to the digits of float64 whatever the data, though the root of the kernel begins with an estimate.
    a = maps(1, 2, (15, 9, 13), dtype)[0]
    with ops.use_backend("native"):
        value, *gradients = value_and_gradients(a, 4 * a, None, window, torch.ones(1, 2, dtype=dtype))
    torch.testing.assert_close(value, torch.ones_like(value))
    terms = 1 / (a.std() * a[0, 0].numel())
    for gradient in gradients:
        assert gradient.abs().max() < 1e-12 * terms


@pytest.mark.parametrize("window", [None, 3, 9])
def test_moments_and_results_are_those_of_the_bodies(window):
    # Without kernels, the bodies run under the same schemas.
    a, b = maps(2, 3, (18, 5, 7))
    mask = some_mask(2, (18, 5, 7))
    registered, window = torch.ops.deepatlas_ops, window or 0
    value, moments = registered.ncc(a, b, mask, window, 1e-5)
    body = reference.ncc(a, b, mask, window, 1e-5), reference.channel_moments(a, b, mask)
    torch.testing.assert_close((value, moments), body)
    grad = torch.randn(2, 3).double()
    for needs in ((True, True), (True, False), (False, True)):
        found = registered.ncc_backward(grad, a, b, mask, moments, window, 1e-5, *needs)
        torch.testing.assert_close(found, reference.ncc_backward(grad, a, b, mask, window, 1e-5, *needs))


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
