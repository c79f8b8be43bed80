"""``deepatlas export``: NIfTI of the exams of a dataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deepatlas.cli.common import Commands, add_command, add_strict, list_skipped, print_result, progress_lines
from deepatlas.errors import PROGRAM


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    text = "write exams of a dataset as NIfTI: the CT, and a mask for every structure"
    c = add_command(commands, "export", run, text)
    c.add_argument("dst", type=Path, metavar="DST", help="dataset that `deepatlas prepare` wrote")
    c.add_argument(
        "--exam",
        action="append",
        metavar="ID",
        help="export this exam; repeatable (default: all exams of the dataset)",
    )
    c.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for <exam>/ct.nii.gz, <exam>/segmentations/<structure>.nii.gz and labels.json",
    )
    c.add_argument(
        "--label-image",
        action="store_true",
        help="write one label image, <exam>/seg.nii.gz, in place of the masks; it shows the upper one of structures "
        "that overlap",
    )
    add_strict(c, model=False)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.intake.dataset.export import export_dataset
    from deepatlas.intake.dataset.folder import Dataset

    done = export_dataset(
        Dataset(args.dst), args.out, args.exam, label_image=args.label_image, strict=args.strict,
        progress=progress_lines(args),
    )  # fmt: skip
    list_skipped(done.failed)
    for exam, names in done.hidden.items():
        print(
            f"{PROGRAM}: warning: {exam}: other structures hide a part of {', '.join(names)} in its label image; "
            "export without --label-image to have them whole",
            file=sys.stderr,
        )
    data = {"out": str(args.out), "exams": done.exams, "hidden": done.hidden, "failed": done.failed}
    total = len(done.exams) + len(done.failed)
    print_result(args, data, f"{args.out}: {len(done.exams)} of {total} exams exported")
    return 1 if done.failed else 0
