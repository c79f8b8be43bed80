"""implicit_warp: public function, schemas, fake kernels and the two gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _check, _library, _transforms, reference
from .reference import invert as _body

GRADIENTS = ("implicit", "unrolled", "none")


class ImplicitWarp(NamedTuple):
    """What :func:`implicit_warp` returns.

    Attributes:
        displacement: [B, 3, D, H, W], u - identity on the fixed map's grid, normalised units of the moving
            map.
        residual: [B, 1, D, H, W], what is left of ``c_fixed - c_moving(u)``, in moving voxels; no gradient.
        valid: [B, 1, D, H, W] bool, |u| <= 1 on every axis and a residual under one voxel.
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
    """The warp that matches two coordinate maps: solve ``c_moving(u) = c_fixed(v)`` for u (section 5.1.1).

    ``warp(x_moving, displacement)`` then lies on the fixed exam. With a grid of template coordinates as
    ``c_fixed`` the result is the inverse of the moving map.

    Args:
        c_moving: [B, 3, d, h, w], coordinates predicted for the moving exam, channels x, y, z.
        c_fixed: [B, 3, D, H, W], those of the fixed exam; its shape may differ from the moving map's.
        iterations: recursive updates (eqs 6 and 7; the paper takes 20), starting from the identity.
        tolerance: in moving voxels. Above 0, a voxel whose update is shorter stops there, and the recursion
            ends when every voxel has (which costs the PyTorch body a host synchronisation an iteration); 0
            runs all iterations.
        step: the matrix of eqs 5 and 7. ``"moving"``: the inverse of the mean Jacobian of ``c_moving``,
            which makes the recursion contract whatever the two fields of view are. ``"fixed"``: the inverse
            of the mean Jacobian of ``c_fixed`` (the paper names D_q), which needs fields of view of similar
            size. ``"direction_cosine"``: the column-normalised mean Jacobian of ``c_fixed``, transposed:
            right for rigidly related grids, slower elsewhere. A singular mean (a constant map) is replaced
            by the identity. ``"newton"``: the Jacobian of the interpolated ``c_moving`` at each voxel's
            place, and the matrix of ``"moving"`` where that is folded, too flat or not finite. It settles in
            half the steps or fewer, each of which costs 1.4 times as much (PyTorch body: four times), so it pays
            where deformations are strong and the tolerance is tight; on a folded map it may settle on
            another solution.
        gradient: ``"implicit"`` differentiates the solution itself (one 3 x 3 solve a voxel and one scatter;
            nothing is kept per iteration). Voxels that are not valid, that lie on a fold of ``c_moving``, or
            where it is so flat that its inverse amplifies more than 20 times against the mean, carry no
            gradient. ``"unrolled"`` is the exact reverse of the iterations, at every voxel; at convergence
            the two agree. ``"none"`` detaches.
        mask: [B, 1, d, h, w] weights of the mean Jacobian of ``c_moving``, on the moving grid (bool, integer
            or the maps' dtype). An all-zero mask counts as none.

    Returns:
        :class:`ImplicitWarp` of displacement, residual and valid, on the fixed map's grid; displacement and
        residual in the maps' dtype.

    Beyond the moving grid ``c_moving`` goes on linearly with the inverse of the step matrix, so every u is
    finite and a voxel the moving exam does not cover is told by |u| > 1. An axis of size 1 of the moving map
    is such a continuation throughout. ``valid`` allows 1e-5 of rounding on |u|. float64, float32, float16
    and bfloat16; half types compute in float32. Inside an autocast region the maps are brought to float32.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or an option outside those above.
    """
    c_moving, c_fixed, mask = _check.autocast(c_moving, c_fixed, mask, least=torch.float32)
    _check.tensor("implicit_warp", "c_moving", c_moving, channels=3)
    _check.tensor("implicit_warp", "c_fixed", c_fixed, channels=3)
    _check.alike("implicit_warp", "c_fixed", c_fixed, "c_moving", c_moving)
    weights = _check.mask("implicit_warp", mask, "c_moving", c_moving)
    if not isinstance(iterations, int) or isinstance(iterations, bool) or iterations < 1:
        _check.fail("implicit_warp", "iterations", "an integer of at least 1", repr(iterations))
    _check.positive("implicit_warp", "tolerance", tolerance, zero=True)
    _check.choice("implicit_warp", "step", step, _body.STEPS)
    _check.choice("implicit_warp", "gradient", gradient, GRADIENTS)
    if gradient == "none":
        c_moving, c_fixed = c_moving.detach(), c_fixed.detach()

    newton = step == "newton"
    if newton and gradient == "unrolled":
        _check.fail("implicit_warp", "gradient", "implicit or none with the newton step", repr(gradient))

    options = (iterations, float(tolerance))
    with _check.without_autocast(c_moving):
        if gradient == "unrolled":
            matrix, ruler = _matrices(c_moving, c_fixed, weights, step)
            solution = _library.call(
                "implicit_warp_unrolled", _body.solve_inverse, c_moving, c_fixed, matrix, ruler, *options
            )
        else:
            with torch.no_grad():  # the fixed point does not depend on the matrix that leads to it
                matrix, ruler = _matrices(c_moving, c_fixed, weights, step)
            solution = _library.call(
                "implicit_warp", _implicit_by_pytorch, c_moving, c_fixed, matrix, ruler, *options, newton
            )
    displacement, residual, valid = solution
    return ImplicitWarp(displacement.to(c_fixed.dtype), residual.to(c_fixed.dtype), valid)


