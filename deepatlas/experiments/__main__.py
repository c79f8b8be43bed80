"""Run a plan of experiments: ``python -m deepatlas.experiments PLAN``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deepatlas.compare.evaluations import compare_evaluations
from deepatlas.errors import PROGRAM, DataError, did_you_mean, guarded, lenient_output
from deepatlas.exams.outputs import check_out_folder
from deepatlas.experiments.parts import Parts, parts_of, write_splits
from deepatlas.experiments.plan import Plan, check_settings, read_plan, shipped
from deepatlas.experiments.runner import State, run_one, run_parts
from deepatlas.files import write_error
from deepatlas.locks import held
from deepatlas.signals import ended_as_by_ctrl_c

COMPARE = "compare"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m deepatlas.experiments",
        description="Run the cohorts, experiments and evaluations of a plan, and compare them. What is done is not run "
        "again, and runs that were stopped continue.",
    )
    parser.add_argument("plan", metavar="PLAN", help=f"TOML file, or a shipped plan: {', '.join(shipped())}")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write to (default: runs/<name of PLAN>)"
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="COHORT=DIR",
        help="where the exams of a cohort are; may be given several times",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at once (default: 1)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="only these experiments, and what they need"
    )
    parser.add_argument(
        "--commands",
        action="store_true",
        help="run nothing, and print a command for every part that is not done, by stages whose parts may run at once",
    )
    parser.add_argument("--part", metavar="PART", help="run this part alone, as --commands prints it")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 1 if a part failed."""
    if args.jobs < 1:
        raise DataError(f"--jobs must be 1 or more, got {args.jobs}")
    given = _pairs(args.data)
    plan = read_plan(args.plan, given)
    check_settings(plan, args.plan)
    out = args.out or Path("runs") / Path(args.plan).stem
    check_out_folder(out, writes=not args.commands)
    chosen = _chosen(plan, args.only)
    parts = parts_of(plan, out)
    state = State(out)
    wanted = _wanted(parts, chosen)
    if args.commands:
        _print_commands(args, parts, wanted, state, out)
        return 0
    write_splits(plan, out)
    if args.part and args.part != COMPARE:
        if args.part not in parts.all:
            raise DataError(f"no part {args.part!r}; {did_you_mean(args.part, [*parts.all, COMPARE])}")
        return 0 if run_one(args.part, parts, state, _say) else 1
    failed: dict[str, str] = {}
    if args.part != COMPARE:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(out, error) from error
        with held(out / ".lock", "another process runs a plan here; wait for it, or give another --out"):
            failed = run_parts([parts.all[name] for name in wanted], state, args.jobs, _say)
    return _compare(plan, chosen, parts, state, out, failed)


def _compare(
    plan: Plan, chosen: Sequence[str], parts: Parts, state: State, out: Path, failed: Mapping[str, str]
) -> int:
    """Compare the experiments whose evaluations are all there, and list the others with the reason."""
    names: list[str] = []
    evaluations: list[Path] = []
    broken = {}
    for name in chosen:
        needed = [parts.all[p] for p in parts.evaluated[name]]
        reasons = [
            failed.get(p.name) or state.failure(p) or f"{p.name} has not run"
            for p in needed
            if not state.done(p)
        ]
        if reasons:
            broken[name] = _first_cause(parts, state, parts.evaluated[name]) or reasons[0]
        else:
            names += [name] * len(needed)
            evaluations += [p.out for p in needed]
    for name, why in broken.items():
        print(f"{PROGRAM}: {name} failed: {why}", file=sys.stderr, flush=True)
    if len(chosen) - len(broken) < 2:
        _say("nothing to compare: fewer than two experiments were evaluated")
        return 1 if broken else 0
    baseline = plan.baseline if plan.baseline in names else None
    compare_evaluations(
        evaluations, out / "comparison", names=names, baseline=baseline, show=plan.show, failed=broken
    )
    _say(str(out / "comparison" / "comparison.html"))
    return 1 if broken else 0


def _first_cause(parts: Parts, state: State, names: Sequence[str]) -> str | None:
    """Why the first part that is behind these failed itself, and not because of another one."""
    for name in names:
        for part in (*parts.behind(parts.all[name]), parts.all[name]):
            if not state.done(part) and (why := state.failure(part)):
                return f"{part.name}: {why}"
    return None


def _chosen(plan: Plan, only: Sequence[str] | None) -> list[str]:
    for name in only or ():
        if name not in plan.experiments:
            raise DataError(f"--only: no experiment {name!r}; {did_you_mean(name, list(plan.experiments))}")
    return [name for name in plan.experiments if not only or name in only]


def _wanted(parts: Parts, chosen: Sequence[str]) -> list[str]:
    """The parts that these experiments need, in the order of the plan."""
    ends = [parts.all[p] for name in chosen for p in parts.evaluated[name]]
    needed = {p.name for end in ends for p in (*parts.behind(end), end)}
    return [name for name in parts.all if name in needed]


def _print_commands(
    args: argparse.Namespace, parts: Parts, wanted: Sequence[str], state: State, out: Path
) -> None:
    """Print a line for every part that is not done; lines between two comments may be an array."""
    same = [sys.executable, "-m", "deepatlas.experiments", args.plan, "--out", str(out)]
    same += [text for pair in args.data for text in ("--data", pair)]
    stages = [[p for p in stage if p.name in wanted and not state.done(p)] for stage in parts.stages()]
    stages = [stage for stage in stages if stage]
    for number, stage in enumerate(stages, 1):
        print(f"# stage {number} of {len(stages) + 1}: {len(stage)} at once")
        for part in stage:
            print(shlex.join([*same, "--part", part.name]))
    print(f"# stage {len(stages) + 1} of {len(stages) + 1}: the comparison")
    only = ["--only", *args.only] if args.only else []
    print(shlex.join([*same, *only, "--part", COMPARE]))


def _pairs(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise DataError(f"--data {text}: give COHORT=DIR")
        found[name] = path
    return found


def _say(text: str) -> None:
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; errors are one line on standard error."""
    lenient_output()
    args = build_parser().parse_args(argv)
    # A job that is stopped ends its processes as Ctrl-C does.
    with ended_as_by_ctrl_c("; run the same command to continue"):
        return guarded(run, args)


if __name__ == "__main__":
    sys.exit(main())
