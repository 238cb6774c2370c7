"""L-BFGS, projected L-BFGS and SPG alone: the right minimiser, or the right reason."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch

from constrained.core.vec import Vec, copy, finite
from constrained.descent import LBFGS, SPG, DescentStatus, Pairs, ProjectedLBFGS, minimise
from constrained.sets import Affine, Ball, Box, Everywhere, Halfspace, Product, Simplex

F64 = torch.float64


def vec(values, dtype=F64):
    return Vec.of(torch.tensor(values, dtype=dtype))


def array(v):
    return v.tree().double().numpy()


class Counted:
    """An objective from numpy functions of one array, counting evaluations."""

    def __init__(self, value, gradient):
        self.value, self.gradient, self.calls = value, gradient, 0

    def __call__(self, x):
        self.calls += 1
        flat = array(x)
        return float(self.value(flat)), x.like([torch.tensor(self.gradient(flat), dtype=x.dtype)])


def quadratic(values, seed=0):
    """(x - c)' A (x - c) / 2 with these eigenvalues of A."""
    rng, n = np.random.default_rng(seed), len(values)
    Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    A, c = Q @ np.diag(values) @ Q.T, rng.normal(size=n)
    return Counted(lambda x: 0.5 * (x - c) @ A @ (x - c), lambda x: A @ (x - c)), A, c


def rosenbrock():
    return Counted(scipy.optimize.rosen, scipy.optimize.rosen_der)


TIGHT = {"solver": "CLARABEL", "tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}  # without them it is 1e-5 off
METHODS = pytest.mark.parametrize("method", [LBFGS(), ProjectedLBFGS(), SPG()], ids=["LBFGS", "ProjectedLBFGS", "SPG"])


@METHODS
@pytest.mark.parametrize("values", [np.linspace(1, 3, 10), np.logspace(0, -2, 10), 1e6 * np.linspace(1, 3, 10), np.ones(10)])
@pytest.mark.parametrize("seed", range(3))
def test_quadratics(method, values, seed):
    objective, A, c = quadratic(values, seed)
    found = minimise(method, objective, vec(np.zeros(10)), tol=1e-8)
    assert found.reason is DescentStatus.CONVERGED
    assert found.residual == pytest.approx(np.linalg.norm(A @ (array(found.x) - c)), rel=1e-6, abs=1e-12)
    assert found.residual <= 1e-8
    assert array(found.x) == pytest.approx(c, abs=2e-8 / values.min())


@pytest.mark.parametrize("cond", [1e4, 1e6])
def test_ill_conditioned_quadratics(cond):
    objective, _, c = quadratic(np.logspace(0, -math.log10(cond), 20))
    found = minimise(LBFGS(), objective, vec(np.zeros(20)), tol=1e-9)
    assert found.reason is DescentStatus.CONVERGED
    assert array(found.x) == pytest.approx(c, abs=1e-9 * cond)


@pytest.mark.parametrize("n", [2, 10])
def test_rosenbrock(n):
    objective = rosenbrock()
    found = minimise(LBFGS(), objective, vec(np.full(n, -1.2)), tol=1e-9)
    assert found.reason is DescentStatus.CONVERGED
    assert np.linalg.norm(scipy.optimize.rosen_der(array(found.x))) <= 1e-9
    theirs = scipy.optimize.minimize(scipy.optimize.rosen, np.full(n, -1.2), jac=scipy.optimize.rosen_der, method="L-BFGS-B")
    assert found.value <= theirs.fun + 1e-12
    assert objective.calls <= 4 * theirs.nfev + 50


def test_rosenbrock_by_spg():
    found = minimise(SPG(), rosenbrock(), vec([-1.2, 1.0]), tol=1e-6)
    assert found.reason is DescentStatus.CONVERGED
    assert array(found.x) == pytest.approx([1, 1], abs=1e-4)


# -- sets -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(5))
@METHODS
def test_box(method, seed):
    """LBFGS hands over to the projected one; the answer is scipy's L-BFGS-B's."""
    objective, A, c = quadratic(np.logspace(0, -2, 8), seed)
    found = minimise(method, objective, vec(np.zeros(8)), tol=1e-9, X=Box(-0.3, 0.4))
    assert found.reason is DescentStatus.CONVERGED
    options = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 10_000}
    theirs = scipy.optimize.minimize(
        objective.value, np.zeros(8), jac=objective.gradient, bounds=[(-0.3, 0.4)] * 8, method="L-BFGS-B", options=options
    )
    assert array(found.x) == pytest.approx(theirs.x, abs=1e-5)
    assert found.value <= theirs.fun + 1e-12
    x, g = array(found.x), A @ (array(found.x) - c)
    assert found.residual == pytest.approx(np.linalg.norm(x - np.clip(x - g, -0.3, 0.4)), abs=1e-14)


