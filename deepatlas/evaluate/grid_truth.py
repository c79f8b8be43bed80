"""What the grid of a network leaves of the truth: the Dice of true masks that went to that grid and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from deepatlas.evaluate.metrics.dice import dice
from deepatlas.evaluate.statistics import statistics
from deepatlas.exams.cohort import ExamFiles
from deepatlas.exams.joined import Data, find_cohort
from deepatlas.exams.selection import Selection
from deepatlas.localize.probabilities import label_probabilities
from deepatlas.model.engine import Engine
from deepatlas.model.structures import Structures
from deepatlas.names.meet import meeting
from deepatlas.space.check_input import check_input
from deepatlas.space.constants import FINE_SIZE
from deepatlas.space.labels import Labels
from deepatlas.space.preprocess import labels_to_grid, to_fine_grid
from deepatlas.space.volume import Volume


def grid_truth(
    model: Engine,
    data_dir: Data,
    exams: Sequence[str],
    *,
    split: str | Path | None = None,
) -> dict[str, Any]:
    """The Dice between the truth and the truth that a perfect network of this grid would answer with.

    True masks are brought to the grid of the network's input as the training sees them, and from there to the exam's
    own grid as the model's probabilities are. No supervised result on this grid is much better than that.

    Args:
        model: a model that was trained on labels.
        data_dir: a data directory or dataset, or several.
        exams: ids of labelled exams. Those that cannot be used are left out.
        split: a split file; None takes the ``splits.json`` of the data, if there is one.

    Returns:
        ``dice`` (mean over structures), ``dice_per_structure``, and ``size``, the voxels of the grid along each axis.

    Raises:
        DataError: an exam is unknown, or has no segmentation.
    """
    assert model.structures is not None
    cohort = find_cohort(data_dir, split)
    selection = Selection(cohort, exams)
    labels = selection.cohort.labels
    met = meeting(model.structures.names, labels, str(selection.cohort.labels_path))
    structures = model.structures.select([name for name in model.structures.names if name in met])
    # The ids of the data take the place of the model's, so that both masks have the same.
    own = [labels[met[name]] for name in structures.names]
    truth = Structures(structures.names, tuple(own), structures.sizes, structures.overlaps)
    scores: dict[str, list[float]] = {name: [] for name in truth.names}

    def score(files: ExamFiles, ct: Volume, reference: Labels) -> None:
        kept = _there_and_back(model, ct, reference, truth)
        for name, identity in truth.labels.items():
            mask = reference.mask(identity)
            if mask.any():
                scores[name].append(dice(mask, kept.mask(identity)))

    for _ in selection.use(score):
        pass
    means = {name: statistics(values).mean for name, values in scores.items() if values}
    return {
        "size": model.size,
        "dice": statistics(value for value in means.values() if value is not None).mean,
        "dice_per_structure": means,
    }


def _there_and_back(model: Engine, ct: Volume, reference: Labels, truth: Structures) -> Labels:
    """The truth on the grid of the network's input, as training sees it, and back on the grid of the exam."""
    seen, _ = check_input(ct, model.intensity)
    fine = to_fine_grid(seen, model.crop, model.intensity)
    drawn, block = labels_to_grid(reference, fine.grid), FINE_SIZE // model.size
    parts = [F.avg_pool3d(torch.from_numpy(drawn.mask(i)).float()[None], block)[0] for i in truth.ids]
    return label_probabilities(torch.stack(parts), fine.grid.pooled(block), ct.grid, truth)
