"""A bar on stderr, where tqdm is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


def bar(
    items: Iterable[Any], total: int | None, title: str, unit: str = "exam", *, show: bool = True
) -> Iterable[Any]:
    """``items``, with a bar while they are gone through; without tqdm one line when it begins."""
    if not show:
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        print(f"{title}: {total} {unit}s", file=sys.stderr)
        return items
    return tqdm(items, total=total, desc=title, unit=unit, leave=False, disable=None)
