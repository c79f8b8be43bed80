"""From files to exams: which belong together, what is an exam's CT and what was drawn on it. No pixel is read."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from deepatlas.errors import DataError
from deepatlas.exams.cohort import read_labels
from deepatlas.intake.find.archives import Unopened, extract, opened
from deepatlas.intake.find.catalogue import FEW, Catalogue, Contents, Peek, digest, folder_of, kind_of
from deepatlas.intake.structures.name_map import NameMap
from deepatlas.intake.structures.read import structure_names
from deepatlas.io.codec import image_suffix
from deepatlas.io.dicom.choose import TRIED, choose_series
from deepatlas.io.dicom.header import read_header
from deepatlas.io.dicom.scan import scan_dicom
from deepatlas.io.dicom.series import Archive, DicomSeries, ExamSource, Found, Refusal

RECIPE = 2  # raise when the same files would make other exams
# What a label image is called beside its CT: ``seg.nii.gz``, ``case_seg.nii.gz``, ``Segmentation.seg.nrrd`` …
_DRAWN = ("seg", "segmentation", "segmentations", "label", "labels", "mask", "masks")
_LABEL_FOLDERS = (*_DRAWN, "labelstr", "labelsts")  # nothing in them is a CT
_BESIDE = {"imagestr": ("labelstr",), "imagests": ("labelsts",), "images": ("labels", "masks")}
_CT = ("ct", "image", "volume")
_TABLE_BYTES = 1 << 20  # a larger labels.json is none
_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class Task:
    """An exam to plan in a worker: the files of a study, or a CT image and its label images."""

    key: str
    name: str
    files: tuple[Found, ...] = ()  # DICOM …
    image: Found | None = None  # … or one image
    labels: tuple[Found, ...] = ()
    override: str | None = None
    names: NameMap | None = None
    source_labels: Mapping[str, int] | None = None
    digest: str = ""  # of the files
    tried: Mapping[str, str] = field(default_factory=dict)  # series that could not be used, and why
    archives: tuple[Archive, ...] = ()  # to unpack while it is planned


@dataclass(frozen=True)
class Plan:
    """What an exam will be made of. Without ``source`` it is refused, and why is among the refusals."""

    key: str
    name: str
    patient: str
    source: ExamSource | None
    structures: tuple[str, ...] = ()  # the dataset's names of what was drawn, as far as headers tell
    refusals: tuple[Refusal, ...] = ()
    source_labels: Mapping[str, int] | None = None
    digest: str = ""
    secrets: tuple[str, ...] = field(
        default=(), repr=False
    )  # values of headers that must stay out of messages


# -- in workers -----------------------------------------------------------------------------------------


def peek(files: list[Found]) -> list[Peek]:
    """Where the files of a page belong."""
    return [_peek(found) for found in files]


def _peek(found: Found) -> Peek:
    header = read_header(found)
    if header is None:
        if found.name.lower().endswith(_DICOM_ENDINGS):
            return Peek(
                found.name, "refused", reason="named as DICOM, which it is not; copy or export it again"
            )
        return Peek(found.name, "rest")
    if isinstance(header, Refusal):
        return Peek(found.name, "refused", reason=header.reason)
    role = "labels" if header.modality in ("RTSTRUCT", "SEG") else "image"
    if not header.study:
        return Peek(
            found.name, "refused", reason="DICOM without StudyInstanceUID; export it again from the archive"
        )
    return Peek(found.name, role, header.patient, header.study, header.series, tuple(header.referenced))


def look(archive: Archive) -> Contents:
    """What an archive holds. It stays unpacked where many exams, or a disk with room, make that worth while."""
    refused: list[Refusal] = []
    found = extract(archive.found, archive.folder, refused)
    try:
        members = tuple(
            (f.name, f.path.relative_to(archive.folder).as_posix(), f.path.stat().st_size) for f in found
        )
        peeks = tuple(peek([f for f in found if kind_of(f.name) == "other"]))
        tables = {f.name: _start_of(f) for f in found if kind_of(f.name) == "table"}
        images = sum(kind_of(f.name) == "image" and not _is_drawn(f) for f in found)
        exams = len({p.study for p in peeks if p.study}) + images
        disk = shutil.disk_usage(archive.folder.parent)
    except BaseException:
        shutil.rmtree(archive.folder, ignore_errors=True)
        raise
    kept = bool(found) and (exams > FEW or disk.free > disk.total / 2)
    if not kept:
        shutil.rmtree(archive.folder, ignore_errors=True)
    return Contents(members, peeks, tables, tuple(refused), exams, kept)


def _start_of(table: Found) -> bytes:
    with open(table.path, "rb") as file:
        return file.read(_TABLE_BYTES)


def plan(task: Task) -> Plan:
    """Choose the exam's series and list what was drawn on it, from headers."""
    try:
        with opened(task.archives):
            return choose(task)
    except Unopened as error:
        refusal = Refusal(task.name, str(error), "exam", passing=True)
        return Plan(task.key, task.name, "", None, refusals=(refusal,), digest=task.digest)


