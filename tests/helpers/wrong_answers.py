"""Problems on which a method may give a wrong answer in silence, each with its truth: by hand, or from a search over a grid.

Most have f = (y - 1)^2 + x^2 / 10 and y(x) = x near the solution, which is then x = y = 1 / 1.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log, nan, pi
from typing import Any

import torch
from torch import Tensor

from bilevel import BilevelProblem, Box

TOY = 1 / 1.1
Answer = tuple[Any, Any]  # x and y as numbers or lists of them; nan: any value is right


@dataclass(frozen=True, kw_only=True)
class Case:
    """A problem and what is true of it.

    says: for the page. right: the solutions; none where there is no minimiser. local: points where "converged" is true as the
    README has it, and no more: x stationary, y with no lower value in sight. tolerance: of x and y relative to their size, or to
    `unit` where they are smaller. verdicts: statuses that are true statements about this problem. refused: what the exception
    says where every solver must refuse. grid: (least x, greatest x, least y, greatest y), where a search finds one of `right`.
    """

    name: str
    says: str
    problem: Callable[[], BilevelProblem]
    right: tuple[Answer, ...] = ()
    local: tuple[Answer, ...] = ()
    tolerance: float = 1e-4
    unit: float = 1.0
    verdicts: tuple[str, ...] = ()
    refused: str = ""
    grid: tuple[float, float, float, float] | None = None
    writes: bool = False  # g changes what it is given, which may be the user's own variables

    def among(self, answers: tuple[Answer, ...], x: Tensor, y: Tensor) -> bool:
        return any(self.close(u, x) and self.close(v, y) for u, v in answers)

    def close(self, wanted: Any, found: Tensor) -> bool:
        known = torch.tensor(wanted, dtype=torch.float64).reshape(-1)
        error = (found.detach().double().reshape(-1) - known).abs()
        return bool(((error <= self.tolerance * known.abs().clamp(min=self.unit)) | known.isnan()).all())


def real(*values: float) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def toy(x: Tensor, y: Tensor) -> Tensor:
    return (y - 1) ** 2 + 0.1 * x**2


def track(x: Tensor, y: Tensor) -> Tensor:
    return (y - x) ** 2


def make(
    lower: Callable = track, upper: Callable = toy, x: Any = None, y: Any = None, **more: Any
) -> Callable[[], BilevelProblem]:
    def problem() -> BilevelProblem:
        start = {"x": real(0.0) if x is None else x, "y": real(0.5) if y is None else y}
        start = {name: real(value) if isinstance(value, float) else value for name, value in start.items()}
        return BilevelProblem(**{"upper": upper, "lower": lower, **start, **more})

    return problem


CASES: list[Case] = []


def case(name: str, says: str, problem: Callable[[], BilevelProblem], **truth: Any) -> None:
    CASES.append(Case(name=name, says=says, problem=problem, **truth))


one = (TOY, TOY)

# -- the lower level has several solutions, or a singular Hessian -----------------------------------------------------------
case(
    "flat, f does not mind",
    "g does not depend on y[1], nor does f",
    make(lambda x, y: (y[0] - x) ** 2, lambda x, y: toy(x, y[0]), y=real(0.5, 0.5)),
    right=((TOY, [TOY, nan]),),
    verdicts=("SINGULAR",),  # of methods for nonsingular Hessians
)
case(
    "flat, f chooses",
    "g does not depend on y[1], f has one best value of it",
    make(lambda x, y: (y[0] - x) ** 2, lambda x, y: toy(x, y[0]) + (y[1] - x) ** 2, y=real(0.5, 0.0)),
    right=((TOY, [TOY, TOY]),),
    verdicts=("SINGULAR",),
)
case(
    "flat, f falls",
    "g does not depend on y[1], and f falls along it without end: no solution",
    make(lambda x, y: (y[0] - x) ** 2, lambda x, y: toy(x, y[0]) + y[1], y=real(0.5, 0.0)),
    verdicts=("SINGULAR", "UNBOUNDED", "LOWER_UNSOLVED"),
)
case(
    "quartic",
    "g = (y - x)^4: one minimiser, where the lower Hessian is zero",
    make(lambda x, y: (y - x) ** 4),
    right=(one,),
    tolerance=2e-2,  # |g_y| <= 1e-6 says |y - x| <= 6e-3
    verdicts=("SINGULAR",),
    grid=(-2, 2, -2, 2),
)

# -- the start is stationary for g, but no minimiser ------------------------------------------------------------------------
case(
    "saddle",
    "the start is a saddle of g; y[1] = 1 and -1 are its minimisers",
    make(
        lambda x, y: (y[0] - x) ** 2 + (y[1] ** 2 - 1) ** 2,
        lambda x, y: toy(x, y[0]) + (y[1] - x) ** 2,
        y=real(0.0, 0.0),
    ),
    right=((2 / 2.1, [2 / 2.1, 1.0]),),
    local=((0.0, [0.0, -1.0]),),
    verdicts=("SINGULAR",),
)
case(
    "maximum",
    "g = -cos(y - x), and the start is its maximum",
    make(lambda x, y: -torch.cos(y - x), y=pi),
    right=(one,),
    local=tuple(((1 - 2 * pi * k) / 1.1, (1 - 2 * pi * k) / 1.1 + 2 * pi * k) for k in (-3, -2, -1, 1, 2, 3)),
    grid=(-2, 2, -3, 3),
)
case(
    "inflection",
    "g = (y - x)^3 at y = x: stationary, and g has no minimiser",
    make(lambda x, y: (y - x) ** 3, y=0.0),
    verdicts=("SINGULAR", "LOWER_UNSOLVED"),
)
case(
    "concave, in a box",
    "g = -(y - x)^2 on -1 <= y <= 2, from its maximum: y is a bound",
    make(lambda x, y: -((y - x) ** 2), x=0.2, y=0.2, Y=Box(-1.0, 2.0)),
    right=((0.0, 2.0),),
    grid=(-2, 2, -1, 2),
)
case(
    "double well",
    "two minimisers of g near 1 and -1, the second lower; the start is at the first",
    make(lambda x, y: (y**2 - 1) ** 2 + 0.3 * y + 0.1 * x * y, lambda x, y: (y - x) ** 2 + 0.1 * (x - 1) ** 2, y=1.0),
    right=((-0.83954, -1.02571),),  # found by the grid
    grid=(-2, 2, -2, 2),
)
case(
    "far wells",
    "the same with the lower minimiser a hundred away: no search around y sees it",
    make(lambda x, y: -torch.exp(-((y - x) ** 2) / 2) - 2 * torch.exp(-((y - 100) ** 2) / 2)),
    right=((0.0, 100.0),),
    local=(one,),
)

# -- no minimiser -----------------------------------------------------------------------------------------------------------
case("lower concave", "g = -(y - x)^2", make(lambda x, y: -((y - x) ** 2), y=1.0), verdicts=("LOWER_UNSOLVED",))
case("lower linear", "g = y (1 + x^2)", make(lambda x, y: y * (1 + x**2)), verdicts=("LOWER_UNSOLVED", "SINGULAR"))
case(
    "lower infimum",
    "g = (1 + x^2) exp(-y), which falls to 0 and never gets there",
    make(lambda x, y: (1 + x**2) * torch.exp(-y), lambda x, y: (y - 1) ** 2 + (x - 1) ** 2),
    verdicts=("LOWER_UNSOLVED",),
)
case("upper linear", "f = y = x", make(upper=lambda x, y: y), verdicts=("UNBOUNDED",))
case("upper concave", "f = -y^2 = -x^2", make(upper=lambda x, y: -(y**2), x=0.1, y=0.1), verdicts=("UNBOUNDED",))

# -- kinks and jumps --------------------------------------------------------------------------------------------------------
case(
    "abs, away from it",
    "g = (y - x)^2 / 2 + |y|, whose y(x) is 0 in between and smooth at the solution",
    make(lambda x, y: 0.5 * (y - x) ** 2 + y.abs(), x=3.0, y=0.0),
    right=((2 / 1.1, 2 / 1.1 - 1),),
    local=((0.0, 0.0),),
    grid=(-3, 3, -3, 3),
)
case(
    "abs, on it",
    "the same with the solution at y = 0",
    make(lambda x, y: 0.5 * (y - x) ** 2 + y.abs(), lambda x, y: y**2 + 0.1 * (x - 0.5) ** 2, x=0.3, y=0.4),
    right=((0.5, 0.0),),
    grid=(-1, 2, -1, 2),
)
case(
    "abs, always on it", "g = |y - x|: always on the kink", make(lambda x, y: (y - x).abs()), right=(one,), verdicts=("SINGULAR",)
)
case(
    "kink, from it",
    "y >= 0, f = 2 y - x + x^2 / 2: the solution is where the bound becomes active; from there",
    make(upper=lambda x, y: 2 * y - x + 0.5 * x**2, x=0.0, y=0.0, Y=Box(0.0, inf)),
    right=((0.0, 0.0),),
    grid=(-1, 1, 0, 1),
)
case(
    "kink, from afar",
    "the same from x = 2",
    make(upper=lambda x, y: 2 * y - x + 0.5 * x**2, x=2.0, y=2.0, Y=Box(0.0, inf)),
    right=((0.0, 0.0),),
    tolerance=1e-3,
)
case(
    "kink, a maximum",
    "y >= 0, f = x - 2 y + x^2 / 2: f(x, y(x)) has a maximum at the start",
    make(upper=lambda x, y: x - 2 * y + 0.5 * x**2, x=0.0, y=0.0, Y=Box(0.0, inf)),
    right=((1.0, 1.0), (-1.0, 0.0)),
    grid=(-2, 2, 0, 2),
)
case(
    "jump",
    "g = x y on -1 <= y <= 1: y(x) jumps at x = 0, where the solution is",
    make(lambda x, y: x * y, lambda x, y: (x + 0.5) ** 2 + y, x=1.0, y=-1.0, Y=Box(-1.0, 1.0)),
    right=((0.0, -1.0),),
    local=((-0.5, 1.0),),
    verdicts=("SINGULAR",),
    grid=(-1, 1, -1, 1),
)
case("x at its bound", "x <= 1 / 2, and f would have more", make(X=Box(0.0, 0.5)), right=((0.5, 0.5),), grid=(0, 0.5, -1, 1))
case(
    "coupled",
    "g = y^2 with y >= x",
    make(lambda x, y: y**2, x=0.5, lower_inequality=lambda x, y: x - y),
    right=(one,),
)

# -- something does not depend on something ---------------------------------------------------------------------------------
case(
    "g without x",
    "y(x) = 2 for all x",
    make(lambda x, y: (y - 2) ** 2, lambda x, y: toy(x, y) + (x - 1) ** 2),
    right=((TOY, 2.0),),
)
case(
    "g without y",
    "g = x^2: all y are solutions",
    make(lambda x, y: x**2, lambda x, y: toy(x, y) + x * (x - 2) + 0.1 * x**2),
    right=((1 / 1.2, 1.0),),
    verdicts=("SINGULAR",),
)
case("f without x", "f = (y - 1)^2", make(upper=lambda x, y: (y - 1) ** 2), right=((1.0, 1.0),))
case(
    "x without effect",
    "neither has x: every x is right",
    make(lambda x, y: (y - 2) ** 2, lambda x, y: (y - 1) ** 2),
    right=((nan, 2.0),),
)
case("f constant", "f = 3 + 0 y: every x is right", make(lambda x, y: (y - 2) ** 2, lambda x, y: 3 + 0 * y), right=((nan, 2.0),))
case("f a number", "f = 3, with no graph of autograd", make(upper=lambda x, y: real(3.0)), refused="depends on neither")

# -- numbers ----------------------------------------------------------------------------------------------------------------
case(
    "log below",
    "g = y - x log y: NaN for y < 0",
    make(lambda x, y: y - x * y.log(), x=2.0, y=3.0),
    right=(one,),
    verdicts=("NONFINITE",),
    grid=(0.1, 2, 0.1, 2),
)
case(
    "log above",
    "f = 1000 y - log y: NaN for y < 0, and the first step is a thousand long",
    make(upper=lambda x, y: 1000 * y - y.log(), x=1.0, y=1.0),
    right=((1e-3, 1e-3),),
    verdicts=("NONFINITE",),
)
case(
    "exp below",
    "g = exp(y) - y exp(x) from y = 400: squares of the gradient overflow",
    make(lambda x, y: y.exp() - y * x.exp(), y=400.0),
    right=(one,),
    verdicts=("NONFINITE",),
    grid=(-2, 2, -2, 2),
)
case(
    "exp above",
    "f = exp(y) - 2 y from x = y = 400",
    make(upper=lambda x, y: y.exp() - 2 * y, x=400.0, y=400.0),
    right=((log(2), log(2)),),
    verdicts=("NONFINITE",),
)
case("infinite start", "f = exp(y) at y = 800", make(upper=lambda x, y: y.exp() + x, y=800.0), refused="upper: its value is inf")
case("NaN start", "x = NaN", make(x=nan), refused="x: NaN or infinite at the start")
case(
    "scales",
    "variables of size 1e6 and 1e-6, f and g about 1",
    make(
        lambda x, y: (((y - x) / SCALES) ** 2).sum(),
        lambda x, y: ((y / SCALES - 1) ** 2 + 0.1 * (x / SCALES) ** 2).sum(),
        x=real(0.0, 0.0),
        y=real(0.0, 0.0),
    ),
    right=(([1e6 * TOY, 1e-6 * TOY], [1e6 * TOY, 1e-6 * TOY]),),
    tolerance=1e-2,
    unit=0.0,
    verdicts=("SINGULAR",),  # eigenvalues of g_yy 1e24 apart: true to rounding
)
case(
    "float32",
    "the plain problem in single precision",
    make(x=torch.tensor(0.0), y=torch.tensor(0.5)),
    right=(one,),
    tolerance=3e-3,
)
case("integers", "x = torch.tensor(1)", make(x=torch.tensor(1)), refused="floating-point")

# -- what users write -------------------------------------------------------------------------------------------------------
case("detached", "g uses x.detach(): d/dx is lost", make(lambda x, y: (y - x.detach()) ** 2), right=(one,))
case("item", "g uses x.item()", make(lambda x, y: (y - x.item()) ** 2), right=(one,))
case("detached in part", "g = (y - x.detach())^2 + 0 x", make(lambda x, y: (y - x.detach()) ** 2 + 0 * x), right=(one,))
case(
    "requires_grad",
    "x and y are parameters that require gradients",
    make(x=torch.nn.Parameter(real(0.0)), y=torch.nn.Parameter(real(0.5))),
    right=(one,),
)
case("in place", "g does y.sub_(x)", make(lambda x, y: y.sub_(x) ** 2), refused="in-place")
case("in place, hidden", "g does y.data.add_(1)", make(lambda x, y: (y - x) ** 2 + 0 * y.data.add_(1.0)), writes=True)
case("in place, a copy", "g changes a copy of y in place", make(lambda x, y: (1 * y).sub_(x) ** 2), right=(one,))
case("noise below", "g = (y - x - e)^2, e random at each call", make(lambda x, y: (y - x - 0.1 * torch.randn(())) ** 2))
case("noise above", "f has a random term at each call", make(upper=lambda x, y: toy(x, y) + 0.1 * y * torch.randn(())))
case(
    "dropout",
    "g drops half of y at each call",
    make(
        lambda x, y: ((torch.nn.functional.dropout(y, 0.5) - x) ** 2).sum(),
        lambda x, y: toy(x, y).sum(),
        x=real(0.5, 0.5),
        y=real(0.5, 0.5),
    ),
    verdicts=("SINGULAR",),  # where both are dropped
)
SCALES = real(1e6, 1e-6)
