"""resample, warp, resize and affine_resample: public functions, schemas, fake kernels and autograd formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _check, _library, reference


def resample(volume: Tensor, coords: Tensor, *, mode: str = "linear", padding: str = "border") -> Tensor:
    """Read a volume at absolute coordinates: ``out[b, :, v] = volume[b](coords[b, :, v])``.

    Args:
        volume: [B, C, D, H, W], float64, float32, float16 or bfloat16, with any strides.
        coords: [B, 3, d, h, w], channels x, y, z, in the dtype and on the device of ``volume``. Coordinates are
            normalised and corner-aligned: along each axis of ``volume``, -1 is the centre of the first voxel and +1 the
            centre of the last. On an axis of size 1 every coordinate means its only voxel. A voxel with a NaN
            coordinate gives NaN in all channels and no gradient.
        mode: ``"linear"`` (trilinear) or ``"nearest"`` (halfway between two voxels, the one with the even index).
        padding: the values beyond the centres of the outermost voxels. ``"border"`` repeats the nearest value,
            ``"zeros"`` fades to 0 within one voxel, and ``"reflection"`` mirrors at these centres.

    Returns:
        [B, C, d, h, w], in the dtype and on the device of ``volume``, contiguous.

    Values and first gradients are those of ``torch.nn.functional.grid_sample(align_corners=True)``. Differentiable
    once with respect to both arguments; with ``"nearest"`` the gradient with respect to ``coords`` is 0. Half types
    are computed and summed in float32. An empty batch is allowed. Inside an autocast region the arguments are converted
    to the wider of their types, so float32 coordinates stay float32 and a half volume is converted to float32.

    ``torch.func.vmap``, ``torch.func.grad`` and their combinations work. Forward mode and, with the kernels, second
    derivatives raise an error. The gradient with respect to ``volume`` is deterministic on the CPU. On CUDA it uses
    atomic additions, and raises an error under ``torch.use_deterministic_algorithms``.

    Raises:
        ValueError: a wrong shape, dtype or device, or an unknown mode or padding.
    """
    volume, coords = _check.autocast(volume, coords)
    options = _options("resample", volume, mode, padding)
    _check.tensor("resample", "coords", coords, channels=3)
    _check.alike("resample", "coords", coords, "volume", volume)
    with _check.without_autocast(volume):
        return _library.call("resample", reference.resample, volume, coords, *options)


def warp(volume: Tensor, displacement: Tensor, *, mode: str = "linear", padding: str = "border") -> Tensor:
    """Read a volume at identity + displacement: ``out[b, :, v] = volume[b](v + displacement[b, :, v])``.

    Args:
        volume: [B, C, D, H, W], float64, float32, float16 or bfloat16, with any strides.
        displacement: [B, 3, d, h, w], channels x, y, z, in normalised coordinates, in the dtype and on the device of
            ``volume``. It is added to the identity of its own grid (0 along an axis of size 1), so the shape of the
            output may differ from the shape of ``volume``. The kernels never store that sum.
        mode, padding: as in :func:`resample`.

    Returns:
        [B, C, d, h, w], in the dtype and on the device of ``volume``, contiguous.

    NaN, gradients, types, transforms and determinism are as in :func:`resample`.

    Raises:
        ValueError: a wrong shape, dtype or device, or an unknown mode or padding.
    """
    volume, displacement = _check.autocast(volume, displacement)
    options = _options("warp", volume, mode, padding)
    _check.tensor("warp", "displacement", displacement, channels=3)
    _check.alike("warp", "displacement", displacement, "volume", volume)
    with _check.without_autocast(volume):
        return _library.call("warp", reference.warp, volume, displacement, *options)


def resize(volume: Tensor, size: Sequence[int], *, channels_last: bool = False) -> Tensor:
    """Corner-aligned linear resizing, up or down: the first and the last voxel of each axis keep their places.

    Args:
        volume: [B, C, D, H, W], float64, float32, float16 or bfloat16, with any strides.
        size: (D, H, W) of the output, each at least 1.
        channels_last: make the result, and the gradient of the volume, of the memory format
            ``torch.channels_last_3d``. The CPU kernel reads and writes it as it is, so that features of convolutions
            that prefer it need not be copied; on a GPU the result is copied.

    Returns:
        [B, C, *size], in the dtype and on the device of ``volume``, contiguous unless ``channels_last``.

    The result is that of :func:`resample` at the identity coordinates of ``size``. So an output axis of size 1 lies at
    coordinate 0, the middle of the input axis, where ``torch.nn.functional.interpolate`` takes the first voxel. For
    all other sizes the values are those of ``interpolate(mode="trilinear", align_corners=True)``. There is no low-pass
    filter, so reducing the size of a fine texture causes aliasing.

    Differentiable any number of times. Half types are computed in float32. An empty batch is allowed. On every device
    the result and the gradient are deterministic.

    Raises:
        ValueError: a volume of a wrong shape or dtype, or a size that is not three positive integers.
    """
    _check.tensor("resize", "volume", volume)
    sizes = _check.size("resize", size)
    with _check.without_autocast(volume):
        return _library.call("resize", reference.resize, volume, sizes, bool(channels_last))


def affine_resample(
    volume: Tensor, theta: Tensor, size: Sequence[int], *, mode: str = "linear", padding: str = "zeros"
) -> Tensor:
    """Read a volume through an affine map of the output grid: ``out[b, :, v] = volume[b](theta[b] · (v, 1))``.

    Args:
        volume: [B, C, D, H, W], float64, float32, float16 or bfloat16, with any strides.
        theta: [B, 3, 4], in the dtype and on the device of ``volume``: from normalised coordinates (x, y, z, 1) of the
            output to normalised coordinates of ``volume``, as in
            ``torch.nn.functional.affine_grid(align_corners=True)``.
        size: (D, H, W) of the output, each at least 1. An axis of size 1 lies at coordinate 0.
        mode, padding: as in :func:`resample`, but by default the values outside the volume are 0.

    Returns:
        [B, C, *size], in the dtype and on the device of ``volume``, contiguous.

    Differentiable once with respect to ``volume`` and ``theta``. NaN, types, transforms and determinism are as in
    :func:`resample`.

    Raises:
        ValueError: a wrong shape, dtype or device, an unknown mode or padding, or a size that is not three positive
            integers.
    """
    op = "affine_resample"
    volume, theta = _check.autocast(volume, theta)
    options = _options(op, volume, mode, padding)
    if not isinstance(theta, Tensor) or theta.ndim != 3 or tuple(theta.shape[1:]) != (3, 4):
        got = list(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
        _check.fail(op, "theta", "a tensor [B, 3, 4]", got)
    _check.alike(op, "theta", theta, "volume", volume)
    sizes = _check.size(op, size)
    with _check.without_autocast(volume):
        return _library.call(op, reference.affine_resample, volume, theta, sizes, *options)


def _options(op: str, volume: Tensor, mode: str, padding: str) -> tuple[int, int]:
    """Check the arguments that the sampling ops share; returns mode and padding as the schemas have them."""
    _check.choice(op, "mode", mode, _check.MODES)
    _check.choice(op, "padding", padding, _check.PADDINGS)
    _check.tensor(op, "volume", volume)
    return _check.MODES[mode], _check.PADDINGS[padding]


def _sampling_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    volume, position, *options = inputs
    ctx.save_for_backward(volume, position)
    ctx.options = options


def _sampling_backward(name: str) -> Callable[..., tuple[Tensor | None, ...]]:
    """Autograd of an op (volume, position, [size,] mode, padding) through its ``<name>_backward`` op."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mode, padding = ctx.options[-2:]
        needs = ctx.needs_input_grad[:2]
        grads = _library.run(f"{name}_backward", grad, *ctx.saved_tensors, mode, padding, *needs)
        return *_library.keep_needed(grads, needs), *[None] * len(ctx.options)

    return backward


