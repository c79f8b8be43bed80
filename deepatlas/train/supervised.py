"""A run that learns masks from labels: fine-tuning (section 3.3.3), and the supervised baseline (section 3.3.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from deepatlas.config import Config
from deepatlas.errors import DataError, DeepAtlasError
from deepatlas.model.engine import FILE as MODEL_FILE
from deepatlas.model.engine import Engine
from deepatlas.model.structures import Structures
from deepatlas.names.meet import chosen
from deepatlas.nn import SegmentationNetwork, StructureFacts
from deepatlas.presets import PRESETS
from deepatlas.space.constants import FINE_SIZE, MODEL_SIZE
from deepatlas.space.stack import overlapping_pairs
from deepatlas.store.store import Store
from deepatlas.train.experiment import Experiment
from deepatlas.train.feed.labels import LabelMaps
from deepatlas.train.feed.resident import ExamArray
from deepatlas.train.labels import tell_labels
from deepatlas.train.log import NullLog, RunLog
from deepatlas.train.loop import Facts, Session
from deepatlas.train.phase import Phase, Sweep
from deepatlas.train.phases.finetune import finetune_phases
from deepatlas.train.phases.labels import chosen_exams
from deepatlas.train.request import Request
from deepatlas.train.score import score_supervised
from deepatlas.train.split import Split, choose_split
from deepatlas.train.start import load_start

OPTION = "--model"


class Supervised(Experiment):
    """A run of ``deepatlas finetune``. It learns from labelled exams alone, those whose labels a split allows."""

    command = "finetune"

    def _batches(self) -> dict[str, int]:
        return {"finetune.batch": self.config.finetune.batch}

    @staticmethod
    def _check_start(config: Config, request: Request) -> None:
        assert request.model is not None
        data = load_start(request.model, config, OPTION).config.data
        for key in ("crop", "intensity"):
            theirs, ours = getattr(data, key), getattr(config.data, key)
            if theirs != ours and not request.from_scratch:
                raise DeepAtlasError(
                    f"{OPTION} {request.model}: has learned from exams of data.{key}={theirs or 'null'}, and this run "
                    f"has {ours or 'null'}; give the same, or train with --from-scratch"
                )

    def _exams(self, store: Store, log: RunLog | NullLog) -> tuple[Split, LabelMaps]:
        config, request = self.config, self.request
        wanted = None
        if request.structures:
            wanted = chosen(request.structures, store.labels, str(store.root))
        # There is no template, which would have to hold all structures.
        split = choose_split(store, replace(request, structures=None), config.data, config.seed, least=1)
        columns = [row for row, name in enumerate(store.labels) if wanted is None or name in wanted]
        learned = [e for e in split.drawn if store.has_label[store.index(e)][columns].any()]
        if not learned:
            raise DataError(
                f"{store.root}: none of its {len(split.train)} training exams has labels "
                f"{f'of {chr(44).join(wanted)} ' if wanted else ''}that may be used; add seg files, or name labelled "
                "exams in the split"
            )
        rows = [store.index(exam) for exam in learned]
        size = config.network.size
        # Masks are means of blocks of voxels; a grid coarser than 64^3 has such blocks of the labels at 64^3 already.
        source = FINE_SIZE if size == MODEL_SIZE else MODEL_SIZE
        labels = LabelMaps(store, rows, size, size, self.world.device, structures=wanted, source=source)
        if wanted and labels.missing:
            raise DataError(
                f"{store.root}: {', '.join(labels.missing)} is drawn in none of the {len(learned)} labelled training "
                "exams; leave it out of --structures"
            )
        tell_labels(store, learned, labels, log)
        return replace(split, train=learned), labels

    def _modules(self, exams: int, structures: int) -> dict[str, Any]:
        return {
            "network": SegmentationNetwork(self.config.network, structures),
            "structures": StructureFacts(structures),
        }

    def _begin(self, session: Session, store: Store, split: Split, labels: LabelMaps | None) -> Facts:
        assert labels is not None and self.request.model is not None
        network: SegmentationNetwork = session.modules["network"]
        facts: StructureFacts = session.modules["structures"]
        _measure(facts, labels)
        network.expect(facts.fraction)
        model = load_start(self.request.model, self.config, OPTION)
        if not self.request.from_scratch:
            network.start_from(model.network)
        session.log.say(
            f"{'network' if self.request.from_scratch else 'network and weights'} of {self.request.model} "
            f"(model {model.fingerprint})"
        )
        origin = {
            "from": self.request.model,
            "model": model.fingerprint,
            "from_scratch": self.request.from_scratch,
        }
        return Facts(init=origin)

    def _phases(
        self, session: Session, store: Store, array: ExamArray, labels: LabelMaps | None
    ) -> Iterator[Phase | Sweep]:
        assert labels is not None
        return finetune_phases(session, array, labels, from_scratch=self.request.from_scratch)

    def _known(self, session: Session, store: Store, array: ExamArray) -> dict[str, Any]:
        # A fit is the agreement of an exam with the atlas, and there is none.
        return {}

    def _slices(self, session: Session, store: Store, array: ExamArray) -> None:
        return None

    def _finish(
        self, session: Session, split: Split, known: dict[str, Any], labels: LabelMaps | None
    ) -> Engine:
        assert labels is not None
        facts: StructureFacts = session.modules["structures"]
        pairs = [(labels.names[a], labels.names[b]) for a, b in facts.overlaps.nonzero().tolist()]
        structures = Structures(
            tuple(labels.names), tuple(labels.ids), tuple(facts.fraction.tolist()), tuple(pairs)
        )
        card = self._card(session, split, labels)
        model = Engine(self.config, session.modules["network"], None, card, structures=structures)
        model.save(self.folder / MODEL_FILE)
        return model

    def _score(self, model: Engine, split: Split, log: RunLog) -> dict[str, Any]:
        return score_supervised(self.folder, model, self.config, self.request, split, log)


def settings_for(model: str, assignments: Sequence[str]) -> Config:
    """The settings of a run that starts from a model, with changes ``section.key=value``.

    They are those of the model. The section ``finetune``, which the model has not used, is that of its preset.

    Raises:
        DeepAtlasError: there is no such model, or a setting is not known or breaks its rule.
    """
    config = Engine.load(model, "cpu").config
    if config.preset in PRESETS:
        config = replace(config, finetune=PRESETS[config.preset].finetune)
    return config.override(assignments).validate()


def _measure(facts: StructureFacts, labels: LabelMaps) -> None:
    """Fill in what the labels of a few exams tell about the structures: their sizes and their overlaps."""
    exams = {position: labels.labels(position) for position in chosen_exams(labels)}
    filled, seen = np.zeros(len(labels)), np.zeros(len(labels))
    for position, own in exams.items():
        drawn = labels.drawn(position)
        for row in np.flatnonzero(drawn):
            filled[row] += own.mask(labels.ids[row]).mean()
        seen += drawn
    # A structure that is smaller than a voxel in all exams has no size, and no exam to learn from either.
    facts.fraction.copy_(torch.from_numpy(filled / np.maximum(seen, 1)))
    facts.overlaps.zero_()
    table = dict(zip(labels.names, labels.ids, strict=True))
    for lower, upper in overlapping_pairs(exams.values(), table):
        facts.overlaps[labels.names.index(lower), labels.names.index(upper)] = 1