@METHODS
def test_rosenbrock_in_a_box(method):
    found = minimise(method, rosenbrock(), vec([-1.0, -1.0]), tol=1e-8, X=Box(-2, 0.5))
    assert found.reason is DescentStatus.CONVERGED
    assert array(found.x) == pytest.approx([0.5, 0.25], abs=1e-6)


@pytest.mark.parametrize(
    ("make", "project"),
    [
        (lambda c: Ball(0.5), lambda c: c * min(1, 0.5 / np.linalg.norm(c))),
        (lambda c: Simplex(), None),
        (lambda c: Affine(np.ones((1, 6)), [1.0]), lambda c: c - (c.sum() - 1) / 6),
        (lambda c: Halfspace(np.ones(6), -1.0), lambda c: c - max(c.sum() + 1, 0) / 6),
    ],
    ids=["ball", "simplex", "affine", "halfspace"],
)
def test_nearest_point_of_a_set(make, project):
    """min |x - c|^2 over a set is a projection: known in closed form, or from cvxpy."""
    cvxpy = pytest.importorskip("cvxpy")
    c = np.random.default_rng(4).normal(size=6)
    found = minimise(SPG(), Counted(lambda x: ((x - c) ** 2).sum(), lambda x: 2 * (x - c)), vec(np.ones(6)), tol=1e-10, X=make(c))
    assert found.reason is DescentStatus.CONVERGED
    if project is None:
        x = cvxpy.Variable(6)
        cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(x - c)), [x >= 0, cvxpy.sum(x) == 1]).solve(**TIGHT)
        truth, close = x.value, 1e-6
    else:
        truth, close = project(c), 1e-10
    assert array(found.x) == pytest.approx(truth, abs=close)


@pytest.mark.parametrize("name", ["ball", "simplex"])
def test_quadratic_over_a_set(name):
    cvxpy = pytest.importorskip("cvxpy")
    objective, A, c = quadratic(np.logspace(0, -1, 7), 3)
    x = cvxpy.Variable(7)
    within = {"ball": [cvxpy.norm(x) <= 0.7], "simplex": [x >= 0, cvxpy.sum(x) == 1]}[name]
    cvxpy.Problem(cvxpy.Minimize(0.5 * cvxpy.quad_form(x - c, cvxpy.psd_wrap(A))), within).solve(**TIGHT)
    found = minimise(SPG(), objective, vec(np.zeros(7)), tol=1e-9, X={"ball": Ball(0.7), "simplex": Simplex()}[name])
    assert found.reason is DescentStatus.CONVERGED
    assert array(found.x) == pytest.approx(x.value, abs=1e-5)


def test_suited():
    assert isinstance(LBFGS().for_set(Everywhere()), LBFGS)
    assert isinstance(LBFGS().for_set(Product({"a": Everywhere()})), LBFGS)
    assert LBFGS(memory=7).for_set(Box(0, 1)) == ProjectedLBFGS(memory=7)
    assert isinstance(LBFGS().for_set(Ball(1.0)), SPG)
    assert isinstance(ProjectedLBFGS().for_set(Simplex()), SPG)
    assert SPG(window=3).for_set(Box(0, 1)) == SPG(window=3)


# -- the ends ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shift", [0.0, 1.0, 1e3])
def test_tolerance_far_below_what_values_show(seed, shift):
    """Rank-deficient, values of 1e-20 and less near the optimum (or flat beside `shift`): |g| <= 1e-12 is reached."""
    objective, A, c = quadratic(np.r_[np.logspace(0, -2, 12), np.zeros(8)], seed)
    moved = Counted(lambda x: objective.value(x) + shift, objective.gradient)
    found = minimise(LBFGS(), moved, vec(np.zeros(20)), tol=1e-12)
    assert found.reason is DescentStatus.CONVERGED, (found.reason, found.residual)
    assert np.linalg.norm(A @ (array(found.x) - c)) <= 2e-12


@METHODS
def test_tolerance_below_rounding(method):
    """1e-30 cannot be reached away from a representable minimiser: PRECISION, soon, at a point as good as rounding allows."""
    objective, _, c = quadratic(np.logspace(0, -1, 10), 1)
    found = minimise(method, objective, vec(np.zeros(10)), tol=1e-30)
    assert found.reason is DescentStatus.PRECISION or found.residual <= 1e-30
    assert objective.calls < 3000
    assert array(found.x) == pytest.approx(c, abs=1e-6 if isinstance(method, SPG) else 1e-12)


def test_precision_in_float32():
    objective, _, c = quadratic(np.linspace(1, 2, 5), 1)
    found = minimise(LBFGS(), objective, vec(np.zeros(5), torch.float32), tol=1e-12)
    assert found.reason is DescentStatus.PRECISION
    assert found.x.dtype is torch.float32
    assert array(found.x) == pytest.approx(c, abs=1e-5)


