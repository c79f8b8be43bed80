"""Calls of every registered op for torch.library.opcheck. Run as a program, it checks the PyTorch bodies.

The body that is registered for an op only runs as long as the kernels are not loaded, so that takes a separate process.
"""

from __future__ import annotations

import torch
from fields import identity, inside, smooth

from deepatlas_ops import reference

registered = torch.ops.deepatlas_ops
# For ops that are not differentiable, such as the backward ops.
PLAIN = {"test_utils": ("test_schema", "test_faketensor")}

OTHERS = (torch.float64, torch.float16, torch.bfloat16)


def grads(*tensors):
    return tuple(t.detach().clone().requires_grad_() for t in tensors)


def calls(dtype):
    """Yields (op, arguments, options of opcheck)."""
    size, out = (3, 4, 5), (2, 3, 6)
    volume, grad = torch.randn(2, 2, *size).to(dtype), torch.randn(2, 2, *out).to(dtype)
    coords = inside(2, out, 0.9).to(dtype)
    for name in ("resample", "warp"):
        op, back = getattr(registered, name), getattr(registered, f"{name}_backward")
        yield op, (*grads(volume, coords), 0, 0), {}
        yield op, (volume, *grads(coords), 1, 1), {}
        for needs in ((True, True), (True, False), (False, True)):
            yield back, (grad, volume, coords, 0, 2, *needs), PLAIN

    theta = (torch.eye(3, 4) * 0.9 + torch.randn(2, 3, 4) * 0.1).to(dtype)
    yield registered.affine_resample, (*grads(volume, theta), list(out), 0, 1), {}
    for needs in ((True, True), (True, False), (False, True)):
        yield registered.affine_resample_backward, (grad, volume, theta, 0, 1, *needs), PLAIN

    for shape in ([4, 1, 5], [7, 8, 9]):
        yield registered.resize, (*grads(volume), shape), {}
        yield registered.resize_backward, (*grads(torch.randn(2, 2, *shape).to(dtype)), list(size)), {}
    for channels in (1, 2):
        yield registered.resize, (*grads(volume[:, :channels]), [7, 8, 9], True), {}
        yield registered.resize_backward, (*grads(grad[:, :channels]), list(size), True), {}

    moving = (identity(size) + smooth(2, size, 0.05)).to(dtype)
    fixed = (0.8 * identity(out) + smooth(2, out, 0.05)).to(dtype)
    matrix = reference.step_matrix(moving, fixed, None, "moving")
    implicit, unrolled = registered.implicit_warp, registered.implicit_warp_unrolled
    yield implicit, (*grads(moving, fixed), matrix, None, 5, 0.0, False), {}
    yield implicit, (*grads(moving, fixed), matrix.mT.contiguous(), matrix, 5, 0.5, True), {}
    yield unrolled, (*grads(moving, fixed, matrix), None, 3, 0.0), {}
    yield unrolled, (*grads(moving, fixed, matrix), matrix, 3, 0.5), {}
    solution, _, valid = reference.solve_inverse(moving, fixed, matrix, None, 5, 0.0)
    pull = torch.randn_like(solution)
    for need in (True, False):
        arguments = (pull, moving, solution, valid, matrix, need)
        yield registered.implicit_warp_backward, arguments, PLAIN
    yield registered.implicit_warp_unrolled_backward, (pull, moving, fixed, matrix, 5, 0.1), PLAIN

    mask, single = torch.rand(2, 1, *size).to(dtype), torch.rand(2, 1, *size).to(dtype)
    yield registered.jacobian_determinant, (moving, True), PLAIN
    yield registered.jacobian_determinant, (moving, False), PLAIN
    for normalize in (False, True):
        yield registered.log_jacobian, (*grads(moving), normalize, 1e-3), {}
        yield registered.log_jacobian_backward, (single, moving, normalize, 1e-3), PLAIN
    for weight in (mask, None):
        yield registered.smoothness_loss, (*grads(moving), weight, 0.5, weight is None), {}
        statistics = reference.smoothness_loss_and_statistics(moving, weight, 0.5, True)[1]
        arguments = (torch.rand(2).to(dtype), moving, weight, statistics, 0.5, True)
        yield registered.smoothness_loss_backward, arguments, PLAIN

    other = (volume + torch.randn(volume.shape)).to(dtype)
    for window, weight, needs in (
        (0, None, (True, False)),
        (0, mask, (False, True)),
        (3, mask, (True, True)),
    ):
        yield registered.ncc, (*grads(volume, other), weight, window, 1e-5), {}
        moments = reference.channel_moments(volume, other, weight)
        arguments = (torch.rand(2, 2).to(dtype), volume, other, weight, moments, window, 1e-5, *needs)
        yield registered.ncc_backward, arguments, PLAIN

    for weight, needs in ((None, (True, False)), (mask, (False, True)), (mask, (True, True))):
        yield registered.edge_difference, (*grads(volume, other), weight), {}
        statistics = reference.edge_statistics(volume, other, weight)
        arguments = (torch.rand(2).to(dtype), volume, other, weight, statistics, *needs)
        yield registered.edge_difference_backward, arguments, PLAIN

    curve = [-1.0, 0.0, 0.7], [0.2, 0.3, -0.4]
    yield registered.piecewise_linear, (*grads(volume), *curve), {}
    yield registered.piecewise_linear_backward, (other, volume, *curve), PLAIN

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        x = volume.contiguous(memory_format=layout)
        weight, bias = torch.randn(2, *x.shape[:2], dtype=wide)
        yield registered.group_norm_leaky_relu, (*grads(x, weight, bias), 1, 0.1, 1e-5), {}
        statistics = reference.group_norm_statistics(x, 1, 1e-5)
        for need in (True, False):
            arguments = (other, x, weight, bias, statistics, 1, 0.1, need)
            yield registered.group_norm_leaky_relu_backward, arguments, PLAIN


def check(dtype):
    """Runs opcheck on every call and returns the names of the ops."""
    torch.manual_seed(0)
    # Eager and traced bodies round half types at different places.
    wide = {} if dtype in (torch.float32, torch.float64) else {"rtol": 2e-2, "atol": 2e-2}
    names = set()
    for number, (op, arguments, options) in enumerate(calls(dtype)):
        # Gradients are traced in float32, and every third time in each of the other types, in turn.
        if dtype in OTHERS and number % len(OTHERS) != OTHERS.index(dtype):
            options = PLAIN
        torch.library.opcheck(op.default, arguments, **options, **(wide if not options else {}))
        names.add(op.default.name())
    return names


def has_kernel(name):
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")


def all_ops():
    schemas = torch._C._jit_get_all_schemas()
    return {s.name for s in schemas if s.name.startswith("deepatlas_ops::")}


if __name__ == "__main__":
    for precision in (torch.float32, torch.bfloat16):
        done = check(precision)
        assert not any(map(has_kernel, done)), "a kernel was loaded: the bodies were not checked"
    assert done == all_ops(), done ^ all_ops()
    print(len(done), "bodies")
