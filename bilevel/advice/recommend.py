"""The default choice of a solver, registered on `constrained.core.choice.default_solver`, and why."""

from __future__ import annotations

from constrained.core.auto import Auto
from constrained.core.choice import Recommendation, default_solver
from constrained.core.errors import OptionError, Unsuitable
from constrained.core.solver import Solver
from constrained.core.status import Feature
from constrained.problem import ConstrainedProblem
from constrained.recommend import recommend as of_constraints
from constrained.sets.tangent import has_tangent

from ..certificates.derivatives import lost_twice
from ..lower.solution import UNKNOWNS
from ..problem import BilevelProblem
from ..solvers.f2sa import F2SA
from ..solvers.implicit import Implicit
from ..solvers.lv_hba import LVHBA
from ..solvers.penalty import Penalty
from ..solvers.penalty_sgd import PenaltySGD
from ..solvers.scalebio import ScaleBiO


def recommend(problem: BilevelProblem | ConstrainedProblem) -> Recommendation:
    """What `solve(problem)` uses, and why: from the problem's features and the size of the lower level. Of a
    constrained problem: from its derivatives and sizes, and whether Pounce, where it is installed, would be quicker.

    Raises Unsuitable where no solver of this version handles the problem.

    >>> import torch, bilevel
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> f, g = lambda x, y: (y**2).sum(), lambda x, y: ((y - 3 * x) ** 2).sum()
    >>> print(recommend(bilevel.BilevelProblem(upper=f, lower=g, x=one, y=one)).reasons[0])
    The lower level is smooth and has second derivatives: implicit differentiation reaches full precision in few hypergradients.
    """
    if isinstance(problem, ConstrainedProblem):
        return of_constraints(problem)
    if not isinstance(problem, BilevelProblem):
        raise OptionError(f"problem: expected a Problem, got {type(problem).__name__}")
    features, y = problem.features, problem.variables()["y"]
    if Feature.LIVE in features and not F2SA.lacks(features):
        why = "The lower variable is live: first derivatives, taken in place."
        return Recommendation(ScaleBiO() if Feature.MIXTURE in features else F2SA(), (why,))
    if Feature.SAMPLES in features and not PenaltySGD.lacks(features):
        return Recommendation(PenaltySGD(), ("Batches are drawn: a stochastic method, which needs max_steps.",))
    if Penalty.lacks(features) and not LVHBA.lacks(features):
        why = "Constraints couple the lower level with x: its regularised Lagrangian's value, with multipliers."
        return Recommendation(LVHBA(), (why,))
    if Penalty.lacks(features):
        handled = Penalty.supports | PenaltySGD.supports | LVHBA.supports
        raise Unsuitable(f"solve: no solver of this version handles {(features & ~handled).words()}")
    why = None
    if Implicit.lacks(features):
        why = "The lower level has no second derivatives."
    elif y.size > UNKNOWNS:
        why = f"The lower level has {y.size} unknowns: a linear system in them is dear."
    elif not has_tangent(problem.Y):
        why = f"Derivatives through the set {problem.Y!r:.40} are not known."
    else:
        why = _lost_twice(problem)
    if why is not None:
        return Recommendation(Penalty(), (why, "Penalties need gradients alone."))
    first = "The lower level is smooth and has second derivatives: implicit differentiation reaches full precision in few "
    first += "hypergradients."
    return Recommendation(
        Auto(candidates=(Implicit(), Penalty())),
        (first, "Where its Hessian turns out to be singular, or Phi to have kinks, penalties go on."),
    )


def _lost_twice(problem: BilevelProblem) -> str | None:
    """Why second derivatives of g are not to be had, tried once. What else goes wrong, the start will say."""
    oracle = problem.oracle()
    try:
        return lost_twice(oracle, oracle.variables["x"], oracle.variables["y"]) or None
    except Exception:
        return None


@default_solver.register
def _(problem: BilevelProblem) -> Solver:
    return recommend(problem).solver
