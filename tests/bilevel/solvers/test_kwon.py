"""The published loops against plain numpy loops written from the boxes, and their figures on the noisy quadratic."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from bilevel import F2SA, BilevelProblem, Box, KwonDoubleLoop, KwonSingleLoop, NoData, Power, solve
from bilevel.oracle import LOWER_STREAM, UPPER_STREAM
from problems import quadratic
from problems.quadratic import Noise

SEED, NOISE, STEPS = 3, 0.05, 7
rng = np.random.default_rng(0)
M, A, B, W = rng.normal(size=(3, 2)), rng.normal(size=3), rng.normal(size=2), np.diag([1.0, 2.0, 0.5])
LOW, HIGH = -0.3, 0.4  # the box of x, which the runs touch


class Gradients:
    """f = 1/2 (y - a)' W (y - a) + 1/2 |x - b|^2 + noise, g = 1/2 |y - M x|^2 + noise: gradients by hand, batch n."""

    def __init__(self, noisy: bool):
        self.sampler = Noise(torch.zeros(5, dtype=torch.float64)) if noisy else None

    def noise(self, stream: int, n: int) -> np.ndarray:
        return NOISE * self.sampler.draw(SEED, stream, n).numpy() if self.sampler else np.zeros(5)

    def f(self, x: np.ndarray, y: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        e = self.noise(UPPER_STREAM, n)
        return x - B + e[:2], W @ (y - A) + e[2:]

    def g(self, x: np.ndarray, y: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        e, r = self.noise(LOWER_STREAM, n), y - M @ x
        return -M.T @ r + e[:2], r + e[2:]


def problem(noisy: bool) -> BilevelProblem:
    m, a, b, w = (torch.from_numpy(array) for array in (M, A, B, W))

    def upper(x: torch.Tensor, y: torch.Tensor, e: Any = None) -> torch.Tensor:
        value = 0.5 * (y - a) @ w @ (y - a) + 0.5 * ((x - b) ** 2).sum()
        return value if e is None else value + NOISE * e @ torch.cat([x, y])

    def lower(x: torch.Tensor, y: torch.Tensor, e: Any = None) -> torch.Tensor:
        value = 0.5 * ((y - m @ x) ** 2).sum()
        return value if e is None else value + NOISE * e @ torch.cat([x, y])

    x, y = torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    data = Noise(torch.zeros(5, dtype=torch.float64)) if noisy else NoData()
    return BilevelProblem(upper=upper, lower=lower, x=x, y=y, X=Box(LOW, HIGH), upper_data=data, lower_data=data)


def clip(x: np.ndarray) -> np.ndarray:
    return np.clip(x, LOW, HIGH)


def agree(found: Any, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found.tree().numpy(), wanted, rtol=1e-12, atol=1e-14)


NOISY = pytest.mark.parametrize("noisy", [True, False], ids=["noisy", "exact"])


@NOISY
def test_single_loop_is_the_box(noisy):
    solver = KwonSingleLoop(sigma=Power(0.5, 0.5), alpha=0.2, gamma=0.3, eta=Power(0.9, 0.5), rho=0.7, beta=0.4)
    G = Gradients(noisy)
    x, v, w = np.zeros(2), np.zeros(3), np.zeros(3)  # v = w_y, w = w_z
    y, z = v, w
    F, H, K = G.f(x, v, 0), G.g(x, v, 0), G.g(x, w, 0)  # the six estimates: f and g at v, g at w
    for k in range(STEPS):
        sigma, eta = 0.5 / (1 + k) ** 0.5, 0.9 / (2 + k) ** 0.5
        x_new = clip(x - 0.2 * (F[0] + (H[0] - K[0]) / sigma))
        v_new = v - 0.3 * (sigma * F[1] + H[1] + (v - y) / 0.7)
        w_new = w - 0.3 * (K[1] + (w - z) / 0.7)
        y, z = 0.6 * y + 0.4 * v_new, 0.6 * z + 0.4 * w_new

        def storm(gradient, new, old, d, n=k + 1, eta=eta):
            return tuple(a + (1 - eta) * (c - b) for a, b, c in zip(gradient(*new, n), gradient(*old, n), d))

        F = storm(G.f, (x_new, v_new), (x, v), F)
        H = storm(G.g, (x_new, v_new), (x, v), H)
        K = storm(G.g, (x_new, w_new), (x, w), K)
        x, v, w = x_new, v_new, w_new
    result = solve(problem(noisy), solver, max_steps=STEPS, seed=SEED)
    s = result.state
    for found, wanted in ((s.x, x), (s.w_y, v), (s.w_z, w), (s.y, y), (s.z, z), *zip((*s.f_y, *s.g_y, *s.g_z), (*F, *H, *K))):
        agree(found, wanted)
    assert result.calls.gradients == 2 + STEPS * (6 if noisy else 3)


@NOISY
def test_double_loop_is_the_box(noisy):
    solver = KwonDoubleLoop(sigma=Power(0.5, 0.5), alpha=0.2, gamma=0.3, inner=3, batches=Power(1.0, -0.5), rho=0.7, beta=0.4)
    G, n, spent = Gradients(noisy), 0, 0
    x, v, w = np.zeros(2), np.zeros(3), np.zeros(3)
    y, z = v, w
    for k in range(STEPS):
        sigma, batches = 0.5 / (1 + k) ** 0.5, int(np.ceil((1 + k) ** 0.5))
        for t in range(3):
            v, w = (
                v - 0.3 * (sigma * G.f(x, v, n + t)[1] + G.g(x, v, n + t)[1] + (v - y) / 0.7),
                w - 0.3 * (G.g(x, w, n + t)[1] + (w - z) / 0.7),
            )
        y, z = 0.6 * y + 0.4 * v, 0.6 * z + 0.4 * w
        each = [G.f(x, v, m)[0] + (G.g(x, v, m)[0] - G.g(x, w, m)[0]) / sigma for m in range(n + 3, n + 3 + batches)]
        x, n, spent = clip(x - 0.2 * np.mean(each, 0)), n + 3 + batches, spent + 3 * (3 + batches)
    result = solve(problem(noisy), solver, max_steps=STEPS, seed=SEED)
    s = result.state
    for found, wanted in ((s.x, x), (s.w_y, v), (s.w_z, w), (s.y, y), (s.z, z)):
        agree(found, wanted)
    assert (s.draws, result.calls.gradients) == (n, spent)


@NOISY
@pytest.mark.parametrize("inner", [1, 3])
def test_f2sa_is_the_box(noisy, inner):
    solver = F2SA(alpha=Power(0.1, 5 / 7), gamma=Power(0.4, 4 / 7), lam=2.0, delta=Power(0.5, 6 / 7), ratio=0.8, inner=inner)
    G, lam = Gradients(noisy), 2.0
    x, y, z = np.zeros(2), np.zeros(3), np.zeros(3)
    for k in range(STEPS):
        alpha, gamma = 0.1 / (1 + k) ** (5 / 7), 0.4 / (1 + k) ** (4 / 7)
        for n in range(inner * k, inner * (k + 1)):
            (f_x, f_y), (g_x, g_y), (g_xz, g_z) = G.f(x, y, n), G.g(x, y, n), G.g(x, z, n)
            y, z = y - alpha * (f_y + lam * g_y), z - gamma * g_z
        x = clip(x - 0.8 * alpha * (f_x + lam * (g_x - g_xz)))
        lam += 0.5 / (1 + k) ** (6 / 7)
    result = solve(problem(noisy), solver, max_steps=STEPS, seed=SEED)
    for found, wanted in ((result.state.x, x), (result.state.y, y), (result.state.z, z)):
        agree(found, wanted)
    assert result.state.lam == pytest.approx(lam, rel=1e-13)
    assert result.calls.gradients == 3 * inner * STEPS


def test_single_loop_on_the_noisy_quadratic():
    """1,500 steps: the tail average of x is within 0.15 of the solution; the same bits every time."""
    instance = quadratic(noise=0.01)
    assert instance.error(solve(instance.problem, KwonSingleLoop(), max_steps=1500).x) <= 0.15
    first, again = (solve(instance.problem, KwonSingleLoop(), max_steps=100) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)


def test_single_loop_without_noise():
    """The published schedule: within 0.05 after 9,000 gradients."""
    instance = quadratic()
    solver = KwonSingleLoop(sigma=Power(0.3, 0.5), gamma=0.5, alpha=0.02)
    result = solve(instance.problem, solver, max_steps=2999)
    assert 8990 <= result.calls.gradients <= 9000
    assert instance.error(result.x) <= 0.05


@pytest.mark.parametrize(
    "solver", [F2SA(alpha=3.0), KwonSingleLoop(gamma=5.0), KwonDoubleLoop(gamma=5.0)], ids=lambda s: type(s).__name__
)
def test_steps_that_are_too_long_end_as_diverged(solver):
    result = solve(quadratic().problem, solver, max_steps=2000)
    assert result.status.name in ("DIVERGED", "NONFINITE")
    assert result.steps < 2000


def test_delta_zero_keeps_the_multiplier():
    result = solve(quadratic().problem, F2SA(lam=3.0, delta=0.0), max_steps=5)
    assert result.state.lam == 3.0


def test_options_are_checked_where_they_are_given():
    for solver, name, value in ((KwonSingleLoop, "beta", 0.0), (KwonSingleLoop, "eta", 1.5), (F2SA, "delta", -1.0)):
        with pytest.raises(Exception, match=name):
            solver(**{name: value})
    assert dataclasses.replace(KwonSingleLoop(), beta=1.0).beta == 1.0
