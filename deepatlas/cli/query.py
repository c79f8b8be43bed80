"""``deepatlas query``: questions to the index of a cohort."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepatlas.cells import cells
from deepatlas.cli.common import STEPS, Commands, add_command, print_result
from deepatlas.errors import PROGRAM, DataError

if TYPE_CHECKING:
    from deepatlas.index.file import IndexFile


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    c = add_command(commands, "query", run, "ask the index of a cohort which exams show what")
    c.add_argument(
        "index", type=Path, metavar="DIR|INDEX", help="data directory with an index, or the index itself"
    )
    c.add_argument(
        "question", nargs="?", default="", metavar="QUESTION",
        help='a condition, such as "heart >= 90 and phase = venous" (percent of the structure that is in view); '
        "also hu(liver), ml(liver), trust(liver), fit, known, loss, body_part, flip, labelled, slices",
    )  # fmt: skip
    what = c.add_mutually_exclusive_group()
    what.add_argument(
        "--similar", metavar="EXAM", help="exams of the same anatomy, those that look most alike first"
    )
    what.add_argument(
        "--outliers", action="store_true", help="exams that depart most from the cohort at the same anatomy"
    )
    what.add_argument(
        "--rank",
        action="store_true",
        help="unlabelled exams by their loss: which to label or to learn from next",
    )
    what.add_argument("--table2", action="store_true", help="how many exams show each body part")
    what.add_argument("--show", metavar="EXAM", help="everything that the index holds about one exam")
    c.add_argument(
        "--map", type=Path, metavar="OUT.nii.gz",
        help="with --outliers --exam: where that exam departs, in standard deviations, on its own grid",
    )  # fmt: skip
    c.add_argument("--exam", metavar="ID", help="the exam of --map (default: the one that departs most)")
    c.add_argument(
        "--limit", type=STEPS, default=50, metavar="N", help="exams to list, 0 for all (default: 50)"
    )
    c.add_argument(
        "--columns", default="", metavar="FIELDS",
        help="what to tell of each exam, such as \"fit, ml(liver), hu\", where hu, ml, coverage, trust and bound alone "
        "are those of every structure (default: the usual, and what the question names)",
    )  # fmt: skip
    c.add_argument("--csv", action="store_true", help="print the table as CSV")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deepatlas.index.ask import about_exam, ask, table2
    from deepatlas.index.file import IndexFile, index_at
    from deepatlas.index.ids import the_exam

    if args.columns and (args.similar or args.outliers or args.show or args.table2):
        raise DataError("query: --columns goes with a question or --rank; leave one of them out")
    if args.map and not args.outliers:
        raise DataError("query: --map goes with --outliers; give both")
    if (args.similar or args.outliers or args.show) and args.question:
        raise DataError(
            "query: a question does not go with --similar, --outliers or --show; leave one of them out"
        )
    with IndexFile(index_at(args.index)) as index:
        if args.similar:
            return _similar(args, index)
        if args.outliers:
            return _outliers(args, index)
        if args.show:
            exam = the_exam(index, args.show)
            found = about_exam(index, exam) or {}
            _note_outdated(index, [exam])
            print_result(
                args, found, "\n".join(_on_a_line(f"{k}: {v}") for k, v in _flat(found) if v is not None)
            )
            return 0
        answer = (
            table2(index, args.question)
            if args.table2
            else ask(index, args.question, args.limit or None, rank=args.rank, columns=args.columns)
        )
        if args.table2:
            _note_outdated(index)
        else:
            _note_vanished(answer.columns, answer.rows)
            place = answer.columns.index("id")
            _note_outdated(index, [row[place] for row in answer.rows])
            if args.rank and not answer.rows and not args.question:
                print(
                    f"{PROGRAM}: {index.path}: all exams are labelled, so that none is ranked",
                    file=sys.stderr,
                )
        more = answer.total - len(answer.rows)
        text = _table(args, answer.columns, answer.rows)
        if more > 0 and not args.table2 and not args.csv:
            text += f"\n… and {more} more; --limit 0 lists all"
        data = {"index": str(index.path), "total": answer.total, "exams": answer.as_dicts()}
        print_result(args, data, text)
    return 0


def _similar(args: argparse.Namespace, index: IndexFile) -> int:
    from deepatlas.index.compare import similar
    from deepatlas.index.ids import the_exam

    _note_outdated(index)
    found = similar(index, the_exam(index, args.similar))[: args.limit or None]
    rows = [(s.id, round(s.score, 3), round(s.overlap, 3), round(s.difference, 1)) for s in found]
    columns = ["id", "score", "overlap", "difference_hu"]
    data = {"exam": args.similar, "similar": [dict(zip(columns, row, strict=True)) for row in rows]}
    print_result(args, data, _table(args, columns, rows))
    return 0


def _outliers(args: argparse.Namespace, index: IndexFile) -> int:
    from deepatlas.index.compare import outliers
    from deepatlas.index.ids import the_exam

    _note_outdated(index)
    found = outliers(index, _template_of(index))
    rows = [
        (o.id, round(100 * o.unusual, 2), round(o.largest, 1), o.where) for o in found[: args.limit or None]
    ]
    columns = ["id", "unusual_percent", "largest_sd", "where"]
    data: dict[str, Any] = {"outliers": [dict(zip(columns, row, strict=True)) for row in rows]}
    text = _table(args, columns, rows)
    if args.map:
        if not (args.exam or found):
            raise DataError(
                f"{index.path}: no exam can be compared with the others; give --exam ID, or leave --map out"
            )
        exam = the_exam(index, args.exam) if args.exam else found[0].id
        data |= {"exam": exam, "map": str(_write_map(args, index, exam))}
        text += f"\n{args.map}: where {exam} departs from the cohort, in standard deviations"
    print_result(args, data, text)
    return 0


def _template_of(index: IndexFile) -> Any:
    """The template of the index, for names of places; None where it is not there any more."""
    from deepatlas.localize.template.file import Template

    try:
        return Template.load(index.about.template_name)
    except DataError:
        return None


def _write_map(args: argparse.Namespace, index: IndexFile, exam: str) -> Path:
    from deepatlas.exams.kind import kind_of
    from deepatlas.exams.outputs import check_out_file, refuse_overwriting
    from deepatlas.exams.read import read_volume
    from deepatlas.index.compare import departure_of
    from deepatlas.index.departures import departure_map
    from deepatlas.index.file import CURE
    from deepatlas.io.codec import write_volume
    from deepatlas.model.cascade import answering
    from deepatlas.model.engine import Engine

    check_out_file(args.map, (".nii.gz", ".nii", ".nrrd", ".mha"), "--map")
    cells = departure_of(index, exam)
    path = Path(index.keys()[exam][0])
    if not path.exists():
        raise DataError(
            f"{path}: exam {exam} has vanished since it was indexed; put it back, or run index again"
        )
    refuse_overwriting([args.map], [path, index.path], "--map")
    model = Engine.load(index.about.model_name, refine=index.about.refine)
    if model.fingerprint != index.about.model:
        raise DataError(
            f"{index.path}: made with the model {index.about.model}, but {index.about.model_name} is now "
            f"{model.fingerprint}; {CURE}"
        )
    if answering(model.regions, model.depth) != list(index.about.regions):
        raise DataError(
            f"{index.path}: made with other regions than {index.about.model_name} has now; {CURE}"
        )
    volume = read_volume(path, kind=kind_of(path, is_exam=path.is_dir()))
    return write_volume(args.map, departure_map(model, volume, cells))


def _note_vanished(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """One line about exams of the answer whose files are not there any more."""
    path, exam = columns.index("path"), columns.index("id")
    gone = [row[exam] for row in rows if not Path(row[path]).exists()]
    _warn(gone, "of these exams have vanished since they were indexed", "run `deepatlas index` again")


def _note_outdated(index: IndexFile, among: Sequence[str] | None = None) -> None:
    """One line about exams, among these or all, that the last pass could not use, and knows from before."""
    old = [exam for exam in index.outdated() if among is None or exam in among]
    _warn(
        old,
        "of the exams could not be read when the index was last made",
        "this is what was known before; mend their files and run `deepatlas index` again",
    )


def _warn(exams: Sequence[str], what: str, cure: str) -> None:
    """One line that names some of the exams; none without any."""
    if exams:
        some = ", ".join(_on_a_line(exam) for exam in exams[:3]) + (" …" if len(exams) > 3 else "")
        print(f"{PROGRAM}: warning: {len(exams)} {what} ({some}); {cure}", file=sys.stderr)


def _table(args: argparse.Namespace, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The rows as CSV or as aligned text; in text without the path."""
    if args.csv:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(cells(columns))
        writer.writerows(cells(_cell(v) for v in row) for row in rows)
        return out.getvalue().rstrip("\n")
    shown = [i for i, name in enumerate(columns) if name != "path"]
    table = [
        [columns[i] for i in shown],
        *([_on_a_line(_cell(row[i])) or "-" for i in shown] for row in rows),
    ]
    widths = [max(len(line[i]) for line in table) for i in range(len(shown))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # As JSON has it; the index holds no more digits than mean something.
        return f"{value:.10g}"
    return str(value)


def _on_a_line(text: str) -> str:
    """A text in a table: a line break in the name of a folder would tear the line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _flat(found: dict[str, Any]) -> list[tuple[str, Any]]:
    lines = [(k, v) for k, v in found.items() if k != "structures"]
    for name, facts in found["structures"].items():
        lines.append((name, ", ".join(f"{kind} {value:g}" for kind, value in facts.items())))
    return lines
