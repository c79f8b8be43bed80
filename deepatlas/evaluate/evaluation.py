"""What an evaluation found, and how: the content of ``summary.json``."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from deepatlas.evaluate.metrics.hd95 import HD95_CONVENTIONS
from deepatlas.evaluate.metrics.masks import MetricSettings
from deepatlas.evaluate.statistics import Statistics, Summary, statistics
from deepatlas.version import __version__

DICE = "2 |Y and P| / (|Y| + |P|) (eq. 15)"
SURFACE_DICE = (
    "fraction of the surface voxels of both masks within the tolerance of the other surface (as MONAI)"
)
ASD = "mean of the distances of both directions taken together"
SURFACE = "mask voxels with a face neighbour outside; distances between voxel centres, exact Euclidean"
ROWS = (
    "structures not drawn in an exam give no row; a missed one counts as Dice 0 and surface Dice 0, and not in the "
    "distances"
)


@dataclass(frozen=True)
class EvaluationSettings:
    """How exams are segmented, scored and shown."""

    metrics: MetricSettings = MetricSettings()
    # The mask value that counts, in (0, 1]; None takes those of the template, or a probability of 0.5.
    threshold: float | None = None
    # How pictures are turned: "radiological" or "neurological".
    convention: str = "radiological"
    pictures: bool = True


@dataclass(frozen=True)
class Conventions:
    """The definitions behind the numbers, as ``summary.json`` states them."""

    dice: str
    hd95: str
    hd95_name: str
    surface_dice: str
    tolerance_mm: float
    asd: str
    surface: str
    rows: str
    threshold: float | dict[str, float]  # one for all structures, or one for each
    pictures: str

    @classmethod
    def of(cls, settings: EvaluationSettings, thresholds: Mapping[str, float]) -> Conventions:
        """Those of ``settings``. ``thresholds`` are the template's, by structure."""
        name = settings.metrics.hd95
        return cls(
            dice=DICE,
            hd95=HD95_CONVENTIONS[name],
            hd95_name=name,
            surface_dice=SURFACE_DICE,
            tolerance_mm=settings.metrics.tolerance_mm,
            asd=ASD,
            surface=SURFACE,
            rows=ROWS,
            threshold=settings.threshold or dict(thresholds),
            pictures=settings.convention,
        )


@dataclass(frozen=True)
class Seconds(Statistics):
    """The seconds that the segmentation of an exam took once the exam was read."""

    per_exam: dict[str, float]

    @classmethod
    def of(cls, per_exam: Mapping[str, float]) -> Seconds:
        """Their statistics. ``per_exam`` is in the order of the exams."""
        return cls(**asdict(statistics(per_exam.values())), per_exam=dict(per_exam))


@dataclass(frozen=True)
class TemplateUsed:
    """The template of an evaluation: the exams that it was made from, and its structures."""

    exams: Sequence[str] | None
    structures: Sequence[str]


@dataclass(frozen=True)
class Versions:
    """The versions of the software that an evaluation ran on."""

    deepatlas: str = __version__
    torch: str = str(torch.__version__)
    numpy: str = np.__version__
    python: str = platform.python_version()


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a model, and of a template if the model needs one, on labelled exams."""

    summary: Summary
    conventions: Conventions
    seconds: Seconds
    fit: dict[str, dict[str, Any]]  # exam id -> how well the model knows the exam: "fit" and "known"
    skipped: dict[str, str]  # exam id -> why the exam could not be used
    unlabelled: list[str]  # ids of the exams without a reference
    not_in_labels: list[
        str
    ]  # structures of the template or the model that labels.json of the data does not name
    # structure of the template -> what the data call it, where the two names differ
    synonyms: dict[str, str]
    model: str  # the fingerprint
    refine: int
    average: int
    # None for a model that was trained on labels, which needs none.
    template: TemplateUsed | None
    # ids of the scored exams that the template was made from by their names, so that they score too well
    in_template: list[str]
    data: str
    created: str
    versions: Versions

    def as_dict(self) -> dict[str, Any]:
        """The content of ``summary.json``. The two headline numbers come first."""
        facts = asdict(self)
        summary = facts.pop("summary")
        overall = self.summary.overall
        headline = {
            "dice": overall.dice_mean_of_structures,
            "hd95_mm": overall.hd95_mm_mean_of_structures,
        }
        return headline | summary | facts
