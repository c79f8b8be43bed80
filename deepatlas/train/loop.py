"""The optimisation loop that every phase shares: schedule, clipping, logging, checkpoints, resume."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from deepatlas import checkpoint
from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError
from deepatlas.train.log import NullLog, RunLog
from deepatlas.train.world import World

LOG_EVERY = 10
BAD_BATCH = "bad_batch.pt"  # what a loss that is not finite leaves in the run folder


@dataclass(frozen=True)
class Schedule:
    """Section 5.2.6: linear warm-up from a fraction of ``lr``, then ``decay`` after every 50 steps.

    With ``length`` the rate also falls along a cosine, to a fiftieth after that many steps.
    """

    lr: float
    decay: float = 1.0
    warmup: int = 0
    warmup_from: float = 0.1
    length: int | None = None

    def at(self, step: int) -> float:
        rate = self.lr * self.decay ** (step // 50)
        if step < self.warmup:
            rate *= self.warmup_from + (1 - self.warmup_from) * step / self.warmup
        if self.length:
            rate *= 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, step / self.length)))
        return rate


@dataclass
class Phase:
    """One optimisation: what moves, how fast, and what a step minimises.

    ``parameters`` are (tensors, factor on the learning rate). ``step`` maps the step number to the parts of a batch,
    one after another: each part's share of the loss, and a function that gives its share of the scalars to log (called
    only when they are wanted: reading a scalar waits for the device). ``batch`` gives what a step works on that
    starts with this generator, exam ids under ``"exams"``. ``ended`` is called when the phase is over.
    """

    name: str
    steps: int
    parameters: list[tuple[list[nn.Parameter], float]]
    schedule: Schedule
    step: Callable[[int], Iterator[tuple[Tensor, Callable[[], dict[str, float]]]]]
    batch: Callable[[torch.Generator], dict]
    clip: float = 0.0
    averaged: tuple[Tensor, ...] = ()  # tensors of which the run keeps a running mean
    average: float = 0.0
    ended: Callable[[], None] | None = None


@dataclass
class Sweep:
    """Work through the cohort without a gradient of the network's, batch by batch, as resumable as a phase.

    ``step`` does one batch, keeps what it made in the session's modules and returns scalars to log; ``ended`` turns
    what was kept into what later phases use. Both do the same in every process.
    """

    name: str
    steps: int
    step: Callable[[int], dict[str, float]]
    ended: Callable[[], None]


@dataclass
class Session:
    """A run in progress: everything that a checkpoint holds."""

    config: Config
    folder: Path
    world: World
    log: RunLog | NullLog
    modules: dict[str, nn.Module]
    generator: torch.Generator
    facts: dict = field(default_factory=dict)  # exam ids and the like that later phases need
    done: list[str] = field(default_factory=list)
    overall: int = 0
    seconds: float = 0.0
    stop: list[int] = field(default_factory=list)  # signals that asked it to (deferred_signals)
    _pending: dict | None = None
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        return self.world.device

    def parts(self, count: int) -> list[range]:
        """Rows of a batch that this process computes, one part after another."""
        return self.world.parts(count, self.config.train.accumulate)

    def autocast(self) -> torch.autocast:
        """Where networks run: in bfloat16 if the settings say so."""
        half = self.config.train.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def run(self, phases: Iterable[Phase | Sweep]) -> None:
        """Run the phases that are not done yet, the interrupted one from where it stopped."""
        for phase in phases:
            if phase.name not in self.done:
                if isinstance(phase, Sweep):
                    self._sweep(phase)
                    phase.ended()
                else:
                    self._optimise(phase)
                    if phase.ended and self.world.main:
                        phase.ended()
                self.done.append(phase.name)
                self._pending = None
                self.save()
                self.log.draw()
                if self._asked_to_stop():
                    self._leave()

    def _optimise(self, phase: Phase) -> None:
        groups = [{"params": list(p), "factor": factor} for p, factor in phase.parameters]
        optimiser = torch.optim.Adam(groups, lr=phase.schedule.lr, foreach=True)
        mean = [p.detach().clone() for p in phase.averaged] if phase.average else []
        start = 0
        if self._pending and self._pending["phase"] == phase.name:
            optimiser.load_state_dict(self._pending["optimiser"])
            start = self._pending["step"]
            mean = [m.to(self.device) for m in self._pending["mean"]]
        everything = [p for group in groups for p in group["params"]]
        bar = self.log.bar(phase.steps, start, phase.name)
        began, before = time.monotonic(), self.seconds
        unread: list[tuple[int, Tensor, Tensor]] = []  # steps whose loss nobody has looked at yet
        with contextlib.closing(bar):
            for step in range(start, phase.steps):
                rate = phase.schedule.at(step)
                for group in optimiser.param_groups:
                    group["lr"] = rate * group["factor"]
                state = self.generator.get_state()
                optimiser.zero_grad(set_to_none=True)
                losses, scalars = [], []
                for loss, values in phase.step(step):
                    loss.backward()
                    losses.append(loss.detach())
                    scalars.append(values)
                asked = torch.tensor(float(len(self.stop) > 0))
                loss, asked = self.world.sum_gradients(everything, torch.stack(losses).sum(), asked)
                norm = torch.nn.utils.clip_grad_norm_(everything, phase.clip or math.inf)
                unread.append((step, state, loss + 0 * norm))  # not finite if either is not
                wanted = step % LOG_EVERY == 0 or step == phase.steps - 1
                due = time.monotonic() - self._saved_at > 60 * self.config.train.checkpoint_minutes
                # Reading a number makes a GPU wait, so there it is looked at now and then only.
                look = wanted or self.device.type == "cpu" or (due and self.world.main)
                if look:
                    self._insist_on_finite(phase, unread)
                    unread.clear()
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
                    parts = [values() for values in scalars]
                    values = self.world.sum_scalars({k: sum(part[k] for part in parts) for k in parts[0]})
                    elapsed = time.monotonic() - began
                    self.log.record(
                        phase.name,
                        step,
                        self.overall,
                        **values,
                        lr=rate,
                        steps_per_second=(step + 1 - start) / max(elapsed, 1e-9),
                    )
                    bar.set_postfix_str(_brief(values), False)
                self.seconds = before + time.monotonic() - began
                # Together: a process that stopped alone would leave the others waiting for its gradients.
                stopping = (
                    self.stop
                    if self.world.size == 1
                    else (wanted or self.device.type == "cpu") and asked.item() > 0
                )
                if due or stopping:
                    self._pause(phase, step + 1, optimiser, mean)
                if stopping:
                    self._leave()
        with torch.no_grad():
            for parameter, value in zip(phase.averaged if mean else (), mean, strict=True):
                parameter.copy_(value)

    def _sweep(self, sweep: Sweep) -> None:
        start = 0
        if self._pending and self._pending["phase"] == sweep.name:
            start = self._pending["step"]
        bar = self.log.bar(sweep.steps, start, sweep.name)
        began, before = time.monotonic(), self.seconds
        with contextlib.closing(bar):
            for number in range(start, sweep.steps):
                values = sweep.step(number)
                self.overall += 1
                bar.update()
                elapsed = time.monotonic() - began
                self.log.record(
                    sweep.name,
                    number,
                    self.overall,
                    **values,
                    steps_per_second=(number + 1 - start) / max(elapsed, 1e-9),
                )
                bar.set_postfix_str(_brief(values), False)
                self.seconds = before + elapsed
                stopping = self._asked_to_stop()
                if stopping or time.monotonic() - self._saved_at > 60 * self.config.train.checkpoint_minutes:
                    self._pending = {"phase": sweep.name, "step": number + 1}
                    self.save()
                if stopping:
                    self._leave()

    def _pause(self, phase, step, optimiser, mean) -> None:
        self._pending = {"phase": phase.name, "step": step, "optimiser": optimiser.state_dict(), "mean": mean}
        self.save()

    def _asked_to_stop(self) -> bool:
        """Whether a signal has reached any of the processes; all of them ask this together."""
        return self.world.sum_scalars({"asked": float(len(self.stop))})["asked"] > 0

    def _leave(self) -> None:
        self.world.barrier()  # torchrun ends the others as soon as one has left: first the checkpoint
        self.log.say(f"stopped and saved; continue with: deepatlas train --resume {self.folder}")
        raise KeyboardInterrupt

    def _insist_on_finite(self, phase: Phase, unread: list[tuple[int, Tensor, Tensor]]) -> None:
        """Stop at the first step whose loss or gradient is not finite, and leave its batch for a look."""
        finite = torch.stack([loss for *_, loss in unread]).isfinite().tolist()
        if all(finite):
            return
        step, state, loss = unread[finite.index(False)]
        generator = torch.Generator(self.generator.device)
        generator.set_state(state)
        batch = phase.batch(generator)
        path = self.folder / BAD_BATCH
        if self.world.main:
            modules = {name: module.state_dict() for name, module in self.modules.items()}
            # With a GPU the steps since have moved the weights already.
            facts = {"phase": phase.name, "step": step, "steps_since": unread[-1][0] - step}
            checkpoint.save(path, facts | batch | {"modules": modules})
        raise DeepAtlasError(
            f"{self.folder}: loss or gradient is not finite in phase {phase.name} at step {step}, exams "
            f"{', '.join(batch['exams'])}; the batch is in {path}: look at these exams, or start a run with a lower "
            f"train.lr (--resume goes back to the last checkpoint)"
        )

    def save(self) -> None:
        """Write ``RUN/checkpoint.pt``; of several processes the first one does."""
        self._saved_at = time.monotonic()
        if not self.world.main:
            return
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

    def restore(self, state: dict) -> None:
        """Continue from what :meth:`save` wrote."""
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.generator.set_state(state["generator"])
        self.facts = state["facts"]
        self.done, self.overall, self.seconds = state["done"], state["overall"], state["seconds"]
        self._pending = state["pending"]
        self.log.rewind(self.overall)


def _brief(values: dict[str, float]) -> str:
    """The scalars that say how it goes, for the progress bar."""
    shown = {
        k.removesuffix("_similarity"): v
        for k, v in values.items()
        if not k.endswith(("_smoothness", "_edges"))
    }
    return " ".join(f"{k}={v:.3g}" for k, v in shown.items())


@contextlib.contextmanager
def deferred_signals() -> Iterator[list[int]]:
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
