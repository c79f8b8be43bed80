"""Templates joined, renamed, given boxes around their structures, and written as images of the atlas."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

import deepatlas_ops as ops
from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.exams.mask_files import mask_paths
from deepatlas.io.codec import write_volume
from deepatlas.localize.template.appearance import Appearance
from deepatlas.localize.template.file import Template
from deepatlas.localize.template.marks import joined_marks, names_of_marks, renamed_marks
from deepatlas.names.meet import chosen
from deepatlas.space.box import Box
from deepatlas.space.constants import MAX_LABEL
from deepatlas.space.grid import Grid
from deepatlas.space.markup import Markups
from deepatlas.space.volume import Volume

# What must agree for two templates to mean the same places.
_SPACE = ("model", "intensity")
# A unit of the coordinates in files for other programs, which expect something like millimetres; as atlas.nii.gz has.
UNIT = 100.0
_AROUND = re.compile(r"(?P<name>[^=]+)=(?P<of>.+?)(?:\+ *(?P<margin>[0-9]+(?:\.[0-9]+)?) *(?P<percent>%)?)?")


@dataclass(frozen=True)
class Around:
    """A box that is to be put around structures, in the directions of the atlas.

    Attributes:
        name: what the box is called.
        structures: what it encloses.
        margin: how far it reaches beyond them on every side: millimetres, or a share of its edge.
        share: whether the margin is a share of the edge.
    """

    name: str
    structures: tuple[str, ...]
    margin: float = 0.0
    share: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """``NAME=heart,aorta+10`` (mm) or ``NAME=heart,aorta+10%`` (of the edge), or without a margin."""
        found = _AROUND.fullmatch(text)
        names = [part.strip() for part in found["of"].split(",")] if found else []
        if not found or not all(names) or not found["name"].strip():
            raise DataError(
                f"box {text!r}: expected NAME=structure,structure+MARGIN, such as chest=heart,aorta+10"
            )
        margin, share = float(found["margin"] or 0), bool(found["percent"])
        return cls(found["name"].strip(), tuple(names), margin / 100 if share else margin, share)


def box_around(template: Template, around: Around) -> Box:
    """The smallest box, in the directions of the atlas, that holds some structures of a template, and a margin.

    Raises:
        DataError: the template lacks a structure, its mask is empty, or the margin is in millimetres and the template
            does not know how large the exams were that it was made from.
    """
    names = chosen(around.structures, template.names, f"box {around.name}")
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    size = np.array(template.masks.shape[:0:-1])
    for name in names:
        row = template.names.index(name)
        z, y, x = np.nonzero(template.masks[row] >= template.thresholds[row])
        if not len(x):
            raise DataError(f"box {around.name}: the mask of {name} is empty; leave it out")
        index = np.stack([x, y, z])
        low, high = np.minimum(low, index.min(axis=1) - 0.5), np.maximum(high, index.max(axis=1) + 0.5)
    low, high = 2 * low / (size - 1) - 1, 2 * high / (size - 1) - 1
    if around.share:
        margin = around.margin * (high - low)
    elif around.margin:
        scale = template.meta.get("mm_per_unit")
        if scale is None:
            raise DataError(
                f"box {around.name}: the template does not say how many millimetres its coordinates have; give the "
                f"margin as a share, such as +10%, or make the template again"
            )
        margin = around.margin / np.array(scale)
    else:
        margin = np.zeros(3)
    return Box.between(around.name, (low - margin).tolist(), (high + margin).tolist())


def check_names(boxes: Iterable[Around], names: Iterable[str]) -> None:
    """Raise :class:`~deepatlas.errors.DataError` unless boxes are to be put around structures that there are.

    It saves the work of a template that would then have no such box.
    """
    known = list(names)
    for around in boxes:
        chosen(around.structures, known, f"box {around.name}")


def with_boxes(template: Template, boxes: Sequence[Around]) -> Template:
    """The template with boxes around its structures; see :func:`box_around`."""
    made = Markups(boxes=tuple(box_around(template, around) for around in boxes))
    return replace(template, marks=joined_marks([template.marks, made]))


def merge_templates(templates: Sequence[Template], names: Sequence[str] | None = None) -> Template:
    """One template with everything that several hold.

    Masks of different sizes are brought to the largest. An id that two structures have is kept by the first, and the
    other gets the next that none of them has. A calibration of trust is kept where one template alone has it; two have
    scales of their own, and cannot be joined.

    Args:
        templates: for the same model, made with the same refinement.
        names: what messages call them, for example their files.

    Raises:
        DataError: they belong to different models, are refined or averaged differently, or two of them have a name in
            common.
    """
    names = list(names or (f"template {i}" for i in range(1, len(templates) + 1)))
    first = templates[0]
    for template, name in zip(templates[1:], names[1:], strict=True):
        for key in _SPACE:
            one, other = first.meta.get(key), template.meta.get(key)
            if one != other:
                raise DataError(
                    f"{name}: made for {key} {other}, and {names[0]} for {one}; templates of one {key} can be joined"
                )
        for key, default in (("refine", 0), ("average", 1)):
            one, other = first.meta.get(key, default), template.meta.get(key, default)
            if one != other:
                raise DataError(
                    f"{name}: made with --{key} {other}, and {names[0]} with --{key} {one}; make them alike"
                )
    _refuse_clashes(templates, names)
    side = max(t.masks.shape[1] for t in templates)
    masks = np.concatenate([_sized(t.masks, side) for t in templates])
    structures = [n for t in templates for n in t.names]
    ids = distinct_ids([i for t in templates for i in t.ids])
    return Template(
        masks,
        tuple(structures),
        tuple(ids),
        _joined_meta(templates),
        joined_marks(t.marks for t in templates),
        Appearance.joined([t.appearance for t in templates], [len(t.names) for t in templates]),
    )


def renamed(template: Template, names: Mapping[str, str], where: str = "template") -> Template:
    """The template with new names for structures, points, lines and boxes, ``{old: new}``.

    ``where`` is what a message calls the template, for example its file.

    Raises :class:`~deepatlas.errors.DataError` for a name that it does not hold, or if two would have one name.
    """
    known = list(dict.fromkeys((*template.names, *names_of_marks(template.marks))))
    exact = {chosen([old], known, where)[0]: new for old, new in names.items()}
    new = tuple(exact.get(n, n) for n in template.names)
    meta = dict(template.meta)
    if "structures" in meta:
        meta["structures"] = {exact.get(n, n): about for n, about in meta["structures"].items()}
    if "marks" in meta:
        meta["marks"] = {
            kind: {exact.get(n, n): about for n, about in marks.items()}
            for kind, marks in meta["marks"].items()
        }
    if "trust" in meta:
        own = {exact.get(n, n): about for n, about in meta["trust"]["structures"].items()}
        meta["trust"] = {**meta["trust"], "structures": own}
    if "overlaps" in meta:
        meta["overlaps"] = [[exact.get(n, n) for n in pair] for pair in meta["overlaps"]]
    try:
        marks = renamed_marks(template.marks, exact)
        return Template(template.masks, new, template.ids, meta, marks, template.appearance)
    except DataError:
        raise
    except DeepAtlasError as error:
        raise DataError(f"rename: {error}") from error


def export(template: Template, folder: Path) -> list[Path]:
    """Write the masks and the boxes as images on the grid of the atlas, which ``atlas.nii.gz`` of a run has.

    The atlas has no millimetres: the affine of the images gives normalised coordinates times 100.

    Args:
        template: what to write.
        folder: receives ``masks/<structure>.nii.gz`` (float32, as they are in the template) and
            ``boxes/<box>.nii.gz`` (uint8, 1 in the box).

    Returns:
        The files.

    Raises:
        DataError: a file cannot be written, or two names would have one file.
    """
    grid = atlas_grid(template.masks.shape[1:])  # type: ignore[arg-type]
    written = []
    masks = mask_paths(folder / "masks", template.names)
    boxes = mask_paths(folder / "boxes", [box.name for box in template.marks.boxes])
    for name, mask in zip(template.names, template.masks, strict=True):
        written.append(write_volume(masks[name], Volume(mask, grid, name)))
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in grid.shape], indexing="ij")
    places = np.stack([x, y, z], axis=-1)
    for box in template.marks.boxes:
        held = box.contains(places).astype(np.uint8)
        written.append(write_volume(boxes[box.name], Volume(held, grid, box.name)))
    return written


def atlas_grid(shape: tuple[int, int, int]) -> Grid:
    """The grid of images of the atlas: normalised coordinates times 100."""
    step = [2 * UNIT / (n - 1) for n in shape[::-1]]
    return Grid.from_spacing(shape, step, (-UNIT,) * 3)


def _refuse_clashes(templates: Sequence[Template], names: Sequence[str]) -> None:
    owner: dict[tuple[str, str], str] = {}
    for template, file in zip(templates, names, strict=True):
        marks = template.marks
        held = [("structure", n) for n in template.names]
        held += [("point", p.name) for p in marks.points] + [("line", line.name) for line in marks.lines]
        held += [("box", b.name) for b in marks.boxes]
        for key in held:
            if (other := owner.setdefault(key, file)) != file:
                raise DataError(
                    f"{file}: has a {key[0]} {key[1]!r}, and so has {other}; rename or leave out one of them"
                )


def _sized(masks: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    if masks.shape[1] == side:
        return masks
    if len(masks) == 0:
        return np.zeros((0, side, side, side), dtype=np.float32)
    # Both grids have their corners at the corners of the space.
    made: NDArray[np.float32] = ops.resize(torch.from_numpy(masks)[None], (side,) * 3)[0].numpy()
    return made


def distinct_ids(ids: Sequence[int]) -> list[int]:
    """Ids of structures, each once: the first that has an id keeps it, and others get the smallest that none has."""
    used, kept, found = set(ids), set[int](), []
    for identity in ids:
        if identity in kept:
            identity = next((i for i in range(1, MAX_LABEL + 1) if i not in used), 0)
            if not identity:
                raise DataError(f"more than {MAX_LABEL} structures; a label image has no room for them")
            used.add(identity)
        kept.add(identity)
        found.append(identity)
    return found


def _joined_meta(templates: Sequence[Template]) -> dict[str, Any]:
    meta = dict(templates[0].meta)
    for template in templates[1:]:
        for key, value in template.meta.items():
            there = meta.get(key)
            if key in ("exams", "unlabelled"):
                meta[key] = list(dict.fromkeys([*(there or []), *value]))
            elif key == "overlaps":
                meta[key] = [*(there or []), *value]
            elif key == "marks" and there:
                meta[key] = {kind: there.get(kind, {}) | value.get(kind, {}) for kind in there | value}
            elif isinstance(value, dict) and isinstance(there, dict) and key not in ("solver", "trust"):
                meta[key] = there | value
            elif there is None:
                meta[key] = value
    if any(template.meta.get("regions") != meta.get("regions") for template in templates):
        # Their coordinates are those of one atlas all the same.
        meta.pop("regions", None)
    if sum("trust" in template.meta for template in templates) > 1:
        del meta["trust"]
    return meta
