"""Sweeps ``predict-N`` and ``register-N``: coordinates of every training exam, registered to the atlas (no paper).

The registration losses move the network a little for each batch. Here the coordinates of each exam are moved
directly, starting from the network's prediction, which costs a fraction of that. The atlas becomes the mean of all
exams seen through their coordinates. :mod:`~deepatlas.train.phases.distil` teaches the result to the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepatlas_ops as ops
from deepatlas.losses import LabelTask
from deepatlas.model.refine import register_to_atlas
from deepatlas.nn import Atlas
from deepatlas.space.affine import affine_coords
from deepatlas.train.feed.device import upload
from deepatlas.train.feed.labels import LabelMaps
from deepatlas.train.feed.resident import ExamArray
from deepatlas.train.loop import Session
from deepatlas.train.phase import Sweep

# The mean of the exams replaces a place of the atlas completely where at least so many exams show it.
_ENOUGH = 4.0
# Number of voxels by which the foreground's coordinates are continued before the affine map takes over.
_SPREAD = 12


class CohortCoordinates(nn.Module):
    """The results of a sweep, as buffers that a checkpoint holds.

    Attributes:
        coords: float16 ``[N, 3, m, m, m]``, coordinates of every exam, rounded by at most 0.0005.
        total: ``[1, 1, n, n, n]``, the sum of all exams in the space of the atlas.
        weight: ``[1, 1, n, n, n]``, the number of exams that show each place.
    """

    def __init__(self, exams: int, size: int, atlas_size: int):
        super().__init__()
        self.register_buffer("coords", torch.zeros(exams, 3, *(size,) * 3, dtype=torch.float16))
        self.register_buffer("total", torch.zeros(1, 1, *(atlas_size,) * 3))
        self.register_buffer("weight", torch.zeros(1, 1, *(atlas_size,) * 3))

    def take(self, rows: list[int], device: torch.device) -> Tensor:
        """Coordinates of the given exams, float32 ``[n, 3, m, m, m]`` on ``device``."""
        return self.coords[upload(torch.as_tensor(rows), self.coords.device)].to(device, torch.float32)


def predict_sweep(session: Session, array: ExamArray, number: int) -> Sweep:
    """Keep the network's coordinates of every exam, and make the atlas the mean of the exams."""
    network, level = session.modules["network"], session.config.network.finest_level

    @torch.no_grad()
    def coordinates(x: Tensor, mask: Tensor, rows: list[int]) -> Tensor:
        with session.autocast():
            return network(x, level).float()

    return _sweep(session, array, f"predict-{number}", coordinates)


def parent_sweep(session: Session, array: ExamArray) -> Sweep:
    """Make the atlas of a region the mean of the exams by the coordinates of the levels above, and keep these."""
    cohort = session.modules["cohort"]

    def coordinates(x: Tensor, mask: Tensor, rows: list[int]) -> Tensor:
        return cohort.take(rows, x.device)

    return _sweep(session, array, "parent-atlas", coordinates)


def register_sweep(session: Session, array: ExamArray, number: int, labels: LabelMaps | None = None) -> Sweep:
    """Register every exam to the atlas, starting from its coordinates, and make the atlas the mean of the exams.

    Labels, where they are used, steer the registration of the exams that have them.
    """
    config, cohort = session.config, session.modules["cohort"]
    weights = config.cohort.prewitt
    if weights:
        config = replace(config, refine=replace(config.refine, prewitt=weights[number]))

    def coordinates(x: Tensor, mask: Tensor, rows: list[int]) -> Tensor:
        start = cohort.take(rows, x.device)
        atlas: Atlas = session.modules["atlas"]
        known = LabelTask(labels.take(rows), session.modules["labels"], learns=False) if labels else None
        return continued(register_to_atlas(start, x, mask, atlas, config, config.cohort.steps, known), mask)

    return _sweep(session, array, f"register-{number}", coordinates)


