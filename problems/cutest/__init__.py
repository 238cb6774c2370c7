"""Constrained problems of the CUTEst collection, by their SIF names. `cutest(name=...)` makes an instance.

`CUTEST` holds the definitions of those with equations alone: 45 of the 47 problems of the sketched Newton paper (arXiv
2305.18379), `PAPER_47`, and the first 30 by name of the others with n <= 20 and m <= n in the PyPI package sif2jax 0.0.8.

`HS_INEQUALITY` holds the problems of Hock and Schittkowski with inequalities or bounds: HS118, and the smooth ones of sif2jax
0.0.8. Of the book's problems 59, 67, 70, 74, 75, 84, 85, 99 and 109 are missing, and 87, which is not smooth.

BA-L1 and BA-L1SP are left out: they are bundle adjustments whose data stand only in CUTEst's own files.
"""

from __future__ import annotations

import torch

from constrained.core.errors import OptionError
from constrained.core.problem import Multipliers, Point
from constrained.problem import ConstrainedProblem
from constrained.sets import Box, ConvexSet, Everywhere

from ..arguments import placed, whole
from ..instance import ConstrainedInstance
from .boggs_tolle import BOGGS_TOLLE
from .definition import Definition
from .equations import EQUATIONS
from .hock_schittkowski import HOCK_SCHITTKOWSKI
from .hs_10_to_44 import HS_10_TO_44
from .hs_57_to_93 import HS_57_TO_93
from .hs_95_to_108 import HS_95_TO_108
from .hs_113_to_268 import HS_113_TO_268
from .hs_bounds import HS_BOUNDS
from .others import OTHERS

__all__ = ["CUTEST", "HS_INEQUALITY", "PAPER_47", "WITHOUT", "Definition", "cutest"]

CUTEST: dict[str, Definition] = dict(sorted({**HOCK_SCHITTKOWSKI, **BOGGS_TOLLE, **EQUATIONS, **OTHERS}.items()))

HS_INEQUALITY: dict[str, Definition] = {**HS_BOUNDS, **HS_10_TO_44, **HS_57_TO_93, **HS_95_TO_108, **HS_113_TO_268}

# The problems of the paper, in its order.
PAPER_47 = (
    *("HS6", "BT5", "BT9", "HS28", "BT10", "HIMMELBA", "BT12", "HS40", "BT3", "BT6", "BT11", "HS7", "GENHS28"),
    *("HS51", "SINVALNE", "BOOTH", "HS52", "HS47", "WAYSEA1NE", "HS48", "HS50", "RSNBRNE", "CUBENE", "HS77"),
    *("MWRIGHT", "ZANGWIL3", "TRIGON1NE", "BA-L1SP", "HS78", "HS56", "HELIXNE", "HS42", "HS79", "ORTHREGB"),
    *("HS100LNP", "GOTTFR", "HIMMELBE", "MOREBVNE", "WAYSEA2NE", "DENSCHNCNE", "DENSCHNFNE", "HIMMELBC"),
    *("PRICE4NE", "INTEQNE", "BA-L1", "MANCINONE", "BT2"),
)

# Names of the paper that have no definition here, with the reason.
WITHOUT = dict.fromkeys(("BA-L1", "BA-L1SP"), "a bundle adjustment whose data stand only in CUTEst's own files")


def cutest(
    *, name: str = "HS6", seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> ConstrainedInstance:
    """A problem min f(x) subject to c(x) = 0, h(x) <= 0 and bounds on x of the CUTEst collection, by its SIF name.

    name: one of `problems.cutest.CUTEST` or `HS_INEQUALITY`, where formulas and starts stand. solution: where it is known and
    the only one. start: the collection's x0, which may violate the bounds, and lam0. seed: nothing is drawn.

    >>> instance = cutest(name="HS35")
    >>> instance.features.words(), round(instance.optimum, 6)
    ('a set X, inequality constraints', 0.111111)
    """
    if isinstance(name, str) and name in WITHOUT:
        raise OptionError(f"cutest(name=...): {name} is not defined here: {WITHOUT[name]}")
    one = {**CUTEST, **HS_INEQUALITY}.get(name) if isinstance(name, str) else None
    if one is None:
        known = "problems.cutest.CUTEST or HS_INEQUALITY, such as 'HS6'"
        raise OptionError(f"cutest(name=...): expected a name in {known}, got {name!r}")
    whole("cutest(seed=...)", seed, 0)
    device = placed("cutest", dtype, device)
    x = torch.tensor(one.start, dtype=dtype, device=device)
    c, h = one.equality if one.c else None, one.inequality if one.h else None
    multipliers = Multipliers(
        equality=torch.full_like(c(x), one.multiplier) if c else None, inequality=torch.zeros_like(h(x)) if h else None
    )
    return ConstrainedInstance(
        name=name,
        problem=ConstrainedProblem(objective=one.objective, equality=c, inequality=h, x=x, X=box(one, dtype, device)),
        source=f"CUTEst: {one.source}" + (f" ({one.note})" if one.note else ""),
        solution=(Point(torch.tensor(one.solution, dtype=dtype, device=device)),) if one.solution and one.unique else (),
        optimum=float(one.optimum),
        start=Point(x, multipliers=multipliers),
    )


def box(one: Definition, dtype: torch.dtype, device: torch.device) -> ConvexSet:
    """The bounds as a set, the whole space where there are none."""
    if one.low is None and one.high is None:
        return Everywhere()
    return Box(*(torch.tensor(side, dtype=dtype, device=device) for side in one.bounds()))
