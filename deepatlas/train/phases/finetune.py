"""Phases ``finetune-head`` and ``finetune``: masks are learned from labels (sections 3.3.3 and 3.3.4).

A new head has nothing to say yet, and its gradients would spoil what the other layers have learned. So it learns alone
first. From scratch there is nothing to spoil, and all layers learn for all of the steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from deepatlas.losses import segmentation_loss
from deepatlas.nn import SegmentationNetwork, StructureFacts
from deepatlas.train.feed.augment import Contrast
from deepatlas.train.feed.batches import Batches, Drawn
from deepatlas.train.feed.labels import LabelMaps
from deepatlas.train.feed.resident import ExamArray
from deepatlas.train.loop import Session
from deepatlas.train.phase import Phase, Schedule


def finetune_phases(
    session: Session, array: ExamArray, labels: LabelMaps, *, from_scratch: bool
) -> Iterator[Phase]:
    """The phases of a supervised run over the labelled exams of ``array``, whose labels are ``labels``."""
    settings = session.config.finetune
    network: SegmentationNetwork = session.modules["network"]
    learner = _Learner(session, array, labels)
    steps = settings.steps
    if from_scratch:
        steps += settings.head_steps
    elif settings.head_steps:
        yield Phase(
            name="finetune-head",
            steps=settings.head_steps,
            parameters=[(list(network.head.parameters()), 1.0)],
            schedule=Schedule(settings.head_lr, length=settings.head_steps),
            step=lambda _: learner.step(head_alone=True),
            batch=learner.record,
            clip=session.config.train.clip,
            weight_decay=settings.weight_decay,
        )
    yield Phase(
        name="finetune",
        steps=steps,
        parameters=[(list(network.parameters()), 1.0)],
        schedule=Schedule(settings.lr, warmup=settings.warmup, length=steps),
        step=lambda _: learner.step(head_alone=False),
        batch=learner.record,
        clip=session.config.train.clip,
        weight_decay=settings.weight_decay,
        averaged=tuple(network.parameters()),
        average=session.config.train.average,
    )


class _Learner:
    """The steps of both phases: augmented batches of labelled exams, and the loss of their masks."""

    def __init__(self, session: Session, array: ExamArray, labels: LabelMaps):
        config = session.config
        self.session, self.array, self.count = session, array, config.finetune.batch
        self.settings, self.size = config.finetune, config.network.size
        # All of these exams are labelled.
        data = replace(config.data, elastic=config.finetune.elastic, labelled_share=0.0)
        self.batches = Batches(array, array.ids, data, self.size, labels)

    def draw(self, generator: torch.Generator) -> tuple[Drawn, Contrast]:
        # The contrast has a generator of its own, so that the batches follow each other as a feed that reads ahead
        # foresees them.
        own = torch.Generator().set_state(generator.get_state())
        seed = int(torch.randint(1 << 62, (), generator=own))
        drawn = self.batches.draw(self.count, generator)
        return drawn, Contrast.draw(self.count, self.size, own.manual_seed(seed))

    def take(self, drawn: Drawn, contrast: Contrast, rows: Sequence[int]) -> Tensor:
        x, _, mask = self.batches.take(drawn, rows)
        return contrast.rows(rows).apply(x, mask, self.settings.contrast)

    def step(self, *, head_alone: bool):
        network: SegmentationNetwork = self.session.modules["network"]
        facts: StructureFacts = self.session.modules["structures"]
        drawn, contrast = self.draw(self.session.generator)
        for rows in self.session.parts(self.count):
            x, masks = self.take(drawn, contrast, rows), self.batches.masks(drawn, rows)
            with self.session.autocast():
                with torch.set_grad_enabled(not head_alone):
                    features = network.features(x)
                logits = network.masks(features)
            terms = segmentation_loss(
                logits, masks, masks.seen(), facts.fraction, self.count, dice=self.settings.dice,
                cross_entropy=self.settings.cross_entropy,
            )  # fmt: skip
            yield terms.total, terms.scalars

    def record(self, generator: torch.Generator) -> dict:
        drawn, contrast = self.draw(generator)
        everyone = range(self.count)
        return {
            "exams": [self.array.ids[i] for i in drawn.indices],
            "input": self.take(drawn, contrast, everyone),
            "theta": drawn.augmentation.theta,
            "control": drawn.augmentation.control,
        }
