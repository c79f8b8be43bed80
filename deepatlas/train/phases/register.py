"""Coordinates of every training exam, registered to the atlas one by one (not in the paper).

The losses of a batch move the network a little for every exam. Here the coordinates of an exam are moved themselves,
from where the network left them, which costs a fraction of that; the atlas becomes the mean of all exams seen
through them. What comes out is what :mod:`~deepatlas.train.phases.distil` teaches the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepatlas_ops as ops
from deepatlas.model.refine import register_to_atlas
from deepatlas.nn import Atlas
from deepatlas.space.affine import affine_coords
from deepatlas.train.feed.device import upload
from deepatlas.train.feed.resident import ExamArray
from deepatlas.train.loop import Phase, Session, Sweep
from deepatlas.train.phases.distil import distil_phase

_ENOUGH = 4.0  # exams that must show a place of the atlas before their mean replaces it wholly
_SPREAD = 12  # voxels by which coordinates are continued from the foreground before the affine map takes over


class CohortCoordinates(nn.Module):
    """What a checkpoint keeps of a sweep.

    ``coords`` float16 ``[N, 3, m, m, m]`` (a step of at most 0.0005); ``total`` and ``weight`` ``[1, 1, n, n, n]``: the
    sum of the exams in the atlas' space, and how many show each place.
    """

    def __init__(self, exams: int, size: int, atlas_size: int):
        super().__init__()
        self.register_buffer("coords", torch.zeros(exams, 3, *(size,) * 3, dtype=torch.float16))
        self.register_buffer("total", torch.zeros(1, 1, *(atlas_size,) * 3))
        self.register_buffer("weight", torch.zeros(1, 1, *(atlas_size,) * 3))

    def take(self, rows: list[int], device: torch.device) -> Tensor:
        """Coordinates of some exams, float32 on ``device``."""
        return self.coords[upload(torch.as_tensor(rows), self.coords.device)].to(device, torch.float32)


def cohort_phases(session: Session, array: ExamArray, ids: list[str]) -> Iterator[Phase | Sweep]:
    """Rounds of prediction, registration and distillation, as many as ``distil.steps`` asks for."""
    for round_ in range(len(session.config.distil.steps)):
        yield predict_sweep(session, array, round_)
        yield register_sweep(session, array, round_)
        yield distil_phase(session, array, ids, round_)


def predict_sweep(session: Session, array: ExamArray, round_: int) -> Sweep:
    """The network's coordinates of every exam, as it is, and the atlas as their mean."""
    network, level = session.modules["network"], session.config.network.finest_level

    @torch.no_grad()
    def coordinates(x: Tensor, mask: Tensor, rows: list[int]) -> Tensor:
        with session.autocast():
            return network(x, level).float()

    return _sweep(session, array, f"predict-{round_}", coordinates)


def register_sweep(session: Session, array: ExamArray, round_: int) -> Sweep:
    """Every exam registered to the atlas from the coordinates it has, and the atlas as their mean."""
    config, cohort = session.config, session.modules["cohort"]
    weights = config.cohort.prewitt
    if weights:
        config = replace(config, refine=replace(config.refine, prewitt=weights[round_]))

    def coordinates(x: Tensor, mask: Tensor, rows: list[int]) -> Tensor:
        start = cohort.take(rows, x.device)
        atlas: Atlas = session.modules["atlas"]
        return continued(register_to_atlas(start, x, mask, atlas, config, config.cohort.steps), mask)

    return _sweep(session, array, f"register-{round_}", coordinates)


def _sweep(session: Session, array: ExamArray, name: str, coordinates) -> Sweep:
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
    """An exam seen from the atlas, ``[1, 1, n, n, n]``, and where it shows something, from 0 to 1."""
    place = affine_coords(torch.eye(3, 4, device=x.device)[None], atlas.values.shape[2:])
    moving = ops.resize(coords, x.shape[2:])
    warp = ops.implicit_warp(moving, place, iterations=20, tolerance=0.05, gradient="none", mask=mask)
    both = ops.resample(torch.cat([x, mask], 1), place + warp.displacement, padding="zeros")
    image, inside = both.split(1, 1)
    return image, inside * warp.valid


@torch.no_grad()
def continued(coords: Tensor, mask: Tensor) -> Tensor:
    """Coordinates ``[B, 3, m, m, m]`` whose background continues the foreground.

    No loss looks at coordinates outside the patient, so they may be anything, and masks carried along them leave specks
    there. Near the foreground its deviation from an affine map is carried on, further out the affine map remains.
    ``mask [B, 1, S, S, S]``.
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
