"""BORep, StocBiO and SOBA against numpy loops written from their boxes, true hypergradients, and the exponential problem."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bilevel import SOBA, BilevelProblem, BORep, Box, Checkpoint, Function, NoData, Point, Power, StocBiO, iterate, solve
from bilevel.oracle import LOWER_STREAM, UPPER_STREAM
from constrained.core.vec import Vec
from problems import exponential
from problems.quadratic import Noise

SEED, NOISE, STEPS = 3, 0.05, 9
rng = np.random.default_rng(0)
M, A, B, W = rng.normal(size=(3, 2)), rng.normal(size=3), rng.normal(size=2), np.diag([1.0, 2.0, 0.5])
H = np.array([[1.0, 0.3, 0.0], [0.3, 0.8, -0.1], [0.0, -0.1, 0.4]])
LOW, HIGH = -0.3, 0.4  # the box of x, which the runs touch


# -- two problems with their derivatives by hand ----------------------------------------------------------------------------
class Quadratic:
    """f = 1/2 (y - a)' W (y - a) + 1/2 |x - b|^2 + noise, g = (1 + noise) 1/2 (y - M x)' H (y - M x) + noise."""

    x, y = np.zeros(2), np.array([0.2, -0.1, 0.3])

    def __init__(self, noisy: bool):
        self.sampler = Noise(torch.zeros(6, dtype=torch.float64)) if noisy else None

    def noise(self, stream: int, n: int) -> np.ndarray:
        return NOISE * self.sampler.draw(SEED, stream, n).numpy() if self.sampler else np.zeros(6)

    def f(self, x: np.ndarray, y: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        e = self.noise(UPPER_STREAM, n)
        return x - B + e[:2], W @ (y - A) + e[2:5]

    def g_y(self, x: np.ndarray, y: np.ndarray, n: int) -> np.ndarray:
        e = self.noise(LOWER_STREAM, n)
        return (1 + e[5]) * H @ (y - M @ x) + e[2:5]

    def yy(self, v: np.ndarray, n: int) -> np.ndarray:
        return (1 + self.noise(LOWER_STREAM, n)[5]) * H @ v

    def xy(self, v: np.ndarray, n: int) -> np.ndarray:
        return -(1 + self.noise(LOWER_STREAM, n)[5]) * M.T @ H @ v

    def project(self, x: np.ndarray) -> np.ndarray:
        return np.clip(x, LOW, HIGH)


def quadratic(noisy: bool) -> BilevelProblem:
    m, a, b, w, h = (torch.from_numpy(array) for array in (M, A, B, W, H))

    def upper(x: Tensor, y: Tensor, e: Any = None) -> Tensor:
        value = 0.5 * (y - a) @ w @ (y - a) + 0.5 * ((x - b) ** 2).sum()
        return value if e is None else value + NOISE * e[:5] @ torch.cat([x, y])

    def lower(x: Tensor, y: Tensor, e: Any = None) -> Tensor:
        value = 0.5 * (y - m @ x) @ h @ (y - m @ x)
        return value if e is None else (1 + NOISE * e[5]) * value + NOISE * e[:5] @ torch.cat([x, y])

    x, y = (torch.from_numpy(array.copy()) for array in (Quadratic.x, Quadratic.y))
    data = Noise(torch.zeros(6, dtype=torch.float64)) if noisy else NoData()
    return BilevelProblem(upper=upper, lower=lower, x=x, y=y, X=Box(LOW, HIGH), upper_data=data, lower_data=data)


class Exponential:
    """The zoo's problem with one entry: f = (1 + noise) (exp(3 y) + exp(-3 y) - 2) / 3, g = 1/2 |y - A x|^2 + noise."""

    def __init__(self, seed: int):
        problem, self.seed, self.sampler = exponential(seed=seed).problem, seed, Noise(torch.zeros(1, dtype=torch.float64))
        self.x, self.y = problem.x.numpy().copy(), problem.y.numpy().copy()
        self.A = float(problem.lower_solution(torch.ones(1, dtype=torch.float64)))

    def noise(self, stream: int, n: int) -> np.ndarray:
        return 0.1 * self.sampler.draw(self.seed, stream, n).numpy()

    def f(self, x: np.ndarray, y: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        return 0 * x, (1 + self.noise(UPPER_STREAM, n)) * 2 * np.sinh(3 * y)

    def g_y(self, x: np.ndarray, y: np.ndarray, n: int) -> np.ndarray:
        return y - self.A * x + self.noise(LOWER_STREAM, n)

    def yy(self, v: np.ndarray, n: int) -> np.ndarray:
        return v

    def xy(self, v: np.ndarray, n: int) -> np.ndarray:
        return -self.A * v

    def project(self, x: np.ndarray) -> np.ndarray:
        return x


def slope(x: Any) -> float:
    """|grad Phi| of the exponential problem at x."""
    return float(2 * np.abs(np.sinh(3 * np.asarray(x))).max())


# -- the boxes in numpy -----------------------------------------------------------------------------------------------------
def bo_rep(
    p: Any, steps: int, *, eta: Callable, beta=0.9, nu=0.1, gamma=0.5, period=2, inner=3, radius=np.inf, epochs=4, first=10,
    epoch_radius=np.inf, independent=False, normalised=True,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    def lower(x, c, gamma, steps, radius, n):
        y, points = c, []
        for t in range(steps):
            y = y - gamma * p.g_y(x, y, n + t)
            y = c + (y - c) * min(1.0, radius / max(np.linalg.norm(y - c), 1e-300))
            points.append(y)
        return np.mean(points, 0), n + steps

    x, y, n = p.x, p.y, 0
    v, m = 0 * y, 0 * x
    for e in range(epochs):
        y, n = lower(x, y, gamma / 2**e, 2**e * first, epoch_radius / 2 ** (e / 2), n)
    for k in range(steps):
        if k > 0 and k % period == 0:
            y, n = lower(x, y, gamma, inner, radius, n)
        xi, other = (2 * k, 2 * k + 1) if independent else (k, k)
        v = v - nu * (p.yy(v, n) - p.f(x, y, xi)[1])
        n += independent
        m = beta * m + (1 - beta) * (p.f(x, y, other)[0] - p.xy(v, n))
        n += 1
        x = p.project(x - eta(k) * (m / np.linalg.norm(m) if normalised else m))
    return x, y, v, m


def stocbio(p: Any, steps: int, *, alpha: float, gamma=0.5, nu=0.5, inner=5, terms=10) -> tuple[np.ndarray, ...]:
    x, y, n = p.x, p.y, 0
    for k in range(steps):
        for _ in range(inner):
            y, n = y - gamma * p.g_y(x, y, n), n + 1
        f_x, f_y = p.f(x, y, k)
        factors = range(n, n + terms)  # I - nu A_n first
        v = nu * f_y
        for q in range(terms):  # v = nu sum_q prod_{j < q} (I - nu A_{n + j}) f_y
            term = f_y
            for j in factors[: q + 1]:
                term = term - nu * p.yy(term, j)
            v = v + nu * term
        x = p.project(x - alpha * (f_x - p.xy(v, n + terms)))
        n += terms + 1
    return x, y


def soba(p: Any, steps: int, *, alpha: float, rho: float = 0.5) -> tuple[np.ndarray, ...]:
    x, y, v = p.x, p.y, 0 * p.y
    for k in range(steps):
        f_x, f_y = p.f(x, y, k)
        d_y, d_v = p.g_y(x, y, k), p.yy(v, k) - f_y
        x, y, v = p.project(x - alpha * (f_x - p.xy(v, k))), y - rho * d_y, v - rho * d_v
    return x, y, v


def agree(found: tuple[Vec, ...], wanted: tuple[np.ndarray, ...]) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.tree().numpy(), other, rtol=1e-11, atol=1e-13)


NOISY = pytest.mark.parametrize("noisy", [True, False], ids=["noisy", "exact"])


@NOISY
@pytest.mark.parametrize("paper", [True, False], ids=["paper", "default"])
def test_bo_rep_is_the_box(noisy, paper):
    if paper:
        solver = dataclasses.replace(BORep.paper(eta=0.2, gamma=0.4, nu=0.3, radius=0.25), period=3, epochs=2, epoch_steps=4)
        more = {"eta": lambda k: 0.2, "gamma": 0.4, "nu": 0.3, "radius": 0.25, "epoch_radius": 0.25, "independent": True}
        more |= {"period": 3, "epochs": 2, "first": 4}
    else:
        solver = BORep(gamma=0.4, nu=0.2, beta=0.5, inner=2, epochs=1)
        more = {"eta": lambda k: 0.1 / (1 + k) ** 0.5, "gamma": 0.4, "nu": 0.2, "beta": 0.5, "inner": 2, "epochs": 1}
    s = solve(quadratic(noisy), solver, max_steps=STEPS, seed=SEED).state
    agree((s.x, s.y, s.v, s.m), bo_rep(Quadratic(noisy), STEPS, **more))
    assert bool(((s.x.tree() == LOW) | (s.x.tree() == HIGH)).any())


@NOISY
def test_stocbio_is_the_box(noisy):
    solver = StocBiO(alpha=0.1, gamma=0.4, nu=0.3, inner=2, terms=4)
    s = solve(quadratic(noisy), solver, max_steps=STEPS, seed=SEED).state
    agree((s.x, s.y), stocbio(Quadratic(noisy), STEPS, alpha=0.1, gamma=0.4, nu=0.3, inner=2, terms=4))


@NOISY
def test_soba_is_the_box(noisy):
    s = solve(quadratic(noisy), SOBA(alpha=0.1, rho=0.3), max_steps=STEPS, seed=SEED).state
    agree((s.x, s.y, s.v), soba(Quadratic(noisy), STEPS, alpha=0.1, rho=0.3))


# -- hypergradients ---------------------------------------------------------------------------------------------------------
X0 = np.array([0.15, -0.2])


def phi(x: np.ndarray) -> float:
    y = M @ x
    return 0.5 * (y - A) @ W @ (y - A) + 0.5 * ((x - B) ** 2).sum()


def truth() -> np.ndarray:
    """Central differences of Phi, which is quadratic: exact to rounding."""
    return np.array([(phi(X0 + d) - phi(X0 - d)) / 1e-2 for d in 5e-3 * np.eye(2)])


def flipped(which: str | None) -> BilevelProblem:
    """The quadratic by hand, one of its derivatives with the wrong sign."""
    sign = {name: -1.0 if name == which else 1.0 for name in ("f_x", "f_y", "g_yy", "g_xy")}
    whole = quadratic(False)
    m, a, b, w, h = (torch.from_numpy(array) for array in (M, A, B, W, H))
    upper = Function(whole.upper, gradient=lambda x, y: (sign["f_x"] * (x - b), sign["f_y"] * w @ (y - a)))
    lower = Function(
        whole.lower,
        gradient=lambda x, y: (-m.T @ h @ (y - m @ x), h @ (y - m @ x)),
        hvp=lambda x, y, v: sign["g_yy"] * h @ v,
        jvp=lambda x, y, v: -sign["g_xy"] * m.T @ h @ v,
    )
    return dataclasses.replace(whole, upper=upper, lower=lower)


def directions(problem: BilevelProblem) -> dict[str, np.ndarray]:
    """What each solver takes for grad Phi at x0 with the exact y, and with the exact v where it keeps one."""
    start = Point(torch.from_numpy(X0), torch.from_numpy(M @ X0))
    v = Vec.of(torch.from_numpy(np.linalg.solve(H, W @ (M @ X0 - A))))
    oracle = problem.oracle()
    checked_start = Point(Vec.of(start.x), Vec.of(start.y), None)  # not `begin`, which refuses a flipped sign
    found = {}
    rep, loop, series = BORep(beta=0.0, epochs=0), SOBA(alpha=1e-3), StocBiO(alpha=1e-3, terms=400, nu=0.7)
    with torch.no_grad():
        found["BORep"] = rep.step(oracle, dataclasses.replace(rep.init(oracle, checked_start), v=v)).m.tree().numpy()
        moved = loop.step(oracle, dataclasses.replace(loop.init(oracle, checked_start), v=v)).x
        found["SOBA"] = (X0 - moved.tree().numpy()) / 1e-3
        moved = series.step(oracle, series.init(oracle, checked_start)).x
        found["StocBiO"] = (X0 - moved.tree().numpy()) / 1e-3
    return found


def test_at_exact_y_and_v_the_direction_is_the_hypergradient():
    for name, found in directions(flipped(None)).items():
        assert np.linalg.norm(found - truth()) <= 1e-8 * np.linalg.norm(truth()), name
    for found in directions(quadratic(False)).values():  # the same by autograd
        assert np.linalg.norm(found - truth()) <= 1e-8 * np.linalg.norm(truth())


@pytest.mark.parametrize("which", ["f_x", "f_y", "g_yy", "g_xy"])
def test_a_flipped_sign_is_seen(which):
    for name, found in directions(flipped(which)).items():
        if (name, which) in (("SOBA", "f_y"), ("SOBA", "g_yy")):  # its x does not see v's own step
            continue
        assert not np.linalg.norm(found - truth()) <= 1e-2 * np.linalg.norm(truth()), name


# -- the exponential problem ------------------------------------------------------------------------------------------------
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
OVERFLOW = ("NONFINITE", "DIVERGED")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_bo_rep_solves_what_grows_exponentially(seed):
    """2,000 steps from a gradient of 6.6e7. Gradients of g: N floor((K - 1) / I), the refinement, L, one a step for products."""
    K, problem = 2000, exponential(seed=seed).problem
    result = solve(problem, BORep(), max_steps=K, seed=seed)
    assert slope(problem.x) > 6e7
    assert slope(result.x) <= 0.2
    upper, lower = (result.calls.by["solve"][name] for name in ("upper", "lower"))
    assert (upper.gradients, lower.hvps, lower.jvps) == (K, K, K)
    assert lower.gradients == 2997 + 150 + 10 + K


@SEEDS
@pytest.mark.parametrize("alpha", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
@pytest.mark.parametrize("solver", [StocBiO(), SOBA()], ids=lambda s: type(s).__name__)
def test_steps_along_the_gradient_overflow(solver, alpha, seed):
    result = solve(exponential(seed=seed).problem, dataclasses.replace(solver, alpha=alpha), max_steps=50, seed=seed)
    assert result.status.name in OVERFLOW
    assert result.steps <= 10


@pytest.mark.parametrize("box", [stocbio, soba])
def test_no_decade_of_shorter_steps_arrives(box):
    """The mean of three seeds, by the boxes in numpy. In between a first step may land near the solution: a matter of luck."""
    with np.errstate(over="ignore", invalid="ignore"):
        left = [[slope(box(Exponential(seed), 2000, alpha=alpha)[0]) for seed in range(3)] for alpha in (1e-9, 1e-8, 1e-7)]
    assert np.isfinite(left).all()
    assert np.mean(left, 1).min() >= 100


@SEEDS
def test_without_the_normalisation_bo_rep_overflows_too(seed):
    p = Exponential(seed)
    with np.errstate(over="ignore", invalid="ignore"):
        assert not np.isfinite(bo_rep(p, 5, eta=lambda k: 1e-2, normalised=False)[0]).all()
    assert np.isfinite(bo_rep(p, 5, eta=lambda k: 1e-2)[0]).all()


def test_on_the_exponential_problem_too_they_are_the_boxes():
    problem, p = exponential(seed=1).problem, Exponential(1)
    s = solve(problem, StocBiO(alpha=1e-8, gamma=0.5, nu=0.5), max_steps=5, seed=1).state
    agree((s.x, s.y), stocbio(p, 5, alpha=1e-8))
    s = solve(problem, SOBA(alpha=1e-8, rho=0.5), max_steps=5, seed=1).state
    agree((s.x, s.y, s.v), soba(p, 5, alpha=1e-8))


# -- the rest ---------------------------------------------------------------------------------------------------------------
def test_y_stays_in_its_ball():
    """|y_k - y_{k-1}| <= R at every step, reached in some; the refinement moves y by R (1 + 1 / sqrt 2 + ...) at most."""
    radius, last, moves = 0.01, None, []
    solver = dataclasses.replace(BORep.paper(eta=0.1, gamma=0.5, nu=0.1, radius=radius), inner=20)
    for event in iterate(quadratic(True), solver, max_steps=40, seed=SEED):
        y = event.state.y.tree().clone()
        before, last = (torch.from_numpy(Quadratic.y) if last is None else last), y
        moves.append(float((y - before).norm()))
    shrinking = radius * sum(2 ** (-e / 2) for e in range(4))
    assert 0.5 * radius < moves[0] <= shrinking
    assert max(moves[1:]) <= radius * (1 + 1e-12)
    assert max(moves[1:]) > 0.9 * radius
    assert moves[1:3] + moves[4::2] == [0.0] * 21  # y is kept between two renewals


def test_every_step_of_x_has_its_length():
    """eta_k on the way, whatever the gradient's size."""
    before = torch.full((1,), 6.0, dtype=torch.float64)
    for event in iterate(exponential().problem, BORep(eta=Power(0.3, 0.5)), max_steps=10):
        x = event.state.x.tree().clone()
        if event.k:
            assert float((x - before).norm()) == pytest.approx(0.3 / event.k**0.5, rel=1e-12)
        before = x


def test_a_run_resumed_half_way_has_the_same_bits(tmp_path):
    problem, solver = exponential(n=3, size=2.0).problem, BORep.paper(eta=0.05, gamma=0.3, nu=0.2)
    whole = solve(problem, solver, max_steps=40)
    solve(problem, solver, max_steps=20, callbacks=[Checkpoint(tmp_path / "half", every=20)])
    resumed = solve(problem, solver, max_steps=40, resume=tmp_path / "half", callbacks=[Checkpoint(tmp_path / "x", every=99)])
    assert (resumed.steps, resumed.calls.gradients) == (whole.steps, whole.calls.gradients)
    for name in "xyvm":
        assert torch.equal(getattr(whole.state, name).tree(), getattr(resumed.state, name).tree())


@pytest.mark.parametrize("solver", [BORep(nu=5.0), SOBA(rho=3.0)], ids=lambda s: type(s).__name__)
def test_a_v_that_grows_ends_the_run(solver):
    result = solve(quadratic(False), solver, max_steps=2000)
    assert result.status.name in OVERFLOW
    assert result.steps < 200
    assert bool(result.x.isfinite().all())


def test_an_indefinite_lower_hessian_ends_the_run():
    """y stays at a saddle of g where nothing pushes it off; v grows by 1 + nu a step."""
    one = torch.zeros(2, dtype=torch.float64)
    problem = BilevelProblem(
        upper=lambda x, y: ((y - 1) ** 2).sum() + (x**2).sum(),
        lower=lambda x, y: 0.5 * y[0] ** 2 - 0.5 * y[1] ** 2 + 0 * x.sum(),
        x=one,
        y=one.clone(),
    )
    result = solve(problem, BORep(epochs=0), max_steps=2000)
    assert result.status.name == "DIVERGED"


def test_nothing_moves_where_the_gradient_is_zero():
    one = torch.ones(2, dtype=torch.float64)
    problem = BilevelProblem(upper=lambda x, y: (y**2).sum() * 0, lower=lambda x, y: ((y - x) ** 2).sum(), x=one, y=one)
    assert torch.equal(solve(problem, BORep(), max_steps=3).x, one)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.gru, self.out = nn.Embedding(6, 4), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.gru(self.embed(tokens))[0].amax(1))[:, 0]


@pytest.mark.parametrize("solver", [BORep(), StocBiO(terms=3), SOBA()], ids=lambda s: type(s).__name__)
def test_recurrent_networks_work(solver):
    """A GRU as the lower variable and a weight a sample: second derivatives go through it, and f falls."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, tokens = Tagger(), torch.randint(0, 6, (12, 5))
    labels = (tokens == 0).any(1).float()
    loss = nn.functional.binary_cross_entropy_with_logits

    def lower(x: Tensor, net: Tagger) -> Tensor:
        each = loss(net(tokens), labels, reduction="none")
        return (x.sigmoid() * each).mean() + 0.01 * sum((p**2).sum() for p in net.parameters())

    problem = BilevelProblem(upper=lambda x, net: loss(net(tokens), labels), lower=lower, x=torch.zeros(12), y=model)
    result = solve(problem, solver, max_steps=30)
    before, after = (problem.upper(None, net).item() for net in (model, result.module()))
    assert after < before
    assert float(result.x.norm()) > 0
