"""The metrics that experiments are compared by. To compare by another column of ``metrics.csv``, add a line here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A column of ``metrics.csv``.

    ``digits`` are those that tables show. A missed structure (one with an empty prediction) counts with the value
    ``missed``; where that is None it has no value, is left out of means and differences, and is counted.
    """

    column: str
    title: str
    unit: str
    digits: int
    higher_is_better: bool
    missed: float | None

    @property
    def heading(self) -> str:
        """The title with the unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float | None, sign: bool = False) -> str:
        """A value as tables show it, ``n/a`` where there is none."""
        return "n/a" if value is None else f"{value:{'+' if sign else ''}.{self.digits}f}"


MEASURES = (
    Measure("dice", "Dice", "", 3, True, 0.0),
    Measure("hd95_mm", "HD95", "mm", 3, False, None),
    Measure("surface_dice", "Surface Dice", "", 3, True, 0.0),
    Measure("asd_mm", "ASD", "mm", 3, False, None),
)
