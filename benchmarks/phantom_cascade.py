"""What the cascade brings on phantoms, whose true coordinates and small structures are known (section 5.2.4).

    python benchmarks/phantom_cascade.py RUN TEMPLATE TEST [NUMBER_OF_THE_FIRST_TEST_EXAM] > tables.md

RUN is a run with regions that has learned from phantoms of `deepatlas phantom --structures all --spacing 1.5`, TEMPLATE
a template of it, and TEST the folder of other exams of that cohort. Every exam is mapped in one pass at every depth.

A coordinate error is the distance in millimetres between the true place of a voxel of the body and its learned place,
which is carried into the true template by the affine map that fits eight training phantoms best. Inside a region, the
voxels are those whose true place lies in its box, and the map is the one that fits those of the training phantoms best.
Dice and HD95 are those of `deepatlas evaluate` on the exam's own voxels: a structure that was not found has a Dice of 0
and no HD95.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

import deepatlas
from deepatlas.cli.main import main as deepatlas_command
from deepatlas.phantom.patients import PhantomCohort

FIT_EXAMS, VOXELS = 8, 300_000
DEPTHS = (0, 1, 2)
SMALL = (
    "lens",
    "orbit",
    "optic_nerve",
    "lacrimal_gland",
    "cochlea",
    "parotid_gland",
    "submandibular_gland",
    "mandible",
)


def homogeneous(places: np.ndarray) -> np.ndarray:
    return np.column_stack([places, np.ones(len(places))])


def fitted(learned: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The affine map ``[4, 3]`` from learned to true places with the least squared distance."""
    return np.linalg.lstsq(homogeneous(learned), true, rcond=None)[0]


def pairs(models: dict, cohort: PhantomCohort, index: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """True places (mm) and, for every depth, learned places of the same random voxels of the body, ``[N, 3]``."""
    exam = cohort.exam(index)
    voxels = np.flatnonzero(exam.foreground)
    voxels = np.random.default_rng(index).choice(voxels, min(VOXELS, len(voxels)), replace=False)
    z, y, x = np.unravel_index(voxels, exam.foreground.shape)
    places = exam.volume.grid.voxel_to_world(np.column_stack([x, y, z]))
    true = exam.coords[:, z, y, x].T.astype(np.float64)
    return true, {depth: model.map_exam(exam.volume).field.at(places) for depth, model in models.items()}


def coordinate_table(run: str, cohort: PhantomCohort, tests: range) -> None:
    models = {depth: deepatlas.load(run, refine=0, depth=depth) for depth in DEPTHS}
    boxes = {n.region.name: n.region.box for n in models[max(DEPTHS)].regions}
    train = [pairs(models, cohort, index) for index in range(FIT_EXAMS)]
    test = [pairs(models, cohort, index) for index in tests]
    true = np.concatenate([t for t, _ in train])
    # Which voxels lie in a box does not depend on the depth: the map of the root carries true places into the atlas.
    root = fitted(np.concatenate([a[0] for _, a in train]), true)

    def held(box: deepatlas.Box | None, places: np.ndarray) -> np.ndarray:
        if box is None:
            return np.ones(len(places), dtype=bool)
        return box.contains((places - root[3]) @ np.linalg.inv(root[:3]))

    print("| median error in mm (95th percentile) | " + " | ".join(f"depth {d}" for d in DEPTHS) + " |")
    print("|---|" + "---|" * len(DEPTHS))
    for name, box in {"whole body": None, **boxes}.items():
        cells = []
        for depth in DEPTHS:
            inside = held(box, true)
            affine = fitted(np.concatenate([a[depth] for _, a in train])[inside], true[inside])
            error = []
            for places, learned in test:
                here = held(box, places)
                error.append(
                    np.linalg.norm(homogeneous(learned[depth][here]) @ affine - places[here], axis=1)
                )
            error = np.concatenate(error)
            cells.append(f"{np.median(error):.1f} ({np.percentile(error, 95):.1f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def structure_table(run: str, template: str, test: str) -> None:
    found = {}
    for depth in DEPTHS:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            options = ["--fast", "--no-pictures", "--depth", str(depth), "--quiet"]
            command = ["evaluate", "--model", run, "--template", template, "--data", test, *options]
            if deepatlas_command([*command, "--out", folder]):
                sys.exit("deepatlas evaluate failed")
            found[depth] = json.loads((Path(folder) / "summary.json").read_text())["structures"]
    print("| structure (n) | " + " | ".join(f"Dice, depth {d}" for d in DEPTHS), end=" | ")
    print(" | ".join(f"HD95 in mm, depth {d}" for d in DEPTHS) + " |\n|---|" + "---|" * 2 * len(DEPTHS))
    for name, row in found[0].items():
        if not name.removesuffix("_right").removesuffix("_left").startswith(SMALL):
            continue
        cells = [f"{found[d][name]['dice']['mean']:.3f}" for d in DEPTHS]
        for depth in DEPTHS:
            mean, missed = found[depth][name]["hd95_mm"]["mean"], found[depth][name]["missed"]
            cells.append(("" if mean is None else f"{mean:.1f}") + (f" ({missed} missed)" if missed else ""))
        print(f"| {name} ({row['dice']['n']}) | " + " | ".join(cells) + " |")
    for label, key, wanted in (("all", "dice", None), ("small", "dice", SMALL)):
        cells = []
        for depth in DEPTHS:
            values = [
                row[key]["mean"]
                for name, row in found[depth].items()
                if wanted is None or name.startswith(wanted)
            ]
            cells.append(f"{np.mean(values):.3f}")
        print(f"| mean of {label} structures | " + " | ".join(cells) + " |" + " |" * len(DEPTHS))


def main() -> int:
    warnings.simplefilter("ignore")
    run, template, test = sys.argv[1:4]
    first = int(sys.argv[4]) if len(sys.argv) > 4 else 1000
    cohort = PhantomCohort(structures="all", spacing=1.5)
    exams = sum(1 for path in Path(test).iterdir() if path.is_dir())
    coordinate_table(run, cohort, range(first, first + exams))
    print()
    structure_table(run, template, test)
    return 0


if __name__ == "__main__":
    sys.exit(main())
