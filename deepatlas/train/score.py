"""What a finished run is worth: one-shot segmentation of unseen exams and, for phantoms, the true error."""

from __future__ import annotations

import os
from pathlib import Path

from deepatlas.config import Config
from deepatlas.data.cohort import find_exams
from deepatlas.evaluate.run import evaluate_cohort
from deepatlas.evaluate.tables import summary_table
from deepatlas.localize.build import build_template
from deepatlas.model import Model
from deepatlas.train.log import RunLog
from deepatlas.train.overview import save_overview
from deepatlas.train.truth import phantom_truth


def score(folder: Path, model: Model, config: Config, request: dict, split: dict, log: RunLog) -> dict:
    """Template, evaluation and phantom truth, written under ``folder``; returns the figures of ``result.json``."""
    result: dict = {
        "preset": config.preset,
        "seed_exam": split["seed"],
        "template_exams": split["template"],
        "test_exams": split["test"],
    }
    if not split["template"] or not split["test"] or not os.path.isdir(split["data"]):
        log.say("no labelled exams to make a template from and to test on: no one-shot score")
        return result
    template = build_template(
        model, split["data"], split["template"], request["structures"], progress=log.say
    )
    template.save(folder / "template.h5")
    summary = evaluate_cohort(
        model, template, split["test_root"], folder / "evaluation", split["test"], progress=log.say
    )
    cohort = find_exams(split["test_root"])
    save_overview(folder / "figures" / "overview.png", model, template, cohort, split["test"][0])
    overall = summary["overall"]
    result |= {
        "dice": overall["dice_mean_of_structures"],
        "hd95_mm": overall["hd95_mm_mean_of_structures"],
        "structures": overall["structures"],
        "exams": overall["exams"],
        "dice_per_structure": {n: s["dice"]["mean"] for n, s in summary["structures"].items()},
    }
    log.say(summary_table(summary))
    if request["data"] is None:
        result |= phantom_truth(model, config.phantom, split["template"][0])
    if config.refine.steps:
        result["refined"] = _refined(folder, model, config, request, split, log)
    return result


def _refined(folder: Path, model: Model, config: Config, request: dict, split: dict, log: RunLog) -> dict:
    """The same scores with every exam's coordinates refined, the template's too; no pictures."""
    log.say(f"the same with {config.refine.steps} steps of refinement per exam")
    refining = Model(config, model.network, model.atlas_module, model.card, refine=config.refine.steps)
    template = build_template(refining, split["data"], split["template"], request["structures"])
    template.save(folder / "template-refined.h5")
    summary = evaluate_cohort(
        refining,
        template,
        split["test_root"],
        folder / "evaluation-refined",
        split["test"],
        pictures=False,
    )
    overall = summary["overall"]
    figures = {
        "steps": config.refine.steps,
        "dice": overall["dice_mean_of_structures"],
        "hd95_mm": overall["hd95_mm_mean_of_structures"],
        "dice_per_structure": {n: s["dice"]["mean"] for n, s in summary["structures"].items()},
    }
    if request["data"] is None:
        truth = phantom_truth(refining, config.phantom, split["template"][0], baseline=False)
        figures |= truth
    return figures