def choose(task: Task) -> Plan:
    """As :func:`plan`, of files that can be opened."""
    if task.image is not None:
        source = ExamSource(task.key, task.name, image=task.image, labels=task.labels)
        # A label table names its structures itself, in its own spelling.
        named = task.source_labels and task.names is None
        structures = _structures(task, None) if task.labels and not named else ()
        return Plan(task.key, task.name, "", source, structures, (), task.source_labels, task.digest)
    scan = scan_dicom(task.files)
    refusals = list(scan.refusals)
    patients = sorted(({s.patient for s in scan.series} | {o.patient for o in scan.labels}) - {""})
    name = patients[0] if patients else task.name
    uids = {task.key, *(s.series for s in scan.series), *(s.frame for s in scan.series)}
    secrets = tuple(v for v in (*patients, *sorted(uids)) if v)

    def refused(reason: str, series: dict[str, str] | None = None) -> Plan:
        # Those that were tried first: of many series, not all are listed.
        lines = sorted((series or {}).items(), key=lambda item: not item[1].startswith(TRIED))
        listed = "; ".join(f"{n}: {r.removeprefix('not taken: ')}" for n, r in lines[:8])
        line = f"{reason}: {listed}" if listed else reason
        refusals.append(Refusal(task.name, line, "exam"))
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
        task.key, name, series=choice.taken, labels=labels, reasons=choice.reasons,
        forced=bool(task.override), elsewhere=elsewhere,
    )  # fmt: skip
    structures = _structures(task, choice.taken, labels) if labels else ()
    return Plan(task.key, name, name, source, structures, tuple(refusals), None, task.digest, secrets)


def _drawn_on(series: DicomSeries, objects: list[Any]) -> tuple[tuple[Found, ...], tuple[Refusal, ...]]:
    """The objects drawn on the series that was taken; those that say they were drawn on another are refused."""
    uid = series.series.partition("#")[0]
    taken, refusals = [], []
    for one in objects:
        if one.referenced and uid not in one.referenced:
            reason = f"{one.modality} of a series that was not taken"
            refusals.append(Refusal(one.found.name, reason, "series"))
        else:
            taken.append(one.found)
    return tuple(taken), tuple(refusals)


def _structures(task: Task, series: DicomSeries | None, labels: tuple[Found, ...] = ()) -> tuple[str, ...]:
    return tuple(
        structure_names(
            labels or task.labels, names=task.names, series=series, source_labels=task.source_labels
        )
    )


# -- pairing of image files -----------------------------------------------------------------------------


def dicom_tasks(
    catalogue: Catalogue, names: NameMap | None, override: Callable[[str, set[str]], str | None]
) -> Iterator[Task]:
    """A task for every study."""
    for study in catalogue.studies():
        yield _study_task(catalogue, study, names, override)


def other_series(catalogue: Catalogue, plan: Plan, names: NameMap | None) -> Task | None:
    """The task of choosing another series for an exam; None if its series was asked for, or is all that it has."""
    source = plan.source
    if source is None or source.series is None or source.forced:
        return None
    task = _study_task(catalogue, plan.key, names, lambda study, patients: None)
    return task if len(task.files) > len(source.series.slices) + len(source.labels) else None


def _study_task(
    catalogue: Catalogue, study: str, names: NameMap | None, override: Callable[[str, set[str]], str | None]
) -> Task:
    members = catalogue.study(study)
    patients = {m.patient for m in members if m.patient}
    choice = override(study, patients)
    files = tuple(m.found for m in members)
    made_of = digest(RECIPE, choice, names and names.entries, [(m.found.name, m.stat) for m in members])
    folder = folder_of(files[0].name)
    return Task(study, folder or files[0].name, files, override=choice, names=names, digest=made_of)


