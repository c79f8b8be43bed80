"""What the cascade costs and brings at every depth, on real exams, and whether its rims are seamless.

    DEEPATLAS_DATA=../shared/data python benchmarks/cascade_depths.py MODEL [TEMPLATE] > table.md

The exams are the seven validation exams of OpenKBP that are scored on (`eval_core5_si180`), in one pass, with a
template of the same model (default `headneck`). Seconds are those of one exam that has been read, from the volume to
its labels, and the peak of memory is what the process holds more than before the first exam. A jump is the distance in
coordinates between two voxels that touch, on the exam's own grid within the body: that the largest at a rim is no
larger than the largest elsewhere says that rims cannot be seen. Folds are the voxels of the body in the field of view
where one of eight Jacobian determinants is not positive (`ops.folds`, `differences="digital"`).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deepatlas
import deepatlas_ops as ops

STRUCTURES = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Mandible")


def resident_megabytes() -> float:
    """What the process holds in memory now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def watched(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of a call, its seconds, and the most memory that the process held meanwhile, in MB."""
    peak, done = [resident_megabytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident_megabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        result = run()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return result, seconds, peak[0]


def jumps(coords: torch.Tensor, there: torch.Tensor) -> float:
    """The largest distance between coordinates ``[3, D, H, W]`` of touching voxels that both lie in ``there``."""
    largest = 0.0
    for axis in (1, 2, 3):
        n = coords.shape[axis]
        step = coords.narrow(axis, 1, n - 1) - coords.narrow(axis, 0, n - 1)
        both = there.narrow(axis - 1, 1, n - 1) & there.narrow(axis - 1, 0, n - 1)
        if both.any():
            largest = max(largest, float(step.norm(dim=0)[both].max()))
    return largest


def main() -> int:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    data = Path(os.environ.get("DEEPATLAS_DATA", "../shared/data")) / "openkbp"
    cohort = deepatlas.find_exams(data / "validation")
    ids = json.loads((data / "lists.json").read_text())["eval_core5_si180"]["validation"]
    template = deepatlas.Template.load(sys.argv[2] if len(sys.argv) > 2 else "headneck").select(STRUCTURES)
    warnings.simplefilter("ignore")
    heads = "depth | Dice | s an exam | s, slowest | peak, MB | regions | largest jump at rims | elsewhere | folds, %"
    print(f"| {heads} |\n|" + "---|" * 9)
    for depth in (0, 1, 2):
        model = deepatlas.load(sys.argv[1], refine=0, depth=depth)
        if depth and not any(
            (network.region.within is not None) == (depth == 2) for network in model.regions
        ):
            break
        files = cohort.exam(ids[0])
        model.segment(deepatlas.read_volume(files.ct), template)
        before, rows = resident_megabytes(), []
        for exam_id in ids:
            files = cohort.exam(exam_id)
            # Axes to the right, the front and the head, so that a determinant below 0 is a fold.
            ct, drawn = (deepatlas.read_volume(file).canonical() for file in (files.ct, files.seg))
            found, seconds, peak = watched(lambda: model.segment(ct, template))  # noqa: B023
            dice = []
            for name in STRUCTURES:
                mask, truth = found.mask(template.labels[name]), drawn.array == cohort.labels[name]
                if truth.any():
                    dice.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
            field = model.map_exam(ct).field
            coords = field.on(ct.grid)
            # Beyond the field of view of the network the map is constant.
            seen = (np.asarray(ct.array) > -300) & field.inside(ct.grid, -1)
            body = torch.from_numpy(seen) & (coords.abs() <= 1).all(0)
            rim = torch.zeros(ct.grid.shape, dtype=torch.bool)
            for piece in field.pieces:
                weight = type(field)(piece.weight.expand(1, 3, *piece.grid.shape), piece.grid).on(ct.grid)[0]
                rim |= (weight > 0) & (weight < 1)
            folds = 100 * float(ops.folds(coords[None], body[None, None].float(), differences="digital"))
            rows.append(
                (float(np.mean(dice)), seconds, peak - before, len(field.pieces))
                + (jumps(coords, rim & body), jumps(coords, ~rim & body), folds)
            )
            print(f"depth {depth} {exam_id}: {rows[-1]}", file=sys.stderr)
        dice_, seconds_, peak_, pieces, at_rim, elsewhere, folds_ = zip(*rows, strict=True)
        print(
            f"| {depth} | {statistics.mean(dice_):.3f} | {statistics.mean(seconds_):.2f} | {max(seconds_):.2f} "
            f"| {max(peak_):.0f} | {statistics.mean(pieces):.1f} | {max(at_rim):.3f} | {max(elsewhere):.3f} "
            f"| {max(folds_):.3f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
