"""The ops under torch.func: autograd functions that vmap and grad can take apart.

Every op works item by item along the first axis of all its tensors. So vmap folds its axis into the batch, runs
the op once and unfolds the results; what vmap does not map is repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def active() -> bool:
    """Whether a transform of torch.func (vmap, grad, ...) is running."""
    return torch._C._are_functorch_transforms_active()


def refusing(name: str) -> Callable[..., Any]:
    """An autograd formula for what has none: it raises instead of dropping the gradient in silence."""

    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            f"{name}: second derivatives are not implemented; some bodies of use_backend('torch') have them"
        )

    return backward


def refuse_forward_mode(name: str, args: tuple) -> None:
    """The kernels know no tangents: they would be dropped and the derivative come out as 0."""
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
    """An autograd function of tensors that all have the batch first, and of options."""

    class Batched(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return forward(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
            if setup_context is not None:
                setup_context(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return backward(ctx, *grads)

        @staticmethod
        def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Any, Any]:
            folded = (_fold(a, d, info.batch_size) for a, d in zip(args, in_dims, strict=True))
            out = Batched.apply(*folded)
            if isinstance(out, Tensor):
                return _unfold(out, info.batch_size), 0
            return tuple(_unfold(t, info.batch_size) for t in out), (0,) * len(out)

    return Batched


def _fold(value: Any, axis: Any, size: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.expand(size, *value.shape) if axis is None else value.movedim(axis, 0)
    return value.flatten(0, 1)


def _unfold(value: Tensor, size: int) -> Tensor:
    return value.unflatten(0, (size, value.shape[0] // size))
