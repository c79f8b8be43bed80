"""``deepatlas <command>``: the command line, one command per step from CT to masks, points and reports."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deepatlas.cli import common as run
from deepatlas.errors import PROGRAM, guarded


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; ``train`` passes everything on to ``deepatlas.train``."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="One coordinate for every point of the body: find anatomy in CT from one example.",
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
        command.add_argument("--quiet", action="store_true", help="no progress on stderr")
        return command

    def needs_model(command: argparse.ArgumentParser, template: bool = False) -> None:
        command.add_argument(
            "--model", required=True, metavar="M", help="run folder, model file, or a shipped model"
        )
        command.add_argument("--device", help="cpu, cuda … (default: a GPU if there is one)")
        command.add_argument(
            "--refine",
            type=_steps,
            default=0,
            metavar="N",
            help="registration steps per exam after the network's pass (0; 20 is plenty); the same for the template",
        )
        command.add_argument(
            "--average",
            type=_views,
            default=1,
            metavar="N",
            help="average the coordinates of N slightly moved views of each exam, a pass of the network each (1)",
        )
        if template:
            command.add_argument(
                "--template",
                required=True,
                type=Path,
                metavar="T",
                help="file of `template`, or a shipped model",
            )
            command.add_argument(
                "--any-model", action="store_true", help="accept a template of another model"
            )
            command.add_argument(
                "--threshold",
                type=_fraction,
                help="mask value that counts, for all structures; by default each "
                "structure has its own, which keeps the volume it has in the template",
            )

    def is_strict(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--strict", action="store_true", help="stop at the first bad exam instead of skipping it"
        )

    # Only for its line in --help: main() hands the arguments of train on before this parser sees them.
    commands.add_parser("train", help="learn the coordinates from a cohort", add_help=False)

    c = add("prepare", run.prepare, "turn DICOM, NIfTI, NRRD or MetaImage into a dataset that training reads")
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
    is_strict(c)
    c.add_argument(
        "--workers", type=_positive, metavar="N", help="processes (default: one a core, 3 GB each)"
    )
    c.add_argument(
        "--shard", type=_shard, metavar="I/N", help="prepare part I of N (0 to N-1); --merge joins them"
    )
    c.add_argument("--merge", action="store_true", help="make the dataset of what all shards prepared")
    c.add_argument(
        "--engine", choices=("processes", "dask", "ray"), default="processes", help="where the work is done"
    )
    c.add_argument(
        "--address", help="scheduler of the dask or ray cluster (default: a cluster on this machine)"
    )
    c.add_argument(
        "--check",
        action="store_true",
        help="read the whole dataset and name what is damaged; DST or SRC alone",
    )

    c = add("template", run.template, "solve for masks in coordinate space from labelled exams (eq. 14)")
    needs_model(c)
    c.add_argument("--data", required=True, type=Path, metavar="DIR", help="data directory with seg files")
    c.add_argument("--exams", nargs="+", metavar="ID", help="use these exams only (default: all labelled)")
    c.add_argument("--structures", nargs="+", metavar="NAME", help="these structures only (default: all)")
    c.add_argument(
        "--size", type=_side, help="template voxels per axis (default 128, or the atlas's if larger)"
    )
    c.add_argument("--out", required=True, type=Path, metavar="T", help="template file to write (.h5)")
    is_strict(c)

    c = add("segment", run.segment, "carry template masks onto exams, on each exam's own grid")
    needs_model(c, template=True)
    c.add_argument(
        "exams", nargs="+", metavar="EXAM", help="image file, exam folder (also of DICOM) or data directory"
    )
    c.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for <exam>.nii.gz and labels.json"
    )
    c.add_argument(
        "--suffix", default=".nii.gz", choices=(".nii.gz", ".nii", ".nrrd", ".mha"), help="file format"
    )
    is_strict(c)

    c = add("locate", run.locate, "find points of one exam in others")
    needs_model(c)
    c.add_argument(
        "--from", required=True, type=Path, dest="source", metavar="A", help="exam that the points are in"
    )
    c.add_argument("--to", required=True, nargs="+", metavar="B", help="exams to find them in")
    c.add_argument("--points", required=True, type=Path, metavar="P", help="CSV with name,x,y,z in RAS mm")
    c.add_argument(
        "--out", required=True, type=Path, metavar="OUT", help="CSV: target,name,x,y,z,residual_mm,found"
    )
    is_strict(c)

    c = add("evaluate", run.evaluate, "score one-shot segmentation on labelled exams")
    needs_model(c, template=True)
    c.add_argument("--data", required=True, type=Path, metavar="DIR", help="data directory with seg files")
    c.add_argument("--exams", nargs="+", metavar="ID", help="these exams only (default: all labelled)")
    c.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="metrics.csv, summary.json, report.html"
    )
    c.add_argument(
        "--hd95", default="mean", choices=("mean", "max", "pooled"), help="HD95 convention (mean: eq. 16)"
    )
    c.add_argument(
        "--convention", default="radiological", choices=("radiological", "neurological"), help="of pictures"
    )
    c.add_argument("--no-pictures", action="store_true", help="table only")
    is_strict(c)

    c = add("phantom", run.phantom, "write a cohort of synthetic exams with known anatomy")
    c.add_argument("out", type=Path, metavar="OUT", help="data directory to make")
    c.add_argument("--exams", type=int, default=8, metavar="N", help="how many (8)")
    c.add_argument("--seed", type=int, default=0, metavar="S", help="cohort seed (0)")

    c = add("info", run.info, "versions, devices, kernel backend and the model's card")
    c.add_argument("model", nargs="?", metavar="MODEL", help="run folder, model file, or a shipped model")
    c.set_defaults(device=None, refine=0, average=1)
    return parser


def _number(kind: type, good: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    """A type for argparse: numbers that are ``good``, and one message for those that are not."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not good(value):
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text}")
        return value

    return parse


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


_positive = _number(int, lambda v: v >= 1, "a whole number, 1 or more")
_fraction = _number(float, lambda v: 0 < v <= 1, "in (0, 1]")
_side = _number(int, lambda v: v >= 2, "a whole number of at least 2")
_steps = _number(int, lambda v: v >= 0, "a whole number, 0 or more")
_views = _number(int, lambda v: v >= 1, "a whole number, 1 or more")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 when done, 1 when not (one line on stderr), 2 on usage, 130 on Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["train"]:
        return guarded(run.train, argv[1:])
    args = build_parser().parse_args(argv)
    return guarded(args.run, args)
