"""log_jacobian, smoothness_loss, folds and log_jacobian_std: public functions, schemas and autograd formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check, _library, reference
from .reference._common import compute_dtype


def log_jacobian(field: Tensor, *, normalize_columns: bool = False, eps: float = 1e-3) -> Tensor:
    """Logarithm of the Jacobian determinant of a coordinate field (D and D^ of section 5.1.4).

    Args:
        field: [B, 3, D, H, W] absolute normalised coordinates (not a displacement), channels x, y, z; float64, float32,
            float16 or bfloat16, with any strides.
        normalize_columns: divide each column of the Jacobian by its length first. The determinant then depends on the
            directions of the columns only and is at most 1, so its logarithm is at most 0.
        eps: the determinant below which the logarithm is replaced. Between 0 and eps the result is the tangent of the
            logarithm at eps, and below 0 it is log(eps) - 1 - log(1 - det / eps). So it is finite and increasing in
            the determinant, with a continuous slope of at most 1 / eps: a fold has a bounded value, and a gradient
            that unfolds it. Columns that are shorter than eps are divided by eps.

    Returns:
        [B, 1, D, H, W], in the dtype and on the device of ``field``. The identity gives 0.

    Derivatives are with respect to normalised coordinates, from -1 to 1 along each axis: central differences inside,
    one-sided differences at the borders, as ``torch.gradient``. An axis of size 1 has no differences; its column is
    that of the identity.

    Differentiable once with respect to ``field``. Half types are computed in float32, and inside an autocast region
    ``field`` is converted to float32 at least.

    Raises:
        ValueError: a field of a wrong shape or dtype, or an eps not above 0.
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
    """Smoothness of a coordinate field, eq. 11: the mean of L(D - mean D) + L(D^ - 1), where L is the Huber loss.

    Args:
        field: [B, 3, D, H, W] absolute normalised coordinates (not a displacement), channels x, y, z; float64, float32,
            float16 or bfloat16, with any strides.
        mask: [B, 1, D, H, W] non-negative weights: bool, an integer type or the dtype of ``field``. They weight every
            mean, also that of D. None weights all voxels equally. A mask that is 0 everywhere gives 0 and no gradient.
        delta: the absolute value above which the Huber loss (eq. 10) is linear.
        orthonormality: what D^ is. ``"log"`` is the letter of eq. 11: the logarithm of the determinant of the
            normalised columns. As it is at most 0, the second term is at least L(-1), which it reaches for orthogonal
            columns. ``"det"`` is the determinant of the normalised columns itself. The second term is then bounded on
            folds, and 0 for orthogonal columns.

    Returns:
        [B], in the dtype and on the device of ``field``.

    D and D^ are those of :func:`log_jacobian` with an eps of 1e-3. A voxel at the edge of the mask depends on its
    neighbours outside the mask. What the field holds further out does not matter, even if it is NaN.

    Differentiable once with respect to ``field``. Half types are computed in float32, and inside an autocast region
    the arguments are converted to float32 at least.

    Raises:
        ValueError: a wrong shape, dtype or device, a delta not above 0, or another orthonormality.
    """
    op = "smoothness_loss"
    field, mask = _check.autocast(field, mask, least=torch.float32)
    _check.tensor(op, "field", field, channels=3)
    weights = _check.mask(op, mask, "field", field)
    _check.positive(op, "delta", delta)
    _check.choice(op, "orthonormality", orthonormality, ("log", "det"))
    with _check.without_autocast(field):
        loss, _ = _library.call(op, _loss_alone, field, weights, float(delta), orthonormality == "log")
    return loss


def folds(field: Tensor, mask: Tensor | None = None, *, differences: str = "central") -> Tensor:
    """The fraction of a coordinate field's voxels where it folds: where its Jacobian determinant is at most 0.

    Args:
        field: [B, 3, D, H, W] absolute normalised coordinates (not a displacement), channels x, y, z; float64, float32,
            float16 or bfloat16, with any strides.
        mask: [B, 1, D, H, W] non-negative weights: bool, an integer type or the dtype of ``field``. None weights all
            voxels equally. A mask that is 0 everywhere gives 0.
        differences: ``"central"`` takes the determinant of :func:`log_jacobian`, which registration papers usually
            report. A central difference skips the voxel itself, so this misses folds between neighbours.
            ``"digital"`` counts a voxel if any of the eight determinants is at most 0 that combine a forward or a
            backward difference along each axis; at a border the difference that exists there serves as both. These
            are eight of the ten determinants that must be positive for a digital diffeomorphism according to Liu et
            al., "On Finite Difference Jacobian Computation in Deformable Image Registration", IJCV 2024; the other
            two use differences between diagonal neighbours. So a value of 0 is necessary for a digital
            diffeomorphism but not sufficient.

    Returns:
        [B], on the device of ``field``: float64 for a float64 field, otherwise float32. A determinant that is NaN
        does not count as a fold. Not differentiable.

    Raises:
        ValueError: a wrong shape, dtype or device, or other differences.
    """
    field, mask = _check.autocast(field, mask, least=torch.float32)
    _check.tensor("folds", "field", field, channels=3)
    weights = _check.mask("folds", mask, "field", field)
    _check.choice("folds", "differences", differences, ("central", "digital"))
    with _check.without_autocast(field), torch.no_grad():
        det = _determinant(field, differences == "digital")
        return _weighted_mean((det <= 0).to(det.dtype), weights)


