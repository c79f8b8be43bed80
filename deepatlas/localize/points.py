"""Points of one exam found in another through their common coordinates (paper 2.2).

Points are RAS+ millimetres (x to the right, y to the front, z to the head), as NIfTI affines give them.
Tools that count in LPS (ITK, DICOM) differ by the sign of x and y.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.files import write_text
from deepatlas.model.engine import Engine
from deepatlas.model.native import extrapolate
from deepatlas.space.preprocess import foreground_mask
from deepatlas.space.volume import Volume

NEWTON_STEPS = 12
MAX_STEP = 2.0  # voxels
COLUMNS = ("name", "x", "y", "z")


@dataclass(frozen=True)
class Located:
    """``points`` ``[N, 3]`` RAS mm in the target; ``residual_mm`` ``[N]``: how far the anatomy there is from
    the one asked for; ``found`` ``[N]`` bool: the point lies in the target's field of view and its
    residual is under one model voxel. Where not found, ``points`` is the best guess (nan where the source
    point itself lies outside the source exam)."""

    points: np.ndarray
    residual_mm: np.ndarray
    found: np.ndarray


def _sample(volume: Tensor, index: Tensor) -> Tensor:
    """Linear values ``[C, N]`` of ``[1, C, D, H, W]`` at fractional voxels ``[3, N]`` (x, y, z)."""
    size = torch.tensor(volume.shape[:1:-1], dtype=index.dtype, device=index.device)[:, None]
    coords = 2 * index / (size - 1).clamp_min(1) - 1
    return ops.resample(volume, coords.to(volume.dtype).reshape(1, 3, -1, 1, 1))[0, :, :, 0, 0]


def _jacobian(padded: Tensor) -> Tensor:
    """``[1, 9, D, H, W]``: d c_a / d index_b (a slow, b fast, both x, y, z), central differences."""
    dz, dy, dx = torch.gradient(padded[0], dim=(1, 2, 3))
    return torch.stack([dx, dy, dz], dim=1).flatten(0, 1)[None]


def _newton(padded: Tensor, jacobian: Tensor, wanted: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Solve c(index) = wanted ``[3, N]`` from ``start``; returns index and the remaining offset in voxels."""
    limit = torch.tensor(padded.shape[:1:-1], dtype=start.dtype, device=start.device)[:, None] - 1

    def offset(index: Tensor) -> Tensor:
        matrix = _sample(jacobian, index).reshape(3, 3, -1).movedim(-1, 0).double()
        difference = (wanted - _sample(padded, index)).T[..., None].double()
        # pinv: where the map is flat or folded there is no inverse, and the shortest step is the sane one
        return (torch.linalg.pinv(matrix, rtol=1e-3) @ difference)[..., 0].T.to(index.dtype)

    index = start.clone()
    best, error = offset(index), None
    error = best.norm(dim=0)
    damping = torch.ones_like(error)
    for _ in range(NEWTON_STEPS):
        length = best.norm(dim=0).clamp_min(1e-12)
        step = best * (MAX_STEP / length).clamp_max(1) * damping
        trial = torch.minimum((index + step).clamp_min(0), limit)
        new = offset(trial)
        better = new.norm(dim=0) < error
        index, best = torch.where(better, trial, index), torch.where(better, new, best)
        error = best.norm(dim=0)
        damping = torch.where(better, (2 * damping).clamp_max(1), damping / 2)
    return index, best


def locate(model: Engine, points_mm: Sequence | np.ndarray, source: Volume, target: Volume) -> Located:
    """Find points ``[N, 3]`` (RAS mm) of ``source`` in ``target``.

    The coordinate c at a source point is read linearly; c_target(u) = c is solved with
    ``ops.implicit_warp`` and, from the voxel of the nearest coordinate too, by damped Newton steps: the
    smaller residual wins. Raises DeepAtlasError for points that are not ``[N, 3]`` and finite.
    """
    points = np.asarray(points_mm, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise DeepAtlasError(f"locate: points must be finite and [N, 3] (RAS mm), got shape {points.shape}")
    n = len(points)
    if n == 0:
        return Located(np.zeros((0, 3)), np.zeros(0), np.zeros(0, dtype=bool))
    coords, grid, _ = model.coordinates_on_model_grid(source)
    index = torch.from_numpy(grid.world_to_voxel(points).T + 1).to(coords)  # + 1: the extrapolated rim
    wanted = _sample(extrapolate(coords), index)
    known = _within(source.grid.world_to_voxel(points), source.grid.shape)
    known &= _within(grid.world_to_voxel(points), grid.shape)

    coords, grid, hu = model.coordinates_on_model_grid(target)
    padded = extrapolate(coords)
    jacobian = _jacobian(padded)
    candidates = [_newton(padded, jacobian, wanted, s) for s in _starts(coords, hu, wanted)]
    affine = torch.from_numpy(np.array(grid.affine[:3, :3])).to(coords)
    residuals = torch.stack([(affine @ rest).norm(dim=0) for _, rest in candidates])
    choice = residuals.argmin(dim=0)
    index = torch.stack([i for i, _ in candidates])[choice, :, torch.arange(n, device=choice.device)] - 1
    residual = residuals.amin(dim=0).double().cpu().numpy()
    index = index.double().cpu().numpy()
    found = known & _within(index, grid.shape) & (residual < max(grid.spacing))
    located = grid.voxel_to_world(index)
    located[~known], residual[~known] = math.nan, math.nan
    return Located(located, residual, found)


def _within(index: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Bool ``[N]``: fractional voxels ``[N, 3]`` (x, y, z) inside the outer faces of the grid."""
    return ((index >= -0.5) & (index <= np.array(shape[::-1]) - 0.5)).all(axis=1)


def _starts(coords: Tensor, hu: Volume, wanted: Tensor) -> list[Tensor]:
    """First guesses, voxels ``[3, N]`` of the extrapolated map: the implicit warp, the nearest coordinate."""
    n, shape = wanted.shape[1], coords.shape[2:]
    inside = torch.from_numpy(foreground_mask(hu.array)).to(coords.device)
    if not inside.any():
        inside = torch.ones_like(inside)
    warp = ops.implicit_warp(
        coords, wanted.reshape(1, 3, n, 1, 1), gradient="none", mask=inside[None, None].to(coords.dtype)
    )
    identity = torch.zeros_like(wanted)  # the fixed "map" is a column of N points: only its z runs
    identity[2] = torch.linspace(-1, 1, n, device=wanted.device, dtype=wanted.dtype) if n > 1 else 0
    u = identity + warp.displacement[0, :, :, 0, 0]
    size = torch.tensor(shape[::-1], dtype=u.dtype, device=u.device)[:, None]
    solved = (u + 1) / 2 * (size - 1) + 1
    solved = torch.minimum(torch.nan_to_num(solved).clamp_min(0), size + 1)

    where = inside.nonzero()  # background coordinates mean nothing
    tree = cKDTree(coords[0][:, inside].T.double().cpu().numpy())
    _, nearest = tree.query(wanted.T.double().cpu().numpy())
    return [solved, where[torch.from_numpy(nearest).to(where.device)].flip(1).T.to(u.dtype) + 1]


def read_points(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Names and RAS mm ``[N, 3]`` of a CSV file with columns name, x, y, z (any order, more are ignored).

    Raises DataError naming the file, the line and what is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: cannot read points: {reason}; give a CSV file with columns name,x,y,z"
        ) from error
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    header = [(h or "").strip().lower() for h in reader.fieldnames or []]
    missing = [c for c in COLUMNS if c not in header]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; the first line must hold name,x,y,z (RAS mm)"
        )
    reader.fieldnames = header
    names, points = [], []
    for row in reader:
        try:
            point = [float(row[c]) for c in COLUMNS[1:]]
        except (TypeError, ValueError):
            point = [math.nan]
        if not all(math.isfinite(v) for v in point):
            raise DataError(f"{path}: line {reader.line_num}: x, y, z must be numbers (RAS mm)")
        names.append((row["name"] or "").strip())
        points.append(point)
    if not names:
        raise DataError(f"{path}: holds no point below the header; add lines name,x,y,z (RAS mm)")
    return names, np.array(points)


def write_located(path: str | Path, names: Sequence[str], located: dict[str, Located]) -> None:
    """CSV of the points of every target: target,name,x,y,z,residual_mm,found; nan is left empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["target", *COLUMNS, "residual_mm", "found"])
    for target, result in located.items():
        for name, point, residual, found in zip(
            names, result.points, result.residual_mm, result.found, strict=True
        ):
            numbers = [f"{v:.3f}" if math.isfinite(v) else "" for v in (*point, residual)]
            writer.writerow([target, name, *numbers, "true" if found else "false"])
    write_text(path, out.getvalue())
