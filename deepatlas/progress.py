"""A progress bar on stderr."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def bar(
    items: Iterable[Any], total: int | None, title: str, unit: str = "exam", *, show: bool = True
) -> Iterable[Any]:
    """Iterate over ``items`` and show a progress bar, unless ``show`` is false or stderr is not a terminal."""
    if not show:
        return items
    return tqdm(items, total=total, desc=title, unit=unit, leave=False, disable=None)
