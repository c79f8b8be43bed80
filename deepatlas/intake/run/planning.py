"""The first half of a run: find the files, read the headers that are new, settle what each exam is made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError
from deepatlas.intake.find import discover
from deepatlas.intake.find.catalogue import Catalogue
from deepatlas.intake.find.discover import Plan, Task
from deepatlas.intake.find.walk import walk
from deepatlas.intake.privacy.identity import Identity, readable_id
from deepatlas.intake.run import work
from deepatlas.intake.run.engines import Died
from deepatlas.intake.run.finish import Entry
from deepatlas.intake.run.options import Options
from deepatlas.intake.structures.anatomy import is_anatomical
from deepatlas.intake.structures.name_map import NameMap, compact, identifier_tokens, label_table, why_private
from deepatlas.io.dicom.series import Archive, Found, Refusal

EXPECTED = "expected DICOM, NIfTI, NRRD or MetaImage files, in folders or archives"


class Planner:
    """Finds and plans the exams of a source.

    ``refusals`` are gathered on the way: name, kind, reason, and the reason without names.
    """

    def __init__(self, src: Path, dst: Path, options: Options, identity: Identity, engine: Any) -> None:
        self.src, self.dst, self.options = src, dst, options
        self.identity, self.engine = identity, engine
        self.names = NameMap.read(options.names) if options.names else None
        self.refusals: list[tuple[str, str, str, str]] = []

    def run(self, catalogue: Catalogue, scratch: Path) -> tuple[list[Entry], dict[str, int]]:
        """Every exam that can be used, sorted by key, with id and fingerprint; and the label table."""
        self.find(catalogue, scratch)
        entries = self.plan(catalogue)
        labels = self.labels(entries)
        self.name(entries, labels)
        return entries, labels

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
                    self._refuse(
                        [Refusal(page[0].name, f"cannot be read: {peeks.reason}; look at it by itself")]
                    )
                else:
                    catalogue.keep(peeks)
                bar.update(1)
        catalogue.group()
        self._refuse(Refusal(name, reason) for name, reason in catalogue.refused())

    def look(self, catalogue: Catalogue) -> int:
        """List the members of all archives, after a look into those that are new; the number of all files."""
        unknown = catalogue.unknown_archives()
        with progress_bar(self.options, None, len(unknown), "opening archives", "archive") as bar:
            for archive, contents in self.engine.run(discover.look, unknown):
                if isinstance(contents, Died):
                    reason = f"cannot be read: {contents.reason}; look at it by itself"
                    self._refuse([Refusal(archive.found.name, reason)])
                else:
                    catalogue.keep_contents(archive, contents)
                bar.update(1)
        self._refuse(catalogue.list_members())
        return catalogue.count()

    def plan(self, catalogue: Catalogue) -> list[Entry]:
        """Every exam, with what its headers tell; the plans themselves are kept on the disk."""
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
            lines, public = work.refused(plan)
            for line, (_, _, hidden) in zip(lines, public, strict=True):
                self.refusals.append((line.name, line.kind, line.reason, hidden))

        def unknown() -> Iterator[Task]:
            yield from discover.dicom_tasks(catalogue, self.names, override)
            yield from discover.image_tasks(catalogue, self.src, self.names, refusals)

        def new() -> Iterator[Task]:
            for task in unknown():
                plan = catalogue.plan(task.key, task.digest)
                if plan is None:
                    yield reached(task, catalogue)
                else:
                    enter(plan)

        fresh: list[tuple[str, str, Plan]] = []
        with progress_bar(self.options, None, None, "choosing series", "exam") as bar:
            for task, plan in self.engine.run(discover.plan, new()):
                if isinstance(plan, Died):
                    reason = f"cannot be read: {plan.reason}; look at it by itself"
                    self._refuse([Refusal(task.name, reason, "exam")])
                    continue
                enter(plan)
                if plan.source is not None or not any(r.passing for r in plan.refusals):
                    fresh.append((task.key, task.digest, plan))
                if len(fresh) >= 100:
                    catalogue.keep_plans(fresh)
                    fresh = []
                bar.update(1)
        catalogue.keep_plans(fresh)
        self._refuse(refusals)
        if unused:
            raise DataError(
                f"--series {sorted(unused)[0]}=…: no such exam in the source; give id, PatientID or StudyInstanceUID"
            )
        if self.options.strict and (bad := [r for r in self.refusals if r[1] == "exam"]):
            raise DataError(f"{bad[0][0]}: {bad[0][2]}")
        usable = sorted((e for e in entries if e.usable), key=lambda e: e.key)
        if not usable:
            first = (
                f"; the first refusal: {self.refusals[0][0]}: {self.refusals[0][2]}" if self.refusals else ""
            )
            raise DataError(f"{self.src}: no exam that can be used; {EXPECTED}{first}")
        return usable

    def labels(self, entries: list[Entry]) -> dict[str, int]:
        """The dataset's label table: of the name map, or of the label tables met and the names of what was drawn."""
        if self.names is not None:
            return {name: i for i, name in enumerate(self.names.wanted, 1)}
        tables = Counter(e.table for e in entries if e.table)
        words = identifier_tokens(e.name for e in entries) if tables else frozenset()
        given: dict[str, int] = {}
        spelled: set[str] = set()  # one name in two spellings is one structure
        others: set[str] = set()
        for table, _ in sorted(tables.items(), key=lambda item: (-item[1], item[0])):
            for name, value in json.loads(table).items():
                if compact(name) in spelled or why_private(name, words):
                    continue
                spelled.add(compact(name))
                if value in given.values():  # another table's
                    others.add(name)
                else:
                    given[name] = value
        drawn = sorted({name for e in entries for name in e.structures if compact(name) not in spelled})
        drawn = [name for name in drawn if is_anatomical(name)]
        others.update({compact(name): name for name in drawn}.values())
        return label_table(others, given)

    def name(self, entries: list[Entry], labels: dict[str, int]) -> None:
        """Give every exam its id and its fingerprint."""
        counts = Counter(readable_id(e.name) for e in entries)
        for entry in entries:
            entry.id = self.identity.exam_id(entry.key)
            if self.options.keep_ids and (readable := readable_id(entry.name)):
                entry.id = readable if counts[readable] == 1 else f"{readable}-{entry.id[:8]}"
            entry.fingerprint = work.fingerprint(entry.digest, labels, self.names, self.options.crop)

    def _refuse(self, refusals: Iterable[Refusal]) -> None:
        for r in refusals:
            self.refusals.append((r.name, r.kind, r.reason, work.hide(r)))


