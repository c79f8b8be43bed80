"""A split file, ``splits.json``: which exams are for training, validation and test, and whose labels may be used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepatlas.errors import DataError, did_you_mean

SPLITS = "splits.json"
# The parts of a cohort, no two of which share an exam.
PARTS = ("train", "validation", "test")
_KEYS = (*PARTS, "labelled")
_CURE = 'write {"train": [ids], "validation": [ids], "test": [ids], "labelled": [ids]}, each of them optional'


@dataclass(frozen=True)
class Parts:
    """The exams of each part, by their ids; None where the file does not name the part.

    Attributes:
        path: the split file.
        train: the exams to learn from; None takes all that are in no other part.
        validation: exams to score on during development.
        test: exams to score on at the end.
        labelled: the exams whose labels training may use; None allows those of all training exams.
    """

    path: Path
    train: tuple[str, ...] | None = None
    validation: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None
    labelled: tuple[str, ...] | None = None

    def training(self, ids: Iterable[str]) -> list[str]:
        """Those of ``ids`` to learn from, in their order."""
        if self.train is not None:
            return _among(ids, self.train)
        others = {*(self.validation or ()), *(self.test or ())}
        return [i for i in ids if i not in others]

    def learnable(self, ids: Iterable[str]) -> list[str]:
        """Those of :meth:`training` whose labels may be used."""
        ids = self.training(ids)
        return ids if self.labelled is None else _among(ids, self.labelled)

    def scoring(self, ids: Sequence[str], part: str | None = None) -> list[str]:
        """Those of ``ids`` to score on: of the named part, or else of the test, of the validation, or not trained on.

        Raises :class:`~deepatlas.errors.DataError` if the file does not name the part.
        """
        if part == "train":
            return self.training(ids)
        if part is not None:
            return _among(ids, self.named(part))
        if (named := self.test or self.validation) is not None:
            return _among(ids, named)
        return list(ids) if self.train is None else [i for i in ids if i not in set(self.train)]

    def named(self, part: str) -> tuple[str, ...]:
        """The ids of a part. Raises :class:`~deepatlas.errors.DataError` if the file does not name it."""
        ids: tuple[str, ...] | None = getattr(self, part)
        if ids is None:
            there = ", ".join(key for key in _KEYS if getattr(self, key) is not None)
            raise DataError(f"{self.path}: names no part {part!r}; it has {there}")
        return ids

    def check(self, known: Sequence[str], unusable: Container[str] = ()) -> None:
        """Raise :class:`~deepatlas.errors.DataError` for an id that is neither ``known`` nor ``unusable``."""
        there = set(known)
        for key in _KEYS:
            missing = [i for i in getattr(self, key) or () if i not in there and i not in unusable]
            if missing:
                raise DataError(
                    f"{self.path}: {key} names {_some(missing)}, which the data lack; "
                    f"{did_you_mean(missing[0], list(known))}"
                )


def read_parts(path: str | os.PathLike[str]) -> Parts:
    """Read a split file.

    Raises:
        DataError: the file cannot be read, has another form, an unknown key, an empty part, an exam twice in a part or
            in two of them, or a labelled exam that is not for training.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); {_CURE}") from error
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: not a JSON object of parts; {_CURE}")
    owner: dict[str, str] = {}
    parts: dict[str, tuple[str, ...]] = {}
    for key, ids in content.items():
        if key not in _KEYS:
            raise DataError(f"{path}: unknown part {key!r}; {did_you_mean(key, list(_KEYS))}")
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            raise DataError(f"{path}: {key} is no list of exam ids; {_CURE}")
        if not ids:
            raise DataError(f"{path}: {key} is empty; leave it out, or name its exams")
        if len(set(ids)) < len(ids):
            twice = [i for i in dict.fromkeys(ids) if ids.count(i) > 1]
            raise DataError(f"{path}: {key} names {_some(twice)} twice; name every exam once")
        for i in ids if key in PARTS else ():
            if i in owner:
                raise DataError(f"{path}: exam {i} is in {owner[i]} and in {key}; leave it in one of them")
            owner[i] = key
        parts[key] = tuple(ids)
    for i in parts.get("labelled", ()):
        if owner.get(i, "train") != "train" or ("train" in parts and i not in owner):
            where = f"in {owner[i]}" if i in owner else "not in train"
            raise DataError(
                f"{path}: labelled names exam {i}, which is {where}; it lists training exams whose labels may be used"
            )
    return Parts(path, **parts)


def subset(ids: Sequence[str], limit: float | int, seed: int, keep: Container[str] = ()) -> list[str]:
    """A part of the exams, in their order: a smaller limit of the same seed takes some of those of a larger one.

    Args:
        ids: the exams.
        limit: their number (int), or a fraction of them (float), of which at least one is taken.
        seed: of the order in which they are taken, which depends on nothing but the ids themselves.
        keep: exams that are taken first.

    Raises :class:`~deepatlas.errors.DataError` if the number is above that of the exams.
    """
    count = limit if isinstance(limit, int) else max(1, round(limit * len(ids)))
    if count > len(ids):
        raise DataError(
            f"data.limit={limit}: there are only {len(ids)} exams to train on; give as many or fewer"
        )

    def order(name: str) -> tuple[bool, bytes]:
        return name not in keep, hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()

    taken = set(sorted(ids, key=order)[:count])
    return [i for i in ids if i in taken]


def _among(ids: Iterable[str], wanted: Iterable[str]) -> list[str]:
    wanted = set(wanted)
    return [i for i in ids if i in wanted]


def _some(ids: Sequence[str]) -> str:
    return f"exam {ids[0]!r}" if len(ids) == 1 else f"{len(ids)} exams ({', '.join(map(repr, ids[:3]))})"
