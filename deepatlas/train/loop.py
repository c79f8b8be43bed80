"""The optimisation loop that every phase shares: schedule, clipping, logging, checkpoints, resume."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from deepatlas import checkpoint
from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError
from deepatlas.train.log import RunLog

LOG_EVERY = 10


@dataclass(frozen=True)
class Schedule:
    """Section 5.2.6: linear warm-up from a fraction of ``lr``, then ``decay`` after every 50 steps."""

    lr: float
    decay: float = 1.0
    warmup: int = 0
    warmup_from: float = 0.1

    def at(self, step: int) -> float:
        rate = self.lr * self.decay ** (step // 50)
        if step < self.warmup:
            rate *= self.warmup_from + (1 - self.warmup_from) * step / self.warmup
        return rate


@dataclass
class Phase:
    """One optimisation: what moves, how fast, and what a step minimises.

    ``parameters`` are (tensors, factor on the learning rate). ``step`` maps the step number to the loss and a
    function that gives the scalars to log (called only when they are wanted: reading a scalar waits for the device).
    """

    name: str
    steps: int
    parameters: list[tuple[list[nn.Parameter], float]]
    schedule: Schedule
    step: Callable[[int], tuple[Tensor, Callable[[], dict[str, float]]]]
    clip: float = 0.0
    averaged: tuple[Tensor, ...] = ()  # tensors of which the run keeps a running mean
    average: float = 0.0


@dataclass
class Session:
    """A run in progress: everything that a checkpoint holds."""

    config: Config
    folder: Path
    device: torch.device
    log: RunLog
    modules: dict[str, nn.Module]
    generator: torch.Generator
    facts: dict = field(default_factory=dict)  # exam ids and the like that later phases need
    done: list[str] = field(default_factory=list)
    overall: int = 0
    seconds: float = 0.0
    last_batch: list[str] = field(default_factory=list)  # exam ids, for the error message
    _pending: dict | None = None
    _saved_at: float = field(default_factory=time.monotonic)

    def run(self, phases: Iterable[Phase]) -> None:
        """Run the phases that are not done yet, the interrupted one from where it stopped."""
        for phase in phases:
            if phase.name not in self.done:
                self._optimise(phase)
                self.done.append(phase.name)
                self._pending = None
                self.save()
                self.log.draw()

    def _optimise(self, phase: Phase) -> None:
        groups = [{"params": list(p), "factor": factor} for p, factor in phase.parameters]
        optimiser = torch.optim.Adam(groups, lr=phase.schedule.lr, foreach=True)
        mean = [p.detach().clone() for p in phase.averaged] if phase.average else []
        start = 0
        self.last_batch = []  # a phase that draws no exams names none
        if self._pending and self._pending["phase"] == phase.name:
            optimiser.load_state_dict(self._pending["optimiser"])
            start = self._pending["step"]
            mean = [m.to(self.device) for m in self._pending["mean"]]
        everything = [p for group in groups for p in group["params"]]
        bar = self.log.bar(phase.steps, start, phase.name)
        began, before = time.monotonic(), self.seconds
        with _deferred_signals() as stop, contextlib.closing(bar):
            for step in range(start, phase.steps):
                rate = phase.schedule.at(step)
                for group in optimiser.param_groups:
                    group["lr"] = rate * group["factor"]
                loss, scalars = phase.step(step)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                if phase.clip:
                    torch.nn.utils.clip_grad_norm_(everything, phase.clip)
                wanted = step % LOG_EVERY == 0 or step == phase.steps - 1
                # Reading the loss makes a GPU wait, so there it is looked at now and then only.
                if (wanted or self.device.type == "cpu") and not math.isfinite(loss.item()):
                    raise DeepAtlasError(
                        f"{self.folder}: loss is not finite in phase {phase.name} at step {step}, exams "
                        f"{', '.join(self.last_batch) or '-'}; continue from the last checkpoint with a lower "
                        f"train.lr, or look at these exams"
                    )
                optimiser.step()
                if mean:
                    # Early steps count for more, so that the mean forgets where the phase began.
                    torch._foreach_lerp_(
                        mean,
                        [p.detach() for p in phase.averaged],
                        1 - min(phase.average, (step + 1) / (step + 10)),
                    )
                self.overall += 1
                bar.update()
                if wanted:
                    values = scalars()
                    elapsed = time.monotonic() - began
                    self.log.record(
                        phase.name,
                        step,
                        self.overall,
                        **values,
                        lr=rate,
                        steps_per_second=(step + 1 - start) / max(elapsed, 1e-9),
                    )
                    bar.set_postfix_str(
                        " ".join(f"{k[:12]}={v:.3g}" for k, v in list(values.items())[:4]), False
                    )
                self.seconds = before + time.monotonic() - began
                due = time.monotonic() - self._saved_at > 60 * self.config.train.checkpoint_minutes
                if due or stop:
                    self._pause(phase, step + 1, optimiser, mean)
                if stop:
                    self.log.say(f"stopped and saved; continue with: deepatlas train --resume {self.folder}")
                    raise KeyboardInterrupt
        with torch.no_grad():
            for parameter, value in zip(phase.averaged if mean else (), mean, strict=True):
                parameter.copy_(value)

    def _pause(self, phase, step, optimiser, mean) -> None:
        self._pending = {"phase": phase.name, "step": step, "optimiser": optimiser.state_dict(), "mean": mean}
        self.save()

    def save(self) -> None:
        """Write ``RUN/checkpoint.pt``."""
        state = {
            "config": self.config.to_dict(),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "generator": self.generator.get_state(),
            "facts": self.facts,
            "done": list(self.done),
            "overall": self.overall,
            "seconds": self.seconds,
            "pending": self._pending,
        }
        checkpoint.save(self.folder / checkpoint.NAME, state)
        self._saved_at = time.monotonic()

    def restore(self, state: dict) -> None:
        """Continue from what :meth:`save` wrote."""
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.generator.set_state(state["generator"])
        self.facts = state["facts"]
        self.done, self.overall, self.seconds = state["done"], state["overall"], state["seconds"]
        self._pending = state["pending"]
        self.log.rewind(self.overall)


@contextlib.contextmanager
def _deferred_signals():
    """Collect SIGINT and SIGTERM in a list, so that a run stops between two steps; a second one stops at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
