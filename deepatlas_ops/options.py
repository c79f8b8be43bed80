"""Checks of options, for tensors and for arrays. Knows neither PyTorch nor NumPy.

A failed check raises one line that names the function, the argument, what was expected and what was passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

# The integers that stand for these options in the kernels.
MODES = {"linear": 0, "nearest": 1}
PADDINGS = {"border": 0, "zeros": 1, "reflection": 2}
STEPS = ("moving", "fixed", "literal", "direction_cosine", "newton")
# The longest text of a value in a message.
_LONGEST = 120


def fail(op: str, argument: str, expected: str, got: object) -> NoReturn:
    raise ValueError(f"{op}: {argument}: expected {expected}, got {got}")


def shown(value: object) -> str:
    """A value in a message: in one line, and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def plain(value: Any) -> Any:
    """The Python number of a NumPy scalar; everything else is returned as it is."""
    item = getattr(value, "item", None)
    return item() if item is not None and getattr(value, "shape", None) == () else value


def shape(sizes: Iterable[object]) -> str:
    return f"[{', '.join(str(n) for n in sizes)}]"


def choice(op: str, argument: str, value: object, allowed: Iterable[str]) -> None:
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
        fail(op, argument, f"one of {', '.join(allowed)}", shown(value))


def size(op: str, value: Sequence[int], integers: tuple[type, ...] = (int,)) -> list[int]:
    """Three positive integers D, H, W, each of one of the types ``integers``."""
    try:
        sizes = list(value)
    except TypeError:
        fail(op, "size", "three sizes (D, H, W)", shown(value))
    whole = all(isinstance(n, integers) and not isinstance(n, bool) for n in sizes)
    if len(sizes) != 3 or not whole or any(n < 1 for n in sizes):
        fail(op, "size", "three positive integers (D, H, W)", shown(value))
    return sizes


def positive(op: str, argument: str, value: object, *, zero: bool = False) -> None:
    """A finite number above 0, or of at least 0 with ``zero``."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if (value >= 0 if zero else value > 0) and value != float("inf"):
            return
    fail(op, argument, "a number of at least 0" if zero else "a number above 0", shown(value))


def count(op: str, argument: str, value: object) -> None:
    """An integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        fail(op, argument, "an integer of at least 1", shown(value))


def window(op: str, value: object) -> None:
    """The width of the windows of a correlation: None or a positive odd integer."""
    integer = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (integer and value > 0 and value % 2 == 1):  # type: ignore[operator]
        fail(op, "window", "None or a positive odd integer", shown(value))
