"""piecewise_linear: NumPy's interp between the knots, lines beyond them, NaN, and the gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deepatlas_ops as ops

KNOTS, VALUES = (-1.0, -0.3, 0.2, 0.9), (0.0, 0.4, 0.1, 2.0)


def between(dtype=torch.float64):
    # This is more than one block of the CPU kernel.
    return torch.linspace(-1, 0.9, 3 * 300, dtype=dtype).reshape(1, 3, 1, 1, 300)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_are_those_of_numpys_interp(backend, dtype):
    x = between(dtype)
    want = torch.from_numpy(np.interp(x.double().numpy(), KNOTS, VALUES))
    torch.testing.assert_close(ops.piecewise_linear(x, KNOTS, VALUES), want.to(dtype))


def test_its_ends_extend_beyond_the_knots(backend):
    x = torch.tensor([-2.0, 1.9, float("inf"), float("nan")]).reshape(1, 1, 1, 1, 4)
    got = ops.piecewise_linear(x, KNOTS, VALUES).flatten().tolist()
    assert got[:3] == pytest.approx([-4 / 7, 2 + 19 / 7, float("inf")]) and np.isnan(got[3])


def test_the_gradient_is_the_slope_and_at_a_knot_that_of_the_line_below(backend):
    x = torch.tensor([-2.0, *KNOTS, 1.0], dtype=torch.float64).reshape(1, 1, 1, 1, 6).requires_grad_()
    (grad,) = torch.autograd.grad(ops.piecewise_linear(x, KNOTS, VALUES).sum(), x)
    first, second, third = 4 / 7, -0.6, 19 / 7
    want = torch.tensor([first, first, first, second, third, third], dtype=torch.float64)
    torch.testing.assert_close(grad.flatten(), want)
    inner = (between() + 1e-3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: ops.piecewise_linear(v, KNOTS, VALUES), inner, eps=1e-8)


def test_most_knots(backend):
    knots = np.linspace(-1, 1, 33)
    values = np.random.default_rng(0).normal(size=33)
    x = torch.linspace(-1, 1, 1000, dtype=torch.float64).reshape(1, 1, 10, 10, 10)
    want = torch.from_numpy(np.interp(x.numpy(), knots, values))
    torch.testing.assert_close(ops.piecewise_linear(x, knots, values), want)


@pytest.mark.parametrize(
    ("knots", "values", "message"),
    [
        ([0.0], [1.0], "knots: expected 2 to 33 numbers, got 1"),
        (range(34), range(34), "knots: expected 2 to 33 numbers, got 34"),
        ([0, 1, 1], [0, 1, 2], "knots: expected each number above the one before"),
        ([0, 1], [0, 1, 2], "values: expected 2 numbers, one for each knot, got 3"),
        ([0, float("nan")], [0, 1], "knots: expected finite numbers"),
        (3.0, [0, 1], "knots: expected a sequence of numbers"),
    ],
)
def test_errors(backend, knots, values, message):
    with pytest.raises(ValueError, match=f"piecewise_linear: {message}"):
        ops.piecewise_linear(torch.zeros(1, 1, 2, 2, 2), knots, values)
