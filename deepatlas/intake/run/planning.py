"""The first half of a run: find the files, read the headers that are new, decide what each exam is made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deepatlas.engines import Died
from deepatlas.errors import DataError
from deepatlas.intake.find import discover
from deepatlas.intake.find.catalogue import Catalogue
from deepatlas.intake.find.pairs import image_tasks, opens_labels
from deepatlas.intake.find.studies import dicom_tasks
from deepatlas.intake.find.task import Plan, Task
from deepatlas.intake.find.walk import walk
from deepatlas.intake.privacy.identity import Identity, readable_id
from deepatlas.intake.privacy.names import identifier_tokens, why_private
from deepatlas.intake.privacy.redact import redacted
from deepatlas.intake.run import work
from deepatlas.intake.run.finish import Entry
from deepatlas.intake.run.options import Options
from deepatlas.intake.structures.anatomy import is_anatomical
from deepatlas.intake.structures.name_map import NameMap, label_table
from deepatlas.io.dicom.found import Found, Refusal, Subject
from deepatlas.names.meet import compact

EXPECTED = "expected DICOM, NIfTI, NRRD or MetaImage files, in folders or archives"


class Planner:
    """Finds and plans the exams of a source, and collects the ``refusals`` with their public reasons.

    ``found`` tells whether there is any exam that can be used, as far as that is known.
    """

    def __init__(self, src: Path, dst: Path, options: Options, identity: Identity, engine: Any) -> None:
        self.src, self.dst, self.options = src, dst, options
        self.identity, self.engine = identity, engine
        self.names = NameMap.read(options.names) if options.names else None
        self.refusals: list[Refusal] = []
        self.found = False

    def run(self, catalogue: Catalogue, scratch: Path) -> list[Entry]:
        """Every exam that can be used, sorted by key, with its id."""
        self.find(catalogue, scratch)
        entries = self.plan(catalogue)
        self.name(entries)
        return entries

    def find(self, catalogue: Catalogue, scratch: Path) -> None:
        found: list[Refusal] = []
        files = walk(self.src, scratch, found, skip=(self.dst, self.identity.folder))
        catalogue.add(progress_bar(self.options, files, None, "finding files", "file"))
        self._refuse(found)
        if not self.look(catalogue):
            raise DataError(f"{self.src}: no file in it; {EXPECTED}")
        total = catalogue.unread()
        with progress_bar(self.options, None, total, "reading headers", "file") as bar:
            died: list[Found] = []
            for page, peeks in self.engine.run(discover.peek, catalogue.pages()):
                if isinstance(peeks, Died):
                    died += page
                else:
                    catalogue.keep(peeks)
                    bar.update(len(page))
            for page, peeks in self.engine.run(discover.peek, ([found] for found in died)):
                if isinstance(peeks, Died):
                    self._refuse([_died(page[0].name, peeks)])
                else:
                    catalogue.keep(peeks)
                bar.update(1)
        catalogue.group()
        self._refuse(catalogue.refused())

    def look(self, catalogue: Catalogue) -> int:
        """Look into the archives that are new and list the members of all; returns the number of all files."""
        unknown = catalogue.unknown_archives()
        with progress_bar(self.options, None, len(unknown), "opening archives", "archive") as bar:
            for archive, contents in self.engine.run(discover.look, unknown):
                if isinstance(contents, Died):
                    self._refuse([_died(archive.found.name, contents)])
                else:
                    catalogue.keep_contents(archive, contents)
                bar.update(1)
        self._refuse(catalogue.list_members())
        return catalogue.count()

    def plan(self, catalogue: Catalogue) -> list[Entry]:
        """Every exam that can be used, as far as headers tell. The plans themselves are kept on the disk."""
        unused = set(self.options.series)
        overrides = self.options.series
        refusals: list[Refusal] = []

        def override(study: str, patients: set[str]) -> str | None:
            known = {study, self.identity.exam_id(study), *patients, *(readable_id(p) for p in patients)}
            hits = sorted(known & set(overrides))
            unused.difference_update(hits)
            return overrides[hits[0]] if hits else None

        entries: list[Entry] = []

        def enter(plan: Plan) -> None:
            entries.append(Entry.of(plan))
            hidden = plan.hidden()
            self.refusals += [redacted(refusal, hidden) for refusal in plan.refusals]

        def tasks() -> Iterator[Task]:
            yield from dicom_tasks(catalogue, self.names, override)
            yield from image_tasks(catalogue, self.src, self.names, refusals)

        def new() -> Iterator[Task]:
            for task in tasks():
                plan = catalogue.plan(task.key, task.digest)
                if plan is not None:
                    enter(plan)
                else:
                    # The headers of a study are in the catalogue, so that planning opens none of its files.
                    yield catalogue.reached(task) if opens_labels(task) else task

        fresh: list[Plan] = []
        with progress_bar(self.options, None, None, "choosing series", "exam") as bar:
            for task, plan in self.engine.run(discover.plan, new()):
                if isinstance(plan, Died):
                    self._refuse([_died(task.name, plan, Subject.EXAM)])
                    continue
                enter(plan)
                if plan.source is not None or not any(r.passing for r in plan.refusals):
                    fresh.append(plan)
                if len(fresh) >= 100:
                    catalogue.keep_plans(fresh)
                    fresh = []
                bar.update(1)
        catalogue.keep_plans(fresh)
        self._refuse(refusals)
        self.found = any(e.usable for e in entries)
        if unused:
            raise DataError(
                f"--series {sorted(unused)[0]}=…: no such exam in the source; give id, PatientID or StudyInstanceUID"
            )
        if self.options.strict and (bad := [r for r in self.refusals if r.kind is Subject.EXAM]):
            raise DataError(f"{bad[0].name}: {bad[0].reason}")
        usable = sorted((e for e in entries if e.usable), key=lambda e: e.key)
        if not usable:
            first = ""
            if self.refusals:
                first = f"; the first refusal: {self.refusals[0].name}: {self.refusals[0].reason}"
            raise DataError(f"{self.src}: no exam that can be used; {EXPECTED}{first}")
        return usable

    def labels(self, entries: list[Entry], before: Mapping[str, int]) -> dict[str, int]:
        """The dataset's label table: from the name map, or from the label tables and the names of what was drawn.

        It goes on from the table ``before``, whose names keep their ids. Every exam gets the fingerprint that follows.
        """
        labels = self._table(entries, before)
        for entry in entries:
            entry.fingerprint = work.fingerprint(entry.digest, labels, self.names, self.options.crop)
        return labels

    def _table(self, entries: list[Entry], before: Mapping[str, int]) -> dict[str, int]:
        if self.names is not None:
            table = dict(before)
            spelled = {compact(name): name for name in before}
            for name in self.names.wanted:
                if spelled.get(compact(name), name) != name:
                    raise DataError(
                        f"{self.options.names}: calls a structure {name!r} that {self.dst} calls "
                        f"{spelled[compact(name)]!r}; spell it so in the name map"
                    )
                table.setdefault(name, max(table.values(), default=0) + 1)
            return table
        tables = Counter(e.table for e in entries if e.table)
        words = identifier_tokens(e.name for e in entries) if tables else frozenset()
        given = dict(before)
        # Two spellings of one name are one structure.
        spelled = {compact(name) for name in given}
        others: set[str] = set()
        for table, _ in sorted(tables.items(), key=lambda item: (-item[1], item[0])):
            for name, value in json.loads(table).items():
                # A case is often called after its organ ("aorta_001"), which makes that no identifier.
                private = why_private(name) if is_anatomical(name) else why_private(name, words)
                if compact(name) in spelled or private:
                    continue
                spelled.add(compact(name))
                if value in given.values():
                    # Another table uses this id.
                    others.add(name)
                else:
                    given[name] = value
        drawn = sorted({name for e in entries for name in e.structures if compact(name) not in spelled})
        drawn = [name for name in drawn if is_anatomical(name)]
        others.update({compact(name): name for name in drawn}.values())
        return label_table(others, given)

    def name(self, entries: list[Entry]) -> None:
        """Give every exam its id."""
        counts = Counter(readable_id(e.name) for e in entries)
        for entry in entries:
            entry.id = self.identity.exam_id(entry.key)
            if self.options.keep_ids and (readable := readable_id(entry.name)):
                entry.id = readable if counts[readable] == 1 else f"{readable}-{entry.id[:8]}"

    def _refuse(self, refusals: Iterable[Refusal]) -> None:
        self.refusals += map(redacted, refusals)


def _died(name: str, died: Died, kind: Subject = Subject.FILE) -> Refusal:
    """The refusal of what a worker was reading when it died."""
    return Refusal(name, f"cannot be read: {died.reason}; look at it by itself", kind, passing=True)


def progress_bar(
    options: Options, items: Iterable[Any] | None, total: int | None, title: str, unit: str
) -> Any:
    """A bar with rate and remaining time on stderr, if that is a terminal and progress is wanted."""
    # None: on a terminal only.
    off = True if not options.progress else None
    return tqdm(items, total=total, desc=title, unit=unit, leave=False, disable=off)