def log_jacobian_std(field: Tensor, mask: Tensor | None = None, *, convention: str = "plain") -> Tensor:
    """Standard deviation of the logarithm of the Jacobian determinant, a measure of irregularity.

    Args:
        field: [B, 3, D, H, W] absolute normalised coordinates (not a displacement), channels x, y, z; float64, float32,
            float16 or bfloat16, with any strides.
        mask: [B, 1, D, H, W] non-negative weights: bool, an integer type or the dtype of ``field``. None weights all
            voxels equally. A mask that is 0 everywhere gives 0.
        convention: ``"plain"`` takes :func:`log_jacobian` of every voxel. ``"learn2reg"`` is SDlogJ of the Learn2Reg
            challenge (``evaluation/utils.py`` and ``evaluation.py`` of MDL-UzL/L2R): the logarithm of the determinant
            plus 3, clipped to [1e-9, 1e9], without the two outermost layers of voxels.

    Returns:
        [B], on the device of ``field``: float64 for a float64 field, otherwise float32. It is the standard deviation
        of a population: the sum of squares is divided by the sum of the weights. Not differentiable.

    The challenge takes the determinant of a displacement in voxels. For a map from a grid to a grid of the same size
    it is equal to the determinant here, because the voxel sizes cancel. For a map to a grid of another size n' it is
    larger by the product of (n' - 1) / (n - 1) over the axes. Such a constant factor does not change ``"plain"``, but
    it changes ``"learn2reg"``.

    Raises:
        ValueError: a wrong shape, dtype or device, another convention, or fewer than five voxels along an axis with
            ``"learn2reg"``.
    """
    op = "log_jacobian_std"
    field, mask = _check.autocast(field, mask, least=torch.float32)
    _check.tensor(op, "field", field, channels=3)
    weights = _check.mask(op, mask, "field", field)
    _check.choice(op, "convention", convention, ("plain", "learn2reg"))
    learn2reg = convention == "learn2reg"
    if learn2reg and min(field.shape[2:]) < 5:
        _check.fail(op, "field", "at least five voxels on each axis for learn2reg", list(field.shape))
    with _check.without_autocast(field), torch.no_grad():
        det = _determinant(field, False)
        if learn2reg:
            inner = (..., slice(2, -2), slice(2, -2), slice(2, -2))
            logarithm = (det[inner] + 3).clamp(1e-9, 1e9).log()
            weights = None if weights is None else weights[inner]
        else:
            logarithm = reference.log_determinant(det, reference.SMOOTHNESS_EPS)
        mean = _weighted_mean(logarithm, weights)
        return _weighted_mean((logarithm - mean[:, None, None, None, None]) ** 2, weights).sqrt()


def _determinant(field: Tensor, digital: bool) -> Tensor:
    """The Jacobian determinant of each voxel, [B, 1, D, H, W]; float32 for half types."""
    return _library.call("jacobian_determinant", reference.jacobian_determinant, field.detach(), digital)


def _weighted_mean(x: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of each batch item, [B]. Values without weight may be anything, even NaN."""
    if weights is not None:
        weights = weights.to(x.dtype)
        x = torch.where(weights > 0, x, 0.0)
    return reference.weighted_mean(x, weights).flatten()


def _loss_alone(*args: Any) -> tuple[Tensor, None]:
    """The body under ordinary autograd, which does not need the statistics."""
    return reference.smoothness_loss(*args), None


def _log_jacobian_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.options = inputs[1:]


def _log_jacobian_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (field,) = ctx.saved_tensors
    return _library.run("log_jacobian_backward", grad, field, *ctx.options), None, None


def _smoothness_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    field, mask, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(field, mask, output[1])


def _smoothness_backward(
    ctx: Any, grad: Tensor, _statistics: Tensor | None
) -> tuple[Tensor, None, None, None]:
    grad_field = _library.run("smoothness_loss_backward", grad, *ctx.saved_tensors, *ctx.options)
    return grad_field, None, None, None


def _smoothness_backward_body(
    grad: Tensor,
    field: Tensor,
    mask: Tensor | None,
    _statistics: Tensor,
    delta: float,
    log_orthonormality: bool,
) -> Tensor:
    """The statistics save the kernels a pass over the field; the PyTorch body computes its own."""
    return reference.smoothness_loss_backward(grad, field, mask, delta, log_orthonormality)


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
    "jacobian_determinant",
    "(Tensor field, bool digital) -> Tensor",
    reference.jacobian_determinant,
    lambda field, digital: field.new_empty(
        (field.shape[0], 1, *field.shape[2:]), dtype=compute_dtype(field.dtype)
    ),
)
_library.register(
    "smoothness_loss",
    # The second result holds what the backward op needs, [B, 3] in float64: see smoothness_loss_and_statistics.
    "(Tensor field, Tensor? mask, float delta, bool log_orthonormality) -> (Tensor, Tensor)",
    reference.smoothness_loss_and_statistics,
    lambda field, mask, delta, log_orthonormality: (
        field.new_empty(field.shape[:1]),
        field.new_empty((field.shape[0], 3), dtype=torch.float64),
    ),
    setup_context=_smoothness_context,
    backward=_smoothness_backward,
)
_library.register(
    "smoothness_loss_backward",
    "(Tensor grad, Tensor field, Tensor? mask, Tensor statistics, float delta, bool log_orthonormality) -> Tensor",
    _smoothness_backward_body,
    lambda grad, field, mask, statistics, delta, log_orthonormality: field.new_empty(field.shape),
)
