"""torch.func and second derivatives of every op: they are correct, or raise an error of one line."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from cases import CASES, MEASURES, value_and_gradients, weights

import deepatlas_ops as ops

SIZE = (4, 5, 6)


def stacked(case):
    """The inputs of three calls, stacked along a new axis."""
    calls = [case.make(SIZE) for _ in range(3)]
    return [torch.stack(inputs) for inputs in zip(*calls, strict=True)]


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", {**CASES, **MEASURES})
def test_vmap_gives_the_results_of_single_calls(backend, name):
    case, mask = {**CASES, **MEASURES}[name], weights(SIZE)
    inputs = stacked(case)
    want = torch.stack([case.run(mask, *call) for call in zip(*inputs, strict=True)])
    close(torch.vmap(case.run, in_dims=(None, *(0 for _ in inputs)))(mask, *inputs), want)
    # The mapped axis may be any axis.
    moved = [x.movedim(0, 2) for x in inputs]
    close(torch.vmap(lambda *x: case.run(mask, *x), in_dims=2)(*moved), want)
    twice = [torch.stack((x, x.flip(0))) for x in inputs]
    both = torch.vmap(torch.vmap(lambda *x: case.run(mask, *x)))(*twice)
    close(both, torch.stack((want, want.flip(0))))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if len(case.make(SIZE)) == 2])
def test_what_vmap_does_not_map_is_shared(backend, name):
    case, mask = CASES[name], weights(SIZE)
    first, second = stacked(case)
    got = torch.vmap(lambda a, b: case.run(mask, a, b), in_dims=(0, None))(first, second[0])
    close(got, torch.stack([case.run(mask, a, second[0]) for a in first]))


@pytest.mark.parametrize("name", CASES)
def test_func_grad_is_autograds(backend, name):
    case, mask = CASES[name], weights(SIZE)
    inputs = case.make(SIZE)
    out, *want = value_and_gradients(case, mask, inputs)
    pull = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).reshape(out.shape)

    def loss(*x):
        return (case.run(mask, *x) * pull).sum()

    which = tuple(range(len(inputs)))
    for g, w in zip(torch.func.grad(loss, which)(*inputs), want, strict=True):
        close(g, w)
    # By default, only the first argument is differentiated.
    alone = torch.func.grad(loss)(*inputs)
    close(alone, want[0])
    several = stacked(case)
    per_call = torch.vmap(torch.func.grad(loss, which))(*several)
    for i, call in enumerate(zip(*several, strict=True)):
        for g, w in zip(per_call, value_and_gradients(case, mask, list(call))[1:], strict=True):
            close(g[i], w)


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_is_right_or_refused(backend, name):
    case, mask = CASES[name], weights(SIZE)
    inputs = case.make(SIZE)
    tangents = [torch.randn_like(x) for x in inputs]

    def run(*x):
        return case.run(mask, *x)

    try:
        _, got = torch.func.jvp(run, tuple(inputs), tuple(tangents))
    # NotImplementedError is a RuntimeError.
    except RuntimeError as error:
        assert "forward" in str(error)
        if backend == "native":
            assert "\n" not in str(error) and name.split()[0] in str(error)
            with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode"):
                run(
                    *(
                        torch.autograd.forward_ad.make_dual(*pair)
                        for pair in zip(inputs, tangents, strict=True)
                    )
                )
        return
    assert backend == "torch"
    step = 1e-6
    ahead, behind = (run(*(x + s * t for x, t in zip(inputs, tangents, strict=True))) for s in (step, -step))
    torch.testing.assert_close(got, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-4)


@cache
def grid_sample_has_second_derivatives() -> bool:
    """Whether the op of PyTorch that the bodies call can be differentiated twice; it cannot in 2.11."""
    volume, grid = (
        torch.ones(1, 1, 2, 2, 2, requires_grad=True),
        torch.zeros(1, 1, 1, 1, 3, requires_grad=True),
    )
    first = torch.autograd.grad(
        torch.nn.functional.grid_sample(volume, grid, align_corners=True).sum(), grid, create_graph=True
    )
    try:
        first[0].sum().backward()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_are_right_or_refused(backend, name):
    case, mask = CASES[name], weights((3, 4, 3))
    inputs = [x[:1].clone().requires_grad_() for x in case.make((3, 4, 3))]

    def run(*x):
        return case.run(mask[:1], *x)

    sampled = name.startswith(("resample", "warp", "affine_resample")) or name.endswith("unrolled")
    if backend == "torch" and sampled and not grid_sample_has_second_derivatives():
        with pytest.raises(RuntimeError, match="grid_sampler_3d_backward is not implemented"):
            gradients = torch.autograd.grad(run(*inputs).square().sum(), inputs, create_graph=True)
            sum(g.sum() for g in gradients).backward()
        return
    if backend in case.double and name != "resample nearest":
        if name.startswith("resize up"):
            run = lambda v: ops.resize(v, (4, 3, 5))  # noqa: E731 - the same with fewer numbers
        assert torch.autograd.gradgradcheck(run, inputs, atol=1e-4, rtol=1e-3, fast_mode=True)
        return
    out = run(*inputs)
    first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    # Nearest sampling is linear in the volume and constant in the coordinates.
    if name == "resample nearest" and backend == "torch":
        (second,) = torch.autograd.grad(first[0].sum(), inputs[0])
        close(second, 2 * torch.autograd.grad(run(*inputs).sum(), inputs[0])[0])
        return
    with pytest.raises(RuntimeError, match="second derivatives are not implemented") as caught:
        sum(g.sum() for g in first).backward()
    assert "\n" not in str(caught.value) and "deepatlas_ops" in str(caught.value)


def test_a_hessian_is_refused_under_func_too():
    with ops.use_backend("auto"):
        for function, shape in (
            (ops.log_jacobian, (1, 3, 2, 2, 3)),
            (lambda x: ops.ncc(x, x * x), (1, 1, 2, 2, 2)),
        ):
            if ops.build_info()["backend"] != "native":
                pytest.skip("the bodies have second derivatives")
            with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
                torch.func.jacrev(torch.func.grad(lambda x, f=function: f(x).sum()))(torch.randn(shape))
