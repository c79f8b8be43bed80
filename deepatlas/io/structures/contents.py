"""What the header of an RTSTRUCT or a DICOM-SEG tells of its structures, without their contours or pixels.

It is found when the file is first looked at and travels with the exam's plan, so that the file is opened once more
only, by the worker that draws the structures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deepatlas.errors import DataError
from deepatlas.io.dicom.series import DicomSeries
from deepatlas.io.structures.ignored import Ignored, Why

_OTHER_FRAME = "drawn in another frame of reference than the CT"


@dataclass(frozen=True)
class Structure:
    """One structure of a source. ``name`` is free text of the source, ``number`` its number there."""

    name: str
    number: int
    # It is the outer contour of the body, which encloses all other structures.
    outline: bool = False
    # The name is from a label table that somebody wrote, and is used as it is.
    given: bool = False
    # Its own FrameOfReferenceUID, if it has one.
    frame: str = ""
    # Why it cannot be drawn, if its header tells.
    ignored: Ignored | None = None


@dataclass(frozen=True)
class Reference:
    """A frame of reference that a file names, with the series and images (their UIDs) that it was drawn on."""

    frame: str
    series: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LabelContents:
    """The structures of one file, what it was drawn on, and the identifying values of its header.

    ``problem`` is the reason why nothing of the file can be used, or the empty string.
    """

    structures: tuple[Structure, ...] = ()
    references: tuple[Reference, ...] = ()
    identifiers: tuple[str, ...] = ()
    problem: str = ""
    # The images that the file names tell more than its frame of reference: some programs give that a UID of its own.
    images_count: bool = False

    def drawn_on(self, series: DicomSeries | None) -> list[Structure]:
        """The structures, those of another frame of reference than that of ``series`` marked as ignored.

        Raises :class:`~deepatlas.errors.DataError` if the file cannot be used or was drawn on another series. Nothing
        is compared if ``series`` is None.
        """
        if self.problem:
            raise DataError(self.problem)
        if series is None:
            return list(self.structures)
        same = self._frames_by_images(series)
        if not same:
            _check_references(self.references, series)

        def elsewhere(structure: Structure) -> bool:
            return _differ(structure.frame, series.frame) and structure.frame not in same

        found = [
            replace(s, ignored=Ignored(Why.UNUSABLE, _OTHER_FRAME)) if elsewhere(s) else s
            for s in self.structures
        ]
        if all(map(elsewhere, found)):
            raise DataError(
                f"{_OTHER_FRAME}; register it to the CT, or choose the series that it was drawn on"
            )
        return found

    def remarks(self, series: DicomSeries | None) -> list[str]:
        """What is odd about a file that may be used."""
        if series is None or not self._frames_by_images(series):
            return []
        return [
            "it names another frame of reference than the CT, but the CT's own images; taken as drawn on them, so "
            "check that structures are where they should be"
        ]

    def _frames_by_images(self, series: DicomSeries) -> frozenset[str]:
        """The frames of reference that are the CT's under another UID: most images that they name are the CT's."""
        named = any(not _differ(reference.frame, series.frame) for reference in self.references)
        if named or not self.images_count:
            return frozenset()
        own = frozenset(series.sop_uids)
        return frozenset(r.frame for r in self.references if 2 * len(r.images & own) > len(r.images))


def _check_references(references: Sequence[Reference], series: DicomSeries) -> None:
    """Raise :class:`~deepatlas.errors.DataError` if a file was drawn in another frame or on another series.

    What the file or the CT leaves empty is not compared. Images count before series: a file that names one of the
    CT's images belongs to it, whatever series UID stands above them.
    """
    if not references or (len(references) > 1 and not series.frame):
        return
    reference = next((r for r in references if r.frame == series.frame), references[0])
    if _differ(reference.frame, series.frame):
        raise DataError(
            "drawn in another frame of reference than the CT; register it to the CT, or choose the series that "
            "it was drawn on"
        )
    # The parts of a series that was split share one SeriesInstanceUID.
    if reference.series and series.uids.isdisjoint(reference.series):
        if reference.images.isdisjoint(series.sop_uids):
            raise DataError("drawn on another series than the CT; choose that series for the exam")


def _differ(frame: str, other: str) -> bool:
    """Whether two FrameOfReferenceUIDs are given and differ."""
    return bool(frame and other and frame != other)
