"""What a dataset holds before a run: exams that stay although the source lacks them, and none that leaves unasked.

A delivery of exams (``--add``) joins those that are there. Otherwise the source is meant to be the whole dataset, and
an exam leaves it only if that was said (``--prune``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.exams.checksums import file_sha256
from deepatlas.exams.exam_file import ExamFile, ExamRecord
from deepatlas.intake.dataset.folder import MANIFEST, exam_path, label_table, read_dataset_json
from deepatlas.intake.dataset.manifest import Manifest, RefusalLine, SeriesLine
from deepatlas.intake.privacy.identity import Identity, private_folder, readable_id
from deepatlas.intake.run.finish import KEYS, LEFT_OUT, REFUSED, Entry, Kept
from deepatlas.intake.run.journal import Journals
from deepatlas.intake.run.options import Options
from deepatlas.intake.run.outcome import Outcome, Status
from deepatlas.io.dicom.found import Refusal

# Exams that a message names.
_NAMED = 3


class Stock:
    """The exam files of the dataset ``dst``, as they are when it is made.

    Attributes: ``ids``; ``keys``, the rows of ``key.csv`` by id.
    """

    def __init__(self, dst: Path, identity: Identity) -> None:
        self.dst, self._identity = dst, identity
        self.ids = {path.stem for path in (dst / "exams").glob("*/[!.]*.h5")}
        self.keys = {row[0]: row for row in identity.read_csv(KEYS)}

    # -- what the files hold ----------------------------------------------------------------------------

    def record(self, exam_id: str) -> ExamRecord:
        """The entry of an exam in the manifest; if the manifest is not of its file, it is made again from the file.

        Raises :class:`~deepatlas.errors.DataError` for a file that is damaged.
        """
        path, known = exam_path(self.dst, exam_id), self._listed.get(exam_id)
        if known is not None and path.stat().st_size == known.bytes:
            # In a dataset that a run left unfinished, a file may be newer than its line.
            if self._finished or ExamFile(path).content == known.content:
                return known
        try:
            with ExamFile(path) as exam:
                exam.verify()
                return exam.record()
        except DataError as error:
            raise DataError(
                f"{error}; it stays with --add, but cannot be read: put it back from a copy, or delete it"
            ) from error

    def lists(self, exam_id: str) -> bool:
        """Whether the manifest lists an exam."""
        return exam_id in self._listed

    def labels(self) -> dict[str, int]:
        """The label table of all exams that are there."""
        try:
            return label_table(self.record(exam_id) for exam_id in sorted(self.ids))
        except DataError as error:
            raise DataError(
                f"{self.dst}: {error}; finish the run that was stopped, with its own SRC, before --add"
            ) from error

    def outcome(self, exam_id: str, journals: Journals) -> Outcome:
        """The outcome from which the manifest lists an exam that stays."""
        record = self.record(exam_id)
        if found := journals.made(exam_id, record.content):
            return found
        return Outcome(
            exam_id, "", Status.DONE, record=record.as_dict(), series=self._series.get(exam_id, [])
        )

    @cached_property
    def _finished(self) -> bool:
        """Whether the manifest is that of a finished dataset, byte by byte."""
        with suppress(DataError, OSError, KeyError, TypeError):
            known = read_dataset_json(self.dst)["files"][MANIFEST]
            return known["sha256"] == file_sha256(self.dst / MANIFEST)
        return False

    @cached_property
    def _listed(self) -> dict[str, ExamRecord]:
        with suppress(DataError), Manifest(self.dst / MANIFEST, read_only=True) as manifest:
            return {exam.id: exam for exam in manifest.exams()}
        return {}

    @cached_property
    def _series(self) -> dict[str, list[SeriesLine]]:
        found: dict[str, list[SeriesLine]] = {}
        with suppress(DataError), Manifest(self.dst / MANIFEST, read_only=True) as manifest:
            for exam_id, line in manifest.series():
                found.setdefault(exam_id, []).append(line)
        return found

    # -- what may leave ---------------------------------------------------------------------------------

    def missing(
        self, src: Path, entries: Sequence[Entry], refusals: Iterable[Refusal], options: Options
    ) -> set[str]:
        """The ids of the exams that ``src`` lacks, if the options say what becomes of them.

        Raises :class:`~deepatlas.errors.DataError` if they do not; if with ``prune`` all exams would leave, or some
        that may be in a part of ``src`` that cannot be read now; if with ``add`` the exams do not fit together; and
        if the ids of the dataset are of another kind than those that this run gives.
        """
        gone = self.ids - {e.id for e in entries}
        if not gone:
            return gone
        self._refuse_other_ids(entries, options.keep_ids)
        doubtful = [r for r in refusals if r.passing]
        if options.add:
            self._refuse_other_crop(gone, options.crop)
        elif doubtful:
            raise DataError(
                f"{self.dst}: {len(gone)} of its exams are not found in {src}, where {len(doubtful)} files or folders "
                f"could not be read (first: {doubtful[0].name}: {doubtful[0].reason}); mend that and run again: "
                "nothing was removed"
            )
        elif options.prune and len(gone) == len(self.ids):
            raise DataError(
                f"{self.dst}: holds {len(gone)} exams, none of which is in {src}, so that --prune would remove all; "
                f"choose another DST, or delete this one and {private_folder(self.dst).name} first"
            )
        elif not options.prune:
            all_of_them = len(gone) == len(self.ids)
            which = (
                f"{len(gone)} exams, none of which is" if all_of_them else f"{len(gone)} exams that are not"
            )
            raise DataError(
                f"{self.dst}: holds {which} in {src}, or cannot be used there ({self.named(gone)}); give --add to keep "
                f"them, or {'choose another DST' if all_of_them else '--prune to remove them'}: nothing was changed"
            )
        return gone

    def named(self, ids: Iterable[str]) -> str:
        """Some of the exams ``ids``, for a message on the screen, with their names in the source if these are known."""
        ordered = sorted(ids)
        shown = [
            f"{i} = {self.keys[i][1]}" if i in self.keys and self.keys[i][1] != i else i
            for i in ordered[:_NAMED]
        ]
        return ", ".join(shown) + (" …" if len(ordered) > _NAMED else "")

    def _refuse_other_ids(self, entries: Sequence[Entry], keep_ids: bool) -> None:
        """Refuse a dataset whose ids are hashes if this run keeps the names of the source, and the reverse."""
        pairs = [(row[0], row[3], row[1]) for i, row in self.keys.items() if i in self.ids and len(row) > 3]
        pairs += [(i, e.key, e.name) for e in entries for i in (self._hash(e.key), readable_id(e.name))]
        hashed = any(i in self.ids and i == self._hash(key) and readable_id(name) for i, key, name in pairs)
        named = any(i in self.ids and i != self._hash(key) for i, key, name in pairs)
        if keep_ids and hashed and not named:
            raise DataError(
                f"{self.dst}: was prepared without --keep-ids, so that its exams have other ids; leave --keep-ids out, "
                "or choose another DST"
            )
        if not keep_ids and named:
            raise DataError(
                f"{self.dst}: was prepared with --keep-ids, so that its exams have other ids; give --keep-ids, or "
                "choose another DST"
            )

    def _hash(self, key: str) -> str:
        return self._identity.exam_id(key)

    def _refuse_other_crop(self, ids: Iterable[str], crop: str | None) -> None:
        if other := next((r for i in sorted(ids) if (r := self.record(i)).crop != crop), None):
            given = f"give --crop {other.crop}" if other.crop else "leave --crop out"
            raise DataError(
                f"{self.dst}: its exams were prepared with crop={other.crop}, not crop={crop}; {given} with --add"
            )

    # -- what stays -------------------------------------------------------------------------------------

    def kept(
        self, ids: Iterable[str], entries: Sequence[Entry], journals: Journals, known: Callable[[str], bool]
    ) -> Kept:
        """Everything about the exams ``ids`` that the files of the finished dataset state, and earlier refusals.

        ``known`` tells whether a name is one of this source, whose refusals are those of this run.
        """
        ids = dict.fromkeys(sorted(ids))
        keys = [self.keys[i] for i in ids if i in self.keys]
        before = [row for row in self._identity.read_csv(REFUSED) if len(row) == 3]
        rows = [(row[0], row[1], row[2]) for row in before if not known(row[0])]
        again = {self._identity.alias(row[0]) for row in before if known(row[0])} | {e.id for e in entries}
        lines: list[RefusalLine] = []
        with suppress(DataError), Manifest(self.dst / MANIFEST, read_only=True) as manifest:
            lines = [line for line in manifest.refusals() if line.name not in again]
        omitted = [row for row in self._identity.read_csv(LEFT_OUT) if row[0] in ids]
        return Kept([self.outcome(i, journals) for i in ids], keys, rows, lines, omitted)
