"""What a reader must know of the calibration by which the trust of a report was predicted."""

from __future__ import annotations

from deepatlas.evaluate.calibrate.report import calibration_figure
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.calibration import Calibration
from deepatlas.pictures.draw import png_bytes
from deepatlas.report.page import Section


def calibration_section(template: Template) -> Section | None:
    """How well predicted and true Dice agreed in the cross-validation of a template; None where it has none.

    Raises :class:`~deepatlas.errors.DeepAtlasError` for the calibration of another version.
    """
    stored = template.meta.get("trust")
    if not stored:
        return None
    facts = Calibration.from_dict(stored).facts
    notes = [
        f"Learned from {facts['rows']} structures of {facts['exams']} labelled exams; what follows is from "
        "cross-validation. Trust predicts the Dice within the axial slices that mask and drawing have in common.",
        f"The predicted Dice is off by {facts['error']:.3f} on average ({facts['error_of_constant']:.3f} with a "
        f"constant per structure). {100 * facts['coverage']:.0f} % of the masks reach their 90 % bound. "
        f"{100 * facts['poor']:.1f} % have a Dice under .5, and {100 * facts['poor_without_worst_fifth']:.1f} % of "
        "those that are left without the fifth of least trust.",
    ]
    header = ["structure", "exams", "Dice", "error", "Spearman", "reach the bound"]
    rows = [
        [
            name, str(one["exams"]), _number(one["dice"], 2), _number(one["error"], 3), _number(one["spearman"], 2),
            "–" if one["coverage"] is None else f"{100 * one['coverage']:.0f} %",
        ]
        for name, one in facts["structures"].items()
    ]  # fmt: skip
    pictures = {"Predicted against true Dice": png_bytes(calibration_figure(facts), dpi=100)}
    return Section("How far trust can be believed", notes=notes, pictures=pictures, header=header, rows=rows)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
