"""Piecewise linear curves and their gradient in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._common import compute_dtype


def _segments(x: Tensor, knots: Sequence[float], values: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Knot, value and slope of the segment that each element of ``x`` lies in.

    NaN belongs to the first segment, as in the kernels.
    """
    slopes = [(v - u) / (q - p) for p, q, u, v in zip(knots, knots[1:], values, values[1:], strict=False)]
    table = torch.tensor([knots[:-1], values[:-1], slopes], dtype=x.dtype, device=x.device)
    segment = torch.zeros_like(x, dtype=torch.long)
    for knot in table[0, 1:]:
        segment = segment + (x > knot)
    return table[0][segment], table[1][segment], table[2][segment]


def piecewise_linear(x: Tensor, knots: Sequence[float], values: Sequence[float]) -> Tensor:
    """The curve through the points (knot, value) at every element of ``x``; its end segments extend beyond them."""
    wide = x.to(compute_dtype(x.dtype))
    knot, value, slope = _segments(wide.detach(), knots, values)
    return (value + slope * (wide - knot)).to(x.dtype)


def piecewise_linear_backward(
    grad: Tensor, x: Tensor, knots: Sequence[float], values: Sequence[float]
) -> Tensor:
    """Gradient with respect to ``x``: the slope of its segment, at a knot the slope of the segment below."""
    work = compute_dtype(x.dtype)
    return (grad.to(work) * _segments(x.to(work), knots, values)[2]).to(x.dtype)
