"""The tree of regions of a cascade (section 5.2.4): named boxes of the atlas, read from a TOML file.

.. code-block:: toml

    [[region]]
    name = "head"
    low = [-0.9, -0.9, 0.1]       # corners in the coordinates of the atlas (x, y, z)
    high = [0.9, 0.9, 1.0]

    [[region]]
    name = "orbits"
    within = "head"               # a region of the level above; left out where that is the whole exam
    structures = ["orbit_left", "orbit_right"]
    margin = 0.15                 # on every side, as a share of the box; 0.1 where left out
    part = [0.0, 0.5]             # the part of the structures' height, from the feet up; all of it where left out
    coverage = 0.8                # the least share of the box that an exam must show; 0.6 where left out
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepatlas.errors import DataError, did_you_mean
from deepatlas.space.box import Box

FOLDER = Path(__file__).parent / "trees"
MARGIN, COVERAGE = 0.1, 0.6
_KEYS = {"name", "within", "low", "high", "structures", "part", "margin", "coverage"}
# The value of a mask from which a voxel of a template counts for the box of its structure.
_INSIDE = 0.5


class Masks(Protocol):
    """What a box by structures needs of a template: masks ``[K, D, H, W]`` over [-1, 1]^3, and their names."""

    masks: NDArray[np.float32]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Region:
    """A part of the atlas with a network of its own.

    Attributes:
        name: what it is called, which is also the name of its folder.
        box: in the coordinates of the whole atlas.
        within: the region of the level above; None where that is the whole exam.
        coverage: the least share of the box that an exam must show for the region to count there.
    """

    name: str
    box: Box
    within: str | None = None
    coverage: float = COVERAGE

    def to_dict(self) -> dict[str, Any]:
        """The form in which the card of a model holds the region."""
        return {
            "name": self.name,
            "centre": self.box.centre.tolist(),
            "axes": self.box.axes.tolist(),
            "within": self.within,
            "coverage": self.coverage,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Region:
        """The region of a card that :meth:`to_dict` wrote. Raises KeyError, TypeError or DataError for another."""
        box = Box(values["name"], np.array(values["centre"]), np.array(values["axes"]))
        return cls(values["name"], box, values["within"], float(values["coverage"]))


class TemplateNeeded(DataError):
    """The boxes of a tree are given by structures, and there is no template to look them up in."""


@dataclass(frozen=True)
class Regions:
    """The regions of a cascade; those of the level above come before those within them.

    Attributes:
        regions: in order.
        file: what messages call them.
    """

    regions: tuple[Region, ...]
    file: str = "tree"

    @property
    def names(self) -> list[str]:
        """The names of the regions, in order."""
        return [region.name for region in self.regions]

    def __getitem__(self, name: str) -> Region:
        for region in self.regions:
            if region.name == name:
                return region
        raise DataError(f"{self.file}: no region {name!r}; {did_you_mean(name, self.names)}")

    def path(self, name: str) -> list[Region]:
        """The regions from the highest one down to this one."""
        region = self[name]
        above = [] if region.within is None else self.path(region.within)
        return [*above, region]

    @classmethod
    def read(cls, path: str | Path, template: Masks | None = None) -> Regions:
        """Read a tree.

        Args:
            path: a TOML file, or the name of a tree that comes with the package (:func:`shipped_trees`).
            template: masks of the same atlas; needed where the file names structures.

        Raises:
            DataError: the file is missing or no TOML; a region has an unknown key, no name, no box, a box without
                volume or outside the atlas; names are not distinct; regions lie within each other in a circle, or
                deeper than two levels. The message names the file and the region.
            TemplateNeeded: the file names structures, and there is no ``template``.
        """
        file = FOLDER / f"{path}.toml" if str(path) in shipped_trees() else Path(path)
        try:
            text = file.read_text(encoding="utf-8-sig")
        except OSError as error:
            trees = ", ".join(shipped_trees())
            raise DataError(
                f"{path}: no such file of regions ({error.strerror}); trees that come with the package: {trees}"
            ) from None
        except UnicodeDecodeError:
            raise DataError(f"{file}: not a text file; write the regions in TOML") from None
        try:
            entries = tomllib.loads(text).get("region", [])
        except tomllib.TOMLDecodeError as error:
            raise DataError(f"{file}: not TOML ({error}); correct it there") from None
        if not isinstance(entries, list) or not entries:
            raise DataError(f"{file}: holds no [[region]]; give at least one")
        return cls(_sorted([_region(entry, file, template) for entry in entries], file), str(path))


def shipped_trees() -> list[str]:
    """The names of the trees that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def box_of_structures(
    name: str,
    structures: Sequence[str],
    template: Masks,
    margin: float = MARGIN,
    part: tuple[float, float] = (0.0, 1.0),
) -> Box:
    """The box along the axes of the atlas around structures of a template, clipped to the atlas.

    Args:
        name: the name of the box.
        structures: their names.
        template: the masks.
        margin: what is added on every side, as a share of the box's edge.
        part: the part of the structures' height that is kept, from 0 at the feet to 1 at the head.

    Raises:
        DataError: the template does not hold a structure, or its mask is empty.
    """
    rows = []
    for structure in structures:
        if structure not in template.names:
            raise DataError(
                f"the template holds no structure {structure}; "
                f"{did_you_mean(structure, list(template.names))}"
            )
        rows.append(template.names.index(structure))
    held = np.logical_or.reduce(template.masks[rows] >= _INSIDE, axis=0)
    if not held.any():
        raise DataError(f"the masks of {', '.join(structures)} are empty")
    low, high = np.empty(3), np.empty(3)
    for axis, n in enumerate(held.shape):
        used = np.flatnonzero(np.logical_or.reduce(held, axis=tuple(a for a in range(3) if a != axis)))
        # To the outer faces of the voxels.
        low[2 - axis], high[2 - axis] = np.array([used[0] - 0.5, used[-1] + 0.5]) * 2 / (n - 1) - 1
    low[2], high[2] = low[2] + np.array(part) * (high[2] - low[2])
    edge = high - low
    return Box.between(
        name, np.maximum(low - margin * edge, -1).tolist(), np.minimum(high + margin * edge, 1).tolist()
    )


