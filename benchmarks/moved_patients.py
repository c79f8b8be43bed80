"""What `headneck` finds in patients who lie otherwise than those that it was trained on.

    DEEPATLAS_DATA=../shared/data python benchmarks/moved_patients.py > table.md

The copies are made of the seven validation exams of OpenKBP that are scored on (`eval_core5_si180`), in memory. The
header of a copy tells nothing of the change: a turned patient lies turned in an upright image. Dice is the mean over
brainstem, spinal cord, parotids and mandible on the grid of the copy, in one pass; both the voxels and the labels of a
turned copy are resampled, which costs a part of the difference.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

import deepatlas

STRUCTURES = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Mandible")
AIR = -1000.0
# The CT and its labels, on one grid along the axes of the patient.
Exam = tuple[deepatlas.Volume, deepatlas.Volume]


def on(grid: deepatlas.Grid, array: np.ndarray, low: tuple[int, int, int], name: str) -> deepatlas.Volume:
    """An array that reaches ``low`` voxels (z, y, x) further down than ``grid``."""
    affine = grid.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.array(low[::-1])
    return deepatlas.Volume(array, deepatlas.Grid(array.shape, affine), name)


def padded(exam: Exam, before: tuple[int, int, int], after: tuple[int, int, int]) -> Exam:
    """Air around an exam, in voxels (z, y, x)."""
    width = tuple(zip(before, after, strict=True))
    return tuple(  # type: ignore[return-value]
        on(v.grid, np.pad(v.array, width, constant_values=fill), before, v.name)
        for v, fill in zip(exam, (AIR, 0), strict=True)
    )


def voxels(exam: Exam, mm: float, axis: int) -> int:
    """How many voxels of an exam there are in so many millimetres along z, y or x (0, 1 or 2)."""
    return max(1, round(mm / exam[0].grid.spacing[2 - axis]))


def air(exam: Exam) -> Exam:
    """30 cm of air on the four sides of every slice."""
    y, x = voxels(exam, 300, 1), voxels(exam, 300, 2)
    return padded(exam, (0, y, x), (0, y, x))


def couch(exam: Exam) -> Exam:
    """A slab of 0 HU, 2 cm thick, across the image 6 cm behind the patient's back."""
    ct, labels = padded(exam, (0, voxels(exam, 80, 1), 0), (0, 0, 0))
    array = np.array(ct.array, dtype=np.float32)
    back = np.flatnonzero((array > -300).any(axis=(0, 2)))[0]
    top = max(0, back - voxels(exam, 60, 1))
    slab = array[:, top : top + voxels(exam, 20, 1)]
    np.maximum(slab, 0, out=slab)
    return deepatlas.Volume(array, ct.grid, ct.name), labels


