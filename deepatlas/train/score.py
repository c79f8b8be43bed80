"""The score of a finished run: segmentation of unseen exams and, for phantoms, the true coordinate error."""

from __future__ import annotations

import os
from pathlib import Path

from deepatlas.config import Config
from deepatlas.evaluate.cohort import evaluate_cohort
from deepatlas.evaluate.grid_truth import grid_truth
from deepatlas.evaluate.tables import number, summary_table
from deepatlas.evaluate.truth import phantom_truth
from deepatlas.exams.joined import find_cohort
from deepatlas.localize.template.build import build_template
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine
from deepatlas.train.log import RunLog
from deepatlas.train.pictures import save_overview
from deepatlas.train.request import Request
from deepatlas.train.split import Split


def score(folder: Path, model: Engine, config: Config, request: Request, split: Split, log: RunLog) -> dict:
    """Write template and evaluation under ``folder``; returns the content of ``result.json``.

    The coordinates of the template's exams are refined if ``config.refine.steps`` is above 0: the error of one exam
    counts in every other one. Then the entry ``"refined"`` holds the same figures with the test exams refined as well.
    """
    result = {"preset": config.preset, "seed_exam": split.seed} | exams_of(split, config)
    if not can_score(split, log):
        return result
    steps = config.refine.steps
    refining = Engine(config, model.network, model.atlas_module, model.card, refine=steps) if steps else model
    template = make_template(folder, "", refining, request, split, log)
    summary = evaluate(folder, "", model, template, request, split, log)
    used = list(summary["seconds"]["per_exam"])
    save_overview(folder / "figures" / "overview.png", model, template, find_cohort(split.test_data), used[0])
    log.say(summary_table(summary))
    result |= _figures(summary) | {"test_exams": used}
    if request.data is None:
        result |= phantom_truth(model, config.phantom, split.template[0])
    if steps:
        log.say(f"the same with {steps} steps of refinement per exam")
        summary = evaluate(folder, "-refined", refining, template, request, split, log, pictures=False)
        result["refined"] = {"steps": steps} | _figures(summary)
        if request.data is None:
            result["refined"] |= phantom_truth(refining, config.phantom, split.template[0], baseline=False)
    return result


def score_supervised(
    folder: Path, model: Engine, config: Config, request: Request, split: Split, log: RunLog
) -> dict:
    """Write the evaluation of a model that was trained on labels; returns the content of ``result.json``.

    Its entry ``"grid"`` holds the Dice that the truth itself keeps on the grid of the network's input: see
    :func:`~deepatlas.evaluate.grid_truth.grid_truth`.
    """
    assert model.structures is not None
    result: dict = {
        "preset": config.preset,
        "model": request.model,
        "from_scratch": request.from_scratch,
        "labelled_exams": split.train,
        "learned_structures": list(model.structures.names),
        "test_exams": split.test,
    }
    if held_out := split.held_out(config.data.holdout):
        result["held_out"] = held_out
    if not split.test:
        log.say("no score: there are no labelled exams to test on")
        return result
    summary = evaluate_cohort(
        model, None, split.test_data, folder / "evaluation", split.test, request.strict, progress=log.say
    )
    used = list(summary["seconds"]["per_exam"])
    for exam, reason in summary["skipped"].items():
        log.skip(exam, reason, ", ".join(Path(root).name for root in split.test_data))
    log.say(summary_table(summary))
    return result | _figures(summary) | {"test_exams": used, "grid": grid_truth(model, split.test_data, used)}


def exams_of(split: Split, config: Config) -> dict:
    """The entries of a result that name the exams of its score."""
    held_out = split.held_out(config.data.holdout)
    exams = {"template_exams": split.template, "test_exams": split.test}
    return exams | ({"held_out": held_out} if held_out else {})


def can_score(split: Split, log: RunLog) -> bool:
    """Whether there are exams to make a template from and to test on; a line says so where there are none."""
    there = bool(split.template and split.test) and all(map(os.path.isdir, split.data))
    if not there:
        log.say("no one-shot score: there are no labelled exams to make a template from and to test on")
    return there


def make_template(
    folder: Path, suffix: str, model: Engine, request: Request, split: Split, log: RunLog
) -> Template:
    """Write ``template<suffix>.h5`` from the exams for it. A bad one is skipped, unless the run is strict."""
    template = build_template(
        model, split.data, split.template, request.structures, strict=request.strict, progress=log.say
    )
    template.save(folder / f"template{suffix}.h5")
    for exam, reason in template.meta["skipped"].items():
        log.skip(exam, reason, ", ".join(Path(root).name for root in split.data))
    return template


def evaluate(
    folder: Path,
    suffix: str,
    model: Engine,
    template: Template,
    request: Request,
    split: Split,
    log: RunLog,
    pictures: bool = True,
) -> dict:
    """Write ``evaluation<suffix>/``; returns its summary. A bad exam is skipped, unless the run is strict."""
    summary = evaluate_cohort(
        model,
        template,
        split.test_data,
        folder / f"evaluation{suffix}",
        split.test,
        request.strict,
        pictures=pictures,
        progress=log.say,
    )
    for exam, reason in summary["skipped"].items():
        log.skip(exam, reason, ", ".join(Path(root).name for root in split.test_data))
    return summary


def best_steps(result: dict) -> int:
    """The steps of refinement by which a model served better than by one pass; 0 where it did not, or none can tell."""
    refined = result["refined"]
    # No test exam need show a structure of the template, and then there is no Dice.
    return refined["steps"] if (refined["dice"] or 0) > (result["dice"] or 0) else 0


def result_text(folder: Path, result: dict) -> str:
    """The lines about a result for the screen."""
    lines = []
    if "dice" in result:
        kind = "one-shot" if "grid" not in result else "supervised"
        lines.append(
            f"{kind} Dice {number(result['dice'], 3)} over {result['structures']} structures of "
            f"{result['exams']} unseen exams, HD95 {number(result['hd95_mm'], 1)} mm"
        )
    if "grid" in result:
        grid = result["grid"]
        lines.append(
            f"the truth itself keeps a Dice of {number(grid['dice'], 3)} on the grid of {grid['size']}³ voxels and back"
        )
    if "held_out" in result:
        lines.append(result["held_out"])
    if "coordinate_error_mm" in result:
        lines.append(
            f"true coordinate error {result['coordinate_error_mm']:.1f} mm (median), "
            f"folds {100 * result['folds']:.2f} %; "
            f"the best affine alignment of the same labelled exam: Dice {result['affine_dice']:.3f}"
        )
    if "refined" in result:
        refined = result["refined"]
        line = (
            f"with {refined['steps']} steps of refinement per exam: Dice {number(refined['dice'], 3)}, "
            f"HD95 {number(refined['hd95_mm'], 1)} mm"
        )
        if "coordinate_error_mm" in refined:
            line += f", coordinate error {refined['coordinate_error_mm']:.1f} mm"
        lines.append(line)
    lines.append(f"{result['training_seconds']:.0f} s of training; model, figures and report: {folder}")
    return "\n".join(lines)


def _figures(summary: dict) -> dict:
    overall = summary["overall"]
    return {
        "dice": overall["dice_mean_of_structures"],
        "hd95_mm": overall["hd95_mm_mean_of_structures"],
        "structures": overall["structures"],
        "exams": overall["exams"],
        "dice_per_structure": {n: s["dice"]["mean"] for n, s in summary["structures"].items()},
    }