def progress_bar(
    options: Options, items: Iterable[Any] | None, total: int | None, title: str, unit: str
) -> Any:
    """A bar with rate and time left on stderr, if that is a terminal and progress is wanted."""
    from tqdm import tqdm

    off = True if not options.progress else None  # None: on a terminal only
    return tqdm(items, total=total, desc=title, unit=unit, leave=False, disable=off)


def reached(task: Task, catalogue: Catalogue) -> Task:
    """The task with files that can be opened, once its archives are."""
    image, labels = task.image, task.labels
    there, archives = catalogue.reach((*task.files, *((image,) if image else ()), *labels), task.key)
    return replace(
        task, files=tuple(there[f.name] for f in task.files), image=image and there[image.name],
        labels=tuple(there[f.name] for f in labels), archives=archives,
    )  # fmt: skip


def placed(plan: Plan, catalogue: Catalogue) -> tuple[Plan, tuple[Archive, ...]]:
    """The plan with the paths of this run, and the archives to unpack for them."""
    source = plan.source
    assert source is not None
    series, image = source.series, source.image
    slices = series.slices if series is not None else ()
    there, archives = catalogue.reach((*slices, *((image,) if image else ()), *source.labels), plan.key)
    if series is not None:
        series = replace(series, slices=tuple(there[f.name] for f in slices))
    image = image and there[image.name]
    labels = tuple(there[f.name] for f in source.labels)
    return replace(plan, source=replace(source, series=series, image=image, labels=labels)), archives
