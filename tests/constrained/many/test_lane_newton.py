"""K factored lane by lane: the inertia, the shifts, the step, checked with numpy's eigenvalues and solutions."""

import numpy as np
import pytest
import torch

from constrained.interior.inertia import Matrices
from constrained.interior.inertia import factored as one_by_one
from constrained.many import newton
from constrained.many.newton import Factors, factored, shortest

F64 = torch.float64
WAYS = (Factors.pivoted, Factors.spectral)


def inertia(A):
    w = np.linalg.eigvalsh(A)
    return int((w > 0).sum()), int((w < 0).sum())


@pytest.mark.parametrize("way", WAYS)
def test_inertia_and_solution_are_those_of_numpy(way):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(50, 7, 7, generator=generator, dtype=F64)
    K, b = A + A.mT, torch.randn(50, 7, generator=generator, dtype=F64)
    factors = way(K)
    positive, zero = factors.inertia(torch.zeros(50, dtype=F64))
    assert positive.tolist() == [inertia(one)[0] for one in K.numpy()]
    assert not bool(zero.any())
    assert np.allclose(factors.solve(b).numpy(), np.linalg.solve(K.numpy(), b.numpy()[:, :, None])[:, :, 0], rtol=1e-8)


def random_system(lanes, n, e, q, seed=0):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(lanes, n, n, generator=generator, dtype=F64)
    J = torch.randn(lanes, e + q, n, generator=generator, dtype=F64)
    D, slack = torch.rand(lanes, n, generator=generator, dtype=F64), torch.rand(lanes, q, generator=generator, dtype=F64)
    return A + A.mT, J, D, slack


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("n", "e", "q"), [(5, 2, 0), (5, 0, 3), (4, 2, 3), (3, 0, 0)])
def test_the_shift_is_that_of_a_lane_alone_and_gives_the_inertia(monkeypatch, way, n, e, q):
    monkeypatch.setattr(Factors, "of", way)
    H, J, D, slack = random_system(40, n, e, q)
    last = torch.tensor([0.0, 1e-3] * 20, dtype=F64)
    system = factored(H, J, D, slack, last, torch.full((40,), 0.1, dtype=F64))
    assert bool(system.found.all())
    assert bool((system.dw > 0).any())
    for i in range(40):
        assert inertia(system.K[i].numpy()) == (n, e + q)
        alone = one_by_one(Matrices(H[i].numpy(), D[i].numpy(), J[i].numpy(), slack[i].numpy(), False), float(last[i]), 0.1)
        assert alone.dw == pytest.approx(float(system.dw[i]), rel=1e-12)
    b = torch.randn(40, n + e + q, dtype=F64)
    assert torch.allclose(torch.linalg.solve(system.K, b), system.solve(b), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_depend_on_one_another_are_regularised(monkeypatch, way):
    monkeypatch.setattr(Factors, "of", way)
    H = torch.eye(3, dtype=F64).expand(2, 3, 3)
    J = torch.tensor([[[1.0, 1, 0], [1, 1, 0]], [[1, 1, 0], [0, 1, 1]]], dtype=F64)
    none = torch.zeros(2, dtype=F64)
    system = factored(H, J, torch.zeros(2, 3, dtype=F64), torch.zeros(2, 0, dtype=F64), none, none + 1)
    assert system.dc[0] > 0
    assert system.dc[1] == 0
    assert system.dw.tolist() == [0, 0]


def test_what_is_not_finite_is_not_found():
    H, J, D, slack = random_system(3, 4, 1, 1)
    H[1, 0, 0] = torch.nan
    system = factored(H, J, D, slack, torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64))
    assert system.found.tolist() == [True, False, True]


@pytest.mark.parametrize("device", ["cpu", "elsewhere"])
def test_the_shortest_solution_of_least_squares(monkeypatch, device):
    A, b = torch.randn(6, 5, 4, dtype=F64), torch.randn(6, 5, dtype=F64)
    A[:3, :, 3] = A[:3, :, 0]
    b[5, 0] = torch.nan
    if device != "cpu":
        monkeypatch.setattr(newton, "on_cpu", lambda _: False)
    found = shortest(A, b, 1e-12)
    for i in range(5):
        assert np.allclose(found[i].numpy(), np.linalg.lstsq(A[i].numpy(), b[i].numpy(), rcond=1e-12)[0])
    assert bool(found[5].isnan().all())
