"""Registration of the ops and the choice of backend.

Each op is one schema in the namespace ``deepatlas_ops``, with its PyTorch body registered as
``CompositeExplicitAutograd``, a fake kernel for tracing and an autograd formula whose backward is an op
itself.
The compiled library only implements the CPU and CUDA keys of the same schemas: before it is loaded the
PyTorch body runs, afterwards the native kernel wins.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch

from . import _transforms

NAMESPACE = "deepatlas_ops"
BACKENDS = ("native", "torch", "auto")
BACKEND_VARIABLE = "DEEPATLAS_OPS_BACKEND"

_library = torch.library.Library(NAMESPACE, "DEF")  # noqa: TOR901 - the module lives as long as the process
_chosen: ContextVar[str | None] = ContextVar("deepatlas_ops_backend", default=None)
_warned = False
_functions: dict[str, type[torch.autograd.Function]] = {}  # by op, for torch.func


def register(
    name: str,
    schema: str,
    body: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Define one op: schema without the name, PyTorch body, fake kernel and, if differentiable, autograd.

    An op without ``backward`` refuses to be differentiated instead of silently dropping the gradient.
    """
    qualified = f"{NAMESPACE}::{name}"
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, body, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    if backward is None:
        backward = _transforms.refusing(f"{NAMESPACE}.{name}")
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
    _functions[name] = _transforms.function(
        lambda *args: getattr(torch.ops.deepatlas_ops, name)(*args), setup_context, backward
    )


def requested_backend() -> str:
    """The backend asked for: the innermost ``use_backend``, else the environment, else "auto"."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    chosen = os.environ.get(BACKEND_VARIABLE, "auto")
    if chosen not in BACKENDS:
        raise ValueError(f"{BACKEND_VARIABLE}: expected one of {', '.join(BACKENDS)}, got {chosen!r}")
    return chosen


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Choose where the ops run, for the calls inside the ``with`` block (of this thread or task).

    Args:
        backend: ``"native"`` runs the compiled kernels and raises ``RuntimeError`` with the reason if they
            cannot be built; ``"torch"`` runs the PyTorch bodies under ordinary autograd; ``"auto"`` runs the
            compiled kernels if they can be built and warns once, with the reason, if not.

    Outside any block the environment variable ``DEEPATLAS_OPS_BACKEND`` decides, and ``"auto"`` without it.
    A function compiled by ``torch.compile`` keeps the backend it was compiled under.

    Raises:
        ValueError: another name.
    """
    if backend not in BACKENDS:
        raise ValueError(f"use_backend: backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    token = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(token)


@torch.compiler.assume_constant_result
def runs_reference() -> bool:
    """Whether the coming call is for the PyTorch bodies; loads the compiled library if it is not."""
    backend = requested_backend()
    if backend == "torch":
        return True
    from . import _build  # here, so that importing the package neither builds nor looks for a compiler

    info = _build.load()
    if info.native:
        return False
    if backend == "native":
        raise RuntimeError(
            f"{NAMESPACE}: the native backend was asked for but is not available: {info.reason}"
        )
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"{NAMESPACE}: running the PyTorch bodies, the native kernels are not available: {info.reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    return False


def call(name: str, reference: Callable[..., Any], *args: Any) -> Any:
    """Run op ``name``, or its PyTorch body under ordinary autograd when the backend is "torch".

    Without a native kernel for the device of the first tensor the body runs too, outside of compiled code: the
    backward op of a body recomputes the forward, which spares memory but takes two to four times as long as
    ordinary autograd.
    """
    if runs_reference() or not (torch.compiler.is_compiling() or _has_kernel(args)):
        return reference(*args)
    return run(name, *args)


def run(name: str, *args: Any) -> Any:
    """Run the registered op ``name``, under the transforms of torch.func too."""
    if not torch.compiler.is_compiling():
        _transforms.refuse_forward_mode(f"{NAMESPACE}.{name}", args)
        if _transforms.active():
            return _functions[name].apply(*args)
    return getattr(torch.ops.deepatlas_ops, name)(*args)


def _has_kernel(args: tuple) -> bool:
    """Whether the library holds kernels for the device; RuntimeError if not and "native" was asked for."""
    from . import _build

    info = _build.load()
    kind = next(a.device.type for a in args if isinstance(a, torch.Tensor))
    found = info.native and (kind == "cpu" or (kind == "cuda" and info.cuda))
    if not found and requested_backend() == "native":
        reason = info.cuda_reason or f"there are none for {kind}"
        raise RuntimeError(f"{NAMESPACE}: no native kernels for {kind} tensors: {reason}")
    return found
