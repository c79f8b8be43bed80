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
from typing import Any

import torch
from torch import Tensor

from deepatlas import checkpoint
from deepatlas.config import Config
from deepatlas.errors import DeepAtlasError
from deepatlas.train.log import NullLog, RunLog
from deepatlas.train.phase import Phase, Sweep
from deepatlas.train.world import World

# Scalars are logged every so many steps.
LOG_EVERY = 10
# The file in the run folder that receives the batch of a step whose loss or gradient is not finite.
BAD_BATCH = "bad_batch.pt"


@dataclass
class Facts:
    """What the start of a run decides for all of its phases; part of the checkpoint."""

    # The exam that the atlas starts from, and its foreground in coordinate space, [1, 1, n, n, n] on the host.
    # None in a supervised run, which has no atlas.
    seed_exam: str | None = None
    seed_mask: Tensor | None = None
    # Ids of the training exams. None in checkpoints of early versions, which did not record them.
    exams: list[str] | None = None
    # The model whose weights (or, from scratch, whose network) the run started from, if any: see train.start.
    init: dict[str, Any] | None = None
    # The structures whose labels are used, in the order of their masks; None where labels are not used.
    structures: list[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The form in which a checkpoint holds the facts."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass
class Session:
    """A run in progress: everything that a checkpoint holds, and where it runs."""

    config: Config
    folder: Path
    world: World
    log: RunLog | NullLog
    # network, atlas, autoencoder and, with distillation, cohort, and labels where they are used: see
    # train.recipe.make_modules. In a supervised run, network and structures.
    modules: dict[str, Any]
    generator: torch.Generator
    # None until the atlas has been seeded.
    facts: Facts | None = None
    # Names of the finished phases, steps of all phases, and seconds of training.
    done: list[str] = field(default_factory=list)
    # The steps of the finished phases that have a length of their own.
    lengths: dict[str, int] = field(default_factory=dict)
    overall: int = 0
    seconds: float = 0.0
    # The command that continues the run.
    command: str = "train"
    # Signals that asked the run to stop: see deferred_signals.
    stop: list[int] = field(default_factory=list)
    _pending: dict | None = None
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        return self.world.device

    def parts(self, count: int) -> list[range]:
        """The rows of a batch that this process computes, in parts that are computed one after another."""
        return self.world.parts(count, self.config.train.accumulate)

    def autocast(self) -> torch.autocast:
        """The context in which networks run: bfloat16 if the settings ask for it."""
        half = self.config.train.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def run(self, phases: Iterable[Phase | Sweep], begun: Callable[[], None] | None = None) -> None:
        """Run the phases that are not done yet; an interrupted one continues from its last checkpoint.

        The last phase that is done continues too if it has become longer.

        Args:
            phases: all phases of the run, in order; without ``begun`` some of them.
            begun: called when it is certain that the phases go on from those that are done, before the first step.

        Raises:
            DeepAtlasError: they do not, because the settings of their lengths have changed since.
        """
        seen: list[str] = []
        started = False
        for phase in phases:
            if not started:
                if phase.name in self.done and not self._is_extended(phase):
                    seen.append(phase.name)
                    continue
                started = True
                if begun:
                    self._insist_on_order(seen, phase)
                    begun()
            if isinstance(phase, Sweep):
                self._sweep(phase)
                phase.ended()
                self._pending = None
            else:
                self._optimise(phase)
                if phase.ended and self.world.main:
                    phase.ended()
                self.lengths[phase.name] = phase.steps
            self.done.append(phase.name)
            self.save()
            self.log.draw()
            if self._asked_to_stop():
                self._leave()
        if begun and not started:
            self._insist_on_order(seen)
            begun()

    def _is_extended(self, phase: Phase | Sweep) -> bool:
        """Whether a phase that is done has become longer and can continue; if so, it is not done any more."""
        if isinstance(phase, Sweep) or phase.steps == (done := self.lengths.get(phase.name, phase.steps)):
            return False
        last = self.done[-1]
        if phase.steps < done or phase.name != last or not self._pending:
            why = (
                "it cannot become shorter" if phase.steps < done else f"{last} has been trained on top of it"
            )
            raise DeepAtlasError(
                f"{self.folder}: phase {phase.name} has done its {done} steps, and {why}, so it cannot have "
                f"{phase.steps}; start a new run from its weights with --init {self.folder}"
            )
        self.done.remove(phase.name)
        return True

    def _insist_on_order(self, seen: list[str], phase: Phase | Sweep | None = None) -> None:
        """Refuse to begin with a phase (or to end, without one) unless exactly the phases before it are done."""
        cure = f"start a new run from its weights with --init {self.folder}"
        if others := [name for name in self.done if name not in seen]:
            what = f"phase {phase.name} would have come before it" if phase else "the settings leave it out"
            raise DeepAtlasError(f"{self.folder}: {others[0]} is done, and {what}; {cure}")
        pending = self._pending
        if phase and pending and pending["phase"] == phase.name and pending["step"] > phase.steps:
            raise DeepAtlasError(
                f"{self.folder}: phase {phase.name} has done {pending['step']} steps already, so it cannot have "
                f"{phase.steps}; give it as many or more, or {cure}"
            )

    def _optimise(self, phase: Phase) -> None:
        groups = [{"params": list(p), "factor": factor} for p, factor in phase.parameters]
        optimiser = torch.optim.Adam(
            groups,
            lr=phase.schedule.lr,
            foreach=True,
            weight_decay=phase.weight_decay,
            decoupled_weight_decay=True,
        )
        mean = [p.detach().clone() for p in phase.averaged] if phase.average else []
        start = 0
        if self._pending and self._pending["phase"] == phase.name:
            optimiser.load_state_dict(self._pending["optimiser"])
            start = self._pending["step"]
            mean = [m.to(self.device) for m in self._pending["mean"]]
            # The weights of a phase that had ended, before their mean replaced them.
            for parameter, value in zip(phase.averaged, self._pending.get("raw", ()), strict=False):
                parameter.data.copy_(value)
        self._pending = None
        everything = [p for group in groups for p in group["params"]]
        bar = self.log.bar(phase.steps, start, phase.name)
        began, before = time.monotonic(), self.seconds
        # Number, generator state and loss of the steps whose loss has not been read yet.
        unread: list[tuple[int, Tensor, Tensor]] = []
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
                # The sum is not finite if the loss or the norm of the gradient is not.
                unread.append((step, state, loss + 0 * norm))
                wanted = step % LOG_EVERY == 0 or step == phase.steps - 1
                due = time.monotonic() - self._saved_at > 60 * self.config.train.checkpoint_minutes
                # Reading a loss makes the host wait for a GPU, so on a GPU it is read only every few steps.
                if wanted or self.device.type == "cpu" or (due and self.world.main):
                    self._insist_on_finite(phase, unread)
                    unread.clear()
                optimiser.step()
                if mean:
                    # Early steps weigh more, so that the mean forgets the weights at the start of the phase.
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
                # All processes stop at the same step: the others would wait for the gradients of one that left.
                stopping = (
                    self.stop
                    if self.world.size == 1
                    else (wanted or self.device.type == "cpu") and asked.item() > 0
                )
                if due or stopping:
                    self._pause(phase, step + 1, optimiser, mean)
                if stopping:
                    self._leave()
        # What is needed if the phase is to become longer after it has ended.
        raw = [p.detach().clone() for p in phase.averaged] if mean else []
        self._pending = {
            "phase": phase.name, "step": phase.steps, "optimiser": optimiser.state_dict(), "mean": mean, "raw": raw,
        }  # fmt: skip
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

    def _pause(self, phase: Phase, step: int, optimiser: torch.optim.Optimizer, mean: list[Tensor]) -> None:
        """Save within a phase, after ``step`` of its steps."""
        self._pending = {"phase": phase.name, "step": step, "optimiser": optimiser.state_dict(), "mean": mean}
        self.save()

    def _asked_to_stop(self) -> bool:
        """Whether a signal has reached any of the processes. All processes must call this together."""
        return self.world.sum_scalars({"asked": float(len(self.stop))})["asked"] > 0

    def _leave(self) -> None:
        # torchrun ends all processes as soon as one has left, so wait until the checkpoint is written.
        self.world.barrier()
        self.log.say(f"stopped and saved; continue with: deepatlas {self.command} --resume {self.folder}")
        raise KeyboardInterrupt

    def _insist_on_finite(self, phase: Phase, unread: list[tuple[int, Tensor, Tensor]]) -> None:
        """Raise at the first step whose loss or gradient is not finite, and write its batch to a file."""
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
            # On a GPU, the steps since then have already changed the weights.
            facts = {"phase": phase.name, "step": step, "steps_since": unread[-1][0] - step}
            checkpoint.save(path, facts | batch | {"modules": modules})
        raise DeepAtlasError(
            f"{self.folder}: loss or gradient is not finite in phase {phase.name} at step {step}, exams "
            f"{', '.join(batch['exams'])}; the batch is in {path}: look at these exams, or start a run with a lower "
            f"train.lr (--resume goes back to the last checkpoint)"
        )

    def save(self) -> None:
        """Write ``RUN/checkpoint.pt`` (in the first process)."""
        self._saved_at = time.monotonic()
        if not self.world.main:
            return
        state = {
            "config": self.config.to_dict(),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "generator": self.generator.get_state(),
            "facts": self.facts.to_dict() if self.facts else {},
            "done": list(self.done),
            "lengths": dict(self.lengths),
            "overall": self.overall,
            "seconds": self.seconds,
            "pending": self._pending,
        }
        checkpoint.save(self.folder / checkpoint.NAME, state)

    def restore(self, state: dict) -> None:
        """Continue from a checkpoint that :meth:`save` wrote."""
        for name, module in self.modules.items():
            # A run that has got its first round of distillation has no coordinates of the cohort yet.
            if name in state["modules"]:
                module.load_state_dict(state["modules"][name])
        self.generator.set_state(state["generator"])
        self.facts = Facts(**state["facts"]) if state["facts"] else None
        self.done, self.overall, self.seconds = state["done"], state["overall"], state["seconds"]
        self.lengths = state.get("lengths", {})
        self._pending = state["pending"]
        self.log.rewind(self.overall)


def _brief(values: dict[str, float]) -> str:
    """The scalars that the progress bar shows."""
    shown = {
        k.removesuffix("_similarity"): v
        for k, v in values.items()
        if not k.endswith(("_smoothness", "_edges"))
    }
    return " ".join(f"{k}={v:.3g}" for k, v in shown.items())


@contextlib.contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that a run can stop between two steps; a second signal stops at once.

    Outside the main thread, where Python allows no signal handlers, the list stays empty.
    """
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
