"""Symmetric systems with known truth, their products counted, for the tests of the linear solvers."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch

from constrained.core.vec import Vec
from constrained.linear import LinearSolution, LinearSolver, LinearStatus, System

F64 = torch.float64


@dataclass
class Counted:
    """K as an operator that counts: `product` and `products`, and whatever else a System takes."""

    K: np.ndarray | scipy.sparse.spmatrix
    dtype: torch.dtype = F64
    more: dict = field(default_factory=dict)
    count: int = 0

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        if scipy.sparse.issparse(self.K):
            return torch.tensor((self.K @ rows.double().numpy().T).T).to(self.dtype)
        return rows @ torch.tensor(self.K, dtype=self.dtype)

    def product(self, v: Vec) -> Vec:
        self.count += 1
        return v.map(self.times)

    def products(self, vs: Vec) -> Vec:
        self.count += len(vs.leaves[0])
        return vs.map(self.times)

    def system(self) -> System:
        like = Vec.of(torch.zeros(self.K.shape[0], dtype=self.dtype))
        return System(self.product, self.K.shape[0], **{"products": self.products, "like": like, **self.more})


def run(method: LinearSolver, K, b, tol=1e-10, dtype=F64, seed=None, start=None, **more) -> LinearSolution:
    """Solve once, and check what every solution must keep: the products counted, the residual recomputed, SOLVED within tol."""
    counted = Counted(K, dtype, more)
    prepared = method.init(counted.system())
    rhs = Vec.of(torch.tensor(b, dtype=dtype))
    options = {} if start is None else {"start": Vec.of(torch.tensor(start, dtype=dtype))}
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    found = method.solve(prepared, rhs, tol=tol, generator=generator, **options)
    assert found.products + prepared.spent == counted.count
    x, dense = array(found), K.toarray() if scipy.sparse.issparse(K) else K
    eps = 6e-8 if dtype is torch.float32 else 2.3e-16
    noise = eps * (np.linalg.norm(b) + np.linalg.norm(dense, 2) * np.linalg.norm(x))
    assert found.x.dtype is dtype
    assert found.residual == pytest.approx(np.linalg.norm(b - dense @ x), rel=1e-3, abs=30 * noise)
    assert (found.residual <= tol) == (found.reason is LinearStatus.SOLVED), found
    return found


def array(found: LinearSolution) -> np.ndarray:
    return found.x.ravel().double().numpy()


def normal(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n)


def symmetric(values, seed=0) -> np.ndarray:
    Q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    S = Q @ np.diag(values) @ Q.T
    return (S + S.T) / 2


def indefinite(d: int, seed=0, condition=1e2) -> np.ndarray:
    values = np.logspace(0, -np.log10(condition), d) * np.where(np.arange(d) % 3 == 0, -1.0, 1.0)
    return symmetric(values, seed)


def singular(d: int, rank: int, seed=0) -> np.ndarray:
    """Indefinite, of this rank."""
    values = np.linspace(1, 3, rank) * np.where(np.arange(rank) % 3 == 0, -1.0, 1.0)
    return symmetric(np.r_[values, np.zeros(d - rank)], seed)


def kkt(n: int, m: int, seed=0, scales=0.0, shift=0.1) -> np.ndarray:
    """[[B, G'], [G, 0]], B = A A'/n + shift I, rows and columns scaled by 10^(-scales..scales)."""
    rng = np.random.default_rng(seed)
    A, G = rng.normal(size=(n, n)), rng.normal(size=(m, n))
    K = np.block([[A @ A.T / n + shift * np.eye(n), G.T], [G, np.zeros((m, m))]])
    D = 10.0 ** (scales * rng.uniform(-1, 1, size=n + m))
    return D[:, None] * K * D


def pde(N: int):
    """Section 3.3 of the paper's code: 1/2|W - Wd|^2 + 0.1/2 |Z|^2 s.t. lap W / h^2 + Z = 0 on N x N points of a square of side
    2; K sparse, the system at x = lam = 1, and the inverse of diag(B, G B^-1 G').
    """
    h, n = 2 / (N + 1), N * N
    T = scipy.sparse.diags([np.ones(N - 1), -2 * np.ones(N), np.ones(N - 1)], [-1, 0, 1])
    eye = scipy.sparse.eye(N)
    G = scipy.sparse.hstack([(scipy.sparse.kron(T, eye) + scipy.sparse.kron(eye, T)) / h**2, scipy.sparse.eye(n)])
    B = np.r_[np.ones(n), 0.1 * np.ones(n)]
    K = scipy.sparse.bmat([[scipy.sparse.diags(B), G.T], [G, None]]).tocsr()
    at = 0.1 / np.sqrt(15) * (np.arange(1, N + 1) - (N + 1) / 2)
    Wd = (np.sin(4 + at)[:, None] + np.cos(3 + at)).ravel()
    b = -np.r_[B * (np.ones(2 * n) - np.r_[Wd, np.zeros(n)]) + G.T @ np.ones(n), G @ np.ones(2 * n)]
    schur = scipy.sparse.linalg.splu((G @ scipy.sparse.diags(1 / B) @ G.T).tocsc())

    def inverse(v: Vec) -> Vec:
        return v.map(lambda t: torch.tensor(np.r_[t.numpy()[: 2 * n] / B, schur.solve(t.numpy()[2 * n :])]))

    return K, b, inverse
