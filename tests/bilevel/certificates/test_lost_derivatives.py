"""Derivatives that lie: lost, lost in part, wrong, or lost when differentiated twice. Nobody may say CONVERGED on them."""

import pytest
import torch

import bilevel
from bilevel import (
    GPBGD,
    MAID,
    SOBA,
    BilevelError,
    BilevelProblem,
    BORep,
    Feature,
    Function,
    GPBGDFixedStep,
    Implicit,
    Penalty,
    Point,
    ProblemError,
    StocBiO,
    Unsuitable,
    hypergradient,
    recommend,
    solve,
    solvers,
)
from constrained import AugmentedLagrangian, Box, ConstrainedProblem, Simplex, Vec
from constrained.core.derivatives import looks

F64 = torch.float64
x0, zeros = torch.tensor([0.3, 0.2], dtype=F64), torch.zeros(2, dtype=F64)


class Square(torch.autograd.Function):
    """|v|^2 whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v**2).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * 2 * ctx.saved_tensors[0]


def upper(x, y):
    return ((y - 1) ** 2).sum() + 0.1 * (x**2).sum()


def problem(lower):
    return BilevelProblem(upper=upper, lower=lower, x=x0, y=zeros)


LOST = {
    "detached": lambda x, y: ((y - 3 * x.detach()) ** 2).sum(),
    "a float": lambda x, y: ((y - 1) ** 2).sum() + float(x.exp().sum()) * (y**2).sum(),  # no slope at y = 0 in any case
    "numpy": lambda x, y: ((y - torch.from_numpy(x.detach().numpy())) ** 2).sum(),
    "steps": lambda x, y: ((y - x.round()) ** 2).sum(),
}
ASKED = {
    "solve": lambda p: solve(p),
    "hypergradient": lambda p: hypergradient(p, x0),
    "value": lambda p: p.value(x0.clone().requires_grad_()),
    "response": lambda p: p.response(x0),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize("how", LOST)
@pytest.mark.parametrize("asked", ASKED)
def test_a_lost_derivative_is_refused_at_the_start(how, asked):
    with pytest.raises(ProblemError, match="lower: its derivative in x is 0, but its values change with x"):
        ASKED[asked](problem(LOST[how]))


def test_a_derivative_lost_in_part_is_found():
    part = problem(lambda x, y: ((y - 3 * x.detach() - x) ** 2).sum())
    for ask in ASKED.values():
        with pytest.raises(ProblemError, match="lower: d/dx by"):
            ask(part)
    assert part.certify(Point(x0, zeros))["lower: d/dx"] > 0.1


def test_a_derivative_lost_far_from_the_start_is_found_at_the_answer():
    """Beyond x = 0.75 a half of the slope in x is lost; the answer is at 1 / 1.1."""
    far = problem(lambda x, y: ((y - torch.where(x > 0.75, 0.5 * (x + x.detach()), x)) ** 2).sum())
    result = solve(far, max_steps=200)
    assert not result.status.ok
    assert result.certify()["lower: d/dx"] > 0.1


def test_a_derivative_lost_near_the_start_alone_is_refused():
    """Weights of detached losses that vanish towards the answer."""
    near = problem(lambda x, y: ((y - x) ** 2 * (1 + (-((y - x.detach()) ** 2)).exp().detach())).sum())
    with pytest.raises(ProblemError, match=r"lower: d/d[xy] by"):
        solve(near)


def test_functions_with_noise_of_their_own_are_not_called_wrong():
    """No difference is to be had of them: other values at the same point."""
    generator = torch.Generator().manual_seed(0)
    noisy = problem(lambda x, y: ((y - x) ** 2).sum() * (1 + 0.1 * torch.rand((), generator=generator, dtype=F64)))
    noisy.begin(noisy.oracle(), None)


def test_a_plateau_is_no_lost_derivative():
    """Slope 0 at both of two points, other values there: what tells is the way between them."""
    for sign in (1.0, -1.0):
        looks_fine = problem(lambda x, y, s=sign: ((y - (s * x + 0.05).clamp(0, 0.1)) ** 2).sum())
        for start in (-0.5 * torch.ones(2, dtype=F64), 0.5 * torch.ones(2, dtype=F64)):
            at = BilevelProblem(upper=upper, lower=looks_fine.lower, x=start, y=zeros)
            at.begin(at.oracle(), None)


CDIST = problem(lambda x, y: torch.cdist(y[None], x[None] + 3).sum() ** 2 * 0.5 + ((y - x) ** 2).sum())
OWN = problem(lambda x, y: Square.apply(y - x))


@pytest.mark.parametrize(("one", "truth"), [(CDIST, 0.0), (OWN, 1 / 1.1)], ids=["cdist", "own"])
def test_a_first_order_solver_where_second_derivatives_are_missing(one, truth):
    """y = x below for OWN: the least of (x - 1)^2 + x^2 / 10. For CDIST y = x + 1, so that x = 0."""
    found = recommend(one)
    assert type(found.solver) is Penalty
    assert "lower" in found.reasons[0]
    result = solve(one)
    assert result.status.ok
    assert "upper_estimate" in result.residuals()
    assert result.x.tolist() == pytest.approx([truth] * 2, abs=1e-5)


@pytest.mark.parametrize("solver", [Implicit, MAID, GPBGD, GPBGDFixedStep, StocBiO, SOBA, BORep])
@pytest.mark.parametrize("one", [CDIST, OWN], ids=["cdist", "own"])
def test_a_solver_that_needs_second_derivatives_is_refused(solver, one):
    """Steps with products of zeros would stay where they are."""
    with pytest.raises(Unsuitable, match=f"{solver.__name__} needs products with g_yy and g_xy: lower"):
        solve(one, solver(), max_steps=20)


def test_every_solver_of_second_order_says_so():
    """Those that run on functions without own products ask for none; LVHBA and ScaleBiO have no `Function` below."""
    silent = {name for name in solvers.__all__ if not getattr(bilevel, name).curved}
    first = {name for name in solvers.__all__ if Feature.NO_HVP in getattr(bilevel, name).supports}
    assert silent == first | {"LVHBA", "LVHBASingleLoop", "ScaleBiO"}


@pytest.mark.parametrize("one", [CDIST, OWN], ids=["cdist", "own"])
def test_hypergradients_name_what_is_missing(one):
    for asked in ("hypergradient", "value", "response"):
        with pytest.raises(Unsuitable, match="products with g_yy and g_xy"):
            ASKED[asked](one)


def test_phi_is_differentiable_once():
    p = problem(lambda x, y: ((y - x) ** 2).sum())
    with pytest.raises(Unsuitable, match="differentiable once"):
        torch.autograd.functional.hessian(p.value, x0)
    x = x0.clone().requires_grad_()
    (grad,) = torch.autograd.grad(2 * p.value(x), x, create_graph=True)
    assert grad.tolist() == pytest.approx((4 * (x0 - 1) + 0.4 * x0).tolist())


# -- constrained ------------------------------------------------------------------------------------------------------------
OBJECTIVES = {
    "detach": lambda x: ((x.detach() - 1) ** 2).sum(),
    "no_grad": torch.no_grad()(lambda x: ((x - 1) ** 2).sum()),
    "numpy": lambda x: torch.tensor(float(((x.detach().numpy() - 1) ** 2).sum()), dtype=F64),
    "steps": lambda x: ((x.round() - 1) ** 2).sum(),
    "zero gradient": Function(lambda x: ((x - 1) ** 2).sum(), gradient=lambda x: 0 * x),
}


@pytest.mark.parametrize("how", OBJECTIVES)
def test_an_objective_that_lost_its_derivative_is_refused(how):
    with pytest.raises(ProblemError, match="objective: its derivative in x is 0"):
        solve(ConstrainedProblem(objective=OBJECTIVES[how], x=x0))


@pytest.mark.parametrize("kind", ["equality", "inequality"])
def test_a_constraint_that_lost_its_derivative_is_refused(kind):
    with pytest.raises(ProblemError, match=f"{kind}: its derivative in x is 0"):
        solve(ConstrainedProblem(objective=lambda x: (x**2).sum(), x=x0, **{kind: lambda x: x.detach().sum() - 1}))


def test_a_wrong_gradient_is_not_certified():
    """It vanishes at x = 2, where the function does not."""
    wrong = Function(lambda x: ((x - 1) ** 2).sum(), gradient=lambda x: 2 * (x - 2))
    p = ConstrainedProblem(objective=wrong, x=x0)
    with pytest.raises(ProblemError, match="objective: gradient by"):
        solve(p)
    assert p.certify(Point(2 * torch.ones(2, dtype=F64), None))["objective: gradient"] > 0.1


def test_a_gradient_that_is_wrong_away_from_the_start_is_not_certified():
    """Right below 0.8; beyond, it vanishes at x = 0.9, where the function does not."""
    late = Function(lambda x: ((x - 1) ** 2).sum(), gradient=lambda x: torch.where(x < 0.8, 2 * (x - 1), 2 * (x - 0.9)))
    result = solve(ConstrainedProblem(objective=late, x=x0), max_steps=50)
    assert not result.status.ok
    assert result.certify()["objective: gradient"] > 0.1


def test_constants_and_features_are_no_lost_derivatives():
    """A feasibility problem has an objective that is constant."""
    for constant in (lambda x: 0 * x.sum(), lambda x: torch.zeros((), dtype=F64)):
        found = solve(ConstrainedProblem(objective=constant, equality=lambda x: x.sum() - 1, x=x0))
        assert found.status.ok


def test_newton_is_not_taken_where_the_hessian_is_lost():
    p = ConstrainedProblem(objective=lambda x: Square.apply(x - 1), equality=lambda x: x.sum() - 1, x=x0)
    found = solve(p)
    assert type(found.solver) is AugmentedLagrangian
    assert found.status.ok
    assert found.x.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_under_inference_mode_nothing_is_solved():
    p = ConstrainedProblem(objective=lambda x: ((x - 1) ** 2).sum(), x=x0)
    with torch.inference_mode():
        for call in (lambda: solve(p), lambda: p.residuals(p.begin(p.oracle(), None)), lambda: OWN.response(x0)):
            with pytest.raises(BilevelError, match="inference_mode"):
                call()


def test_a_graph_is_searched_for_own_functions():
    v = x0.clone().requires_grad_()
    assert looks.own_nodes((Square.apply(v.exp()) * 2).sin())
    assert not looks.own_nodes((v**2).sum())
    assert not looks.own_nodes(torch.ones(()))


def test_functions_that_bend_within_a_difference_are_not_called_wrong():
    """x in units of 1e-6, and of 1e6."""
    for unit in (1e-6, 1.0, 1e6):
        p = ConstrainedProblem(objective=lambda x, u=unit: torch.sin(3 * x / u).sum() + ((x / u) ** 2).sum(), x=unit * x0)
        p.begin(p.oracle(), None)


@pytest.mark.parametrize("set_of", [Box(0.0, 5.0), Simplex()], ids=lambda one: type(one).__name__)
def test_a_kink_on_the_boundary_of_a_set_is_no_wrong_derivative(set_of):
    """The slope of clamp(y, 0) is 0 on one side of y = 0, which Y does not have."""
    y = torch.tensor([0.0, 0.0, 1.0], dtype=F64)
    start = torch.tensor([0.5, 0.3, 0.1], dtype=F64)
    for seed in range(5):
        shift = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=F64)
        one = BilevelProblem(
            upper=upper, lower=lambda x, y, s=shift: ((y.clamp(min=0) - x - s) ** 2).sum(), x=start, y=y, Y=set_of
        )
        one.begin(one.oracle(), None)
        two = ConstrainedProblem(objective=lambda y, s=shift: ((y.clamp(min=0) - s) ** 2).sum(), x=y, X=set_of)
        two.begin(two.oracle(), None)


def test_differences_stay_within_a_set():
    """log y has no value outside."""
    for set_of in (Box(0.0, 1.0), Simplex()):
        p = ConstrainedProblem(objective=lambda y: -torch.log(y).sum(), x=torch.full((3,), 1 / 3, dtype=F64), X=set_of)
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            x = p.X.project(Vec.of(torch.randn(3, generator=generator, dtype=F64)))
            d = looks.direction(x, generator)
            at, way = looks.with_room(p.X.project, x, d)
            for t in (1.2e-5, -1.2e-5):  # 2 eps^(1/3), the farthest that is asked for
                point = at.add(way, t)
                assert bool((point.ravel() >= 0).all())
                assert float(p.X.distance(point)) <= 1e-15  # the sum's rounding