UNBOUNDED = {
    "linear": (lambda x: x.sum(), np.ones_like),
    "concave": (lambda x: -(x**2).sum(), lambda x: -2 * x),
    "cubic": (lambda x: (x**3).sum(), lambda x: 3 * x**2),
    "exponential": (lambda x: -np.exp(x).sum(), lambda x: -np.exp(x)),
}


@METHODS
@pytest.mark.parametrize("name", UNBOUNDED)
def test_unbounded(method, name):
    """Never a hang and never CONVERGED: within a few thousand evaluations an end with a reason."""
    value, gradient = UNBOUNDED[name]

    class Long(Counted):
        def __call__(self, x):
            assert self.calls < 20_000, "hangs"
            return super().__call__(x)

    with np.errstate(all="ignore"):
        found = minimise(method, Long(value, gradient), vec([-1.0, -2.0]), tol=1e-9, max_steps=10_000)
    assert found.reason in (DescentStatus.UNBOUNDED, DescentStatus.NONFINITE, DescentStatus.MAX_STEPS)
    if isinstance(method, LBFGS):
        assert found.reason is not DescentStatus.MAX_STEPS


@METHODS
def test_linear_on_a_bounded_set_has_a_minimum(method):
    found = minimise(method, Counted(lambda x: x.sum(), np.ones_like), vec([0.5, 0.2]), tol=1e-12, X=Box(-1, 1))
    assert found.reason is DescentStatus.CONVERGED
    assert array(found.x).tolist() == [-1, -1]


@METHODS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_objective_that_is_not_finite_at_the_start(method, bad):
    found = minimise(method, Counted(lambda x: bad, lambda x: x), vec([1.0]), tol=1e-9)
    assert found.reason is DescentStatus.NONFINITE
    gradient = minimise(method, Counted(lambda x: 1.0, lambda x: x * bad), vec([1.0]), tol=1e-9)
    assert gradient.reason is DescentStatus.NONFINITE


@METHODS
def test_region_that_is_not_finite_is_avoided(method):
    """x - log(x): steps beyond 0 give NaN and are cut back."""
    with np.errstate(all="ignore"):
        found = minimise(method, Counted(lambda x: (x - np.log(x)).sum(), lambda x: 1 - 1 / x), vec([0.01, 30.0]), tol=1e-9)
    assert found.reason is DescentStatus.CONVERGED
    assert array(found.x) == pytest.approx([1, 1], abs=1e-8)


@METHODS
def test_wrong_gradient_gives_a_reason(method):
    """Uphill called downhill: no hang."""
    found = minimise(method, Counted(lambda x: (x**2).sum(), lambda x: -2 * x), vec([1.0, 2.0]), tol=1e-9)
    assert found.reason in (DescentStatus.LINE_SEARCH, DescentStatus.PRECISION)


def test_limit_of_steps_and_start_at_the_minimum():
    found = minimise(LBFGS(), rosenbrock(), vec([-1.2, 1.0]), tol=1e-12, max_steps=3)
    assert (found.reason, found.steps) == (DescentStatus.MAX_STEPS, 3)
    at_once = minimise(LBFGS(), rosenbrock(), vec([1.0, 1.0]), tol=1e-12)
    assert (at_once.reason, at_once.steps) == (DescentStatus.CONVERGED, 0)


# -- memory -----------------------------------------------------------------------------------------------------------------
def test_memory_carried_over_saves_evaluations():
    """The same quadratic with its minimiser moved a little."""
    first, A, c = quadratic(np.logspace(0, -3, 15))
    known = minimise(LBFGS(), first, vec(np.zeros(15)), tol=1e-9)
    moved = c + 0.01 * np.random.default_rng(1).normal(size=15)

    def second():
        return Counted(lambda x: 0.5 * (x - moved) @ A @ (x - moved), lambda x: A @ (x - moved))

    cold, warm = second(), second()
    minimise(LBFGS(), cold, known.x, tol=1e-9)
    found = minimise(LBFGS(), warm, known.x, tol=1e-9, memory=known.memory)
    assert found.reason is DescentStatus.CONVERGED
    assert array(found.x) == pytest.approx(moved, abs=1e-5)
    assert warm.calls < 0.8 * cold.calls


def two_loops(S, Y, scale, g):
    """Nocedal and Wright, Algorithm 7.4; pairs from the oldest to the newest."""
    q, alphas = g.copy(), []
    for s, y in reversed(list(zip(S, Y))):
        alphas.append(s @ q / (y @ s))
        q = q - alphas[-1] * y
    r = scale * q
    for (s, y), alpha in zip(zip(S, Y), reversed(alphas)):
        r = r + s * (alpha - y @ r / (y @ s))
    return r


