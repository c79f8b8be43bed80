"""``deepatlas prepare``: from a source to a dataset, each exam whole or not at all, and never one twice.

The order of a run: find the files; read the headers that are new; choose each exam's series; settle the ids of
structures; make the exam files that are not there yet; and from them, last, manifest, training array and report.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.intake.dataset.folder import exam_path, read_dataset_json
from deepatlas.intake.find.catalogue import Catalogue, digest
from deepatlas.intake.find.discover import other_series
from deepatlas.intake.find.walk import scratch_folder
from deepatlas.intake.privacy.identity import Identity
from deepatlas.intake.run import work
from deepatlas.intake.run.engines import Died, default_workers, open_engine
from deepatlas.intake.run.finish import Entry, finish, read_state
from deepatlas.intake.run.journal import Journal
from deepatlas.intake.run.options import Options, Summary
from deepatlas.intake.run.places import check_places, clear_leftovers, held, may_write
from deepatlas.intake.run.planning import Planner, placed, progress_bar, reached
from deepatlas.intake.run.work import DONE, FAILED, FATAL, ExamJob, Outcome
from deepatlas.io.dicom.series import Refusal
from deepatlas.store.store import Store

# Refusals that may be gone in the next run: what lies there has not left the source.
_PASSING = re.compile(
    r"^cannot (be )?read[ :]|^vanished|^its archive cannot|scratch disk|while it was read|while its headers"
)
_SHOWN = 20  # refusals on the screen; all are in the private folder and, without names, in the report


def prepare(
    src: str | os.PathLike[str], dst: str | os.PathLike[str], options: Options | None = None
) -> Summary:
    """Turn ``src`` (a folder or an archive of exams) into the dataset ``dst``, or bring ``dst`` up to date.

    What is in ``dst`` and has not changed in ``src`` stays; exams that are no longer in ``src`` leave. A run that was
    stopped, however hard, goes on when it is called again.

    Raises :class:`~deepatlas.errors.DataError`, one line, for places that cannot be used, a source without exams, a
    disk that cannot be written, a name map that is wrong, and (``strict``) the first exam that does not go in.
    """
    return _Run(Path(src), Path(dst), options or Options()).run()


class _Run:
    def __init__(self, src: Path, dst: Path, options: Options) -> None:
        self.src, self.dst, self.options = src, dst, options
        self.began = time.monotonic()
        self.made = 0

    def run(self) -> Summary:
        options = self.options
        check_places(self.src, self.dst)
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
                open_engine(options.engine, workers=workers, address=options.address, timeout=options.timeout)
            )
            self.planner = Planner(self.src, self.dst, options, self.identity, self.engine)
            # The first of several shards reads the headers; the others wait, and find them read.
            with held(private / "lock-headers", None):
                catalogue = stack.enter_context(closing(Catalogue(scratch, private)))
                entries, labels = self.planner.run(catalogue, scratch)
                mine = [e for e in entries if self._is_mine(e)]
                if options.shard:
                    catalogue.detach([e.key for e in mine])
            journals = stack.enter_context(_Journals(private, options.shard))
            todo = [e for e in mine if not self._is_done(e, journals)]
            if options.strict:
                again = {e.id for e in todo}
                for outcome in journals.outcomes(e for e in mine if e.id not in again):
                    _stop_at_refusal(outcome)
            if options.merge and todo:
                raise DataError(
                    f"{self.dst}: {len(todo)} of {len(entries)} exams are not prepared yet; run the shards that did "
                    "not finish again, or prepare without --merge"
                )
            if options.shard:
                self._make(catalogue, todo, labels, journals)
                return self._summary(len(mine), labels, journals, mine, finished=False)
            gone = self._gone(entries)
            state = digest([(e.id, e.fingerprint) for e in entries], sorted(self.planner.refusals))
            if not todo and not gone and read_state(private) == state and (exams := self._exams()):
                return self._summary(exams, labels, journals, entries)
            if gone:  # until the end, this is no finished dataset
                (self.dst / "dataset.json").unlink(missing_ok=True)
            self._make(catalogue, todo, labels, journals)
            for exam in gone | {o.id for o in journals.outcomes(entries) if o.status != DONE}:
                exam_path(self.dst, exam).unlink(missing_ok=True)
            exams = finish(
                self.dst, scratch, self.identity, entries, journals.outcomes(entries), self.planner.refusals,
                state=state, bar=partial(progress_bar, options),
            )  # fmt: skip
            return self._summary(exams, labels, journals, entries)

    # -- the steps ------------------------------------------------------------------------------------------

    def _is_mine(self, entry: Entry) -> bool:
        if self.options.shard is None:
            return True
        index, count = self.options.shard
        return int(digest(entry.id), 16) % count == index

    def _is_done(self, entry: Entry, journals: _Journals) -> bool:
        outcome = journals.get(entry)
        if outcome is None or (outcome.status == FAILED and not self.options.merge):
            return False
        if outcome.status != DONE:
            return True
        with suppress(OSError):
            return exam_path(self.dst, entry.id).stat().st_size == outcome.record["bytes"]  # type: ignore[index]
        return False

    def _gone(self, entries: list[Entry]) -> set[str]:
        """Ids of exams that have a file and are no longer in the source."""
        there = {path.stem for path in (self.dst / "exams").glob("*/[!.]*.h5")}
        gone = there - {e.id for e in entries}
        if there and len(gone) == len(there):
            raise DataError(
                f"{self.dst}: holds {len(there)} exams, none of which is in {self.src}; choose another DST, or delete "
                f"this one and {self.identity.folder.name} first"
            )
        doubtful = [r for r in self.planner.refusals if _PASSING.search(r[2])]
        if gone and doubtful:
            raise DataError(
                f"{self.dst}: {len(gone)} of its exams are not found in {self.src}, where {len(doubtful)} files or "
                f"folders could not be read (first: {doubtful[0][0]}: {doubtful[0][2]}); mend that and run again: "
                "nothing was removed"
            )
        if gone and self.options.progress:
            print(f"{len(gone)} exams are no longer in {self.src} and leave the dataset", file=sys.stderr)
        return gone

    def _exams(self) -> int:
        """How many exams the finished dataset has; 0 where it is not whole, as far as sizes and headers tell.

        Reading all of it is for ``--check``: a run that has nothing to do takes a moment.
        """
        try:
            about = read_dataset_json(self.dst)
            whole = all((self.dst / n).stat().st_size == f["bytes"] for n, f in about["files"].items())
            with Store(self.dst) as store:
                store.packed()  # its arrays lie where they were written
                whole = whole and len(store) == about["exams"]
        except (DataError, OSError):
            whole = False
        if not whole and self.options.progress:
            print(
                f"{self.dst}: not whole; manifest, training array and report are made anew", file=sys.stderr
            )
        return about["exams"] if whole else 0

    def _make(
        self, catalogue: Catalogue, todo: list[Entry], labels: dict[str, int], journals: _Journals
    ) -> None:
        attempts = None
        if self.options.engine != "processes":
            attempts = self.identity.folder / "attempts"
            attempts.mkdir(mode=0o700, exist_ok=True)

        def jobs() -> Iterator[ExamJob]:
            for entry in todo:
                plan, archives = placed(catalogue.plan(entry.key, entry.digest), catalogue)
                others = other_series(catalogue, plan, self.planner.names)
                yield ExamJob(
                    entry.id, entry.fingerprint, plan, exam_path(self.dst, entry.id), labels, self.planner.names,
                    self.options.crop, attempts / entry.fingerprint if attempts else None, archives,
                    others and reached(others, catalogue),
                )  # fmt: skip

        if not todo:
            return
        with suppress(FileNotFoundError):  # from here on, until the end, this is no finished dataset
            (self.dst / "dataset.json").unlink()
        with progress_bar(self.options, None, len(todo), "preparing", "exam") as bar:
            for job, result in self.engine.run(work.prepare_exam, jobs()):
                if isinstance(result, Died):
                    reason = f"{result.reason} while it was read; look at it by itself"
                    result = Outcome(job.id, job.fingerprint, FAILED, refusals=[Refusal(job.plan.name, reason, "exam")],
                                     public=[(job.plan.name, "exam", reason)])  # fmt: skip
                if result.status == FATAL:
                    raise DataError(result.error)
                if result.status != DONE and not self.src.exists():
                    raise DataError(
                        f"{self.src}: vanished while it was read; put it back and run again: what is done stays"
                    )
                journals.enter(result)
                self.made += result.status == DONE
                bar.update(1)
                if self.options.strict:
                    _stop_at_refusal(result)

    # -- small things -----------------------------------------------------------------------------------------

    def _summary(
        self,
        exams: int,
        labels: dict[str, int],
        journals: _Journals,
        entries: list[Entry],
        finished: bool = True,
    ) -> Summary:
        refused = {name: reason for name, kind, reason, _ in self.planner.refusals if kind == "exam"}
        files = Counter(reason for _, kind, reason, _ in self.planner.refusals if kind != "exam")
        for outcome in journals.outcomes(entries):
            for r in outcome.refusals:
                if r.kind == "exam":
                    refused[r.name] = r.reason
                else:
                    files[r.reason] += 1
        if self.options.progress:
            _list("exams", refused.items())
            _list("files", ((f"{n} x", reason) for reason, n in files.most_common()))
        return Summary(
            self.dst,
            exams,
            self.made,
            labels,
            refused,
            sum(files.values()),
            time.monotonic() - self.began,
            finished,
        )


class _Journals:
    """This run's journal, and, where no other process can be writing them, those of earlier runs and shards."""

    def __init__(self, private: Path, shard: tuple[int, int] | None) -> None:
        own = private / ("journal-{}-of-{}.sqlite".format(*shard) if shard else "journal.sqlite")
        self._own = Journal(own)
        others = [] if shard else sorted(p for p in private.glob("journal*.sqlite") if p != own)
        self._others = [Journal(path) for path in others]

    def get(self, entry: Entry) -> Outcome | None:
        """What became of an exam as it is now: as this journal has it, or as a shard's has it."""
        outcomes = (journal.get(entry.id) for journal in (self._own, *self._others))
        found = [o for o in outcomes if o is not None and o.fingerprint == entry.fingerprint]
        # One that came in counts before a failure that another shard, or an earlier run, had with it.
        return min(found, key=lambda o: o.status != DONE, default=None)

    def enter(self, outcome: Outcome) -> None:
        self._own.enter(outcome)

    def outcomes(self, entries: Iterable[Entry]) -> Iterator[Outcome]:
        return (outcome for entry in entries if (outcome := self.get(entry)) is not None)

    def __enter__(self) -> _Journals:
        return self

    def __exit__(self, *_: object) -> None:
        for journal in (self._own, *self._others):
            journal.close()


def _stop_at_refusal(outcome: Outcome) -> None:
    """``--strict``: what does not go in stops the run, in the run that finds it and in every later one."""
    for refusal in (r for r in outcome.refusals if r.kind != "series"):  # which nobody wanted
        raise DataError(f"{refusal.name}: {refusal.reason}")


def _list(what: str, lines: Iterable[tuple[str, str]]) -> None:
    lines = list(lines)
    if lines:
        print(f"{what} that did not go in: {len(lines)}", file=sys.stderr)
    for name, reason in lines[:_SHOWN]:
        print(f"  {name}: {reason}", file=sys.stderr)
    if len(lines) > _SHOWN:
        print(f"  … and {len(lines) - _SHOWN} more, in refused.csv beside the dataset", file=sys.stderr)
