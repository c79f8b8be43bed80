"""The experiments of a comparison: which folders they are, what each is called, and what was evaluated in it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError
from deepatlas.evaluate.read import read_rows, read_summary
from deepatlas.evaluate.rows import Row

METRICS = "metrics.csv"
SUMMARY = "summary.json"
# Where a run keeps its evaluation, and its evaluation with refined coordinates.
OF_RUN = "evaluation"


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: its folder, the rows of ``metrics.csv``, and the content of ``summary.json``."""

    folder: Path
    rows: list[Row]
    summary: Mapping[str, Any]

    @property
    def conventions(self) -> Mapping[str, Any]:
        """How the metrics were computed. An older version left some of the entries out."""
        found = self.summary.get("conventions")
        return found if isinstance(found, dict) else {}

    @property
    def cohort(self) -> str:
        """The name of the data directory that was evaluated."""
        return Path(str(self.summary.get("data") or self.folder)).name


@dataclass(frozen=True)
class Experiment:
    """An experiment by its display name. ``evaluations`` has one entry for each test cohort, by the cohort's name.

    With a single cohort in the comparison, that name is empty, since a copy of the data may lie in another folder.
    """

    name: str
    evaluations: dict[str, Evaluated] = field(default_factory=dict)


def evaluation_folder(path: Path) -> Path:
    """The folder of the evaluation that ``path`` is, or that the run ``path`` holds.

    Raises :class:`~deepatlas.errors.DataError` where there is none.
    """
    for folder in (path, path / OF_RUN):
        if (folder / METRICS).is_file():
            if not (folder / SUMMARY).is_file():
                raise DataError(f"{folder}: has {METRICS} and no {SUMMARY}; evaluate again")
            return folder
    if not path.exists():
        raise DataError(f"{path}: no such folder; give a folder of `deepatlas evaluate --out`, or a run")
    what = "the run has no evaluation" if (path / "config.json").is_file() else "holds no evaluation"
    raise DataError(
        f"{path}: {what} ({METRICS} and {SUMMARY}); make one with `deepatlas evaluate … --out DIR`, and give DIR"
    )


def name_and_path(argument: str) -> tuple[str | None, Path]:
    """The parts of ``NAME=PATH``. What exists as it stands is a path, even with an equals sign in it."""
    path = Path(argument)
    if path.exists() or "=" not in argument:
        return None, path
    name, _, rest = argument.partition("=")
    if not name or not rest:
        raise DataError(f"{argument!r}: give NAME=PATH, with a name and a path")
    return name, Path(rest)


def read_experiments(given: Sequence[tuple[str | None, Path]]) -> list[Experiment]:
    """Read the evaluations, and put those of one name together.

    Args:
        given: the display name and the path of every evaluation or run. Without a name an experiment is called as its
            folder, with as many of the folders above as tell it from the others. Several paths of one given name are
            its evaluations on several test cohorts.

    Raises:
        DataError: there are fewer than two experiments, a folder is given twice or holds no evaluation, a file cannot
            be read, or the evaluations of one experiment are of one cohort.
    """
    folders = [evaluation_folder(path) for _, path in given]
    seen: dict[str, Path] = {}
    for (_, path), folder in zip(given, folders, strict=True):
        real = os.path.realpath(folder)
        if real in seen:
            raise DataError(f"{path}: is the same evaluation as {seen[real]}; give every evaluation once")
        seen[real] = path
    names = _names([name for name, _ in given], folders)
    if len(set(names)) < 2:
        raise DataError(
            f"compare: two experiments are needed, got {len(set(names))}; give another run or evaluation"
        )
    several = len(set(names)) < len(names)
    experiments: dict[str, Experiment] = {}
    for name, folder in zip(names, folders, strict=True):
        found = Evaluated(folder, read_rows(folder / METRICS), read_summary(folder / SUMMARY))
        cohort = found.cohort if several else ""
        own = experiments.setdefault(name, Experiment(name)).evaluations
        if cohort in own:
            raise DataError(
                f"{folder}: {name} has two evaluations of {cohort or 'one cohort'}, the other in "
                f"{own[cohort].folder}; give them different names"
            )
        own[cohort] = found
    return list(experiments.values())


def _names(given: Sequence[str | None], folders: Sequence[Path]) -> list[str]:
    """The display name of every folder. Those that were not given are made of the ends of paths, and are unique."""
    parts = [_parts(folder) for folder in folders]
    made = {i: 1 for i, name in enumerate(given) if name is None}
    while True:
        names = [_label(parts[i], made[i]) if i in made else str(name) for i, name in enumerate(given)]
        counts = Counter(names)
        clash = [i for i in made if counts[names[i]] > 1 and made[i] < len(parts[i][0])]
        if not clash:
            return names
        for i in clash:
            made[i] += 1


def _parts(folder: Path) -> tuple[list[str], str]:
    """The parts of the path of a run, and what its evaluation is called beyond ``evaluation``."""
    path = Path(os.path.abspath(folder))
    suffix = ""
    if path.name == OF_RUN or path.name.startswith(f"{OF_RUN}-"):
        suffix = path.name[len(OF_RUN) + 1 :]
        path = path.parent
    return [p for p in path.parts if p != path.anchor] or ["/"], suffix


def _label(parts: tuple[list[str], str], count: int) -> str:
    name = "/".join(parts[0][-count:])
    return f"{name} ({parts[1]})" if parts[1] else name
