"""The log of a run: progress bar, log.jsonl, TensorBoard and progress.png."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from deepatlas.errors import skipped_line
from deepatlas.files import atomic_path
from deepatlas.pictures.draw import save_figure
from deepatlas.pictures.progress import progress_curves

# The least time between two drawings of the curves, each of which takes seconds.
REDRAW_SECONDS = 60.0


class RunLog:
    """Appends to ``RUN/log.jsonl`` and ``RUN/tensorboard``, and draws ``RUN/progress.png``.

    A resumed run continues the same files; :meth:`rewind` drops the records after the checkpoint.
    """

    def __init__(self, folder: Path, *, quiet: bool = False):
        self.folder, self.quiet = Path(folder), quiet
        self.path = self.folder / "log.jsonl"
        self.records: list[dict] = []
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            self.records = [json.loads(line) for line in lines if line.endswith("}")]
        self._file = self.path.open("a", buffering=1, encoding="utf-8")
        self._board, self._board_from = None, 0
        self._drawn, self._drawn_records = -math.inf, -1
        # Why exams were left out, by their names.
        self.skipped: dict[str, str] = {}
        # Returns grey pictures ``[rows, columns]`` in [0, 1] by their names, whenever the curves are drawn.
        self.pictures: Callable[[], Mapping[str, NDArray[np.float32]]] | None = None

    def _open_board(self):
        # TensorBoard takes a second to import.
        from torch.utils.tensorboard import SummaryWriter

        board = self.folder / "tensorboard"
        # TensorBoard reads files by their names, which begin with the second; those of one second have no sure order.
        seconds = [
            int(name[3]) for path in board.glob("events.out.tfevents.*") if (name := path.name.split("."))
        ]
        if 0 <= max(seconds, default=0) - int(time.time()) < 2:
            time.sleep(max(seconds) + 1 - time.time())
        # TensorBoard drops what a resumed run had logged after its checkpoint.
        return SummaryWriter(str(board), purge_step=self._board_from or None)

    def say(self, text: str) -> None:
        """Print one line on standard error without disturbing a progress bar."""
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)

    def skip(self, exam: str, reason: str, data: str) -> None:
        """Note an exam that is left out, in one line on standard error, also of a quiet run, and once.

        ``data`` is the name of its data directory, in case that exams of two have one name.
        """
        if reason in (self.skipped.get(exam), self.skipped.get(f"{data}/{exam}")):
            return
        self.skipped[f"{data}/{exam}" if exam in self.skipped else exam] = reason
        tqdm.write(skipped_line(exam, reason), file=sys.stderr)

    def record(self, phase: str, step: int, overall: int, **scalars: float) -> None:
        """Log the scalars of one step; ``overall`` counts the steps of all phases."""
        entry = {"phase": phase, "step": step, "overall": overall}
        entry |= {key: round(float(value), 6) for key, value in scalars.items()}
        self.records.append(entry)
        self._file.write(json.dumps(entry) + "\n")
        if self._board is None:
            self._board = self._open_board()
        for key, value in scalars.items():
            self._board.add_scalar(key, value, overall)

    def rewind(self, overall: int) -> None:
        """Drop the records after step ``overall``, whose steps will be computed again."""
        self._board_from = overall + 1
        kept = [r for r in self.records if r["overall"] <= overall]
        if len(kept) < len(self.records):
            self.records = kept
            self._file.close()
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
            self._file = self.path.open("a", buffering=1, encoding="utf-8")

    def bar(self, total: int, done: int, title: str):
        """A progress bar on standard error."""
        return tqdm(
            total=total,
            initial=done,
            desc=title,
            unit="step",
            leave=True,
            disable=self.quiet,
            dynamic_ncols=True,
            file=sys.stderr,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def draw(self, last: bool = False) -> None:
        """Draw ``progress.png``: every logged scalar over the steps of all phases; and write pictures to TensorBoard.

        Does nothing if the last drawing is less than ``REDRAW_SECONDS`` old, unless this is the ``last`` one, and never
        if nothing was logged since.
        """
        if len(self.records) == self._drawn_records:
            return
        if not last and time.monotonic() - self._drawn < REDRAW_SECONDS:
            return
        figure = progress_curves(self.records)
        if figure is None:
            return
        save_figure(figure, self.folder / "progress.png")
        if self.pictures and self._board:
            for tag, picture in self.pictures().items():
                self._board.add_image(tag, picture, self.records[-1]["overall"], dataformats="HW")
        self._drawn, self._drawn_records = time.monotonic(), len(self.records)

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


class NullLog:
    """The log of all processes but the first one: it discards everything."""

    pictures: Callable[[], Mapping[str, NDArray[np.float32]]] | None = None

    skipped: Mapping[str, str] = {}

    def say(self, text: str) -> None: ...
    def skip(self, exam: str, reason: str, data: str) -> None: ...
    def record(self, phase: str, step: int, overall: int, **scalars: float) -> None: ...
    def rewind(self, overall: int) -> None: ...
    def draw(self, last: bool = False) -> None: ...
    def close(self) -> None: ...
    def bar(self, total: int, done: int, title: str):
        return _NoBar()


class _NoBar:
    def update(self, n: int = 1) -> None: ...
    def set_postfix_str(self, text: str, refresh: bool = True) -> None: ...
    def close(self) -> None: ...
