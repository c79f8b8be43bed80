"""Arguments that the commands which train have in common, and how they become a run."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError
from deepatlas.settings import leaves

if TYPE_CHECKING:
    from deepatlas.train.experiment import Experiment


def add_data(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the arguments about exams; ``what`` describes ``--data``."""
    parser.add_argument("--data", type=Path, metavar="DIR", action="append", help=what)
    parser.add_argument(
        "--split",
        type=Path,
        metavar="FILE",
        help="which exams are for training, validation and test, and whose labels may be used (default: splits.json in "
        "DIR)",
    )


def add_test(parser: argparse.ArgumentParser) -> None:
    """Add the arguments about the exams that a run is scored on."""
    parser.add_argument(
        "--test",
        type=Path,
        metavar="DIR",
        help="labelled exams for the score; without it some labelled exams are kept out of training",
    )
    parser.add_argument("--test-exams", nargs="+", metavar="ID", help="score only these exams of --test")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the arguments about how a run is computed, and the settings."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; default a GPU if there is one")
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first bad exam instead of skipping it"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings, for example train.batch=4 seed=1"
    )


def move_settings(arguments: argparse.Namespace, options: Sequence[str]) -> None:
    """Settings behind an option that takes several names are settings: ``--structures brain coarse.steps=20``.

    What counts is the part before the equals sign: a setting, or anything within a section of the settings, so that a
    misspelt one is refused as such. Any other name with an equals sign remains a name, and must be one of the data.

    Args:
        arguments: what was given; it is changed.
        options: the options that take everything up to the next option.
    """
    known = {key for key, *_ in leaves(Config())}
    sections = {key.partition(".")[0] for key in known if "." in key}

    def is_setting(text: str) -> bool:
        key, equals, _ = text.partition("=")
        return bool(equals) and (key in known or key.partition(".")[0] in sections)

    for option in options:
        given = getattr(arguments, option)
        if not given:
            continue
        arguments.settings += [text for text in given if is_setting(text)]
        names = [text for text in given if not is_setting(text)]
        if not names:
            raise DeepAtlasError(
                f"--{option.replace('_', '-')} names nothing but settings; name at least one"
            )
        setattr(arguments, option, names)


def run_experiment(
    arguments: argparse.Namespace, begin: Callable[[], Experiment], fixed: Sequence[str]
) -> int:
    """Begin a run, or continue that of ``--resume``, to its end, and print the result; returns the exit status.

    ``fixed`` are the options that a run keeps, which therefore may not stand beside ``--resume``.
    """
    from deepatlas.train.score import result_text

    experiment, result = finish_experiment(arguments, begin, fixed)
    if experiment.world.main:
        print(json.dumps(result, indent=2) if arguments.json else result_text(experiment.folder, result))
    return 0


def check_resume(arguments: argparse.Namespace, fixed: Sequence[str]) -> None:
    """Refuse options that a run keeps (``fixed``) beside ``--resume``."""
    given = [name for name in fixed if getattr(arguments, name)] if arguments.resume else []
    if given:
        what = f"--{given[0].replace('_', '-')}"
        raise DeepAtlasError(
            f"--resume continues a run as it was set up: leave out {what}, or start a new --out"
        )


def finish_experiment(
    arguments: argparse.Namespace, begin: Callable[[], Experiment], fixed: Sequence[str]
) -> tuple[Experiment, dict[str, Any]]:
    """As :func:`run_experiment`, but nothing is printed; returns the run and its result."""
    from deepatlas.exams.outputs import check_name
    from deepatlas.train.allocator import keep_freed_memory
    from deepatlas.train.resume import resume

    keep_freed_memory()
    check_resume(arguments, fixed)
    if arguments.resume:
        check_name(arguments.resume, "a run")
        experiment = resume(
            arguments.resume,
            arguments.settings,
            device=arguments.device,
            quiet=arguments.quiet,
            workers=getattr(arguments, "workers", None),
        )
    else:
        experiment = begin()
    return experiment, experiment.run()


def data_arguments(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """What the arguments about exams say, as parts of a :class:`~deepatlas.train.request.Request` for a run in ``out``.

    Raises :class:`~deepatlas.errors.DeepAtlasError` if the run would write onto its data.
    """
    from deepatlas.exams.outputs import check_name, check_out_folder
    from deepatlas.train.request import refuse_writing_to_data

    if arguments.test_exams and not arguments.test:
        raise DeepAtlasError("--test-exams chooses among the exams of --test: give --test DIR too")
    data = [os.fspath(root.resolve()) for root in arguments.data or ()]
    if arguments.out:
        check_out_folder(out)
    check_name(out, "a run")
    refuse_writing_to_data(out, [*(arguments.data or ()), *([arguments.test] if arguments.test else ())])
    return {
        "out": os.fspath(out),
        "data": (data if len(data) > 1 else data[0]) if data else None,
        "split": os.fspath(arguments.split.resolve()) if arguments.split else None,
        "test": os.fspath(arguments.test.resolve()) if arguments.test else None,
        "test_exams": arguments.test_exams,
        "structures": arguments.structures,
        "strict": arguments.strict,
    }


def model_name(name: str) -> str:
    """How a run records the model that it starts from: by the name of a shipped one, or by an absolute path."""
    from deepatlas.pretrained import FOLDER, MODEL, resolve

    path = resolve(name, MODEL)
    return name if path.is_relative_to(FOLDER) else os.fspath(path.absolute())
