"""The cascade at use: the networks of regions answer where an exam shows their region (section 5.2.4)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from deepatlas.errors import DataWarning
from deepatlas.model.field import CoordinateField, Piece, rim
from deepatlas.model.look import Look
from deepatlas.model.region_view import view_of
from deepatlas.model.regions import Region
from deepatlas.space.volume import Volume

# The voxels of a region's input over which its answer passes into that of the level above.
RIM = 10
# The median distance between the answer of a region and that of the level above from which one of the two must be
# wrong, in half-edges of the region's box. It is a few hundredths where both are right.
DISAGREEMENT = 0.5


class RegionNetwork(Protocol):
    """The network of a region."""

    @property
    def card(self) -> Mapping[str, Any]:
        """Facts about it, among them the model that it was trained for."""

    @property
    def fingerprint(self) -> str:
        """What identifies its weights and its atlas."""

    @property
    def region(self) -> Region:
        """What it is the network of."""

    @property
    def size(self) -> int:
        """Voxels along each side of its input."""

    @property
    def intensity(self) -> str:
        """What the values of exams are."""

    @property
    def device(self) -> torch.device:
        """The device of its weights."""

    def answer(self, look: Look) -> Tensor:
        """Coordinates ``[1, 3, S, S, S]`` within the region's box, in [-1, 1], averaged and refined as it is set to."""


Model = TypeVar("Model", bound=RegionNetwork)


def add_regions(
    field: CoordinateField, body: np.ndarray, volume: Volume, networks: Iterable[RegionNetwork]
) -> tuple[CoordinateField, list[str]]:
    """Let the networks of regions answer where an exam shows enough of their boxes.

    Args:
        field: what the network of the whole exam says.
        body: ``[S, S, S]``, the foreground of the exam on ``field.grid``.
        volume: the exam at its full resolution, as :func:`~deepatlas.space.check_input.check_input` returns it.
        networks: those of the level above before those within their regions.

    Returns:
        The field with a piece for every region that the exam shows, and a line for every region whose answer was left
        out because it contradicts the level above.
    """
    notes: list[str] = []
    answered = set()
    for network in networks:
        region = network.region
        if region.within is not None and region.within not in answered:
            continue
        view = view_of(
            volume, field, region.box, network.size, body=body, coverage=region.coverage, intensity=network.intensity
        )  # fmt: skip
        if view is None:
            continue
        look = Look.of(view.hu, network.intensity, network.device)
        if not look.body.any():
            continue
        above = field.on(view.hu.grid)
        own = network.answer(look)[0]
        coords = _placed(own, region)
        half_edges = torch.from_numpy(np.linalg.inv(region.box.axes)).to(coords)
        away = torch.einsum("ij,jdhw->idhw", half_edges, coords - above).norm(dim=0)
        apart = float(away[torch.from_numpy(look.body).to(away.device)].median())
        if not apart <= DISAGREEMENT:
            notes.append(
                f"region {region.name}: its network puts the anatomy elsewhere than the level above ({apart:.2f} half-"
                "edges of the region apart), so that the answer of the level above counts there"
            )
            continue
        answered.add(region.name)
        weight = rim(coords.shape[1:], RIM, coords)
        field = replace(field, pieces=(*field.pieces, Piece(region.name, coords[None], view.hu.grid, weight)))
    return field, notes


def usable(networks: Mapping[Path, Model], parent: str) -> list[Model]:
    """The networks of regions that were trained for a model, those of higher levels first.

    Args:
        networks: by their files.
        parent: the fingerprint of the model.

    Warns:
        DataWarning: one was trained for another model, or for another network of the region that it lies in.
    """
    found: dict[str, Model] = {}
    for path, network in sorted(networks.items(), key=lambda item: item[1].region.within is not None):
        within = network.region.within
        wanted = {"model": parent}
        if within in found:
            wanted[f"region {within}"] = found[within].fingerprint
        elif within is not None:
            # It has no level above to look at.
            continue
        card = network.card.get("region", {})
        given = {"model": card.get("parent")}
        if within is not None:
            # Cards of before name the model alone.
            given[f"region {within}"] = card.get("above", {}).get(within, wanted[f"region {within}"])
        odd = next((what for what in wanted if wanted[what] != given[what]), None)
        if odd is None:
            found[network.region.name] = network
            continue
        warnings.warn(
            f"{path}: trained for the {odd} {given[odd]}, but this {odd.split()[0]} is {wanted[odd]}; the region is "
            "left out, train it again with `deepatlas train --parent`",
            DataWarning,
            stacklevel=4,
        )
    return list(found.values())


def down_to(regions: Iterable[Model], depth: int | None) -> list[Model]:
    """The networks of regions of a model down to a level; None takes all."""
    return [n for n in regions if depth is None or (1 if n.region.within is None else 2) <= depth]


def answering(regions: Iterable[RegionNetwork], depth: int | None) -> list[str]:
    """The regions that answer for a model, each with the fingerprint of its network: what results depend on."""
    return [f"{network.region.name} {network.fingerprint}" for network in down_to(regions, depth)]


def _placed(own: Tensor, region: Region) -> Tensor:
    """Coordinates ``[3, D, H, W]`` of the whole atlas from those of a region's box."""
    axes = torch.from_numpy(region.box.axes.copy()).to(own)
    centre = torch.from_numpy(region.box.centre.copy()).to(own)
    return torch.einsum("ij,jdhw->idhw", axes, own) + centre[:, None, None, None]
