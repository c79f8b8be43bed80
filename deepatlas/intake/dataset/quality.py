"""The quality report of a dataset: one self-contained page, made of the manifest and a sample of the exam files."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deepatlas.exams.exam_file import ExamFile, ExamRecord
from deepatlas.files import write_text
from deepatlas.intake.dataset.folder import REPORT, exam_path
from deepatlas.intake.dataset.manifest import Manifest, SeriesLine
from deepatlas.io.dicom.found import Subject
from deepatlas.pictures.draw import data_uri, new_figure, png_bytes
from deepatlas.pictures.page import render
from deepatlas.pictures.view import View
from deepatlas.space.constants import AIR
from deepatlas.version import __version__

# Pictures on the page. A page of 6 MB shows one in 850 of 51,167 exams; browsers do not open a few thousand.
THUMBNAILS = 60
# Largest size of a thumbnail in pixels.
_HEIGHT, _WIDTH = 190, 190
# In this window (HU), lungs differ from air and bone from soft tissue.
_WINDOW = (-700.0, 500.0)
# Lines for one reason of the choice of series. The manifest has all of them.
_SERIES_ROWS = 200
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)*")


def write_quality_report(folder: Path, manifest: Manifest, thumbnails: int = THUMBNAILS) -> None:
    """Write ``report.html`` into ``folder``: counts, histograms, pictures, every warning and refusal.

    The page contains no date and needs no other file. The same dataset gives the same page.
    """
    exams = list(manifest.exams())
    refusals = manifest.refusals()
    warnings = [(e.id, text) for e in exams for text in e.warnings]
    labels = exams[0].labels if exams else {}
    present = Counter(name for e in exams for name in e.present)
    text = render(
        "deepatlas.intake.dataset",
        "quality.jinja",
        version=__version__,
        exams=len(exams),
        crop=exams[0].crop if exams else None,
        size=_size(sum(e.bytes for e in exams)),
        labelled=sum(e.has_seg for e in exams),
        warned=sum(bool(e.warnings) for e in exams),
        refused_exams=sum(line.kind is Subject.EXAM for line in refusals),
        refused_files=sum(line.kind is not Subject.EXAM for line in refusals),
        structures=[(name, i, present[name]) for name, i in labels.items()],
        histograms=data_uri(_histograms(exams)),
        ranges=_ranges(exams),
        tables=_tables(exams),
        thumbs=[_thumbnail(folder, e) for e in _sample(exams, thumbnails)],
        window=f"window {_WINDOW[0]:g} to {_WINDOW[1]:g} HU",
        warnings=_groups(warnings),
        exam_refusals=_groups((r.name, r.reason) for r in refusals if r.kind is Subject.EXAM),
        file_refusals=_groups((r.name, r.reason) for r in refusals if r.kind is not Subject.EXAM),
        series=_series_groups(manifest.series()),
    )
    write_text(folder / REPORT, text)


# -- numbers ----------------------------------------------------------------------------------------------


def _axes(exams: list[ExamRecord]) -> list[tuple[str, np.ndarray]]:
    """The distributions that are shown, along the patient's axes: (name, a value for each exam)."""
    spacing = np.array([e.spacing for e in exams]).reshape(-1, 3)
    extent = np.array([e.extent for e in exams]).reshape(-1, 3)
    return [
        ("voxel spacing to the right", spacing[:, 0]),
        ("voxel spacing to the head", spacing[:, 2]),
        ("coverage along the body", extent[:, 2]),
        ("width of the field of view", extent[:, 0]),
    ]


def _ranges(exams: list[ExamRecord]) -> list[tuple[str, list[float]]]:
    return [
        (name, np.percentile(values, [0, 5, 50, 95, 100]).tolist())
        for name, values in _axes(exams)
        if len(values)
    ]


