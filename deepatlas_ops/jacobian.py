"""log_jacobian and smoothness_loss: public functions, schemas, fake kernels and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check, _library, reference
from .reference.resample import compute_dtype


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
        loss, _ = _library.call(
            "smoothness_loss",
            lambda *args: (reference.smoothness_loss(*args), None),
            field,
            weights,
            float(delta),
            orthonormality == "log",
        )
    return loss


def folds(field: Tensor, mask: Tensor | None = None, *, differences: str = "central") -> Tensor:
    """Fraction of a coordinate field's voxels where it folds: a Jacobian determinant of at most 0.

    Args:
        field: [B, 3, D, H, W] absolute coordinates, channels x, y, z.
        mask: [B, 1, D, H, W] weights (bool, integer or the field's dtype, not negative); None weighs all
            voxels alike. An all-zero mask gives 0.
        differences: ``"central"`` takes the determinant of :func:`log_jacobian`, as registration papers
            usually report, which does not see the voxel itself and so misses folds between neighbours.
            ``"digital"`` counts a voxel if any of the eight determinants of forward and backward differences
            (either along each axis) is at most 0; at a border only the difference that exists is taken. These
            are eight of the ten determinants that Liu et al. ask to be positive of a digital diffeomorphism,
            "On Finite Difference Jacobian Computation in Deformable Image Registration", IJCV 2024 (the two
            others take differences to diagonal neighbours), so 0 is necessary for one but not sufficient.

    Returns:
        [B], on the device of ``field``: float64 for a float64 field, else float32. Not differentiable. A NaN
        determinant is no fold.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, other differences.
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
        field: [B, 3, D, H, W] absolute coordinates, channels x, y, z.
        mask: [B, 1, D, H, W] weights (bool, integer or the field's dtype, not negative); None weighs all
            voxels alike. An all-zero mask gives 0.
        convention: ``"plain"`` takes :func:`log_jacobian` of every voxel. ``"learn2reg"`` is SDlogJ of the
            Learn2Reg challenge (``evaluation/utils.py`` and ``evaluation.py`` of MDL-UzL/L2R): the logarithm
            of the determinant plus 3, clipped to 1e-9 ... 1e9, without the two outermost layers of voxels.

    Returns:
        [B], on the device of ``field``: float64 for a float64 field, else float32. Not differentiable. The
        deviation is that of a population (divided by the sum of the weights).

    The challenge takes the determinant of a displacement in voxels. For a field that maps a grid onto itself
    that is the determinant here, since the steps of an axis cancel. For a field into a grid of another size
    n' the one in voxels is larger by the product of (n' - 1) / (n - 1) over the axes: ``"plain"`` does not
    change with such a constant factor, ``"learn2reg"`` does.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, another convention, or an axis of less than five
            voxels for ``"learn2reg"``.
    """
    field, mask = _check.autocast(field, mask, least=torch.float32)
    _check.tensor("log_jacobian_std", "field", field, channels=3)
    weights = _check.mask("log_jacobian_std", mask, "field", field)
    _check.choice("log_jacobian_std", "convention", convention, ("plain", "learn2reg"))
    learn2reg = convention == "learn2reg"
    if learn2reg and min(field.shape[2:]) < 5:
        _check.fail(
            "log_jacobian_std", "field", "at least five voxels on each axis for learn2reg", list(field.shape)
        )
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
    """[B, 1, D, H, W], float32 for half types."""
    return _library.call("jacobian_determinant", reference.jacobian_determinant, field.detach(), digital)


def _weighted_mean(x: Tensor, weights: Tensor | None) -> Tensor:
    """[B]; what lies where there is no weight may be anything, NaN included."""
    if weights is not None:
        weights = weights.to(x.dtype)
        x = torch.where(weights > 0, x, 0.0)
    return reference.weighted_mean(x, weights).flatten()


def _log_jacobian_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.options = inputs[1:]


def _log_jacobian_backward(ctx: Any, grad: Tensor) -> tuple:
    (field,) = ctx.saved_tensors
    return _library.run("log_jacobian_backward", grad, field, *ctx.options), None, None


def _smoothness_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    field, mask, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(field, mask, output[1])


def _smoothness_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple:
    grad_field = _library.run("smoothness_loss_backward", grad, *ctx.saved_tensors, *ctx.options)
    return grad_field, None, None, None


def _smoothness_backward_body(
    grad: Tensor,
    field: Tensor,
    mask: Tensor | None,
    statistics: Tensor,
    delta: float,
    log_orthonormality: bool,
) -> Tensor:
    # It has D of every voxel at hand again, and so has the statistics.
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
