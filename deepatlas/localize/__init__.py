"""From coordinates to anatomy: templates, segmentations on the exam's own grid, and points."""

from __future__ import annotations

from deepatlas.localize.points import Located, locate
from deepatlas.localize.points_csv import read_points, write_located
from deepatlas.localize.segment import segment, segment_coordinates
from deepatlas.localize.template.build import build_template
from deepatlas.localize.template.estimate import LabelledExam, estimate_template
from deepatlas.localize.template.file import Template

__all__ = [
    "LabelledExam",
    "Located",
    "Template",
    "build_template",
    "estimate_template",
    "locate",
    "read_points",
    "segment",
    "segment_coordinates",
    "write_located",
]
