"""Structures that overlap: which pairs do, and which of them a label image shows on top."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

import numpy as np
from numpy.typing import NDArray

from deepatlas.space.labels import Labels

# Structures that share this part of the smaller one, or more, overlap. Less is the carelessness of drawing.
OVERLAP = 0.01


def overlapping_pairs(exams: Iterable[Labels], labels: Mapping[str, int]) -> list[list[str]]:
    """The pairs of structures that were drawn over each other, ``[lower, upper]`` as the label images show them.

    Args:
        exams: what was drawn in each exam.
        labels: ``{name: id}`` of the structures; others do not count.
    """
    named = {identity: name for name, identity in labels.items()}
    shared: Counter[tuple[int, int]] = Counter()
    smaller: Counter[tuple[int, int]] = Counter()
    for exam in exams:
        for (lower, upper), count in exam.shared().items():
            if lower in named and upper in named:
                shared[lower, upper] += count
                smaller[lower, upper] += min(int(exam.mask(i).sum()) for i in (lower, upper))
    pairs = []
    for first, second in sorted({(min(pair), max(pair)) for pair in shared}):
        ways = (first, second), (second, first)
        if sum(shared[way] for way in ways) >= OVERLAP * sum(smaller[way] for way in ways):
            pairs.append([named[identity] for identity in max(ways, key=lambda way: shared[way])])
    return pairs


def rows_of(pairs: Iterable[Sequence[str]], names: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of names as pairs of their rows in ``names``; those with another name are left out."""
    row = {name: index for index, name in enumerate(names)}
    return [(row[a], row[b]) for a, b in pairs if a in row and b in row]


def overlap_matrix(count: int, pairs: Iterable[tuple[int, int]]) -> NDArray[np.bool_]:
    """Bool ``[count, count]``: which structures may have a voxel in common, by pairs of rows."""
    matrix = np.zeros((count, count), dtype=bool)
    for pair in pairs:
        matrix[pair] = matrix[pair[::-1]] = True
    return matrix


def stack_order(sizes: Sequence[float], pairs: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """The rows of structures in the order in which a label image shows them, the lowest first.

    Of a pair ``(lower, upper)`` the upper one is the later; otherwise the smaller one is.
    """
    by_size = sorted(range(len(sizes)), key=lambda row: -sizes[row])
    sorter = TopologicalSorter({row: [] for row in by_size})
    for lower, upper in pairs:
        sorter.add(upper, lower)
    try:
        sorter.prepare()
    except CycleError:
        # The pairs come from several exams, which may contradict each other.
        return tuple(by_size)
    rows: list[int] = []
    while sorter.is_active():
        ready = sorter.get_ready()
        rows += sorted(ready, key=by_size.index)
        sorter.done(*ready)
    return tuple(rows)
