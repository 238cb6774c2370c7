"""What `problem.diagnose()` found: the numbers, and the page that says them in words. `measure.py` does the looking."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from constrained.core.choice import Recommendation
from constrained.core.derivatives.counts import Count
from constrained.core.derivatives.finite_differences import Report
from constrained.core.solver import Solver
from constrained.core.status import Feature
from constrained.core.vec import Tree
from constrained.descent import DescentStatus

from .. import solvers

NEAR = 1e-3  # times 1 + max |y|: how near a change of face counts
ILL, APART = 1e6, 1e6  # condition and ratio of scales that are worth a word
CONSTRAINED = Feature.LOWER_EQUALITY | Feature.LOWER_INEQUALITY


# -- numbers ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LowerLevel:
    """y(x) from the start: `y`, `value` = g, `residual` = |y - P_Y(y - g_y)|, the `reason` it ended for.

    tried, elsewhere, others: starts around it; those that were solved too; those of them that ended at another y. below: how far
    the lowest value lies below `value`. convex: False where two stationary points prove that g(x, .) is not, else None. formula:
    the residual of `lower_solution(x)`, where the problem has one.
    """

    y: Tree
    value: float
    residual: float
    reason: DescentStatus
    tried: int = 0
    elsewhere: int = 0
    others: int = 0
    below: float = 0.0
    convex: bool | None = None
    formula: float | None = None

    @property
    def solved(self) -> bool:
        return self.reason is DescentStatus.CONVERGED


@dataclass(frozen=True)
class Curvature:
    """Eigenvalues of T g_yy T + C on the range of T: the extreme ones, `smallest` and `largest`.

    condition: max |l| / min |l| over those that are not zero to rounding. nullity, negative: how many are zero to rounding, and
    below that. outside: the share of f_y along null vectors. size: how many there are. lanczos: None where all were computed,
    else its steps: the figures are then those of the Ritz values, and size is the number of entries of y.
    """

    smallest: float
    largest: float
    condition: float
    nullity: int
    negative: int
    outside: float
    lanczos: int | None
    size: int

    @property
    def products(self) -> int:
        """Steps of conjugate gradients to six digits: sqrt(condition) / 2 log(2e6), at most one an unknown."""
        return math.ceil(min(self.size, 0.5 * math.sqrt(self.condition) * math.log(2e6)))


@dataclass(frozen=True)
class Faces:
    """Of `entries`, how many the set holds still, and how many are near a change of that."""

    entries: int
    held: int
    near: int


@dataclass(frozen=True)
class Diagnosis:
    """What `problem.diagnose()` found; printing it gives the page.

    At the start: `features`; `size`, entries of x and y; `derivatives` of `problem.check()`; `scales`: f, g, norms of their
    gradients, largest entries of x and y. At y(x), each None or empty where it could not be had: `lower`, `curvature` of g_yy,
    `coupling` |g_xy| (Frobenius, estimated) and `nearby`, the same at a point nearby; `faces` of x and y; `constraints`: entries
    violated and active or nearly so. `recommended`: what `solve` takes, None where it refuses. `notes`: what could not be looked
    at. `cost`: calls of f and g. `findings`: sentences on what stands in a solver's way; `solvers`: a sentence each.

    >>> import torch, bilevel
    >>> one, c = torch.ones(2, dtype=torch.float64), torch.tensor([1.0, 10.0], dtype=torch.float64)
    >>> f, g = lambda x, y: ((y - 3) ** 2).sum(), lambda x, y: (c * (y - x) ** 2).sum()
    >>> found = bilevel.BilevelProblem(upper=f, lower=g, x=one, y=0 * one).diagnose()
    >>> found.findings, round(found.curvature.condition, 6), found.solvers["Implicit"]
    ((), 10.0, 'suits; expect about 2 products a system (condition 10)')
    """

    features: Feature
    size: Mapping[str, int]
    tol: float
    derivatives: Report
    recommended: Recommendation | None
    notes: tuple[str, ...]
    scales: Mapping[str, float] = field(default_factory=dict)
    lower: LowerLevel | None = None
    curvature: Curvature | None = None
    coupling: float | None = None
    nearby: float | None = None
    faces: Mapping[str, Faces] = field(default_factory=dict)
    constraints: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    cost: Count = field(default_factory=Count)

    @property
    def findings(self) -> tuple[str, ...]:
        return tuple(_findings(self))

    @property
    def solvers(self) -> dict[str, str]:
        return dict(_solvers(self))

    def __str__(self) -> str:
        worst = max(self.derivatives.findings, key=lambda one: (not one.ok, one.error / one.tolerance))
        off, count = len(self.derivatives.bad), len(self.derivatives.findings)
        agree = f"{off} of {count} OFF" if off else f"all {count} agree with finite differences"
        second = "no second derivatives of g" if Feature.NO_HVP in self.features else "second derivatives of g"
        drawn = "mini-batches, judged on all data" if Feature.SAMPLES in self.features else "deterministic"
        alike: dict[str, list[str]] = {}
        for name, sentence in self.solvers.items():
            alike.setdefault(sentence, []).append(name)
        more = (self.features & ~(Feature.LOWER | Feature.SAMPLES | Feature.NO_HVP)).words()
        kind = f"; {more}" if more else ""
        page = {
            "Problem": [f"{self.size['x']} entries in x, {self.size['y']} in y; {drawn}; {second}{kind}"],
            "Derivatives": [f"{agree}; worst: {worst.name}, relative error {worst.error:.1e}"],
            "At the start": [", ".join(f"{name} = {value:.2g}" for name, value in self.scales.items())],
            "At y(x)": list(_at_solution(self)),
            "Findings": list(self.findings) or ["Nothing stands in a solver's way."],
            "solve() takes": _recommended(self.recommended),
            "Solvers": [f"{', '.join(names)}: {sentence}" for sentence, names in alike.items()],
            "This page took": [
                f"{self.cost.values + self.cost.gradients} evaluations, {self.cost.hvps + self.cost.jvps} products"
            ],
        }
        lines = [(name if i == 0 else "", line) for name, part in page.items() for i, line in enumerate(part) if line]
        return "\n".join(f"{name:<15} {line}" for name, line in lines)


# -- words ------------------------------------------------------------------------------------------------------------------
def _recommended(found: Recommendation | None) -> list[str]:
    if found is None:
        return ["nothing: see the findings"]
    inner = ", ".join(type(one).__name__ for one in getattr(found.solver, "candidates", ()))
    name = type(found.solver).__name__
    return [f"{name} of {inner}:" if inner else f"{name}:", *(f"  {reason}" for reason in found.reasons)]


def _at_solution(d: Diagnosis) -> Iterator[str]:
    low, c = d.lower, d.curvature
    if low is not None:
        yield f"g = {low.value:.4g}, |y - P_Y(y - g_y)| = {low.residual:.1e}. {low.reason.value}"
    if low is not None and low.solved:
        ends = f"{low.elsewhere - low.others} at the same y, {low.others} at another"
        yield f"{low.elsewhere} of {low.tried} other starts were solved too, {ends}"
    if c is not None:
        on = "" if c.size == d.size["y"] else " on the tangent of Y"
        how = f"all {c.size}{on}" if c.lanczos is None else f"an estimate by {c.lanczos} Lanczos steps{on}"
        yield f"eigenvalues of g_yy from {c.smallest:.2g} to {c.largest:.2g} ({how})"
        least, met = ("", "") if c.lanczos is None else ("at least ", " met")
        off = " off the null space" if c.nullity else ""
        yield f"condition {least}{c.condition:.2g}{off}; {c.nullity} zero, {c.negative} negative{met}"
    if d.coupling is not None:
        yield f"|g_xy| about {d.coupling:.2g}"
    if "x" in d.faces:
        x = d.faces["x"]
        yield f"{x.near} of {x.entries} entries of x at a face of X or nearly so"
    if "y" in d.faces:
        y = d.faces["y"]
        yield f"{y.held} of {y.entries} entries of y(x) held by Y, {y.near} near a change of that"
    for name, (violated, active) in d.constraints.items():
        yield f"{name}: {violated} violated, {active} active or nearly so"


def _findings(d: Diagnosis) -> Iterator[str]:
    yield from d.notes
    s, low, c = d.scales, d.lower, d.curvature
    if not d.derivatives.ok:
        yield f"Derivatives are off: {', '.join(d.derivatives.bad)}. Mend these first: all else here rests on them."
    for letter, level in (("f", "upper"), ("g", "lower")):
        if not all(math.isfinite(s[name]) for name in (letter, f"|{letter}_x|", f"|{letter}_y|")):
            yield f"{level}: its value or gradient is NaN or infinite at the start. Nothing else was looked at."
    if max(s["|f_x|"], s["|f_y|"]) < d.tol:
        yield f"f is flat at the start: |f_x| and |f_y| are below tol = {d.tol:.0e}. Scale f up, or start elsewhere."
    if s["|g_y|"] < d.tol:
        yield f"|g_y| is below tol = {d.tol:.0e} at the start: y solves the lower level, is a saddle, or g is scaled too small."
    f, g = (max(abs(s[letter]), s[f"|{letter}_x|"], s[f"|{letter}_y|"]) for letter in "fg")
    if min(f, g) > 0 and max(f, g) > APART * min(f, g):
        yield f"f and g differ by {max(f, g) / min(f, g):.0e} in size. Residuals are absolute: bring both to about 1."
    if d.features & CONSTRAINED:
        yield "The lower level has constraints and was not solved here: the figures are those at the start's y."
    if low is not None:
        yield from _of_solutions(low, d.tol)
    if c is not None:
        yield from _of_curvature(c)
    if d.coupling == 0.0 and d.nearby == 0.0:
        yield "g_xy = 0 at y(x) and nearby: x does not influence y, and this is no bilevel problem."
    elif d.coupling == 0.0:
        yield "g_xy = 0 at y(x), though not nearby: x does not move y to first order here, and Phi may look stationary."
    if "y" in d.faces and d.faces["y"].near:
        yield f"{d.faces['y'].near} entries of y(x) are about to reach or to leave a face of Y: there Phi has kinks."
    for name, (violated, _) in d.constraints.items():
        if violated:
            yield f"{name}: entries violated: {violated}."


def _of_solutions(low: LowerLevel, tol: float) -> Iterator[str]:
    if not low.solved:
        yield f"The lower level was not solved here: {low.reason.value} The other figures are those where it ended."
    if low.formula is not None and not low.formula <= tol:
        yield f"lower_solution(x) is no solution: its residual is {low.formula:.1e}."
    if low.convex is False:
        lowest = f"the lowest {low.below:.2g} below" if low.below else "none below"
        yield f"g(x, .) is not convex: other starts end at other values, {lowest}. y(x) depends on the start."
    elif not low.elsewhere:
        yield "No other start was solved in the steps allowed: whether y(x) is unique is not known."
    elif low.others:
        yield "Several lower solutions: other starts end at another y with an equal g."


def _of_curvature(c: Curvature) -> Iterator[str]:
    if c.negative:
        yield f"g_yy has a negative eigenvalue, {c.smallest:.2g}: y(x) is a saddle, or not solved."
    if c.nullity == c.size:
        yield "g_yy = 0: the lower level has no curvature."
    elif c.nullity:
        many = f"{c.nullity} of {c.size}" if c.lanczos is None else "some"
        yield f"g_yy is singular ({many} eigenvalues are zero; {c.outside:.0%} of f_y lies there): y(x) need not be unique."
    elif c.condition > ILL:
        yield f"g_yy is ill-conditioned ({c.condition:.0e}): y(x) is sensitive, and every method is slow or inaccurate."


def _solvers(d: Diagnosis) -> Iterator[tuple[str, str]]:
    """The exported solvers, those that `solve` may take first."""
    found: dict[str, type[Solver]] = {name: getattr(solvers, name) for name in solvers.__all__}
    for name in (*SENTENCES, *(name for name in found if name not in SENTENCES)):
        lacking = found[name].lacks(d.features)
        taken = d.recommended is not None and isinstance(d.recommended.solver, found[name])
        other = "suits, see above" if taken else "accept the problem; not the first choice for it"
        yield name, f"refused, {lacking.words()}" if lacking else SENTENCES[name](d) if name in SENTENCES else other


def _implicit(d: Diagnosis) -> str:
    low, c = d.lower, d.curvature
    if Feature.Y_SET in d.features and low is not None and "y" not in d.faces:
        return "refused, derivatives through this set Y are not known"
    if low is None or not low.solved:
        return "doubtful, the lower level was not solved here"
    if c is None:
        return "suits; y(x) does not move to first order"
    if c.negative:
        return "doubtful, y(x) is no minimiser"
    cost = f"about {c.products} products a system (condition {c.condition:.2g})"
    if c.nullity and c.outside > d.tol:
        return "ends as SINGULAR: f_y has a part along null vectors of g_yy, so that no hypergradient exists"
    if c.nullity:
        return f"works as long as f_y has no part along null vectors of g_yy; {cost}"
    kinks = "; may end at a kink, as PRECISION or LINE_SEARCH" if "y" in d.faces and d.faces["y"].near else ""
    local = "; follows the lower solution next to its start" if low.convex is False else ""
    return f"suits; expect {cost}{kinks}{local}"


def _penalty(d: Diagnosis) -> str:
    low, c = d.lower, d.curvature
    if low is None or not low.solved:
        return "doubtful, the lower level was not solved here"
    if low.convex is False:
        return "suits as a local method: several lower minima"
    if (c is not None and c.nullity) or low.others:
        return "suits; takes the lower solution that f prefers"
    return f"suits, slowly: condition {c.condition:.0e}" if c is not None and c.condition > ILL else "suits"


def _sgd(d: Diagnosis) -> str:
    return "suits; needs max_steps" if Feature.SAMPLES in d.features else "no mini-batches to draw: the others are faster"


SENTENCES: dict[str, Callable[[Diagnosis], str]] = {"Implicit": _implicit, "Penalty": _penalty, "PenaltySGD": _sgd}
