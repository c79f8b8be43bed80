"""What a training run consists of: phases that optimise by gradients, and sweeps that work through the cohort."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """Learning rate of section 5.2.6: linear warm-up from a fraction of ``lr``, and ``decay`` after every 50 steps.

    With ``length``, the rate also falls along a cosine, to a fiftieth after ``length`` steps.
    """

    lr: float
    decay: float = 1.0
    warmup: int = 0
    warmup_from: float = 0.1
    length: int | None = None

    def at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rate = self.lr * self.decay ** (step // 50)
        if step < self.warmup:
            rate *= self.warmup_from + (1 - self.warmup_from) * step / self.warmup
        if self.length:
            rate *= 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, step / self.length)))
        return rate


@dataclass
class Phase:
    """One optimisation: the tensors that move, how fast they move, and the loss of a step."""

    name: str
    steps: int
    # Tensors, and the factor of each group on the learning rate.
    parameters: list[tuple[list[nn.Parameter], float]]
    schedule: Schedule
    # Maps the number of a step to the parts of its batch. Each part yields its share of the loss, and a function that
    # returns its share of the scalars to log. The function is called only when they are logged, because reading a
    # scalar waits for the device.
    step: Callable[[int], Iterator[tuple[Tensor, Callable[[], dict[str, float]]]]]
    # Returns the batch of the step that starts with this state of the generator; exam ids are under "exams".
    batch: Callable[[torch.Generator], dict]
    # Largest norm of the gradient; 0 does not limit it.
    clip: float = 0.0
    # Decoupled decay of the weights (AdamW), as a factor of the learning rate.
    weight_decay: float = 0.0
    # Tensors that are replaced by their running mean when the phase ends, and the decay of that mean (0: none).
    averaged: tuple[Tensor, ...] = ()
    average: float = 0.0
    # Called in the first process when the phase ends.
    ended: Callable[[], None] | None = None


@dataclass
class Sweep:
    """Work through the cohort batch by batch without training the network; as resumable as a phase.

    All functions do the same in every process.
    """

    name: str
    steps: int
    # Computes one batch, keeps its result in the session's modules, and returns scalars to log.
    step: Callable[[int], dict[str, float]]
    # Turns the results of all batches into what later phases use.
    ended: Callable[[], None]
