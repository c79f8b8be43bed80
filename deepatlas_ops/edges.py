"""edge_difference: its public function, schemas, fake kernels and autograd formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check, _library, reference


def edge_difference(moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much the edges of two images differ, relative to the edges of the fixed image (section 5.1.5).

    Args:
        moving, fixed: [B, C, D, H, W], of one shape, dtype (float64, float32, float16 or bfloat16) and device, with
            any strides.
        mask: [B, 1, D, H, W] non-negative weights for all channels: bool, an integer type or the dtype of ``moving``.
            None weights all voxels equally. A mask that is 0 everywhere gives 0 and no gradient.

    Returns:
        [B], in the dtype and on the device of ``moving``: the weighted mean of (a - b)^2 over voxels and channels,
        divided by the weighted mean of b^2 (by 1e-4 if that is smaller), where a and b are the edges of ``moving``
        and ``fixed``.

    The edge of a voxel is sqrt(|g|^2 + 1e-6) - 1e-3, where g is the Prewitt gradient: along each axis a central
    difference per voxel, averaged over three neighbours along both other axes, with replicated borders. So a voxel at
    the edge of the mask depends on its neighbours outside the mask. What the images hold further out does not matter,
    even if it is NaN.

    Differentiable once with respect to both images. Half types are computed in float32, and inside an autocast region
    the arguments are converted to float32 at least. The kernels are deterministic; on the CPU the result does not
    depend on the number of threads.

    Raises:
        ValueError: a wrong shape, dtype or device.
    """
    op = "edge_difference"
    moving, fixed, mask = _check.autocast(moving, fixed, mask, least=torch.float32)
    _check.pair(op, "fixed", fixed, "moving", moving)
    weights = _check.mask(op, mask, "moving", moving)
    with _check.without_autocast(moving):
        loss, _ = _library.call(op, _loss_alone, moving, fixed, weights)
    return loss


def _loss_alone(*args: Any) -> tuple[Tensor, None]:
    """The body under ordinary autograd, which does not need the statistics."""
    return reference.edge_difference(*args), None


def _body(moving: Tensor, fixed: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return reference.edge_difference(moving, fixed, mask), reference.edge_statistics(moving, fixed, mask)


def _backward_body(
    grad: Tensor,
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None,
    _statistics: Tensor,
    need_moving: bool,
    need_fixed: bool,
) -> tuple[Tensor, Tensor]:
    """The statistics save the kernels a pass over the images; the PyTorch body computes its own."""
    return reference.edge_difference_backward(grad, moving, fixed, mask, need_moving, need_fixed)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _statistics: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    grads = _library.run("edge_difference_backward", grad, *ctx.saved_tensors, *needs)
    return *_library.keep_needed(grads, needs), None


_library.register(
    "edge_difference",
    # The second result holds what the backward op needs, [B, 3] in float64: see reference.edge_statistics.
    "(Tensor moving, Tensor fixed, Tensor? mask) -> (Tensor, Tensor)",
    _body,
    lambda moving, fixed, mask: (
        moving.new_empty(moving.shape[:1]),
        moving.new_empty((moving.shape[0], 3), dtype=torch.float64),
    ),
    setup_context=_context,
    backward=_backward,
)
_library.register(
    "edge_difference_backward",
    "(Tensor grad, Tensor moving, Tensor fixed, Tensor? mask, Tensor statistics, bool need_moving, bool need_fixed)"
    " -> (Tensor, Tensor)",
    _backward_body,
    lambda grad, moving, fixed, mask, _statistics, need_moving, need_fixed: (
        _library.gradient_like(moving, need_moving),
        _library.gradient_like(fixed, need_fixed),
    ),
)