def image_tasks(
    catalogue: Catalogue, src: Path, names: NameMap | None, refusals: list[Refusal]
) -> Iterator[Task]:
    """A task for every CT image, with the label images that belong to it."""
    found = catalogue.tables()
    if "" not in found and (above := Path(os.path.abspath(src)).parent / "labels.json").is_file():
        found[""] = Found(above, "labels.json")  # one for several splits of a data set
    tables = {folder: _table(file, refusals) for folder, file in found.items()}
    folders = dict(catalogue.images())
    used: set[str] = set()
    below: dict[
        str, list[tuple[str, list[Found]]]
    ] = {}  # folders of label images, by the folder that they are in
    for folder, files in folders.items():
        if _last(folder) in _LABEL_FOLDERS:
            below.setdefault(_up(folder), []).append((_last(folder), files))
    for folder, files in folders.items():
        if _last(folder) in _LABEL_FOLDERS:
            continue
        cts, drawn = pair(files)
        for ct in cts:
            labels = [*drawn.get(ct.name, ()), *_elsewhere(ct, folder, below, alone=len(cts) == 1)]
            table = _table_for(folder_of(labels[0].name) if labels else folder, tables)
            used.update(f.name for f in labels)
            stats = [(f.name, catalogue.stat(f.name)) for f in (ct, *labels)]
            made_of = digest(RECIPE, table, names and names.entries, stats)
            yield Task(
                ct.name, exam_name(ct), image=ct, labels=tuple(labels), names=names, source_labels=table,
                digest=made_of,
            )  # fmt: skip
    for files in folders.values():
        for file in files:
            if _is_drawn(file) and file.name not in used:
                refusals.append(
                    Refusal(
                        file.name, "named as a label image, but no CT belongs to it; add ct.nii.gz beside it"
                    )
                )


def pair(files: list[Found]) -> tuple[list[Found], dict[str, list[Found]]]:
    """Split the images of one folder into CTs and ``{CT's name: [label images]}``.

    ``seg`` belongs to ``ct``, or to the only CT of the folder; ``case_seg`` to ``case``, or to the only CT if that is
    called ``ct``: a CT of another name may be another patient's.
    """
    cts = [f for f in files if _base(_stem(f)) is None]
    labels: dict[str, list[Found]] = {}
    for found in files:
        base = _base(_stem(found))
        if base is None:
            continue
        fits = [c for c in cts if (_stem(c).lower() == base if base else _stem(c).lower() in _CT)]
        if not fits and len(cts) == 1 and (not base or _stem(cts[0]).lower() in _CT):
            fits = cts
        if fits:
            labels.setdefault(fits[0].name, []).append(found)
    return cts, labels


def _elsewhere(
    ct: Found, folder: str, below: Mapping[str, list[tuple[str, list[Found]]]], alone: bool
) -> Iterator[Found]:
    """Label images in ``segmentations/`` below the only CT of a folder, and in ``labelsTr/`` beside ``imagesTr/``."""
    if alone and _last(folder) not in _BESIDE:
        for _, files in below.get(folder, ()):
            yield from files
    beside = _BESIDE.get(_last(folder), ())
    if beside:
        stem = _stem(ct).removesuffix("_0000")  # nnU-Net's number of the channel
        for name, files in below.get(_up(folder), ()):
            if name in beside:
                yield from (f for f in files if _stem(f) == stem)


def _last(folder: str) -> str:
    return re.split("[/!]", folder)[-1].lower()


def _up(folder: str) -> str:
    head = re.match(r"(.*)([/!])", folder)
    return "" if head is None else head[1] + "!" * (head[2] == "!")  # the root of an archive keeps its mark


def exam_name(ct: Found) -> str:
    """What a person calls the exam of an image: its folder for ``<exam>/ct.nii.gz``, otherwise its path's stem."""
    stem, folder = _stem(ct), folder_of(ct.name)
    if stem.lower() in _CT and folder:
        return folder
    return f"{folder}/{stem}" if folder else stem


def _stem(found: Found) -> str:
    name = PurePosixPath(found.name.rpartition("!")[2]).name
    return name[: len(name) - len(image_suffix(name))]


def _is_drawn(found: Found) -> bool:
    """Whether an image is called as label images are, or lies where they do."""
    return _last(folder_of(found.name)) in _LABEL_FOLDERS or _base(_stem(found)) is not None


def _base(stem: str) -> str | None:
    """The CT's stem that a label image's belongs to: "" for ``seg`` alone, None if it is no label image's."""
    lower = stem.lower()
    if lower in _DRAWN:
        return ""
    for mark in _DRAWN:
        for join in ("_", "-", "."):
            if lower.endswith(join + mark):
                return lower.removesuffix(join + mark)
    return None


def _table(found: Found, refusals: list[Refusal]) -> dict[str, int] | None:
    try:
        return read_labels(found.path)
    except DataError:
        refusals.append(
            Refusal(
                found.name, 'not a label table; write {"name": id, …} with whole ids from 1, each used once'
            )
        )
        return None


def _table_for(folder: str, tables: Mapping[str, dict[str, int] | None]) -> dict[str, int] | None:
    """The ``labels.json`` of the folder or of the nearest one above it."""
    while True:
        if folder in tables:
            return tables[folder]
        if not folder:
            return None
        if "/" in folder.rpartition("!")[2]:
            folder = folder.rpartition("/")[0]
        elif folder.endswith("!"):  # the archive itself: what lies beside it
            folder = folder_of(folder[:-1])
        elif "!" in folder:
            folder = folder.rpartition("!")[0] + "!"
        else:
            folder = ""
