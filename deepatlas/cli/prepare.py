"""``deepatlas prepare``: turn the exams of a hospital or a challenge into a dataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from deepatlas.cli.common import (
    POSITIVE,
    Commands,
    add_command,
    add_engines,
    add_strict,
    list_skipped,
    print_result,
)
from deepatlas.errors import PROGRAM, DataError


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    text = "turn DICOM, NIfTI, NRRD or MetaImage into a dataset that training reads"
    c = add_command(commands, "prepare", run, text)
    c.add_argument("src", type=Path, metavar="SRC", help="folder or archive of exams, in any arrangement")
    c.add_argument(
        "dst",
        type=Path,
        metavar="DST",
        nargs="?",
        help="folder of the dataset; one that is there is updated",
    )
    c.add_argument(
        "--crop",
        choices=("foreground", "midline"),
        help="crop the exams of the training array to the patient",
    )
    c.add_argument(
        "--labels",
        type=Path,
        metavar="NAMES.json",
        help='name map of structures: {"wanted name": ["alias", "regex:…"]}',
    )
    c.add_argument(
        "--series",
        action="append",
        type=_pair,
        default=[],
        metavar="EXAM=NUMBER",
        help="use this series (SeriesNumber or UID) of an exam (its id, PatientID or StudyInstanceUID); repeatable",
    )
    c.add_argument(
        "--keep-ids", action="store_true", help="keep the names of the source instead of salted hashes"
    )
    lacking = c.add_mutually_exclusive_group()
    lacking.add_argument(
        "--add", action="store_true", help="SRC is a delivery: exams of DST that are not in SRC stay in DST"
    )
    lacking.add_argument(
        "--prune", action="store_true", help="remove the exams of DST that are not in SRC from DST"
    )
    add_strict(c, model=False)
    c.add_argument(
        "--workers",
        type=POSITIVE,
        metavar="N",
        help="number of processes, 3 GB of memory each (default: one per core)",
    )
    add_engines(c, "prepare", "join the parts that all shards prepared into the dataset")
    c.add_argument(
        "--check",
        action="store_true",
        help="read the complete dataset (DST, or SRC if given alone) and list what is damaged",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.intake.run.options import Options
    from deepatlas.intake.run.pipeline import prepare

    if args.check and args.dst is None:
        return _check(args, args.src)
    if args.dst is None:
        raise DataError(f"{args.src}: no destination; give DST, the folder of the dataset")
    options = Options(
        crop=args.crop, names=args.labels, series=dict(args.series), keep_ids=args.keep_ids, add=args.add,
        prune=args.prune, strict=args.strict, workers=args.workers, shard=args.shard, merge=args.merge,
        engine=args.engine, address=args.address, progress=not args.quiet,
    )  # fmt: skip
    try:
        summary = prepare(args.src, args.dst, options)
    except KeyboardInterrupt:
        print("finished exams are kept; run the same command again to continue", file=sys.stderr)
        raise
    what = (
        "in this shard; run --merge when all shards are done"
        if args.shard
        else f"{len(summary.labels)} structures"
    )
    new = f"{summary.made} new" + (f", {summary.kept} not of {args.src}" if summary.kept else "")
    text = f"{args.dst}: {summary.exams} exams ({new}), {what}; {len(summary.refused)} exams refused"
    # All of them are in the JSON.
    list_skipped(summary.refused, 20, f"in {args.dst}.private/refused.csv")
    if args.check:
        return _check(args, args.dst, summary.as_dict(), text)
    print_result(args, summary.as_dict(), text)
    return 0


def _check(args: argparse.Namespace, folder: Path, data: dict[str, Any] | None = None, text: str = "") -> int:
    """Check a dataset; the result follows that of preparing it, ``data`` and ``text``, if there is one."""
    from deepatlas.intake.dataset.check import check_dataset

    damages = [str(damage) for damage in check_dataset(folder, progress=not args.quiet)]
    for line in damages:
        print(f"{PROGRAM}: {folder}: {line}", file=sys.stderr)
    data = {**(data or {"dataset": str(folder)}), "damages": damages}
    print_result(args, data, f"{text or folder}: {f'{len(damages)} damages' if damages else 'undamaged'}")
    return 1 if damages else 0


def _pair(text: str) -> tuple[str, str]:
    """The type of EXAM=NUMBER."""
    exam, mark, number = text.rpartition("=")
    if not mark or not exam or not number:
        raise argparse.ArgumentTypeError(f"must be EXAM=NUMBER, got {text}")
    return exam, number
