"""Masks of an exam in files of their own, ``segmentations/<structure>.nii.gz``, which may overlap."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from deepatlas.errors import DataError
from deepatlas.io.codec import image_suffix, read_image, write_volume
from deepatlas.space.labels import BoxMask, Labels, stacked
from deepatlas.space.volume import Volume
from deepatlas.store.fit import check_labels

# The folder of the masks, beside the CT.
MASKS = "segmentations"
# What no system, or not every system, accepts in the name of a file.
_REFUSED = re.compile(r'[\\/:*?"<>|\x00-\x1f]|^[. ]|[. ]$')


def mask_stems(names: Iterable[str]) -> dict[str, str]:
    """What the file of each structure is called, without suffix: its name, with ``_`` for what file systems refuse.

    Raises :class:`~deepatlas.errors.DataError` if two structures would have one file; letters of different case are
    not told apart by every system.
    """
    stems = {name: _REFUSED.sub("_", name) or "_" for name in names}
    owner: dict[str, str] = {}
    for name, stem in stems.items():
        other = owner.setdefault(stem.casefold(), name)
        if other != name:
            raise DataError(f"structures {other!r} and {name!r}: their masks would have one file; rename one")
    return stems


def mask_paths(folder: Path, names: Iterable[str], suffix: str = ".nii.gz") -> dict[str, Path]:
    """The file in ``folder`` of the mask of each structure."""
    return {name: folder / f"{stem}{suffix}" for name, stem in mask_stems(names).items()}


def write_masks(
    folder: Path, labels: Labels, names: Mapping[str, int], suffix: str = ".nii.gz"
) -> list[Path]:
    """Write the whole mask of each structure of ``names`` (``{name: id}``) as a file (uint8, 0 and 1)."""
    return [
        write_volume(path, Volume(labels.mask(names[name]).astype(np.uint8), labels.grid, name))
        for name, path in mask_paths(folder, names, suffix).items()
    ]


def masks_in(folder: Path) -> dict[str, Path]:
    """The images in a folder of masks, by their names without suffix, in the order of the names."""
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != "."):
        if suffix := image_suffix(path):
            stem = path.name[: len(path.name) - len(suffix)]
            if stem in found:
                raise DataError(
                    f"{folder}: more than one mask {stem} ({found[stem].name}, {path.name}); keep one"
                )
            found[stem] = path
    return found


def read_masks(folder: Path, ct: Volume, labels: Mapping[str, int], notes: list[str]) -> Labels:
    """Read the masks of a folder as the structures of an exam, each as a whole.

    Args:
        folder: holds one image for each structure, whose voxels are 0 outside it.
        ct: the CT of the exam, on whose grid the masks must be.
        labels: ``{name: id}`` of the structures. A mask that they do not name is left out, with a note.
        notes: a list to which remarks are appended.

    Raises :class:`~deepatlas.errors.DataError` if a mask cannot be read, lies on another grid, or holds several ids.
    """
    files = masks_in(folder)
    stems = {stem: name for name, stem in mask_stems(labels).items()}
    drawn: dict[str, BoxMask] = {}
    for stem, path in files.items():
        name = stems.get(stem)
        if name is None:
            notes.append(f"mask {stem} is not in labels.json; left out")
            continue
        image, found = read_image(path, labels=True)
        notes += [f"{path.name}: {note}" for note in found]
        ids = sorted(set(np.unique(image.array).tolist()) - {0})
        if len(ids) > 1:
            raise DataError(
                f"{path}: holds {len(ids)} structures, and a mask in {folder.name} holds one; give it as seg.nii.gz"
            )
        mask = image.array != 0
        check_labels(ct, Labels(mask.astype(np.uint8), image.grid, str(path)), {name: 1})
        if ids:
            drawn[name] = BoxMask.of(mask)
    order = stacked({name: drawn[name].count() for name in labels if name in drawn})
    dtype = np.uint8 if max(labels.values(), default=0) < 256 else np.uint16
    return Labels.painted(((labels[name], drawn[name]) for name in order), ct.grid, dtype, str(folder))
