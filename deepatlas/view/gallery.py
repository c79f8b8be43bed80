"""The exams that the page may show: those that were given, under ids that say nothing, and no other file."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.exams.cohort import ExamFiles, named_exams
from deepatlas.exams.kind import Kind
from deepatlas.io.codec import voxel_file


@dataclass(frozen=True)
class GivenExam:
    """An exam that was given.

    Attributes:
        id: random letters, by which the page asks for it.
        name: the name that the page shows.
        files: where it is.
        root: the real path that all of its files must lie in: the folder that was given, or the file itself.
    """

    id: str
    name: str
    files: ExamFiles
    root: Path

    def check(self) -> ExamFiles:
        """The files, after a check that each of them lies within what was given once links are followed.

        Raises :class:`~deepatlas.errors.DataError` otherwise.
        """
        for path in _all_files(self.files):
            real = Path(os.path.realpath(path))
            if real != self.root and self.root not in real.parents:
                raise DataError(
                    f"{self.name}: {path.name} is a link that leads out of what was given; give the exam itself"
                )
        return self.files


class Gallery:
    """The exams of a page in the order in which they are listed.

    Attributes:
        exams: by their ids.
        skipped: why folders of a data directory cannot be used, by their names.
    """

    def __init__(self, arguments: Iterable[str | os.PathLike[str]]) -> None:
        """List the exams; no image is read.

        Args:
            arguments: each as the EXAM of ``deepatlas segment``.

        Raises:
            DataError: an argument holds no exam, or two exams have one name.
        """
        self.exams: dict[str, GivenExam] = {}
        self.skipped: dict[str, str] = {}
        given = [Path(argument) for argument in arguments]
        for argument in given:
            if not argument.exists():
                raise DataError(f"{argument}: no such file or folder; check the path")
        # All at once, which refuses two exams of one name.
        named_exams(given)
        names = set()
        for argument in given:
            root = Path(os.path.realpath(argument))
            for name, files in named_exams([argument], self.skipped).items():
                if name not in names:
                    names.add(name)
                    exam = GivenExam(secrets.token_urlsafe(9), name, files, root)
                    self.exams[exam.id] = exam

    def __iter__(self) -> Iterator[GivenExam]:
        return iter(self.exams.values())

    def __len__(self) -> int:
        return len(self.exams)

    def named(self, name: str) -> GivenExam | None:
        """The exam of a name; None if there is none."""
        return next((exam for exam in self if exam.name == name), None)


def _all_files(files: ExamFiles) -> Iterator[Path]:
    """The image of an exam: its file, and the one that its header names; or the folder and everything in it."""
    yield files.ct
    if files.kind is Kind.IMAGE and (other := voxel_file(files.ct)) is not None:
        yield other
    if files.ct.is_dir():
        for place, folders, names in os.walk(files.ct):
            yield from (Path(place, name) for name in (*folders, *names))
