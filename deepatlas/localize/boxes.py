"""Boxes of an atlas on exams, and boxes around structures of a template."""

from __future__ import annotations

from deepatlas.model.project_box import CarriedBox, box_in_atlas, carry_box, coverage

__all__ = ["CarriedBox", "box_in_atlas", "carry_box", "coverage"]
