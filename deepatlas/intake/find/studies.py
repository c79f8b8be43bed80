"""Plan the exams of DICOM studies from their headers: which series is taken, and what was drawn on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from deepatlas.errors import DataError
from deepatlas.intake.digest import digest
from deepatlas.intake.find.catalogue import Catalogue
from deepatlas.intake.find.naming import folder_of
from deepatlas.intake.find.task import RECIPE, ExamSource, Plan, Task
from deepatlas.intake.structures.name_map import NameMap
from deepatlas.intake.structures.read import structure_names
from deepatlas.io.dicom.choose import choose_series
from deepatlas.io.dicom.found import Found, Refusal, Subject
from deepatlas.io.dicom.packed_header import unpack
from deepatlas.io.dicom.scan import LabelObject, group_headers
from deepatlas.io.dicom.series import DicomSeries, Verdict
from deepatlas.io.structures.contents import LabelContents

# How many verdicts the refusal of an exam lists.
_LISTED = 8


def plan_study(task: Task) -> Plan:
    """Choose the series of a study and list the structures that were drawn on it. No file is opened."""
    scan = group_headers((f, unpack(h)) for f, h in zip(task.files, task.headers, strict=True))
    refusals = list(scan.refusals)
    patients = sorted(({s.patient for s in scan.series} | {o.patient for o in scan.labels}) - {""})
    name = patients[0] if patients else task.name
    uids = {task.key, *(s.series for s in scan.series), *(s.frame for s in scan.series)}
    uids = uids.union(*(s.uids for s in scan.series))
    secrets = tuple(v for v in (*patients, *sorted(uids)) if v)

    def refused(reason: str, verdicts: dict[str, Verdict] | None = None) -> Plan:
        # Series that were tried come first, because not all of many series are listed.
        lines = sorted((verdicts or {}).items(), key=lambda item: not item[1].tried)
        listed = "; ".join(f"{series}: {verdict.why}" for series, verdict in lines[:_LISTED])
        line = f"{reason}: {listed}" if listed else reason
        refusals.append(Refusal(task.name, line, Subject.EXAM))
        return Plan(task.key, name, name, None, (), tuple(refusals), None, task.digest, secrets)

    if len({s.patient for s in scan.series}) > 1:
        return refused("files of more than one patient carry the same StudyInstanceUID; export them again")
    if not scan.series:
        return refused("no CT: what was drawn came without its images; add the series that it was drawn on")
    try:
        choice = choose_series(scan.series, task.override, task.tried)
    except DataError as error:
        return refused(str(error))
    if choice.taken is None:
        return refused("no series can be taken", choice.reasons)
    labels, elsewhere = _drawn_on(choice.taken, scan.labels)
    source = ExamSource(
        task.key,
        name,
        series=choice.taken,
        labels=labels,
        reasons=choice.reasons,
        forced=bool(task.override),
        elsewhere=elsewhere,
    )
    structures = structure_names(
        labels, names=task.names, series=choice.taken, contents={o.found.name: _contents(o) for o in scan.labels}
    )  # fmt: skip
    return Plan(task.key, name, name, source, tuple(structures), tuple(refusals), None, task.digest, secrets)


def _contents(label_object: LabelObject) -> LabelContents:
    if not label_object.complete:
        return LabelContents(problem="the file is cut short")
    return label_object.drawn


def _drawn_on(
    series: DicomSeries, objects: Sequence[LabelObject]
) -> tuple[tuple[Found, ...], tuple[Refusal, ...]]:
    """The objects drawn on the series that was taken; those that refer to other series only are refused."""
    taken, refusals = [], []
    for one in objects:
        if one.referenced and series.uids.isdisjoint(one.referenced):
            reason = f"{one.modality} of a series that was not taken"
            refusals.append(Refusal(one.found.name, reason, Subject.SERIES))
        else:
            taken.append(one.found)
    return tuple(taken), tuple(refusals)


Override = Callable[[str, set[str]], str | None]


def dicom_tasks(catalogue: Catalogue, names: NameMap | None, override: Override) -> Iterator[Task]:
    """A task for every study. ``override(study, patients)`` gives the series that the user asked for, or None."""
    for study in catalogue.studies():
        yield _study_task(catalogue, study, names, override)


def other_series(catalogue: Catalogue, plan: Plan, names: NameMap | None) -> Task | None:
    """The task of choosing another series for an exam; None if its series was asked for or is its only one."""
    source = plan.source
    if source is None or source.series is None or source.forced:
        return None
    task = _study_task(catalogue, plan.key, names, lambda study, patients: None)
    return task if len(task.files) > len(source.series.slices) + len(source.labels) else None


def _study_task(catalogue: Catalogue, study: str, names: NameMap | None, override: Override) -> Task:
    members = catalogue.study(study)
    choice = override(study, {m.patient for m in members if m.patient})
    files = tuple(m.found for m in members)
    made_of = digest(RECIPE, choice, names and names.entries, [(m.found.name, m.stat) for m in members])
    return Task(
        study,
        folder_of(files[0].name) or files[0].name,
        files,
        tuple(m.header for m in members),
        override=choice,
        names=names,
        digest=made_of,
    )
