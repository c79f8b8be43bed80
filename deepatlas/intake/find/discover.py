"""What workers find out before any exam is read: what files are, what archives hold, what exams are made of."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.intake.find.archives import Archive, Unopened, extract, opened
from deepatlas.intake.find.extraction import UNPACK
from deepatlas.intake.find.match import is_label_image
from deepatlas.intake.find.naming import FileKind, file_kind
from deepatlas.intake.find.pairs import plan_pair
from deepatlas.intake.find.records import FEW, Contents, Peek, Role
from deepatlas.intake.find.studies import plan_study
from deepatlas.intake.find.task import Plan, Task
from deepatlas.io.codec import voxel_file
from deepatlas.io.dicom.found import Found, Refusal, Subject
from deepatlas.io.dicom.header import read_header
from deepatlas.io.dicom.packed_header import pack
from deepatlas.io.glance import Glance, Holds, glance
from deepatlas.io.structures.label_object import contents_of

# A larger file is not a label table.
_TABLE_BYTES = 4 << 20
_DICOM_ENDINGS = (".dcm", ".dicom", ".ima", ".dcm.gz")


def peek(files: list[Found]) -> list[Peek]:
    """Read the headers of ``files``, opening each file once."""
    return [_peek(found) for found in files]


def _peek(found: Found) -> Peek:
    if file_kind(found.name) is FileKind.IMAGE:
        return _peek_image(found)
    header = read_header(found, contents_of)
    if header is None:
        if not found.name.lower().endswith(_DICOM_ENDINGS):
            return Peek(found.name, Role.REST)
        header = Refusal(found.name, "named as DICOM, which it is not; copy or export it again")
    elif not isinstance(header, Refusal) and not header.study:
        header = Refusal(found.name, "DICOM without StudyInstanceUID; export it again from the archive")
    if isinstance(header, Refusal):
        return Peek(found.name, Role.REFUSED, refusal=header)
    role = Role.LABELS if header.is_label_object else Role.IMAGE
    ids = header.patient, header.study, header.series
    return Peek(found.name, role, *ids, header.referenced, pack(header))


def _peek_image(found: Found) -> Peek:
    try:
        seen, refusal = glance(found.path), None
    except OSError as error:
        # Reading the exam will report it; until then its name has to tell what it is.
        seen = Glance(Holds.UNKNOWN)
        refusal = Refusal(found.name, f"cannot be read ({error.strerror}); copy it again", passing=True)
    return Peek(found.name, Role.VOXELS, header=pickle.dumps(seen), refusal=refusal)


def look(archive: Archive) -> Contents:
    """Unpack an archive and find out what it holds.

    It stays unpacked if many exams need it, or if the disk has enough room.
    """
    refused: list[Refusal] = []
    found = extract(archive.found, archive.folder, refused)
    try:
        led = [f for f in found if _leads_out(f, archive.folder)]
        refused += [Refusal(f.name, f"its header names voxels outside the archive; {UNPACK}") for f in led]
        found = [f for f in found if f not in led]
        kinds = {f.name: file_kind(f.name) for f in found}
        members = tuple(
            (f.name, f.path.relative_to(archive.folder).as_posix(), f.path.stat().st_size) for f in found
        )
        peeks = tuple(peek([f for f in found if kinds[f.name] is not FileKind.TABLE]))
        tables = {f.name: _start_of(f) for f in found if kinds[f.name] is FileKind.TABLE}
        images = sum(kinds[f.name] is FileKind.IMAGE and not is_label_image(f) for f in found)
        exams = len({p.study for p in peeks if p.study}) + images
        disk = shutil.disk_usage(archive.folder.parent)
    except BaseException:
        shutil.rmtree(archive.folder, ignore_errors=True)
        raise
    kept = bool(found) and (exams > FEW or disk.free > disk.total / 2)
    if not kept:
        shutil.rmtree(archive.folder, ignore_errors=True)
    return Contents(members, peeks, tables, tuple(refused), exams, kept)


def _leads_out(found: Found, folder: Path) -> bool:
    """Whether an image of an archive takes its voxels from a file that did not come with the archive."""
    if file_kind(found.name) is not FileKind.IMAGE:
        return False
    try:
        voxels = voxel_file(found.path)
    except (DataError, OSError):
        # Reading the image will report what is wrong.
        return False
    return voxels is not None and not Path(os.path.realpath(voxels)).is_relative_to(os.path.realpath(folder))


def _start_of(table: Found) -> bytes:
    with open(table.path, "rb") as file:
        return file.read(_TABLE_BYTES)


def plan(task: Task) -> Plan:
    """Decide what an exam is made of, from headers."""
    if task.image is None:
        return plan_study(task)
    try:
        with opened(task.archives):
            return plan_pair(task)
    except Unopened as error:
        refusal = Refusal(task.name, str(error), Subject.EXAM, passing=True)
        return Plan(task.key, task.name, "", None, refusals=(refusal,), digest=task.digest)
