"""Registration of the ops, and the choice of the backend that runs them.

Each op has one schema in the namespace ``deepatlas_ops``, a PyTorch body registered as ``CompositeExplicitAutograd``,
a fake kernel for tracing, and an autograd formula whose backward is an op itself. The compiled library implements the
same schemas for the dispatch keys CPU and CUDA. So the PyTorch body runs until the library is loaded, and the kernel
afterwards.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from . import _transforms

NAMESPACE = "deepatlas_ops"
BACKENDS = ("native", "torch", "auto")
BACKEND_VARIABLE = "DEEPATLAS_OPS_BACKEND"

_library = torch.library.Library(NAMESPACE, "DEF")
_chosen: ContextVar[str | None] = ContextVar("deepatlas_ops_backend", default=None)
_warned = False
# The autograd function of each op, which torch.func needs.
_functions: dict[str, type[torch.autograd.Function]] = {}


def register(
    name: str,
    schema: str,
    body: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Define one op.

    Args:
        name, schema: the name of the op, and its schema without the name.
        body: the PyTorch body, called with the arguments of the schema.
        fake: returns empty tensors with the shapes and dtypes of the results.
        setup_context, backward: the autograd formula, as ``torch.library.register_autograd`` takes it. Without
            ``backward``, differentiating the op raises an error instead of losing the gradient.
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
    """The requested backend: that of the innermost ``use_backend``, else that of the environment, else "auto"."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    chosen = os.environ.get(BACKEND_VARIABLE, "auto")
    if chosen not in BACKENDS:
        raise ValueError(f"{BACKEND_VARIABLE}: expected one of {', '.join(BACKENDS)}, got {chosen!r}")
    return chosen


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Choose what runs the ops that are called inside the ``with`` block, in the current thread or asyncio task.

    Args:
        backend: ``"native"`` runs the compiled kernels, and raises a ``RuntimeError`` with the reason if they cannot be
            built or do not support the device. ``"torch"`` runs the PyTorch bodies under ordinary autograd. ``"auto"``
            runs the compiled kernels where it can and the bodies elsewhere, after one warning with the reason if the
            kernels cannot be built.

    Outside of all blocks the environment variable ``DEEPATLAS_OPS_BACKEND`` chooses the backend; without it the
    backend is ``"auto"``. A function compiled by ``torch.compile`` keeps the backend that it was compiled with.

    Raises:
        ValueError: an unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"use_backend: backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    token = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(token)


def runs_reference() -> bool:
    """Whether the "torch" backend is requested. If not, this loads the compiled library, or reports why it cannot."""
    backend = requested_backend()
    if backend == "torch":
        return True
    # Imported here, so that importing the package neither builds the library nor looks for a compiler.
    from . import _build

    info = _build.load()
    if info.native:
        return False
    if backend == "native":
        raise RuntimeError(
            f"{NAMESPACE}: the native backend was requested but is not available: {info.reason}"
        )
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"{NAMESPACE}: running the PyTorch bodies because the native kernels are not available: {info.reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    return False


# What torch.compiler.assume_constant_result does. It would import torch._dynamo, which takes every program two seconds
# at its start, also those that compile nothing.
runs_reference._dynamo_marked_constant = True  # type: ignore[attr-defined]


def call(name: str, reference: Callable[..., Any], *args: Any) -> Any:
    """Run op ``name``, or with the backend "torch" its PyTorch body ``reference`` under ordinary autograd.

    Outside of compiled code the body also runs where there is no kernel for the device of the first tensor. The
    registered op would use the body's backward op, which saves memory but computes the forward pass again and takes
    two to four times as long as ordinary autograd.
    """
    if runs_reference() or not (torch.compiler.is_compiling() or _has_kernel(args)):
        return reference(*args)
    return run(name, *args)


def run(name: str, *args: Any) -> Any:
    """Run the registered op ``name``, also under the transforms of torch.func."""
    if not torch.compiler.is_compiling():
        _transforms.refuse_forward_mode(f"{NAMESPACE}.{name}", args)
        if _transforms.active():
            return _functions[name].apply(*args)
    return getattr(torch.ops.deepatlas_ops, name)(*args)


def _has_kernel(args: tuple[Any, ...]) -> bool:
    """Whether the library has kernels for the device of the first tensor.

    Raises:
        RuntimeError: it has none, and the "native" backend is requested.
    """
    from . import _build

    info = _build.load()
    kind = next(a.device.type for a in args if isinstance(a, Tensor))
    found = info.native and (kind == "cpu" or (kind == "cuda" and info.cuda))
    if not found and requested_backend() == "native":
        reason = info.cuda_reason or f"there are none for {kind}"
        raise RuntimeError(f"{NAMESPACE}: no native kernels for {kind} tensors: {reason}")
    return found


# ---- gradients that are not needed ------------------------------------------------------------------


def gradient_like(of: Tensor, needed: bool) -> Tensor:
    """What a fake backward kernel returns for the gradient of a tensor: an empty tensor if it is not needed."""
    return of.new_empty(of.shape if needed else 0)


def keep_needed(grads: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients that a backward op returned, with None in place of those that autograd does not need."""
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))
