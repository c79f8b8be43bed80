"""The ops under torch.func: autograd functions that support vmap and grad.

Every op treats the items along the first axis of its tensors independently. So vmap moves its axis into the batch,
runs the op once and splits the results again. Tensors that vmap does not map are repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def active() -> bool:
    """Whether a transform of torch.func, such as vmap or grad, is active."""
    return torch._C._are_functorch_transforms_active()


def refusing(name: str) -> Callable[..., Any]:
    """The autograd formula of an op that has no derivative: it raises an error instead of losing the gradient."""

    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            f"{name}: second derivatives are not implemented; with use_backend('torch') some ops have them"
        )

    return backward


def refuse_forward_mode(name: str, args: tuple[Any, ...]) -> None:
    """Raise an error if an argument has a tangent: the kernels would ignore it and the derivative would be 0."""
    if forward_ad._current_level < 0:
        return
    if any(isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in args):
        raise RuntimeError(
            f"{name}: forward-mode differentiation (jvp, jacfwd) is not implemented; use reverse mode"
            " (grad, vjp, jacrev)"
        )


def function(
    forward: Callable[..., Any],
    setup_context: Callable[..., None] | None,
    backward: Callable[..., Any],
) -> type[torch.autograd.Function]:
    """An autograd function with an autograd formula and vmap, for an op whose tensors all have the batch first."""

    class Batched(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return forward(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if setup_context is not None:
                setup_context(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return backward(ctx, *grads)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
            folded = (_fold(a, d, info.batch_size) for a, d in zip(args, in_dims, strict=True))
            out = Batched.apply(*folded)
            if isinstance(out, Tensor):
                return _unfold(out, info.batch_size), 0
            return tuple(_unfold(t, info.batch_size) for t in out), (0,) * len(out)

    return Batched


def _fold(value: Any, axis: int | None, size: int) -> Any:
    """Move the axis that vmap maps, of ``size`` entries, into the batch; None means a tensor that is not mapped."""
    if not isinstance(value, Tensor):
        return value
    value = value.expand(size, *value.shape) if axis is None else value.movedim(axis, 0)
    return value.flatten(0, 1)


def _unfold(value: Tensor, size: int) -> Tensor:
    return value.unflatten(0, (size, value.shape[0] // size))
