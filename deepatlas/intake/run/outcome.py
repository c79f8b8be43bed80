"""What became of an exam that a worker prepared."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from deepatlas.intake.dataset.manifest import SeriesLine
from deepatlas.io.dicom.found import Refusal


class Status(StrEnum):
    """How the preparation of an exam ended. The values are stored in journals."""

    DONE = "done"
    # For a reason that lies in its files.
    REFUSED = "refused"
    # For a reason that may not last: the exam is tried again in the next run.
    FAILED = "failed"
    # The dataset cannot be written.
    FATAL = "fatal"


@dataclass
class Outcome:
    """What became of an exam.

    ``refusals`` have the true names and reasons and stay in the private folder; their ``public`` reasons, ``record``
    and ``series`` get into the dataset. ``error`` is the message of a fatal outcome. ``against`` is the exam of the
    dataset because of which the exam was refused; it counts as long as that one is there. ``left_out`` has the names
    in the source of structures that were left out, and the reasons; like the refusals it stays private.
    """

    id: str
    fingerprint: str
    status: Status
    record: dict[str, Any] | None = None
    series: list[SeriesLine] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    error: str = ""
    # How long the exam took.
    seconds: float = 0.0
    against: str = ""
    left_out: list[tuple[str, str]] = field(default_factory=list)
