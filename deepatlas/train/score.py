"""What a finished run is worth: one-shot segmentation of unseen exams and, for phantoms, the true error."""

from __future__ import annotations

import os
from pathlib import Path

from deepatlas.config import Config
from deepatlas.evaluate.cohort import evaluate_cohort
from deepatlas.evaluate.tables import summary_table
from deepatlas.evaluate.truth import phantom_truth
from deepatlas.exams.cohort import find_exams
from deepatlas.localize.template.build import build_template
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine
from deepatlas.train.log import RunLog
from deepatlas.train.overview import save_overview


def score(folder: Path, model: Engine, config: Config, request: dict, split: dict, log: RunLog) -> dict:
    """Template, evaluation and phantom truth, written under ``folder``; returns the figures of ``result.json``.

    What ``config.refine.steps`` above 0 adds is under ``"refined"``: the same figures with every exam's coordinates
    refined, the template's too.
    """
    result: dict = {
        "preset": config.preset,
        "seed_exam": split["seed"],
        "template_exams": split["template"],
        "test_exams": split["test"],
    }
    if not split["template"] or not split["test"] or not os.path.isdir(split["data"]):
        log.say("no labelled exams to make a template from and to test on: no one-shot score")
        return result
    template, summary = _one_shot(folder, "", model, request, split, log)
    used = list(summary["seconds"]["per_exam"])
    save_overview(
        folder / "figures" / "overview.png", model, template, find_exams(split["test_root"]), used[0]
    )
    log.say(summary_table(summary))
    result |= _figures(summary) | {"test_exams": used, "skipped": summary["skipped"]}
    if request["data"] is None:
        result |= phantom_truth(model, config.phantom, split["template"][0])
    if steps := config.refine.steps:
        log.say(f"the same with {steps} steps of refinement per exam")
        refining = Engine(config, model.network, model.atlas_module, model.card, refine=steps)
        _, summary = _one_shot(folder, "-refined", refining, request, split, log, pictures=False)
        result["refined"] = {"steps": steps} | _figures(summary)
        if request["data"] is None:
            result["refined"] |= phantom_truth(refining, config.phantom, split["template"][0], baseline=False)
    return result


def _one_shot(
    folder: Path, suffix: str, model: Engine, request: dict, split: dict, log: RunLog, pictures: bool = True
) -> tuple[Template, dict]:
    """``template<suffix>.h5`` and ``evaluation<suffix>/``; a bad exam is skipped and said unless the run is strict."""
    strict = request["strict"]
    template = build_template(
        model, split["data"], split["template"], request["structures"], strict=strict, progress=log.say
    )
    template.save(folder / f"template{suffix}.h5")
    summary = evaluate_cohort(
        model,
        template,
        split["test_root"],
        folder / f"evaluation{suffix}",
        split["test"],
        strict,
        pictures=pictures,
        progress=log.say,
    )
    for exam, reason in (template.meta["skipped"] | summary["skipped"]).items():
        log.say(f"skipped {exam}: {reason}")
    return template, summary


def _figures(summary: dict) -> dict:
    overall = summary["overall"]
    return {
        "dice": overall["dice_mean_of_structures"],
        "hd95_mm": overall["hd95_mm_mean_of_structures"],
        "structures": overall["structures"],
        "exams": overall["exams"],
        "dice_per_structure": {n: s["dice"]["mean"] for n, s in summary["structures"].items()},
    }
