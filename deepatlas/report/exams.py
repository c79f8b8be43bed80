"""The page of exams: their structures in three planes, volumes, and how well the model knows them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deepatlas.errors import DataError, DataWarning
from deepatlas.evaluate.cascade_figure import cascade_figure
from deepatlas.evaluate.exam_figure import WarpedAtlas, exam_figure
from deepatlas.evaluate.score import LabelIds
from deepatlas.exams.cohort import ExamFiles
from deepatlas.exams.read import read_volume
from deepatlas.localize.coverage import coverage
from deepatlas.localize.segment import Segmentation, segment, what_to_find
from deepatlas.localize.template.file import Template
from deepatlas.localize.trust.estimate import Trust
from deepatlas.model.engine import Engine
from deepatlas.model.exam_map import ExamMap
from deepatlas.model.fit import Fit
from deepatlas.model.structures import Structures
from deepatlas.pictures.draw import png_bytes
from deepatlas.report.page import Section, write_page
from deepatlas.report.trust import calibration_section
from deepatlas.space.labels import Labels
from deepatlas.space.volume import Volume

# Where an exam shows less of a structure, its row says how much: the volume of a part says little.
_SMALL_SHARE = 0.5


@dataclass(frozen=True)
class Reported:
    """What became of the exams of a page, by their names.

    Attributes:
        fits: how well the model knows each.
        failed: why others could not be used.
        trust: what to believe of each structure; empty where that was not asked for.
    """

    fits: dict[str, Fit] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    trust: dict[str, dict[str, Trust]] = field(default_factory=dict)


def report_exams(
    model: Engine,
    template: Template | Structures | None,
    exams: Mapping[str, ExamFiles],
    path: Path,
    *,
    convention: str = "radiological",
    threshold: float | None = None,
    trust: bool = False,
    strict: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Reported:
    """Segment exams and write one page about them.

    Args:
        model: a trained model.
        template: a template made for it; None or some structures for a model that was trained on labels.
        exams: the exams by their names.
        path: the HTML file to write.
        convention: how the pictures are turned, ``"radiological"`` or ``"neurological"``.
        threshold: the mask value that counts for all structures; None takes that of each.
        trust: also say how good every mask probably is, by a few more passes, and how the template was calibrated.
        strict: stop at the first exam that cannot be read or that the model does not know.
        progress: receives one line of text for each exam.

    Returns:
        How well the model knows each exam, what to believe of its structures, and why others could not be used.

    Raises:
        DeepAtlasError: the template belongs to another model, or the model needs one or takes none.
        DataError: no exam can be used, or the file cannot be written.
    """
    what = what_to_find(model, template)
    sections, done = [], Reported()
    for count, (name, files) in enumerate(exams.items(), 1):
        try:
            with _also_noted() as odd:
                volume = read_volume(files.ct, kind=files.kind)
                labels = segment(model, volume, what, threshold, trust=trust)
            labels.fit.warning(name, strict)
            section = _section(model, what, volume, labels, name, convention)
            section.notes += [line.removeprefix(f"{volume.name}: ") for line in odd]
        except DataError as error:
            if strict:
                raise
            done.failed[name] = str(error)
            sections.append(Section(name, warning=f"Cannot be used: {error}"))
            continue
        done.fits[name] = labels.fit
        if labels.trust is not None:
            done.trust[name] = dict(labels.trust)
        sections.append(section)
        if progress:
            progress(f"report {count}/{len(exams)} {name}")
    if not done.fits:
        raise DataError(f"no exam can be used ({next(iter(done.failed.values()), 'none was given')})")
    unknown = sum(fit.known is False for fit in done.fits.values())
    headline = [(str(len(exams)), "exam" if len(exams) == 1 else "exams")]
    headline += [(str(len(done.failed)), "could not be used")] if done.failed else []
    headline += [(str(len(what.names)), "structure" if len(what.names) == 1 else "structures")]
    headline += [(str(unknown), "not known to the model")] if unknown else []
    about = [f"model {model.name} ({model.fingerprint})", f"{model.refine} steps of refinement"]
    if trust and isinstance(what, Template) and (calibrated := calibration_section(what)):
        sections.append(calibrated)
    title = f"Report of {next(iter(exams))}" if len(exams) == 1 else f"Report of {len(exams)} exams"
    write_page(path, title, sections, about=about, headline=headline)
    return done


@contextmanager
def _also_noted() -> Iterator[list[str]]:
    """The warnings of the block, which are given at its end as well: who reads the page has no terminal."""
    lines: list[str] = []
    odd: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as odd:
            warnings.simplefilter("always", DataWarning)
            yield lines
    finally:
        lines += [str(one.message) for one in odd if issubclass(one.category, DataWarning)]
        for one in odd:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _section(
    model: Engine,
    what: Template | Structures,
    volume: Volume,
    labels: Segmentation,
    name: str,
    convention: str,
) -> Section:
    fit, found = labels.fit, labels.found
    warning = fit.warning(name)
    shown = volume if found is None or found.image is None else found.image
    warped = WarpedAtlas(model.atlas, found.field) if isinstance(found, ExamMap) else None
    structures = {n: LabelIds(i, i) for n, i in what.labels.items()}
    figure = exam_figure(
        name, shown, None, labels, structures, convention, intensity=model.intensity, warped=warped
    )
    value = "–" if not math.isfinite(fit.value) else f"{fit.value:.2f}"
    known = {True: "known", False: "not known", None: "the model has no threshold"}[fit.known]
    notes = [f"Fit {value}, {fit.reason or known}", *fit.notes]
    spacing = " × ".join(f"{s:.3g}" for s in volume.grid.spacing)
    notes.append(
        f"{' × '.join(map(str, volume.grid.shape[::-1]))} voxels of {spacing} mm, axes {volume.grid.axes}"
    )
    hu = volume if model.intensity == "hu" else None
    shares = None
    if isinstance(found, ExamMap) and isinstance(what, Template):
        shares = dict(zip(what.names, coverage(found, what, volume.grid).tolist(), strict=True))
    header, rows = structure_table(labels, what.labels, hu, labels.trust, shares)
    if labels.trust:
        notes += sorted({f"No trust: {one.reason}" for one in labels.trust.values() if one.value is None})
    pictures = {
        f"{name}: the exam, the warped atlas and the structures in three planes": png_bytes(figure, dpi=110)
    }
    if isinstance(found, ExamMap) and found.field.pieces:
        levels = cascade_figure(model, found.field, shown, f"{name}: the levels of the cascade", convention)
        pictures[f"{name}: what the network of every level sees"] = png_bytes(levels, dpi=110)
    return Section(name, warning, notes, pictures, header, rows)


def structure_table(
    labels: Labels,
    names: Mapping[str, int],
    ct: Volume | None = None,
    trust: Mapping[str, Trust] | None = None,
    shares: Mapping[str, float] | None = None,
) -> tuple[list[str], list[list[str]]]:
    """The header and the cells of the structures of an exam.

    Args:
        labels: what was found, on the exam's own grid. Whole masks count, whatever lies on them.
        names: ``{name: id}`` of the structures.
        ct: the exam in Hounsfield units on the same grid, for their means; None leaves these out.
        trust: how good each mask probably is; None leaves it out.
        shares: how much of each structure the exam shows; it is said where that is less than half.
    """
    header = ["structure", "ml", "at the edge of the exam"] + (["mean HU", "std"] if ct else [])
    header += ["trust: predicted Dice", "9 of 10 reach"] if trust is not None else []
    rows = []
    for name, identity in names.items():
        mask = labels.mask(identity)
        count = int(mask.sum())
        row = [name, f"{count * labels.grid.voxel_volume / 1000:.2f}" if count else "not found"]
        edge = ["cut off"] if count and _touches_edge(mask) else []
        if shares is not None and (share := shares[name]) < _SMALL_SHARE:
            edge.append("< 1 % shown" if share < 0.01 else f"{100 * share:.0f} % shown")
        row.append(", ".join(edge))
        if ct:
            values = ct.array[mask].astype(np.float64)
            row += [f"{values.mean():.0f}", f"{values.std():.0f}"] if count else ["", ""]
        if trust is not None:
            told = (trust[name].value, trust[name].bound) if count else (None, None)
            row += ["–" if v is None else f"{v:.2f}" for v in told]
        rows.append(row)
    return header, rows


def _touches_edge(mask: np.ndarray) -> bool:
    return any(bool(np.take(mask, at, axis=axis).any()) for axis in range(3) for at in (0, -1))