def _pair_fake(
    grad: Tensor,
    volume: Tensor,
    position: Tensor,
    mode: int,
    padding: int,
    need_volume: bool,
    need_position: bool,
) -> tuple[Tensor, Tensor]:
    return _library.gradient_like(volume, need_volume), _library.gradient_like(position, need_position)


for _name, _position in (("resample", "coords"), ("warp", "displacement")):
    _library.register(
        _name,
        f"(Tensor volume, Tensor {_position}, int mode, int padding) -> Tensor",
        getattr(reference, _name),
        lambda volume, position, mode, padding: volume.new_empty((*volume.shape[:2], *position.shape[2:])),
        setup_context=_sampling_context,
        backward=_sampling_backward(_name),
    )
    _library.register(
        f"{_name}_backward",
        f"(Tensor grad, Tensor volume, Tensor {_position}, int mode, int padding, "
        f"bool need_volume, bool need_{_position}) -> (Tensor, Tensor)",
        getattr(reference, f"{_name}_backward"),
        _pair_fake,
    )

_library.register(
    "affine_resample",
    "(Tensor volume, Tensor theta, SymInt[] size, int mode, int padding) -> Tensor",
    reference.affine_resample,
    lambda volume, theta, size, mode, padding: volume.new_empty((*volume.shape[:2], *size)),
    setup_context=_sampling_context,
    backward=_sampling_backward("affine_resample"),
)
_library.register(
    "affine_resample_backward",
    "(Tensor grad, Tensor volume, Tensor theta, int mode, int padding, bool need_volume, bool need_theta)"
    " -> (Tensor, Tensor)",
    reference.affine_resample_backward,
    _pair_fake,
)


def _resize_fake(volume: Tensor, size: Sequence[int], channels_last: bool = False) -> Tensor:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return torch.empty(
        (*volume.shape[:2], *size), dtype=volume.dtype, device=volume.device, memory_format=layout
    )


def _resize_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    volume, _, ctx.channels_last = inputs
    ctx.size = volume.shape[2:]


def _adjoint_of(name: str) -> Callable[..., tuple[Tensor | None, ...]]:
    """Autograd of resize and of its adjoint: each is linear, and the other one is its adjoint, called ``name``."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _library.run(name, grad, list(ctx.size), ctx.channels_last), None, None

    return backward


for _name, _other in (("resize", "resize_backward"), ("resize_backward", "resize")):
    _library.register(
        _name,
        f"(Tensor {'volume' if _name == 'resize' else 'grad'}, SymInt[] size, bool channels_last=False) -> Tensor",
        getattr(reference, _name),
        _resize_fake,
        setup_context=_resize_context,
        backward=_adjoint_of(_other),
    )
