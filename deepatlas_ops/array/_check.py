"""Argument checks of the functions for arrays. They read as those of the ops: see :mod:`deepatlas_ops.options`."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import options
from ..options import fail, shape

# As kLongestAxis of csrc/launch.h: float32 cannot tell voxels apart beyond.
LONGEST_AXIS = 1 << 24
FLOATS = (np.dtype(np.float64), np.dtype(np.float32))


def floats(op: str, argument: str, value: object, form: str) -> np.ndarray:
    """A plain array of float64 or float32, in any order of bytes and elements. ``form`` says what is expected."""
    array = _plain_array(op, argument, value, form)
    if array.dtype.newbyteorder("=") not in FLOATS:
        fail(op, argument, "float64 or float32", array.dtype)
    return array


def ready(op: str, argument: str, array: np.ndarray) -> np.ndarray:
    """The array as the kernels read it: aligned, in C order and in the byte order of the machine.

    One that is all this already is returned as it is, and otherwise a copy.
    """
    return _in_order(op, argument, array, array.dtype.newbyteorder("="))


def volume(op: str, argument: str, value: object, *, channels: int | None = None) -> np.ndarray:
    """An array [B, C, D, H, W] with at least one voxel, and with C channels if that is given; see :func:`ready`."""
    form = f"[B, {'C' if channels is None else channels}, D, H, W]"
    array = floats(op, argument, value, f"an array {form}")
    if array.ndim != 5 or (channels is not None and array.shape[1] != channels):
        fail(op, argument, form, shape(array.shape))
    if 0 in array.shape[2:]:
        fail(op, argument, f"{form} with at least one voxel on each axis", shape(array.shape))
    _short(op, argument, array.shape[2:])
    return ready(op, argument, array)


def alike(op: str, argument: str, value: np.ndarray, other: str, reference: np.ndarray) -> None:
    """``value`` has the dtype and batch size of ``reference``, the argument called ``other``."""
    if value.dtype != reference.dtype:
        fail(op, argument, f"the dtype of {other}, {reference.dtype}", value.dtype)
    if value.shape[0] != reference.shape[0]:
        fail(op, argument, f"the batch size of {other}, {reference.shape[0]}", shape(value.shape))


def mask(op: str, value: object, other: str, reference: np.ndarray) -> np.ndarray | None:
    """The weights of a mask [B, 1, D, H, W] over ``reference``, the argument ``other``, in its dtype.

    A mask may be bool, of an integer type, or of the dtype of ``reference``. None stays None.
    """
    if value is None:
        return None
    array = _plain_array(op, "mask", value, "an array [B, 1, D, H, W]")
    wanted = (reference.shape[0], 1, *reference.shape[2:])
    if array.shape != wanted:
        fail(op, "mask", f"{shape(wanted)}, one weight for each voxel of {other}", shape(array.shape))
    if array.dtype.kind not in "biu" and array.dtype.newbyteorder("=") != reference.dtype:
        expected = f"bool, an integer type or the dtype of {other}, {reference.dtype}"
        fail(op, "mask", expected, array.dtype)
    return _in_order(op, "mask", array, reference.dtype)


def size(op: str, value: Sequence[int]) -> list[int]:
    """Three positive integers D, H, W that are not too large for the kernels."""
    sizes = [int(n) for n in options.size(op, value, (int, np.integer))]
    _short(op, "size", sizes)
    return sizes


@contextlib.contextmanager
def room(op: str, result: Iterable[int], dtype: np.dtype) -> Iterator[None]:
    """Around what allocates a result of this shape: one error where there is not enough memory for it."""
    sizes = list(result)
    too_much = f"{op}: not enough memory for a result {shape(sizes)} of {dtype}"
    if math.prod(sizes) * dtype.itemsize > sys.maxsize:
        raise MemoryError(too_much)
    try:
        yield
    except MemoryError:
        raise MemoryError(too_much) from None


def _short(op: str, argument: str, sizes: Iterable[int]) -> None:
    if any(n > LONGEST_AXIS for n in sizes):
        fail(op, argument, f"at most {LONGEST_AXIS} voxels on each axis", shape(sizes))


def _plain_array(op: str, argument: str, value: object, form: str) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        # The values under the mask of such an array mean nothing, and no kernel would know of it.
        fail(op, argument, f"{form}, without a mask of its own (call filled)", type(value).__name__)
    if not isinstance(value, np.ndarray):
        fail(op, argument, form, type(value).__name__)
    return np.asarray(value)


def _in_order(op: str, argument: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    try:
        return np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED"])
    except (MemoryError, ValueError):
        raise MemoryError(
            f"{op}: {argument}: not enough memory for a copy in C order of {shape(array.shape)} {array.dtype}"
        ) from None
