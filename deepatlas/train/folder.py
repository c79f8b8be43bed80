"""The folder of a run: how it begins, what it was asked for, and that one process alone writes it."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from deepatlas import checkpoint
from deepatlas.config import Config
from deepatlas.errors import DataWarning, DeepAtlasError
from deepatlas.files import write_error, write_text
from deepatlas.locks import held
from deepatlas.model.engine import FILE as MODEL_FILE
from deepatlas.settings import changed, resumable
from deepatlas.train.check import check_request
from deepatlas.train.request import Request

CONFIG, RESULT, LOCK = "config.json", "result.json", "lock"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from writing this run."""
    busy = "another process trains this run; wait until it has ended, or choose another --out"
    with held(folder / LOCK, busy) as there:
        if not there:
            warnings.warn(
                f"{folder}: its disk has no file locks; see that no other process trains this run",
                DataWarning,
                stacklevel=2,
            )
        yield


def read_run(folder: Path) -> tuple[Config, Request]:
    """The settings of the run in a folder, and what it was asked for.

    Raises:
        DeepAtlasError: the folder holds no run, or its ``config.json`` is damaged.
    """
    path = folder / CONFIG
    try:
        saved = json.loads(path.read_text(encoding="utf-8-sig"))
        return Config.from_dict(saved["config"]), Request(**saved["request"])
    except FileNotFoundError:
        raise DeepAtlasError(
            f"{path}: no such file, so {folder} is no run folder; start one with --out"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DeepAtlasError(f"{path}: damaged ({error}); start a new run with --out") from None


def start_folder(
    folder: Path,
    config: Config,
    request: Request,
    check_start: Callable[[Config, Request], None],
    lock: contextlib.ExitStack,
) -> None:
    """Begin a run; ``lock`` keeps other processes from its folder."""
    # Check everything first, so that a wrong path or name leaves no run folder behind.
    refuse_run(folder)
    check_request(request, config.phantom)
    check_start(config, request)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    lock.enter_context(alone(folder))
    # Another process may have trained it meanwhile.
    refuse_run(folder)
    write_config(folder, config, request)


def write_config(folder: Path, config: Config, request: Request) -> None:
    """Write ``config.json``."""
    saved = {"config": config.to_dict(), "request": request.to_dict()}
    write_text(folder / CONFIG, json.dumps(saved, indent=2) + "\n")


def insist_on_resumable(before: Config, after: Config, folder: Path) -> None:
    """Raise DeepAtlasError if a setting has changed that may not change when a run is resumed."""
    allowed = resumable(before)
    if fixed := [key for key in changed(before, after) if key not in allowed]:
        raise DeepAtlasError(
            f"setting {fixed[0]} cannot change when a run is resumed ({', '.join(allowed)} can); start a new run with "
            f"it, from these weights with --init {folder}"
        )


def refuse_run(folder: Path) -> None:
    """Raise DeepAtlasError if the folder holds a run."""
    if (folder / checkpoint.NAME).exists() or (folder / MODEL_FILE).exists():
        raise DeepAtlasError(
            f"{folder}: holds a run already; continue it with --resume {folder}, or choose --out"
        )
