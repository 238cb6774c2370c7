"""`problem.diagnose()`: what a problem is like before a solver runs. `diagnosis.py` holds what is found and its page.

    start      derivatives against finite differences; sizes of x, y, f, g and their gradients
    y(x)       the lower level solved from the start, then from random points around: is there one solution
    g_yy       eigenvalues of T g_yy T + C at y(x), T and C of the set Y (`constrained/sets/tangent.py`): condition, nullity
    g_xy       whether x moves y at all
    faces      entries that X or Y holds, and those about to change that: there Phi has kinks
    solvers    what all this means for each

Up to 300 lower unknowns all eigenvalues are computed; beyond, Lanczos with full reorthogonalisation gives Ritz values, which lie
inside the spectrum: the least is a bound from above, the condition one from below.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from constrained.core.choice import diagnosed
from constrained.core.derivatives.finite_differences import direction
from constrained.core.errors import Unsuitable
from constrained.core.problem import Point
from constrained.core.vec import Vec
from constrained.descent import DescentStatus, Minimum, residual
from constrained.descent.newton_cg import NewtonCG
from constrained.linear.diagonal import Diagonal
from constrained.linear.spectrum import lanczos
from constrained.sets import ConvexSet
from constrained.sets.tangent import FREE, Tangent, has_tangent, tangent

from ..certificates.derivatives import check
from ..hypergradients.adjoint import adjoint_system, on_tangent
from ..lower.solution import Lower, solve_lower
from ..oracle import BilevelOracle, Level, LevelAt
from ..problem import BilevelProblem
from .diagnosis import CONSTRAINED, NEAR, Curvature, Diagnosis, Faces, LowerLevel
from .recommend import recommend

DENSE = 300  # lower unknowns up to which all eigenvalues are computed
LANCZOS, MEMORY = 50, 10**8  # products beyond, fewer where their vectors would have more entries than this
STEPS, AGAIN, NEWTON = 300, 100, 50  # of the first lower solve, of each from elsewhere, and of Newton's method for either
ELSEWHERE = (1.0, -1.0, 4.0, -4.0)  # distances of the other starts from y(x), in units of its size
PROBES = 4  # random directions that measure |g_xy|


@diagnosed.register
def diagnose(problem: BilevelProblem, start: Point | None = None) -> Diagnosis:
    """The numbers of a `Diagnosis`, by some hundred evaluations and products, on full batches: the first one of a stream.

    Raises what `problem.check` raises, for a start that does not fit and for functions that raise there; all else is a finding.
    """
    oracle, x, y, streams = problem.read(Point(None) if start is None else start)
    x, y = oracle.X.project(x.detach()), oracle.Y.project(y.detach())
    notes = [f"{name} is a stream: it is judged on its first batch." for name in streams]
    try:
        recommended = recommend(problem)
    except Unsuitable as cause:
        recommended, notes = None, [*notes, f"{cause}."]
    tol = 1e-6 if y.dtype == torch.float64 else 1e-3
    sizes = {"x": x.size, "y": y.size}
    blank = Diagnosis(problem.features, sizes, tol, check(oracle, x, y), recommended, tuple(notes), _scales(oracle, x, y))
    found = blank
    if all(map(math.isfinite, blank.scales.values())):
        try:
            found = _look(problem, oracle, x, y, blank)
        except Exception as cause:  # the user's functions away from the start, with whatever they raise
            found = replace(blank, notes=(*notes, f"y(x) could not be looked at: {type(cause).__name__}: {cause}"))
    return replace(found, cost=oracle.calls.of("upper") + oracle.calls.of("lower"))


def _scales(oracle: BilevelOracle, x: Vec, y: Vec) -> dict[str, float]:
    """f, g and norms of their gradients; the largest entries."""
    found = {}
    for letter, level in (("f", oracle.f), ("g", oracle.g)):
        value, (d_x, d_y) = level.gradient((x, y), wrt=(0, 1))
        found |= {letter: float(value), f"|{letter}_x|": float(d_x.norm()), f"|{letter}_y|": float(d_y.norm())}
    return {**found, "max |x|": float(x.max_norm()), "max |y|": float(y.max_norm())}


def _look(problem: BilevelProblem, oracle: BilevelOracle, x: Vec, y: Vec, blank: Diagnosis) -> Diagnosis:
    """The numbers at y(x); at the y given where the lower level has constraints, which are not solved for here."""
    g, lower = oracle.g, None
    if not blank.features & CONSTRAINED:
        lower, y = _lower_level(problem, oracle, x, y)
    known, generator = has_tangent(oracle.Y), torch.Generator().manual_seed(0)
    at = g.at(x, y) if g.second_order else None
    z = y - (g.grad_y(x, y) if at is None else at.y)  # the point whose projection is y
    u, v = (one.add(direction(one, generator), 0.1 * (1.0 + float(one.norm()))) for one in (x, y))
    u, v = oracle.X.project(u), oracle.Y.project(v)
    return replace(
        blank,
        lower=lower,
        curvature=None
        if at is None
        else _curvature(at, tangent(oracle.Y, z) if known else FREE, oracle.f.grad(x, y)[1], generator),
        coupling=_mixed(g, x, y, at, generator),
        nearby=_mixed(g, u, v, g.at(u, v) if g.second_order else None, generator),
        faces={
            name: _faces(S, one, generator)
            for name, S, one in (("x", oracle.X, x), ("y", oracle.Y, z))
            if not S.whole and has_tangent(S)
        },
        constraints={name: _entries(name, c.value((x, y)), blank.tol) for name, c in oracle.constraints.items()},
    )


def _lower_level(problem: BilevelProblem, oracle: BilevelOracle, x: Vec, y: Vec) -> tuple[LowerLevel, Vec]:
    """y(x) from y, and where other starts lead: by Newton's method where that is cheap, else by first derivatives."""
    g, tol, known = oracle.g, torch.finfo(y.dtype).eps ** 0.5, problem.closed_form(x)
    newton = g.second_order and oracle.Y.entrywise and y.size <= DENSE

    def solved(w: Vec, steps: int) -> Minimum:
        if newton:
            return Lower(oracle, x, Diagonal.blank(y)).minimised(NewtonCG(), w, tol, max_steps=NEWTON)
        return solve_lower(oracle, x, w, tol, max_steps=steps)

    first = solved(y, STEPS)
    formula = None if known is None else residual(oracle.Y, known, g.grad_y(x, known))
    found = LowerLevel(first.x.tree(), first.value, first.residual, first.reason, formula=formula)
    if not found.solved:
        return found, first.x
    size = max(1.0, float(first.x.norm()) / y.size**0.5)
    step = direction(y, torch.Generator().manual_seed(0)) * y.size**0.5
    ends = [solved(first.x.add(step, far * size), AGAIN) for far in ELSEWHERE]
    ends = [end for end in ends if end.reason is DescentStatus.CONVERGED]
    apart = [float((end.x - first.x).norm()) > NEAR * (1.0 + float(first.x.norm())) for end in ends]
    below = max([0.0, *(first.value - end.value for end in ends if _proof(first, end))])
    convex = False if any(_proof(first, end) or _proof(end, first) for end in ends) else None
    return replace(found, tried=len(ELSEWHERE), elsewhere=len(ends), others=sum(apart), below=below, convex=convex), first.x


