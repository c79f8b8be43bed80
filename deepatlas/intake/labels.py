"""Structures of an exam, from RTSTRUCT, DICOM-SEG and label images, as one label image on the CT's grid.

Where structures overlap, the later one in the label table has the voxel, and a warning counts what it took. The one
exception is an outline of the whole body (EXTERNAL in an RTSTRUCT): it is painted first, under all others.

What structures are called in a file is free text. Without a name map or label table that says otherwise, only names
go in that :func:`deepatlas.intake.names.why_private` finds nothing in; others are listed by their number alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepatlas.data.grid import Grid
from deepatlas.data.io import image_suffix, read_volume
from deepatlas.data.volume import Volume
from deepatlas.errors import DataError
from deepatlas.intake import dicom_seg, rtstruct
from deepatlas.intake.drawing import Drawing, LabelSource, Patch, dicom_errors, place, shares_lattice
from deepatlas.intake.names import NameMap, clean_name, compact, identifier_tokens, why_private
from deepatlas.intake.types import DicomSeries, Found, Refusal, Structures

# A label image of this name says nothing about what one structure in it is.
_GENERIC = frozenset(
    ("seg", "segmentation", "label", "labels", "mask", "masks", "annotation", "groundtruth", "gt")
)
_MAX_ID = 65535


def read_structures(
    files: Sequence[Found],
    ct: Volume,
    labels: Mapping[str, int],
    *,
    names: NameMap | None = None,
    series: DicomSeries | None = None,
    source_labels: Mapping[str, int] | None = None,
) -> Structures:
    """Read the structures of one exam onto its CT's grid.

    Args:
        files: RTSTRUCT, DICOM-SEG (``.dcm`` or without suffix) and label images of this exam.
        ct: the CT; only its grid matters.
        labels: ``{name: id}`` of the dataset, ids from 1 to 65535; its order settles overlaps.
        names: which names of the sources mean which name of the dataset. Without it, a source's name means the one
            of ``labels`` that it equals but for case, spaces and punctuation. Sources that a map gives one name are
            joined; without a map, the first that has voxels is taken. Either is warned of.
        series: the CT's series, if it is DICOM; what was drawn on another series or frame of reference is refused.
        source_labels: ``{name: id}`` that the label images were painted with; without it their headers (3D Slicer),
            or the file's name for an image of one structure, say what they hold.

    Returns:
        :class:`Structures`, its labels uint8 or, for ids above 255, uint16. A structure that holds no voxel, is not
        wanted or cannot be drawn is in ``ignored`` with the reason; a file that cannot be used is in ``refused``.
        Neither they nor the warnings hold names that may identify somebody.
    """
    dtype = np.uint8 if max(labels.values(), default=0) < 256 else np.uint16
    result = Structures(Volume(np.zeros(ct.grid.shape, dtype=dtype), ct.grid, name=ct.name))
    wanted: dict[str, list[tuple[Drawing, str]]] = {}
    for file, source, identifiers in _sources(files, series, source_labels, result.refused):
        try:
            source.check(ct.grid)
        except DataError as error:
            result.refused.append(Refusal(file.name, str(error)))
            continue
        for drawing in source.drawings:
            name, reason = _resolve(drawing, identifiers, names, labels)
            if name is None or drawing.refusal:
                _ignore(result, _shown(drawing, identifiers), drawing.refusal or reason)
            else:
                wanted.setdefault(name, []).append((drawing, _shown(drawing, identifiers)))
    order = {name: position for position, name in enumerate(labels)}
    named = {value: name for name, value in labels.items()}
    outlines = {name for name, group in wanted.items() if any(drawing.outline for drawing, _ in group)}
    drawn = []
    for name in sorted(wanted, key=lambda n: (n not in outlines, order[n])):
        patches = _draw(name, wanted[name], ct.grid, names is not None, result)
        drawn += [name] if patches else []
        taken = {
            named[value]: count for value, count in _paint(result.labels.array, patches, labels[name]).items()
        }
        if counts := ", ".join(f"{n} of {other}" for other, n in taken.items() if other not in outlines):
            result.warnings.append(f"{name}: overlaps and, later in the label table, takes {counts} (voxels)")
    held = np.bincount(result.labels.array.ravel(), minlength=max(labels.values(), default=0) + 1)
    for name in sorted(drawn, key=order.__getitem__):
        if held[labels[name]]:
            result.present.append(name)
        else:
            _ignore(result, name, "all its voxels belong to structures later in the label table")
    return result


def structure_names(
    files: Sequence[Found],
    *,
    names: NameMap | None = None,
    series: DicomSeries | None = None,
    source_labels: Mapping[str, int] | None = None,
) -> list[str]:
    """The dataset's names of all structures in ``files`` that may go in, sorted, from headers alone.

    For :func:`~deepatlas.intake.names.label_table`, before any exam is read. Files that cannot be used are passed
    over; :func:`read_structures` says why.
    """
    found = set()
    for _, source, identifiers in _sources(files, series, source_labels, []):
        for drawing in source.drawings:
            name, _ = _resolve(drawing, identifiers, names, None)
            if name is not None and not drawing.refusal:
                found.add(name)
    return sorted(found)


# -- from names to voxels ---------------------------------------------------------------------------


def _resolve(
    drawing: Drawing, identifiers: frozenset[str], names: NameMap | None, labels: Mapping[str, int] | None
) -> tuple[str | None, str]:
    """What the dataset calls a structure, or None and why it does not go in; any name if ``labels`` is None."""
    if names is not None:
        name, reason = names.match(drawing.name)
        if name is None:
            return None, reason
    else:
        spelled = {compact(label): label for label in labels or ()}
        if key := compact(drawing.name):
            if key in spelled:
                return spelled[key], ""
        if reason := why_private(drawing.name, identifiers):
            return None, f"{reason}; say in a name map what it is"
        name = clean_name(drawing.name)
    if labels is not None and name not in labels:
        return None, "not in the label table"
    return name, ""


def _shown(drawing: Drawing, identifiers: frozenset[str]) -> str:
    """What a report may call a structure of the source."""
    name = " ".join(drawing.name.split())
    return f"structure {drawing.number}" if why_private(name, identifiers) else name


def _ignore(result: Structures, shown: str, reason: str) -> None:
    key, count = shown, 1
    while key in result.ignored:
        count += 1
        key = f"{shown} ({count})"
    result.ignored[key] = reason


def _draw(
    name: str, group: list[tuple[Drawing, str]], grid: Grid, join: bool, result: Structures
) -> list[Patch]:
    """The voxels of all drawings of one name; of the first that has any, unless they are to be joined."""
    patches: list[Patch] = []
    for drawing, shown in group:
        if patches and not join:
            _ignore(
                result,
                shown,
                f"{name} was already taken from a structure before it; tell them apart in a name map",
            )
            result.warnings.append(f"{name}: more than one structure has this name; the first is taken")
            continue
        notes: list[str] = []
        try:
            patch = drawing.draw(grid, notes)
        except DataError as error:
            _ignore(result, shown, str(error))
            continue
        if not patch.array.any():
            _ignore(result, shown, "; ".join(["no centre of the CT's voxels lies inside it", *notes]))
            continue
        result.warnings += [f"{name}: {note}" for note in notes]
        patches.append(patch)
    if len(patches) > 1:
        result.warnings.append(
            f"{name}: {len(patches)} structures joined, to which the name map gives this name"
        )
    return patches


def _paint(array: NDArray, patches: list[Patch], value: int) -> dict[int, int]:
    """Set the patches' voxels to ``value``; return how many of which other value they had."""
    taken: Counter[int] = Counter()
    for patch in patches:
        view = array[patch.box]
        before = np.bincount(view[patch.array])
        taken.update({int(i): int(before[i]) for i in np.flatnonzero(before) if i not in (0, value)})
        view[patch.array] = value
    return dict(sorted(taken.items()))


