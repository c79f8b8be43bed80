"""``deepatlas prepare``: from what hospitals and challenges hand out to a dataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deepatlas.cli.common import POSITIVE, Commands, add_command, add_strict, print_result
from deepatlas.errors import PROGRAM, DataError


def add(commands: Commands) -> None:
    text = "turn DICOM, NIfTI, NRRD or MetaImage into a dataset that training reads"
    c = add_command(commands, "prepare", run, text)
    c.add_argument("src", type=Path, metavar="SRC", help="folder or archive of exams, in any arrangement")
    c.add_argument(
        "dst",
        type=Path,
        metavar="DST",
        nargs="?",
        help="folder of the dataset: new, or to be brought up to date",
    )
    c.add_argument(
        "--crop", choices=("foreground", "midline"), help="crop the training array's exams to the patient"
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
        help="take this series (SeriesNumber or UID) of an exam (its id, PatientID or StudyInstanceUID); repeatable",
    )
    c.add_argument(
        "--keep-ids", action="store_true", help="name exams as the source does, not by salted hashes"
    )
    add_strict(c)
    c.add_argument("--workers", type=POSITIVE, metavar="N", help="processes (default: one a core, 3 GB each)")
    c.add_argument(
        "--shard", type=_shard, metavar="I/N", help="prepare part I of N (0 to N-1); --merge joins them"
    )
    c.add_argument("--merge", action="store_true", help="make the dataset of what all shards prepared")
    c.add_argument(
        "--engine", choices=("processes", "dask"), default="processes", help="where the work is done"
    )
    c.add_argument("--address", help="scheduler of the dask cluster (default: a cluster on this machine)")
    c.add_argument(
        "--check",
        action="store_true",
        help="read the whole dataset and name what is damaged; DST or SRC alone",
    )


def run(args: argparse.Namespace) -> int:
    from deepatlas.intake.run.options import Options
    from deepatlas.intake.run.pipeline import prepare

    if args.check and args.dst is None:
        return _check(args, args.src)
    if args.dst is None:
        raise DataError(f"{args.src}: where to? give DST, the folder of the dataset")
    options = Options(
        crop=args.crop, names=args.labels, series=dict(args.series), keep_ids=args.keep_ids, strict=args.strict,
        workers=args.workers, shard=args.shard, merge=args.merge, engine=args.engine, address=args.address,
        progress=not args.quiet,
    )  # fmt: skip
    try:
        summary = prepare(args.src, args.dst, options)
    except KeyboardInterrupt:
        print("what is done stays; the same command goes on from there", file=sys.stderr)
        raise
    what = "in this shard; --merge when all are done" if args.shard else f"{len(summary.labels)} structures"
    text = f"{args.dst}: {summary.exams} exams ({summary.made} new), {what}; {len(summary.refused)} exams refused"
    if args.check:
        return _check(args, args.dst, summary.as_dict(), text)
    print_result(args, summary.as_dict(), text)
    return 0


def _check(args: argparse.Namespace, folder: Path, data: dict | None = None, text: str = "") -> int:
    from deepatlas.intake.dataset.check import check_dataset

    damages = [str(damage) for damage in check_dataset(folder, progress=not args.quiet)]
    for line in damages:
        print(f"{PROGRAM}: {folder}: {line}", file=sys.stderr)
    data = {**(data or {"dataset": str(folder)}), "damages": damages}
    print_result(args, data, f"{text or folder}: {f'{len(damages)} damages' if damages else 'whole'}")
    return 1 if damages else 0


def _pair(text: str) -> tuple[str, str]:
    """EXAM=NUMBER."""
    exam, mark, number = text.rpartition("=")
    if not mark or not exam or not number:
        raise argparse.ArgumentTypeError(f"must be EXAM=NUMBER, got {text}")
    return exam, number


def _shard(text: str) -> tuple[int, int]:
    """I/N."""
    index, mark, count = text.partition("/")
    if not (mark and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 0 to N-1, got {text}")
    return int(index), int(count)
