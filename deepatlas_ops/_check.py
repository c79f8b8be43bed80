"""Argument checks of the public functions.

A failed check raises one line that names the op, the argument, what was expected and what was passed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from . import options
from .options import MODES, PADDINGS, STEPS, choice, count, fail, positive, shape, window

__all__ = ["MODES", "PADDINGS", "STEPS", "choice", "count", "fail", "positive", "window"]

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


# ---- tensors ----------------------------------------------------------------------------------------


def tensor(op: str, argument: str, value: object, *, channels: int | None = None) -> None:
    """A floating-point tensor [B, C, D, H, W] with at least one voxel, and with C channels if that is given."""
    form = f"[B, {'C' if channels is None else channels}, D, H, W]"
    if not isinstance(value, Tensor):
        fail(op, argument, f"a tensor {form}", type(value).__name__)
    if value.dtype not in FLOATS:
        fail(op, argument, "float64, float32, float16 or bfloat16", value.dtype)
    if value.ndim != 5 or (channels is not None and value.shape[1] != channels):
        fail(op, argument, form, shape(value.shape))
    if 0 in value.shape[2:]:
        fail(op, argument, f"{form} with at least one voxel on each axis", shape(value.shape))


def alike(op: str, argument: str, value: Tensor, other: str, reference: Tensor) -> None:
    """``value`` has the dtype, device and batch size of ``reference``, the argument called ``other``."""
    if value.dtype != reference.dtype:
        fail(op, argument, f"the dtype of {other}, {reference.dtype}", value.dtype)
    if value.device != reference.device:
        fail(op, argument, f"the device of {other}, {reference.device}", value.device)
    if value.shape[0] != reference.shape[0]:
        fail(op, argument, f"the batch size of {other}, {reference.shape[0]}", shape(value.shape))


def pair(op: str, argument: str, value: Tensor, other: str, reference: Tensor) -> None:
    """Two tensors [B, C, D, H, W] of one shape, dtype and device; ``reference`` is the argument ``other``."""
    tensor(op, other, reference)
    tensor(op, argument, value)
    alike(op, argument, value, other, reference)
    if value.shape != reference.shape:
        fail(op, argument, f"the shape of {other}, {shape(reference.shape)}", shape(value.shape))


def mask(op: str, value: object, other: str, reference: Tensor) -> Tensor | None:
    """The weights of a mask [B, 1, D, H, W] over ``reference``, the argument ``other``, in its dtype.

    A mask may be bool, of an integer type, or of the dtype of ``reference``. None stays None.
    """
    if value is None:
        return None
    if not isinstance(value, Tensor):
        fail(op, "mask", "a tensor [B, 1, D, H, W]", type(value).__name__)
    if value.shape != (reference.shape[0], 1, *reference.shape[2:]):
        expected = shape(reference[:, :1].shape)
        fail(op, "mask", f"{expected}, one weight for each voxel of {other}", shape(value.shape))
    if value.device != reference.device:
        fail(op, "mask", f"the device of {other}, {reference.device}", value.device)
    if value.is_complex() or (value.is_floating_point() and value.dtype != reference.dtype):
        fail(op, "mask", f"bool, an integer type or the dtype of {other}, {reference.dtype}", value.dtype)
    return value.detach().to(reference.dtype)


# ---- options ----------------------------------------------------------------------------------------


def size(op: str, value: Sequence[int]) -> list[int]:
    """Three positive integers D, H, W."""
    return options.size(op, value, (int, torch.SymInt))


# ---- autocast ---------------------------------------------------------------------------------------


def _has_autocast(kind: str) -> bool:
    """Whether a type of device supports autocast; some, such as meta, do not."""
    return torch.amp.is_autocast_available(kind)


# For torch.compile, which cannot trace it in PyTorch 2.11, the answer is a constant. The decorator that says so would
# import torch._dynamo, which takes two seconds.
_has_autocast._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _autocasts(kind: str) -> bool:
    """Whether autocast is enabled for a type of device."""
    return _has_autocast(kind) and torch.is_autocast_enabled(kind)


@overload
def autocast(first: Tensor, /, *, least: torch.dtype | None = None) -> tuple[Tensor]: ...
@overload
def autocast(
    first: Tensor, second: Tensor, /, *, least: torch.dtype | None = None
) -> tuple[Tensor, Tensor]: ...
@overload
def autocast(
    first: Tensor, second: Tensor | None, /, *, least: torch.dtype | None = None
) -> tuple[Tensor, Tensor | None]: ...
@overload
def autocast(
    first: Tensor, second: Tensor, third: Tensor | None, /, *, least: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor | None]: ...
def autocast(*tensors: Tensor | None, least: torch.dtype | None = None) -> tuple[Tensor | None, ...]:
    """Where autocast is enabled, convert the floating-point tensors to the widest of their types, at least ``least``.

    Elsewhere the tensors are returned as they are; mixed types are then an error of the caller.
    """
    present = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    if not present or not _autocasts(present[0].device.type):
        return tensors
    wide = present[0].dtype if least is None else least
    for t in present:
        wide = torch.promote_types(wide, t.dtype)
    return tuple(t.to(wide) if isinstance(t, Tensor) and t.is_floating_point() else t for t in tensors)


def without_autocast(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """Disables autocast on the device of ``like``, so that it rounds nothing inside an op."""
    kind = like.device.type
    if _autocasts(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
