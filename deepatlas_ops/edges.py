"""edge_difference: public function, schemas, fake kernels and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check, _library, reference


def edge_difference(moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much the edges of two images differ, relative to those of the fixed one (section 5.1.5).

    Args:
        moving, fixed: [B, C, D, H, W], same shape, dtype and device.
        mask: [B, 1, D, H, W] weights (bool, integer or the dtype of ``moving``, not negative), broadcast over
            channels. None weighs all voxels alike. An all-zero mask gives 0 and no gradient.

    Returns:
        [B], dtype and device of ``moving``: the weighted mean of (a - b)^2 over voxels and channels, over that of b^2
        (held above 1e-4), where a and b are the magnitudes of the Prewitt gradients of ``moving`` and ``fixed``.

    The Prewitt gradient is a central difference per voxel step along one axis and the mean of three along the other
    two, borders replicated; its magnitude is sqrt(|gradient|^2 + 1e-6) - 1e-3. A voxel at the edge of the mask reaches
    one voxel beyond it; what the images hold further out, even NaN, does not matter. Differentiable once with respect
    to both images. float64, float32, float16 and bfloat16, half types computing in float32; any strides. Inside an
    autocast region the arguments are brought to float32. The kernels are deterministic, on the CPU whatever the number
    of threads.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    moving, fixed, mask = _check.autocast(moving, fixed, mask, least=torch.float32)
    _check.tensor("edge_difference", "moving", moving)
    _check.tensor("edge_difference", "fixed", fixed)
    _check.alike("edge_difference", "fixed", fixed, "moving", moving)
    _check.same_shape("edge_difference", "fixed", fixed, "moving", moving)
    weights = _check.mask("edge_difference", mask, "moving", moving)
    with _check.without_autocast(moving):
        return _library.call("edge_difference", _differentiable_body, moving, fixed, weights)[0]


def _differentiable_body(*args: Any) -> tuple[Tensor, None]:
    return reference.edge_difference(*args), None


def _body(moving: Tensor, fixed: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return reference.edge_difference(moving, fixed, mask), reference.edge_statistics(moving, fixed, mask)


def _backward_body(
    grad: Tensor,
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None,
    statistics: Tensor,
    need_moving: bool,
    need_fixed: bool,
) -> tuple[Tensor, Tensor]:
    """The statistics spare the kernels a pass; the PyTorch body takes its own."""
    return reference.edge_difference_backward(grad, moving, fixed, mask, need_moving, need_fixed)


def _context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, unused: Tensor | None) -> tuple:
    needs = ctx.needs_input_grad[:2]
    grads = _library.run("edge_difference_backward", grad, *ctx.saved_tensors, *needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), None


_library.register(
    "edge_difference",
    # The second result [B, 3] in float64, for the backward op: the loss, what it is over, whether that is unheld.
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
    lambda grad, moving, fixed, mask, statistics, need_moving, need_fixed: (
        moving.new_empty(moving.shape if need_moving else 0),
        fixed.new_empty(fixed.shape if need_fixed else 0),
    ),
)
