"""Score one-shot segmentation on a labelled cohort: metrics.csv, summary.json, report.html and figures."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

import deepatlas_ops as ops
from deepatlas.errors import DataError
from deepatlas.evaluate.metrics.hd95 import HD95_CONVENTIONS, dice, surface_distances
from deepatlas.evaluate.report import ExamFigure, Report, write_report
from deepatlas.evaluate.tables import Row, statistics, summarise
from deepatlas.exams.cohort import ExamFiles, find_exams
from deepatlas.files import write_text
from deepatlas.localize.segment import segment_coordinates
from deepatlas.localize.template.file import Template
from deepatlas.localize.template.selection import Selection
from deepatlas.model.engine import Engine
from deepatlas.model.native import native_coordinates
from deepatlas.pictures import figures
from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import foreground_box, normalize
from deepatlas.space.volume import Volume
from deepatlas.version import __version__

SURFACE = "mask voxels with a face neighbour outside; distances between voxel centres, exact Euclidean"
ROWS = "structures not drawn in an exam give no row; a missed one counts as Dice 0 and not in the distances"


def score(
    exam: str, reference: Volume, prediction: np.ndarray, structures: dict[str, tuple[int, int]],
    convention: str = "mean",
) -> list[Row]:  # fmt: skip
    """Rows of one exam; ``structures`` maps a name to its (reference id, prediction id). Structures without a
    reference voxel were not drawn and give no row."""
    spacing, ml = reference.grid.spacing, reference.grid.voxel_volume / 1000
    rows = []
    for name, (own, predicted) in structures.items():
        truth, found = reference.array == own, prediction == predicted
        volume = int(np.count_nonzero(truth))
        if not volume:
            continue
        distance = surface_distances(truth, found, spacing).percentile(95.0, convention)
        rows.append(
            Row(exam, name, dice(truth, found), distance, int(np.count_nonzero(found)) * ml, volume * ml)
        )
    return rows


def atlas_slices(
    atlas: torch.Tensor, coords: torch.Tensor, model_grid: Grid, grid: Grid, index: tuple[int, int, int]
) -> list[np.ndarray]:
    """The atlas warped onto the exam (Figs 4 and 5), on one slice per plane of ``grid`` (little memory)."""
    out = []
    for axis, at in enumerate(index):
        start, shape = [0, 0, 0], list(grid.shape)
        start[axis], shape[axis] = at, 1
        fine = native_coordinates(coords, model_grid, grid.cropped(start, shape))[None].clamp_(-1, 1)
        out.append(ops.resample(atlas.to(coords), fine)[0, 0].squeeze(axis).cpu().numpy())
    return out


def _box_to_show(image: Volume, *labels: np.ndarray) -> tuple[list[int], list[int]]:
    """Start and shape (z, y, x) of the patient and every label: pictures without the room around."""
    try:
        start, shape = foreground_box(image)
    except DataError:
        return [0, 0, 0], list(image.grid.shape)
    low, high = list(start), [a + n for a, n in zip(start, shape, strict=True)]
    for array in labels:
        for axis in range(3):
            used = np.flatnonzero(array.any(axis=tuple(a for a in range(3) if a != axis)))
            if len(used):
                low[axis], high[axis] = min(low[axis], int(used[0])), max(high[axis], int(used[-1]) + 1)
    return low, [b - a for a, b in zip(low, high, strict=True)]


def exam_figure(
    model: Engine, exam: str, ct: Volume, seg: Volume, predicted: np.ndarray, coords: torch.Tensor, grid: Grid,
    structures: dict[str, tuple[int, int]], convention: str,
) -> figures.Figure:  # fmt: skip
    """The tri-planar comparison of one exam (see :func:`~deepatlas.pictures.figures.overlay_figure`)."""
    image, truth = ct.canonical(), seg.canonical()
    found = Volume(predicted, seg.grid).canonical().array
    # Reference ids may differ from the template's: show both in the template's numbers, so that colours
    # agree.
    table = np.zeros(
        int(max(truth.array.max(), max(own for own, _ in structures.values()))) + 1, dtype=np.int32
    )
    for own, shown in structures.values():
        table[own] = shown
    truth_array = table[truth.array]
    names = {n: i for n, (_, i) in structures.items()}
    ids = list(names.values())
    start, size = _box_to_show(image, truth_array, found)
    image = image.cropped(start, size)
    box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    truth_array, found = truth_array[box], found[box]
    index = figures.choose_slices(truth_array, ids)

    def cut(array: np.ndarray) -> list[np.ndarray]:
        return [np.take(array, at, axis=axis) for axis, at in enumerate(index)]

    exam_slices = [
        normalize(torch.from_numpy(np.ascontiguousarray(s)).float()).numpy() for s in cut(image.array)
    ]
    warped = atlas_slices(model.atlas, coords, grid, image.grid, index)
    return figures.overlay_figure(
        exam_slices, warped, cut(found), cut(truth_array), names, image.grid.shape, image.grid.spacing,
        title=exam, convention=convention,
    )  # fmt: skip


def evaluate_cohort(
    model: Engine,
    template: Template,
    data_dir: str | Path,
    out_dir: str | Path,
    exams: Sequence[str] | None = None,
    strict: bool = False,
    *,
    hd95: str = "mean",
    threshold: float | None = None,
    convention: str = "radiological",
    pictures: bool = True,
    progress: Callable[[str], None] | None = None,
) -> dict:
    """Segment every labelled exam of ``data_dir`` and compare with its seg file, on the exam's own grid.

    Writes ``metrics.csv`` (exam, structure, dice, hd95_mm, predicted_ml, reference_ml), ``summary.json``,
    ``report.html`` (one self-contained file) and ``figures/<exam>.png`` into ``out_dir``. Structures are
    matched by name between template and ``labels.json``. ``exams`` restricts to some ids; ``hd95`` names
    the convention (eq. 16: "mean"); ``threshold`` is as in segment_coordinates; ``convention`` is how pictures are
    turned, "radiological" or "neurological"; ``progress`` receives a line per exam. A bad exam is skipped and listed
    unless ``strict``. Raises DataError where nothing can be evaluated.
    """
    if hd95 not in HD95_CONVENTIONS:
        raise DataError(f"evaluate: hd95 must be one of {', '.join(HD95_CONVENTIONS)}, got {hd95!r}")
    template.check_model(model.fingerprint)
    out_dir = Path(out_dir)
    selection = Selection(find_exams(data_dir), exams, strict)
    labels = selection.cohort.labels
    structures = {n: (labels[n], i) for n, i in template.labels.items() if n in labels}
    if not structures:
        raise DataError(
            f"{selection.cohort.labels_path}: shares no structure with the template "
            f"({', '.join(template.names)}); names must agree"
        )
    seconds: dict[str, float] = {}
    pages: list[ExamFigure] = []

    def evaluate(files: ExamFiles, ct: Volume, seg: Volume) -> ExamFigure:
        start = time.perf_counter()
        coords, grid, _ = model.coordinates_on_model_grid(ct)
        predicted = segment_coordinates(coords, grid, ct.grid, template, threshold)
        seconds[files.id] = time.perf_counter() - start
        rows = score(files.id, seg, predicted, structures, hd95)
        page = ExamFigure(files.id, rows)
        if pictures:
            figure = exam_figure(model, files.id, ct, seg, predicted, coords, grid, structures, convention)
            page.png = figures.png_bytes(figure)
        absent = [n for n in structures if n not in {r.structure for r in rows}]
        page.note = f"not drawn: {', '.join(absent)}" if absent else ""
        return page

    for count, (files, page) in enumerate(selection.use(evaluate), 1):
        pages.append(page)
        if page.png:  # written here and not in evaluate(): a full disk ends the run, it is no bad exam
            figures.save_png(page.png, out_dir / "figures" / f"{files.id}.png")
        if progress is not None:
            mean = statistics(r.dice for r in page.rows)["mean"]
            text = "no structure drawn" if mean is None else f"mean Dice {mean:.3f}"
            progress(f"evaluate {count}/{len(selection)} {files.id}: {text}, {seconds[files.id]:.1f} s")
    if not pages:
        raise DataError(
            f"{data_dir}: no labelled exam could be read ({next(iter(selection.skipped.values()))})"
        )
    rows = [row for page in pages for row in page.rows]
    summary = summarise(rows, list(structures))
    overall = summary["overall"]
    summary = {
        "dice": overall["dice_mean_of_structures"],
        "hd95_mm": overall["hd95_mm_mean_of_structures"],
    } | summary
    summary |= {
        "conventions": {
            "dice": "2 |Y and P| / (|Y| + |P|) (eq. 15)",
            "hd95": HD95_CONVENTIONS[hd95],
            "hd95_name": hd95,
            "surface": SURFACE,
            "rows": ROWS,
            "threshold": threshold or dict(zip(template.names, template.thresholds, strict=True)),
            "pictures": convention,
        },
        "seconds": statistics(seconds[p.exam] for p in pages)
        | {"per_exam": {p.exam: seconds[p.exam] for p in pages}},
        "skipped": selection.skipped,
        "unlabelled": selection.unlabelled,
        "not_in_labels": [n for n in template.names if n not in structures],
        "model": model.fingerprint,
        "refine": model.refine,
        "average": model.average,
        "template": {"exams": template.meta.get("exams"), "structures": list(template.names)},
        "data": str(data_dir),
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": {
            "deepatlas": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    _write(out_dir, rows, summary, pages, pictures)
    return summary


def _write(out_dir: Path, rows: list[Row], summary: dict, pages: list[ExamFigure], pictures: bool) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row.columns())
    writer.writerows(row.csv() for row in rows)
    write_text(out_dir / "metrics.csv", text.getvalue())
    write_text(out_dir / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    plot = None
    if pictures and rows:
        figure = figures.dice_figure(rows, list(summary["structures"]))
        plot = figures.save_figure(figure, out_dir / "figures" / "dice.png")
    means = {page.exam: statistics(r.dice for r in page.rows)["mean"] for page in pages}
    ranked = sorted(pages, key=lambda p: math.inf if means[p.exam] is None else means[p.exam])  # worst first
    write_report(out_dir / "report.html", Report("One-shot segmentation", summary, ranked, plot))
