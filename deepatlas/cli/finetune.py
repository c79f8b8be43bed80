"""``deepatlas finetune``: learn masks from labels, from a trained model or from scratch (sections 3.3.3 and 3.3.4)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepatlas.cli.common import Commands
from deepatlas.errors import PROGRAM, DeepAtlasError, guarded

if TYPE_CHECKING:
    from deepatlas.train.request import Request

_TEXT = "learn masks from labels: fine-tune a model, or train its network from scratch"
# The options that take everything up to the next option, and those that a run keeps.
_LISTS = ("test_exams", "structures")
_FIXED = ("model", "data", "split", "out", "test", *_LISTS, "from_scratch")


def add(commands: Commands) -> None:
    """Add the line in ``--help``. ``main`` passes the arguments on before this parser sees them."""
    commands.add_parser("finetune", help=_TEXT, add_help=False)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command, whose settings may stand anywhere among the options."""
    from deepatlas.train.arguments import add_data, add_run, add_test

    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} finetune",
        description=f"{_TEXT[0].upper()}{_TEXT[1:]}. The settings are those of the model; deepatlas/config.py lists "
        "those of the section finetune.",
    )
    parser.add_argument("--model", metavar="M", help="run folder, model file, or name of a shipped model")
    add_data(parser, "labelled exams, and others, which are left out; may be given several times")
    parser.add_argument("--out", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="the supervised baseline: the network of the model with random weights",
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue an interrupted run")
    add_test(parser)
    parser.add_argument(
        "--structures",
        nargs="+",
        metavar="NAME",
        help="learn only these structures; default all that were drawn",
    )
    add_run(parser)
    return parser


def run(rest: Sequence[str]) -> int:
    """Run the command with its arguments ``rest``."""
    arguments = build_parser().parse_intermixed_args(list(rest))
    return guarded(_run, arguments, as_json=arguments.json)


def _run(arguments: argparse.Namespace) -> int:
    from deepatlas.train.arguments import move_settings, run_experiment
    from deepatlas.train.supervised import Supervised, settings_for

    move_settings(arguments, _LISTS)

    def begin() -> Supervised:
        _insist(arguments)
        config = settings_for(arguments.model, arguments.settings)
        return Supervised.create(config, _request(arguments), device=arguments.device, quiet=arguments.quiet)

    return run_experiment(arguments, begin, _FIXED)


def _request(arguments: argparse.Namespace) -> Request:
    from deepatlas.train.arguments import data_arguments, model_name
    from deepatlas.train.request import Request

    return Request(
        **data_arguments(arguments, arguments.out),
        model=model_name(arguments.model),
        from_scratch=arguments.from_scratch,
    )


def _insist(arguments: argparse.Namespace) -> None:
    for option, what in (("model", "M"), ("data", "DIR"), ("out", "RUN")):
        if not getattr(arguments, option):
            raise DeepAtlasError(f"finetune: give --{option} {what}, or continue a run with --resume RUN")
