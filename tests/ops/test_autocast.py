"""Autocast: float32 coordinates stay float32, and everything but sampling is computed in float32."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, MEASURES, rise, value_and_gradients, weights

SIZE = (4, 5, 6)
# These ops may return a half type.
SAMPLING = ("resample", "warp", "affine_resample", "resize", "group_norm_leaky_relu")
HALVES = [torch.bfloat16, torch.float16]


def samples(name):
    return name.split()[0] in SAMPLING


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", CASES)
def test_a_half_volume_with_float32_coordinates_gives_float32(backend, name, half):
    case, mask = CASES[name], weights(SIZE, torch.float32)
    first, *rest = (x.float() for x in case.make(SIZE))
    # A convolution before the op leaves a half type.
    first = first.to(half)
    inputs = [first.float(), *rest]
    want = value_and_gradients(case, mask, inputs)
    leaves = [first.requires_grad_(), *(x.requires_grad_() for x in rest)]
    with torch.autocast("cpu", dtype=half):
        out = case.run(mask, *leaves)
    grads = torch.autograd.grad(out, leaves, rise(out))
    # These have no coordinates, so the volume decides.
    if name.startswith(("resize", "group_norm_leaky_relu")):
        assert out.dtype == half
        torch.testing.assert_close(out, want[0].to(half))
        return
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, want[0])
    assert [g.dtype for g in grads] == [half, *(torch.float32 for _ in rest)]
    torch.testing.assert_close(grads[0], want[1].to(half))
    for g, w in zip(grads[1:], want[2:], strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", CASES)
def test_all_in_a_half_type(backend, name, half):
    case, mask = CASES[name], weights(SIZE, half)
    inputs = [x.to(half) for x in case.make(SIZE)]
    with torch.autocast("cpu", dtype=half):
        out, *grads = value_and_gradients(case, mask, inputs)
    assert out.dtype == (half if samples(name) else torch.float32)
    assert all(g.dtype == half for g in grads)
    wide = [x.to(out.dtype) for x in inputs]
    want = value_and_gradients(case, mask.to(out.dtype), wide)
    for g, w in zip((out, *grads), want, strict=True):
        torch.testing.assert_close(g, w.to(g.dtype))


@pytest.mark.parametrize("name", {**CASES, **MEASURES})
def test_float32_and_float64_are_untouched(backend, name):
    case = {**CASES, **MEASURES}[name]
    inputs, mask = case.make(SIZE), weights(SIZE)
    for dtype in (torch.float32, torch.float64):
        given, weight = [x.to(dtype) for x in inputs], mask.to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = case.run(weight, *given)
        torch.testing.assert_close(got, case.run(weight, *given), rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_outside_a_region_mixed_types_are_an_error(backend, name):
    case = CASES[name]
    inputs = [x.float() for x in case.make(SIZE)]
    if len(inputs) == 1:
        # There is no second argument to mix types with.
        inputs = [inputs[0].bool()]
    else:
        inputs[0] = inputs[0].half()
    with pytest.raises(ValueError, match=f"{name.split()[0]}: .*expected"):
        case.run(None, *inputs)


@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name, cuda):
    case = CASES[name]
    inputs = [x.float().to(cuda) for x in case.make(SIZE)]
    mask = weights(SIZE, torch.float32).to(cuda)
    with torch.autocast("cuda", dtype=torch.float16):
        got = case.run(mask, *(inputs[0].half(), *inputs[1:]))
    assert got.dtype == (torch.float16 if name.startswith("resize") else torch.float32)
    torch.testing.assert_close(
        got.float(), case.run(mask, inputs[0].half().float(), *inputs[1:]), rtol=1e-2, atol=1e-2
    )
