"""A batch computed in parts, by one process or by several, has the gradient of the full batch: in every phase."""

import pytest
import torch
from small_recipe import CONFIG, PHASES, phases, process

from deepatlas.nn import CoordinateNetwork


@pytest.fixture(scope="module")
def start(array):
    """A network that knows one exam a little: an untrained one sends all voxels to one point, and no pair overlaps."""
    found = phases(array, process(0, 1), 1)
    next(found)
    phase = next(found)
    parameters = phase.parameters[0][0]
    adam = torch.optim.Adam(parameters, 0.01)
    for number in range(30):
        adam.zero_grad()
        for loss, _values in phase.step(number):
            loss.backward()
        adam.step()
    names = [name for name, _ in CoordinateNetwork(CONFIG.network).named_parameters()]
    return {name: p.detach().clone() for name, p in zip(names, parameters, strict=True)}


def gradients(array, start, processes, accumulate):
    """Name, gradient and scalars of every phase's first step, summed over the processes."""
    found = {}
    for rank in range(processes):
        for phase in phases(array, process(rank, processes), accumulate, start):
            parameters = [p for group, _factor in phase.parameters for p in group]
            for p in parameters:
                p.grad = None
            scalars = {}
            for loss, values in phase.step(0):
                loss.backward()
                for key, value in values().items():
                    scalars[key] = scalars.get(key, 0) + value
            flat = torch.cat(
                [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
            )
            grad, total = found.get(phase.name, (0, {}))
            found[phase.name] = grad + flat, {k: total.get(k, 0) + v for k, v in scalars.items()}
    return found


@pytest.fixture(scope="module")
def whole(array, start):
    return gradients(array, start, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "accumulate"), [(1, 2), (1, 5), (2, 1), (3, 2), (5, 1)])
def test_gradients_and_scalars_add_up(array, start, whole, processes, accumulate):
    assert list(whole) == PHASES
    assert whole["level-0"][1]["implicit_similarity"] > 0 and whole["level-0"][1]["overlap"] > 0.05
    for name, (grad, scalars) in gradients(array, start, processes, accumulate).items():
        expected, wanted = whole[name]
        assert expected.norm() > 0
        # A voxel at the edge of what a pair shares may fall on either side when the sums of a network are rounded
        # differently; a pair that is missing or counted twice changes the gradient by a fifth.
        assert (grad - expected).norm() < 1e-3 * expected.norm(), name
        assert scalars == pytest.approx(wanted, rel=1e-3, abs=1e-6), name


def test_parts_cover_the_batch_once():
    for processes in (1, 2, 3, 5):
        for accumulate in (1, 2, 4):
            parts = [process(r, processes).parts(7, accumulate) for r in range(processes)]
            assert [row for mine in parts for part in mine for row in part] == list(range(7))
            assert all(len(mine) <= accumulate for mine in parts)
