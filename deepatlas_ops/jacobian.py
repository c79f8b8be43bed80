"""log_jacobian and smoothness_loss: public functions, schemas, fake kernels and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check, _library, reference


def log_jacobian(field: Tensor, *, normalize_columns: bool = False, eps: float = 1e-3) -> Tensor:
    """Logarithm of the Jacobian determinant of a coordinate field (D and D^ of section 5.1.4).

    Args:
        field: [B, 3, D, H, W] absolute coordinates, channels x, y, z (identity + displacement, not the
            displacement alone).
        normalize_columns: divide each column of the Jacobian by its length first, which leaves the
            determinant of the frame's directions, at most 1 (so the logarithm is at most 0).
        eps: determinant below which the logarithm is left: its tangent down to 0, and below 0 the mirrored
            logarithm log(eps) - 1 - log(1 - det / eps). The result is finite and increasing in the
            determinant, with a continuous slope of at most 1 / eps, so a fold costs a bounded amount and is
            pushed open. Columns shorter than eps are divided by eps.

    Returns:
        [B, 1, D, H, W], dtype and device of ``field``.

    Derivatives are with respect to normalised coordinates, -1 … 1 over each axis: central differences inside,
    one-sided at the borders, as ``torch.gradient``. The identity field gives 0. An axis of size 1 has no
    difference; its column is that of the identity. Differentiable; float64, float32, float16 and bfloat16,
    half types computing in float32; any strides.

    Raises:
        ValueError: a field of the wrong form, or eps not above 0.
    """
    (field,) = _check.autocast(field, least=torch.float32)
    _check.tensor("log_jacobian", "field", field, channels=3)
    _check.positive("log_jacobian", "eps", eps)
    with _check.without_autocast(field):
        return _library.call(
            "log_jacobian", reference.log_jacobian, field, bool(normalize_columns), float(eps)
        )


def smoothness_loss(
    field: Tensor, mask: Tensor | None = None, *, delta: float = 0.5, orthonormality: str = "log"
) -> Tensor:
    """Smoothness of a coordinate field, eq. 11: mean of L(D - mean D) + L(D^ - 1), L the Huber loss.

    Args:
        field: [B, 3, D, H, W] absolute coordinates, channels x, y, z.
        mask: [B, 1, D, H, W] weights (bool, integer or the field's dtype, not negative); every mean, that of
            D included, is weighted by it. None weighs all voxels alike. An all-zero mask gives 0 and no
            gradient.
        delta: where the Huber loss of eq. 10 turns linear.
        orthonormality: D^ is the logarithm of the column-normalised determinant for ``"log"`` (the letter of
            eq. 11; as it is at most 0, the term is at least L(-1), and least for an orthonormal frame), and
            the determinant itself for ``"det"`` (least, 0, for an orthonormal frame, and bounded on folds).

    Returns:
        [B], dtype and device of ``field``.

    D and D^ are those of :func:`log_jacobian` with eps 1e-3. The differences of a voxel at the edge of the
    mask reach one voxel beyond it; what the field holds further out, even NaN, does not matter.
    Differentiable with respect to ``field``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, delta not above 0, another orthonormality.
    """
    field, mask = _check.autocast(field, mask, least=torch.float32)
    _check.tensor("smoothness_loss", "field", field, channels=3)
    weights = _check.mask("smoothness_loss", mask, "field", field)
    _check.positive("smoothness_loss", "delta", delta)
    _check.choice("smoothness_loss", "orthonormality", orthonormality, ("log", "det"))
    with _check.without_autocast(field):
        return _library.call(
            "smoothness_loss",
            reference.smoothness_loss,
            field,
            weights,
            float(delta),
            orthonormality == "log",
        )


def _log_jacobian_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.options = inputs[1:]


def _log_jacobian_backward(ctx: Any, grad: Tensor) -> tuple:
    (field,) = ctx.saved_tensors
    return torch.ops.deepatlas_ops.log_jacobian_backward(grad, field, *ctx.options), None, None


def _smoothness_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    field, mask, *ctx.options = inputs
    ctx.save_for_backward(field, mask)


def _smoothness_backward(ctx: Any, grad: Tensor) -> tuple:
    field, mask = ctx.saved_tensors
    return torch.ops.deepatlas_ops.smoothness_loss_backward(grad, field, mask, *ctx.options), None, None, None


_library.register(
    "log_jacobian",
    "(Tensor field, bool normalize_columns, float eps) -> Tensor",
    reference.log_jacobian,
    lambda field, normalize_columns, eps: field.new_empty((field.shape[0], 1, *field.shape[2:])),
    setup_context=_log_jacobian_context,
    backward=_log_jacobian_backward,
)
_library.register(
    "log_jacobian_backward",
    "(Tensor grad, Tensor field, bool normalize_columns, float eps) -> Tensor",
    reference.log_jacobian_backward,
    lambda grad, field, normalize_columns, eps: field.new_empty(field.shape),
)
_library.register(
    "smoothness_loss",
    "(Tensor field, Tensor? mask, float delta, bool log_orthonormality) -> Tensor",
    reference.smoothness_loss,
    lambda field, mask, delta, log_orthonormality: field.new_empty(field.shape[:1]),
    setup_context=_smoothness_context,
    backward=_smoothness_backward,
)
_library.register(
    "smoothness_loss_backward",
    "(Tensor grad, Tensor field, Tensor? mask, float delta, bool log_orthonormality) -> Tensor",
    reference.smoothness_loss_backward,
    lambda grad, field, mask, delta, log_orthonormality: field.new_empty(field.shape),
)
