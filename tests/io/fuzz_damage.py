"""Random damage to files, and the requirements for a reader of damaged files.

:func:`judge` checks these requirements for each damaged file:

* The outcome is a :class:`DataError` of one line, or a result: no other exception, no crash and no hang.
* A truncated file gives an error, unless the result is equal to the original (only padding or a line end was lost), or
  comes with a warning, for a text header whose voxels are in another file and for a slice at the end of a series.
* Positions count as equal within 0.05 voxel, and values within 1e-3, because float32 headers and readers differ by
  as much.
* A result with no more warnings than the undamaged file gives must be equal either to the original, or to the result
  of an independent reader of the damaged file (nibabel, pynrrd, pydicom, highdicom, or the text of the header for
  MetaImage): same shape, positions and values after scaling. A changed byte in voxels without a checksum, or a changed
  number in a header that is still consistent, may therefore pass, because nobody can notice it; but no reader of this
  package may give yet another result.
* Where a checksum covers the content (zip members, gzip and zlib streams, prepared stores, exams and datasets), there
  is no independent reader: the result is equal to the original, or there is an error.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError

Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class Format:
    """One kind of file.

    ``make`` writes the files of one exam into a folder. ``read`` is the reader of the package, which gives arrays by
    name, and warnings. ``truth`` gives the arrays of an independent reader; it is None where checksums cover all
    content. ``header`` is the number of leading bytes of a file that count as its header. With ``gzipped``, half of
    the damage is done inside the gzip stream. Files with the suffix ``may_warn`` may be truncated with a warning.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], tuple[Arrays, list[str]]]
    truth: Callable[[Path], Arrays] | None = None
    header: Callable[[str, bytes], int] = field(default=lambda name, data: min(len(data), 400))
    gzipped: bool = False
    may_warn: str = "-"


# -- damage -----------------------------------------------------------------------------------------


def damage(fmt: Format, files: dict[str, bytes], rng: np.random.Generator) -> tuple[dict[str, bytes], str]:
    """The files with one of them damaged, and a description such as ``"ct.nii: bit 3 of byte 9 flipped"``."""
    name = sorted(files)[rng.integers(len(files))]
    data, inside = files[name], fmt.gzipped and rng.random() < 0.5
    if inside:
        data = gzip.decompress(data)
    data, what = _damaged(data, fmt.header(name, data), rng)
    if inside:
        data = gzip.compress(data, mtime=0)
    return {**files, name: data}, f"{name}{' (inside)' if inside else ''}: {what}"


def _damaged(data: bytes, header: int, rng: np.random.Generator) -> tuple[bytes, str]:
    out = bytearray(data)
    kind = rng.choice(
        ["cut", "end", "flip", "set", "digit", "any", "zeros", "drop", "insert"],
        p=[0.1, 0.05, 0.3, 0.15, 0.15, 0.1, 0.05, 0.05, 0.05],
    )
    header = header or len(data)
    at = int(rng.integers(min(header, len(data))))
    anywhere = int(rng.integers(len(data)))
    length = int(rng.integers(1, 64))
    if kind == "cut":
        return data[:anywhere], f"truncated to {anywhere} of {len(data)} bytes"
    if kind == "end":
        return data[: -int(rng.integers(1, 9))], "truncated by a few bytes"
    if kind == "flip":
        bit = int(rng.integers(8))
        out[at] ^= 1 << bit
        return bytes(out), f"bit {bit} of byte {at} flipped"
    if kind == "set":
        value = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        out[at] = value
        return bytes(out), f"byte {at} set to {value}"
    if kind == "digit":
        digits = [i for i in range(min(header, len(data))) if 48 <= data[i] < 58]
        if digits:
            at = digits[rng.integers(len(digits))]
            out[at] = 48 + int(rng.integers(10))
            return bytes(out), f"digit {at} changed to {chr(out[at])}"
    if kind == "zeros":
        out[anywhere : anywhere + length] = bytes(len(out[anywhere : anywhere + length]))
        return bytes(out), f"{length} bytes from {anywhere} zeroed"
    if kind == "drop":
        return bytes(out[:at] + out[at + length :]), f"{length} bytes from {at} removed"
    if kind == "insert":
        return bytes(out[:at] + bytes(rng.integers(0, 256, length, dtype=np.uint8)) + out[at:]), (
            f"{length} bytes put in at {at}"
        )
    places = rng.integers(len(data), size=int(rng.integers(1, 9)))
    for place in places:
        out[place] ^= int(rng.integers(1, 256))
    return bytes(out), f"bytes {sorted(map(int, places))} flipped"


# -- judgement --------------------------------------------------------------------------------------


def difference(a: Arrays, b: Arrays) -> str:
    """The first name under which two results differ, or the empty string."""
    if a.keys() != b.keys():
        return "names"
    for name, x in a.items():
        y = b[name]
        if x.shape != y.shape:
            return f"{name} of shape {x.shape}, {y.shape}"
        if name == "affine":
            same = _apart(a["voxels"].shape, x, y) <= 0.05
        elif x.dtype.kind in "OSU":
            same = np.array_equal(x, y)
        else:
            with np.errstate(all="ignore"):
                same = np.allclose(x.astype(float), y.astype(float), rtol=1e-4, atol=1e-3, equal_nan=True)
        if not same:
            return name
    return ""


def _apart(shape: tuple[int, ...], a: NDArray, b: NDArray) -> float:
    """The largest distance of a corner's positions under two affines, in voxels."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape[::-1]) - 1)
    away = corners @ (a - b)[:3, :3].T + (a - b)[:3, 3]
    return float(np.abs(away).max() / np.linalg.norm(a[:3, :3], axis=0).min())


def judge(
    fmt: Format, folder: Path, what: str, original: Arrays, usual: list[str], product_done: Callable[[], None]
) -> tuple[str, str]:
    """Read a damaged file and return ``(outcome, complaint)``; the complaint is empty if all requirements are met.

    The outcome is "error", "exception", "same", "warned" or "other". ``product_done`` is called when the reader of the
    package has finished.
    """
    try:
        arrays, notes = fmt.read(folder)
    except DataError as error:
        text = str(error)
        bad = not text or "\n" in text or "Traceback" in text or len(text) > 1000
        return "error", f"not a one-line message: {text!r}" if bad else ""
    except Exception as error:  # noqa: BLE001
        return "exception", f"{type(error).__name__}: {error}"
    finally:
        product_done()
    changed = difference(arrays, original)
    if not changed:
        return "same", ""
    warned = len(notes) > len(usual)
    name = what.split(":")[0]
    if "truncated" in what and not (warned and name.endswith(fmt.may_warn)):
        return "other", f"a truncated file was read: {changed}"
    if warned:
        return "warned", ""
    if fmt.truth is None:
        return "other", f"a changed result without a warning: {changed}"
    try:
        truth = fmt.truth(folder)
    except Exception as error:  # noqa: BLE001
        return (
            "other",
            f"a changed result without a warning ({changed}); independent reader: {type(error).__name__}: {error}",
        )
    wrong = difference(arrays, truth)
    return "other", f"without a warning another result than the independent reader: {wrong}" if wrong else ""
