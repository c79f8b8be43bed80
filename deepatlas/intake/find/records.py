"""What the first look at files and archives finds, and what the catalogue keeps of it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from deepatlas.io.dicom.found import Found, Refusal

# An archive with at most this many exams is unpacked for each of them; one with more is unpacked once and shared.
FEW = 4


class Role(StrEnum):
    """The part of a file in an exam. The values are stored in the catalogue."""

    IMAGE = "image"
    # A NIfTI, NRRD or MetaImage file. Its ``header`` is a :class:`~deepatlas.io.glance.Glance`, pickled.
    VOXELS = "voxels"
    # An RTSTRUCT or a DICOM-SEG.
    LABELS = "labels"
    # Not DICOM.
    REST = "rest"
    REFUSED = "refused"


class Peek(NamedTuple):
    """What the header of a file tells about where it belongs.

    ``header`` is the packed header (see :mod:`deepatlas.io.dicom.packed_header`) of an image or a label object, and
    ``refusal`` is the reason if the role is ``REFUSED``.
    """

    name: str
    role: Role
    patient: str = ""
    study: str = ""
    series: str = ""
    referenced: tuple[str, ...] = ()
    header: bytes = b""
    refusal: Refusal | None = None


class Contents(NamedTuple):
    """What an archive holds."""

    # For each member its name (as in Found), its path in the folder of the archive, and its size in bytes.
    members: tuple[tuple[str, str, int], ...]
    # Of the members that are no label tables.
    peeks: tuple[Peek, ...]
    # The label tables, {name: bytes}.
    tables: dict[str, bytes]
    refusals: tuple[Refusal, ...]
    # An upper bound of the number of exams.
    exams: int
    # Whether the archive stays unpacked in its folder.
    kept: bool

    @property
    def lasting(self) -> bool:
        """Whether the contents stay the same as long as the archive does: not if a disk was full or failed."""
        passing = [r.passing for r in self.refusals]
        return not any(passing) and not any(p.refusal is not None and p.refusal.passing for p in self.peeks)


class Member(NamedTuple):
    """A DICOM file of a study, with its packed header."""

    found: Found
    stat: str
    role: Role
    patient: str
    header: bytes
