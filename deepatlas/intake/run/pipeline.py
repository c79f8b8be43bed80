"""``deepatlas prepare``: turn a source into a dataset, each exam completely or not at all, and none of them twice.

A run finds the files, reads the headers that are new, chooses the series of each exam, decides the ids of structures,
writes the exam files that are missing, and finally makes manifest, training array and report of them.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path

from deepatlas.engines import Died, default_workers, open_engine
from deepatlas.errors import DataError
from deepatlas.intake.dataset.folder import exam_path, read_dataset_json
from deepatlas.intake.digest import digest
from deepatlas.intake.find.catalogue import Catalogue
from deepatlas.intake.find.studies import other_series
from deepatlas.intake.find.walk import scratch_folder
from deepatlas.intake.privacy.identity import Identity
from deepatlas.intake.run import work
from deepatlas.intake.run.finish import Entry, Kept, as_record, finish, read_state, write_keys
from deepatlas.intake.run.journal import Journals
from deepatlas.intake.run.options import Options, Summary
from deepatlas.intake.run.outcome import Outcome, Status
from deepatlas.intake.run.places import check_places, clear_leftovers, leaving_nothing, may_write
from deepatlas.intake.run.planning import Planner, progress_bar
from deepatlas.intake.run.stock import Stock
from deepatlas.intake.run.twins import Twins
from deepatlas.intake.run.work import ExamJob
from deepatlas.io.dicom.found import Refusal, Subject
from deepatlas.locks import held
from deepatlas.store.store import Store

# Number of reasons on the screen. All are in the private folder and, without names, in the report.
_SHOWN = 20


def prepare(
    src: str | os.PathLike[str], dst: str | os.PathLike[str], options: Options | None = None
) -> Summary:
    """Turn ``src`` (a folder or an archive of exams) into the dataset ``dst``, or bring ``dst`` up to date.

    Exams that have not changed in ``src`` stay in ``dst`` as they are. Those that are not in ``src`` stay with
    ``options.add`` and are removed with ``options.prune``; without either, nothing is done. A run that was stopped,
    even by a power cut, continues when it is called again.

    Raises :class:`~deepatlas.errors.DataError`, one line, for a source or destination that cannot be used, a source
    without exams, or without exams that are in ``dst`` (unless the options say what becomes of them), a disk that
    cannot be written, a wrong name map, and with ``strict`` for the first exam that is refused.
    """
    return _Run(Path(src), Path(dst), options or Options()).run()


class _Run:
    def __init__(self, src: Path, dst: Path, options: Options) -> None:
        self.src, self.dst, self.options = src, dst, options
        self.began = time.monotonic()
        self.made = 0
        self.planner: Planner | None = None

    def run(self) -> Summary:
        check_places(self.src, self.dst, self.options.names)
        # Shards share the folders, so that none of them may remove what another one has made.
        shared = self.options.shard is not None
        with leaving_nothing(self.dst, lambda: shared or bool(self.planner and self.planner.found)):
            return self._run()

    def _run(self) -> Summary:
        options = self.options
        may_write(self.dst)
        self.identity = Identity.open(self.dst)
        private = self.identity.folder
        with ExitStack() as stack:
            busy = "another `prepare` works on this dataset; wait until it has finished"
            stack.enter_context(held(private / "lock", busy, shared=options.shard is not None))
            if options.shard:
                stack.enter_context(held(private / "lock-{}-of-{}".format(*options.shard), busy))
            else:
                clear_leftovers(self.dst)
            scratch = stack.enter_context(scratch_folder(private))
            workers = options.workers or default_workers()
            self.engine = stack.enter_context(
                open_engine(
                    options.engine,
                    workers=workers,
                    address=options.address,
                    timeout=options.timeout,
                    preload=work.__name__,
                )
            )
            self.planner = Planner(self.src, self.dst, options, self.identity, self.engine)
            # The first of several shards reads the headers while the others wait for them.
            with held(private / "lock-headers", None):
                catalogue = stack.enter_context(closing(Catalogue(scratch, private)))
                entries = self.planner.run(catalogue, scratch)
                self.stock = Stock(self.dst, self.identity)
                self.missing = self.stock.missing(self.src, entries, self.planner.refusals, options)
                labels = self.planner.labels(entries, self.stock.labels() if options.add else {})
                # So that a run that is stopped leaves no exam of which nobody knows whose it is.
                rows = self.stock.keys
                write_keys(self.identity, entries, [rows[i] for i in self.stock.ids & rows.keys()])
                mine = [e for e in entries if self._is_mine(e)]
                if options.shard:
                    catalogue.detach([e.key for e in mine])
            journals = stack.enter_context(Journals(private, options.shard))
            todo = [e for e in mine if not self._is_done(e, journals)]
            again = {e.id for e in todo}
            if options.strict:
                for outcome in journals.outcomes(e for e in mine if e.id not in again):
                    stop_at_refusal(outcome)
            lost = set()
            if not options.shard:
                lost = self._refuse_loss((e for e in entries if e.id not in again), journals)
            if options.merge and todo:
                raise DataError(
                    f"{self.dst}: {len(todo)} of {len(entries)} exams are not prepared yet; run the shards that did "
                    "not finish again, or prepare without --merge"
                )
            if options.shard:
                self._make(catalogue, todo, labels, journals)
                return self._summary(len(mine), labels, journals, mine, finished=False)
            stay, leave = self._parted(lost)
            if leave and options.progress:
                print(f"{len(leave)} exams are not in {self.src} and are removed", file=sys.stderr)
            refusals = sorted((r.name, r.kind, r.reason, r.public) for r in self.planner.refusals)
            state = partial(digest, [(e.id, e.fingerprint) for e in entries], refusals)
            if (
                not todo
                and not leave
                and read_state(private) == state(sorted(stay))
                and (exams := self._exams())
            ):
                return self._summary(exams, labels, journals, entries, kept=len(stay))
            self._make(catalogue, todo, labels, journals)
            stay, leave = self._parted(self._refuse_loss(entries, journals))
            names = {r.name for r in self.planner.refusals} | {e.name for e in entries}
            kept = Kept()
            if options.add:
                kept = self.stock.kept(
                    stay, entries, journals, lambda n: n in names or bool(catalogue.stat(n))
                )
            if leave:
                # Until the run ends, this is not a finished dataset.
                (self.dst / "dataset.json").unlink(missing_ok=True)
            exams = finish(
                self.dst,
                scratch,
                self.identity,
                entries,
                journals.outcomes(entries),
                self.planner.refusals,
                kept,
                state=state(sorted(stay)),
                bar=partial(progress_bar, options),
            )
            # Last, so that nothing has gone if the dataset cannot be finished.
            for exam in leave:
                exam_path(self.dst, exam).unlink(missing_ok=True)
            return self._summary(exams, labels, journals, entries, kept=len(stay))

    # -- the steps ------------------------------------------------------------------------------------------

    def _is_mine(self, entry: Entry) -> bool:
        if self.options.shard is None:
            return True
        index, count = self.options.shard
        return int(digest(entry.id), 16) % count == index

    def _is_done(self, entry: Entry, journals: Journals) -> bool:
        outcome = journals.get(entry)
        if outcome is not None and outcome.against:
            return self.options.add and exam_path(self.dst, outcome.against).exists()
        if outcome is None or (outcome.status is Status.FAILED and not self.options.merge):
            return False
        if outcome.status is not Status.DONE:
            return True
        with suppress(OSError):
            return exam_path(self.dst, entry.id).stat().st_size == outcome.record["bytes"]  # type: ignore[index]
        return False

    def _parted(self, lost: set[str]) -> tuple[set[str], set[str]]:
        """Those that stay and those that leave of the exams that the source lacks, or gives no longer (``lost``)."""
        ids = self.missing | lost
        return (ids, set()) if self.options.add else (set(), ids)

    def _refuse_loss(self, entries: Iterable[Entry], journals: Journals) -> set[str]:
        """The exams that are in the dataset and that their source, as it is now, cannot give again.

        Raises :class:`~deepatlas.errors.DataError` if the options do not say what becomes of them.
        """
        bad = [
            outcome
            for outcome in journals.outcomes(entries)
            if outcome.status is not Status.DONE and outcome.id in self.stock.ids
        ]
        if bad and not (self.options.add or self.options.prune):
            first = bad[0].refusals[-1]
            raise DataError(
                f"{self.dst}: holds {len(bad)} exams that {self.src} cannot give any longer (first: {first.name}: "
                f"{first.reason}); mend that, or give --add to keep them as they are, or --prune to remove them"
            )
        return {outcome.id for outcome in bad}

    def _exams(self) -> int:
        """The number of exams of the finished dataset; 0 if it is not whole, as far as sizes and headers tell.

        Only ``--check`` reads all of it, so that a run with nothing to do takes a moment.
        """
        try:
            about = read_dataset_json(self.dst)
            whole = all((self.dst / n).stat().st_size == f["bytes"] for n, f in about["files"].items())
            with Store(self.dst) as store:
                # Raises unless the arrays lie where they were written.
                store.packed()
                whole = whole and len(store) == about["exams"]
        except (DataError, OSError):
            whole = False
        if not whole and self.options.progress:
            print(
                f"{self.dst}: incomplete; manifest, training array and report are made again", file=sys.stderr
            )
        return about["exams"] if whole else 0

    def _make(
        self, catalogue: Catalogue, todo: list[Entry], labels: dict[str, int], journals: Journals
    ) -> None:
        attempts = None
        twins = Twins(self.dst, {i: self.stock.record(i) for i in self.missing} if self.options.add else {})
        if self.options.engine != "processes":
            attempts = self.identity.folder / "attempts"
            attempts.mkdir(mode=0o700, exist_ok=True)

        def jobs() -> Iterator[ExamJob]:
            for entry in todo:
                plan = catalogue.plan(entry.key, entry.digest)
                assert plan is not None
                plan, archives = catalogue.placed(plan)
                others = other_series(catalogue, plan, self.planner.names)
                yield ExamJob(
                    entry.id,
                    entry.fingerprint,
                    plan,
                    exam_path(self.dst, entry.id),
                    labels,
                    self.planner.names,
                    self.options.crop,
                    attempts / entry.fingerprint if attempts else None,
                    archives,
                    others and catalogue.reached(others),
                    stays=self.options.add,
                )

        if not todo:
            return
        # From here on until the run ends, this is not a finished dataset.
        with suppress(FileNotFoundError):
            (self.dst / "dataset.json").unlink()
        with progress_bar(self.options, None, len(todo), "preparing", "exam") as bar:
            for job, result in self.engine.run(work.prepare_exam, jobs()):
                if isinstance(result, Died):
                    reason = f"{result.reason} while it was read; look at it by itself"
                    refusal = Refusal(job.plan.name, reason, Subject.EXAM, public=reason)
                    result = Outcome(job.id, job.fingerprint, Status.FAILED, refusals=[refusal])
                if result.status is Status.FATAL:
                    raise DataError(result.error)
                if result.status is not Status.DONE and not self.src.exists():
                    raise DataError(
                        f"{self.src}: vanished while it was read; put it back and run again: what is done stays"
                    )
                # An exam that the dataset had before does not leave it because of another one.
                before = job.id in self.stock.ids and (self.stock.lists(job.id) or journals.know(job.id))
                if result.record is not None and not before:
                    if twin := twins.of(job.id, as_record(result.record)):
                        result = refused_twin(job, twin)
                journals.enter(result)
                self.made += result.status is Status.DONE
                bar.update(1)
                if self.options.strict:
                    stop_at_refusal(result)

    # -- small things -----------------------------------------------------------------------------------------

    def _summary(
        self,
        exams: int,
        labels: dict[str, int],
        journals: Journals,
        entries: list[Entry],
        finished: bool = True,
        kept: int = 0,
    ) -> Summary:
        refusals = [*self.planner.refusals]
        for outcome in journals.outcomes(entries):
            refusals += outcome.refusals
        refused = {r.name: r.reason for r in refusals if r.kind is Subject.EXAM}
        files = Counter(r.reason for r in refusals if r.kind is not Subject.EXAM)
        if self.options.progress:
            _list_files(files)
        return Summary(
            self.dst,
            exams,
            self.made,
            labels,
            refused,
            sum(files.values()),
            time.monotonic() - self.began,
            finished,
            kept,
        )


def refused_twin(job: ExamJob, twin: str) -> Outcome:
    """The refusal of an exam that the dataset has as ``twin``, of which nothing stays."""
    job.path.unlink()
    reason = f"the dataset has the same CT already, as exam {twin}, which stays as it is"
    refusal = Refusal(job.plan.name, reason, Subject.EXAM, public=reason)
    return Outcome(job.id, job.fingerprint, Status.REFUSED, refusals=[refusal], against=twin)


def stop_at_refusal(outcome: Outcome) -> None:
    """``--strict``: a refusal stops the run that finds it and every later one."""
    for refusal in outcome.refusals:
        # Nobody wanted what belongs to a series that was not taken.
        if refusal.kind is not Subject.SERIES:
            raise DataError(f"{refusal.name}: {refusal.reason}")


def _list_files(reasons: Counter[str]) -> None:
    """Print why files were left out, the most frequent reasons first."""
    if reasons:
        print(f"files that were refused: {reasons.total()}", file=sys.stderr)
    for reason, count in reasons.most_common(_SHOWN):
        print(f"  {count} x: {reason}", file=sys.stderr)
    if len(reasons) > _SHOWN:
        print(
            f"  … and {len(reasons) - _SHOWN} more reasons, in refused.csv beside the dataset",
            file=sys.stderr,
        )