def _matrices(
    moving: Tensor, fixed: Tensor, weights: Tensor | None, step: str
) -> tuple[Tensor, Tensor | None]:
    """The step matrix, and the ruler of the residuals unless that is the identity: see solve_inverse."""
    matrix = reference.step_matrix(moving, fixed, weights, step)
    if step in ("moving", "newton"):
        return matrix, None
    with torch.no_grad():
        # what is left is the matrix times a difference of coordinates; the inverse mean Jacobian of c_moving
        # makes moving voxels of it, whatever matrix drives the steps
        left = reference.step_matrix(moving, fixed, weights, "moving")
        right = _body.inverse_or_identity(matrix)
        return matrix, (left[:, :, :, None] * right[:, None]).sum(2)


# ---- bodies that run through the dispatcher: their samplers are native where those are loaded --------


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
) -> tuple[Tensor, Tensor, Tensor]:
    adjoint = _sample_backward_op if newton else None
    return _body.solve_inverse(c_moving, c_fixed, matrix, ruler, iterations, tolerance, _sample_op, adjoint)


def _backward_body(*args: Any) -> tuple[Tensor, Tensor]:
    return _body.implicit_warp_backward(*args, _sample_backward_op)


def _unrolled_backward_body(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _body.implicit_warp_unrolled_backward(*args, _sample_op, _sample_backward_op)


# ---- fake kernels and autograd ----------------------------------------------------------------------


def _solve_fake(
    c_moving: Tensor, c_fixed: Tensor, matrix: Tensor, ruler: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    single = (c_fixed.shape[0], 1, *c_fixed.shape[2:])
    return (
        matrix.new_empty(c_fixed.shape),
        matrix.new_empty(single),
        matrix.new_empty(single, dtype=torch.bool),
    )


def _backward_fake(
    grad: Tensor, c_moving: Tensor, displacement: Tensor, valid: Tensor, matrix: Tensor, need_moving: bool
) -> tuple[Tensor, Tensor]:
    return c_moving.new_empty(c_moving.shape if need_moving else 0), c_moving.new_empty(grad.shape)


def _unrolled_backward_fake(
    grad: Tensor, c_moving: Tensor, c_fixed: Tensor, matrix: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(x.new_empty(x.shape) for x in (c_moving, c_fixed, matrix))


def _implicit_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    displacement, residual, valid = output
    ctx.save_for_backward(inputs[0], displacement, valid, inputs[2])
    ctx.mark_non_differentiable(residual, valid)
    ctx.set_materialize_grads(False)  # no zeros for the outputs that have no gradient


def _implicit_backward(ctx: Any, grad: Tensor | None, *unused: Tensor | None) -> tuple:
    if grad is None:
        return (None,) * 7
    need_moving = ctx.needs_input_grad[0]
    moving, fixed = _library.run("implicit_warp_backward", grad, *ctx.saved_tensors, need_moving)
    return moving if need_moving else None, fixed, None, None, None, None, None


# The PyTorch solution under autograd, without the dispatcher: the same gradient as the registered op's.


def _solve_by_pytorch(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *args, newton = args
    return _body.solve_inverse(*args, None, reference.resample_backward if newton else None)


def _implicit_backward_by_pytorch(ctx: Any, grad: Tensor | None, *unused: Tensor | None) -> tuple:
    if grad is None:
        return (None,) * 7
    need_moving = ctx.needs_input_grad[0]
    compiling = torch.compiler.is_compiling()  # see _implicit_by_pytorch
    run = _body.implicit_warp_backward if compiling else _ImplicitBackwardByPytorch.apply
    moving, fixed = run(grad, *ctx.saved_tensors, need_moving)
    return moving if need_moving else None, fixed, None, None, None, None, None


_ImplicitByPytorch = _transforms.function(_solve_by_pytorch, _implicit_context, _implicit_backward_by_pytorch)
_ImplicitBackwardByPytorch = _transforms.function(
    _body.implicit_warp_backward, None, _transforms.refusing("deepatlas_ops.implicit_warp")
)


def _implicit_by_pytorch(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    if torch.compiler.is_compiling():
        # Dynamo takes the variable arguments of such a function for a context where nothing is differentiated
        differentiates = torch.is_grad_enabled() and (args[0].requires_grad or args[1].requires_grad)
        return _ImplicitByPytorch.apply(*args) if differentiates else _solve_by_pytorch(*args)
    _transforms.refuse_forward_mode("deepatlas_ops.implicit_warp", args)
    return _ImplicitByPytorch.apply(*args)


def _unrolled_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    c_moving, c_fixed, matrix, _, *ctx.options = inputs
    ctx.save_for_backward(c_moving, c_fixed, matrix)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _unrolled_backward(ctx: Any, grad: Tensor | None, *unused: Tensor | None) -> tuple:
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
