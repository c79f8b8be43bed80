"""The public face: a trained model that segments and locates, and how to load one."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from deepatlas.localize.points import Located, locate
from deepatlas.localize.segment import segment
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine, Exam, read_exam
from deepatlas.space.volume import Volume


class Model(Engine):
    """A trained model: coordinates of exams, and everything that follows from them.

    An exam is a path (see :func:`deepatlas.read_volume`) or a :class:`~deepatlas.space.volume.Volume` in Hounsfield
    units; orientation, spacing and field of view are free.
    """

    def segment(self, exam: Exam, template: Template, threshold: float | None = None) -> Volume:
        """Carry a template's masks onto an exam (section 3.2.1).

        Args:
            exam: a CT.
            template: made for this model.
            threshold: the mask value that counts, in (0, 1]; None takes the template's own values, which keep volumes.

        Returns:
            A label image on the exam's own grid: uint8, or uint16 for ids above 255; 0 is the background.

        Raises:
            DeepAtlasError: the template belongs to another model, or the threshold is out of range.
            DataError: the exam cannot be read.
        """
        return segment(self, read_exam(exam), template, threshold=threshold)

    def locate(self, points_mm: Sequence | np.ndarray, source: Exam, target: Exam) -> Located:
        """Find points of one exam in another (section 2.2).

        Args:
            points_mm: ``[N, 3]`` RAS millimetres in ``source``.
            source: the exam that the points are in.
            target: the exam in which they are to be found.

        Returns:
            :class:`~deepatlas.localize.points.Located`: points in RAS millimetres of ``target``, and which were found.

        Raises:
            DeepAtlasError: points that are not ``[N, 3]`` and finite.
            DataError: an exam cannot be read.
        """
        return locate(self, points_mm, read_exam(source), read_exam(target))


def load(
    name: str | os.PathLike[str], device: str | None = None, *, refine: int = 0, average: int = 1
) -> Model:
    """Load a trained :class:`Model`: a shipped one by its name (``"headneck"``), a run folder or a model file.

    The arguments and errors are those of :meth:`Model.load <deepatlas.model.engine.Engine.load>`.
    """
    return Model.load(name, device=device, refine=refine, average=average)