def _proof(high: Minimum, low: Minimum) -> bool:
    """No convex function has these two values: a stationary point of residual r lies above any other point of Y by at most
    r (|g_y| + r + distance), r = |y - P_Y(y - g_y)|.
    """
    apart, rounding = float((high.x - low.x).norm()), 1e3 * torch.finfo(high.x.dtype).eps * abs(high.value)
    return high.value - low.value > high.residual * (float(high.gradient.norm()) + high.residual + apart) + rounding


def _curvature(at: LevelAt, face: Tangent, f_y: Vec, generator: torch.Generator) -> Curvature | None:
    """The spectrum of T g_yy T + C on the range of T; None where that is {0}, or a product is not finite."""
    b, n, eps = face.project(f_y), f_y.size, torch.finfo(f_y.dtype).eps
    if n <= DENSE:
        A, _ = adjoint_system(at, f_y, face).dense()
        T = torch.stack([face.project(f_y.unravel(row)).ravel() for row in torch.eye(n, dtype=A.dtype, device=A.device)])
        kept, Q = torch.linalg.eigh((T + T.T) / 2)
        Q = Q[:, kept > 0.5]
        A, steps, size = Q.T @ A @ Q, None, Q.shape[1]
    else:
        steps, size, product = max(2, min(LANCZOS, MEMORY // n)), n, on_tangent(at.yy, face)
        A, Q, _ = lanczos(lambda v: face.project(product(v)), face.project(direction(f_y, generator)), steps)
        steps = Q.shape[1]
    if not A.numel() or not bool(A.isfinite().all()):
        return None
    values, vectors = torch.linalg.eigh(A)
    along = vectors.T @ (Q.T @ b.ravel())
    floor = 10 * n**0.5 * eps * float(values.abs().max())  # what rounding makes of zero
    zero = values.abs() <= floor
    rest = values[~zero].abs()
    return Curvature(
        smallest=float(values[0]),
        largest=float(values[-1]),
        condition=float(rest.max() / rest.min()) if len(rest) else math.inf,
        nullity=int(zero.sum()),
        negative=int((values < -floor).sum()),
        outside=float(along[zero].norm()) / max(float(b.norm()), torch.finfo(f_y.dtype).tiny),
        size=size,
        lanczos=steps,
    )


def _mixed(g: Level, x: Vec, y: Vec, at: LevelAt | None, generator: torch.Generator) -> float:
    """|g_xy| from M v for random unit v in R^n: |M|^2 = n E |M v|^2. Differences of g_y where there are no products."""
    if at is not None:
        n, images = y.size, [at.xy(direction(y, generator)) for _ in range(PROBES)]
        return math.sqrt(n * sum(float(image @ image) for image in images) / PROBES)
    eps, here = torch.finfo(x.dtype).eps, g.grad_y(x, y)
    h = eps ** (1 / 3) * max(1.0, float(x.max_norm()))
    images = [(g.grad_y(x.add(direction(x, generator), h), y) - here) / h for _ in range(PROBES)]
    norm = math.sqrt(x.size * sum(float(image @ image) for image in images) / PROBES)
    return norm if norm > 1e3 * eps * (1.0 + float(here.norm())) / h else 0.0


def _faces(S: ConvexSet, z: Vec, generator: torch.Generator) -> Faces:
    """Entries that T holds still at z, and those of which this changes when z moves by NEAR (1 + max |P(z)|). A leaf whose other
    entries T bends (a ball: on its surface) counts as changed where that begins or ends.
    """
    w, delta = direction(z, generator), NEAR * (1.0 + float(S.project(z).max_norm()))

    def state(z: Vec) -> Tensor:
        pairs = [(t.ravel(), before.ravel()) for t, before in zip(tangent(S, z).project(w).leaves, w.leaves)]
        return torch.cat([(t != 0) * (1 + ((t != 0) & (t != before)).any()) for t, before in pairs])

    here, ones = state(z), z.map(torch.ones_like)
    signs = direction(z, generator).map(torch.sign)
    changed = torch.stack([state(z.add(step, t)) != here for step in (ones, signs) for t in (delta, -delta)]).any(0)
    return Faces(z.size, int((here == 0).sum()), int(changed.sum()))


def _entries(name: str, value: Tensor, tol: float) -> tuple[int, int]:
    """How many entries are violated, and how many inequalities active or nearly so."""
    if name.endswith("_equality"):
        return int((value.abs() > tol).sum()), 0
    return int((value > tol).sum()), int(((value <= tol) & (value > -NEAR)).sum())
