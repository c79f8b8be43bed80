"""The score of a region's run: what the model of whole exams finds there with and without the region."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepatlas.config import Config
from deepatlas.evaluate.statistics import statistics
from deepatlas.evaluate.tables import summary_table
from deepatlas.evaluate.truth import phantom_truth
from deepatlas.exams.joined import find_cohort
from deepatlas.localize.template.file import Template
from deepatlas.model.engine import Engine
from deepatlas.space.affine import affine_coords
from deepatlas.space.box import Box
from deepatlas.train.log import RunLog
from deepatlas.train.pictures import save_cascade, save_overview
from deepatlas.train.request import Request
from deepatlas.train.score import can_score, evaluate, exams_of, make_template
from deepatlas.train.split import Split

# A structure is scored in a region if at least this share of its mask lies there.
SHARE = 0.5


def score_region(
    folder: Path, root: Engine, model: Engine, config: Config, request: Request, split: Split, log: RunLog
) -> dict[str, Any]:
    """Write templates and evaluations under ``folder``; returns the content of ``result.json``.

    Its figures are those of the structures that lie in the region, found by the model of whole exams with the region;
    the entry ``"without"`` holds those without it. ``"refined"`` holds the same after refinement, if ``refine.steps``
    is above 0.

    Args:
        folder: the folder of the run.
        root: the model of whole exams, with the regions above this one.
        model: the model of the region.
        config: the settings of the run.
        request: what the run was asked for.
        split: its exams.
        log: receives lines of text.
    """
    region = model.region
    result: dict[str, Any] = {"preset": config.preset, "region": region.name} | exams_of(split, config)
    if not can_score(split, log):
        return result
    above = list(root.regions)
    templates = {}
    for there in (True, False):
        # As in the score of a whole run, the template's exams are refined whatever the test exams get.
        root.regions, root.refine = [*above, *([model] if there else [])], config.refine.steps
        templates[there] = make_template(folder, "" if there else "-without", root, request, split, log)

    def figures(steps: int, suffix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for there in (True, False):
            root.regions, root.refine = [*above, *([model] if there else [])], steps
            name = suffix if there else f"{suffix}-without"
            if steps or not there:
                log.say(f"the same {'with' if there else 'without'} region {region.name}, refine={steps}")
            template, pictures = templates[there], there and not steps
            summary = evaluate(folder, name, root, template, request, split, log, pictures=pictures)
            kept = structures_in(template, region.box)
            own = {n: s for n, s in summary["structures"].items() if n in kept and s["dice"]["n"]}
            figure: dict[str, Any] = {
                "dice": _mean(own, "dice"),
                "hd95_mm": _mean(own, "hd95_mm"),
                "structures": len(own),
                "exams": summary["overall"]["exams"],
                "dice_per_structure": {n: s["dice"]["mean"] for n, s in own.items()},
            }
            if request.data is None:
                figure |= phantom_truth(
                    root, config.phantom, split.template[0], baseline=False, box=region.box
                )
            if there and not steps:
                used = list(summary["seconds"]["per_exam"])
                found["test_exams"] = used
                path = folder / "figures" / "overview.png"
                cohort = find_cohort(split.test_data)
                save_overview(path, root, template, cohort, used[0])
                save_cascade(path.with_name("cascade.png"), root, cohort, used[0])
                log.say(summary_table(summary))
            found = found | figure if there else found | {"without": figure}
        return found

    result |= figures(0, "")
    if not result["structures"]:
        log.say(
            f"no one-shot score: no structure of the template lies in region {region.name} and was drawn in a test exam"
        )
        del result["dice"]
    elif steps := config.refine.steps:
        result["refined"] = {"steps": steps} | figures(steps, "-refined")
    root.regions, root.refine = above, 0
    return result


def _mean(structures: dict[str, Any], metric: str) -> float | None:
    """The mean over structures of their means over exams."""
    return statistics(mean for s in structures.values() if (mean := s[metric]["mean"]) is not None).mean


def structures_in(template: Template, box: Box) -> list[str]:
    """The structures of a template of which at least half lies in a box of the atlas."""
    places = affine_coords(torch.eye(3, 4)[None], template.masks.shape[1:])[0].numpy()
    held = box.contains(np.moveaxis(places, 0, -1))
    names = []
    for name, mask in zip(template.names, np.clip(template.masks, 0, 1), strict=True):
        whole = float(mask.sum())
        if whole and float(mask[held].sum()) >= SHARE * whole:
            names.append(name)
    return names
