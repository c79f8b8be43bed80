"""The files of a follow-up: the difference image, the table, and one picture."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from deepatlas.cells import cell
from deepatlas.errors import DataError
from deepatlas.files import write_text
from deepatlas.io.codec import write_volume
from deepatlas.io.values import whole_hounsfield
from deepatlas.localize.follow import FollowUp
from deepatlas.localize.template.file import Template
from deepatlas.pictures.draw import draw_contours, legend, panel_grid, save_figure, show
from deepatlas.pictures.view import PLANES, View, choose_slices
from deepatlas.space.grid import Grid
from deepatlas.space.labels import Labels
from deepatlas.space.preprocess import foreground_box
from deepatlas.space.resample_to import labels_resampled_to, resample_to
from deepatlas.space.volume import Volume

NAMES = ("difference.nii.gz", "changes.json", "changes.csv", "changes.png")
# The most voxels along an axis of the volumes that are drawn.
_DRAWN = 256
# The window of a CT, and the difference that is shown red or blue in full.
_WINDOW = (-160.0, 240.0)
_STRONG = 200.0
# What is shown around the patient.
_MARGIN_MM = 10.0


def follow_paths(folder: Path) -> list[Path]:
    """The files that :func:`write_follow_up` writes."""
    return [folder / name for name in NAMES]


def write_follow_up(
    folder: Path, found: FollowUp, template: Template, before: Volume, names: tuple[str, str]
) -> None:
    """Write ``difference.nii.gz``, ``changes.json``, ``changes.csv`` and ``changes.png`` into a folder.

    Args:
        folder: where to write.
        found: the follow-up.
        template: the names of the structures.
        before: the exam A.
        names: what A and B are called.
    """
    difference = found.difference
    if found.registration.intensity == "hu":
        difference = replace(difference, array=whole_hounsfield(difference.array))
    write_volume(folder / NAMES[0], difference)
    about = {"before": names[0], "after": names[1], **found.to_dict()}
    write_text(folder / NAMES[1], json.dumps(about, indent=1, allow_nan=False) + "\n")
    text = io.StringIO()
    rows = [
        {k: v for k, v in change.to_dict().items() if k != "shift"} | {"known": found.known}
        for change in found.changes
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    write_text(folder / NAMES[2], text.getvalue())
    picture(folder / NAMES[3], found, template, before, names)


def table_text(found: FollowUp) -> str:
    """The changes as lines of text, for a terminal."""
    lines = [f"{'structure':24} {'A ml':>9} {'B ml':>9} {'change':>8} {'shift mm':>9} {'expected':>9}"]
    for change in found.changes:
        row = change.to_dict()
        percent = "" if row["change_percent"] is None else f"{row['change_percent']:+.0f} %"
        shift = "" if row["shift_mm"] is None else f"{row['shift_mm']:.1f}"
        note = "  moved" if change.moved else "" if change.complete else "  shown in part"
        lines.append(
            f"{change.name[:24]:24} {change.before_ml:9.2f} {change.after_ml:9.2f} {percent:>8} {shift:>9} "
            f"{change.expected_mm:9.1f}{note}"
        )
    return "\n".join(lines)


def picture(path: Path, found: FollowUp, template: Template, before: Volume, names: tuple[str, str]) -> None:
    """A and B side by side in the space of A, with the structures of both, and the difference in colours."""
    grid = _patient(before) if found.registration.intensity == "hu" else before.canonical().grid
    # Cubes, so that the three planes have the proportions of the anatomy without further ado.
    side = max(max(grid.spacing), max(grid.extent) / _DRAWN)
    small = grid.resized(
        [max(2, round(n * s / side)) for n, s in zip(grid.shape, grid.spacing[::-1], strict=True)]
    )
    moved = found.registration.on_fixed
    fill = moved.fill
    a, b = (resample_to(v, small, outside=fill).array for v in (before, moved.volume))
    difference = resample_to(found.difference, small, outside=-1e9).array
    difference[difference < -1e8] = 0
    seg_a = labels_resampled_to(found.before, small)
    seg_b = labels_resampled_to(moved.transform.pull(Labels.of(found.after), small), small)
    ids = dict(template.labels)
    doubt = " (the model does not know such exams)" if found.known is False else ""
    window = _WINDOW if found.registration.intensity == "hu" else tuple(np.percentile(a, (1, 99)).tolist())
    figure, axes = panel_grid(
        small.shape, small.spacing, 3, len(ids), f"{names[0]} to {names[1]}: what changed{doubt}"
    )
    where = choose_slices(seg_a.array)
    for row, plane in enumerate(PLANES):
        view, index = View(plane), where[row]
        titles = (names[0], f"{names[1]}, aligned", "difference") if row == 0 else ("", "", "")
        for column, image in enumerate((a, b)):
            show(axes[row][column], view.slice(image, index), view, small.spacing, window, titles[column])
        show(axes[row][2], _coloured(view.slice(difference, index)), view, small.spacing, title=titles[2])
        for column in range(3):
            draw_contours(axes[row][column], view.slice(seg_a.array, index), list(ids.values()))
        draw_contours(axes[row][1], view.slice(seg_b.array, index), list(ids.values()), "dotted")
    note = "solid: structures in A; dotted: in B; orange: brighter in B, blue: darker; patient's right on the left"
    legend(figure, ids, note)
    save_figure(figure, path)


def _patient(exam: Volume) -> Grid:
    """The canonical grid of a CT without the air beside the patient; nothing is cut along z."""
    whole = exam.canonical()
    try:
        start, shape = foreground_box(whole)
    except DataError:
        return whole.grid
    margin = [0, *(round(_MARGIN_MM / mm) for mm in whole.grid.spacing[1::-1])]
    low = [0, *(max(0, a - m) for a, m in zip(start[1:], margin[1:], strict=True))]
    ends = [a + n + m for a, n, m in zip(start, shape, margin, strict=True)]
    high = [whole.grid.shape[0], *(min(b, n) for b, n in zip(ends[1:], whole.grid.shape[1:], strict=True))]
    return whole.grid.cropped(low, [b - a for a, b in zip(low, high, strict=True)])


def _coloured(difference: np.ndarray) -> np.ndarray:
    """A difference as RGB: grey for none, orange above, blue below."""
    strength = np.clip(difference / _STRONG, -1, 1)
    base = np.full((*difference.shape, 3), 0.16, dtype=np.float32)
    base[..., 0] += 0.84 * strength.clip(min=0)
    base[..., 2] += 0.84 * (-strength).clip(min=0)
    base[..., 1] += 0.25 * np.abs(strength)
    return base
