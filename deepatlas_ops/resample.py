"""resample, warp, resize and affine_resample: public functions, schemas, fake kernels and autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from . import _check, _library, reference


def resample(volume: Tensor, coords: Tensor, *, mode: str = "linear", padding: str = "border") -> Tensor:
    """Read a volume at absolute coordinates: ``out[b, :, v] = volume[b](coords[b, :, v])``.

    Args:
        volume: [B, C, D, H, W].
        coords: [B, 3, d, h, w], channels x, y, z, normalised and corner-aligned: -1 is the centre of the
            first voxel of an axis of ``volume`` and +1 that of the last. Every coordinate on an axis of size
            1 names its one voxel. A voxel with a NaN coordinate gives NaN in every channel and passes no
            gradient on.
        mode: ``"linear"`` (trilinear) or ``"nearest"`` (halves to the even voxel).
        padding: beyond the corner voxels' centres, ``"border"`` holds the nearest value, ``"zeros"`` fades to
            0 within one voxel, ``"reflection"`` mirrors about the corner voxels' centres.

    Returns:
        [B, C, d, h, w], dtype and device of ``volume``, contiguous.

    Values and first gradients are those of ``torch.nn.functional.grid_sample(align_corners=True)``, with
    respect to both arguments (that of the coordinates is 0 for ``"nearest"``). float64, float32, float16 and
    bfloat16; half types compute and accumulate in float32. Any strides; an empty batch is legal. Inside an
    autocast region the two arguments are brought to the wider of their types: coordinates that come in float32 stay
    so, and a half volume beside them is read as float32.

    ``torch.func.vmap``, ``grad`` and their compositions work; forward mode and, on the kernels, second derivatives
    are refused. The gradient by ``volume`` is deterministic on the CPU; on CUDA it adds with atomics and raises under
    ``torch.use_deterministic_algorithms``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or an unknown mode or padding.
    """
    volume, coords = _check.autocast(volume, coords)
    _check.choice("resample", "mode", mode, _check.MODES)
    _check.choice("resample", "padding", padding, _check.PADDINGS)
    _check.tensor("resample", "volume", volume)
    _check.tensor("resample", "coords", coords, channels=3)
    _check.alike("resample", "coords", coords, "volume", volume)
    with _check.without_autocast(volume):
        return _library.call(
            "resample", reference.resample, volume, coords, _check.MODES[mode], _check.PADDINGS[padding]
        )


def warp(volume: Tensor, displacement: Tensor, *, mode: str = "linear", padding: str = "border") -> Tensor:
    """Read a volume at identity + displacement: ``out[b, :, v] = volume[b](v + displacement[b, :, v])``.

    Args:
        volume: [B, C, D, H, W].
        displacement: [B, 3, d, h, w], channels x, y, z in normalised units. The identity is that of the
            displacement's own grid (coordinate 0 on an axis of size 1), so the output may have another shape
            than ``volume``. The sum is never materialised by the compiled kernels.
        mode, padding: as in :func:`resample`.

    Returns:
        [B, C, d, h, w], dtype and device of ``volume``, contiguous.

    Everything else, NaN, gradients, types and errors, is as in :func:`resample`.
    """
    volume, displacement = _check.autocast(volume, displacement)
    _check.choice("warp", "mode", mode, _check.MODES)
    _check.choice("warp", "padding", padding, _check.PADDINGS)
    _check.tensor("warp", "volume", volume)
    _check.tensor("warp", "displacement", displacement, channels=3)
    _check.alike("warp", "displacement", displacement, "volume", volume)
    with _check.without_autocast(volume):
        return _library.call(
            "warp", reference.warp, volume, displacement, _check.MODES[mode], _check.PADDINGS[padding]
        )


def resize(volume: Tensor, size: Sequence[int]) -> Tensor:
    """Corner-aligned linear resize, up or down: the first and last voxel of each axis keep their place.

    Args:
        volume: [B, C, D, H, W].
        size: (D, H, W) of the output, each at least 1.

    Returns:
        [B, C, *size], dtype and device of ``volume``, contiguous.

    Equal to :func:`resample` at the identity coordinates of ``size``. So an output axis of size 1 sits at
    coordinate 0, the middle of the input (``torch.nn.functional.interpolate`` takes the first voxel there);
    at every other size the values are those of ``interpolate(mode="trilinear", align_corners=True)``. There
    is no low-pass filter: halving a fine texture aliases. Differentiable any number of times;
    float64, float32, float16 and bfloat16, half types computing in float32; any strides; an empty batch is legal.

    Raises:
        ValueError: a volume or a size of the wrong form.
    """
    _check.tensor("resize", "volume", volume)
    sizes = _check.size("resize", size)
    with _check.without_autocast(volume):
        return _library.call("resize", reference.resize, volume, sizes)


def affine_resample(
    volume: Tensor, theta: Tensor, size: Sequence[int], *, mode: str = "linear", padding: str = "zeros"
) -> Tensor:
    """Read a volume through an affine map of the output grid: ``out[b, :, v] = volume[b](theta[b] · (v,
    1))``.

    Args:
        volume: [B, C, D, H, W].
        theta: [B, 3, 4], normalised output coordinates (x, y, z, 1) to normalised coordinates of ``volume``,
            as in ``torch.nn.functional.affine_grid(align_corners=True)``.
        size: (D, H, W) of the output, each at least 1; an axis of size 1 sits at coordinate 0.
        mode, padding: as in :func:`resample`; the default fills with 0 beyond the volume.

    Returns:
        [B, C, *size], dtype and device of ``volume``, contiguous.

    Differentiable with respect to ``volume`` and ``theta``. Types, strides, NaN and errors as in
    :func:`resample`.
    """
    volume, theta = _check.autocast(volume, theta)
    _check.choice("affine_resample", "mode", mode, _check.MODES)
    _check.choice("affine_resample", "padding", padding, _check.PADDINGS)
    _check.tensor("affine_resample", "volume", volume)
    if not isinstance(theta, Tensor) or theta.ndim != 3 or tuple(theta.shape[1:]) != (3, 4):
        got = list(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
        _check.fail("affine_resample", "theta", "a tensor [B, 3, 4]", got)
    _check.alike("affine_resample", "theta", theta, "volume", volume)
    sizes = _check.size("affine_resample", size)
    with _check.without_autocast(volume):
        return _library.call(
            "affine_resample",
            reference.affine_resample,
            volume,
            theta,
            sizes,
            _check.MODES[mode],
            _check.PADDINGS[padding],
        )


def _gradient_like(needed: bool, of: Tensor) -> Tensor:
    return of.new_empty(of.shape) if needed else of.new_empty(0)


def _sampling_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    volume, position, *options = inputs
    ctx.save_for_backward(volume, position)
    ctx.options = options


def _sampling_backward(name: str) -> Callable[..., tuple]:
    """Autograd of an op (volume, position, [size,] mode, padding) through its ``<name>_backward`` op."""

    def backward(ctx: Any, grad: Tensor) -> tuple:
        volume, position = ctx.saved_tensors
        *extra, mode, padding = ctx.options
        need_volume, need_position = ctx.needs_input_grad[:2]
        needs = (need_volume, need_position)
        grad_volume, grad_position = _library.run(
            f"{name}_backward", grad, volume, position, mode, padding, *needs
        )
        return (
            grad_volume if need_volume else None,
            grad_position if need_position else None,
            *([None] * (len(extra) + 2)),
        )

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
    return _gradient_like(need_volume, volume), _gradient_like(need_position, position)


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


def _resize_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.size = inputs[0].shape[2:]


def _resize_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _library.run("resize_backward", grad, list(ctx.size)), None


def _resize_twice_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    """resize is linear: the adjoint of its adjoint is resize."""
    return _library.run("resize", grad, list(ctx.size)), None


_library.register(
    "resize",
    "(Tensor volume, SymInt[] size) -> Tensor",
    reference.resize,
    lambda volume, size: volume.new_empty((*volume.shape[:2], *size)),
    setup_context=_resize_context,
    backward=_resize_backward,
)
_library.register(
    "resize_backward",
    "(Tensor grad, SymInt[] size) -> Tensor",
    reference.resize_backward,
    lambda grad, size: grad.new_empty((*grad.shape[:2], *size)),
    setup_context=_resize_context,
    backward=_resize_twice_backward,
)
