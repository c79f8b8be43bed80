"""The quality report of a dataset: one self-contained page, made of the manifest and a sample of the exam files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepatlas.exams.exam_file import ExamRecord
from deepatlas.files import write_text
from deepatlas.intake.dataset.folder import REPORT, label_table
from deepatlas.intake.dataset.manifest import Manifest, SeriesLine
from deepatlas.intake.dataset.thumbnails import WINDOW, sample, thumbnail
from deepatlas.io.dicom.found import Subject
from deepatlas.pictures.draw import colour, data_uri, new_figure, png_bytes
from deepatlas.pictures.page import render
from deepatlas.version import __version__

# Pictures on the page. A page of 6 MB shows one in 850 of 51,167 exams; browsers do not open a few thousand.
THUMBNAILS = 60
# Lines for one reason of the choice of series. The manifest has all of them.
_SERIES_ROWS = 200
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w.]*\d)")


def write_quality_report(folder: Path, manifest: Manifest, thumbnails: int = THUMBNAILS) -> None:
    """Write ``report.html`` into ``folder``: counts, histograms, pictures, every warning and refusal.

    The page contains no date and needs no other file. The same dataset gives the same page.
    """
    exams = list(manifest.exams())
    refusals = manifest.refusals()
    warnings = [(e.id, text) for e in exams for text in e.warnings]
    labels = label_table(exams)
    present = Counter(name for e in exams for name in e.present)
    thumbs = [thumbnail(folder, e) for e in sample(exams, thumbnails)]
    shown = {contour.name for thumb in thumbs for contour in thumb.contours}
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
        structures=[(name, i, present[name], colour(i)) for name, i in labels.items()],
        legend=[(name, colour(i)) for name, i in labels.items() if name in shown],
        histograms=data_uri(_histograms(exams)),
        ranges=_ranges(exams),
        tables=_tables(exams),
        thumbs=thumbs,
        window=f"window {WINDOW[0]:g} to {WINDOW[1]:g} HU",
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
    return [{"title": _common([text for _, text in rows]), "rows": rows, "more": 0} for _, rows in ordered]


def _common(texts: list[str]) -> str:
    """What lines have in common that differ in their numbers only: ``2 to 9 of its voxels lie beyond the CT``."""
    columns = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    ranges = (_range(column) for column in columns)
    return _NUMBER.sub(lambda _: next(ranges), texts[0])


def _range(numbers: Sequence[str]) -> str:
    ordered = sorted(set(numbers), key=lambda n: float(n.replace(",", "")))
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def _series_groups(lines: list[tuple[str, SeriesLine]]) -> list[dict[str, Any]]:
    """Group the series by the reason for or against them. Exams with a single series are not listed."""
    several = {exam for exam, n in Counter(exam for exam, _ in lines).items() if n > 1}
    groups: dict[str, list[tuple[str, SeriesLine]]] = {}
    for exam, line in lines:
        if exam in several:
            groups.setdefault(_NUMBER.sub("#", line.reason), []).append((exam, line))
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        {
            "title": _common([line.reason for _, line in rows]),
            "rows": [(exam, f"{line.series}: {line.reason}") for exam, line in rows[:_SERIES_ROWS]],
            "more": max(0, len(rows) - _SERIES_ROWS),
        }
        for _, rows in ordered
    ]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
