"""Read the structures of an exam, from RTSTRUCT, DICOM-SEG and label images, on the CT's grid.

Every structure keeps its whole mask. In the label image, which has one structure a voxel, the smaller of two that
overlap lies on top (by the voxels of its own mask), so that a tumour is seen in the lung in which it grows; of two
equal ones, the later in the label table. Planning volumes that contain healthy tissue by design (PTV, CTV, ITV) lie
below the anatomy. A name map states an order: with one, the later structure lies on top. An outline of the whole body
(EXTERNAL in an RTSTRUCT) lies below all others in any case.

The names of structures in a file are free text. Without a name map or a label table that says otherwise, only names
that :func:`deepatlas.intake.privacy.names.why_private` has no objection to are used, in lower case with underscores;
others are listed by their number alone. The names of a label table that belongs to label images are used as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from deepatlas.errors import DataError
from deepatlas.intake.privacy.names import clean_name, identifier_tokens, why_private
from deepatlas.intake.structures.label_images import LabelImage, Naming
from deepatlas.intake.structures.name_map import NameMap
from deepatlas.io.codec import image_suffix
from deepatlas.io.dicom.found import Found, Refusal
from deepatlas.io.dicom.series import DicomSeries
from deepatlas.io.structures.contents import LabelContents, Structure
from deepatlas.io.structures.drawing import Drawing, LabelSource, without_path
from deepatlas.io.structures.ignored import EmptyStructure, Ignored, Why
from deepatlas.io.structures.label_object import open_label_object
from deepatlas.names.meet import compact
from deepatlas.space.grid import Grid
from deepatlas.space.labels import BoxMask, Labels, stacked
from deepatlas.space.volume import Volume


@dataclass
class Structures:
    """The structures on the grid of a CT, and what became of every structure of the sources.

    ``labels`` holds a label image of uint8 or uint16, and what it hides where structures overlap:
    ``labels.mask(id)`` is the whole mask of a structure. ``present`` lists the names of the dataset that have voxels,
    ``ignored`` maps names of the source to the reason why they were left out, and ``refused`` lists the files of which
    nothing was used. ``true_names`` has the source's spelling of the names in ``ignored``, which may identify a person.
    """

    labels: Labels
    present: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ignored: dict[str, Ignored] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    true_names: dict[str, str] = field(default_factory=dict)


def read_structures(
    files: Sequence[Found],
    ct: Volume,
    labels: Mapping[str, int],
    *,
    names: NameMap | None = None,
    series: DicomSeries | None = None,
    source_labels: Mapping[str, int] | None = None,
    naming: Mapping[str, Naming] | None = None,
) -> Structures:
    """Read the structures of one exam onto the grid of its CT.

    Args:
        files: RTSTRUCT, DICOM-SEG (``.dcm`` or without suffix) and label images of this exam.
        ct: the CT; only its grid matters.
        labels: ``{name: id}`` of the dataset, with ids from 1 to 65535. Its order decides which structure lies on top
            in the label image if there are ``names``, otherwise only between structures of equal size.
        names: maps the names of the sources to names of the dataset. Without it, a source's name means the name of
            ``labels`` that it equals apart from case, spaces and punctuation. Several sources with one name are joined
            if a map gives them the name; without a map, the first that has voxels is used. Both cause a warning.
        series: the series of the CT, if it is DICOM. Files that were drawn on another series or in another frame of
            reference are refused.
        source_labels: ``{name: id}`` that the label images were painted with. Without it, their headers (3D Slicer),
            or the file's name for an image of one structure, tell what they hold.
        naming: ``{name of a file: what its place tells of its names}`` of label images.

    Returns:
        :class:`Structures`. A structure that has no voxel, is not wanted or cannot be drawn is in ``ignored`` with the
        reason, a file that cannot be used in ``refused``. Neither these nor the warnings contain names that may
        identify a person; ``true_names`` does.
    """
    dtype = np.uint8 if max(labels.values(), default=0) < 256 else np.uint16
    result = Structures(Labels(np.zeros(ct.grid.shape, dtype=dtype), ct.grid, ct.name))
    wanted: dict[str, list[tuple[Drawing, str]]] = {}
    for file, source, identifiers in _sources(files, series, source_labels, naming, result.refused):
        try:
            source.check(ct.grid)
        except DataError as error:
            result.refused.append(Refusal(file.name, str(error)))
            continue
        result.warnings += source.notes
        for drawing in source.drawings:
            shown = _shown(drawing.structure, identifiers)
            name = drawing.structure.ignored or _resolve(drawing.structure, identifiers, names, labels)
            if isinstance(name, Ignored):
                _ignore(result, drawing.structure, shown, name)
            else:
                wanted.setdefault(name, []).append((drawing, shown))
    outlines = {
        name for name, group in wanted.items() if any(drawing.structure.outline for drawing, _ in group)
    }
    drawn: dict[str, BoxMask] = {}
    for name in (name for name in labels if name in wanted):
        if masks := _draw(name, wanted[name], ct.grid, names is not None, result):
            drawn[name] = BoxMask.union(masks)
    result.present = list(drawn)
    if names is None:
        order = stacked({name: mask.count() for name, mask in drawn.items()}, outlines)
    else:
        order = sorted(drawn, key=lambda name: name not in outlines)
    result.labels = Labels.painted(((labels[name], drawn[name]) for name in order), ct.grid, dtype, ct.name)
    return result


def structure_names(
    files: Sequence[Found],
    *,
    names: NameMap | None = None,
    series: DicomSeries | None = None,
    source_labels: Mapping[str, int] | None = None,
    naming: Mapping[str, Naming] | None = None,
    contents: Mapping[str, LabelContents] | None = None,
) -> list[str]:
    """The dataset's names, sorted, of all structures in ``files`` that may be used, from headers alone.

    This is for :func:`~deepatlas.intake.structures.name_map.label_table`, before any exam is read. Files that cannot
    be used are passed over; :func:`read_structures` gives the reasons.

    Args:
        contents: ``{name of a file: its contents}`` of the files whose headers have been read; others are opened.
    """
    found = set()
    for file in files:
        try:
            if contents is not None and file.name in contents:
                structures = contents[file.name].drawn_on(series)
                identifiers = contents[file.name].identifiers
            else:
                source = _open(file, series, source_labels, naming)
                structures = [drawing.structure for drawing in source.drawings]
                identifiers = tuple(source.identifiers)
        except DataError:
            continue
        tokens = _tokens(identifiers, series)
        for structure in structures:
            name = structure.ignored or _resolve(structure, tokens, names, None)
            if not isinstance(name, Ignored):
                found.add(name)
    return sorted(found)


# -- from names to voxels ---------------------------------------------------------------------------


def _resolve(
    structure: Structure,
    identifiers: frozenset[str],
    names: NameMap | None,
    labels: Mapping[str, int] | None,
) -> str | Ignored:
    """What the dataset calls a structure, or why it is left out. Without ``labels`` every name will do."""
    if names is not None:
        name, reason = names.match(structure.name)
        if name is None:
            return reason
    else:
        spelled = {compact(label): label for label in labels or ()}
        if key := compact(structure.name):
            if key in spelled:
                return spelled[key]
        name = structure.name if structure.given else clean_name(structure.name)
        if not structure.given and (objection := why_private(structure.name, identifiers)):
            return Ignored(Why.UNUSABLE, f"{objection}; say in a name map what it is")
    if labels is not None and name not in labels:
        return Ignored(Why.NOT_IN_TABLE, "not in the label table")
    return name


def _shown(structure: Structure, identifiers: frozenset[str]) -> str:
    """What a report may call a structure of the source."""
    name = " ".join(structure.name.split())
    if structure.given or not why_private(name, identifiers):
        return name
    return f"structure {structure.number}"


def _ignore(result: Structures, structure: Structure, shown: str, ignored: Ignored) -> None:
    """Add to the ignored structures, under a name that is not yet there."""
    key, count = shown, 1
    while key in result.ignored:
        count += 1
        key = f"{shown} ({count})"
    result.ignored[key] = ignored
    result.true_names[key] = structure.name


def _draw(
    name: str, group: list[tuple[Drawing, str]], grid: Grid, join: bool, result: Structures
) -> list[BoxMask]:
    """The masks of all drawings of one name if they are to be joined, otherwise of the first that has any voxel."""
    masks: list[BoxMask] = []
    for drawing, shown in group:
        if masks and not join:
            reason = f"{name} was already taken from a structure before it; tell them apart in a name map"
            _ignore(result, drawing.structure, shown, Ignored(Why.UNUSABLE, reason))
            result.warnings.append(f"{name}: more than one structure has this name; the first is taken")
            continue
        notes: list[str] = []
        try:
            patch = drawing.draw(grid, notes)
        except DataError as error:
            why = Why.EMPTY if isinstance(error, EmptyStructure) else Why.UNUSABLE
            _ignore(result, drawing.structure, shown, Ignored(why, str(error)))
            continue
        if not patch.array.any():
            reason = "; ".join(["no centre of the CT's voxels lies inside it", *notes])
            _ignore(result, drawing.structure, shown, Ignored(Why.UNUSABLE, reason))
            continue
        result.warnings += [f"{name}: {note}" for note in notes]
        masks.append(BoxMask.of(patch.array, patch.start))
    if len(masks) > 1:
        result.warnings.append(
            f"{name}: {len(masks)} structures joined, to which the name map gives this name"
        )
    return masks


# -- files ------------------------------------------------------------------------------------------


def _sources(
    files: Sequence[Found],
    series: DicomSeries | None,
    source_labels: Mapping[str, int] | None,
    naming: Mapping[str, Naming] | None,
    refused: list[Refusal],
) -> Iterator[tuple[Found, LabelSource, frozenset[str]]]:
    """Every file that can be used, with what it holds and the words that no name may contain."""
    for file in files:
        try:
            source = _open(file, series, source_labels, naming)
        except DataError as error:
            refused.append(Refusal(file.name, without_path(error, file.path)))
            continue
        yield file, source, _tokens(source.identifiers, series)


def _tokens(identifiers: Sequence[str], series: DicomSeries | None) -> frozenset[str]:
    return identifier_tokens([*identifiers, *([series.patient] if series is not None else [])])


def _open(
    file: Found,
    series: DicomSeries | None,
    source_labels: Mapping[str, int] | None,
    naming: Mapping[str, Naming] | None,
) -> LabelSource:
    if image_suffix(file.path):
        return LabelImage(file).source(source_labels, (naming or {}).get(file.name))
    return open_label_object(file.path, series)