def _histograms(exams: list[ExamRecord]) -> bytes:
    figure = new_figure(11.6, 2.5)
    for place, (name, values) in enumerate(_axes(exams), 1):
        axes = figure.add_subplot(1, 4, place)
        if len(values):
            middle = float(values.min() + values.max()) / 2
            # The values may differ by rounding errors only.
            half = max(0.52 * float(np.ptp(values)), 0.05 * abs(middle), 1e-3)
            axes.hist(values, bins=30, range=(middle - half, middle + half), color="#56B4E9")
        axes.set_xlabel(f"{name} (mm)", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.yaxis.get_major_locator().set_params(integer=True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].set_ylabel("exams", fontsize=8)
    figure.tight_layout(pad=0.6)
    return png_bytes(figure)


def _tables(exams: list[ExamRecord]) -> list[tuple[str, list[tuple[str, int]]]]:
    facts = {
        "source format": "format",
        "kernel": "kernel",
        "tube voltage (kV)": "kvp",
        "contrast agent": "contrast",
    }
    found = [("voxel order", Counter(e.orientation for e in exams))]
    for title, key in facts.items():
        found.append((title, Counter(str(e.facts[key]) for e in exams if e.facts.get(key) not in (None, ""))))
    return [(title, counts.most_common(12)) for title, counts in found if counts]


def _groups(lines: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Group the lines that differ in their numbers only; the largest group comes first."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, text in lines:
        groups.setdefault(_NUMBER.sub("#", text), []).append((name, text))
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        {"title": rows[0][1] if len(rows) == 1 else title, "rows": rows, "more": 0} for title, rows in ordered
    ]


def _series_groups(lines: list[tuple[str, SeriesLine]]) -> list[dict[str, Any]]:
    """Group the series by the reason for or against them. Exams with a single series are not listed."""
    several = {exam for exam, n in Counter(exam for exam, _ in lines).items() if n > 1}
    groups: dict[str, list[tuple[str, str]]] = {}
    for exam, line in lines:
        if exam in several:
            row = exam, f"{line.series}: {line.reason}"
            groups.setdefault(_NUMBER.sub("#", line.reason), []).append(row)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        {"title": title, "rows": rows[:_SERIES_ROWS], "more": max(0, len(rows) - _SERIES_ROWS)}
        for title, rows in ordered
    ]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


# -- pictures ---------------------------------------------------------------------------------------------


def _sample(exams: list[ExamRecord], count: int) -> list[ExamRecord]:
    if len(exams) <= count:
        return exams
    return [exams[round(i * (len(exams) - 1) / (count - 1))] for i in range(count)]


def _thumbnail(folder: Path, exam: ExamRecord) -> dict[str, Any]:
    with ExamFile(exam_path(folder, exam.id)) as file:
        png, width, height = coronal_png(file)
    shape = " × ".join(str(n) for n in reversed(exam.shape))
    spacing = " × ".join(f"{s:.3g}" for s in exam.spacing)
    return {
        "id": exam.id,
        "png": data_uri(png),
        "width": width,
        "height": height,
        "text": f"{shape}, {spacing} mm",
    }


def coronal_png(exam: ExamFile) -> tuple[bytes, int, int]:
    """The mid-coronal slice of an exam as a PNG file, and its width and height in pixels.

    The patient's right is on the left, the head is up, and a millimetre has the same length in both directions.
    """
    grid, axes, flips = exam.grid.canonical()
    plane = _plane(exam, axes, flips, grid.shape[1] // 2)
    x, _, z = grid.extent
    scale = min(_WIDTH / x, _HEIGHT / z)
    width, height = max(1, round(x * scale)), max(1, round(z * scale))
    picture = View("coronal").orient(plane)
    tensor = torch.from_numpy(np.ascontiguousarray(picture, dtype=np.float32)).clamp(min=AIR)[None, None]
    low, high = _WINDOW
    small = torch.nn.functional.adaptive_avg_pool2d(tensor, (height, width))[0, 0].numpy()
    grey = np.rint(np.clip((small - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "PNG", optimize=True)
    return out.getvalue(), width, height


def _plane(exam: ExamFile, axes: tuple[int, ...], flips: tuple[int, ...], index: int) -> np.ndarray:
    """The coronal plane ``index`` (in canonical order) as ``[z, x]`` in canonical order; little else is read."""
    # The axis of the file that runs from back to front.
    source = axes[1]
    count = exam.grid.shape[source]
    at = count - 1 - index if 1 in flips else index
    box = tuple(slice(at, at + 1) if axis == source else slice(None) for axis in range(3))
    array = np.asarray(exam.ct[box]).transpose(axes)
    array = np.flip(array, [axis for axis in flips if axis != 1]) if flips else array
    return array[:, 0]
