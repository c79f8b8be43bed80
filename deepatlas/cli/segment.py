"""``deepatlas segment``: the masks of a template, or of a model that was trained on labels, on exams."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepatlas.cli.common import (
    FRACTION,
    Commands,
    add_command,
    add_model,
    add_strict,
    add_template,
    add_trust,
    keep_names_of_masks,
    list_skipped,
    load_model,
    load_template,
    model_files,
    note_no_trust,
    note_unknown,
    print_result,
    progress_lines,
    refuse_skipped,
)
from deepatlas.cli.known import say_notes
from deepatlas.errors import PROGRAM, DataError, WriteError

if TYPE_CHECKING:
    from deepatlas.api import Model
    from deepatlas.exams.cohort import ExamFiles
    from deepatlas.localize.growing import GrowingTable
    from deepatlas.localize.measure import StructureStatistics
    from deepatlas.localize.measure_files import StatisticsFiles
    from deepatlas.localize.segment import Segmentation
    from deepatlas.localize.template.file import Template
    from deepatlas.localize.trust.table import TrustTable
    from deepatlas.model.fit import Fit
    from deepatlas.model.structures import Structures

# The folder of soft masks, in that of an exam.
PROBABILITIES = "probabilities"
# The files that name the structures of label images: for everybody, for ITK-SNAP and for 3D Slicer.
TABLES = ("labels.json", "labels.label", "labels.ctbl")


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(
        commands, "segment", run, "carry the masks of a template onto exams, on the grid of each exam"
    )
    add_model(c)
    add_template(c)
    c.add_argument(
        "exams",
        nargs="+",
        metavar="EXAM",
        help="image, exam file of a dataset, folder of an exam (image or DICOM), or data directory",
    )
    c.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for <exam>.nii.gz and labels.json"
    )
    kind = c.add_mutually_exclusive_group()
    kind.add_argument(
        "--format",
        choices=("nifti", "nrrd", "seg-nrrd", "dicom-seg", "rtstruct"),
        help="what is written for each exam (default: nifti); seg-nrrd is a segmentation of 3D Slicer, with whole "
        "masks; DICOM needs exams that are DICOM series, to which it refers, and names the patient as they do",
    )
    kind.add_argument(
        "--suffix",
        choices=(".nii.gz", ".nii", ".nrrd", ".mha"),
        help="format of the label images by their suffix (default: .nii.gz)",
    )
    c.add_argument(
        "--labelmap",
        action="store_true",
        help="with --format dicom-seg, write the newer form of one value a voxel: smaller, but fewer programs read it",
    )
    c.add_argument(
        "--masks",
        action="store_true",
        help="also write <exam>/<structure>.nii.gz, the whole mask of every structure, whatever overlaps it",
    )
    c.add_argument(
        "--probabilities",
        action="store_true",
        help="also write <exam>/probabilities/<structure>.nii.gz, the soft mask of every structure (uint8, 255 for 1)",
    )
    c.add_argument(
        "--statistics",
        action="store_true",
        help="also write statistics.json and statistics.csv: volume, Hounsfield units, box, centre, and the share of "
        "every structure that the exam shows; exams that these files hold already stay in them",
    )
    c.add_argument(
        "--preview",
        action="store_true",
        help="also write <exam>.png, three planes of the exam with the outlines of the structures",
    )
    add_trust(c)
    c.add_argument(
        "--min-trust",
        type=FRACTION,
        metavar="V",
        help="leave out masks whose predicted Dice is below V, and those whose Dice nobody can predict, and say so; "
        "implies --trust",
    )
    add_strict(c)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.exams.cohort import named_exams
    from deepatlas.exams.mask_files import mask_paths
    from deepatlas.exams.outputs import check_out_folder, files_of_exams, refuse_overwriting
    from deepatlas.io.export.labels import DICOM
    from deepatlas.localize.measure_files import NAMES as STATISTICS
    from deepatlas.localize.measure_files import StatisticsFiles
    from deepatlas.localize.trust.table import NAME as TRUST
    from deepatlas.localize.trust.table import TrustTable

    if args.labelmap and args.format != "dicom-seg":
        raise DataError("--labelmap: is a form of DICOM-SEG; give --format dicom-seg as well")
    if args.format == "dicom-seg":
        from deepatlas.io.export.dicom_seg import highdicom

        # Its absence is said before the work is done.
        highdicom()
    check_out_folder(args.out)
    skipped: dict[str, str] = {}
    exams = named_exams(args.exams, skipped)
    refuse_skipped(args, skipped)
    inputs = files_of_exams(exams.values()) + model_files(args)
    suffix, image = _files(args)
    # A DICOM object names its own structures.
    named = args.format not in DICOM or args.masks or args.probabilities
    outputs = [args.out / f"{name}{suffix}" for name in exams]
    outputs += [args.out / table for table in TABLES if named]
    if args.statistics:
        outputs += [args.out / name for name in STATISTICS]
    if args.preview:
        outputs += [args.out / f"{name}.png" for name in exams]
    asked = args.trust or args.min_trust is not None
    if asked:
        outputs.append(args.out / TRUST)
    refuse_overwriting(outputs, inputs)
    model = load_model(args)
    template = load_template(args, model)
    masks = [args.out / name for name in exams] if args.masks else []
    if args.probabilities:
        masks += [args.out / name / PROBABILITIES for name in exams]
    for folder in masks:
        refuse_overwriting(mask_paths(folder, template.names, image).values(), inputs)
    names = json.dumps(template.labels, indent=1) + "\n"
    if named:
        keep_names_of_masks(args.out / "labels.json", names)
    held = _Results()
    with ExitStack() as stack:
        # What was measured is kept also where the run is stopped.
        tables = stack.enter_context(StatisticsFiles(args.out)) if args.statistics else None
        trusted = stack.enter_context(TrustTable(args.out)) if asked else None
        old = _Old(args.out)
        for table, asked_for in ((StatisticsFiles, tables), (TrustTable, trusted)):
            if asked_for is None:
                # One that is no table of this kind is not ours, and stays as it is.
                with suppress(DataError):
                    old.tables.append(stack.enter_context(table(args.out)))
        _segment(args, model, template, exams, held, names if named else "", tables, trusted, old)
    list_skipped(skipped | held.failed)
    old.say()
    data = {
        "segmented": held.done,
        "exams": {n: f.to_dict() | held.trust.get(n, {}) for n, f in held.fits.items()},
        "failed": held.failed,
        "skipped": skipped,
    }
    if held.notes:
        data["left_out"] = held.notes
    if held.measured:
        data["statistics"] = {n: [s.to_dict() for s in rows] for n, rows in held.measured.items()}
    unknown = sum(f.known is False for f in held.fits.values())
    text = f"{args.out}: {len(held.done)} of {len(exams)} exams segmented"
    print_result(args, data, f"{text}, {unknown} of them not known to the model" if unknown else text)
    return 1 if held.failed else 0


@dataclass
class _Old:
    """What an earlier run left in the folder about masks that were written again."""

    out: Path
    tables: list[GrowingTable[Any]] = field(default_factory=list)
    dropped: int = 0
    files: list[str] = field(default_factory=list)

    def replaced(self, exam: str, names: Iterable[str], suffix: str, written: set[Path]) -> None:
        """Take out what tables say of the masks before, and note files that show these; ``written`` are new."""
        from deepatlas.exams.mask_files import mask_paths

        for table in self.tables:
            self.dropped += table.drop(exam)
        folder = self.out / exam
        files = [self.out / f"{exam}.png"]
        for masks in (folder, folder / PROBABILITIES):
            files += mask_paths(masks, names, suffix).values()
        self.files += [str(p.relative_to(self.out)) for p in files if p not in written and p.is_file()]

    def say(self) -> None:
        """Tell it, in a line for the tables and one for the files."""
        if self.dropped:
            print(
                f"{PROGRAM}: warning: {self.out}: what tables said of the masks before was taken out "
                f"({self.dropped} {'entry' if self.dropped == 1 else 'entries'}); give --statistics and --trust again",
                file=sys.stderr,
            )
        if self.files:
            names = ", ".join(self.files[:4]) + (
                f" and {len(self.files) - 4} more" if len(self.files) > 4 else ""
            )
            print(
                f"{PROGRAM}: warning: {self.out}: {names}: from an earlier run, and not of the masks that were written "
                "now; delete them, or write them again",
                file=sys.stderr,
            )


@dataclass
class _Results:
    """What became of the exams, by their names: files, fits, remarks, measures, and why others failed."""

    done: dict[str, str] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    trust: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: dict[str, list[StructureStatistics]] = field(default_factory=dict)


def _files(args: argparse.Namespace) -> tuple[str, str]:
    """The suffixes of what is written for each exam, and of the images beside it."""
    from deepatlas.io.export.labels import DICOM, FORMATS

    suffix = args.suffix or FORMATS[args.format or "nifti"]
    # Masks beside a DICOM object or a segmentation are images, too.
    return suffix, ".nii.gz" if args.format in DICOM else ".nrrd" if args.format == "seg-nrrd" else suffix


def _segment(
    args: argparse.Namespace,
    model: Model,
    template: Template | Structures,
    exams: Mapping[str, ExamFiles],
    held: _Results,
    names: str,
    tables: StatisticsFiles | None,
    trusted: TrustTable | None,
    old: _Old,
) -> None:
    """Segment the exams one after another; ``names`` is the text of labels.json, empty where none is written."""
    from deepatlas.exams.read import read_with_series
    from deepatlas.io.export.labels import DICOM, write_labels
    from deepatlas.localize.preview import write_preview
    from deepatlas.localize.segment import segment

    say, untold = progress_lines(args), set[str]()
    (suffix, image), dicom = _files(args), args.format in DICOM
    for count, (name, exam) in enumerate(exams.items(), 1):
        path = args.out / f"{name}{suffix}"
        try:
            if dicom:
                _check_dicom(exam, args.format)
            volume, series = read_with_series(exam.ct, kind=exam.kind)
            labels = segment(
                model, volume, template, args.threshold, trust=args.trust, least_trust=args.min_trust
            )
            note_unknown(args, name, labels.fit)
            _note_trust(name, labels, untold)
            if not held.done and not dicom:
                # Before the first mask, so that none is there without the names of its structures.
                _write_tables(args.out, template.labels, names)
            lost = write_labels(
                path,
                labels,
                labels.names,
                args.format,
                source=series or labels.name,
                labelmap=args.labelmap,
                algorithm=labels.algorithm,
                remarks=labels.remarks,
            )
        except WriteError:
            # A full disk ends the run instead of failing every exam.
            raise
        except DataError as error:
            if args.strict:
                raise
            held.failed[name] = str(error)
            continue
        if not held.done and dicom and names:
            _write_tables(args.out, template.labels, names)
        held.done[name], held.fits[name] = str(path), labels.fit
        if labels.trust is not None and trusted is not None:
            held.trust[name] = {
                "structures": {
                    s: t.to_dict() | ({"left_out": labels.left_out[s]} if s in labels.left_out else {})
                    for s, t in labels.trust.items()
                }
            }
            trusted.add(name, labels.trust, labels.left_out)
        if lost:
            say_notes([f"{name}: {note}" for note in lost])
        if lost or labels.left_out:
            held.notes[name] = lost + [f"{s}: {why}" for s, why in labels.left_out.items()]
        written = _write_masks(args, name, labels, image)
        if args.preview:
            write_preview(
                args.out / f"{name}.png",
                volume,
                labels,
                labels.names,
                hounsfield=model.intensity == "hu",
                title=_title(name, labels.fit),
            )
            written.add(args.out / f"{name}.png")
        if tables is not None:
            held.measured[name] = labels.statistics(volume)
            tables.add(name, held.measured[name], labels.fit.to_dict(), labels.trust)
        old.replaced(name, template.names, image, written)
        if say:
            say(f"segment {count}/{len(exams)} {name}")


def _title(name: str, fit: Fit) -> str:
    """What stands above the picture of an exam."""
    if not math.isfinite(fit.value):
        return name
    return f"{name} – fit {fit.value:.2f}" + (", not known to the model" if fit.known is False else "")


def _note_trust(exam: str, labels: Segmentation, untold: set[str]) -> None:
    """Say which masks were left out, and once for every reason why a mask that was written has no trust."""
    if labels.left_out:
        alike: dict[str, list[str]] = {}
        for structure, reason in labels.left_out.items():
            alike.setdefault(reason, []).append(structure)
        why = "; ".join(f"{', '.join(structures)}: {reason}" for reason, structures in alike.items())
        print(f"{PROGRAM}: {exam}: left out by --min-trust: {why}", file=sys.stderr)
    kept = {name: one for name, one in (labels.trust or {}).items() if name not in labels.left_out}
    note_no_trust(exam, kept, untold)


def _write_masks(args: argparse.Namespace, name: str, labels: Segmentation, suffix: str) -> set[Path]:
    """Write what ``--masks`` and ``--probabilities`` ask for of one exam, and return the files."""
    from deepatlas.exams.mask_files import write_masks
    from deepatlas.localize.soft_masks import write_soft_masks

    written: set[Path] = set()
    if args.masks:
        written.update(write_masks(args.out / name, labels, labels.names, suffix))
    if args.probabilities:
        folder = args.out / name / PROBABILITIES
        written.update(write_soft_masks(folder, labels.soft_masks(), labels.names, labels.grid, suffix))
    return written


def _check_dicom(exam: ExamFiles, format: str) -> None:
    """Refuse an exam that no DICOM object can refer to, before the work is done."""
    from deepatlas.exams.kind import Kind

    if exam.kind is not Kind.DICOM:
        raise DataError(
            f"{exam.ct}: is no DICOM series, to which --format {format} must refer; give the folder of the series, or "
            "write --format nifti"
        )


def _write_tables(out: Path, labels: Mapping[str, int], names: str) -> None:
    """Write :data:`TABLES`; ``names`` is the text of the first."""
    from deepatlas.files import write_text
    from deepatlas.io.export.label_tables import write_itk_snap, write_slicer

    table, snap, slicer = (out / name for name in TABLES)
    write_text(table, names)
    write_itk_snap(snap, labels)
    write_slicer(slicer, labels)
