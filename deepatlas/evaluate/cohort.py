"""Score segmentation on a labelled cohort: metrics.csv, summary.json, report.html and pictures."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError
from deepatlas.evaluate.evaluation import (
    Conventions,
    Evaluation,
    EvaluationSettings,
    Seconds,
    TemplateUsed,
    Versions,
)
from deepatlas.evaluate.exam_figure import WarpedAtlas, exam_figure
from deepatlas.evaluate.metrics.hd95 import HD95_CONVENTIONS
from deepatlas.evaluate.metrics.masks import MetricSettings
from deepatlas.evaluate.metrics.surface_dice import check_tolerance
from deepatlas.evaluate.report import ExamSection, Report, write_report
from deepatlas.evaluate.rows import metrics_csv
from deepatlas.evaluate.score import LabelIds, score_exam
from deepatlas.evaluate.statistics import statistics, summarise
from deepatlas.exams.cohort import Cohort, ExamFiles
from deepatlas.exams.joined import Data, find_cohort
from deepatlas.exams.selection import Selection
from deepatlas.files import write_text
from deepatlas.localize.segment import find_structures, what_to_find
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine, ExamMap
from deepatlas.model.fit import Fit
from deepatlas.model.structures import Structures
from deepatlas.names.meet import meeting
from deepatlas.pictures import figures
from deepatlas.pictures.draw import png_bytes, save_figure, save_png
from deepatlas.space.labels import Labels
from deepatlas.space.volume import Volume


def evaluate_cohort(
    model: Engine,
    template: Template | Structures | None,
    data_dir: Data,
    out_dir: str | Path,
    exams: Sequence[str] | None = None,
    strict: bool = False,
    *,
    hd95: str = "mean",
    tolerance: float = 3.0,
    threshold: float | None = None,
    convention: str = "radiological",
    pictures: bool = True,
    split: str | Path | None = None,
    part: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Segment every labelled exam of a data directory and compare it with its reference (section 5.6).

    Exams are compared on their own grids, and structures by their whole masks, also where they overlap. Structures are
    matched by name between the template and ``labels.json``, where spelling does not count and synonyms meet
    (:mod:`deepatlas.names.meet`). One that was not drawn in an exam gives no row; one that was drawn but not found
    counts as Dice 0.

    Files written into ``out_dir``: ``metrics.csv`` (exam, structure, dice, hd95_mm, predicted_ml,
    reference_ml, surface_dice, asd_mm),
    ``summary.json``, ``report.html`` (one self-contained file), and, with ``pictures``, ``figures/<exam>.png`` and
    ``figures/dice.png``.

    Args:
        model: a trained model.
        template: a template made for this model. A model that was trained on labels takes none, but some of its own
            structures (``model.structures.select(…)``); None takes all of them.
        data_dir: a data directory or dataset with labelled exams (see :func:`deepatlas.find_exams`), or several.
        out_dir: the folder to write to; it is created.
        exams: the ids of the exams to evaluate; None takes every labelled exam of the test part, or else of the
            validation part, where a split file says it, and otherwise every labelled exam.
        strict: stop at the first exam that cannot be used, or that the model does not know. Otherwise the former is
            skipped and listed, and the latter is scored.
        hd95: the convention of HD95: ``"mean"`` (eq. 16), ``"max"`` or ``"pooled"``.
        tolerance: the distance in mm up to which surface Dice counts a piece of a surface as met.
        threshold: the mask value that counts for all structures, in (0, 1]; None takes the template's own values.
        convention: how pictures are turned: ``"radiological"`` or ``"neurological"``.
        pictures: draw a picture of every exam and the plot of all exams.
        split: a split file; None takes the ``splits.json`` of the data, if there is one.
        part: the part of the split to evaluate: ``"train"``, ``"validation"`` or ``"test"``.
        progress: receives one line of text per exam.

    Returns:
        The content of ``summary.json``: the mean Dice (eq. 15) and HD95 in mm over the structures as ``"dice"`` and
        ``"hd95_mm"``, the statistics of every structure, the conventions, the seconds per exam, and what was skipped.

    Raises:
        DeepAtlasError: the template belongs to another model, the model needs a template or takes none, or the
            threshold or tolerance is out of range.
        DataError: no exam can be evaluated, an id or ``hd95`` is unknown, the template and the data share no
            structure, or a file cannot be written.
    """
    if hd95 not in HD95_CONVENTIONS:
        raise DataError(f"evaluate: hd95 must be one of {', '.join(HD95_CONVENTIONS)}, got {hd95!r}")
    check_tolerance(tolerance)
    what = what_to_find(model, template)
    cohort = find_cohort(data_dir, split)
    among = _scored(cohort, part)
    selection = Selection(cohort, exams, strict, among=among)
    if exams is None and among is not None and progress is not None and cohort.parts:
        progress(
            f"{len(selection)} labelled exams of {part or 'the exams to score on'} in {cohort.parts.path}"
        )
    labels = selection.cohort.labels
    met = meeting(what.names, labels, str(selection.cohort.labels_path))
    structures = {n: LabelIds(labels[met[n]], i) for n, i in what.labels.items() if n in met}
    if not structures:
        raise DataError(
            f"{selection.cohort.labels_path}: shares no structure with the "
            f"{'template' if isinstance(what, Template) else 'model'} ({', '.join(what.names)}); "
            f"it has {', '.join(labels)}"
        )
    settings = EvaluationSettings(MetricSettings(hd95, tolerance), threshold, convention, pictures)
    out_dir = Path(out_dir)
    results = _evaluate_exams(model, what, selection, structures, settings, out_dir, progress)
    if not results:
        raise DataError(
            f"{cohort.root}: no labelled exam could be read ({next(iter(selection.skipped.values()))})"
        )
    rows = [row for result in results for row in result.section.rows]
    made_from = what.meta.get("exams") if isinstance(what, Template) else None
    evaluation = Evaluation(
        summary=summarise(rows, list(structures)),
        conventions=Conventions.of(settings, dict(zip(what.names, what.thresholds, strict=True))),
        seconds=Seconds.of({result.section.exam: result.seconds for result in results}),
        fit={result.section.exam: result.fit.to_dict() for result in results},
        skipped=selection.skipped,
        unlabelled=selection.unlabelled,
        not_in_labels=[n for n in what.names if n not in structures],
        synonyms={n: other for n, other in met.items() if n != other},
        model=model.fingerprint,
        refine=model.refine,
        average=model.average,
        template=TemplateUsed(made_from, list(what.names)) if isinstance(what, Template) else None,
        in_template=[r.section.exam for r in results if r.section.exam in (made_from or ())],
        data=", ".join(map(str, cohort.roots)),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=Versions(),
    )
    summary = evaluation.as_dict()
    write_text(out_dir / "metrics.csv", metrics_csv(rows))
    write_text(out_dir / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    plot = None
    if pictures and rows:
        figure = figures.dice_figure(rows, list(structures))
        plot = save_figure(figure, out_dir / "figures" / "dice.png")
    sections = sorted((result.section for result in results), key=_mean_dice_or_last)
    title = "One-shot segmentation" if isinstance(what, Template) else "Supervised segmentation"
    write_report(out_dir / "report.html", Report(title, evaluation, sections, plot))
    return summary


def _scored(cohort: Cohort, part: str | None) -> list[str] | None:
    """The exams to score on where nobody names them; None takes all."""
    if cohort.parts is None:
        if part is not None:
            raise DataError(
                f"{cohort.root}: has no splits.json, so it has no part {part!r}; give --split FILE"
            )
        return None
    return cohort.parts.scoring([exam.id for exam in cohort.exams], part)


@dataclass
class _ExamResult:
    section: ExamSection
    seconds: float
    fit: Fit


def _evaluate_exams(
    model: Engine,
    what: Template | Structures,
    selection: Selection,
    structures: dict[str, LabelIds],
    settings: EvaluationSettings,
    out_dir: Path,
    progress: Callable[[str], None] | None,
) -> list[_ExamResult]:
    """Segment and score every exam of the selection, and write its picture."""

    def evaluate(files: ExamFiles, ct: Volume, reference: Labels) -> _ExamResult:
        start = time.perf_counter()
        found, predicted, _ = find_structures(model, ct, what, settings.threshold)
        warning = found.fit.warning(files.id, selection.strict)
        seconds = time.perf_counter() - start
        section = ExamSection(
            files.id, score_exam(files.id, reference, predicted, structures, settings.metrics)
        )
        drawn = {row.structure for row in section.rows}
        section.note = f"fit {found.fit.value:.2f}" if found.fit.reason is None else "no fit"
        section.warning = warning
        if absent := [name for name in structures if name not in drawn]:
            section.note += f" · not drawn: {', '.join(absent)}"
        if settings.pictures:
            shown = ct if found.image is None else found.image
            figure = exam_figure(
                files.id, shown, reference, predicted, structures, settings.convention, model.intensity,
                WarpedAtlas(model.atlas, found.field) if isinstance(found, ExamMap) else None,
            )  # fmt: skip
            section.png = png_bytes(figure)
        return _ExamResult(section, seconds, found.fit)

    results = []
    for count, (files, result) in enumerate(selection.use(evaluate), 1):
        results.append(result)
        if result.section.png:
            # The picture is written here and not in evaluate(), because a full disk must end the run. There it would
            # count as one bad exam.
            save_png(result.section.png, out_dir / "figures" / f"{files.id}.png")
        if progress is not None:
            mean = statistics(row.dice for row in result.section.rows).mean
            text = "no structure drawn" if mean is None else f"mean Dice {mean:.3f}"
            progress(f"evaluate {count}/{len(selection)} {files.id}: {text}, {result.seconds:.1f} s")
    return results


def _mean_dice_or_last(section: ExamSection) -> float:
    """The order of exams in the report: the worst first, and those without a row last."""
    mean = statistics(row.dice for row in section.rows).mean
    return math.inf if mean is None else mean
