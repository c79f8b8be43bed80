"""The log of a run: progress bar, log.jsonl, TensorBoard and progress.png."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from deepatlas.files import atomic_path
from deepatlas.pictures.draw import new_figure, save_figure

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
        self._drawn = -math.inf

    def _open_board(self):
        # TensorBoard takes a second to import.
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops what a resumed run had logged after its checkpoint.
        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._board_from or None)

    def say(self, text: str) -> None:
        """Print one line on standard error without disturbing a progress bar."""
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)

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
        """Draw ``progress.png``: every logged scalar over the steps of all phases.

        Does nothing if the last drawing is less than ``REDRAW_SECONDS`` old, unless this is the ``last`` one.
        """
        if not last and time.monotonic() - self._drawn < REDRAW_SECONDS:
            return
        series = defaultdict(lambda: ([], []))
        phases, latest = {}, {}
        for entry in self.records:
            phase, overall = entry["phase"], entry["overall"]
            phases.setdefault(phase, overall)
            for key, value in entry.items():
                if key not in ("phase", "step", "overall"):
                    x, y = series[key]
                    if latest.setdefault(key, phase) != phase:
                        # NaN interrupts the curve between two phases.
                        x.append(overall)
                        y.append(math.nan)
                        latest[key] = phase
                    x.append(overall)
                    y.append(value)
        if not series:
            return
        columns = 3
        rows = -(-len(series) // columns)
        width, height = columns * 4.2, rows * 2.4
        figure = new_figure(width, height)
        # Margins in inches. Letting matplotlib find them would draw everything twice.
        figure.subplots_adjust(
            left=0.55 / width, right=1 - 0.15 / width, bottom=0.3 / height, top=1 - 0.3 / height,
            wspace=0.2, hspace=0.35,
        )  # fmt: skip
        for index, (key, (x, y)) in enumerate(sorted(series.items())):
            axes = figure.add_subplot(rows, columns, index + 1)
            axes.plot(x, y, linewidth=0.8, color="#1f5f99")
            axes.set_title(key.replace("_", " "), fontsize=8)
            axes.tick_params(labelsize=6)
            axes.grid(alpha=0.3)
            for start in phases.values():
                axes.axvline(start, color="0.5", linewidth=0.5)
        save_figure(figure, self.folder / "progress.png")
        self._drawn = time.monotonic()

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


class NullLog:
    """The log of all processes but the first one: it discards everything."""

    def say(self, text: str) -> None: ...
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
