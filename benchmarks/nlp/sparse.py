"""Models of 2,000 unknowns whose derivatives are sparse matrices of scipy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.sparse import block_array, csr_array, diags_array

from .model import Model, Part


def models() -> Iterator[Model]:
    yield path(1000)
    yield membrane(2000)
    yield pendulum(667)


def differences(n: int) -> csr_array:
    """D with (D p)_i = p_{i+1} - p_i, n - 1 rows."""
    return csr_array(diags_array([-np.ones(n - 1), np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n)))


def rings(n: int) -> csr_array:
    """Two entries each of 2 n unknowns: row i has i and n + i."""
    i = np.arange(n)
    return csr_array((np.ones(2 * n), (np.concatenate([i, i]), np.concatenate([i, n + i]))), shape=(n, 2 * n))


def diagonal(d: np.ndarray) -> csr_array:
    """With its zeros stored, unlike what scipy makes of `diags_array`: places must not come and go with x."""
    i = np.arange(len(d))
    return csr_array((d, (i, i)), shape=(len(d), len(d)))


def scaled(S: csr_array, d: np.ndarray) -> csr_array:
    """S diag(d), zeros stored."""
    return csr_array((S.data * d[S.indices], S.indices, S.indptr), shape=S.shape)


def path(points: int) -> Model:
    """A planar path p_1, ..., p_N, of least sum of squared steps, its i-th point in the disc |p_i - q_i| <= r_i."""
    t = np.linspace(0, 6 * np.pi, points)
    centres = np.concatenate([t, 2 * np.sin(t)])
    radii = 0.3 + 0.2 * np.cos(7 * t)
    D = differences(points)
    H = csr_array(block_array([[D.T @ D, None], [None, D.T @ D]])) * 2.0
    S = rings(points)
    free = np.full(2 * points, np.inf)
    return Model(
        name="path-in-discs",
        x0=centres + 0.05,
        low=-free,
        high=free,
        f=Part(value=lambda x: 0.5 * x @ (H @ x), first=lambda x: H @ x, second=lambda x: H),
        h=Part(
            value=lambda x: S @ (x - centres) ** 2 - radii**2,
            first=lambda x: scaled(S, 2 * (x - centres)),
            second=lambda x, mu: diagonal(2 * (S.T @ mu)),
        ),
    )


def membrane(n: int) -> Model:
    """A loaded string above an obstacle, x_i >= o_i, whose neighbours keep x_i^2 + x_{i + n/2}^2 <= r^2, with a stiffening force:
    f = |D x|^2 / 2 h + h sum (x_i^4 / 4 + x_i).
    """
    h, D, S = 1 / n, differences(n), rings(n // 2)
    K = csr_array(D.T @ D / h)
    s = np.linspace(0, 1, n)
    obstacle = 0.3 - 4 * (s - 0.3) ** 2
    return Model(
        name="membrane",
        x0=np.full(n, 0.5),
        low=np.maximum(obstacle, -1.0),
        high=np.full(n, np.inf),
        f=Part(
            value=lambda x: 0.5 * x @ (K @ x) + h * (x**4 / 4 + x).sum(),
            first=lambda x: K @ x + h * (x**3 + 1),
            second=lambda x: K + diagonal(3 * h * x**2),
        ),
        h=Part(
            value=lambda x: S @ x**2 - 0.6,
            first=lambda x: scaled(S, 2 * x),
            second=lambda x, mu: diagonal(2 * (S.T @ mu)),
        ),
    )


def pendulum(steps: int) -> Model:
    """A pendulum swung up from rest in 8 seconds by a bounded torque: angles a, speeds s and torques u,

    a' = a + d s,  s' = s + d (u - sin a),  |u| <= 0.6,  least d |u|^2 + 10 ((a_N - pi)^2 + s_N^2).
    """
    N, d = steps, 8 / steps
    n, D = 3 * steps, differences(steps)
    now = csr_array(diags_array([np.ones(N - 1)], offsets=[0], shape=(N - 1, N)))
    first = csr_array((np.ones(2), (np.arange(2), np.array([0, N]))), shape=(2, n))
    linear = csr_array(block_array([[D, -d * now, None], [None, D, -d * now]]))
    weights = np.concatenate([np.zeros(2 * N), np.full(N, d)])
    target = np.zeros(n)
    target[N - 1], ends = np.pi, np.array([N - 1, 2 * N - 1])
    weights[ends] = 10.0

    def c(x: np.ndarray) -> np.ndarray:
        return np.concatenate([linear @ x + np.concatenate([np.zeros(N - 1), d * np.sin(x[: N - 1])]), first @ x])

    def J(x: np.ndarray) -> Any:
        bent = csr_array((d * np.cos(x[: N - 1]), (np.arange(N - 1, 2 * N - 2), np.arange(N - 1))), shape=linear.shape)
        return csr_array(block_array([[linear + bent], [first]]))

    def H(x: np.ndarray, lam: np.ndarray) -> Any:
        bend = np.zeros(n)
        bend[: N - 1] = -d * lam[N - 1 : 2 * N - 2] * np.sin(x[: N - 1])
        return diagonal(bend)

    bound = np.concatenate([np.full(2 * N, np.inf), np.full(N, 0.6)])
    return Model(
        name="pendulum",
        x0=np.concatenate([np.linspace(0, np.pi, N), np.full(N, np.pi / 8), np.zeros(N)]),
        low=-bound,
        high=bound,
        f=Part(
            value=lambda x: weights @ (x - target) ** 2,
            first=lambda x: 2 * weights * (x - target),
            second=lambda x: diagonal(2 * weights),
        ),
        c=Part(value=c, first=J, second=H),
    )