def _region(entry: Any, file: Path, template: Masks | None) -> Region:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name or not name.replace("_", "").replace("-", "").isalnum():
        raise DataError(f"{file}: a [[region]] has no name of letters, digits, - and _")
    where = f"{file}: region {name}"
    if unknown := sorted(set(entry) - _KEYS):
        raise DataError(f"{where}: unknown key {unknown[0]}; {did_you_mean(unknown[0], sorted(_KEYS))}")
    coverage, margin = entry.get("coverage", COVERAGE), entry.get("margin", MARGIN)
    if not isinstance(coverage, int | float) or not 0 < coverage <= 1:
        raise DataError(f"{where}: coverage must be in (0, 1], got {coverage!r}")
    if not isinstance(margin, int | float) or not 0 <= margin <= 2:
        raise DataError(f"{where}: margin must be from 0 to 2, got {margin!r}")
    part = entry.get("part", [0, 1])
    numbers = isinstance(part, list) and len(part) == 2 and all(isinstance(p, int | float) for p in part)
    if not numbers or not 0 <= part[0] < part[1] <= 1 or ("part" in entry and "structures" not in entry):
        raise DataError(
            f"{where}: part must be two growing numbers from 0 to 1, of the height of structures, got {part!r}"
        )
    within = entry.get("within")
    if within is not None and not isinstance(within, str):
        raise DataError(f"{where}: within must be the name of a region, got {within!r}")
    corners, structures = "low" in entry or "high" in entry, "structures" in entry
    if corners == structures:
        raise DataError(f"{where}: give either the corners low and high, or structures")
    try:
        if structures:
            if template is None:
                raise TemplateNeeded(
                    f"{file}: region {name}: is given by structures, which needs a template of the same atlas"
                )
            box = box_of_structures(name, entry["structures"], template, float(margin), (part[0], part[1]))
        else:
            box = Box.between(name, entry.get("low", ()), entry.get("high", ()))
    except TemplateNeeded:
        raise
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: its box cannot be read ({error})") from None
    if np.abs(box.corners()).max() > 1 + 1e-6:
        raise DataError(f"{where}: its box leaves the atlas, whose coordinates are from -1 to 1")
    return Region(name, box, within, float(coverage))


def _sorted(regions: list[Region], file: Path) -> tuple[Region, ...]:
    """The regions with those of the level above first; refuses what is no tree of at most two levels."""
    by_name = {region.name: region for region in regions}
    if len(by_name) < len(regions):
        twice = next(r.name for r in regions if sum(o.name == r.name for o in regions) > 1)
        raise DataError(f"{file}: region {twice} is there twice; names must be distinct")
    for region in regions:
        above, seen = region, [region.name]
        while above.within is not None:
            if above.within not in by_name:
                raise DataError(
                    f"{file}: region {above.name} is within {above.within}, which is not there; "
                    f"{did_you_mean(above.within, list(by_name))}"
                )
            if above.within in seen:
                raise DataError(
                    f"{file}: regions {' -> '.join([*seen, above.within])} lie within each other; leave out "
                    "one within"
                )
            above = by_name[above.within]
            seen.append(above.name)
        if len(seen) > 2:
            raise DataError(
                f"{file}: regions {' -> '.join(seen)} are {len(seen)} levels deep; two is the most"
            )
    return tuple(sorted(regions, key=lambda region: region.within is not None))
