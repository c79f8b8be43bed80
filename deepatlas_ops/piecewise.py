"""piecewise_linear: public function, schemas, fake kernels and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _check, _library, reference

MOST_KNOTS = 33


def piecewise_linear(x: Tensor, knots: Sequence[float], values: Sequence[float]) -> Tensor:
    """A piecewise linear curve of every element, such as a contrast curve: (knot, value) joined by lines.

    Args:
        x: [B, C, D, H, W].
        knots: 2 to 33 finite numbers, each above the one before.
        values: as many finite numbers, what the curve is at the knots.

    Returns:
        The shape, dtype and device of ``x``. Beyond the knots the first and last line go on. NaN stays NaN.

    Differentiable with respect to ``x``: the slope of its line, at a knot that of the line below. float64, float32,
    float16 and bfloat16, half types computing in float32; any strides. Inside an autocast region ``x`` is brought
    to float32.

    Raises:
        ValueError: a tensor of another form, knots that do not rise, or values that are not as many.
    """
    (x,) = _check.autocast(x, least=torch.float32)
    _check.tensor("piecewise_linear", "x", x)
    knots, values = _numbers("knots", knots), _numbers("values", values)
    if not 2 <= len(knots) <= MOST_KNOTS:
        _check.fail("piecewise_linear", "knots", f"2 to {MOST_KNOTS} numbers", len(knots))
    if any(not low < high for low, high in zip(knots, knots[1:], strict=False)):
        _check.fail("piecewise_linear", "knots", "each number above the one before", knots)
    if len(values) != len(knots):
        _check.fail("piecewise_linear", "values", f"{len(knots)} numbers, one a knot", len(values))
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


def _context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.curve = inputs[1:]


def _backward(ctx: Any, grad: Tensor) -> tuple:
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