# -- files ------------------------------------------------------------------------------------------


def _sources(
    files: Sequence[Found],
    series: DicomSeries | None,
    source_labels: Mapping[str, int] | None,
    refused: list[Refusal],
) -> Iterator[tuple[Found, LabelSource, frozenset[str]]]:
    """Every file that can be used, with what it holds and the identifiers of its header."""
    for file in files:
        try:
            source = _open(file, series, source_labels)
        except DataError as error:
            refused.append(Refusal(file.name, _without_path(error, file)))
            continue
        patient = [series.patient] if series is not None else []
        yield file, source, identifier_tokens([*source.identifiers, *patient])


def _open(file: Found, series: DicomSeries | None, source_labels: Mapping[str, int] | None) -> LabelSource:
    if image_suffix(file.path):
        return _LabelImage(file).source(source_labels)
    import pydicom

    with dicom_errors("the file"):
        # force: some structure sets lack the preamble. What is no DICOM has no SOP class then.
        dataset = pydicom.dcmread(file.path, defer_size="1 MB", force=True)
        kind = str(dataset.get("SOPClassUID") or "")
        identifiers = _identifying(dataset)
    if kind == rtstruct.SOP_CLASS:
        source = rtstruct.read_rtstruct(dataset, series)
    elif kind in dicom_seg.SOP_CLASSES:
        source = dicom_seg.read_dicom_seg(dataset, series)
    else:
        raise DataError(
            "neither an RTSTRUCT nor a DICOM-SEG; structures come as one of these, or as label images"
        )
    source.identifiers += identifiers
    return source


