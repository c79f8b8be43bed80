"""Whether an exam is stored mirrored or upside down, as far as its anatomy shows that.

The network gives coordinates to a mirrored patient as to any other. What shows a mirror image is asymmetry: the liver,
the heart and the stomach fit the atlas on one side alone. So the exam and its mirror image are both compared with the
atlas, and the alarm is raised where the mirror image fits clearly better. A head or a neck is symmetric; there both
fit equally well, and nothing can be said. It may also be a patient whose organs lie on the other side.

Where the atlas itself looks like its mirror image, as that of heads and necks does, no exam is compared with its own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch.nn.functional as F

from deepatlas.index.alarms import MIRRORED, TURNED
from deepatlas.model.engine import Engine
from deepatlas.model.exam_map import ExamMap
from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import denormalize
from deepatlas.space.volume import Volume

# By how much the fit of the flipped exam must exceed that of the exam. The fits of the two sides of a symmetric body
# differ by less.
MARGIN = 0.04
# An exam that the model does not know may be anything, so that more is asked of its flipped copy.
_MARGIN_UNKNOWN = 0.15
# How far the fits of the atlas and of its mirror image must lie apart before a mirrored exam can be told. The atlas is
# a mean, and shows less of a side than an exam. Fits of mirrored phantoms are .05 to .11 lower, and that of their
# atlas .04; of exams of heads and necks .00 to .02, and that of their atlas .01.
_SIDED = 0.02


def shows_sides(model: Engine) -> bool:
    """Whether the anatomy of a model tells left from right; two passes of the network."""
    side = model.size
    # In the window that the network sees, of whatever unit the exams are.
    array = denormalize(F.adaptive_avg_pool3d(model.atlas[:1, :1].float().cpu(), side)[0, 0].numpy())
    # The network sees no millimetres.
    grid = Grid((side,) * 3, np.eye(4))
    own, mirrored = (model.fit_of(Volume(np.ascontiguousarray(a), grid)) for a in (array, array[..., ::-1]))
    return abs(own - mirrored) >= _SIDED


def flip_alarm(model: Engine, found: ExamMap, sides: bool = True) -> str | None:
    """What seems to be exchanged in an exam, such as ``"left-right"``; None where nothing is.

    It costs one pass of the network if the anatomy has ``sides`` (see :func:`shows_sides`), and three more for an exam
    that the model does not know. Of such an exam the flipped copy must be one that the model knows: another part of
    the body may fit better upside down, and is not upside down for that.
    """
    known = found.fit.known is not False
    best, name = found.fit.value + MARGIN, None
    if not known:
        best = max(found.fit.value + _MARGIN_UNKNOWN, found.fit.threshold or 0.0)
    for candidate, axes in (*((MIRRORED,) if sides else ()), *(() if known else TURNED)):
        value = _fit_of_flipped(model, found, axes)
        if value > best:
            best, name = value, candidate
    return name


def _fit_of_flipped(model: Engine, found: ExamMap, axes: tuple[int, ...]) -> float:
    array = np.ascontiguousarray(np.flip(np.asarray(found.hu.array), axes))
    return model.fit_of(replace(found.hu, array=array))
