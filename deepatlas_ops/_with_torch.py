"""Runs something once, as soon as the process has imported PyTorch, without importing PyTorch itself.

``deepatlas_ops`` registers its ops in this way. Programs find them in ``torch.ops.deepatlas_ops`` whichever of the two
packages they import first, and torch.compile finds every public name in its place; a program that only works with
arrays never imports PyTorch.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_PACKAGE = __name__.rpartition(".")[0]
# A thread that has started the task must not start it again while it imports PyTorch for it.
_lock = threading.RLock()
_task: Callable[[], None] | None = None
_running = False
_failure: Exception | None = None


def run(task: Callable[[], None]) -> None:
    """Run ``task`` now if PyTorch is there, otherwise when it has been imported or :func:`now` is called."""
    global _task
    _task = task
    if "torch" in sys.modules and not _imports("torch"):
        now()
    else:
        sys.meta_path.insert(0, _finder)


def now() -> None:
    """Run the task, unless it has run. It may import PyTorch. If it has failed, this raises the same error again."""
    global _task, _running, _failure
    with _lock:
        if _failure is not None:
            raise _failure
        if _task is None or _running:
            return
        _running = True
        try:
            _task()
            _task = None
        except ImportError:
            # PyTorch may be installed later.
            raise
        except Exception as error:
            _failure = error
            raise
        finally:
            _running = False
    with contextlib.suppress(ValueError):
        sys.meta_path.remove(_finder)


def _imports(name: str) -> bool:
    """Whether a module is being imported: its code has not come to its end."""
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))


def _torch_is_there() -> None:
    # A module of this package that has caused the import of PyTorch is not complete; the task would import it again.
    if any(_imports(name) for name in list(sys.modules) if name.startswith(f"{_PACKAGE}.")):
        return
    # With a PyTorch that the ops do not know, those who only use arrays are not disturbed: the first use of an op says
    # what is wrong.
    with contextlib.suppress(Exception):
        now()


class _Finder:
    """Finds PyTorch as the other finders do, and has its loader call :func:`_torch_is_there` at its end."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torch" or _task is None:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            if (spec := find(name, path, target)) is not None:
                if spec.loader is not None:
                    _follow(spec.loader)
                return spec
        return None


def _follow(loader: importlib.abc.Loader) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        _torch_is_there()

    # Only this object is changed, which serves PyTorch alone.
    loader.exec_module = exec_module  # type: ignore[method-assign]


_finder = _Finder()
