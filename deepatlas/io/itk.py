"""SimpleITK, imported on first use: it is slow to import, and training from a store does not need it."""

from __future__ import annotations

from typing import Any


def simpleitk() -> Any:
    """The SimpleITK module, with the warnings of its C++ library switched off: they would go to the terminal."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk
