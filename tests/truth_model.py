"""A model that knows the true coordinates of phantoms: an exact oracle for whatever is made of coordinates."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

import deepatlas_ops as ops
from deepatlas.io.codec import write_volume
from deepatlas.localize.template.file import Template
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.fit import Fit
from deepatlas.phantom.patients import PhantomCohort, PhantomExam
from deepatlas.space.preprocess import foreground_mask, to_model_grid
from deepatlas.space.volume import Volume

# Millimetres of the phantom's template per unit of normalised coordinate, and what lies at coordinate 0.
SCALE, CENTRE = 460.0, np.array([0.0, 0.0, -120.0])


def exam_of(name: str) -> str:
    """The id of an exam, from the name of its volume: the id itself, or the path of its image."""
    path = Path(name)
    return path.parent.name if path.name.startswith("ct.") else path.name


class TruthModel:
    """Stands in for the engine. ``errors`` maps names of exams to wrong displacements in mm, ``[3]`` or a function."""

    fingerprint, name = "truth-model", "truth"
    intensity, refine, average = "hu", 0, 1
    regions: tuple = ()
    depth = None
    structures, fit_threshold = None, 0.5
    device = torch.device("cpu")

    def __init__(self, cohort: PhantomCohort, count: int, errors: dict | None = None, size: int = 64):
        self.cohort, self.errors, self.flipped, self.size = cohort, errors or {}, (), size
        self.exams: dict[str, PhantomExam] = {}
        for index in range(count):
            exam = cohort.exam(index)
            self.exams[exam.id] = exam
        self.card = {"fit": {"threshold": 0.5, "quartiles": [0.5, 0.7, 0.8, 0.85, 0.95]}}
        self.unknown: set[str] = set()

    def write(self, root: Path) -> None:
        """The exams as a data directory, without drawing them again."""
        for name, exam in self.exams.items():
            write_volume(
                root / name / "ct.nii.gz", replace(exam.volume, array=exam.volume.array.astype(np.int16))
            )
            write_volume(root / name / "seg.nii.gz", exam.labels)
        (root / "labels.json").write_text(json.dumps(self.cohort.names))

    @cached_property
    def atlas(self) -> torch.Tensor:
        volume, _ = self.cohort.template("none")
        return torch.from_numpy((self._in_space(volume.array, volume.grid).clip(-256, 256) + 256) / 512)[
            None, None
        ]

    def map_exam(self, volume: Volume) -> ExamMap:
        name = exam_of(volume.name)
        exam = self.exams[name]
        hu = to_model_grid(volume, self.size)
        true = torch.from_numpy((exam.coords - CENTRE[:, None, None, None]) / SCALE).float()[None]
        theta = torch.from_numpy(exam.volume.grid.theta_from(hu.grid)).float()[None]
        coords = ops.affine_resample(true, theta, hu.grid.shape, padding="border")
        if name in self.errors:
            coords = (
                coords + torch.tensor(self.errors[name], dtype=torch.float32).reshape(1, 3, 1, 1, 1) / SCALE
            )
        fit = 0.2 if name in self.unknown else 0.6 + 0.3 * (int(name[-2:]) % 7) / 7
        return ExamMap(
            coords, hu.grid, hu, foreground_mask(hu.array), Fit(fit, self.fit_threshold), image=volume
        )

    def views(self, found: ExamMap, count: int, size: int) -> torch.Tensor:
        """Views that differ by about as much as the coordinates are wrong."""
        wrong = float(np.linalg.norm(self.errors.get(exam_of(found.hu.name), (0.0, 0.0, 0.0))))
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn((count, 3, 1, 1, 1), generator=generator) * (0.5 + 0.5 * wrong) / SCALE
        return ops.resize(found.coords, (size,) * 3) + noise

    def fit_of(self, hu: Volume) -> float:
        return 0.99 if exam_of(hu.name) in self.flipped else 0.3

    def template(self, names: list[str] | None = None, size: int = 96) -> Template:
        _, labels = self.cohort.template("none")
        chosen = {n: i for n, i in self.cohort.names.items() if names is None or n in names}
        masks = [
            self._in_space((labels.array == i).astype(np.float32), labels.grid, size) for i in chosen.values()
        ]
        return Template(np.stack(masks), tuple(chosen), tuple(chosen.values()), {"model": self.fingerprint})

    def _in_space(self, array: np.ndarray, grid, size: int = 96) -> np.ndarray:
        axis = np.linspace(-1, 1, size) * SCALE
        z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
        place = np.stack([x, y, z], axis=-1) + CENTRE
        at = torch.from_numpy(np.moveaxis(grid.world_to_normalized(place), -1, 0).copy()).float()[None]
        values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
        if array.max() > 100:
            return ops.resample(values + 1000, at, padding="zeros")[0, 0].numpy() - 1000
        return ops.resample(values, at, padding="zeros")[0, 0].numpy()
