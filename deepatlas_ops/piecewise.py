"""piecewise_linear: its public function, schemas, fake kernels and autograd formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _check, _library, reference

# As kMostKnots of csrc/kernels.h.
MOST_KNOTS = 33


def piecewise_linear(x: Tensor, knots: Sequence[float], values: Sequence[float]) -> Tensor:
    """A piecewise linear function of every element, such as a contrast curve.

    Args:
        x: [B, C, D, H, W], float64, float32, float16 or bfloat16, with any strides.
        knots: 2 to 33 finite numbers in increasing order.
        values: as many finite numbers, the values of the function at the knots. Between two knots the function is
            linear, and its first and last line extend beyond the knots.

    Returns:
        The values of the function, in the shape and dtype and on the device of ``x``. NaN stays NaN.

    Differentiable with respect to ``x``. The derivative is the slope of the line that ``x`` lies on, at a knot that
    of the line below. Half types are computed in float32, and inside an autocast region ``x`` is converted to float32
    at least.

    Raises:
        ValueError: a tensor of a wrong shape or dtype, knots that do not increase, numbers that are not finite, too
            many or too few knots, or a different number of values.
    """
    (x,) = _check.autocast(x, least=torch.float32)
    _check.tensor("piecewise_linear", "x", x)
    knots, values = _numbers("knots", knots), _numbers("values", values)
    if not 2 <= len(knots) <= MOST_KNOTS:
        _check.fail("piecewise_linear", "knots", f"2 to {MOST_KNOTS} numbers", len(knots))
    if any(not low < high for low, high in zip(knots, knots[1:], strict=False)):
        _check.fail("piecewise_linear", "knots", "each number above the one before", knots)
    if len(values) != len(knots):
        _check.fail("piecewise_linear", "values", f"{len(knots)} numbers, one for each knot", len(values))
    with _check.without_autocast(x):
        return _library.call("piecewise_linear", reference.piecewise_linear, x, knots, values)


def _numbers(argument: str, given: Sequence[float]) -> list[float]:
    try:
        numbers = [float(n) for n in given]
    except (TypeError, ValueError):
        _check.fail("piecewise_linear", argument, "a sequence of numbers", repr(given))
    if any(abs(n) == float("inf") or n != n for n in numbers):
        _check.fail("piecewise_linear", argument, "finite numbers", numbers)
    return numbers


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.curve = inputs[1:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _library.run("piecewise_linear_backward", grad, *ctx.saved_tensors, *ctx.curve), None, None


_library.register(
    "piecewise_linear",
    "(Tensor x, float[] knots, float[] values) -> Tensor",
    reference.piecewise_linear,
    lambda x, knots, values: x.new_empty(x.shape),
    setup_context=_context,
    backward=_backward,
)
_library.register(
    "piecewise_linear_backward",
    "(Tensor grad, Tensor x, float[] knots, float[] values) -> Tensor",
    reference.piecewise_linear_backward,
    lambda grad, x, knots, values: x.new_empty(x.shape),
)
