"""Argument checks of the public functions: one line naming op, argument, expectation and what came."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MODES = {"linear": 0, "nearest": 1}
PADDINGS = {"border": 0, "zeros": 1, "reflection": 2}


def fail(op: str, argument: str, expected: str, got: object) -> NoReturn:
    raise ValueError(f"{op}: {argument}: expected {expected}, got {got}")


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(str(n) for n in tensor.shape)}]"


def tensor(op: str, argument: str, value: object, *, channels: int | None = None) -> None:
    """A floating [B, C, D, H, W] tensor with at least one voxel; C fixed if ``channels`` is given."""
    form = f"[B, {'C' if channels is None else channels}, D, H, W]"
    if not isinstance(value, Tensor):
        fail(op, argument, f"a tensor {form}", type(value).__name__)
    if value.dtype not in FLOATS:
        fail(op, argument, "float64, float32, float16 or bfloat16", value.dtype)
    if value.ndim != 5 or (channels is not None and value.shape[1] != channels):
        fail(op, argument, form, _shape(value))
    if 0 in value.shape[2:]:
        fail(op, argument, f"{form} with at least one voxel on each axis", _shape(value))


def alike(op: str, argument: str, value: Tensor, other: str, reference: Tensor) -> None:
    """``value`` has the dtype, device and batch of ``reference``, which is argument ``other``."""
    if value.dtype != reference.dtype:
        fail(op, argument, f"the dtype of {other}, {reference.dtype}", value.dtype)
    if value.device != reference.device:
        fail(op, argument, f"the device of {other}, {reference.device}", value.device)
    if value.shape[0] != reference.shape[0]:
        fail(op, argument, f"the batch size of {other}, {reference.shape[0]}", _shape(value))


def same_shape(op: str, argument: str, value: Tensor, other: str, reference: Tensor) -> None:
    if value.shape != reference.shape:
        fail(op, argument, f"the shape of {other}, {_shape(reference)}", _shape(value))


def mask(op: str, value: object, other: str, reference: Tensor) -> Tensor | None:
    """A mask [B, 1, D, H, W] over ``reference``: bool, integer or its dtype; returned as weights."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        fail(op, "mask", "a tensor [B, 1, D, H, W]", type(value).__name__)
    if value.shape != (reference.shape[0], 1, *reference.shape[2:]):
        expected = _shape(reference[:, :1])
        fail(op, "mask", f"{expected}, one weight for each voxel of {other}", _shape(value))
    if value.device != reference.device:
        fail(op, "mask", f"the device of {other}, {reference.device}", value.device)
    if value.is_complex() or (value.is_floating_point() and value.dtype != reference.dtype):
        fail(op, "mask", f"bool, an integer type or the dtype of {other}, {reference.dtype}", value.dtype)
    return value.detach().to(reference.dtype)


def choice(op: str, argument: str, value: object, allowed: dict[str, int] | Sequence[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        fail(op, argument, f"one of {', '.join(allowed)}", repr(value))


def size(op: str, value: object) -> list[int]:
    """Three positive sizes D, H, W."""
    try:
        sizes = list(value)  # type: ignore[call-overload]
    except TypeError:
        fail(op, "size", "three sizes (D, H, W)", repr(value))
    whole = all(isinstance(n, (int, torch.SymInt)) and not isinstance(n, bool) for n in sizes)
    if len(sizes) != 3 or not whole or any(n < 1 for n in sizes):
        fail(op, "size", "three positive integers (D, H, W)", repr(value))
    return sizes


def positive(op: str, argument: str, value: object, *, zero: bool = False) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not (value >= 0 if zero else value > 0) or value == float("inf"):
        fail(op, argument, "a number of at least 0" if zero else "a number above 0", repr(value))


def _autocasts(kind: str) -> bool:
    """Whether an autocast region is open for a kind of device; not every kind, meta for one, can have any."""
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def autocast(*tensors: Tensor | None, least: torch.dtype | None = None) -> tuple[Tensor | None, ...]:
    """Inside an autocast region, bring the floating tensors to their widest type (at least ``least``).

    Outside one they come back as they are, and a mismatch is the caller's error.
    """
    present = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    if not present or not _autocasts(present[0].device.type):
        return tensors
    wide = least
    for t in present:
        wide = t.dtype if wide is None else torch.promote_types(wide, t.dtype)
    return tuple(t.to(wide) if isinstance(t, Tensor) and t.is_floating_point() else t for t in tensors)


def without_autocast(like: Tensor) -> contextlib.AbstractContextManager:
    """Nothing inside an op is rounded by an autocast region around it."""
    kind = like.device.type
    if _autocasts(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
