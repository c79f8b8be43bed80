"""What `headneck` makes of changed copies of real exams: Dice, fit, and what is said about each.

    DEEPATLAS_DATA=../shared/data python benchmarks/spoilt_copies.py > table.md

The copies are made of the seven validation exams of OpenKBP that are scored on (`eval_core5_si180`), in memory, in one
pass of the network. Dice is the mean over brainstem, spinal cord, parotids and mandible, on the grid of the copy.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

import deepatlas
from deepatlas.errors import DeepAtlasError

STRUCTURES = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Mandible")
Change = Callable[[deepatlas.Volume, bool], deepatlas.Volume]


def values(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """A change of the voxels of the CT alone."""
    return lambda volume, labels: volume if labels else replace(volume, array=change(volume.array))


def padded(volume: deepatlas.Volume, labels: bool) -> deepatlas.Volume:
    """A margin of 12 zeros all around; the affine moves with it."""
    affine = volume.grid.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, 12)
    array = np.pad(volume.array, 12, constant_values=0)
    return deepatlas.Volume(array, deepatlas.Grid(array.shape, affine), volume.name)


def turned(*degrees: float, fill: float) -> Change:
    """The patient on a grid that is turned about x, y and z, resampled by SimpleITK as its users do."""

    def change(volume: deepatlas.Volume, labels: bool) -> deepatlas.Volume:
        image = sitk.GetImageFromArray(volume.array.astype(np.uint8 if labels else np.float32))
        flip = np.diag([-1.0, -1.0, 1.0])
        affine = volume.grid.affine
        spacing = np.array(volume.grid.spacing)
        direction = flip @ affine[:3, :3] / spacing
        image.SetSpacing(spacing.tolist())
        image.SetOrigin((flip @ affine[:3, 3]).tolist())
        image.SetDirection(direction.ravel().tolist())
        turn = sitk.Euler3DTransform()
        turn.SetRotation(*np.deg2rad(degrees).tolist())
        rotation = np.array(turn.GetMatrix()).reshape(3, 3)
        centre = np.array(
            image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
        )
        size = [int(n * 1.3) for n in image.GetSize()]
        target = rotation @ direction
        origin = centre - target @ (spacing * [(n - 1) / 2 for n in size])
        kind = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
        found = sitk.Resample(
            image, size, sitk.Transform(), kind, origin.tolist(), spacing.tolist(), target.ravel().tolist(),
            0.0 if labels else fill,
        )  # fmt: skip
        grid = np.eye(4)
        grid[:3, :3] = flip @ target * spacing
        grid[:3, 3] = flip @ origin
        array = sitk.GetArrayFromImage(found)
        return deepatlas.Volume(array, deepatlas.Grid(array.shape, grid), volume.name)

    return change


def half(volume: deepatlas.Volume, labels: bool) -> deepatlas.Volume:
    """The left half of the field of view."""
    volume = volume.canonical()
    depth, height, width = volume.grid.shape
    return volume.cropped((0, 0, 0), (depth, height, width // 2))


COPIES: dict[str, Change] = {
    "unchanged": lambda volume, labels: volume,
    "padded with 0": padded,
    "negated": values(np.negative),
    "clipped to ±200": values(lambda hu: hu.clip(-200, 200)),
    "clipped at 0": values(lambda hu: hu.clip(0)),
    "scaled to 0..1": values(lambda hu: (hu - hu.min()) / np.ptp(hu)),
    "scaled to 0..255": values(lambda hu: np.rint((hu.clip(-160, 240) + 160) / 400 * 255)),
    "offset by 1024": values(lambda hu: hu + 1024),
    "a label image": lambda volume, labels: volume,
    "half a body": half,
    "turned by 15°": turned(0, 0, 15, fill=-1024),
    "turned by 30°": turned(0, 0, 30, fill=-1024),
    "turned by 40° + 40°": turned(40, 0, 40, fill=-1024),
    "turned by 15°, filled with 0": turned(0, 0, 15, fill=0),
}


def dice(found: np.ndarray, truth: np.ndarray, ids: dict[str, int]) -> float:
    """The mean Dice of the structures that the truth has."""
    scores = []
    for name in STRUCTURES:
        a, b = found == ids[name], truth == ids[name]
        if b.any():
            scores.append(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))
    return float(np.mean(scores))


def main() -> int:
    root = Path(os.environ.get("DEEPATLAS_DATA", "../shared/data")) / "openkbp"
    exams = json.loads((root / "lists.json").read_text())["eval_core5_si180"]["validation"]
    try:
        model = deepatlas.load("headneck", "cpu", refine=0)
    except TypeError:
        model = deepatlas.load("headneck", "cpu")
    template = deepatlas.Template.load("headneck")
    ids = dict(zip(template.names, template.ids, strict=True))
    print("| copy | refused | Dice | fit | known | what is said of the first |\n|---|---|---|---|---|---|")
    for title, change in COPIES.items():
        refused, scores, fits, known, said = 0, [], [], 0, []
        for name in exams:
            ct = deepatlas.read_volume(root / "validation" / name / "ct.nii.gz")
            seg = deepatlas.read_volume(root / "validation" / name / "seg.nii.gz", labels=True)
            source = replace(seg, array=seg.array.astype(np.float32)) if title == "a label image" else ct
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    copy = change(deepatlas.Volume(source.array, source.grid, "exam"), False)
                    truth = change(deepatlas.Volume(seg.array, seg.grid, "exam"), True)
                    found = model.segment(copy, template)
                except DeepAtlasError as error:
                    refused += 1
                    said.append(str(error))
                    continue
            said.append("; ".join(str(warning.message) for warning in caught) or "-")
            scores.append(dice(found.array, truth.array, ids))
            # Versions before the fit have none.
            if (fit := getattr(found, "fit", None)) is not None:
                fits.append(fit.value)
                known += bool(fit.known)
        spread = f"{min(fits):.2f} to {max(fits):.2f}" if fits else "-"
        mean = f"{np.mean(scores):.3f}" if scores else "-"
        print(
            f"| {title} | {refused} of {len(exams)} | {mean} | {spread} | {known if fits else '-'} | {said[0]} |"
        )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
