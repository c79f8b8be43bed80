"""The pictures of a dataset's report: a coronal slice of an exam, with the outlines of its structures."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import contourpy
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deepatlas.exams.exam_file import ExamFile, ExamRecord
from deepatlas.intake.dataset.folder import exam_path
from deepatlas.pictures.draw import colour, data_uri
from deepatlas.pictures.view import View, choose_slices
from deepatlas.space.constants import AIR

# In this window (HU), lungs differ from air, fat from muscle, and bone from soft tissue.
WINDOW = (-500.0, 500.0)
# Largest size on the page, and the pixels of the picture for each of these: more than one for fine screens.
_SIDE, _FINE = 250, 1.5
# Every n-th voxel decides which plane crosses the most structures.
_STEP = 3
_VIEW = View("coronal")
# What is denser (HU) is not air; and the part of the picture that is left around the patient.
_AIR_ENDS, _MARGIN = -300.0, 0.02


@dataclass(frozen=True)
class Contour:
    """The outline of a structure: its name, colour, and the path in SVG, in units of the page."""

    name: str
    colour: str
    path: str


@dataclass(frozen=True)
class Thumbnail:
    """A picture for the page: ``png`` as a data URI, its size in units of the page, and the lines below it."""

    id: str
    png: str
    width: int
    height: int
    contours: list[Contour]
    text: str


def sample(exams: list[ExamRecord], count: int) -> list[ExamRecord]:
    """At most ``count`` exams, spread evenly over the list."""
    if len(exams) <= count:
        return exams
    return [exams[round(i * (len(exams) - 1) / (count - 1))] for i in range(count)]


def thumbnail(folder: Path, exam: ExamRecord) -> Thumbnail:
    """The picture of an exam of the dataset ``folder``."""
    with ExamFile(exam_path(folder, exam.id)) as file:
        png, width, height, contours = coronal(file)
    shape = " × ".join(str(n) for n in reversed(exam.shape))
    spacing = " × ".join(f"{s:.3g}" for s in exam.spacing)
    return Thumbnail(exam.id, data_uri(png), width, height, contours, f"{shape}, {spacing} mm")


def coronal(exam: ExamFile) -> tuple[bytes, int, int, list[Contour]]:
    """A coronal slice of an exam as a PNG file, its width and height on the page, and the outlines on it.

    It is the slice that crosses the most structures, or the middle one where nothing is drawn. The patient's right is
    on the left, the head is up, and a millimetre has the same length in both directions.
    """
    grid, axes, flips = exam.grid.canonical()
    index = grid.shape[1] // 2
    if exam.present:
        whole = exam.labels().canonical().array
        index = choose_slices(whole[::_STEP, ::_STEP, ::_STEP])[1] * _STEP
    # The axis of the file that runs from back to front; little more than the slice is read.
    source = axes[1]
    start, shape = [0, 0, 0], list(exam.grid.shape)
    start[source] = exam.grid.shape[source] - 1 - index if 1 in flips else index
    shape[source] = 1
    picture = _VIEW.orient(exam.crop(start, shape).canonical().array[:, 0])
    masks = {}
    if exam.present:
        labels = exam.crop(start, shape, labels=True).canonical()
        for name in sorted(exam.present, key=exam.names.__getitem__):
            masks[name] = _VIEW.orient(labels.mask(exam.names[name])[:, 0])
    box = _box_of_patient(np.logical_or.reduce([picture > _AIR_ENDS, *masks.values()]))
    picture, masks = picture[box], {name: mask[box] for name, mask in masks.items() if mask.any()}
    x, z = (n * s for n, s in zip(picture.shape[::-1], (grid.spacing[0], grid.spacing[2]), strict=True))
    scale = _SIDE / max(x, z)
    width, height = max(1, round(x * scale)), max(1, round(z * scale))
    contours = [
        Contour(name, colour(exam.names[name]), _outline(_resized(mask.astype(np.float32), height, width)))
        for name, mask in masks.items()
    ]
    return _png(picture, round(height * _FINE), round(width * _FINE)), width, height, contours


def _box_of_patient(shown: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and columns in which there is something to see, with a margin; all of them if there is nothing."""
    box = []
    for axis, count in enumerate(shown.shape):
        used = np.flatnonzero(shown.any(axis=1 - axis))
        if not len(used):
            return slice(None), slice(None)
        margin = max(1, round(_MARGIN * count))
        box.append(slice(max(0, int(used[0]) - margin), int(used[-1]) + 1 + margin))
    return box[0], box[1]


def _png(picture: NDArray, height: int, width: int) -> bytes:
    low, high = WINDOW
    small = _resized(np.maximum(picture, AIR).astype(np.float32), height, width)
    grey = np.rint(np.clip((small - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "PNG")
    return out.getvalue()


def _resized(plane: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    tensor = torch.from_numpy(np.ascontiguousarray(plane))[None, None]
    out = torch.nn.functional.interpolate(
        tensor, (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return out[0, 0].numpy()


def _outline(mask: NDArray[np.float32]) -> str:
    """The outline of a mask of values in [0, 1], closed also where the structure reaches the edge of the picture."""
    # A structure that is thinner than a pixel of the page would vanish at one half.
    level = min(0.5, 0.5 * float(mask.max()))
    rows, columns = (np.arange(-1, n + 1) + 0.5 for n in mask.shape)
    lines = contourpy.contour_generator(columns, rows, np.pad(mask, 1)).lines(level)
    return "".join(f"M{' '.join(f'{x:.1f},{y:.1f}' for x, y in line[:-1])}Z" for line in lines)