@pytest.mark.parametrize("count", [0, 1, 3, 5, 6, 9, 23])
def test_pairs_are_the_two_loop_recursion(count):
    """Also after the ring of 5 has wrapped, once or often."""
    rng = np.random.default_rng(count)
    root = rng.normal(size=(8, 8))
    A = root @ root.T + np.eye(8)
    S = rng.normal(size=(count, 8))
    Y = S @ A
    pairs = Pairs.empty(5, vec(np.zeros(8)), 0.3)
    for s, y in zip(S, Y):
        pairs = pairs.add(vec(s), vec(y), vec(y))
    assert pairs.count == min(count, 5)
    S, Y = S[-5:], Y[-5:]
    scale = S[-1] @ Y[-1] / (Y[-1] @ Y[-1]) if count else 0.3
    assert pairs.scale == pytest.approx(scale, rel=1e-14)
    for _ in range(3):
        g = rng.normal(size=8)
        assert array(pairs.solve(vec(g))) == pytest.approx(two_loops(S, Y, scale, g), rel=1e-9, abs=1e-11)
    if count:
        assert array(pairs.solve(vec(Y[-1]))) == pytest.approx(S[-1], rel=1e-8, abs=1e-10)  # the secant equation


def test_pairs_that_bend_the_wrong_way_are_left_out():
    x, g = vec([1.0, 0.0]), vec([2.0, 1.0])
    pairs = Pairs.empty(3, x.zeros(), 1.0).add(vec([1.0, 0.0]), vec([2.0, 0.0]), g)
    for y in ([-1.0, 0.0], [0.0, 1.0], [math.nan, 0.0]):
        assert pairs.add(vec([1.0, 0.0]), vec(y), g).count == 1


# -- init and step by hand --------------------------------------------------------------------------------------------------
@METHODS
def test_pure_steps_on_a_dict(method):
    """init and step by hand give what `minimise` gives; a copied state can be stepped again to the same bits."""

    def objective(v):
        x = {name: leaf.clone().requires_grad_() for name, leaf in v.tree().items()}
        value = ((x["a"] - 1) ** 2).sum() + 3 * (x["b"] + 2 - x["a"].sum()) ** 2
        return float(value.detach()), v.like(torch.autograd.grad(value, list(x.values())))

    start = Vec.of({"b": torch.tensor(0.0, dtype=F64), "a": torch.zeros(2, 1, dtype=F64)})
    before, X = start.clone(), Everywhere()
    s = method.init(objective, X, start)
    for _ in range(4):
        kept = copy(s)
        s = method.step(objective, X, s)
        again = method.step(objective, X, copy(kept))
        assert torch.equal(again.x.ravel(), s.x.ravel())
        assert (again.k, again.value, again.residual) == (s.k, s.value, s.residual)
        assert finite(s)
    assert torch.equal(start.ravel(), before.ravel())
    found = minimise(method, objective, start, tol=0.0, max_steps=4)
    assert torch.equal(found.x.ravel(), s.x.ravel())
    done = minimise(method, objective, start, tol=1e-9)
    assert list(done.x.tree()) == ["b", "a"]
    assert done.x.tree()["a"].shape == (2, 1)
    assert done.x.tree()["a"].ravel().tolist() == pytest.approx([1, 1], abs=1e-8)
    assert done.x.tree()["b"].item() == pytest.approx(0, abs=1e-8)


# -- kinks ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [0.3, 1e-3, -0.7])
def test_a_kink_in_a_box_is_found_in_few_evaluations(at):
    """exp(x) / 10 + 3 |x - at|: to rounding, and told as no smooth minimum. Bisections alone took 86 to 137."""
    objective = Counted(lambda x: (0.1 * np.exp(x) + 3 * abs(x - at)).sum(), lambda x: 0.1 * np.exp(x) + 3 * np.sign(x - at))
    found = minimise(LBFGS(), objective, vec([1.5]), tol=1e-8, X=Box(-2, 2))
    assert array(found.x) == pytest.approx([at], abs=1e-12)
    assert found.reason in (DescentStatus.LINE_SEARCH, DescentStatus.PRECISION)
    assert objective.calls <= 70


# -- sizes at which squares overflow or vanish --------------------------------------------------------------------------------
@METHODS
@pytest.mark.parametrize("scale", [1e-200, 1e-170, 1e160, 1e200])
def test_extreme_sizes_end_with_a_reason(method, scale):
    objective = Counted(lambda x: abs(x).sum() + 0 * x.sum(), np.sign)
    assert isinstance(minimise(method, objective, vec([scale, -scale]), tol=1e-8, max_steps=50).reason, DescentStatus)
    falling = Counted(lambda x: -scale * x.sum(), lambda x: -scale * np.ones(2))
    assert isinstance(minimise(method, falling, vec([0.0, 1.0]), tol=1e-8, max_steps=50).reason, DescentStatus)
