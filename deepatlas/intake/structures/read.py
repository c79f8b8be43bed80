"""Structures of an exam, from RTSTRUCT, DICOM-SEG and label images, as one label image on the CT's grid.

Where structures overlap, the smaller one (by the voxels of its own mask) has the voxel, so that a tumour is not lost
in the lung that it grows in; of two equal ones the later in the label table. Planning volumes that hold healthy tissue
by design (PTV, CTV, ITV) leave it to the anatomy. A name map is an order that somebody gave: with one, the later has
the voxel, whatever it is. A warning counts what was taken. An outline of the whole body (EXTERNAL in an RTSTRUCT) is
painted first in any case, under all others.

What structures are called in a file is free text. Without a name map or label table that says otherwise, only names
go in that :func:`deepatlas.intake.structures.name_map.why_private` finds nothing in, in lower case with underscores;
others are listed by their number alone. The names of a label table beside label images go in as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError
from deepatlas.intake.structures import dicom_seg, rtstruct
from deepatlas.intake.structures.drawing import Bits, Drawing, LabelSource, Patch, dicom_errors, without_path
from deepatlas.intake.structures.label_images import LabelImage
from deepatlas.intake.structures.name_map import (
    NameMap,
    clean_name,
    compact,
    identifier_tokens,
    is_margin,
    why_private,
)
from deepatlas.io.codec import image_suffix
from deepatlas.io.dicom.series import DicomSeries, Found, Refusal, Structures
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

_DEFLATED = "1.2.840.10008.1.2.1.99"
_UNDEFINED = 0xFFFFFFFF  # length of an element that ends with a delimiter
_BULK = (0x3006, 0x5200, 0x7FE0)  # groups of contours, frames and pixels
_IDENTIFYING = (
    "PatientID OtherPatientIDs AccessionNumber PatientBirthDate StudyID PatientAddress PatientTelephoneNumbers "
    "InstitutionName InstitutionAddress StationName"
).split()


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
        labels: ``{name: id}`` of the dataset, ids from 1 to 65535; its order settles overlaps where there are
            ``names``, and otherwise those of structures of equal size.
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
    held: Counter[str] = Counter()
    ordered = sorted(wanted, key=lambda n: (n not in outlines, order[n]))
    layers = ((name, _draw(name, wanted[name], ct.grid, names is not None, result)) for name in ordered)
    above = "later in the label table"
    if names is None:
        layers, above = _largest_first(layers, outlines), "on top"
    for name, patches in layers:
        for patch in patches:
            taken = _paint(result.labels.array, patch, labels[name])
            held[name] += int(np.count_nonzero(patch.array)) - taken.pop(labels[name], 0)
            held.subtract({named[value]: count for value, count in taken.items()})
            if counts := ", ".join(
                f"{n} of {named[v]}" for v, n in taken.items() if named[v] not in outlines
            ):
                result.warnings.append(f"{name}: overlaps and, {above}, takes {counts} (voxels)")
    for name in sorted(held, key=order.__getitem__):
        if held[name]:
            result.present.append(name)
        else:
            _ignore(result, name, f"all its voxels belong to structures {above}")
    return result


def structure_names(
    files: Sequence[Found],
    *,
    names: NameMap | None = None,
    series: DicomSeries | None = None,
    source_labels: Mapping[str, int] | None = None,
) -> list[str]:
    """The dataset's names of all structures in ``files`` that may go in, sorted, from headers alone.

    For :func:`~deepatlas.intake.structures.name_map.label_table`, before any exam is read. Files that cannot be used
    are passed over; :func:`read_structures` says why.
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
        name = drawing.name if drawing.given else clean_name(drawing.name)
        if not drawing.given and (reason := why_private(drawing.name, identifiers)):
            return None, f"{reason}; say in a name map what it is"
    if labels is not None and name not in labels:
        return None, "not in the label table"
    return name, ""


def _shown(drawing: Drawing, identifiers: frozenset[str]) -> str:
    """What a report may call a structure of the source."""
    name = " ".join(drawing.name.split())
    return name if drawing.given or not why_private(name, identifiers) else f"structure {drawing.number}"


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


def _largest_first(
    layers: Iterable[tuple[str, list[Patch]]], outlines: Collection[str]
) -> Iterator[tuple[str, list[Patch]]]:
    """Outlines, then margins, then the rest, each by falling number of voxels; equal ones in the order they come in."""
    waiting = []
    for name, patches in layers:  # all are drawn before the first is painted
        voxels = sum(int(np.count_nonzero(patch.array)) for patch in patches)
        bits = [(patch.start, Bits.of(patch.array)) for patch in patches]
        rank = 0 if name in outlines else 1 if is_margin(name) else 2
        waiting.append((rank, -voxels, name, bits))
    for _, _, name, bits in sorted(waiting, key=lambda layer: layer[:2]):
        yield name, [Patch(start, mask.array()) for start, mask in bits]


def _paint(array: NDArray, patch: Patch, value: int) -> dict[int, int]:
    """Set the patch's voxels to ``value``; return how many had which id already (0 left out)."""
    view = array[patch.box]
    before = view[patch.array]
    counts = np.bincount(before[before != 0])
    view[patch.array] = value
    return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}


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
            refused.append(Refusal(file.name, without_path(error, file.path)))
            continue
        patient = [series.patient] if series is not None else []
        yield file, source, identifier_tokens([*source.identifiers, *patient])


def _open(file: Found, series: DicomSeries | None, source_labels: Mapping[str, int] | None) -> LabelSource:
    if image_suffix(file.path):
        return LabelImage(file).source(source_labels)
    import pydicom

    with dicom_errors("the file"):
        # force: some structure sets lack the preamble. What is no DICOM has no SOP class then.
        dataset = pydicom.dcmread(file.path, defer_size="1 MB", force=True)
        kind = str(dataset.get("SOPClassUID") or "")
        if kind != rtstruct.SOP_CLASS and kind not in dicom_seg.SOP_CLASSES:
            raise DataError(
                "neither an RTSTRUCT nor a DICOM-SEG; structures come as one of these, or as label images"
            )
        _check_whole(dataset, file)
        identifiers = _identifying(dataset)
    read = rtstruct.read_rtstruct if kind == rtstruct.SOP_CLASS else dicom_seg.read_dicom_seg
    source = read(dataset, series)
    source.identifiers += identifiers
    return source


def _check_whole(dataset: Any, file: Found) -> None:
    """pydicom reads a cut file to its end without a word; contours after the cut would be missed."""
    from pydicom.dataelem import RawDataElement

    if dataset.file_meta.get("TransferSyntaxUID") == _DEFLATED:
        return  # places are those of the inflated stream, whose end zlib watches over
    size = file.path.stat().st_size
    for tag in dataset.keys():
        raw = dataset.get_item(tag, keep_deferred=True)
        if (
            isinstance(raw, RawDataElement)
            and raw.length != _UNDEFINED
            and raw.value_tell + raw.length > size
        ):
            raise DataError(
                f"truncated, {size} of at least {raw.value_tell + raw.length} bytes are there; copy it again"
            )


def _identifying(dataset: Any) -> list[str]:
    """Values of a header that name the patient, or the people and the place of the examination."""
    elements = (dataset[tag] for tag in dataset.keys() if tag.group not in _BULK)
    values = [str(element.value) for element in elements if element.VR == "PN" and element.value]
    values += [str(dataset.get(keyword) or "") for keyword in _IDENTIFYING]
    for item in dataset.get("RTROIObservationsSequence") or []:
        values.append(str(item.get("ROIInterpreter") or ""))
    return values
