"""Which structures of an exam go into a DICOM object, and under which names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deepatlas.errors import DataError
from deepatlas.space.labels import Labels

# A text of the value representation LO has at most so many letters.
LONGEST = 64


def segments_of(labels: Labels, names: Mapping[str, int], path: Path) -> tuple[dict[str, int], list[str]]:
    """The structures ``{name: id}`` that have voxels, by ascending id, and a line for each that has none.

    Raises :class:`~deepatlas.errors.DataError` if none has, or two names are the same where DICOM cuts them.
    """
    present = labels.ids()
    ordered = sorted(names.items(), key=lambda item: item[1])
    found = {name: identity for name, identity in ordered if identity in present}
    if not found:
        raise DataError(
            f"{path}: none of the {len(names)} structures has a voxel, so there is nothing to write"
        )
    owner: dict[str, str] = {}
    for name in found:
        other = owner.setdefault(dicom_name(name), name)
        if other != name:
            raise DataError(
                f"{path}: structures {other!r} and {name!r} are the same in their first {LONGEST} letters, which is "
                "all that DICOM keeps; rename one"
            )
    return found, [f"{name}: has no voxel; left out" for name in names if name not in found]


def dicom_name(name: str) -> str:
    """``name`` as DICOM can hold it: at most 64 letters, and no backslash, which would end the value."""
    return " ".join(name.replace("\\", "/").split())[:LONGEST].strip()
