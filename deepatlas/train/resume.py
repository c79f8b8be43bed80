"""Continue a run, whatever it learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepatlas.errors import DeepAtlasError
from deepatlas.train.experiment import Experiment
from deepatlas.train.folder import read_run
from deepatlas.train.region import RegionRun
from deepatlas.train.supervised import Supervised


def resume(
    folder: Path,
    assignments: Sequence[str] = (),
    *,
    device: str | None = None,
    quiet: bool = False,
    workers: int | None = None,
) -> Experiment:
    """Continue the run in ``folder``; see :meth:`Experiment.resume <deepatlas.train.experiment.Experiment.resume>`.

    ``workers`` is the number of processes that cut the crops of a region; a run of another kind refuses it.
    """
    _, request = read_run(Path(folder))
    if request.region is not None:
        run = RegionRun.resume(folder, assignments, device=device, quiet=quiet)
        run.workers = workers
        return run
    if workers is not None:
        raise DeepAtlasError(
            f"--workers is about regions of a model, and {folder} is no run of one; leave it out"
        )
    kind: type[Experiment] = Experiment if request.model is None else Supervised
    return kind.resume(folder, assignments, device=device, quiet=quiet)
