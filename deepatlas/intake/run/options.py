"""The options of ``deepatlas prepare``, and the summary of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepatlas.engines import ENGINES
from deepatlas.errors import DataError
from deepatlas.space.preprocess import CROPS


@dataclass(frozen=True)
class Options:
    """The options of ``deepatlas prepare``.

    Attributes:
        crop: None, "foreground" or "midline", as in training. It concerns the training array alone.
        names: the path of a name map (JSON).
        series: ``{exam: SeriesNumber or SeriesInstanceUID}``, an exam given by its id, PatientID or StudyInstanceUID.
        keep_ids: name exams as the source does.
        add: exams that are in the dataset and not in the source stay in it.
        prune: exams that are in the dataset and not in the source, or can be used there no longer, are removed from it.
        strict: stop at the first exam that is refused.
        workers: number of processes (default: one for each core, as far as the memory suffices).
        shard: ``(i, n)`` prepares the i-th of n parts, counted from 0.
        merge: make the dataset of all parts.
        engine, address: see :func:`~deepatlas.engines.open_engine`.
        timeout: seconds that one exam may take.
        progress: show bars, and why files were refused, on stderr.
    """

    crop: str | None = None
    names: Path | None = None
    series: Mapping[str, str] = field(default_factory=dict)
    keep_ids: bool = False
    add: bool = False
    prune: bool = False
    strict: bool = False
    workers: int | None = None
    shard: tuple[int, int] | None = None
    merge: bool = False
    engine: str = "processes"
    address: str | None = None
    timeout: float = 3600.0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise DataError(f"crop must be one of {CROPS}, got {self.crop!r}")
        if self.engine not in ENGINES:
            raise DataError(f"--engine must be one of {', '.join(ENGINES)}, got {self.engine!r}")
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise DataError(f"--shard I/N: I counts from 0 to N - 1, got {self.shard[0]}/{self.shard[1]}")
        if self.shard is not None and self.merge:
            raise DataError("--merge comes after all --shard runs, in a run of its own")
        if self.add and self.prune:
            raise DataError(
                "--add keeps the exams that SRC lacks, and --prune removes them; give one of the two"
            )


@dataclass
class Summary:
    """How a run ended.

    ``refused`` maps the true names of the exams that are not in the dataset to the reasons. ``exams`` counts all exams
    of the dataset, ``made`` those that this run prepared, and ``kept`` those that are not of its source.
    """

    dataset: Path
    exams: int
    made: int
    labels: dict[str, int]
    refused: dict[str, str]
    files_refused: int
    seconds: float
    finished: bool = True
    kept: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "dataset": str(self.dataset), "seconds": round(self.seconds, 1)}
