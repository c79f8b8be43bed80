"""The error of learned coordinates on phantoms, for which the true template coordinate of every voxel is known."""

from __future__ import annotations

import numpy as np
import torch

import deepatlas_ops as ops
from deepatlas.config import PhantomConfig
from deepatlas.model.engine import Engine
from deepatlas.model.field import CoordinateField
from deepatlas.phantom.baseline import affine_baseline
from deepatlas.phantom.patients import PhantomCohort, PhantomExam
from deepatlas.space.box import Box

# Training phantoms from which the affine map between learned and true coordinates is fitted, and voxels of each.
FIT_EXAMS = 8
FIT_VOXELS = 5_000
# Voxels of each of them among which those of a box are sought.
BOX_VOXELS = 200_000


def cohort_of(config: PhantomConfig) -> PhantomCohort:
    """The cohort that the settings of a run ask for."""
    names = ("seed", "deformation", "structures", "spacing", "anatomy")
    return PhantomCohort(**{name: getattr(config, name) for name in names})


def phantom_truth(
    model: Engine,
    config: PhantomConfig,
    template_exam: str,
    *,
    baseline: bool = True,
    cohort: PhantomCohort | None = None,
    box: Box | None = None,
) -> dict:
    """The error of the learned coordinates on the test phantoms.

    Learned coordinates are defined only up to the choice of a coordinate system. So the best affine map from learned
    to true coordinates (least squares over the foreground of training phantoms) is applied before they are compared.

    Args:
        model: the trained model.
        config: the cohort that it was trained on.
        template_exam: id of the labelled training phantom of the affine baseline.
        baseline: whether to compute ``affine_dice``, which does not depend on the model.
        cohort: the cohort of ``config``, if the caller has it already.
        box: a part of the atlas, in its coordinates. Then the error is that of the voxels whose true place lies there,
            and the affine map is the best one of that part.

    Returns:
        ``coordinate_error_mm``, the median error over the test foreground; ``coordinate_error_p95_mm``, its 95th
        percentile; ``folds``, the fraction of the test foreground (on the model grid) with a Jacobian determinant of
        at most 0; and ``affine_dice``, the mean Dice of the best affine alignment of ``template_exam`` to the same
        exams, computed from the true coordinates.
    """
    cohort = cohort or cohort_of(config)
    generator = np.random.default_rng(config.seed)
    learned, true = [], []
    for index in range(min(FIT_EXAMS, config.train)):
        exam = cohort.exam(index)
        found = model.map_exam(exam.volume)
        a, b = _pairs(exam, found.field)
        pick = generator.choice(len(a), min(BOX_VOXELS if box else FIT_VOXELS, len(a)), replace=False)
        learned.append(a[pick])
        true.append(b[pick])
    of_all = affine = _fitted(np.concatenate(learned), np.concatenate(true))

    def held(places: np.ndarray) -> np.ndarray:
        """Which true places lie in the box."""
        if box is None:
            return np.ones(len(places), dtype=bool)
        return box.contains((places - of_all[3]) @ np.linalg.inv(of_all[:3]))

    if box:
        inside = held(np.concatenate(true))
        affine = _fitted(np.concatenate(learned)[inside], np.concatenate(true)[inside])

    ids = [cohort.exam_id(i) for i in range(config.train)]
    source = cohort.exam(ids.index(template_exam))
    errors, folds, affine_dice = [], [], {}
    for index in range(config.train, config.train + config.test):
        exam = cohort.exam(index)
        found = model.map_exam(exam.volume)
        a, b = _pairs(exam, found.field)
        inside = held(b)
        a, b = a[inside], b[inside]
        errors.append(np.linalg.norm(_homogeneous(a) @ affine - b, axis=1))
        mask = torch.from_numpy(found.body)[None, None].to(found.coords.device)
        folds.append(float(ops.folds(found.coords, mask)))
        if baseline:
            for name, dice in affine_baseline(source, exam).items():
                affine_dice.setdefault(name, []).append(dice)
    error = np.concatenate(errors)
    result = {
        "coordinate_error_mm": float(np.median(error)),
        "coordinate_error_p95_mm": float(np.percentile(error, 95)),
        "folds": float(np.mean(folds)),
    }
    if baseline:
        result["affine_dice"] = float(np.mean([np.mean(v) for v in affine_dice.values()]))
    return result


def _pairs(exam: PhantomExam, field: CoordinateField) -> tuple[np.ndarray, np.ndarray]:
    """Learned coordinates (normalised) and true ones (mm) of the N foreground voxels, ``[N, 3]`` each."""
    coords = field.on(exam.volume.grid).cpu().numpy()
    return coords[:, exam.foreground].T, exam.coords[:, exam.foreground].T.astype(np.float64)


def _fitted(learned: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The affine map ``[4, 3]`` from learned to true coordinates with the least squared distance."""
    affine, *_ = np.linalg.lstsq(_homogeneous(learned), true, rcond=None)
    return affine


def _homogeneous(points: np.ndarray) -> np.ndarray:
    return np.column_stack([points, np.ones(len(points))])
