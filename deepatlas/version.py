"""The version of the package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("deepatlas")
except PackageNotFoundError:
    # The package runs from a source tree that was never installed.
    __version__ = "0.1.0+source"
