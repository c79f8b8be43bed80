"""Continue a run, whatever it learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepatlas.train.experiment import Experiment
from deepatlas.train.folder import read_run
from deepatlas.train.region import RegionRun
from deepatlas.train.supervised import Supervised


def resume(
    folder: Path, assignments: Sequence[str] = (), *, device: str | None = None, quiet: bool = False
) -> Experiment:
    """Continue the run in ``folder``; see :meth:`Experiment.resume <deepatlas.train.experiment.Experiment.resume>`."""
    _, request = read_run(Path(folder))
    kind: type[Experiment] = Experiment if request.model is None else Supervised
    kind = RegionRun if request.region is not None else kind
    return kind.resume(folder, assignments, device=device, quiet=quiet)
