"""Every op as a function of the tensors that it differentiates, for the tests that apply to all ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from fields import identity, inside, smooth
from torch import Tensor

import deepatlas_ops as ops

Size = tuple[int, int, int]
MATRIX = torch.tensor([[0.9, 0.2, 0.03, 0.1], [-0.2, 0.8, 0.1, 0.02], [0.01, -0.1, 1.1, 0.05]]).double()


class Case(NamedTuple):
    """One way to call an op.

    ``make(size)`` returns float64 inputs of a batch of two, and ``run(mask, *inputs)`` the result of the op. ``double``
    lists the backends that have second derivatives.
    """

    make: Callable[[Size], list[Tensor]]
    run: Callable[..., Tensor]
    double: tuple[str, ...] = ("torch",)


def volume(size: Size, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, *size, dtype=torch.float64)


def coordinates(size: Size) -> Tensor:
    return 0.7 * identity(size) + smooth(2, size, 0.05)


def weights(size: Size, dtype: torch.dtype = torch.float64) -> Tensor:
    mask = torch.rand(2, 1, *size) > 0.3
    mask[..., 0, 0, 0] = True
    return mask.to(dtype)


def volume_and_places(size: Size) -> list[Tensor]:
    return [volume(size), inside(2, size, 1.2)]


def two_maps(size: Size) -> list[Tensor]:
    return [coordinates(size), coordinates(size)]


def map_alone(size: Size) -> list[Tensor]:
    return [coordinates(size)]


def two_volumes(size: Size) -> list[Tensor]:
    return [volume(size), volume(size)]


def volume_alone(size: Size) -> list[Tensor]:
    return [volume(size)]


WEIGHT, BIAS = (torch.tensor(x).double() for x in ((0.5, -1.2, 2.0), (0.1, 0.3, -0.2)))


def normalised(groups: int) -> Case:
    def run(mask: Tensor | None, v: Tensor) -> Tensor:
        affine = (x.to(getattr(v, "device", "cpu")) for x in (WEIGHT, BIAS))
        return ops.group_norm_leaky_relu(v, groups, *affine, slope=0.1)

    return Case(volume_alone, run)


CURVE = ((-1.0, -0.2, 0.1, 0.9), (0.3, 0.0, 0.7, 1.0))

CASES = {
    "resample": Case(volume_and_places, lambda m, v, c: ops.resample(v, c)),
    "resample zeros": Case(volume_and_places, lambda m, v, c: ops.resample(v, c, padding="zeros")),
    "resample reflection": Case(volume_and_places, lambda m, v, c: ops.resample(v, c, padding="reflection")),
    "resample nearest": Case(volume_and_places, lambda m, v, c: ops.resample(v, c, mode="nearest")),
    "warp": Case(lambda s: [volume(s), smooth(2, s, 0.1)], lambda m, v, d: ops.warp(v, d)),
    "affine_resample": Case(
        lambda s: [volume(s), MATRIX.expand(2, 3, 4).contiguous()],
        lambda m, v, t: ops.affine_resample(v, t, (8, 9, 10)),
    ),
    "resize up": Case(volume_alone, lambda m, v: ops.resize(v, (14, 20, 31)), ("torch", "native")),
    "resize down": Case(volume_alone, lambda m, v: ops.resize(v, (5, 2, 3)), ("torch", "native")),
    "resize channels last": Case(
        volume_alone, lambda m, v: ops.resize(v, (6, 3, 14), channels_last=True), ("torch", "native")
    ),
    "implicit_warp": Case(two_maps, lambda m, a, b: ops.implicit_warp(a, b, mask=m).displacement, ()),
    "implicit_warp newton": Case(
        two_maps,
        lambda m, a, b: ops.implicit_warp(a, b, mask=m, step="newton", iterations=12).displacement,
        (),
    ),
    "implicit_warp literal": Case(
        two_maps, lambda m, a, b: ops.implicit_warp(a, b, mask=m, step="literal").displacement, ()
    ),
    "implicit_warp literal unrolled": Case(
        two_maps,
        lambda m, a, b: (
            ops.implicit_warp(a, b, iterations=5, step="literal", gradient="unrolled").displacement
        ),
    ),
    "implicit_warp unrolled": Case(
        two_maps,
        lambda m, a, b: ops.implicit_warp(a, b, iterations=5, gradient="unrolled").displacement,
    ),
    "log_jacobian": Case(map_alone, lambda m, c: ops.log_jacobian(c)),
    "log_jacobian columns": Case(map_alone, lambda m, c: ops.log_jacobian(c, normalize_columns=True)),
    "smoothness_loss log": Case(map_alone, lambda m, c: ops.smoothness_loss(c, m)),
    "smoothness_loss det": Case(map_alone, lambda m, c: ops.smoothness_loss(c, m, orthonormality="det")),
    "ncc": Case(two_volumes, lambda m, a, b: ops.ncc(a, b, m)),
    "ncc windows": Case(two_volumes, lambda m, a, b: ops.ncc(a, b, m, window=5)),
    "edge_difference": Case(two_volumes, lambda m, a, b: ops.edge_difference(a, b, m)),
    "piecewise_linear": Case(volume_alone, lambda m, v: ops.piecewise_linear(v, *CURVE)),
    "group_norm_leaky_relu": normalised(1),
    "group_norm_leaky_relu channels": normalised(3),
}

# Ops that are not differentiable.
MEASURES = {
    "folds": Case(map_alone, lambda m, c: ops.folds(c, m)),
    "folds digital": Case(map_alone, lambda m, c: ops.folds(c, m, differences="digital")),
    "log_jacobian_std": Case(map_alone, lambda m, c: ops.log_jacobian_std(c, m)),
}


def rise(like: Tensor) -> Tensor:
    """A gradient that is different for every element."""
    return torch.linspace(-1, 2, like.numel(), dtype=torch.float64).reshape(like.shape).to(like)


def value_and_gradients(case: Case, mask: Tensor | None, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = case.run(mask, *leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, rise(out))]
