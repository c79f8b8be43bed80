"""ncc: public function, schemas, fake kernels and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check, _library, reference


def ncc(
    a: Tensor, b: Tensor, mask: Tensor | None = None, *, window: int | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalised cross-correlation of two feature maps, per channel (one term of eq. 9).

    Args:
        a, b: [B, C, D, H, W], same shape, dtype and device.
        mask: [B, 1, D, H, W] weights (bool, integer or the dtype of ``a``, not negative), broadcast over
            channels. None weighs all voxels alike. An all-zero mask gives 0 and no gradient; values under a
            zero weight are never used, NaN or not.
        window: None correlates over the whole volume. An odd k correlates within the k x k x k window around
            each voxel (weighted by the mask, holding only voxels inside the volume) and returns the weighted
            mean of these signed correlations. Note that the LNCC of ANTs, MONAI and VoxelMorph averages
            their squares.
        eps: below what spread a map counts as flat, where the correlation falls to 0 instead of becoming
            noise or NaN. Global: a standard deviation of eps times the root mean square of the channel.
            Windowed: a variance of eps times the variance of the channel over the mask. Above it the value
            is exact.

    Returns:
        [B, C], each in [-1, 1], dtype and device of ``a``; 0 where a map is flat.

    Differentiable once with respect to ``a`` and ``b`` (the floors are constants). float64, float32, float16
    and bfloat16; the kernels compute in float64 throughout, the PyTorch body only the window sums, the rest
    in float32 at least. Any strides. Inside an autocast region the arguments are brought to float32. The
    kernels are deterministic, on the CPU whatever the number of threads. Their cost does not grow with the
    window, but for the logarithm of its width on the CPU, and its width along x on CUDA.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, an even or non-positive window, or a bad eps.
    """
    a, b, mask = _check.autocast(a, b, mask, least=torch.float32)
    _check.tensor("ncc", "a", a)
    _check.tensor("ncc", "b", b)
    _check.alike("ncc", "b", b, "a", a)
    _check.same_shape("ncc", "b", b, "a", a)
    weights = _check.mask("ncc", mask, "a", a)
    whole = isinstance(window, int) and not isinstance(window, bool)
    if window is not None and not (whole and window > 0 and window % 2 == 1):
        _check.fail("ncc", "window", "None or a positive odd integer", repr(window))
    _check.positive("ncc", "eps", eps)
    with _check.without_autocast(a):
        return _library.call("ncc", _differentiable_body, a, b, weights, window or 0, float(eps))[0]


def _differentiable_body(*args: Any) -> tuple[Tensor, None]:
    return reference.ncc(*args), None


def _body(a: Tensor, b: Tensor, mask: Tensor | None, window: int, eps: float) -> tuple[Tensor, Tensor]:
    return reference.ncc(a, b, mask, window, eps), reference.channel_moments(a, b, mask)


def _backward_body(
    grad: Tensor, a: Tensor, b: Tensor, mask: Tensor | None, moments: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    """The moments spare the kernels a pass; the PyTorch body takes its own."""
    return reference.ncc_backward(grad, a, b, mask, *options)


def _context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    a, b, mask, *ctx.options = inputs
    ctx.save_for_backward(a, b, mask, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, unused: Tensor | None) -> tuple:
    need_a, need_b = ctx.needs_input_grad[:2]
    grad_a, grad_b = _library.run("ncc_backward", grad, *ctx.saved_tensors, *ctx.options, need_a, need_b)
    return grad_a if need_a else None, grad_b if need_b else None, None, None, None


_library.register(
    "ncc",
    # The second result [B, C, 6] in float64 holds the moments of each channel, for the backward op.
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
        a.new_empty(a.shape) if need_a else a.new_empty(0),
        b.new_empty(b.shape) if need_b else b.new_empty(0),
    ),
)
