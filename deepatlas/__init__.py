"""DeepATLAS: one anatomical coordinate for every voxel of a CT, learned without labels.

A trained model gives the coordinates of any exam, and with one labelled example it finds the same anatomy in others::

    import deepatlas

    # A shipped model, a run folder or a model file.
    model = deepatlas.load("headneck")
    # [3, D, H, W] on the exam's own grid, normalised.
    coords = model.coordinates("a.nii.gz")
    # Masks in coordinate space from a labelled exam (eq. 14), and a label image on the grid of another exam.
    template = deepatlas.build_template(model, "labelled/", ["pt_7"])
    labels = model.segment("b.nii.gz", template)
    # Points in RAS millimetres.
    found = model.locate([[12.0, -30.5, 88.0]], source="a.nii.gz", target="b.nii.gz")
    # Each exam on the grid of the other, and a standard view of a structure.
    aligned = model.register("a.nii.gz", "b.nii.gz")
    view = model.crop_exam("b.nii.gz", template, "mandible", shape=64, margin=10)

The public names, which are those in ``__all__``:

======================  ==============================================================================================
Models                  :func:`load`, :class:`Model`
Templates               :func:`build_template`, :class:`Template`, :class:`Example`, :func:`merge_templates`
Use                     :func:`segment` and :class:`Segmentation`, :func:`statistics`, :func:`write_preview`,
                        :func:`locate` and :class:`Located`, :class:`Found`, :class:`MapCache`,
                        :class:`Registration` and :class:`Transform`, :class:`FollowUp`, :class:`Crop`,
                        :func:`evaluate_cohort`, :func:`compare_evaluations`
Other programs          :func:`write_labels`, :func:`write_transform`, :func:`write_displacements`
Trust                   :class:`Fit`, :class:`UnknownExamWarning`, :class:`Trust`, :func:`calibrate`
Images                  :func:`read_volume`, :func:`write_volume`, :class:`Volume`, :class:`Labels`, :class:`Grid`
Points, lines, boxes    :func:`read_markups`, :func:`write_markups`, :class:`Markups`, :class:`Point`,
                        :class:`Polyline`, :class:`Box`
Exams in folders        :func:`find_exams`, :class:`Cohort`, :class:`ExamFiles`
Datasets                :func:`prepare` with :class:`Options`, :class:`Dataset`, :func:`check_dataset`, :class:`Store`
Structures              :func:`read_structures`, :class:`NameMap`
Synthetic exams         :class:`PhantomCohort`, :func:`write_phantoms`
Errors                  :class:`DeepAtlasError`, :class:`DataError`, :class:`DataWarning`
======================  ==============================================================================================

Physical space is RAS+ millimetres throughout, and images are Hounsfield units. ``deepatlas_ops`` holds the kernels.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deepatlas.errors import DataError, DataWarning, DeepAtlasError
from deepatlas.version import __version__

if TYPE_CHECKING:
    from deepatlas.api import Model, load
    from deepatlas.compare.evaluations import compare_evaluations
    from deepatlas.evaluate.calibrate.run import calibrate
    from deepatlas.evaluate.cohort import evaluate_cohort
    from deepatlas.exams.cohort import Cohort, ExamFiles, find_exams
    from deepatlas.exams.phantoms import write_phantoms
    from deepatlas.exams.read import read_volume
    from deepatlas.intake.dataset.check import check_dataset
    from deepatlas.intake.dataset.folder import Dataset
    from deepatlas.intake.run.options import Options
    from deepatlas.intake.run.pipeline import prepare
    from deepatlas.intake.structures.name_map import NameMap
    from deepatlas.intake.structures.read import read_structures
    from deepatlas.io.codec import write_volume
    from deepatlas.io.export.labels import write_labels
    from deepatlas.io.export.markups import read_markups, write_markups
    from deepatlas.io.export.transform import write_displacements, write_transform
    from deepatlas.localize.crop import Crop
    from deepatlas.localize.follow import FollowUp
    from deepatlas.localize.found import Found
    from deepatlas.localize.measure import statistics
    from deepatlas.localize.points import Located, locate
    from deepatlas.localize.preview import write_preview
    from deepatlas.localize.register import Registration
    from deepatlas.localize.segment import Segmentation, segment
    from deepatlas.localize.template.build import build_template
    from deepatlas.localize.template.edit import merge_templates
    from deepatlas.localize.template.examples import Example
    from deepatlas.localize.template.file import Template
    from deepatlas.localize.trust.estimate import Trust
    from deepatlas.model.fit import Fit, UnknownExamWarning
    from deepatlas.model.map_cache import MapCache
    from deepatlas.phantom.patients import PhantomCohort
    from deepatlas.space.box import Box
    from deepatlas.space.grid import Grid
    from deepatlas.space.labels import Labels
    from deepatlas.space.markup import Markups, Point, Polyline
    from deepatlas.space.transform import Transform
    from deepatlas.space.volume import Volume
    from deepatlas.store.store import Store

# The module of each public name. A name is imported when it is first used, because most of them import PyTorch, and
# `import deepatlas` and `deepatlas --help` must stay fast.
_PUBLIC = {
    "Box": "deepatlas.space.box",
    "Cohort": "deepatlas.exams.cohort",
    "Crop": "deepatlas.localize.crop",
    "Dataset": "deepatlas.intake.dataset.folder",
    "ExamFiles": "deepatlas.exams.cohort",
    "Example": "deepatlas.localize.template.examples",
    "Fit": "deepatlas.model.fit",
    "FollowUp": "deepatlas.localize.follow",
    "Found": "deepatlas.localize.found",
    "Grid": "deepatlas.space.grid",
    "Labels": "deepatlas.space.labels",
    "Located": "deepatlas.localize.points",
    "MapCache": "deepatlas.model.map_cache",
    "Markups": "deepatlas.space.markup",
    "Model": "deepatlas.api",
    "NameMap": "deepatlas.intake.structures.name_map",
    "Options": "deepatlas.intake.run.options",
    "PhantomCohort": "deepatlas.phantom.patients",
    "Point": "deepatlas.space.markup",
    "Polyline": "deepatlas.space.markup",
    "Registration": "deepatlas.localize.register",
    "Segmentation": "deepatlas.localize.segment",
    "Store": "deepatlas.store.store",
    "Template": "deepatlas.localize.template.file",
    "Transform": "deepatlas.space.transform",
    "Trust": "deepatlas.localize.trust.estimate",
    "UnknownExamWarning": "deepatlas.model.fit",
    # Its method ``save`` needs the module that writes images.
    "Volume": "deepatlas.io.codec",
    "build_template": "deepatlas.localize.template.build",
    "calibrate": "deepatlas.evaluate.calibrate.run",
    "check_dataset": "deepatlas.intake.dataset.check",
    "compare_evaluations": "deepatlas.compare.evaluations",
    "evaluate_cohort": "deepatlas.evaluate.cohort",
    "find_exams": "deepatlas.exams.cohort",
    "load": "deepatlas.api",
    "locate": "deepatlas.localize.points",
    "merge_templates": "deepatlas.localize.template.edit",
    "prepare": "deepatlas.intake.run.pipeline",
    "read_markups": "deepatlas.io.export.markups",
    "read_structures": "deepatlas.intake.structures.read",
    "read_volume": "deepatlas.exams.read",
    "segment": "deepatlas.localize.segment",
    "statistics": "deepatlas.localize.measure",
    "write_displacements": "deepatlas.io.export.transform",
    "write_labels": "deepatlas.io.export.labels",
    "write_markups": "deepatlas.io.export.markups",
    "write_phantoms": "deepatlas.exams.phantoms",
    "write_preview": "deepatlas.localize.preview",
    "write_transform": "deepatlas.io.export.transform",
    "write_volume": "deepatlas.io.codec",
}

__all__ = [
    "Box",
    "Cohort",
    "Crop",
    "DataError",
    "DataWarning",
    "Dataset",
    "DeepAtlasError",
    "ExamFiles",
    "Example",
    "Fit",
    "FollowUp",
    "Found",
    "Grid",
    "Labels",
    "Located",
    "MapCache",
    "Markups",
    "Model",
    "NameMap",
    "Options",
    "PhantomCohort",
    "Point",
    "Polyline",
    "Registration",
    "Segmentation",
    "Store",
    "Template",
    "Transform",
    "Trust",
    "UnknownExamWarning",
    "Volume",
    "__version__",
    "build_template",
    "calibrate",
    "check_dataset",
    "compare_evaluations",
    "evaluate_cohort",
    "find_exams",
    "load",
    "locate",
    "merge_templates",
    "prepare",
    "read_markups",
    "read_structures",
    "read_volume",
    "segment",
    "statistics",
    "write_displacements",
    "write_labels",
    "write_markups",
    "write_phantoms",
    "write_preview",
    "write_transform",
    "write_volume",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'deepatlas' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
