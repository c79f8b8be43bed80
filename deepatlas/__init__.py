"""DeepATLAS: every voxel of a CT labelled with its anatomical coordinate, and what follows from that.

>>> import deepatlas
>>> model = deepatlas.load("runs/phantom")
>>> coords = model.coordinates("exam.nii.gz")  # [3, D, H, W], on the exam's own grid
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from deepatlas.errors import DataError, DeepAtlasError

try:
    __version__ = version("deepatlas")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0.1.0+source"

__all__ = ["DataError", "DeepAtlasError", "Model", "Template", "__version__", "load"]


def load(name, device: str | None = None, *, refine: int = 0, average: int = 1):
    """A trained :class:`Model`, from a run folder or a model file; see :meth:`Model.load`."""
    from deepatlas.model.engine import Model

    return Model.load(name, device=device, refine=refine, average=average)


def __getattr__(name: str):
    # torch is imported only when a model or a template is really asked for: `deepatlas --help` stays quick.
    if name == "Model":
        from deepatlas.model.engine import Model

        return Model
    if name == "Template":
        from deepatlas.localize.template.file import Template

        return Template
    raise AttributeError(f"module 'deepatlas' has no attribute {name!r}")