def arms(exam: Exam) -> Exam:
    """Arms of 9 cm with a bone beside the lower part of the patient."""
    x = voxels(exam, 120, 2)
    ct, labels = padded(exam, (0, 0, x), (0, 0, x))
    array = np.array(ct.array, dtype=np.float32)
    depth, height, width = array.shape
    spacing = ct.grid.spacing
    rows, columns = np.mgrid[:height, :width]
    for centre in (voxels(exam, 50, 2), width - voxels(exam, 50, 2)):
        far = np.hypot((rows - height // 2) * spacing[1], (columns - centre) * spacing[0])
        part = array[: int(0.7 * depth)]
        part[:, far < 45] = np.maximum(part[:, far < 45], 40)
        part[:, far < 12] = 800
    return deepatlas.Volume(array, ct.grid, ct.name), labels


def turned(*degrees: float) -> Callable[[Exam], Exam]:
    """The patient turned about x, y and z, resampled by SimpleITK onto an upright grid that holds all of it."""

    def change(exam: Exam) -> Exam:
        grid = exam[0].grid
        turn = sitk.Euler3DTransform()
        centre = grid.voxel_to_world((np.array(grid.shape[::-1]) - 1) / 2)
        turn.SetCenter(centre.tolist())
        turn.SetRotation(*np.deg2rad(degrees).tolist())
        corners = np.array([turn.TransformPoint(p) for p in grid.corners().tolist()])
        low, spacing = corners.min(axis=0), np.array(grid.spacing)
        size = np.ceil(np.ptp(corners, axis=0) / spacing).astype(int) + 1
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = low
        made = []
        for volume, kind, fill in zip(
            exam, (sitk.sitkLinear, sitk.sitkNearestNeighbor), (AIR, 0.0), strict=True
        ):
            image = sitk.GetImageFromArray(np.asarray(volume.array).astype(np.float32))
            image.SetSpacing(spacing.tolist())
            image.SetOrigin(grid.affine[:3, 3].tolist())
            found = sitk.Resample(
                image,
                size.tolist(),
                turn.GetInverse(),
                kind,
                low.tolist(),
                spacing.tolist(),
                np.eye(3).ravel(),
                fill,
            )
            array = sitk.GetArrayFromImage(found)
            made.append(deepatlas.Volume(array, deepatlas.Grid(array.shape, affine), volume.name))
        ct, labels = made
        return ct, deepatlas.Volume(labels.array.astype(np.uint8), labels.grid, labels.name)

    return change


def trunk(folder: Path) -> Callable[[Exam], Exam]:
    """Another patient's trunk joined below, in the middle of each slice."""

    def change(exam: Exam) -> Exam:
        below = deepatlas.read_volume(folder / "ct.nii.gz").canonical()
        image = sitk.GetImageFromArray(np.asarray(below.array).astype(np.float32))
        image.SetSpacing(below.grid.spacing)
        spacing = exam[0].grid.spacing
        size = [
            max(1, round(n * a / b))
            for n, a, b in zip(below.grid.shape[::-1], below.grid.spacing, spacing, strict=True)
        ]
        other = sitk.GetArrayFromImage(
            sitk.Resample(
                image,
                size,
                sitk.Transform(),
                sitk.sitkLinear,
                (0.0, 0.0, 0.0),
                spacing,
                np.eye(3).ravel(),
                AIR,
            )
        )
        high = [max(a, b) for a, b in zip(exam[0].array.shape[1:], other.shape[1:], strict=True)]

        def sides(shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
            return tuple(((n - m) // 2, n - m - (n - m) // 2) for n, m in zip(high, shape[1:], strict=True))

        own = sides(exam[0].array.shape)
        ct, labels = padded(exam, (len(other), own[0][0], own[1][0]), (0, own[0][1], own[1][1]))
        array = np.array(ct.array, dtype=np.float32)
        array[: len(other)] = np.pad(other, ((0, 0), *sides(other.shape)), constant_values=AIR)
        return deepatlas.Volume(array, ct.grid, ct.name), labels

    return change


def main() -> int:
    data = Path(os.environ.get("DEEPATLAS_DATA", "../shared/data"))
    changes: dict[str, Callable[[Exam], Exam]] = {
        "unchanged": lambda exam: exam,
        "30 cm of air": air,
        "a couch": couch,
        "arms": arms,
        "turned by 15° about z": turned(0, 0, 15),
        "turned by 30° about z": turned(0, 0, 30),
        "turned by 30° about x": turned(30, 0, 0),
        "turned by 20° about y": turned(0, 20, 0),
        "a thorax below": trunk(data / "trunk" / "thorax_LIDC-IDRI-0001"),
        "an abdomen and pelvis below": trunk(data / "trunk" / "abdpelvis_TCGA-09-2043"),
    }
    warnings.simplefilter("ignore")
    model = deepatlas.load("headneck", refine=0)
    template = deepatlas.Template.load("headneck").select(STRUCTURES)
    openkbp = data / "openkbp"
    cohort = deepatlas.find_exams(openkbp / "validation")
    ids = json.loads((openkbp / "lists.json").read_text())["eval_core5_si180"]["validation"]
    print("| copy | Dice | lowest | fit |\n|---|---|---|---|")
    for name, change in changes.items():
        dice, fits = [], []
        for exam_id in ids:
            files = cohort.exam(exam_id)
            exam = deepatlas.read_volume(files.ct).canonical(), deepatlas.read_volume(files.seg).canonical()
            ct, drawn = change(exam)
            found = model.segment(ct, template)
            fits.append(found.fit.value)
            scores = []
            for structure in STRUCTURES:
                mask, truth = found.mask(template.labels[structure]), drawn.array == cohort.labels[structure]
                if truth.any():
                    scores.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
            dice.append(float(np.mean(scores)))
            print(f"{name} {exam_id}: {dice[-1]:.3f}", file=sys.stderr)
        low, high = min(fits), max(fits)
        print(
            f"| {name} | {statistics.mean(dice):.3f} | {min(dice):.3f} | {low:.2f} to {high:.2f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
