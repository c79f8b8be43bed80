"""SimpleITK, imported on first use: training from a store does not need it."""

from __future__ import annotations

from typing import Any

from deepatlas.errors import DataError


def simpleitk() -> Any:
    """The module, silenced; :class:`~deepatlas.errors.DataError` where it is not installed."""
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise DataError("reading and writing image files needs SimpleITK; pip install SimpleITK") from error
    # Otherwise warnings of the C++ library would reach the user's terminal unasked.
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk
