"""THE table: every solver with problems that it solves, and how well. A new solver is one `Case(...)` line.

The problems of the zoo come with their solutions; the small ones below add structures, sets and dtypes that the zoo lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from truths import gradient_penalty, kkt_points, truncated_series, value_penalty

from bilevel import (
    F2SA,
    GPBGD,
    LVHBA,
    MAID,
    SGD,
    SOBA,
    VPBGD,
    AdamW,
    Auto,
    BilevelProblem,
    BORep,
    Box,
    Everywhere,
    GPBGDFixedStep,
    Implicit,
    KwonDoubleLoop,
    KwonSingleLoop,
    LVHBASingleLoop,
    MiniBatches,
    Mixture,
    Multipliers,
    Penalty,
    PenaltyDescent,
    PenaltySGD,
    Point,
    Power,
    ScalarAdam,
    ScaleBiO,
    SourceBatches,
    Status,
    StocBiO,
    VPBGDFixedStep,
    per_source,
)
from constrained import (
    SLSQP,
    AugmentedLagrangian,
    AugmentedLagrangianSGD,
    ConstrainedProblem,
    InteriorPoint,
    Ipopt,
    NewtonCG,
    Pounce,
    Sketch,
    SketchedNewton,
    TrustConstr,
    Uno,
)
from constrained.core.solver import Solver
from constrained.sets import ConvexSet
from problems.coupled import coupled_toy, llc
from problems.cutest import CUTEST, cutest
from problems.instance import Instance
from problems.quadratic import quadratic
from problems.toy import pl_toy


@dataclass(frozen=True, kw_only=True)
class Case:
    """A solver on a problem.

    tolerance: on the errors of x, y and the multipliers, each relative to what is known of the solution; where nothing is, on the
    largest residual computed from the problem. others: tolerances of those that have one of their own. ends: the status of a full
    run. few: steps of the short runs of most checks. gradients: a step, where the docstring promises a number. draws: the solver
    draws random numbers of its own.
    slow: the full run takes minutes; only the check of the answer is done, and marked. needs: a package without which it is
    skipped.
    """

    name: str
    solver: Solver
    instance: Callable[[], Instance]
    tolerance: float
    max_steps: int | None = None
    ends: Status = Status.CONVERGED
    few: int = 4
    gradients: int | None = None
    seed: int = 0
    slow: bool = False
    draws: bool = False
    needs: str = ""
    others: dict[str, float] = field(default_factory=dict, hash=False)


# -- small problems ---------------------------------------------------------------------------------------------------------
def single(nx: int = 3, ny: int = 4) -> Instance:
    """A float32 quadratic: g = 1/2 |y - M x|^2, f = 1/2 |y - a|^2 + 1/10 |x - b|^2, so (M'M + I/5) x = M'a + b/5."""
    generator = torch.Generator().manual_seed(1)
    M, a, b = (torch.randn(*shape, generator=generator) for shape in ((ny, nx), (ny,), (nx,)))

    def upper(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * ((y - a) ** 2).sum() + 0.1 * ((x - b) ** 2).sum()

    def lower(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * ((y - M @ x) ** 2).sum()

    x = torch.linalg.solve(M.T @ M + 0.2 * torch.eye(nx), M.T @ a + 0.2 * b)
    problem = BilevelProblem(upper=upper, lower=lower, x=torch.zeros(nx), y=torch.zeros(ny))
    return Instance(name="single", problem=problem, source="one linear solve", solution=(Point(x, M @ x),))


def clipped(noise: bool = False) -> Instance:
    """g = 1/2 |y - x|^2 on Y = [0, 1]^3, so y = clip(x); f = 1/2 |y - a|^2 + 1/2 |x - b|^2, x in [-2, 2]^3, entry by entry.

    An entry that ends inside [0, 1] is (a + b) / 2, the others are b.
    """
    a, b = (torch.tensor(entries, dtype=torch.float64) for entries in ((0.3, 2.0, -1.0), (0.6, 1.5, -0.5)))

    def upper(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * ((y - a) ** 2).sum() + 0.5 * ((x - b) ** 2).sum()

    def lower(x: Tensor, y: Tensor, batch: Tensor | None = None) -> Tensor:
        value = 0.5 * ((y - x) ** 2).sum()
        return value if batch is None else value + (batch.mean(0) * y).sum()

    x = torch.tensor([0.45, 1.5, -0.5], dtype=torch.float64)
    rows = 0.01 * torch.randn(32, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = {"lower_data": MiniBatches(rows - rows.mean(0), 8)} if noise else {}
    half = torch.full((3,), 0.5, dtype=torch.float64)
    problem = BilevelProblem(upper=upper, lower=lower, x=half, y=half.clone(), X=Box(-2.0, 2.0), Y=Box(0.0, 1.0), **data)
    return Instance(name="clipped", problem=problem, source="by hand", solution=(Point(x, x.clamp(0, 1)),))


def boxed() -> Instance:
    """`clipped` with noise and without Y, on x <= 1: y = x, and x is (a + b) / 2, at most 1, entry by entry."""
    x = torch.tensor([0.45, 1.0, -0.75], dtype=torch.float64)
    problem = replace(clipped(noise=True).problem, X=Box(-2.0, 1.0), Y=Everywhere())  # pyright: ignore[reportArgumentType]
    return Instance(name="boxed", problem=problem, source="by hand", solution=(Point(x, x),))


def logistic(*, batches: bool = False) -> Instance:
    """Ridge weights of a logistic regression on noisy labels: x a dict, y an nn.Linear, f the loss of held-out rows."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 4, generator=generator, dtype=torch.float64)
    flips = 2 * torch.randn(64, generator=generator, dtype=torch.float64)
    labels = (rows @ torch.tensor([2.0, -1.0, 0.0, 0.0], dtype=torch.float64) + flips > 0).double()
    train, held = (rows[:32], labels[:32]), (rows[32:], labels[32:])
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits

    def upper(x: dict, model: torch.nn.Linear, batch: tuple = held) -> Tensor:
        inputs, wanted = batch
        return cross_entropy(model(inputs)[:, 0], wanted) + 0.01 * sum((part**2).sum() for part in x.values())

    def lower(x: dict, model: torch.nn.Linear, batch: tuple = train) -> Tensor:
        inputs, wanted = batch
        ridge = (x["weight"].exp() * model.weight**2).sum() + (x["bias"].exp() * model.bias**2).sum()
        return cross_entropy(model(inputs)[:, 0], wanted) + 0.1 * ridge

    model = torch.nn.Linear(4, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    x = {"weight": torch.zeros(4, dtype=torch.float64), "bias": torch.zeros(1, dtype=torch.float64)}
    data = {"upper_data": MiniBatches(held, 16), "lower_data": MiniBatches(train, 16)} if batches else {}
    problem = BilevelProblem(upper=upper, lower=lower, x=x, y=model, **data)
    return Instance(name="logistic", problem=problem, source="residuals only")


def projected(inequality: bool = False, X: ConvexSet | None = None, noise: bool = False) -> Instance:
    """min |x - a|^2 with a = (2, 0, 1), x a dict, on x0 + x1 = 1 (or <= 1): x = (1.5, -0.5, 1); in [0, 1.4]^3 x = (1, 0, 1).

    noise: mini-batches of rows of mean zero, which shift a.
    """
    a = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
    rows = 0.1 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def objective(x: dict, batch: Tensor | None = None) -> Tensor:
        return ((torch.cat([x["u"], x["v"]]) - a - (0 if batch is None else batch.mean(0))) ** 2).sum()

    def plane(x: dict) -> Tensor:
        return x["u"].sum() - 1

    known = torch.tensor([1.5, -0.5, 1.0] if X is None else [1.0, 0.0, 1.0], dtype=torch.float64)
    x = {"u": torch.zeros(2, dtype=torch.float64), "v": torch.zeros(1, dtype=torch.float64)}
    more: dict = {"inequality" if inequality else "equality": plane}
    more |= {"data": MiniBatches(rows - rows.mean(0), 16)} if noise else {}
    problem = ConstrainedProblem(objective=objective, x=x, X=X or Everywhere(), **more)
    lam = torch.tensor([1.0 if X is None else 2.0], dtype=torch.float64)  # 2 (x0 - 2) + lam = 0
    many = Multipliers(**{"inequality" if inequality else "equality": lam})
    solution = Point({"u": known[:2], "v": known[2:]}, multipliers=many)
    return Instance(name="projected", problem=problem, source="by hand", solution=(solution,))


def small(noise: float = 0.0, truth: Callable[[BilevelProblem], Point] | None = None) -> Instance:
    """A quadratic with the bilevel solution, or with what a method with a bias goes to, which truths.py computes."""
    instance = quadratic(nx=3, ny=4, noise=noise)
    return replace(instance, solution=(truth(quadratic(nx=3, ny=4).problem),)) if truth else instance  # pyright: ignore


def flat() -> Instance:
    """A quadratic whose lower solutions are many and equally good: x alone is known."""
    instance = quadratic(rank=12, flat=True)
    return replace(instance, solution=(Point(instance.solution[0].x),))


def published(name: str) -> Instance:
    """An equality-constrained problem of CUTEst with its published solution, its mirror images and their multipliers."""
    return replace(cutest(name=name), solution=kkt_points(CUTEST[name]))


def sources(noise: bool = False) -> Instance:
    """g = sum_i p_i |y - a_i|^2 / 2 over three sources in the plane, so y = sum_i p_i a_i; f = |y - b|^2 / 2 + |x|^2 / 200."""
    a = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    b = torch.tensor([1.2, 0.4], dtype=torch.float64)
    rows = 0.1 * torch.randn(3, 32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = {f"source {i}": rows[i] - rows[i].mean(0) + a[i] for i in range(3)}

    def losses(y: Tensor, batch: tuple | None = None) -> Tensor:
        if batch is None:
            return 0.5 * ((y - a) ** 2).sum(1)
        points, source = batch
        return per_source(0.5 * ((y - points) ** 2).sum(1), source, 3)

    def upper(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * ((y - b) ** 2).sum() + (x**2).sum() / 200

    more = {"lower_data": SourceBatches(data, 8)} if noise else {}
    zeros = torch.zeros(3, dtype=torch.float64)
    problem = BilevelProblem(upper=upper, lower=Mixture(losses), x=zeros, y=zeros[:2].clone(), **more)
    return Instance(name="sources", problem=problem, source="residuals only")


def layered() -> Instance:
    """Three sources of a regression for a network of two hidden layers, one of them right."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 32, 3, generator=generator, dtype=torch.float64)
    targets = torch.stack([inputs[0].sum(-1), -inputs[1].sum(-1), torch.randn(32, generator=generator), inputs[3].sum(-1)])
    names = ("right", "wrong", "noise")
    data = {name: (inputs[i], targets[i].double()) for i, name in enumerate(names)}

    def losses(model: torch.nn.Module, batch: tuple) -> Tensor:
        (rows, wanted), source = batch
        return per_source((model(rows)[:, 0] - wanted) ** 2, source, 3)

    def upper(x: Tensor, model: torch.nn.Module, batch: tuple) -> Tensor:
        rows, wanted = batch
        return ((model(rows)[:, 0] - wanted) ** 2).mean() + 1e-4 * (x**2).sum()

    layers = [torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)]
    model = torch.nn.Sequential(*layers).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    held = MiniBatches((inputs[3], targets[3].double()), 8)
    zeros = torch.zeros(3, dtype=torch.float64)
    mixture, data = Mixture(losses), SourceBatches(data, 4)
    problem = BilevelProblem(upper=upper, lower=mixture, x=zeros, y=model, upper_data=held, lower_data=data)
    return Instance(name="layered", problem=problem, source="residuals only")


# -- the table --------------------------------------------------------------------------------------------------------------
FIXED_V, FIXED_G = VPBGDFixedStep(gamma=20.0, beta=0.5), GPBGDFixedStep(gamma=20.0)
AUTO = Auto(candidates=(Implicit(), Penalty()), tol=1e-4)
ADAM = PenaltyDescent(sigma=0.01, outer=ScalarAdam(lr=Power(scale=0.5, exponent=0.5)), max_outer=120)
NOISY = PenaltySGD(sigma=0.1, gamma=0.5, momentum=0.0, outer=SGD(lr=Power(scale=0.1, exponent=0.25)), warmup=10)
LOGISTIC = PenaltySGD(sigma=0.1, outer=SGD(lr=Power(scale=0.5, exponent=0.25)), warmup=10)
BOX, SKETCHED = Box(0.0, 1.4), SketchedNewton(linear_solver=Sketch())
SINGLE, DOUBLE = KwonSingleLoop(), KwonDoubleLoop()
REP, SERIES, TOGETHER = BORep(), StocBiO(), SOBA(alpha=Power(scale=0.1, exponent=0.25))
PAPER = BORep.paper(eta=0.01, gamma=0.5, nu=0.1)
ANCESTOR = F2SA(alpha=Power(scale=0.1, exponent=0.25), gamma=0.5)  # the paper's exponents are slow
BUDGET = Status.MAX_STEPS
loop = partial(Case, max_steps=300, ends=BUDGET, few=15, gradients=3)  # single loops: cheap steps, three gradients each
many = partial(loop, max_steps=100, gradients=None)  # with many gradients a step
SCALE = ScaleBiO(alpha=30.0, inner=SGD(lr=0.5), outer=SGD(lr=0.1))
LAYERS = ScaleBiO(inner=AdamW(lr=0.01), accumulate=2, clip=1.0)
FIRST, NEWTON = AugmentedLagrangian(tol=1e-6), AugmentedLagrangian(tol=1e-6, inner=NewtonCG())
batches = partial(Case, solver=AugmentedLagrangianSGD(round=20), max_steps=1000, tolerance=1e-2, ends=BUDGET, few=15)
MULTIPLIER = {"inequality": 3e-6}  # 2 (x - a) + mu = 0: an x that is 1e-6 off moves mu by 2e-6
# Truths with the bias of the method. SGD of a fixed sigma = 1/10; F2SA, whose lam grows from 13 to 16 in the half that is
# averaged; the eleven terms of StocBiO's series, nu being half of 1 over the largest curvature, which is 1 and measured.
# Without: the single and double loops, whose sigma falls on to the end, and BORep's many radii and epochs, which leave no fixed
# point to solve for: their tolerances say how near to the bilevel solution the steps come. Of `logistic` and `sources` nothing is
# known but residuals, whose noise is that of the batches.
TENTH, GROWN, TERMS = value_penalty(10.0), value_penalty(15.0), truncated_series(10, 0.5)
# Fixed penalties: at rest |grad F| <= 1e-6, which is 1.1e-6 from the minimiser of F
rest = partial(Case, max_steps=10_000, tolerance=2e-6, ends=Status.STALLED, few=15)
CASES = [
    Case(name="penalty-quadratic", solver=Penalty(), instance=quadratic, tolerance=1e-6),
    Case(name="penalty-flat", solver=Penalty(), instance=flat, tolerance=1e-6),
    Case(name="penalty-optimistic", solver=Penalty(tol=1e-4), instance=lambda: quadratic(rank=12), tolerance=1e-4),
    Case(name="penalty-optimistic-tight", solver=Penalty(), instance=lambda: quadratic(rank=12), tolerance=1e-6, slow=True),
    Case(name="penalty-pl-box", solver=Penalty(), instance=pl_toy, tolerance=1e-6),
    Case(name="penalty-clipped", solver=Penalty(), instance=clipped, tolerance=1e-6),
    Case(name="penalty-dict-module", solver=Penalty(), instance=logistic, tolerance=1e-6),
    Case(name="penalty-float32", solver=Penalty(), instance=single, tolerance=5e-3),
    Case(name="penalty-plain", solver=Penalty(richardson=False), instance=small, tolerance=1e-5),
    Case(name="implicit-quadratic", solver=Implicit(), instance=quadratic, tolerance=1e-6),
    Case(name="implicit-flat", solver=Implicit(), instance=flat, tolerance=1e-6),
    Case(name="implicit-clipped", solver=Implicit(), instance=clipped, tolerance=1e-6),
    Case(name="implicit-dict-module", solver=Implicit(), instance=logistic, tolerance=1e-6),
    Case(name="auto-quadratic", solver=AUTO, instance=quadratic, tolerance=1e-4),
    Case(name="auto-optimistic", solver=AUTO, instance=lambda: quadratic(rank=12), tolerance=1e-4),
    Case(name="lv-hba-toy", solver=LVHBA(), instance=coupled_toy, tolerance=1e-6),
    Case(name="lv-hba-llc", solver=LVHBA(), instance=lambda: llc(n=10, start=1.0), tolerance=1e-6),
    Case(
        name="lv-hba-single",
        solver=LVHBASingleLoop(),
        instance=lambda: llc(n=10, start=1.0),
        tolerance=5e-2,
        max_steps=1000,
        ends=BUDGET,
        few=10,
        gradients=4,
    ),
    Case(name="vpbgd-quadratic", solver=VPBGD(), instance=quadratic, tolerance=1e-6),
    Case(name="vpbgd-clipped", solver=VPBGD(), instance=clipped, tolerance=1e-6),
    Case(name="gpbgd-dict-module", solver=GPBGD(), instance=logistic, tolerance=1e-6),
    rest(name="vpbgd-fixed", solver=FIXED_V, instance=lambda: small(truth=value_penalty(20.0)), gradients=4),
    rest(name="gpbgd-fixed", solver=FIXED_G, instance=lambda: small(truth=gradient_penalty(20.0)), gradients=2),
    Case(name="maid-quadratic", solver=MAID(), instance=small, tolerance=1e-5),
    Case(name="maid-dict-module", solver=MAID(), instance=logistic, tolerance=1e-6),
    Case(name="penalty-fixed-adam", solver=ADAM, instance=small, tolerance=1e-2, ends=BUDGET),
    loop(name="sgd-noisy", solver=NOISY, instance=lambda: small(0.01, TENTH), tolerance=2e-2, max_steps=600),
    loop(name="sgd-exact", solver=NOISY, instance=lambda: small(truth=TENTH), tolerance=8e-3, max_steps=600),
    loop(name="sgd-clipped", solver=NOISY, instance=lambda: clipped(noise=True), tolerance=0.02),
    loop(name="sgd-module-batches", solver=LOGISTIC, instance=lambda: logistic(batches=True), tolerance=0.1),
    loop(name="single-noisy", solver=SINGLE, instance=lambda: small(0.01), tolerance=5e-2, max_steps=600, gradients=6),
    loop(name="single-exact", solver=SINGLE, instance=small, tolerance=5e-2, max_steps=600),
    loop(name="single-clipped", solver=SINGLE, instance=lambda: clipped(noise=True), tolerance=0.02, gradients=None),
    loop(name="single-module-batches", solver=SINGLE, instance=lambda: logistic(batches=True), tolerance=0.1, gradients=6),
    loop(name="double-noisy", solver=DOUBLE, instance=lambda: small(0.01), tolerance=0.1, gradients=None),
    loop(name="double-exact", solver=DOUBLE, instance=small, tolerance=0.1, gradients=None),
    loop(name="double-clipped", solver=DOUBLE, instance=lambda: clipped(noise=True), tolerance=0.02, gradients=None),
    many(name="double-module-batches", solver=DOUBLE, instance=lambda: logistic(batches=True), tolerance=0.1),
    loop(name="f2sa-noisy", solver=ANCESTOR, instance=lambda: small(0.01, GROWN), tolerance=2e-2, max_steps=600),
    loop(
        name="f2sa-inner",
        solver=replace(ANCESTOR, inner=2),
        instance=lambda: small(truth=GROWN),
        tolerance=2e-2,
        max_steps=600,
        gradients=None,
    ),
    loop(name="f2sa-clipped", solver=ANCESTOR, instance=lambda: clipped(noise=True), tolerance=0.02),
    loop(name="f2sa-module-batches", solver=ANCESTOR, instance=lambda: logistic(batches=True), tolerance=0.1),
    loop(name="bo-rep-noisy", solver=REP, instance=lambda: small(0.01), tolerance=0.1, max_steps=600, gradients=None),
    loop(
        name="bo-rep-paper",
        solver=PAPER,
        instance=lambda: small(0.01),
        tolerance=0.1,
        others={"y": 0.2},
        max_steps=600,
        gradients=None,
    ),
    loop(name="bo-rep-box", solver=REP, instance=boxed, tolerance=3e-2, gradients=None),
    loop(name="bo-rep-module-batches", solver=REP, instance=lambda: logistic(batches=True), tolerance=0.1, gradients=None),
    loop(name="stocbio-noisy", solver=SERIES, instance=lambda: small(0.01, TERMS), tolerance=2e-2, gradients=None),
    loop(name="stocbio-exact", solver=SERIES, instance=lambda: small(truth=TERMS), tolerance=2e-3, gradients=None),
    many(name="stocbio-module-batches", solver=SERIES, instance=lambda: logistic(batches=True), tolerance=0.1),
    loop(name="soba-noisy", solver=TOGETHER, instance=lambda: small(0.01), tolerance=2e-2, max_steps=600, gradients=2),
    loop(name="soba-box", solver=TOGETHER, instance=boxed, tolerance=1e-2, gradients=2),
    loop(name="soba-module-batches", solver=TOGETHER, instance=lambda: logistic(batches=True), tolerance=0.1, gradients=2),
    loop(name="scalebio-exact", solver=SCALE, instance=sources, tolerance=1e-3, max_steps=600),
    loop(name="scalebio-batches", solver=SCALE, instance=lambda: sources(noise=True), tolerance=0.1, max_steps=600),
    loop(name="scalebio-module-batches", solver=LAYERS, instance=layered, tolerance=0.3, gradients=None),
    loop(name="f2sa-mixture", solver=ANCESTOR, instance=lambda: sources(noise=True), tolerance=0.2, max_steps=600),
    Case(name="newton-hs6", solver=SketchedNewton(), instance=lambda: published("HS6"), tolerance=1e-8),
    Case(name="newton-hs40", solver=SketchedNewton(), instance=lambda: published("HS40"), tolerance=1e-8),
    Case(
        name="newton-sketch",
        solver=SketchedNewton(linear_solver=Sketch()),
        instance=lambda: published("HS78"),
        tolerance=1e-8,
        draws=True,
    ),
    Case(name="newton-dict", solver=SketchedNewton(), instance=projected, tolerance=1e-8),
    Case(name="interior-hs6", solver=InteriorPoint(), instance=lambda: published("HS6"), tolerance=1e-8),
    Case(name="interior-dict", solver=InteriorPoint(), instance=lambda: projected(True), tolerance=1e-6, others=MULTIPLIER),
    Case(name="interior-box", solver=InteriorPoint(), instance=lambda: projected(True, BOX), tolerance=1e-6, others=MULTIPLIER),
    Case(name="multipliers-hs6", solver=FIRST, instance=lambda: published("HS6"), tolerance=1e-6),
    Case(name="multipliers-dict", solver=FIRST, instance=lambda: projected(True), tolerance=1e-6, others=MULTIPLIER),
    Case(name="multipliers-box", solver=FIRST, instance=lambda: projected(True, BOX), tolerance=1e-6, others=MULTIPLIER),
    Case(name="multipliers-newton", solver=NEWTON, instance=lambda: projected(True, BOX), tolerance=1e-6, others=MULTIPLIER),
    batches(name="multipliers-sgd", instance=lambda: projected(noise=True)),
    batches(name="multipliers-sgd-box", instance=lambda: projected(True, BOX, noise=True)),
    Case(name="slsqp-box", solver=SLSQP(tol=1e-6), instance=lambda: projected(True, BOX), tolerance=1e-6),
    Case(name="trust-constr", solver=TrustConstr(tol=1e-6), instance=projected, tolerance=1e-6),
    *(
        Case(name=package, solver=solver, instance=lambda: projected(True, BOX), tolerance=1e-6, others=MULTIPLIER, needs=package)
        for package, solver in {"cyipopt": Ipopt(tol=1e-6), "pounce": Pounce(tol=1e-6), "unopy": Uno(tol=1e-6)}.items()
    ),
]
