"""Which images are CTs, and which CT a label image was drawn on.

What an image is, its voxels decide: few distinct whole numbers from 0 are labels, whatever the file is called. Names
and folders suggest which CT they belong to, and of several CTs the grid decides. An image that is no CT never becomes
an exam.

A label image belongs to the CT

- whose case its name begins with: ``case_seg`` to ``case``, ``segmentation-0`` to ``volume-0``, ``label0001`` to
  ``img0001``; and ``labelsTr/x`` to ``imagesTr/x_0000`` (the number of a channel of nnU-Net);
- that lies in its folder, or above it (``ct.nii.gz`` and ``segmentations/liver.nii.gz``), if that is the only one;
- of the folder that is called as its own, or as the label image (``images/case1/ct`` and ``labels/case1/seg``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from deepatlas.exams.kind import IMAGE_NAMES
from deepatlas.intake.find.naming import folder_name, folder_of, parent_folder, stem_of
from deepatlas.intake.find.stems import DRAWN, Words, folded, other_case, says_drawn, structure_of, words_of
from deepatlas.intake.structures.anatomy import is_anatomical
from deepatlas.intake.structures.label_images import Naming
from deepatlas.io.dicom.found import Found
from deepatlas.io.glance import Glance, Holds
from deepatlas.io.structures.drawing import shares_lattice
from deepatlas.space.grid import Grid

# Folders that contain label images only.
_LABEL_FOLDERS = (*DRAWN, "labelstr", "labelsts", "maskstr", "masksts", "structures")
# Learn2Reg puts masks of the body there, whose 1 is not the 1 of the label table.
_UNNUMBERED = ("maskstr", "masksts")
# The folders of label images that lie beside a folder of CTs.
_BESIDE = {"imagestr": ("labelstr",), "imagests": ("labelsts",), "images": ("labels", "masks")}

_ALONE = "named as a label image, but no CT belongs to it; add ct.nii.gz beside it"
_LABELS_ALONE = (
    "holds few whole numbers from 0, as a label image does, and no CT that it was drawn on is there; "
    "add the CT under the same name"
)
_UNNAMED = (
    "a mask beside the label image in labelsTr, and nothing names it; name its structure in a file of its own"
)
_FRACTIONS = (
    "holds small fractions from 0, as a probability map or a blurred label image does, so it is no CT; "
    "give the label image instead"
)
_OTHER_GRID = (
    "a label image that is called like a CT, but does not lie on its grid; draw or resample it on that grid"
)


class Image(NamedTuple):
    """An image file, and what a glance at it told."""

    found: Found
    seen: Glance


@dataclass
class Matched:
    """``labels`` are the label images of each CT, by the name of its file, and how their structures are named.

    ``refused`` tells why an image is neither a CT nor belongs to one.
    """

    cts: list[Found] = field(default_factory=list)
    labels: dict[str, list[tuple[Found, Naming]]] = field(default_factory=dict)
    refused: list[tuple[Found, str]] = field(default_factory=list)


class _Scan(NamedTuple):
    """A CT with its place and the words of its case (none in ``ct.nii.gz``)."""

    image: Image
    folder: str
    words: Words
    # Only the whole name of a label image may meet these words.
    whole: bool = False


def is_label_image(found: Found) -> bool:
    """Whether an image is named like a label image, or lies in a folder of label images."""
    return folder_name(folder_of(found.name)) in _LABEL_FOLDERS or says_drawn(stem_of(found))


def match(images: Iterable[Image]) -> Matched:
    """Tell CTs and label images apart, and find the CT of every label image."""
    result = Matched()
    scans: list[Image] = []
    # Label images, and images of zeros, which are empty masks if they lie on the grid of a CT.
    drawn: list[Image] = []
    for image in images:
        if image.seen.holds is Holds.FRACTIONS:
            result.refused.append((image.found, _FRACTIONS))
        elif image.seen.holds in (Holds.LABELS, Holds.NOTHING) or _named_drawn(image):
            drawn.append(image)
        else:
            scans.append(image)
    index = _Index(scans)
    for image in drawn:
        fit, rest = index.of(image)
        if len(fit) == 1:
            stem = stem_of(image.found)
            naming = Naming(structure_of(stem, rest))
            result.labels.setdefault(fit[0].image.found.name, []).append((image.found, naming))
        elif fit:
            reason = (
                f"a label image whose name fits {len(fit)} CTs; name it after the one that it was drawn on"
            )
            result.refused.append((image.found, reason))
        elif image.seen.holds is Holds.NOTHING and not is_label_image(image.found):
            # Reading it as a CT tells that it holds nothing.
            scans.append(image)
        elif index.namesake(image):
            result.refused.append((image.found, _OTHER_GRID))
        else:
            named = is_label_image(image.found)
            result.refused.append((image.found, _ALONE if named else _LABELS_ALONE))
    seen = {image.found.name: image.seen for image in drawn}
    for ct, labels in result.labels.items():
        if {_folder(f) for f, _ in labels} & {"labelstr", "labelsts"}:
            result.refused += [(f, _UNNAMED) for f, _ in labels if _folder(f) in _UNNUMBERED]
            labels = [(f, naming) for f, naming in labels if _folder(f) not in _UNNUMBERED]
        result.labels[ct] = _masks_alone(labels, seen)
    result.cts = sorted((image.found for image in scans), key=lambda f: (folder_of(f.name), f.name))
    return result


def _folder(found: Found) -> str:
    return folder_name(folder_of(found.name))


def _named_drawn(image: Image) -> bool:
    """Whether the name has to tell that an image is a label image."""
    if image.seen.holds is Holds.IMAGE and stem_of(image.found).lower() in IMAGE_NAMES:
        # A CT in a folder that is called "mask".
        return False
    return is_label_image(image.found)


def _masks_alone(
    labels: list[tuple[Found, Naming]], seen: Mapping[str, Glance]
) -> list[tuple[Found, Naming]]:
    """Several masks of one structure each, in files that are called after it, are not numbered by a label table."""
    single = {f.name for f, naming in labels if naming.structure and len(seen[f.name].ids) <= 1}
    if len(single) < 2:
        return labels
    return [(f, Naming(naming.structure, alone=f.name in single)) for f, naming in labels]


class _Index:
    """The CTs of a source, by folder and by the words of their cases."""

    def __init__(self, scans: Iterable[Image]) -> None:
        self.within: dict[str, list[_Scan]] = defaultdict(list)
        self.cases: dict[Words, list[_Scan]] = defaultdict(list)
        # Folders that hold a CT at any depth.
        self.above: set[str] = set()
        for image in scans:
            folder = folder_of(image.found.name)
            scan = _Scan(image, folder, words_of(stem_of(image.found)))
            self.within[folder].append(scan)
            self.above.update(_upwards(folder))
            if scan.words:
                self.cases[folded(scan.words)].append(scan)
                if scan.words[-1] == "0000":
                    shorter = scan._replace(words=scan.words[:-1], whole=True)
                    self.cases[folded(shorter.words)].append(shorter)
            elif folder:
                self.cases[folded(words_of(_last(folder)))].append(scan._replace(whole=True))

    def of(self, image: Image) -> tuple[list[_Scan], Words | None]:
        """The CTs that a label image may belong to, and the words of its name after those of the case."""
        words, folder = words_of(stem_of(image.found)), folder_of(image.found.name)
        for count in range(len(words), 0, -1):
            rest = words[count:]
            fit = [s for s in self.cases.get(folded(words[:count]), ()) if not (s.whole and rest)]
            # A CT in the folder of the label image, or in the folder beside it, is the CT by its name alone. Farther
            # away, or if more words follow, the grid has to be that of the CT.
            sure = [] if rest else [s for s in fit if s.folder == folder or _beside(s.folder, folder)]
            fit = _nearest(sure, folder) or _nearest([s for s in fit if _on_grid(image, s)], folder)
            if fit:
                return _best(image, fit), rest
        if fit := self._around(image, words, folder):
            return fit, None
        for name in (folded(words_of(_last(folder))), folded(words_of(_last(parent_folder(folder))))):
            fit = [s for s in self.cases.get(name, ()) if name and s.folder != folder and _on_grid(image, s)]
            if fit := _nearest(fit, folder):
                return _best(image, fit), None
        return [], None

    def namesake(self, image: Image) -> bool:
        """Whether a CT is called after the case of a label image."""
        return bool(self.cases.get(folded(words_of(stem_of(image.found)))))

    def _around(self, image: Image, words: Words, folder: str) -> list[_Scan]:
        """The CT in the folder of a label image; or, for a folder of label images alone, in the folder above it."""
        own = bool(self.within.get(folder))
        place = folder
        while not self.within.get(place):
            if not place or place in self.above:
                return []
            place = parent_folder(place)
        fit = _best(image, _called_ct(self.within[place]))
        if len(fit) != 1:
            return []
        (scan,) = fit
        named = is_label_image(image.found)
        if not named and not _on_grid(image, scan):
            return []
        # A CT of another name may be that of another patient.
        if not words or not scan.words or stem_of(scan.image.found).lower() in IMAGE_NAMES or not own:
            return fit
        structure = is_anatomical("_".join(words)) and not other_case(words, scan.words)
        return fit if structure and not named and _on_grid(image, scan) else []


def _called_ct(scans: list[_Scan]) -> list[_Scan]:
    """Those of the CTs of a folder that are called ``ct``, else those whose name names no case, else all."""
    return (
        [s for s in scans if stem_of(s.image.found).lower() in IMAGE_NAMES]
        or [s for s in scans if not s.words]
        or scans
    )


def _best(image: Image, fit: list[_Scan]) -> list[_Scan]:
    """Of several CTs those on the grid of the label image, first those with the same voxels."""
    grid = image.seen.grid
    if len(fit) < 2 or grid is None:
        return fit
    on_grid = [s for s in fit if s.image.seen.grid is not None and _on_grid(image, s)]
    return [s for s in on_grid if _same(grid, s.image.seen.grid)] or on_grid or fit


def _on_grid(image: Image, scan: _Scan) -> bool:
    """Whether the voxels coincide, as far as both grids are known."""
    grid, of = image.seen.grid, scan.image.seen.grid
    return grid is None or of is None or shares_lattice(grid, of)


def _same(grid: Grid, other: Grid | None) -> bool:
    return other is not None and grid.shape == other.shape


def _nearest(fit: list[_Scan], folder: str) -> list[_Scan]:
    """The CTs with the longest common path with a folder."""
    if not fit:
        return []
    up = list(_upwards(folder))

    def away(scan: _Scan) -> int:
        there = set(_upwards(scan.folder))
        return next(steps for steps, place in enumerate(up) if place in there)

    least = min(map(away, fit))
    return [s for s in fit if away(s) == least]


def _upwards(folder: str) -> Iterator[str]:
    """A folder and all folders above it, up to the source."""
    while folder:
        yield folder
        above = parent_folder(folder)
        # The root of an archive lies in the folder of the archive.
        folder = folder_of(folder.rstrip("!")) if above == folder else above
    yield ""


def _beside(scans: str, labels: str) -> bool:
    """Whether a folder of label images belongs to a folder of CTs."""
    names = _BESIDE.get(folder_name(scans), ())
    return folder_name(labels) in names and parent_folder(scans) == parent_folder(labels)


def _last(folder: str) -> str:
    return folder.replace("!", "/").rstrip("/").rpartition("/")[2]
