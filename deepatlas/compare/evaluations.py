"""Compare evaluations: the function behind ``deepatlas compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepatlas.compare.align import Aligned, align
from deepatlas.compare.comparison import compare
from deepatlas.compare.experiments import Experiment, name_and_path, read_experiments
from deepatlas.compare.paired import Bootstrap
from deepatlas.compare.report import OUTPUTS, write_report
from deepatlas.errors import DataError, did_you_mean
from deepatlas.exams.outputs import check_out_folder, refuse_overwriting


def compare_evaluations(
    evaluations: Sequence[str | Path],
    out_dir: str | Path,
    *,
    names: Sequence[str] | None = None,
    baseline: str | None = None,
    common: bool = False,
    sort: bool = False,
    show: Sequence[str] = (),
    failed: Mapping[str, str] | None = None,
    seed: int = 0,
    resamples: int = 5000,
) -> dict[str, Any]:
    """Compare experiments that were evaluated on the same exams, and write the paper's tables and its Fig. 3.

    Differences are paired over exams and structures, with the paired t-test (section 5.6.1), Wilcoxon's signed-rank
    test, Holm's correction, and bootstrap intervals for which whole exams are drawn again. A structure that was drawn
    and not predicted counts as Dice 0 and surface Dice 0; it has no HD95 and no ASD, is left out there, and is counted
    and named.

    Files written into ``out_dir``: ``comparison.html`` (one self-contained file), ``comparison.md``,
    ``comparison.tex``, ``comparison.json``, ``pairs.csv``, ``structures.csv``, ``values.csv``, ``missing.csv``, and
    Fig. 3 as ``performance.png`` and ``performance.pdf``.

    Args:
        evaluations: folders that ``evaluate`` wrote, or runs that hold an evaluation. ``"NAME=PATH"`` gives a display
            name; a name that is given to several paths is one experiment, evaluated on several test cohorts, which are
            called as their data directories.
        out_dir: the folder to write to; it is created.
        names: the display names of all ``evaluations`` in their order, instead of ``NAME=``.
        baseline: the name of the experiment that the others are compared with; None takes the first.
        common: compare over the pairs that all experiments have, and list the others, instead of refusing experiments
            of different exams or structures.
        sort: order the experiments by their mean Dice, the best first, instead of as given.
        show: structures of the summary table (Table 5), besides the averages.
        failed: experiments without an evaluation and why, which the tables list.
        seed: the seed of the bootstrap.
        resamples: how often exams are drawn again, 1 or more.

    Returns:
        The content of ``comparison.json``.

    Raises:
        DataError: a folder holds no evaluation or is given twice, a file cannot be read or written, the experiments
            were evaluated on different exams, structures or references, their metrics are defined otherwise, or a name
            is unknown.
    """
    out = Path(out_dir)
    if resamples < 1:
        raise DataError(f"compare: resamples must be 1 or more, got {resamples}")
    given = [name_and_path(str(e)) for e in evaluations]
    if names is not None:
        if len(names) != len(given):
            raise DataError(f"compare: {len(given)} evaluations and {len(names)} names; give as many names")
        if not all(name.strip() for name in names):
            raise DataError("compare: a name is empty; give every evaluation a name to be shown")
        given = [(name, path) for name, (_, path) in zip(names, given, strict=True)]
    check_out_folder(out)
    experiments = read_experiments(given)
    folders = [found.folder for e in experiments for found in e.evaluations.values()]
    refuse_overwriting([out / name for name in OUTPUTS], [f for folder in folders for f in folder.iterdir()])
    known = [e.name for e in experiments]
    if baseline is not None and baseline not in known:
        raise DataError(
            f"compare: no experiment {baseline!r} for the baseline; {did_you_mean(baseline, known)}"
        )
    aligned = align(experiments, common)
    if sort:
        aligned = align(_sorted(aligned), common)
    structures = {pair.structure for pair in aligned.pairs}
    if unknown := [name for name in show if name not in structures]:
        raise DataError(
            f"compare: no structure {unknown[0]!r} to show; {did_you_mean(unknown[0], sorted(structures))}"
        )
    number = aligned.names.index(known[0] if baseline is None else baseline)
    return write_report(compare(aligned, number, Bootstrap(resamples, seed), failed), out, show)


def _sorted(aligned: Aligned) -> list[Experiment]:
    """The experiments by their mean Dice over pairs, the best first."""
    means = aligned.values["dice"].mean(1)
    return [aligned.experiments[i] for i in sorted(range(len(means)), key=lambda i: -means[i])]
