"""What a run was asked to train and to score on: the part of ``config.json`` beside the settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError
from deepatlas.exams.outputs import files_of_data, lies_in, refuse_overwriting, same_place
from deepatlas.exams.parts import Parts
from deepatlas.store.store import is_dataset


@dataclass(frozen=True)
class Request:
    """The data of a run, in plain types. None means that the run chooses."""

    # The run folder.
    out: str
    # What to train on: a data directory, dataset or store, or several directories. None makes a cohort of phantoms.
    data: str | list[str] | None = None
    # A split file for all of the data, in place of those that lie in the directories.
    split: str | None = None
    # The exams for training, validation and test, and those whose labels may be used, as a split file gave them when
    # the run began; with its path.
    parts: dict[str, Any] | None = None
    # A data directory of labelled exams to score on, and the ids to take from it.
    test: str | None = None
    test_exams: list[str] | None = None
    # Ids of the labelled training exams that the template is made from.
    template_exams: list[str] | None = None
    # Names of the structures to score; in a supervised run, to learn.
    structures: list[str] | None = None
    # Id of the exam that the atlas starts from.
    seed_exam: str | None = None
    # The model whose weights the run starts from: a run folder, a model file, or the name of a shipped model.
    init: str | None = None
    # The model that a supervised run fine-tunes, or whose network it trains from scratch, named as for ``init``. None
    # in a run that learns coordinates.
    model: str | None = None
    from_scratch: bool = False
    # In a run on a region of another model (section 5.2.4): the region, as Region.to_dict gives it, and the models of
    # the levels above, as Parent.to_dict does.
    region: dict[str, Any] | None = None
    parent: dict[str, Any] | None = None
    # Whether a bad exam stops the run instead of being skipped.
    strict: bool = False

    def split_parts(self) -> Parts | None:
        """The parts of the data, where a split file names them."""
        if self.parts is None:
            return None
        named = {key: None if ids is None else tuple(ids) for key, ids in self.parts.items() if key != "path"}
        return Parts(Path(self.parts["path"]), **named)

    def to_dict(self) -> dict[str, Any]:
        """The form in which ``config.json`` holds the request; ``Request(**values)`` reads it."""
        return asdict(self)


def refuse_writing_to_data(out: Path, data: Iterable[Path]) -> None:
    """Raise :class:`~deepatlas.errors.DataError` if a run in the folder ``out`` would write onto its data.

    A run folder may lie in a data directory, but it is not one, and a dataset holds nothing but its own files.
    """
    written = [path for path in out.glob("*") if path.is_file()] if out.is_dir() else []
    for root in data:
        if same_place(out, root):
            raise DataError(f"{out}: is the data itself; choose another --out for the run")
        if is_dataset(root) and lies_in(out, root):
            raise DataError(
                f"{out}: lies in the dataset {root}, which holds nothing else; choose another --out"
            )
        refuse_overwriting(written, files_of_data(root))
