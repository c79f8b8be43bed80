"""What ``deepatlas prepare`` can be asked for, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError
from deepatlas.intake.run.engines import ENGINES
from deepatlas.space.preprocess import CROPS


@dataclass(frozen=True)
class Options:
    """What ``deepatlas prepare`` can be asked for.

    ``crop``: as in training (None, "foreground", "midline"), for the training array alone. ``names``: a name map
    (JSON). ``series``: ``{exam: SeriesNumber or SeriesInstanceUID}``, an exam given by its id, PatientID or
    StudyInstanceUID. ``keep_ids``: name exams as the source does. ``strict``: stop at the first exam that does not
    go in. ``workers``: processes (default: one a core, as far as memory goes). ``shard``: ``(i, n)``, prepare the
    i-th of n parts (from 0) and leave the rest to others; ``merge`` then makes the dataset of all parts. ``engine``,
    ``address``: see :func:`~deepatlas.intake.run.engines.open_engine`. ``timeout``: seconds for one exam.
    """

    crop: str | None = None
    names: Path | None = None
    series: Mapping[str, str] = field(default_factory=dict)
    keep_ids: bool = False
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


@dataclass
class Summary:
    """How a run ended. ``refused`` are the exams of the source that are not in the dataset, by true name."""

    dataset: Path
    exams: int
    made: int
    labels: dict[str, int]
    refused: dict[str, str]
    files_refused: int
    seconds: float
    finished: bool = True

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "dataset": str(self.dataset), "seconds": round(self.seconds, 1)}