def _identifying(dataset: Any) -> list[str]:
    """Values of a header that name the patient, or the people and the place of the examination."""
    values = [str(element.value) for element in dataset if element.VR == "PN" and element.value]
    for keyword in ("PatientID", "OtherPatientIDs", "AccessionNumber", "PatientBirthDate", "StudyID"):
        values.append(str(dataset.get(keyword) or ""))
    return values


def _without_path(error: DataError, file: Found) -> str:
    text = str(error)
    for path in (str(file.path), file.name):
        text = text.removeprefix(f"{path}: ").replace(path, "the file")
    return text


class _LabelImage:
    """A label image of NIfTI, NRRD or MetaImage; its voxels are read when it is checked against a grid."""

    def __init__(self, file: Found) -> None:
        self.file = file
        self.table: dict[str, int] = {}

    def source(self, table: Mapping[str, int] | None) -> LabelSource:
        self.table = dict(table or {}) or _slicer_segments(self.file)
        named = self.table
        if not named:
            stem = PurePath(self.file.name).name
            stem = stem[: len(stem) - len(image_suffix(stem))]
            if compact(stem) in _GENERIC:
                raise DataError('no labels.json names its structures; write one, for example {"liver": 1}')
            named = {stem: 0}
        drawings = [Drawing(name, value, partial(self.draw, value)) for name, value in named.items()]
        return LabelSource(drawings, check=self.check)

    def check(self, grid: Grid) -> None:
        """Read the voxels; raise :class:`DataError` if they are not on ``grid`` or hold what nothing names."""
        try:
            self.volume = read_volume(self.file.path, labels=True, notes=[])
        except DataError as error:
            raise DataError(_without_path(error, self.file)) from error
        if not shares_lattice(self.volume.grid, grid):
            corners = self.volume.grid.canonical()[0].corners(), grid.canonical()[0].corners()
            apart = float(np.linalg.norm(corners[0] - corners[1], axis=1).max())
            raise DataError(
                f"its geometry differs from the CT's (corners up to {apart:.1f} mm apart); "
                "draw or resample it on the CT's grid"
            )
        high = int(self.volume.array.max())
        if high > _MAX_ID:
            raise DataError(f"holds the label {high}, larger than {_MAX_ID}; renumber the labels")
        boxes = ndimage.find_objects(self.volume.array.astype(np.int32, copy=False))
        self.boxes = {value: box for value, box in enumerate(boxes, 1) if box is not None}
        if not self.table and len(self.boxes) > 1:
            raise DataError(f"holds {len(self.boxes)} structures that no labels.json names; write one")
        if self.table and (unknown := sorted(set(self.boxes) - set(self.table.values()))):
            some = ", ".join(map(str, unknown[:8])) + (" …" if len(unknown) > 8 else "")
            raise DataError(
                f"holds label ids that its label table does not name ({some}); add them or clear them"
            )

    def draw(self, value: int, grid: Grid, notes: list[str]) -> Patch:
        """The voxels of ``value``; of the only value there is, if it is 0."""
        value = value or next(iter(self.boxes), 0)
        if value not in self.boxes:
            raise DataError("empty: no voxel holds it")
        box = self.boxes[value]
        part = self.volume.grid.cropped(
            [side.start for side in box], [side.stop - side.start for side in box]
        )
        mask = self.volume.array[box] == value
        patch, _ = place(mask, part, grid)
        if lost := int(np.count_nonzero(mask)) - int(np.count_nonzero(patch.array)):
            notes.append(f"{lost} of its voxels lie beyond the CT; left out")
        return patch


def _slicer_segments(file: Found) -> dict[str, int]:
    """``{name: id}`` that 3D Slicer writes into the header of a ``.seg.nrrd``; empty for other files."""
    if image_suffix(file.path) not in (".nrrd", ".nhdr"):
        return {}
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file.path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return {}  # what is wrong is said when its voxels are read
    table: dict[str, int] = {}
    for key in reader.GetMetaDataKeys():
        segment = re.fullmatch(r"(Segment\d+_)LabelValue", key)
        if segment and reader.HasMetaDataKey(segment[1] + "Name"):
            value = reader.GetMetaData(key).strip()
            if not value.isdecimal() or not 1 <= int(value) <= _MAX_ID:
                raise DataError("its header gives a segment a label value that is no id; save it again")
            name = reader.GetMetaData(segment[1] + "Name")
            if name in table or int(value) in table.values():
                raise DataError("its header names a segment twice; rename it and save it again")
            table[name] = int(value)
    return table
