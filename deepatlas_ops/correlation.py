"""ncc: its public function, schemas, fake kernels and autograd formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check, _library, reference


def ncc(
    a: Tensor, b: Tensor, mask: Tensor | None = None, *, window: int | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalised cross-correlation of two feature maps, for each channel (one term of eq. 9).

    Args:
        a, b: [B, C, D, H, W], of one shape, dtype (float64, float32, float16 or bfloat16) and device, with any
            strides.
        mask: [B, 1, D, H, W] non-negative weights for all channels: bool, an integer type or the dtype of ``a``. None
            weights all voxels equally. A mask that is 0 everywhere gives 0 and no gradient. Values where the weight is
            0 are never used, even if they are NaN.
        window: None correlates over the whole volume. An odd number k correlates within the k x k x k window around
            each voxel, of which only the voxels inside the volume count, weighted by the mask; the result is the
            weighted mean of these signed correlations. The LNCC of ANTs, MONAI and VoxelMorph is the mean of their
            squares instead.
        eps: up to which spread a map counts as flat. There the correlation falls to 0 and does not become noise or
            NaN; above it the value is exact. Without windows, a map is flat if its standard deviation is below eps
            times the root mean square of the channel. With windows, it is flat in a window if its variance there is
            below eps times the variance of the channel under the mask.

    Returns:
        [B, C], each in [-1, 1], in the dtype and on the device of ``a``; 0 where a map is flat.

    Differentiable once with respect to ``a`` and ``b``; the gradient treats the limits that ``eps`` sets as
    constants. The kernels compute everything in float64. The PyTorch body computes the sums over windows in float64
    and everything else in float32, or in float64 for float64 maps. Inside an autocast region the arguments are
    converted to float32 at least. The kernels are deterministic; on the CPU the result does not depend on the number
    of threads. The time hardly depends on the window: on the CPU it grows with the logarithm of its width, on CUDA
    only the sum along x grows with the width.

    Raises:
        ValueError: a wrong shape, dtype or device, a window that is even or not positive, or an eps not above 0.
    """
    a, b, mask = _check.autocast(a, b, mask, least=torch.float32)
    _check.pair("ncc", "b", b, "a", a)
    weights = _check.mask("ncc", mask, "a", a)
    _check.window("ncc", window)
    _check.positive("ncc", "eps", eps)
    with _check.without_autocast(a):
        value, _ = _library.call("ncc", _value_alone, a, b, weights, window or 0, float(eps))
    return value


def _value_alone(*args: Any) -> tuple[Tensor, None]:
    """The body under ordinary autograd, which does not need the moments."""
    return reference.ncc(*args), None


def _body(a: Tensor, b: Tensor, mask: Tensor | None, window: int, eps: float) -> tuple[Tensor, Tensor]:
    return reference.ncc(a, b, mask, window, eps), reference.channel_moments(a, b, mask)


def _backward_body(
    grad: Tensor, a: Tensor, b: Tensor, mask: Tensor | None, _moments: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    """The moments save the kernels a pass over the maps; the PyTorch body computes its own."""
    return reference.ncc_backward(grad, a, b, mask, *options)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    a, b, mask, *ctx.options = inputs
    ctx.save_for_backward(a, b, mask, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _moments: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    grads = _library.run("ncc_backward", grad, *ctx.saved_tensors, *ctx.options, *needs)
    return *_library.keep_needed(grads, needs), None, None, None


_library.register(
    "ncc",
    # The second result holds what the backward op needs, [B, C, 6] in float64: see reference.channel_moments.
    "(Tensor a, Tensor b, Tensor? mask, int window, float eps) -> (Tensor, Tensor)",
    _body,
    lambda a, b, mask, window, eps: (
        a.new_empty(a.shape[:2]),
        a.new_empty((*a.shape[:2], 6), dtype=torch.float64),
    ),
    setup_context=_context,
    backward=_backward,
)
_library.register(
    "ncc_backward",
    "(Tensor grad, Tensor a, Tensor b, Tensor? mask, Tensor moments, int window, float eps,"
    " bool need_a, bool need_b) -> (Tensor, Tensor)",
    _backward_body,
    lambda grad, a, b, mask, moments, window, eps, need_a, need_b: (
        _library.gradient_like(a, need_a),
        _library.gradient_like(b, need_b),
    ),
)
