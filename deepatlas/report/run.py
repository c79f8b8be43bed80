"""The page of a run: what it was asked for, its curves and pictures, its result, and the card of its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepatlas.errors import DataError
from deepatlas.evaluate.read import read_summary
from deepatlas.evaluate.statistics import Summary
from deepatlas.evaluate.tables import summary_cells, synonyms_line
from deepatlas.model.weights import read_model
from deepatlas.pictures.draw import png_bytes
from deepatlas.pictures.progress import progress_curves
from deepatlas.report.page import Section, write_page

# The entries of a card that have a place of their own on the page.
_SHOWN = ("fit", "best")
# The evaluations of a run by their folders, and their headings.
_EVALUATIONS = {
    "evaluation": "Score on exams that were not trained on",
    "evaluation-refined": "Score on the same exams with refinement",
}


def report_run(folder: Path, path: Path) -> dict[str, Any]:
    """Write one page about a run, finished or not.

    Args:
        folder: the run folder.
        path: the HTML file to write.

    Returns:
        What the page begins with: the steps, whether the run has ended, and the mean Dice if it was scored, without and
        with refinement.

    Raises:
        DataError: the folder holds no run, a file of it is damaged, or the page cannot be written.
    """
    saved = _json(folder / "config.json")
    if not isinstance(saved.get("config"), dict):
        raise DataError(
            f"{folder}: no run (it has no config.json with settings); give a run folder of deepatlas train"
        )
    records = _records(folder / "log.jsonl")
    result = _json(folder / "result.json", missing_ok=True)
    finished = (folder / "model.pt").is_file()
    steps = max((int(record["overall"]) for record in records), default=0)
    sections = [_pictures(folder, records)]
    found = {folder / name / "summary.json": title for name, title in _EVALUATIONS.items()}
    scores = [_evaluation(summary, title) for summary, title in found.items() if summary.is_file()]
    sections = [*scores, *sections]
    if finished:
        sections.append(_card(read_model(folder / "model.pt").card))
    sections.append(Section("Settings", facts=_flat(saved["config"])))
    sections.append(Section("What it was asked for", facts=_flat(saved.get("request", {}))))
    if result:
        sections.append(Section("Result", facts=_flat(result)))
    headline = [(f"{steps:,}", "steps")]
    dice, refined = result.get("dice"), _dict(result.get("refined"))
    if isinstance(dice, int | float):
        # A run that refines is scored both ways, and the model may serve better with it.
        if isinstance(refined.get("dice"), int | float):
            text = f"Dice with {refined.get('steps', '–')} steps of refinement"
            headline.insert(0, (f"{refined['dice']:.3f}", text))
        headline.insert(0, (f"{dice:.3f}", "Dice, mean over structures"))
    about = [f"preset {saved['config'].get('preset', '–')}"]
    if not finished:
        about.append(f"not finished; continue it with deepatlas train --resume {folder}")
    write_page(path, f"Run {folder.resolve().name}", sections, about=about, headline=headline)
    return {"steps": steps, "finished": finished, "dice": dice, "refined_dice": refined.get("dice")}


def _pictures(folder: Path, records: list[dict[str, Any]]) -> Section:
    pictures = {}
    if (overview := folder / "figures" / "overview.png").is_file():
        text = "An unseen exam, its coordinates, the atlas warped onto it, and the structures"
        pictures[text] = overview.read_bytes()
    if (cascade := folder / "figures" / "cascade.png").is_file():
        pictures["What the network of every level sees of it, and the atlas there"] = cascade.read_bytes()
    for png in sorted(folder.glob("figures/level-*.png")):
        level = png.stem.replace("-", " ")
        pictures[f"Exams, their coordinates and the atlas seen through them, {level}"] = png.read_bytes()
    figure = progress_curves(records) if records else None
    if figure is not None:
        pictures["Every logged number over the steps of the run"] = png_bytes(figure)
    note = [] if pictures else ["Nothing is logged yet."]
    return Section("Training", notes=note, pictures=pictures)


def _evaluation(path: Path, title: str) -> Section:
    summary = read_summary(path)
    try:
        header, rows = summary_cells(Summary.from_dict(summary))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error!r}); evaluate again") from None
    notes = [f"Data {summary.get('data', '–')}"]
    if synonyms := summary.get("synonyms"):
        notes.append(f"Structures {synonyms_line(synonyms)}")
    if steps := summary.get("refine"):
        notes.append(f"Each exam was refined by {steps} steps")
    return Section(title, notes=notes, header=header, rows=rows)


def _card(card: Any) -> Section:
    notes = []
    if threshold := card.get("fit", {}).get("threshold"):
        notes.append(f"Exams are known from a fit of {threshold:.2f}")
    if "best" in card:
        notes.append(f"It serves best with {card['best'].get('refine', 0)} steps of refinement")
    return Section("Model", notes=notes, facts=_flat({k: v for k, v in card.items() if k not in _SHOWN}))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _flat(values: Any, before: str = "") -> dict[str, str]:
    """Nested values as one table: ``{"train.batch": "8", …}``."""
    out: dict[str, str] = {}
    for key, value in dict(values).items():
        if isinstance(value, dict) and value:
            out |= _flat(value, f"{before}{key}.")
        else:
            out[f"{before}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return out


def _records(path: Path) -> list[dict[str, Any]]:
    """The lines of a log. The last one may be half written, while the run goes on."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        if not all({"phase", "overall"} <= set(record) for record in records):
            raise ValueError("a line without phase and step")
        return records
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged log ({error}); move it away") from error


def _json(path: Path, missing_ok: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise DataError(
            f"{path.parent}: no run (it has no {path.name}); give a run folder of deepatlas train, or exams with "
            "--model M"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); restore it") from error
    return value if isinstance(value, dict) else {}
