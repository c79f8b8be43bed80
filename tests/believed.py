"""Templates that carry a calibration of trust, without labelled exams to calibrate them on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from deepatlas.evaluate.calibrate.regression import Table, calibrate_table
from deepatlas.evaluate.calibrate.run import figures
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.signs import SIGNS

EXAMS, VIEWS = 20, 2


def calibrated(template: Template, names: tuple[str, ...] | None = None) -> Template:
    """The template with a calibration of some of its structures, by which agreement of views speaks for a mask."""
    rng = np.random.default_rng(0)
    known = list(template.names if names is None else names)
    exam, structure = (v.ravel() for v in np.meshgrid(range(EXAMS), range(len(known)), indexing="ij"))
    signs = rng.standard_normal((len(exam), len(SIGNS)))
    agreement = SIGNS.index("agreement")
    signs[:, agreement] = rng.uniform(0.5, 1, len(exam))
    dice = np.clip(signs[:, agreement] - 0.1 * rng.random(len(exam)), 0, 1)
    table = Table(known, structure, exam, exam % 5, signs, dice, 5 * (1 - dice))
    made, cross = calibrate_table(table, VIEWS)
    facts = {**made.facts, **figures(table, cross), "exams": EXAMS, "folds": 5}
    stored = json.loads(json.dumps(replace(made, facts=facts).to_dict()))
    return replace(template, meta={**template.meta, "trust": stored})
