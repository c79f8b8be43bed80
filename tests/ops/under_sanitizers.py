"""Calls every native op and its gradient with hostile inputs. test_sanitizer.py runs it in a separate process.

The library is built by the package itself, with -fsanitize added to its flags, and includes the bindings to PyTorch and
the CUDA launchers, compiled for the CPU (tests/emu/emulated.py). An access outside a buffer or undefined arithmetic
ends the process. With usual inputs, the launchers must give what the CPU kernels give, whatever the number of blocks,
the width of indices and the order of threads; with hostile ones, they must not leave their tensors.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "emu"))

import emulated  # noqa: E402

# The compiler that this process starts is quicker without the sanitizers.
os.environ.pop("LD_PRELOAD", None)
# With two threads, the slabs of a volume are scattered to at the same time.
torch.set_num_threads(2)
FLAGS = (
    *("-O0", "-g1", "-march=native", "-fopenmp", "-fvisibility=hidden", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"),
    # What these check at every access takes half of the time of the compiler, and the address sanitizer finds it too.
    "-fno-sanitize=vptr,null,alignment,object-size,pointer-overflow",
    # Checks of addresses that are calls compile faster.
    "--param=asan-instrumentation-with-call-threshold=0",
    # All of the PyTorch side of a CUDA build is in the bindings. GCC 12 warns of its own avx512fintrin.h (bug 105593).
    *("-Wall", "-Wextra", "-Werror", "-Wno-maybe-uninitialized"),
)
SOURCES = tempfile.TemporaryDirectory()
emulated.use(Path(SOURCES.name) / "csrc", FLAGS)

import deepatlas_ops as ops  # noqa: E402
from deepatlas_ops import _build  # noqa: E402

HOSTILE = (float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 6e4, 2.0**31, -(2.0**31), 1.0, -1.0, 0.0)
HALVES = (torch.float16, torch.bfloat16)
SIZES = [
    ((1, 1, 1), (1, 1, 1)),
    ((1, 1, 1), (2, 3, 4)),
    ((3, 5, 7), (1, 1, 1)),
    ((1, 6, 1), (5, 1, 9)),
    ((2, 1, 2), (3, 2, 1)),
    # So large that sampling and inversion, also their scatter into slabs, are shared out among the threads.
    ((9, 8, 7), (9, 16, 17)),
    ((13, 2, 131), (3, 2, 129)),
]


def hostile(shape, dtype, share=0.2):
    """Values in about the range of a map, some of which are replaced by unusual ones."""
    x = torch.rand(shape) * 2.4 - 1.2
    odd = torch.tensor(HOSTILE)[torch.randint(len(HOSTILE), shape)]
    return torch.where(torch.rand(shape) < share, odd, x).to(dtype).requires_grad_()


def pull(out):
    """Computes every gradient of every output."""
    outs = [t for t in (out if isinstance(out, tuple) else (out,)) if t.requires_grad]
    for t in outs:
        t.backward(hostile(tuple(t.shape), t.dtype).detach(), retain_graph=True)


def exercise(size, out, batch, dtype, shares=(0.0, 0.3)):
    """Every op with unusual values in volumes, and in so large a share of maps."""
    # Many iterations are nothing else on a large grid.
    many = 70 if torch.Size(out).numel() < 1000 else 7
    volume = hostile((batch, 2, *size), dtype)
    for share in shares:
        coords, moving, fixed = (hostile((batch, 3, *s), dtype, share) for s in (out, size, out))
        theta = hostile((batch, 3, 4), dtype, share)
        mask = (torch.rand(batch, 1, *size) > 0.4).to(dtype)
        for padding in ("border", "zeros", "reflection"):
            for mode in ("linear", "nearest"):
                options = {"mode": mode, "padding": padding}
                pull(ops.resample(volume, coords, **options))
                pull(ops.warp(volume, coords, **options))
                pull(ops.affine_resample(volume, theta, out, **options))
        for step in ("moving", "fixed", "literal", "direction_cosine", "newton"):
            for tolerance in (0.0, 0.1):
                pull(
                    ops.implicit_warp(moving, fixed, iterations=3, step=step, tolerance=tolerance, mask=mask)
                )
        for iterations, tolerance in ((2, 0.0), (many, 0.0), (many, 0.01)):
            settings = {"iterations": iterations, "tolerance": tolerance, "gradient": "unrolled"}
            pull(ops.implicit_warp(moving, fixed, **settings))
        for weight in (None, mask, torch.zeros_like(mask)):
            for kind in ("log", "det"):
                pull(ops.smoothness_loss(moving, weight, orthonormality=kind))
            for window in (None, 1, 3, 33):
                pull(ops.ncc(volume, hostile(tuple(volume.shape), dtype, share), weight, window=window))
            pull(ops.edge_difference(volume, hostile(tuple(volume.shape), dtype, share), weight))
            for differences in ("central", "digital"):
                ops.folds(moving, weight, differences=differences)
            ops.log_jacobian_std(moving, weight)
        for normalize in (False, True):
            pull(ops.log_jacobian(moving, normalize_columns=normalize))
    pull(ops.resize(volume, out))
    pull(ops.resize(volume, out, channels_last=True))
    pull(ops.piecewise_linear(volume, (-1, 0, 1), (0, 1, 3)))
    for channels, groups in ((2, 1), (27, 9)):
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            x = hostile((batch, channels, *size), dtype).detach().contiguous(memory_format=layout)
            affine = torch.randn(2, channels).requires_grad_()
            pull(ops.group_norm_leaky_relu(x.requires_grad_(), groups, *affine))


# ---- the CUDA launchers against the CPU kernels ------------------------------------------------------


def results(call, inputs):
    """The outputs of a call, and its gradients by every input for a random gradient of every output."""
    outs = call(*inputs)
    outs = outs if isinstance(outs, tuple) else (outs,)
    found = [out.detach() for out in outs]
    for out in outs:
        if out.requires_grad:
            pulled = torch.randn(out.shape).to(out.dtype)
            found += torch.autograd.grad(out, inputs, pulled, retain_graph=True, allow_unused=True)
    return found


# Their gradients are added up with atomics, in an order that CUDA leaves open.
ATOMIC = ("resample", "warp", "affine_resample", "implicit_warp")


def agree(emulation, name, call, *inputs):
    """Compare the launchers with the CPU kernels: with one block and many, and with indices of 32 and 64 bits.

    Without atomics, the same call gives the same bits, although blocks and threads run in another order each time.
    """
    state = torch.get_rng_state()
    want = results(call, inputs)
    before, last = None, []
    for blocks, limit in ((1, emulated.LARGEST), (3, 0), (3, 0), (emulated.LARGEST, emulated.LARGEST)):
        torch.set_rng_state(state)
        with emulation.cuda(blocks, limit):
            found = results(call, inputs)
        if before == (blocks, limit) and not name.startswith(ATOMIC):
            for number, (first, second) in enumerate(zip(last, found, strict=True)):
                assert first is None or torch.equal(first, second), (
                    f"{name}: result {number} depends on the order"
                )
        before, last = (blocks, limit), found
        for number, (got, expected) in enumerate(zip(found, want, strict=True)):
            if expected is None or not expected.numel():
                assert got is None or got.shape == expected.shape, f"{name}: result {number}"
                continue
            # Sums are taken in another order, and rounded to the type of the tensors.
            rounding = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
            allowed = rounding[inputs[0].dtype] * max(1.0, float(expected.double().abs().max()))
            apart = float((got.double() - expected.double()).abs().max())
            assert apart <= allowed, (
                f"{name} ({blocks} blocks, limit {limit}): result {number} is {apart:g} off"
            )


def compare(emulation, size, out, batch, dtype):
    def values(*shape, scale=1.0):
        return (scale * (torch.rand(shape) * 2 - 1)).to(dtype).requires_grad_()

    def near_identity(shape):
        axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in shape]
        z, y, x = torch.meshgrid(*axes, indexing="ij")
        identity = torch.stack((x, y, z)).expand(batch, -1, -1, -1, -1)
        # Less than the distance of two voxels, so that the map does not fold.
        noise = torch.randn(identity.shape) * 0.3 / max(shape)
        return (0.9 * identity + noise).to(dtype).requires_grad_()

    volume, other, coords = (
        values(batch, 2, *size),
        values(batch, 2, *size),
        values(batch, 3, *out, scale=1.3),
    )
    theta = (torch.eye(3, 4) + 0.2 * torch.randn(batch, 3, 4)).to(dtype).requires_grad_()
    moving, fixed = near_identity(size), near_identity(out)
    mask = (torch.rand(batch, 1, *size) > 0.3).to(dtype)

    def check(name, call, *inputs):
        agree(emulation, f"{name} {size} {out} {dtype}", call, *inputs)

    for padding in ("border", "zeros", "reflection"):
        for mode in ("linear", "nearest"):
            options = {"mode": mode, "padding": padding}
            check("resample", lambda v, c, o=options: ops.resample(v, c, **o), volume, coords)
            check("warp", lambda v, c, o=options: ops.warp(v, c, **o), volume, coords)
            check(
                "affine_resample", lambda v, t, o=options: ops.affine_resample(v, t, out, **o), volume, theta
            )
    for gradient in ("implicit", "unrolled"):
        check(
            f"implicit_warp {gradient}",
            lambda m, f, g=gradient: ops.implicit_warp(m, f, iterations=4, gradient=g),
            moving,
            fixed,
        )
    for weight in (None, mask):
        check("smoothness_loss", lambda m, w=weight: ops.smoothness_loss(m, w), moving)
        for window in (None, 3, 5):
            check("ncc", lambda a, b, w=weight, n=window: ops.ncc(a, b, w, window=n), volume, other)
        check("edge_difference", lambda a, b, w=weight: ops.edge_difference(a, b, w), volume, other)
        ops_folds = [ops.folds(moving, weight, differences=d) for d in ("central", "digital")]
        with emulation.cuda(2):
            emulated_folds = [ops.folds(moving, weight, differences=d) for d in ("central", "digital")]
        for got, expected in zip(emulated_folds, ops_folds, strict=True):
            # A determinant near 0 may be rounded to either side.
            assert (got.double() - expected.double()).abs().max() <= 0.02, "folds"
    for normalize in (False, True):
        check("log_jacobian", lambda m, n=normalize: ops.log_jacobian(m, normalize_columns=n), moving)
    check("resize", lambda v: ops.resize(v, out), volume)
    check("resize channels last", lambda v: ops.resize(v, out, channels_last=True), volume)
    check("piecewise_linear", lambda v: ops.piecewise_linear(v, (-1, 0, 1), (0, 1, 3)), volume)


def main():
    torch.manual_seed(0)
    with ops.use_backend("native"):
        info = _build.load()
        assert info.native, info.reason
        emulation = emulated.Emulation(Path(info.directory) / f"{_build.LIBRARY}.so")
        # With an argument, a tensor whose memory is too small shows that the sanitizer finds bugs.
        if len(sys.argv) > 1:
            field = torch.zeros(1, 3, 4, 5, 6)
            field.untyped_storage().resize_(4)
            if sys.argv[1] == "cuda":
                with emulation.cuda():
                    ops.log_jacobian(field)
            ops.log_jacobian(field)
        for i, (size, out) in enumerate(SIZES):
            exercise(size, out, 2, torch.float32)
            # Each of the wide and the narrow types, at every size with maps of one kind.
            for j, dtype in enumerate((HALVES[i // 2 % 2], torch.float64)):
                exercise(size, out, 2, dtype, [(0.0, 0.3)[(i + j) % 2]])
        exercise((3, 4, 5), (2, 3, 4), 0, torch.float32)
        exercise((3, 4, 5), (2, 3, 4), 1, torch.float32)
        # Narrow and wide indices, and blocks that go through several strides.
        for i, (size, out) in enumerate([*SIZES[:5], ((3, 4, 5), (2, 3, 4))]):
            with emulation.cuda(blocks=1 + i % 3, limit=(0, emulated.LARGEST)[i % 2]):
                exercise(size, out, 2 if i else 0, (torch.float32, HALVES[i % 2])[i % 2])
        for dtype in (torch.float64, torch.float32, *HALVES):
            compare(emulation, (5, 6, 7), (4, 9, 8), 2, dtype)
        compare(emulation, (1, 9, 1), (6, 1, 11), 1, torch.float32)
        compare(emulation, (13, 2, 131), (3, 2, 40), 1, torch.float32)
        missing = emulated.launchers() - emulation.launched
        assert not missing, f"launchers that were not called: {sorted(missing)}"
        unknown = emulation.launched - emulated.launchers()
        assert not unknown, f"launchers of no .cu file: {sorted(unknown)}"
    print("clean")


if __name__ == "__main__":
    main()
