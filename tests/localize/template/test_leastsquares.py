"""The normal equations of eq. 14 against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import lsqr

from deepatlas.errors import DeepAtlasError
from deepatlas.localize.template.leastsquares import Problem, adjoint, conjugate_gradients, laplacian, sample

SHAPE = (5, 6, 7)


def points(n: int, generator: torch.Generator, spread: float = 1.2) -> torch.Tensor:
    return (2 * torch.rand(1, 3, n, generator=generator, dtype=torch.float64) - 1) * spread


def dense(operator, columns: int) -> np.ndarray:
    eye = torch.eye(columns, dtype=torch.float64)
    return np.stack([operator(e.reshape(1, 1, *SHAPE)).flatten().numpy() for e in eye], axis=1)


def test_the_adjoint_is_the_transpose():
    g = torch.Generator().manual_seed(0)
    p = points(200, g)
    volume = torch.randn(1, 2, *SHAPE, generator=g, dtype=torch.float64)
    values = torch.randn(1, 2, 200, generator=g, dtype=torch.float64)
    left = (sample(volume, p) * values).sum()
    right = (volume * adjoint(values, p, SHAPE)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-12)


def test_laplacian_is_the_gram_matrix_of_forward_differences():
    volume = torch.randn(1, 1, *SHAPE, dtype=torch.float64)
    energy = sum(float(volume.diff(dim=a).square().sum()) for a in (2, 3, 4))
    assert float((volume * laplacian(volume)).sum()) == pytest.approx(energy, rel=1e-12)
    assert float(laplacian(torch.ones_like(volume)).abs().max()) == 0


@pytest.mark.parametrize("weighted", [False, True])
def test_the_solution_equals_that_of_a_dense_solver(weighted):
    g = torch.Generator().manual_seed(1)
    n, unknowns = 300, int(np.prod(SHAPE))
    p = points(n, g)
    m = (torch.rand(1, 1, n, generator=g, dtype=torch.float64) > 0.5).double()
    w = torch.rand(1, 1, n, generator=g, dtype=torch.float64) + 0.1 if weighted else None
    problem = Problem(p, m, SHAPE, w, tikhonov=1e-3, laplacian=1e-2)
    got = conjugate_gradients(problem, iterations=400, tolerance=1e-12)
    assert got.converged

    a = sparse.csr_matrix(dense(lambda v: sample(v, p), unknowns))
    root = np.sqrt(np.ones(n) if w is None else w.flatten().numpy())
    steps = np.concatenate([dense(lambda v, axis=axis: v.diff(dim=axis), unknowns) for axis in (2, 3, 4)])
    stacked = sparse.vstack([
        sparse.diags(root) @ a,
        np.sqrt(problem.density * 1e-3) * sparse.eye(unknowns),
        np.sqrt(problem.density * 1e-2) * sparse.csr_matrix(steps),
    ])  # fmt: skip
    right = np.concatenate([root * m.flatten().numpy(), np.zeros(stacked.shape[0] - n)])
    want = lsqr(stacked, right, atol=1e-14, btol=1e-14, iter_lim=5000)[0]
    np.testing.assert_allclose(got.volume.flatten().numpy(), want, atol=1e-8)

    misfit = float(np.sum((stacked @ want - right) ** 2) / np.sum(right**2))
    assert got.objective[-1] == pytest.approx(misfit, rel=1e-8)


def test_the_objective_never_rises_in_single_precision():
    g = torch.Generator().manual_seed(2)
    p, m = points(4000, g).float(), (torch.rand(1, 1, 4000, generator=g) > 0.7).float()
    steps = []
    got = conjugate_gradients(Problem(p, m, (12, 12, 12)), 50, 1e-6, lambda i, r: steps.append((i, r)))
    assert len(got.objective) == got.iterations + 1 > 5
    assert np.all(np.diff(got.objective) <= 1e-6)
    assert [i for i, _ in steps] == list(range(1, got.iterations + 1))
    assert steps[-1][1] == got.residual


def test_voxels_that_no_sample_reaches_are_filled_smoothly():
    """A hole of unsampled voxels inside a structure gets its value, one far outside stays empty."""
    axis = torch.linspace(-1, 1, 17, dtype=torch.float64)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    radius = (x**2 + y**2 + z**2).sqrt()
    keep = radius > 0.3
    p = torch.stack([x, y, z])[:, keep].reshape(1, 3, -1)
    m = (radius < 0.8)[keep].double().reshape(1, 1, -1)
    volume = conjugate_gradients(Problem(p, m, (17, 17, 17)), 200, 1e-10).volume[0, 0]
    assert float(volume[8, 8, 8]) > 0.9
    assert abs(float(volume[0, 0, 0])) < 0.05


def test_empty_labels_give_zeros_and_wrong_arguments_are_named():
    p = torch.zeros(1, 3, 4)
    got = conjugate_gradients(Problem(p, torch.zeros(1, 1, 4), SHAPE))
    assert got.converged and not got.volume.any()
    with pytest.raises(DeepAtlasError, match=r"points must be \[1, 3, 5\]"):
        Problem(p, torch.zeros(1, 1, 5), SHAPE)
    with pytest.raises(DeepAtlasError, match="tikhonov must be positive"):
        Problem(p, torch.zeros(1, 1, 4), SHAPE, tikhonov=0.0)
