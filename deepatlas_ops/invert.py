"""implicit_warp: its public function, schemas, fake kernels and two autograd formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# sampling registers the samplers that the bodies call.
from . import _check, _library, _transforms, reference, sampling  # noqa: F401
from .reference import invert as _body

GRADIENTS = ("implicit", "unrolled", "none")
Solution = tuple[Tensor, Tensor, Tensor]


class ImplicitWarp(NamedTuple):
    """What :func:`implicit_warp` returns.

    Attributes:
        displacement: [B, 3, D, H, W], u - identity on the grid of the fixed map, in normalised coordinates of the
            moving map.
        residual: [B, 1, D, H, W], the length of what remains of ``c_fixed - c_moving(u)``, in voxels of the moving
            map. It has no gradient.
        valid: [B, 1, D, H, W] bool, where |u| <= 1 on every axis and the residual is below one voxel.
    """

    displacement: Tensor
    residual: Tensor
    valid: Tensor


def implicit_warp(
    c_moving: Tensor,
    c_fixed: Tensor,
    *,
    iterations: int = 20,
    tolerance: float = 0.0,
    step: str = "moving",
    gradient: str = "implicit",
    mask: Tensor | None = None,
) -> ImplicitWarp:
    """The warp that matches two coordinate maps: solve ``c_moving(u) = c_fixed(v)`` for u (section 5.1.1, eqs 4-7).

    ``warp(x_moving, displacement)`` then matches the fixed exam. If ``c_fixed`` is a grid of template coordinates, the
    result is the inverse of the moving map.

    Args:
        c_moving: [B, 3, d, h, w], the coordinates predicted for the moving exam (c_p of the paper), channels x, y, z;
            float64, float32, float16 or bfloat16, with any strides.
        c_fixed: [B, 3, D, H, W], those of the fixed exam (c_q), in the same dtype and on the same device. The grids of
            the two maps may differ in shape.
        iterations: the number of updates (eqs 6 and 7), which start from the identity. The paper takes 20.
        tolerance: in voxels of the moving map. If it is above 0, a voxel stops when its update is shorter, and the
            recursion ends when all voxels have stopped. (The PyTorch body then waits for the device in every
            iteration.) With 0 all iterations run.
        step: the matrix S that eqs 5 and 7 multiply the difference of the coordinates by.

            - ``"moving"``: the inverse of the mean Jacobian of ``c_moving``. The recursion then converges for any two
              fields of view.
            - ``"fixed"``: the inverse of the mean Jacobian of ``c_fixed``. It needs fields of view of similar size.
            - ``"literal"``: D_q as section 5.1.1 defines it, the mean Jacobian of ``c_fixed``, not inverted and
              multiplied from the right: (c_q - c_p) · D_q. It converges fast only for maps whose Jacobians are close
              to a common rotation.
            - ``"direction_cosine"``: the same with the columns of the mean Jacobian normalised to length 1, as in a
              matrix of direction cosines. It is exact for a common rotation, and slower elsewhere.
            - ``"newton"``: the inverse Jacobian of the interpolated ``c_moving`` at the present u of each voxel, and
              the matrix of ``"moving"`` where the map folds, is too flat or is not finite. It needs half the
              iterations or fewer, each of which takes 1.4 times as long (in the PyTorch body four times). So it is
              worthwhile for strong deformations and a small tolerance. On a map that folds it may find another
              solution.

            If the mean Jacobian is singular, as that of a constant map, ``"moving"``, ``"fixed"``, ``"literal"`` and
            ``"newton"`` use the identity in its place.
        gradient: ``"implicit"`` differentiates the solution by the implicit function theorem, which takes one 3 x 3
            system and one scatter per voxel and stores nothing per iteration. A voxel has no gradient if it is not
            valid, if it lies on a fold of ``c_moving``, or if ``c_moving`` is so flat there that its inverse Jacobian
            amplifies more than 20 times, relative to the step matrix. ``"unrolled"`` reverses the iterations exactly,
            for all voxels, and includes the gradient through the step matrix; after convergence the two agree. It is
            not available for ``"newton"``. ``"none"`` returns a result without a gradient.
        mask: [B, 1, d, h, w] non-negative weights on the grid of ``c_moving`` for the mean of its Jacobians: bool, an
            integer type or the dtype of the maps. The mean Jacobian of ``c_fixed`` is not weighted. A mask that is 0
            everywhere counts as no mask.

    Returns:
        :class:`ImplicitWarp` of displacement, residual and valid on the grid of ``c_fixed``; displacement and residual
        in the dtype of the maps.

    Only ``"literal"`` takes eqs 5-7 word for word; the other steps depart from the paper. The recursion contracts if
    S is close to the inverse of the Jacobian of the map that is being inverted, which is ``c_moving``. The paper takes
    the Jacobian of the other map, and takes it without inverting it, which is right only if both maps are close to
    the same rotation. For maps that scale the identity by s_p and s_q, one iteration multiplies the error by
    |1 - s_p s_q| with ``"literal"``, by |1 - s_p| with ``"direction_cosine"``, by |1 - s_p / s_q| with ``"fixed"`` and
    by 0 with ``"moving"``. So ``"literal"`` diverges for two maps with a scale of 1.5, and after 20 iterations at a
    scale of 0.3 it leaves 15 % of the error; ``"fixed"`` diverges if the moving field of view is more than twice as
    large as the fixed one. Hence the default is ``"moving"``; the other three serve ablations.

    Outside its grid ``c_moving`` is continued linearly with the inverse of the step matrix. So every u is finite, and
    |u| > 1 shows the voxels that the moving exam does not cover. The paper does not say what to do there. An axis of
    size 1 of the moving map is continued in this way along its whole length. ``valid`` allows a rounding error of 1e-5
    in |u|. Half types are computed in float32, and inside an autocast region the maps are converted to float32 at
    least. On the CPU everything is deterministic; on CUDA the gradient with respect to ``c_moving`` uses atomic
    additions, and raises an error under ``torch.use_deterministic_algorithms``.

    Raises:
        ValueError: a wrong shape, dtype or device, or an option that is not among those above.
    """
    op = "implicit_warp"
    c_moving, c_fixed, mask = _check.autocast(c_moving, c_fixed, mask, least=torch.float32)
    _check.tensor(op, "c_moving", c_moving, channels=3)
    _check.tensor(op, "c_fixed", c_fixed, channels=3)
    _check.alike(op, "c_fixed", c_fixed, "c_moving", c_moving)
    weights = _check.mask(op, mask, "c_moving", c_moving)
    _check.count(op, "iterations", iterations)
    _check.positive(op, "tolerance", tolerance, zero=True)
    _check.choice(op, "step", step, _check.STEPS)
    _check.choice(op, "gradient", gradient, GRADIENTS)
    newton = step == "newton"
    if newton and gradient == "unrolled":
        _check.fail(op, "gradient", "implicit or none with the newton step", repr(gradient))
    if gradient == "none":
        c_moving, c_fixed = c_moving.detach(), c_fixed.detach()

    options = (iterations, float(tolerance))
    solution: Solution
    with _check.without_autocast(c_moving):
        if gradient == "unrolled":
            matrix, ruler = _matrices(c_moving, c_fixed, weights, step)
            solution = _library.call(
                "implicit_warp_unrolled", _body.solve_inverse, c_moving, c_fixed, matrix, ruler, *options
            )
        else:
            # The solution does not depend on the matrix that leads to it.
            with torch.no_grad():
                matrix, ruler = _matrices(c_moving, c_fixed, weights, step)
            solution = _library.call(
                "implicit_warp", _implicit_by_pytorch, c_moving, c_fixed, matrix, ruler, *options, newton
            )
    displacement, residual, valid = solution
    return ImplicitWarp(displacement.to(c_fixed.dtype), residual.to(c_fixed.dtype), valid)


def _matrices(
    moving: Tensor, fixed: Tensor, weights: Tensor | None, step: str
) -> tuple[Tensor, Tensor | None]:
    """The step matrix, and the ruler of the residuals unless it is the identity: see reference.solve_inverse."""
    matrix = reference.step_matrix(moving, fixed, weights, step)
    if step in ("moving", "newton"):
        return matrix, None
    with torch.no_grad():
        # The recursion leaves the step matrix times a difference of coordinates. The ruler undoes the step matrix and
        # applies the inverse mean Jacobian of c_moving, so that residuals do not depend on the step.
        left = reference.step_matrix(moving, fixed, weights, "moving")
        right = _body.inverse_or_identity(matrix)
        return matrix, (left[:, :, :, None] * right[:, None]).sum(2)


# ---- bodies of the registered ops, whose samplers are registered ops too and so native where possible ----


def _sample_op(volume: Tensor, coords: Tensor) -> Tensor:
    return torch.ops.deepatlas_ops.resample(volume, coords, 0, 0)


def _sample_backward_op(*args: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.deepatlas_ops.resample_backward(*args)


def _solve_body(
    c_moving: Tensor,
    c_fixed: Tensor,
    matrix: Tensor,
    ruler: Tensor | None,
    iterations: int,
    tolerance: float,
    newton: bool = False,
) -> Solution:
    adjoint = _sample_backward_op if newton else None
    return _body.solve_inverse(c_moving, c_fixed, matrix, ruler, iterations, tolerance, _sample_op, adjoint)


def _backward_body(
    grad: Tensor, c_moving: Tensor, displacement: Tensor, valid: Tensor, matrix: Tensor, need_moving: bool
) -> tuple[Tensor, Tensor]:
    return _body.implicit_warp_backward(
        grad, c_moving, displacement, valid, matrix, need_moving, _sample_backward_op
    )


def _unrolled_backward_body(
    grad: Tensor, c_moving: Tensor, c_fixed: Tensor, matrix: Tensor, iterations: int, tolerance: float
) -> Solution:
    return _body.implicit_warp_unrolled_backward(
        grad, c_moving, c_fixed, matrix, iterations, tolerance, _sample_op, _sample_backward_op
    )


# ---- fake kernels and autograd formulas -------------------------------------------------------------


def _solve_fake(
    c_moving: Tensor, c_fixed: Tensor, matrix: Tensor, ruler: Tensor | None, *options: Any
) -> Solution:
    single = (c_fixed.shape[0], 1, *c_fixed.shape[2:])
    return (
        matrix.new_empty(c_fixed.shape),
        matrix.new_empty(single),
        matrix.new_empty(single, dtype=torch.bool),
    )


def _backward_fake(
    grad: Tensor, c_moving: Tensor, displacement: Tensor, valid: Tensor, matrix: Tensor, need_moving: bool
) -> tuple[Tensor, Tensor]:
    return _library.gradient_like(c_moving, need_moving), c_moving.new_empty(grad.shape)


def _unrolled_backward_fake(
    grad: Tensor, c_moving: Tensor, c_fixed: Tensor, matrix: Tensor, iterations: int, tolerance: float
) -> Solution:
    return (
        c_moving.new_empty(c_moving.shape),
        c_fixed.new_empty(c_fixed.shape),
        matrix.new_empty(matrix.shape),
    )


def _implicit_context(ctx: Any, inputs: tuple[Any, ...], output: Solution) -> None:
    displacement, residual, valid = output
    ctx.save_for_backward(inputs[0], displacement, valid, inputs[2])
    ctx.mark_non_differentiable(residual, valid)
    # The backward pass gets None and not zeros for the outputs that have no gradient.
    ctx.set_materialize_grads(False)


def _implicit_backward(ctx: Any, grad: Tensor | None, *_others: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    need_moving = ctx.needs_input_grad[0]
    moving, fixed = _library.run("implicit_warp_backward", grad, *ctx.saved_tensors, need_moving)
    return moving if need_moving else None, fixed, None, None, None, None, None


# The PyTorch body without the dispatcher, with the same gradient as the registered op.


def _solve_by_pytorch(
    c_moving: Tensor,
    c_fixed: Tensor,
    matrix: Tensor,
    ruler: Tensor | None,
    iterations: int,
    tolerance: float,
    newton: bool,
) -> Solution:
    adjoint = reference.resample_backward if newton else None
    return _body.solve_inverse(c_moving, c_fixed, matrix, ruler, iterations, tolerance, None, adjoint)


def _implicit_backward_by_pytorch(
    ctx: Any, grad: Tensor | None, *_others: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    need_moving = ctx.needs_input_grad[0]
    run: Callable[..., tuple[Tensor, Tensor]] = _ImplicitBackwardByPytorch.apply
    # Compiled code must not call an autograd function here: see _implicit_by_pytorch.
    if torch.compiler.is_compiling():
        run = _body.implicit_warp_backward
    moving, fixed = run(grad, *ctx.saved_tensors, need_moving)
    return moving if need_moving else None, fixed, None, None, None, None, None


_ImplicitByPytorch = _transforms.function(_solve_by_pytorch, _implicit_context, _implicit_backward_by_pytorch)
_ImplicitBackwardByPytorch = _transforms.function(
    _body.implicit_warp_backward, None, _transforms.refusing("deepatlas_ops.implicit_warp")
)


def _implicit_by_pytorch(*args: Any) -> Solution:
    if torch.compiler.is_compiling():
        # Where nothing is differentiated, Dynamo mistakes the first of the variable arguments for a context.
        differentiates = torch.is_grad_enabled() and (args[0].requires_grad or args[1].requires_grad)
        return _ImplicitByPytorch.apply(*args) if differentiates else _solve_by_pytorch(*args)
    _transforms.refuse_forward_mode("deepatlas_ops.implicit_warp", args)
    return _ImplicitByPytorch.apply(*args)


def _unrolled_context(ctx: Any, inputs: tuple[Any, ...], output: Solution) -> None:
    c_moving, c_fixed, matrix, _, *ctx.options = inputs
    ctx.save_for_backward(c_moving, c_fixed, matrix)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _unrolled_backward(ctx: Any, grad: Tensor | None, *_others: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    name = "implicit_warp_unrolled_backward"
    moving, fixed, matrix = _library.run(name, grad, *ctx.saved_tensors, *ctx.options)
    return moving, fixed, matrix, None, None, None


_SOLVE = "(Tensor c_moving, Tensor c_fixed, Tensor matrix, Tensor? ruler, int iterations, float tolerance"
_library.register(
    "implicit_warp",
    f"{_SOLVE}, bool newton) -> (Tensor, Tensor, Tensor)",
    _solve_body,
    _solve_fake,
    setup_context=_implicit_context,
    backward=_implicit_backward,
)
_library.register(
    "implicit_warp_backward",
    "(Tensor grad, Tensor c_moving, Tensor displacement, Tensor valid, Tensor matrix, bool need_moving)"
    " -> (Tensor, Tensor)",
    _backward_body,
    _backward_fake,
)
_library.register(
    "implicit_warp_unrolled",
    f"{_SOLVE}) -> (Tensor, Tensor, Tensor)",
    _solve_body,
    _solve_fake,
    setup_context=_unrolled_context,
    backward=_unrolled_backward,
)
_library.register(
    "implicit_warp_unrolled_backward",
    "(Tensor grad, Tensor c_moving, Tensor c_fixed, Tensor matrix, int iterations, float tolerance)"
    " -> (Tensor, Tensor, Tensor)",
    _unrolled_backward_body,
    _unrolled_backward_fake,
)