def _sweep(
    session: Session,
    array: ExamArray,
    name: str,
    coordinates: Callable[[Tensor, Tensor, list[int]], Tensor],
) -> Sweep:
    """A sweep that keeps ``coordinates(image, mask, rows)`` of every exam."""
    cohort, atlas = session.modules["cohort"], session.modules["atlas"]
    count, batch = len(array), session.config.cohort.batch

    def step(number: int) -> dict[str, float]:
        if number == 0:
            cohort.total.zero_()
            cohort.weight.zero_()
        rows = range(number * batch, min((number + 1) * batch, count))
        found = torch.zeros(len(rows), *cohort.coords.shape[1:], device=session.device)
        total, weight = torch.zeros_like(cohort.total), torch.zeros_like(cohort.weight)
        folds = torch.zeros((), device=session.device)
        for part in session.world.parts(len(rows)):
            own = [rows[r] for r in part]
            x, mask = array.take(own)
            coords = ops.resize(coordinates(x, mask, own), found.shape[2:])
            found[part.start : part.stop] = coords
            folds += ops.folds(ops.resize(coords, mask.shape[2:]), mask).sum()
            for exam in range(len(own)):
                image, shown = _in_atlas_space(
                    x[exam : exam + 1], mask[exam : exam + 1], coords[exam : exam + 1], atlas
                )
                total += image * shown
                weight += shown
        session.world.sum_tensors(found, total, weight, folds)
        cohort.coords[rows.start : rows.stop] = found.to(cohort.coords)
        cohort.total += total
        cohort.weight += weight
        return {"folds": folds.item() / len(rows)}

    @torch.no_grad()
    def ended() -> None:
        share = (cohort.weight / _ENOUGH).clamp(max=1)
        mean = cohort.total / cohort.weight.clamp_min(1e-3)
        atlas.values.copy_(share * mean + (1 - share) * atlas.values)

    return Sweep(name, -(-count // batch), step, ended)


@torch.no_grad()
def _in_atlas_space(x: Tensor, mask: Tensor, coords: Tensor, atlas: Atlas) -> tuple[Tensor, Tensor]:
    """An exam in the space of the atlas, ``[1, 1, n, n, n]``, and where it shows anatomy, from 0 to 1."""
    place = affine_coords(torch.eye(3, 4, device=x.device)[None], atlas.values.shape[2:])
    moving = ops.resize(coords, x.shape[2:])
    warp = ops.implicit_warp(moving, place, iterations=20, tolerance=0.05, gradient="none", mask=mask)
    both = ops.resample(torch.cat([x, mask], 1), place + warp.displacement, padding="zeros")
    image, inside = both.split(1, 1)
    return image, inside * warp.valid


@torch.no_grad()
def continued(coords: Tensor, mask: Tensor) -> Tensor:
    """Coordinates ``[B, 3, m, m, m]`` whose background continues the foreground given by ``mask [B, 1, S, S, S]``.

    No loss constrains coordinates outside the patient, so masks propagated by them would leave specks there. The
    foreground's coordinates are split into an affine map and the deviation from it. Near the foreground the deviation
    is continued; further out only the affine map remains.
    """
    size = coords.shape[2:]
    inside = (F.adaptive_avg_pool3d(mask, size) > 0.5).to(coords.dtype)
    place = affine_coords(torch.eye(3, 4, dtype=coords.dtype, device=coords.device)[None], size)[0].flatten(1)
    basis = torch.cat([place, torch.ones_like(place[:1])]).T  # [V, 4]
    weight = inside.flatten(1)[:, :, None]  # [B, V, 1]
    gram = (basis * weight).mT @ basis + 1e-4 * torch.eye(4, dtype=coords.dtype, device=coords.device)
    solution = torch.linalg.solve(gram, (basis * weight).mT @ coords.flatten(2).mT)  # [B, 4, 3]
    affine = (basis @ solution).mT.reshape(coords.shape)
    numerator, denominator = (coords - affine) * inside, inside
    for _ in range(_SPREAD):
        numerator, denominator = (
            F.avg_pool3d(F.pad(t, (1,) * 6), 3, stride=1) for t in (numerator, denominator)
        )
    near = (4 * denominator).clamp(max=1)
    outside = affine + near * numerator / denominator.clamp_min(1e-3)
    return (inside * coords + (1 - inside) * outside).clamp(-0.999, 0.999)
