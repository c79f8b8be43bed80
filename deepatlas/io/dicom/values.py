"""Values of DICOM elements, which may be missing, empty or of the wrong type, given once or for each frame."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import config
from pydicom.tag import Tag

_DECIMAL = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings and log lines of pydicom, which quote the values of a header."""
    logger = logging.getLogger("pydicom")
    level, mode = logger.level, config.settings.reading_validation_mode
    logger.setLevel(logging.CRITICAL)
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        config.settings.reading_validation_mode = mode


class Plain:
    """The values of a classic image, which has one frame."""

    def __init__(self, ds: Any) -> None:
        self._ds = ds
        # Whether a number was written with a decimal comma, which the standard forbids.
        self.commas = False

    def _floats(self, item: Any, keyword: str) -> list[float]:
        values = floats_of(item, keyword)
        if not values and (values := comma_floats(item, keyword)):
            self.commas = True
        return values

    def numbers(self, keyword: str, count: int) -> NDArray[np.float64] | None:
        values = self._floats(self._ds, keyword)
        return np.array([values]) if len(values) == count and np.isfinite(values).all() else None

    def number(self, keyword: str) -> float | None:
        values = self._floats(self._ds, keyword)
        return values[0] if values and math.isfinite(values[0]) else None

    def text(self, keyword: str) -> str:
        return str(next(iter(values_of(self._ds, keyword)), "")).strip()

    def rescale(self) -> NDArray[np.float64]:
        slope, intercept = self.number("RescaleSlope"), self.number("RescaleIntercept")
        return np.array([[np.nan if v is None else v for v in (slope, intercept)]])

    @staticmethod
    def same(values: NDArray, tolerance: float = 1e-6) -> bool:
        return bool(np.ptp(values, axis=0).max() <= tolerance)


class FunctionalGroups(Plain):
    """The values of an enhanced image, shared by all frames or given for each."""

    _GROUP = {
        "PixelSpacing": "PixelMeasuresSequence",
        "SliceThickness": "PixelMeasuresSequence",
        "ImageOrientationPatient": "PlaneOrientationSequence",
        "ImagePositionPatient": "PlanePositionSequence",
        "RescaleSlope": "PixelValueTransformationSequence",
        "RescaleIntercept": "PixelValueTransformationSequence",
        "RescaleType": "PixelValueTransformationSequence",
        "ConvolutionKernel": "CTReconstructionSequence",
        "KVP": "CTXRayDetailsSequence",
        "WindowWidth": "FrameVOILUTSequence",
    }

    def __init__(self, ds: Any, frames: int) -> None:
        super().__init__(ds)
        self._shared = next(iter(values_of(ds, "SharedFunctionalGroupsSequence")), None)
        self._frames = list(values_of(ds, "PerFrameFunctionalGroupsSequence"))
        self._count = frames

    def _items(self, keyword: str) -> list[Any]:
        """For each frame the item that holds ``keyword``, or None."""
        group = self._GROUP[keyword]

        def inside(item: Any) -> Any:
            found = next(iter(values_of(item, group)), None) if item is not None else None
            return found if found is not None and tag_of(keyword) in found else None

        shared = inside(self._shared)
        own = [inside(item) for item in self._frames]
        if len(own) != self._count:
            own = [None] * self._count
        return [mine if mine is not None else shared for mine in own]

    def numbers(self, keyword: str, count: int) -> NDArray[np.float64] | None:
        rows = [self._floats(item, keyword) if item is not None else [] for item in self._items(keyword)]
        if any(len(row) != count for row in rows) or not np.isfinite(rows).all():
            return None
        return np.array(rows)

    def number(self, keyword: str) -> float | None:
        values = self._floats(next((i for i in self._items(keyword) if i is not None), None), keyword)
        return values[0] if values and math.isfinite(values[0]) else None

    def text(self, keyword: str) -> str:
        item = next((i for i in self._items(keyword) if i is not None), None)
        return str(next(iter(values_of(item, keyword)), "")).strip()

    def rescale(self) -> NDArray[np.float64]:
        slopes, intercepts = self.numbers("RescaleSlope", 1), self.numbers("RescaleIntercept", 1)
        none = np.full((self._count, 1), np.nan)
        return np.hstack([none if slopes is None else slopes, none if intercepts is None else intercepts])


@cache
def tag_of(keyword: str) -> Any:
    """pydicom's tag of a keyword, cached because the look-up takes longer than reading the element."""
    return Tag(keyword)


def values_of(ds: Any, keyword: str) -> list[Any]:
    """The values of an element as a list; empty if it is missing, empty or cannot be converted to its type."""
    if ds is None:
        return []
    try:
        value = ds[tag_of(keyword)].value
    except Exception:
        # The element is missing, or is not the number that its type promises: pydicom converts on access.
        return []
    if value is None or value == "":
        return []
    if isinstance(value, str | bytes | int | float):
        return [value]
    return list(value) if hasattr(value, "__iter__") and not hasattr(value, "components") else [value]


def text_of(ds: Any, keyword: str) -> str:
    return "\\".join(str(v) for v in values_of(ds, keyword)).strip().strip("\0")


def floats_of(ds: Any, keyword: str) -> list[float]:
    try:
        return [float(v) for v in values_of(ds, keyword)]
    except (TypeError, ValueError):
        return []


def comma_floats(ds: Any, keyword: str) -> list[float]:
    """The numbers of an element that has decimal commas ("0,9766"); empty if it is none."""
    texts = [str(value).strip(" \0") for value in values_of(ds, keyword)]
    if not any("," in text for text in texts) or not all(map(_DECIMAL.fullmatch, texts)):
        return []
    return [float(text.replace(",", ".")) for text in texts]


def int_of(ds: Any, keyword: str) -> int | None:
    values = floats_of(ds, keyword)
    return int(values[0]) if values and math.isfinite(values[0]) else None
