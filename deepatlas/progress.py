"""A progress bar on stderr."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def bar(
    items: Iterable[Any],
    total: int | None,
    title: str,
    unit: str = "exam",
    *,
    show: bool = True,
    done: int = 0,
) -> Iterable[Any]:
    """Iterate over ``items`` and show a progress bar, unless ``show`` is false or stderr is not a terminal.

    ``done`` of the ``total`` are done already, and not among the items.
    """
    if not show:
        return items
    return tqdm(items, total=total, initial=done, desc=title, unit=unit, leave=False, disable=None)
