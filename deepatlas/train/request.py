"""What a run was asked to train and to score on: the part of ``config.json`` beside the settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Request:
    """The data of a run, in plain types. None means that the run chooses."""

    # The run folder.
    out: str
    # What to train on: a data directory, dataset or store. None makes a cohort of phantoms.
    data: str | None = None
    # A data directory of labelled exams to score on, and the ids to take from it.
    test: str | None = None
    test_exams: list[str] | None = None
    # Ids of the labelled training exams that the template is made from.
    template_exams: list[str] | None = None
    # Names of the structures to score.
    structures: list[str] | None = None
    # Id of the exam that the atlas starts from.
    seed_exam: str | None = None
    # Whether a bad exam stops the run instead of being skipped.
    strict: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The form in which ``config.json`` holds the request; ``Request(**values)`` reads it."""
        return asdict(self)
