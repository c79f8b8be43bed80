"""torch.use_deterministic_algorithms: every op gives the same bits again, or raises an error if it uses atomics."""

from __future__ import annotations

import contextlib

import pytest
import torch
from cases import CASES, MEASURES, value_and_gradients, weights

# So many voxels that the kernels divide them between threads.
SIZE = (19, 23, 29)
# On CUDA these use atomics for the gradient with respect to the sampled volume or the moving map.
ATOMIC = ("resample", "warp", "affine_resample", "implicit_warp")


@contextlib.contextmanager
def settings(threads, deterministic=True):
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_cpu_gives_the_same_bits_on_one_thread_and_two(name, dtype, native):
    case, mask = CASES[name], weights(SIZE, dtype)
    inputs = [x.to(dtype) for x in case.make(SIZE)]
    results = []
    for threads in (1, 2, 1, 2):
        with settings(threads):
            results.append(value_and_gradients(case, mask, inputs))
    for other in results[1:]:
        assert_same(results[0], other)


@pytest.mark.parametrize("name", MEASURES)
def test_measures_have_the_same_bits_on_one_thread_and_two(name, native):
    case, mask = MEASURES[name], weights(SIZE, torch.float32)
    (field,) = (x.float() for x in case.make(SIZE))
    results = []
    for threads in (1, 2):
        with settings(threads):
            results.append([case.run(mask, field)])
    assert_same(*results)


@pytest.mark.parametrize("name", CASES)
def test_cuda_is_repeatable_or_refuses(name, cuda):
    case, mask = CASES[name], weights(SIZE, torch.float32).to(cuda)
    inputs = [x.float().to(cuda) for x in case.make(SIZE)]
    with settings(torch.get_num_threads()):
        if name.split()[0] in ATOMIC:
            with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
                value_and_gradients(case, mask, inputs)
            # The gradient with respect to the other argument needs no atomics.
            inputs = [x.requires_grad_(i > 0) for i, x in enumerate(inputs)]
            if "unrolled" in name:
                return
            results = []
            for _ in range(2):
                out = case.run(mask, *inputs)
                results.append([out, torch.autograd.grad(out.sum(), inputs[1])[0]])
        else:
            results = [value_and_gradients(case, mask, inputs) for _ in range(2)]
    assert_same(*results)
