"""Which images that carry one SeriesInstanceUID make a stack together.

A series may hold a scout beside its slices, a second orientation, or the phases of one acquisition: each is a part of
its own. Scanners also write slices of one stack with headers that differ a little (a pixel of 0.9765625 and of 0.977
mm): such parts are joined where no pixel is moved by half a pixel. Half a series, with every other slice, is never
taken for a whole one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from deepatlas.errors import DataError
from deepatlas.io.dicom.found import Found
from deepatlas.io.dicom.geometry import (
    SAME_GRID,
    SAME_ORIENTATION,
    SAME_SPACING,
    Plane,
    arrange,
    axes_of,
    shared_plane,
)
from deepatlas.io.dicom.header import Header
from deepatlas.space.constants import MIN_VOXELS

SCOUTS = {"LOCALIZER", "SCOUT"}
# Parts whose direction cosines differ by more are two orientations (3 degrees), not one that wobbles; and up to which
# difference (0.3 degrees) parts are joined, however small the image.
_ANOTHER_ORIENTATION = 0.05
_WOBBLE = 5e-3
# Elements that tell apart several images at one position.
_SPLITS = [
    lambda h: h.image_type,
    lambda h: h.kernel,
    *((lambda h, i=i: h.moments[i]) for i in range(6)),
]


class Image(NamedTuple):
    """An image file and its header."""

    found: Found
    header: Header


@dataclass(frozen=True)
class Part:
    """Images of one series that can be stacked. ``problem`` is the reason why they must not be, if there is one."""

    members: list[Image]
    problem: str = ""


def parts_of(members: list[Image]) -> list[Part]:
    """Split the images of one series into stacks. None is left out."""
    parts: list[Part] = []
    for kin in _kindred(_alike_groups(members)):
        parts += _joined(kin)
    return [Part(stack, part.problem) for part in parts for stack in _stacks(part.members)]


def plane_of(headers: Sequence[Header]) -> Plane:
    """The in-plane grid that images share; each must have an orientation and a spacing."""
    size = headers[0].columns, headers[0].rows
    orientations, spacings = [h.orientation for h in headers], [h.spacing for h in headers]
    return shared_plane(orientations, spacings, size)  # type: ignore[arg-type]


def left_out(part: Sequence[Image], others: Sequence[Sequence[Image]]) -> list[str]:
    """One line for each reason why images of the same series are not in ``part``."""
    total = len(part) + sum(map(len, others))
    counts: Counter[str] = Counter()
    for other in others:
        counts[_difference(part, other)] += len(other)
    return [
        f"{count} of the {total} images of its series left out: {why}"
        for why, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def one_uid_each(groups: dict[tuple, list[Image]]) -> None:
    """Join series of one image each that make one stack: some programs give every slice a SeriesInstanceUID.

    ``groups`` maps (patient, study, SeriesInstanceUID) to images; the joined series takes its lowest UID.
    """
    # The number of the series tells two reconstructions apart, unless every slice has its own number too.
    for with_number in (True, False):
        singles: dict[tuple, list[tuple]] = defaultdict(list)
        for key, members in groups.items():
            h = members[0].header
            if (
                len(members) == 1
                and h.frames == 1
                and h.positions is not None
                and not SCOUTS & set(h.image_type)
            ):
                number = h.number if with_number else None
                singles[(*key[:2], number, h.frame, h.rows, h.columns, h.kernel, h.image_type)].append(key)
        for keys in singles.values():
            images = [groups[key][0] for key in keys]
            alike = all(_same_kind(image.header, images[0].header) for image in images)
            if len(keys) >= MIN_VOXELS and alike and _one_stack(images) is not None:
                groups[min(keys)] = images
                for key in keys:
                    if key != min(keys):
                        del groups[key]


def _alike_groups(members: list[Image]) -> list[list[Image]]:
    """The images of one series in groups of the same type, size, spacing and orientation."""
    groups: list[list[Image]] = []
    for image in members:
        for group in groups:
            if _alike(image.header, group[0].header):
                group.append(image)
                break
        else:
            groups.append([image])
    return groups


def _alike(a: Header, b: Header) -> bool:
    return (
        _same_kind(a, b)
        and _close(a.spacing, b.spacing, SAME_SPACING)
        and _close(a.orientation, b.orientation, SAME_ORIENTATION)
    )


def _same_kind(a: Header, b: Header) -> bool:
    # An enhanced object is a volume by itself, unless it was cut into several files.
    if (a.frames > 1 or b.frames > 1) and not (a.concatenation[0] and a.concatenation == b.concatenation):
        return False
    if (a.sop_class, a.modality, a.rows, a.columns, a.samples, a.frame) != (
        *(b.sop_class, b.modality, b.rows, b.columns, b.samples, b.frame),
    ):
        return False
    return bool(SCOUTS & set(a.image_type)) == bool(SCOUTS & set(b.image_type))


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.abs(np.subtract(a, b)).max() <= tolerance)


# -- parts that may belong together -----------------------------------------------------------------------


def _kindred(groups: list[list[Image]]) -> list[list[list[Image]]]:
    """Groups that differ in spacing and a little in orientation alone, together."""
    kindred: list[list[list[Image]]] = []
    for group in groups:
        head = group[0].header
        for kin in kindred:
            first = kin[0][0].header
            placed = None not in (head.spacing, head.orientation, first.spacing, first.orientation)
            if (
                placed
                and head.frames == 1
                and _same_kind(head, first)
                and _close(head.orientation, first.orientation, _ANOTHER_ORIENTATION)
            ):
                kin.append(group)
                break
        else:
            kindred.append([group])
    return kindred


def _joined(kin: list[list[Image]]) -> list[Part]:
    """Join kindred groups that interleave or abut. Those that would do so but deviate too much get a problem."""
    if len(kin) == 1:
        return [Part(kin[0])]
    # All together first: of three groups that take turns, no two make a regular stack.
    if _evenly_spaced([image for group in kin for image in group]):
        return _one_or_none(kin)
    kin = sorted(kin, key=len, reverse=True)
    taken, rest, parts = [kin[0]], kin[1:], []
    for group in rest:
        if _evenly_spaced([image for one in (*taken, group) for image in one]):
            taken.append(group)
        else:
            parts.append(group)
    first = _one_or_none(taken) if len(taken) > 1 else [Part(taken[0])]
    return first + (_joined(parts) if parts else [])


def _one_or_none(groups: list[list[Image]]) -> list[Part]:
    """One part of groups that are evenly spaced together, or all of them with the reason why they cannot be joined."""
    members = [image for group in groups for image in group]
    plane = _one_stack(members)
    heads = [group[0].header for group in groups]
    turn = float(np.ptp([h.orientation for h in heads], axis=0).max())  # type: ignore[arg-type]
    if plane is not None and plane.off < SAME_GRID and turn <= _WOBBLE:
        return [Part(members)]
    why = f"{_differing(heads)}, by more than half a pixel or 0.3 degrees"
    if plane is None:
        why = f"{_differing(heads)}, and in their places side by side"
    return [
        Part(
            group,
            f"its {len(group)} slices are a part of {len(members)} that are evenly spaced but differ in {why}; "
            "export the parts as separate series",
        )
        for group in groups
    ]


def _one_stack(members: list[Image]) -> Plane | None:
    """The grid that images share if they make one even stack with one image at each level, otherwise None."""
    headers = [image.header for image in members]
    if any(h.spacing is None or h.orientation is None or h.positions is None for h in headers):
        return None
    try:
        plane = plane_of(headers)
        positions = np.concatenate([h.positions for h in headers])  # type: ignore[misc]
        stack = arrange(positions, plane.orientation, plane.spacing)
    except DataError:
        return None
    return plane if stack.even and len(stack.planes) == len(members) else None


def _evenly_spaced(members: list[Image]) -> bool:
    """Whether the levels of images, whatever their places side by side, are those of one stack."""
    headers = [image.header for image in members]
    if len(members) < MIN_VOXELS or any(h.positions is None for h in headers):
        return False
    try:
        plane = plane_of(headers)
        normal = axes_of(plane.orientation)[2]
        levels = np.concatenate([h.positions for h in headers]) @ normal  # type: ignore[misc]
        stack = arrange(np.outer(levels, normal), plane.orientation, plane.spacing)
    except DataError:
        return False
    return stack.even and len(stack.planes) == len(members)


# -- images at one position -------------------------------------------------------------------------------


def _stacks(members: list[Image]) -> list[list[Image]]:
    """Split a group if several images lie at one position and an attribute of the acquisition tells them apart."""
    if len(members) < 2 or any(m.header.positions is None for m in members):
        return [members]
    levels = len({_level(m) for m in members})
    if levels == len(members):
        return [members]
    for key in _SPLITS:
        parts: dict[Any, list[Image]] = defaultdict(list)
        for member in members:
            parts[key(member.header)].append(member)
        if len(parts) > 1 and all(len({_level(m) for m in part}) == len(part) for part in parts.values()):
            return list(parts.values())
    return [members]


def _level(image: Image) -> tuple[float, ...]:
    assert image.header.positions is not None
    return tuple(image.header.positions[0].round(2))


# -- what tells parts apart, in words ---------------------------------------------------------------------


def _difference(part: Sequence[Image], other: Sequence[Image]) -> str:
    a, b = part[0].header, other[0].header
    if SCOUTS & set(b.image_type):
        return "a scout"
    if (a.rows, a.columns) != (b.rows, b.columns):
        return f"another size ({b.rows} x {b.columns})"
    if (a.sop_class, a.modality, a.samples) != (b.sop_class, b.modality, b.samples):
        return "another kind of image"
    if a.frame != b.frame:
        return "another frame of reference"
    if b.orientation is None or b.positions is None:
        return "no position in space"
    if a.frames > 1 or b.frames > 1:
        return "a volume by itself"
    if _alike(a, b):
        return "another time, phase, kernel or ImageType at the same positions"
    return f"another {_differing([a, b])}"


def _differing(headers: Sequence[Header]) -> str:
    spacings = np.array([h.spacing for h in headers if h.spacing is not None])
    directions = np.array([h.orientation for h in headers if h.orientation is not None])
    found = []
    if len(spacings) < len(headers) or np.ptp(spacings, axis=0).max() > SAME_SPACING:
        values = f" ({spacings.min():.7g} to {spacings.max():.7g} mm)" if len(spacings) else ""
        found.append(f"PixelSpacing{values}")
    if len(directions) < len(headers) or np.ptp(directions, axis=0).max() > SAME_ORIENTATION:
        found.append("orientation")
    return " and ".join(found)
